package uploader

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Copies implements Store.
func (s *s3Store) Copies() bool { return s.known().PartCopy == Kept && !s.copyRefused.Load() }

// copies tells whether a range may be copied into this upload.
func (u *upload) copies(from *Range) bool {
	if !u.s.Copies() || !u.plain.Load() && u.s.known().CopySums != Kept {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.gone[from.Key]
}

// copy has the store copy a part from another object. done is false where it
// cannot: the part must be sent, and what would meet the same trouble is not tried
// again, for the rest of this upload where the object is gone or has changed, for
// the rest of this store where the store refuses.
func (u *upload) copy(ctx context.Context, p part) (done bool, err error) {
	if !u.copies(p.from) { // since it was noted
		return false, nil
	}
	s, etag, sum := u.s, "", ""
	err = s.attempt(ctx, fmt.Sprintf("copy part %d of", p.number), u.r.Key, s.deadline(p.len), func(ctx context.Context, _ int) (err error) {
		etag, sum, err = u.copyOnce(ctx, p)
		return err
	})
	switch {
	case err == nil:
		return true, u.done(p, etag, sum)
	case ctx.Err() != nil, errors.Is(err, ErrUploadGone):
		return false, err
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrPrecondition):
		u.mu.Lock()
		u.gone[p.from.Key] = true
		u.mu.Unlock()
	default: // a store that is down will say so again when the part is sent
		s.copyRefused.Store(true)
	}
	s.c.Log.Warn().Err(err).Str("from", p.from.Key).Msg("a part cannot be copied and is sent")
	return false, nil
}

// copyOnce is one attempt. The source must have the ETag that it had when it was
// proven. sum is what the store says of the bytes that it copied, "" where it says
// nothing.
func (u *upload) copyOnce(ctx context.Context, p part) (etag, sum string, err error) {
	s, from := u.s, p.from
	out, err := s.api.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
		Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id, PartNumber: aws.Int32(p.number),
		CopySource:        aws.String(copySource(s.bucket, *s.key(from.Key))),
		CopySourceRange:   aws.String(fmt.Sprintf("bytes=%d-%d", from.Off, from.Off+from.Len-1)),
		CopySourceIfMatch: etagHeader(from.ETag),
	})
	if err != nil {
		return "", "", err
	}
	if out.CopyPartResult == nil || aws.ToString(out.CopyPartResult.ETag) == "" {
		return "", "", &storeError{kind: ErrRefused, said: "no result in the answer"}
	}
	return *out.CopyPartResult.ETag, aws.ToString(out.CopyPartResult.ChecksumCRC64NVME), nil
}

// hasCopies tells whether any part was copied, by this run or an earlier one.
func (u *upload) hasCopies() bool {
	return slices.ContainsFunc(u.parts, func(p sentPart) bool { return p.proof != nil })
}

// distrust gives up an upload of copied parts that is not what it should be:
// which of them is to blame nobody knows.
func (u *upload) distrust(ctx context.Context, cause error) error {
	err := hint.Add(&storeError{op: "upload", key: u.r.Key, kind: ErrCopied, said: oneLine("", cause.Error())},
		"what an earlier attempt has stored has rotted, or the store copies wrongly: look at its disks")
	return errors.Join(err, u.s.Abandon(context.WithoutCancel(ctx), u.r.Journal))
}

// copySource is how a header names an object: a plus sign would be read as a space.
func copySource(bucket, key string) string {
	return strings.ReplaceAll((&url.URL{Path: bucket + "/" + key}).EscapedPath(), "+", "%2B")
}
