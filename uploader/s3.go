package uploader

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"
)

// s3API is the part of *s3.Client that eddy uses.
type s3API interface {
	CreateMultipartUpload(context.Context, *s3.CreateMultipartUploadInput, ...func(*s3.Options)) (*s3.CreateMultipartUploadOutput, error)
	UploadPart(context.Context, *s3.UploadPartInput, ...func(*s3.Options)) (*s3.UploadPartOutput, error)
	CompleteMultipartUpload(context.Context, *s3.CompleteMultipartUploadInput, ...func(*s3.Options)) (*s3.CompleteMultipartUploadOutput, error)
	ListParts(context.Context, *s3.ListPartsInput, ...func(*s3.Options)) (*s3.ListPartsOutput, error)
	AbortMultipartUpload(context.Context, *s3.AbortMultipartUploadInput, ...func(*s3.Options)) (*s3.AbortMultipartUploadOutput, error)
	ListMultipartUploads(context.Context, *s3.ListMultipartUploadsInput, ...func(*s3.Options)) (*s3.ListMultipartUploadsOutput, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
	HeadObject(context.Context, *s3.HeadObjectInput, ...func(*s3.Options)) (*s3.HeadObjectOutput, error)
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	DeleteObjects(context.Context, *s3.DeleteObjectsInput, ...func(*s3.Options)) (*s3.DeleteObjectsOutput, error)
	DeleteObject(context.Context, *s3.DeleteObjectInput, ...func(*s3.Options)) (*s3.DeleteObjectOutput, error)

	UploadPartCopy(context.Context, *s3.UploadPartCopyInput, ...func(*s3.Options)) (*s3.UploadPartCopyOutput, error)

	// Asked by Probe only.
	PutObjectTagging(context.Context, *s3.PutObjectTaggingInput, ...func(*s3.Options)) (*s3.PutObjectTaggingOutput, error)
	GetBucketVersioning(context.Context, *s3.GetBucketVersioningInput, ...func(*s3.Options)) (*s3.GetBucketVersioningOutput, error)
	GetObjectLockConfiguration(context.Context, *s3.GetObjectLockConfigurationInput, ...func(*s3.Options)) (*s3.GetObjectLockConfigurationOutput, error)
	GetBucketLifecycleConfiguration(context.Context, *s3.GetBucketLifecycleConfigurationInput, ...func(*s3.Options)) (*s3.GetBucketLifecycleConfigurationOutput, error)
}

var _ s3API = (*s3.Client)(nil)

// s3Store is a bucket, below a prefix.
type s3Store struct {
	c              Config
	api            s3API
	bucket, prefix string
	sums           aws.RequestChecksumCalculation // of small objects, by the AWS configuration
	wait           time.Duration                  // firstWait, and less in tests
	answered       atomic.Bool                    // the store has answered a call, well or ill
	copyRefused    atomic.Bool                    // it has refused to copy a part
	caps           atomic.Pointer[Caps]           // what is known of the store; nil: nothing, it is taken for S3
}

// known is what steers the calls.
func (s *s3Store) known() Caps {
	if c := s.caps.Load(); c != nil {
		return *c
	}
	return Caps{}
}

// Use implements Store.
func (s *s3Store) Use(c Caps) bool {
	if c.Store != s.URL() || c.Endpoint != s.c.Endpoint || c.Class != s.c.StorageClass {
		return false
	}
	s.caps.Store(&c)
	return true
}

var _ Store = (*s3Store)(nil)

// newS3Store makes the client through LoadDefaultConfig: only that turns the
// SDK's checksums on. The SDK's own retries are off, see attempt.
func newS3Store(ctx context.Context, c Config, bucket, prefix string, more ...func(*s3.Options)) (*s3Store, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		// What the SDK has to say it says in errors; its log would go to stderr.
		config.WithLogger(logging.Nop{}),
	}
	if c.Region != "" {
		opts = append(opts, config.WithRegion(c.Region))
	}
	if c.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(c.Profile))
	}
	ac, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: AWS configuration: %w", ErrConfig, err)
	}
	if ac.Region == "" {
		ac.Region = "us-east-1" // what stores other than AWS expect
	}
	ac.Credentials = &credentials{CredentialsProvider: ac.Credentials}
	client := s3.NewFromConfig(ac, append([]func(*s3.Options){func(o *s3.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		// AWS_ENDPOINT_URL may have set it as well.
		o.UsePathStyle = c.PathStyle == "true" || c.PathStyle != "false" && o.BaseEndpoint != nil
	}}, more...)...)
	return &s3Store{c: c, api: client, bucket: bucket, prefix: prefix, sums: client.Options().RequestChecksumCalculation, wait: firstWait}, nil
}

// credentials marks the errors of the AWS chain, and remembers whether it ever
// gave any: a chain that never did is a configuration to correct, one that did
// has a role service in trouble.
type credentials struct {
	aws.CredentialsProvider
	had atomic.Bool
}

func (c *credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	v, err := c.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return v, &credentialsError{err: err, again: c.had.Load()}
	}
	c.had.Store(true)
	return v, nil
}

type credentialsError struct {
	err   error
	again bool
}

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// URL implements Store.
func (s *s3Store) URL() string {
	return strings.TrimSuffix("s3://"+s.bucket+"/"+s.prefix, "/")
}

func (s *s3Store) key(key string) *string {
	if s.prefix != "" {
		key = s.prefix + "/" + key
	}
	return &key
}

// Stat implements Store.
func (s *s3Store) Stat(ctx context.Context, key string) (o Object, err error) {
	err = s.attempt(ctx, "look at", key, s.deadline(0), func(ctx context.Context, _ int) (err error) {
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
	if out.ChecksumType != types.ChecksumTypeComposite { // that one depends on where the parts were cut
		o.CRC64NVME = aws.ToString(out.ChecksumCRC64NVME)
	}
	return o, nil
}

func unquote(etag *string) string    { return strings.Trim(aws.ToString(etag), `"`) }
func etagHeader(etag string) *string { return aws.String(`"` + etag + `"`) }

// List implements Store.
func (s *s3Store) List(ctx context.Context, prefix, delimiter string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var token *string
		for {
			var out *s3.ListObjectsV2Output
			err := s.attempt(ctx, "list", prefix, s.deadline(mib), func(ctx context.Context, _ int) (err error) {
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
			for _, o := range s.page(out) {
				if !yield(o, nil) {
					return
				}
			}
			if token = out.NextContinuationToken; !aws.ToBool(out.IsTruncated) || token == nil {
				return
			}
		}
	}
}

// page is one page of a listing in key order. Directory markers that other tools
// leave (keys that end in a slash) are no objects of eddy's.
func (s *s3Store) page(out *s3.ListObjectsV2Output) []Object {
	base := *s.key("")
	var page []Object
	for _, c := range out.Contents {
		key, ok := strings.CutPrefix(aws.ToString(c.Key), base)
		if ok && key != "" && !strings.HasSuffix(key, "/") {
			page = append(page, Object{Key: key, Size: aws.ToInt64(c.Size), ETag: unquote(c.ETag), Modified: aws.ToTime(c.LastModified)})
		}
	}
	for _, p := range out.CommonPrefixes {
		if key, ok := strings.CutPrefix(aws.ToString(p.Prefix), base); ok {
			page = append(page, Object{Key: key})
		}
	}
	slices.SortFunc(page, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
	return page
}
