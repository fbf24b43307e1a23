package uploader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// resume finds out what an earlier run has left of this upload: nil where there
// is nothing to go on with. What is of other bytes is abandoned.
func (u *upload) resume(ctx context.Context) (*earlier, error) {
	old, err := readJournal(u.r.Journal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, u.s.Abandon(ctx, u.r.Journal) // its head is torn
	}
	if err != nil {
		return nil, err
	}
	if !old.head.same(u.head()) {
		return nil, u.s.Abandon(ctx, u.r.Journal)
	}
	err = u.list(ctx, old)
	if errors.Is(err, ErrUploadGone) {
		if err := u.ended(ctx, old); err != nil || old.finished {
			return old, err
		}
		return nil, u.s.Abandon(ctx, u.r.Journal)
	}
	return old, err
}

// list asks for the parts that the store has, and marks those of which it says
// what the journal says: the journal tells what a part must be, only the store
// whether it is there.
func (u *upload) list(ctx context.Context, old *earlier) error {
	s := u.s
	in := &s3.ListPartsInput{Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &old.head.UploadID}
	for {
		var out *s3.ListPartsOutput
		err := s.attempt(ctx, "list the parts of", u.r.Key, s.deadline(mib), func(ctx context.Context, _ int) (err error) {
			out, err = s.api.ListParts(ctx, in)
			return err
		})
		if err != nil {
			return err
		}
		for _, p := range out.Parts {
			old.confirm(p)
		}
		if in.PartNumberMarker = out.NextPartNumberMarker; !aws.ToBool(out.IsTruncated) || in.PartNumberMarker == nil {
			return nil
		}
	}
}

// confirm marks a part that the store lists. A part without a checksum of the
// store's must have the ETag that the store gave it when it took these bytes.
func (e *earlier) confirm(listed types.Part) {
	n := int(aws.ToInt32(listed.PartNumber))
	if n < 1 || n > len(e.parts) {
		return
	}
	p, etag, sum := &e.parts[n-1], aws.ToString(listed.ETag), aws.ToString(listed.ChecksumCRC64NVME)
	agreed := p.etag != "" && p.etag == etag
	switch {
	case sum == "":
	case p.copied:
		p.crc = sum // the store's word; what it copied shows in the checksum of the whole
	default:
		agreed = sum == p.crc
	}
	if p.stored = agreed && aws.ToInt64(listed.Size) == p.len; p.stored {
		p.etag = etag
	}
}

// ended asks whether an upload that is gone has become the object.
func (u *upload) ended(ctx context.Context, old *earlier) error {
	if old.done == nil {
		return nil
	}
	o, err := u.s.Stat(ctx, u.r.Key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for what an earlier run has sent: %w", err)
	}
	old.finished = o.Size == old.done.Size && (o.CRC64NVME == "" || o.CRC64NVME == old.done.CRC)
	for i := range old.parts {
		old.parts[i].stored = old.finished
	}
	return nil
}

// adopt takes over the parts of an earlier run. Those that the store lacks are
// sent again.
func (u *upload) adopt(parts []priorPart) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range parts {
		sp := sentPart{off: p.off, len: p.len, crc: p.crc, proof: p.proof}
		if p.stored {
			sp.etag = p.etag
			u.moved.Kept += p.len
			if p.copied {
				u.moved.KeptCopied += p.len
			}
		}
		u.parts = append(u.parts, sp)
	}
	u.tell()
}
