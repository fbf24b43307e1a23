package uploader

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/eddy-backup/eddy/internal/crc"
)

// part is a run of an object's bytes in a pooled buffer.
type part struct {
	number int32
	off    int64
	buf    []byte
	crc    uint64
	pieces []journalPiece
}

// cutter gathers pieces into parts of equal size and hands them to send, several
// at once. Its memory is the pool: one buffer more than parts in flight.
type cutter struct {
	size  int64
	limit int
	// note is called in order, before send; send from several goroutines.
	note func(part) error
	send func(context.Context, part) error
}

// run consumes the pieces and returns the object's size and CRC64NVME.
func (c *cutter) run(ctx context.Context, r PutRequest) (size int64, sum uint64, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.limit)
	pool := make(chan []byte, c.limit+1)
	for range c.limit + 1 {
		pool <- nil // made when first needed: a small object needs one
	}
	cur := part{number: 1}
	flush := func() error {
		p := cur
		p.crc = crc.NVME(p.buf)
		sum = crc.Combine(sum, p.crc, int64(len(p.buf)))
		size += int64(len(p.buf))
		cur = part{number: p.number + 1, off: size}
		if err := c.note(p); err != nil {
			return err
		}
		g.Go(func() error {
			defer func() { pool <- p.buf[:0] }()
			return c.send(ctx, p)
		})
		return nil
	}
	fill := func(b []byte) error {
		for len(b) > 0 {
			if cur.buf == nil {
				select {
				case cur.buf = <-pool:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if cur.buf == nil {
					cur.buf = make([]byte, 0, c.size)
				}
			}
			n := min(int64(len(b)), c.size-int64(len(cur.buf)))
			cur.buf = append(cur.buf, b[:n]...)
			b = b[n:]
			if int64(len(cur.buf)) == c.size {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err = func() error {
		for p, err := range r.Pieces {
			if err != nil {
				return err
			}
			b, err := p.Bytes(ctx)
			if err != nil {
				return err
			}
			if len(b) == 0 {
				continue
			}
			// A piece is noted with the part that takes its last byte: with an
			// earlier one the journal would claim what was not sent.
			note := journalPiece{ID: p.ID, Len: len(b), Record: p.Record}
			if err := fill(b[:len(b)-1]); err != nil {
				return err
			}
			cur.pieces = append(cur.pieces, note)
			if err := fill(b[len(b)-1:]); err != nil {
				return err
			}
		}
		if len(cur.buf) > 0 {
			return flush()
		}
		if size == 0 {
			return fmt.Errorf("upload %s: nothing to send", r.Key)
		}
		return nil
	}()
	if werr := g.Wait(); werr != nil {
		return size, sum, werr
	}
	return size, sum, err
}
