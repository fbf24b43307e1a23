package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// deleteBatch is how many keys S3 takes in one call.
const deleteBatch = 1000

// Delete implements Store. Every key is tried; the error names the first of each
// batch that stayed, and counts the others. A store that refuses the call for
// many keys is asked for each.
func (s *s3Store) Delete(ctx context.Context, keys ...string) error {
	var errs []error
	for batch := range slices.Chunk(keys, deleteBatch) {
		var err error
		if s.known().DeleteMany != Refused {
			err = s.deleteMany(ctx, batch)
		}
		if s.known().DeleteMany == Refused || refusesMany(err) {
			err = s.deleteEach(ctx, batch)
		}
		if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// refusesMany tells whether a store does not know the call, or wants of it a
// checksum that eddy does not send.
func refusesMany(err error) bool {
	return refusesChecksums(err) || errors.Is(err, ErrRefused) && hasCode(err, "MethodNotAllowed", "MissingContentMD5")
}

func (s *s3Store) deleteMany(ctx context.Context, keys []string) error {
	del := &types.Delete{Quiet: aws.Bool(true)}
	for _, key := range keys {
		del.Objects = append(del.Objects, types.ObjectIdentifier{Key: s.key(key)})
	}
	what := keys[0]
	if n := len(keys) - 1; n > 0 {
		what = fmt.Sprintf("%s and %d more", what, n)
	}
	return s.attempt(ctx, "delete", what, s.deadline(mib), func(ctx context.Context, _ int) error {
		out, err := s.api.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: del})
		if err != nil {
			return err
		}
		return s.stayed(out.Errors)
	})
}

func (s *s3Store) deleteEach(ctx context.Context, keys []string) error {
	var errs []error
	for _, key := range keys {
		err := s.attempt(ctx, "delete", key, s.deadline(0), func(ctx context.Context, _ int) error {
			_, err := s.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key)})
			return err
		})
		if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return errors.Join(append(errs, err)...)
		}
		if !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// stayed is the error about the keys that a call did not delete.
func (s *s3Store) stayed(lines []types.Error) error {
	var first *storeError
	n := 0
	for _, l := range lines {
		code := aws.ToString(l.Code)
		if code == "NoSuchKey" {
			continue
		}
		if n++; first == nil {
			key := strings.TrimPrefix(aws.ToString(l.Key), *s.key(""))
			first = &storeError{kind: ErrRefused, code: code, said: key + ": " + oneLine(code, aws.ToString(l.Message))}
			if slices.Contains(passingCodes, code) {
				first.kind, first.again = ErrUnreachable, true
			}
		}
	}
	if first == nil {
		return nil
	}
	if n > 1 {
		first.said += fmt.Sprintf(" (and %d more)", n-1)
	}
	return first
}
