package uploader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/crc"
)

// s3API is the part of *s3.Client that eddy uses.
type s3API interface {
	CreateMultipartUpload(context.Context, *s3.CreateMultipartUploadInput, ...func(*s3.Options)) (*s3.CreateMultipartUploadOutput, error)
	UploadPart(context.Context, *s3.UploadPartInput, ...func(*s3.Options)) (*s3.UploadPartOutput, error)
	CompleteMultipartUpload(context.Context, *s3.CompleteMultipartUploadInput, ...func(*s3.Options)) (*s3.CompleteMultipartUploadOutput, error)
	AbortMultipartUpload(context.Context, *s3.AbortMultipartUploadInput, ...func(*s3.Options)) (*s3.AbortMultipartUploadOutput, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
	HeadObject(context.Context, *s3.HeadObjectInput, ...func(*s3.Options)) (*s3.HeadObjectOutput, error)
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	DeleteObject(context.Context, *s3.DeleteObjectInput, ...func(*s3.Options)) (*s3.DeleteObjectOutput, error)
}

var _ s3API = (*s3.Client)(nil)

// s3Store is a bucket, below a prefix.
type s3Store struct {
	c              Config
	api            s3API
	bucket, prefix string
}

var _ Store = (*s3Store)(nil)

// newS3Store makes the client through LoadDefaultConfig: only that turns the
// SDK's checksums on. The SDK's own retries are off: there is one retry policy,
// and it has a deadline for each attempt, which the SDK has not.
func newS3Store(ctx context.Context, c Config, bucket, prefix string) (*s3Store, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if c.Region != "" {
		opts = append(opts, config.WithRegion(c.Region))
	}
	if c.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(c.Profile))
	}
	ac, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: AWS configuration: %w", ErrRefused, err)
	}
	if ac.Region == "" {
		ac.Region = "us-east-1" // what stores other than AWS expect
	}
	client := s3.NewFromConfig(ac, func(o *s3.Options) {
		o.UsePathStyle = c.PathStyle == "true" || c.PathStyle != "false" && c.Endpoint != ""
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})
	return &s3Store{c: c, api: client, bucket: bucket, prefix: prefix}, nil
}

func (s *s3Store) URL() string {
	return strings.TrimSuffix("s3://"+s.bucket+"/"+s.prefix, "/")
}

func (s *s3Store) key(key string) *string {
	if s.prefix != "" {
		key = s.prefix + "/" + key
	}
	return aws.String(key)
}

// attempt runs one call again and again until it succeeds, is refused, or GiveUp
// has passed. n is the bytes that it moves: they and the slack make its deadline.
func (s *s3Store) attempt(ctx context.Context, op, key string, n int64, call func(ctx context.Context, try int) error) error {
	policy := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(s.c.GiveUp))
	try := 0
	return backoff.Retry(func() error {
		try++
		actx, cancel := context.WithTimeout(ctx, s.c.Slack+time.Duration(n/s.c.MinRate)*time.Second)
		defer cancel()
		err := call(actx, try)
		if ctx.Err() != nil {
			return backoff.Permanent(fmt.Errorf("%s %s: %w", op, key, context.Cause(ctx)))
		}
		if err = classify(op, key, err); err != nil && !passing(err) {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(policy, ctx))
}

// Put implements Store: a multipart upload by hand, because neither the manager
// nor its successor can be resumed. The store checks each part and the whole
// object by CRC64NVME; a store that knows no such checksum gets none, and then
// size and a sample of ranges are compared, which Object.Checked says.
func (s *s3Store) Put(ctx context.Context, r PutRequest) (Object, error) {
	if err := s.Abandon(ctx, r.Journal); err != nil {
		return Object{}, err
	}
	u := &upload{s: s, r: r, partSize: s.c.partSize(r.Upper), sums: true}
	if err := u.create(ctx); err != nil {
		return Object{}, err
	}
	j, err := createJournal(r.Journal, journalHead{
		Store: s.URL(), Endpoint: s.c.Endpoint, Key: r.Key, UploadID: u.id, PartSize: u.partSize, Identity: r.Identity,
	})
	if err != nil {
		return Object{}, errors.Join(err, s.abort(ctx, r.Key, u.id))
	}
	defer j.close()
	cut := cutter{
		size: u.partSize, limit: s.c.inFlight(u.partSize),
		note: func(p part) error {
			u.grow(p)
			return j.append(journalPart{Part: p.number, Off: p.off, Len: len(p.buf), CRC: crc.Base64(p.crc), Pieces: p.pieces})
		},
		send: u.send,
	}
	size, sum, err := cut.run(ctx, r)
	if err != nil {
		return Object{}, err
	}
	o, err := u.complete(ctx, size, sum)
	if err != nil {
		return Object{}, err
	}
	return o, os.Remove(r.Journal)
}

// upload is one multipart upload.
type upload struct {
	s        *s3Store
	r        PutRequest
	id       string
	partSize int64
	sums     bool // the store takes CRC64NVME
	parts    []types.CompletedPart
	sample   []byte // the object's last bytes, where there are no checksums
	stored   atomic.Int64
}

func (u *upload) create(ctx context.Context) error {
	s := u.s
	create := func(ctx context.Context, _ int) error {
		in := &s3.CreateMultipartUploadInput{
			Bucket: &s.bucket, Key: s.key(u.r.Key), ContentType: aws.String("application/zstd"),
			StorageClass: types.StorageClass(s.c.StorageClass), ServerSideEncryption: types.ServerSideEncryption(s.c.SSE.Mode),
		}
		if s.c.SSE.KMSKeyID != "" {
			in.SSEKMSKeyId = &s.c.SSE.KMSKeyID
		}
		if u.sums {
			in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc64nvme, types.ChecksumTypeFullObject
		}
		out, err := s.api.CreateMultipartUpload(ctx, in)
		if err != nil {
			return err
		}
		u.id = aws.ToString(out.UploadId)
		return nil
	}
	err := s.attempt(ctx, "begin upload of", u.r.Key, 0, create)
	if errors.Is(err, ErrRefused) && refusesChecksums(err) {
		u.sums = false
		err = s.attempt(ctx, "begin upload of", u.r.Key, 0, create)
	}
	if err == nil && u.id == "" {
		err = fmt.Errorf("begin upload of %s: %w: no upload id in the answer", u.r.Key, ErrRefused)
	}
	return err
}

func refusesChecksums(err error) bool {
	for _, code := range []string{"InvalidRequest", "NotImplemented", "InvalidArgument"} {
		if strings.Contains(err.Error(), code) {
			return true
		}
	}
	return false
}

// grow makes room for the part's line in Complete, in order.
func (u *upload) grow(p part) {
	u.parts = append(u.parts, types.CompletedPart{PartNumber: aws.Int32(p.number)})
	tail := p.buf[max(0, len(p.buf)-sampleLen):]
	u.sample = append(u.sample[:0], tail...)
}

// sampleLen is how many of an object's last bytes are read back where the store
// keeps no checksum: index and seek table end there.
const sampleLen = 64 << 10

func (u *upload) send(ctx context.Context, p part) error {
	s := u.s
	sum := crc.Base64(p.crc)
	err := s.attempt(ctx, fmt.Sprintf("upload part %d of", p.number), u.r.Key, int64(len(p.buf)), func(ctx context.Context, _ int) error {
		in := &s3.UploadPartInput{
			Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id, PartNumber: aws.Int32(p.number),
			Body: newBody(p.buf), ContentLength: aws.Int64(int64(len(p.buf))),
		}
		var opts []func(*s3.Options)
		if u.sums {
			in.ChecksumCRC64NVME = &sum
		} else {
			opts = append(opts, withoutChecksums)
		}
		out, err := s.api.UploadPart(ctx, in, opts...)
		if err != nil {
			return err
		}
		if aws.ToString(out.ETag) == "" {
			return errors.New("no ETag in the answer")
		}
		line := &u.parts[p.number-1]
		line.ETag = out.ETag
		if u.sums {
			line.ChecksumCRC64NVME = &sum
		}
		return nil
	})
	if err == nil && u.r.Progress != nil {
		u.r.Progress(u.stored.Add(int64(len(p.buf))))
	}
	return err
}

func withoutChecksums(o *s3.Options) {
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
}

// complete ends the upload and proves that the object is what was sent. A lost
// answer is no failure and no success: the object itself is asked.
func (u *upload) complete(ctx context.Context, size int64, sum uint64) (Object, error) {
	s, want := u.s, crc.Base64(sum)
	err := s.attempt(ctx, "complete", u.r.Key, 0, func(ctx context.Context, try int) error {
		in := &s3.CompleteMultipartUploadInput{
			Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: u.parts},
		}
		if u.sums {
			in.ChecksumCRC64NVME, in.ChecksumType = &want, types.ChecksumTypeFullObject
		}
		out, err := s.api.CompleteMultipartUpload(ctx, in)
		if err == nil && aws.ToString(out.ETag) == "" {
			err = errors.New("no ETag in the answer") // an error in the body of a 200
		}
		if err != nil {
			if o, herr := s.head(ctx, u.r.Key); herr == nil && o.Size == size && (o.CRC64NVME == want || try > 1 && o.CRC64NVME == "") {
				return nil // an earlier answer was lost
			}
		}
		return err
	})
	if err != nil {
		return Object{}, err
	}
	o, err := s.Stat(ctx, u.r.Key)
	if err != nil {
		return Object{}, err
	}
	if o.Size != size {
		return Object{}, fmt.Errorf("%w: %s has %d bytes in the store, %d were sent", ErrDamaged, u.r.Key, o.Size, size)
	}
	if o.CRC64NVME != "" {
		if o.CRC64NVME != want {
			return Object{}, fmt.Errorf("%w: %s has checksum %s in the store, %s was sent", ErrDamaged, u.r.Key, o.CRC64NVME, want)
		}
		o.Checked = "checksum"
		return o, nil
	}
	o.CRC64NVME, o.Checked = want, "sample"
	return o, u.compareTail(ctx, o)
}

func (u *upload) compareTail(ctx context.Context, o Object) error {
	n := int64(len(u.sample))
	r, err := u.s.Open(ctx, u.r.Key, o.ETag, o.Size-n, n)
	if err != nil {
		return err
	}
	defer r.Close()
	return sameBytes(r, u.sample, u.r.Key)
}

// Abandon implements Store.
func (s *s3Store) Abandon(ctx context.Context, path string) error {
	h, _, err := readJournal(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ignoreAbsent(os.Remove(path))
	}
	if err != nil {
		return err
	}
	if h.Store == s.URL() && h.Endpoint == s.c.Endpoint {
		if err := s.abort(ctx, h.Key, h.UploadID); err != nil {
			return err
		}
	}
	// The upload of another store is out of reach: its lifecycle rule ends it.
	return ignoreAbsent(os.Remove(path))
}

func (s *s3Store) abort(ctx context.Context, key, id string) error {
	err := s.attempt(context.WithoutCancel(ctx), "abort the upload of", key, 0, func(ctx context.Context, _ int) error {
		_, err := s.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: s.key(key), UploadId: &id})
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Stat implements Store.
func (s *s3Store) Stat(ctx context.Context, key string) (o Object, err error) {
	err = s.attempt(ctx, "look at", key, 0, func(ctx context.Context, _ int) (err error) {
		o, err = s.head(ctx, key)
		return err
	})
	return o, err
}

func (s *s3Store) head(ctx context.Context, key string) (Object, error) {
	out, err := s.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: s.key(key), ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return Object{}, err
	}
	o := Object{Key: key, Size: aws.ToInt64(out.ContentLength), ETag: unquote(out.ETag), Modified: aws.ToTime(out.LastModified)}
	if out.ChecksumType != types.ChecksumTypeComposite {
		o.CRC64NVME = aws.ToString(out.ChecksumCRC64NVME)
	}
	return o, nil
}

func unquote(etag *string) string { return strings.Trim(aws.ToString(etag), `"`) }

// List implements Store.
func (s *s3Store) List(ctx context.Context, prefix, delimiter string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var token *string
		strip := 0
		if s.prefix != "" {
			strip = len(s.prefix) + 1
		}
		for {
			var out *s3.ListObjectsV2Output
			err := s.attempt(ctx, "list", prefix, 0, func(ctx context.Context, _ int) (err error) {
				in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: s.key(prefix), ContinuationToken: token}
				if delimiter != "" {
					in.Delimiter = &delimiter
				}
				out, err = s.api.ListObjectsV2(ctx, in)
				return err
			})
			if err != nil {
				yield(Object{}, err)
				return
			}
			var page []Object
			for _, c := range out.Contents {
				page = append(page, Object{Key: aws.ToString(c.Key)[strip:], Size: aws.ToInt64(c.Size), ETag: unquote(c.ETag), Modified: aws.ToTime(c.LastModified)})
			}
			for _, p := range out.CommonPrefixes {
				page = append(page, Object{Key: aws.ToString(p.Prefix)[strip:]})
			}
			slices.SortFunc(page, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
			for _, o := range page {
				if !yield(o, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			token = out.NextContinuationToken
		}
	}
}

// Delete implements Store.
func (s *s3Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		err := s.attempt(ctx, "delete", key, 0, func(ctx context.Context, _ int) error {
			_, err := s.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key)})
			return err
		})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}
