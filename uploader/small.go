package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// PutSmall implements Store. Small objects do not take Config.StorageClass: they
// are read often, and the cheap classes bill each as 128 KiB.
func (s *s3Store) PutSmall(ctx context.Context, key string, content []byte, contentType string, c Condition) (Object, error) {
	if c != (Condition{}) && s.known().Unguarded() != "" {
		return putCompared(ctx, s, key, content, contentType, c)
	}
	var o Object
	lost := false // an earlier attempt may have written it
	err := s.attempt(ctx, "write", key, s.deadline(int64(len(content))), func(ctx context.Context, _ int) error {
		in := &s3.PutObjectInput{
			Bucket: &s.bucket, Key: s.key(key), Body: bytes.NewReader(content),
			ServerSideEncryption: types.ServerSideEncryption(s.c.SSE.Mode),
		}
		if contentType != "" {
			in.ContentType = &contentType
		}
		if s.c.SSE.KMSKeyID != "" {
			in.SSEKMSKeyId = &s.c.SSE.KMSKeyID
		}
		if c.IfAbsent {
			in.IfNoneMatch = aws.String("*")
		}
		if c.IfMatch != "" {
			in.IfMatch = etagHeader(c.IfMatch)
		}
		etag, err := managed(ctx, s.api, s.smallSums(), in)
		if err == nil {
			o = Object{Key: key, Size: int64(len(content)), ETag: unquote(etag)}
			return nil
		}
		judged := classify("write", key, err)
		if lost && errors.Is(judged, ErrPrecondition) {
			// Perhaps we lost to ourselves: the answer to an earlier attempt did not
			// arrive. The bytes tell.
			if got, there, gerr := s.get(ctx, key, int64(len(content))); gerr == nil && bytes.Equal(got, content) {
				o = there
				return nil
			}
		}
		lost = lost || errors.Is(judged, ErrUnreachable)
		return err
	})
	if c.IfMatch != "" && errors.Is(err, ErrNotFound) {
		err = &storeError{op: "write", key: key, kind: ErrPrecondition, said: "it is gone"}
	}
	if err != nil {
		return Object{}, err
	}
	return o, nil
}

// smallSums tells whether small objects go with a checksum in a header.
func (s *s3Store) smallSums() aws.RequestChecksumCalculation {
	if s.known().SmallSums == Refused {
		return aws.RequestChecksumCalculationWhenRequired
	}
	return s.sums
}

// putCompared is a conditional write for stores that know none: it looks, writes,
// and looks whose bytes are there. Of two writers at the same moment both may
// win, one after the other; each sees at least that.
func putCompared(ctx context.Context, s Store, key string, content []byte, contentType string, c Condition) (Object, error) {
	lost := func(said string) (Object, error) {
		return Object{}, &storeError{op: "write", key: key, kind: ErrPrecondition, said: said}
	}
	have, err := s.Stat(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound) && c.IfMatch != "":
		return lost("it is gone")
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return Object{}, err
	case c.IfAbsent || have.ETag != c.IfMatch:
		return lost("")
	}
	o, err := s.PutSmall(ctx, key, content, contentType, Condition{})
	if err != nil {
		return Object{}, err
	}
	got, now, err := s.GetSmall(ctx, key, int64(len(content)))
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
		return Object{}, err
	}
	if now.ETag != o.ETag || !bytes.Equal(got, content) {
		return lost("")
	}
	return o, nil
}

// GetSmall implements Store.
func (s *s3Store) GetSmall(ctx context.Context, key string, limit int64) (b []byte, o Object, err error) {
	err = s.attempt(ctx, "read", key, s.deadline(limit), func(ctx context.Context, _ int) (err error) {
		b, o, err = s.get(ctx, key, limit)
		return err
	})
	if err != nil {
		return nil, Object{}, err
	}
	return b, o, nil
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
		return nil, o, tooLarge("read", key, limit)
	}
	if out.ContentLength != nil && *out.ContentLength != o.Size {
		return nil, o, io.ErrUnexpectedEOF
	}
	return b, o, nil
}

// tooLarge: an object that should be small is not.
func tooLarge(op, key string, limit int64) error {
	return &storeError{op: op, key: key, kind: ErrDamaged, said: fmt.Sprintf("it is larger than the %d bytes that are expected", limit)}
}
