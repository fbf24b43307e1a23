package uploader

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/eddy-backup/eddy/internal/crc"
)

// Put implements Store: a multipart upload by hand, because neither the manager
// nor its successor can be resumed. The store checks each part and the whole
// object by CRC64NVME. A store that knows no such checksum gets the parts' MD5
// instead, and then parts are read back, which Object.Checked says.
func (s *s3Store) Put(ctx context.Context, r PutRequest) (Object, error) {
	if err := s.Abandon(ctx, r.Journal); err != nil {
		return Object{}, err
	}
	u := s.newUpload(r)
	if err := u.create(ctx); err != nil {
		return Object{}, err
	}
	j, err := createJournal(r.Journal, journalHead{
		Store: s.URL(), Endpoint: s.c.Endpoint, Key: r.Key, UploadID: u.id, PartSize: u.partSize, Identity: r.Identity,
	})
	if err != nil {
		// Nobody else knows of this upload.
		return Object{}, errors.Join(err, s.abort(context.WithoutCancel(ctx), r.Key, u.id))
	}
	defer j.close()
	cut := cutter{
		size: u.partSize, limit: s.c.inFlight(u.partSize),
		note: func(p part) error {
			u.expect(p)
			return j.append(lineOf(p))
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
	return o, ignoreAbsent(os.Remove(r.Journal))
}

// upload is one multipart upload.
type upload struct {
	s        *s3Store
	r        PutRequest
	id       string
	partSize int64
	stored   atomic.Int64
	// plain: the store refuses CRC64NVME; parts go with their MD5. It may turn
	// true during an upload, never back.
	plain atomic.Bool

	mu    sync.Mutex // of parts: one goroutine appends while others note ETags
	parts []sentPart
}

type sentPart struct {
	off  int64
	len  int
	crc  uint64
	etag string
}

func (s *s3Store) newUpload(r PutRequest) *upload {
	u := &upload{s: s, r: r, partSize: s.c.partSize(r.Upper)}
	sums := s.known().PartSums
	u.plain.Store(sums == Refused || sums == Ignored)
	return u
}

func (u *upload) expect(p part) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts = append(u.parts, sentPart{off: p.off, len: len(p.buf), crc: p.crc})
}

func (u *upload) create(ctx context.Context) error {
	err := u.tryCreate(ctx)
	if refusesChecksums(err) {
		u.plain.Store(true)
		err = u.tryCreate(ctx)
	}
	return err
}

func (u *upload) tryCreate(ctx context.Context) error {
	s := u.s
	return s.attempt(ctx, "begin the upload of", u.r.Key, s.deadline(0), func(ctx context.Context, _ int) error {
		in := &s3.CreateMultipartUploadInput{
			Bucket: &s.bucket, Key: s.key(u.r.Key), ContentType: aws.String(contentType(u.r.Key)),
			StorageClass: types.StorageClass(s.c.StorageClass), ServerSideEncryption: types.ServerSideEncryption(s.c.SSE.Mode),
		}
		if s.c.SSE.KMSKeyID != "" {
			in.SSEKMSKeyId = &s.c.SSE.KMSKeyID
		}
		if !u.plain.Load() {
			in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc64nvme, types.ChecksumTypeFullObject
		}
		out, err := s.api.CreateMultipartUpload(ctx, in)
		if err != nil {
			return err
		}
		if u.id = aws.ToString(out.UploadId); u.id == "" {
			return &storeError{kind: ErrRefused, said: "no upload id in the answer"}
		}
		return nil
	})
}

func contentType(key string) string {
	if path.Ext(key) == ".zst" {
		return "application/zstd"
	}
	return "application/octet-stream"
}

// refusesChecksums tells whether the store may have refused the call for its
// checksum: stores that do not know CRC64NVME say so in several ways.
func refusesChecksums(err error) bool {
	return errors.Is(err, ErrRefused) && hasCode(err, "InvalidRequest", "InvalidArgument", "NotImplemented", "NotSupported", "UnsupportedArgument")
}

func (u *upload) send(ctx context.Context, p part) error {
	plain := u.plain.Load()
	err := u.trySend(ctx, p, plain)
	if !plain && refusesChecksums(err) {
		u.plain.Store(true)
		err = u.trySend(ctx, p, true)
	}
	if err == nil && u.r.Progress != nil {
		u.r.Progress(u.stored.Add(int64(len(p.buf))))
	}
	return err
}

func (u *upload) trySend(ctx context.Context, p part, plain bool) error {
	s := u.s
	what := fmt.Sprintf("upload part %d of", p.number)
	return s.attempt(ctx, what, u.r.Key, s.deadline(int64(len(p.buf))), func(ctx context.Context, _ int) error {
		return u.sendOnce(ctx, p, plain)
	})
}

// sendOnce is one attempt at a part.
func (u *upload) sendOnce(ctx context.Context, p part, plain bool) error {
	s, begun := u.s, time.Now()
	content := newBody(p.buf)
	defer content.detach()
	in := &s3.UploadPartInput{
		Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id, PartNumber: aws.Int32(p.number),
		Body: content, ContentLength: aws.Int64(int64(len(p.buf))),
	}
	var opts []func(*s3.Options)
	if plain {
		sum := md5.Sum(p.buf)
		in.ContentMD5 = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
		opts = append(opts, withoutChecksums)
	} else {
		in.ChecksumCRC64NVME = aws.String(crc.Base64(p.crc))
		opts = append(opts, payloadUnsigned)
	}
	out, err := s.api.UploadPart(ctx, in, opts...)
	if err != nil {
		return err
	}
	if aws.ToString(out.ETag) == "" {
		return &storeError{kind: ErrUnreachable, again: true, said: "no ETag in the answer"}
	}
	s.c.Log.Debug().Str("key", u.r.Key).Int32("part", p.number).Int("bytes", len(p.buf)).Dur("took_ms", time.Since(begun)).Msg("part stored")
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[p.number-1].etag = *out.ETag
	return nil
}

// payloadUnsigned leaves the sha256 of a part out of its signature, as the SDK
// itself does over TLS: it would cost more than compression does. The part's
// CRC64NVME is in a signed header. Over plain http that does not stop somebody on
// the path who forges bytes, but nor does a signature, as the answers are not
// signed: such a part is found when the archive is read, by the sha256 of each
// file. Stores that take no checksum get signed parts.
func payloadUnsigned(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func withoutChecksums(o *s3.Options) {
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
}

// complete ends the upload and proves that the object is what was sent.
func (u *upload) complete(ctx context.Context, size int64, sum uint64) (Object, error) {
	want := crc.Base64(sum)
	err := u.tryComplete(ctx, size, want)
	if !u.plain.Load() && refusesChecksums(err) {
		u.plain.Store(true)
		err = u.tryComplete(ctx, size, want)
	}
	if err != nil {
		return Object{}, err
	}
	o, err := u.s.Stat(ctx, u.r.Key)
	if err != nil {
		return Object{}, err
	}
	damaged := func(format string, args ...any) (Object, error) {
		return Object{}, &storeError{op: "upload", key: u.r.Key, kind: ErrDamaged, said: fmt.Sprintf(format, args...)}
	}
	switch {
	case o.Size != size:
		return damaged("%d bytes are stored, %d were sent", o.Size, size)
	case o.CRC64NVME == want:
		o.Checked = "checksum"
		return o, nil
	case o.CRC64NVME != "":
		return damaged("the stored checksum is %s, what was sent has %s", o.CRC64NVME, want)
	}
	o.CRC64NVME = want
	o.Checked, err = u.readBack(ctx, o.ETag)
	return o, err
}

// tryComplete makes the call. A lost answer is neither failure nor success: some
// stores then answer the next try with 404 or 412, though the object is there. So
// the object itself is asked.
func (u *upload) tryComplete(ctx context.Context, size int64, want string) error {
	s := u.s
	in := &s3.CompleteMultipartUploadInput{Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id, MultipartUpload: &types.CompletedMultipartUpload{}}
	plain := u.plain.Load()
	for i, p := range u.parts {
		line := types.CompletedPart{PartNumber: aws.Int32(int32(i + 1)), ETag: aws.String(p.etag)}
		if !plain {
			line.ChecksumCRC64NVME = aws.String(crc.Base64(p.crc))
		}
		in.MultipartUpload.Parts = append(in.MultipartUpload.Parts, line)
	}
	if !plain {
		in.ChecksumCRC64NVME, in.ChecksumType = &want, types.ChecksumTypeFullObject
	}
	lost := false // an earlier attempt may have done it
	// A store may join the parts only now.
	deadline := s.deadline(0) + time.Duration(len(u.parts))*100*time.Millisecond
	return s.attempt(ctx, "complete the upload of", u.r.Key, deadline, func(ctx context.Context, _ int) error {
		out, err := s.api.CompleteMultipartUpload(ctx, in)
		if err == nil && aws.ToString(out.ETag) != "" {
			return nil
		}
		if err == nil {
			err = &storeError{kind: ErrUnreachable, again: true, said: "no ETag in the answer"}
		}
		judged := classify("complete the upload of", u.r.Key, err)
		lost = lost || errors.Is(judged, ErrUnreachable)
		if !lost && !errors.Is(judged, ErrNotFound) {
			return err
		}
		// The attempt's own time may be over.
		hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.deadline(0))
		defer cancel()
		o, herr := s.head(hctx, u.r.Key)
		if herr == nil && o.Size == size && (o.CRC64NVME == want || lost && o.CRC64NVME == "") {
			return nil // without a checksum it is read back below
		}
		return err
	})
}

// readBack reads parts again, where the store has no checksum to compare: the
// first, the last, two between. It returns how much of the object that was.
func (u *upload) readBack(ctx context.Context, etag string) (checked string, err error) {
	last := len(u.parts) - 1
	picks := []int{0, last / 3, last * 2 / 3, last}
	checked = "sample"
	if len(u.parts) <= len(picks) {
		picks, checked = nil, "read-back"
		for i := range u.parts {
			picks = append(picks, i)
		}
	}
	for _, i := range picks {
		p := u.parts[i]
		r, err := u.s.Open(ctx, u.r.Key, etag, p.off, int64(p.len))
		if err != nil {
			return "", err
		}
		sum, err := crcOf(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return "", err
		}
		if sum != p.crc {
			return "", &storeError{op: "upload", key: u.r.Key, kind: ErrDamaged, said: fmt.Sprintf("part %d reads back differently", i+1)}
		}
	}
	return checked, nil
}

func crcOf(r io.Reader) (sum uint64, err error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := r.Read(buf)
		sum = crc.Combine(sum, crc.NVME(buf[:n]), int64(n))
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// Abandon implements Store.
func (s *s3Store) Abandon(ctx context.Context, path string) error {
	h, _, err := readJournal(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The upload of another store is out of reach: its lifecycle rule ends it.
	if err == nil && h.Store == s.URL() && h.Endpoint == s.c.Endpoint {
		if err := s.abort(ctx, h.Key, h.UploadID); err != nil {
			return err
		}
	}
	return ignoreAbsent(os.Remove(path))
}

func (s *s3Store) abort(ctx context.Context, key, id string) error {
	err := s.attempt(ctx, "abort the upload of", key, s.deadline(0), func(ctx context.Context, _ int) error {
		_, err := s.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: s.key(key), UploadId: &id})
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
