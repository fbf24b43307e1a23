package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// newManager moves small objects: manifests, pointers, lists of hashes.
func (s *s3Store) newManager() *manager.Uploader {
	client := s.api.(*s3.Client) // the only implementation outside of tests of errors
	//lint:ignore SA1019 the project's brief prescribes feature/s3/manager; its successor aborts every failed upload
	return manager.NewUploader(client, func(u *manager.Uploader) { u.Concurrency = 1 })
}

func newBody(b []byte) io.ReadSeeker { return bytes.NewReader(b) }

// PutSmall implements Store. A conditional write whose answer was lost is not
// reported as lost to somebody else: what is there is compared.
func (s *s3Store) PutSmall(ctx context.Context, key string, body []byte, contentType string, c Condition) (Object, error) {
	var o Object
	err := s.attempt(ctx, "write", key, int64(len(body)), func(ctx context.Context, try int) error {
		in := &s3.PutObjectInput{
			Bucket: &s.bucket, Key: s.key(key), Body: newBody(body), ContentType: &contentType,
			ServerSideEncryption: types.ServerSideEncryption(s.c.SSE.Mode),
		}
		if s.c.SSE.KMSKeyID != "" {
			in.SSEKMSKeyId = &s.c.SSE.KMSKeyID
		}
		if c.IfAbsent {
			in.IfNoneMatch = aws.String("*")
		}
		if c.IfMatch != "" {
			in.IfMatch = aws.String(`"` + c.IfMatch + `"`)
		}
		out, err := s.upload(ctx, in)
		if err != nil {
			if try > 1 && errors.Is(classify("write", key, err), ErrPrecondition) {
				if got, obj, gerr := s.get(ctx, key, int64(len(body))); gerr == nil && bytes.Equal(got, body) {
					o = obj
					return nil
				}
			}
			return err
		}
		o = Object{Key: key, Size: int64(len(body)), ETag: unquote(out)}
		return nil
	})
	return o, err
}

func (s *s3Store) upload(ctx context.Context, in *s3.PutObjectInput) (etag *string, err error) {
	//lint:ignore SA1019 see newManager
	out, err := s.newManager().Upload(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.ETag, nil
}

// GetSmall implements Store.
func (s *s3Store) GetSmall(ctx context.Context, key string, limit int64) (b []byte, o Object, err error) {
	err = s.attempt(ctx, "read", key, limit, func(ctx context.Context, _ int) (err error) {
		b, o, err = s.get(ctx, key, limit)
		return err
	})
	return b, o, err
}

func (s *s3Store) get(ctx context.Context, key string, limit int64) ([]byte, Object, error) {
	out, err := s.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: s.key(key)})
	if err != nil {
		return nil, Object{}, err
	}
	defer out.Body.Close()
	b, err := io.ReadAll(io.LimitReader(out.Body, limit+1))
	if err != nil {
		return nil, Object{}, err
	}
	o := Object{Key: key, Size: int64(len(b)), ETag: unquote(out.ETag), Modified: aws.ToTime(out.LastModified)}
	if o.Size > limit {
		return nil, o, &tooLarge{key, limit}
	}
	if n := aws.ToInt64(out.ContentLength); n >= 0 && n != o.Size {
		return nil, o, io.ErrUnexpectedEOF
	}
	return b, o, nil
}

// tooLarge: an object that should be small is not.
type tooLarge struct {
	key   string
	limit int64
}

func (e *tooLarge) Error() string {
	return fmt.Sprintf("%s is larger than the %d bytes that are expected", e.key, e.limit)
}

func (e *tooLarge) Is(target error) bool { return target == ErrDamaged }

func sameBytes(r io.Reader, want []byte, key string) error {
	got, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: the last bytes of %s read back differently", ErrDamaged, key)
	}
	return nil
}
