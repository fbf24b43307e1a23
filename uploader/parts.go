package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/eddy-backup/eddy/internal/crc"
)

// part is a run of an object's bytes in a pooled buffer.
type part struct {
	number int32 // from 1
	off    int64
	buf    []byte
	crc    uint64
	pieces []journalPiece // those that end in it
}

// cutter gathers pieces into parts of equal size and hands them to send, several
// at once. Its memory is the pool: one buffer more than parts in flight.
type cutter struct {
	size  int64 // of every part but the last
	limit int   // parts in flight
	// note is called in order, and for each part before send; send is called from
	// several goroutines. A part's buffer is used again once send has returned nil.
	note func(part) error
	send func(context.Context, part) error
}

// run consumes the request's pieces and returns the object's size and CRC64NVME.
// When it returns, no part is being sent any more.
func (c *cutter) run(ctx context.Context, r PutRequest) (size int64, sum uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.limit)
	f := &filling{c: c, key: r.Key, group: g, ctx: gctx, pool: make(chan []byte, c.limit+1), cur: part{number: 1}}
	for range cap(f.pool) {
		f.pool <- nil // made when first needed: a small object needs one
	}
	err = f.consume(r)
	broken := gctx.Err() != nil
	if err != nil {
		cancel() // of no use without the rest
	}
	if werr := g.Wait(); werr != nil && (broken || err == nil) {
		err = werr // the cause; what consume returned is its consequence
	}
	return f.cur.off, f.sum, err
}

// filling is a run of the cutter.
type filling struct {
	c     *cutter
	key   string
	group *errgroup.Group
	ctx   context.Context // ends when a part fails
	pool  chan []byte
	cur   part
	sum   uint64 // of all parts before cur
}

func (f *filling) consume(r PutRequest) error {
	for p, err := range r.Pieces {
		if err != nil {
			return err
		}
		b, err := p.Bytes(f.ctx)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			continue
		}
		// A piece is noted with the part that takes its last byte: with an earlier
		// one the journal would claim what was not sent.
		if err := f.add(b[:len(b)-1]); err != nil {
			return err
		}
		f.cur.pieces = append(f.cur.pieces, journalPiece{ID: p.ID, Len: len(b), Record: p.Record})
		if err := f.add(b[len(b)-1:]); err != nil {
			return err
		}
	}
	if len(f.cur.buf) > 0 {
		return f.flush()
	}
	if f.cur.off == 0 {
		return fmt.Errorf("upload %s: nothing to send", f.key)
	}
	return nil
}

// add copies b into parts.
func (f *filling) add(b []byte) error {
	for len(b) > 0 {
		if f.cur.buf == nil {
			select {
			case f.cur.buf = <-f.pool:
			case <-f.ctx.Done():
				return context.Cause(f.ctx)
			}
			if f.cur.buf == nil {
				f.cur.buf = make([]byte, 0, f.c.size)
			}
		}
		n := min(int64(len(b)), f.c.size-int64(len(f.cur.buf)))
		f.cur.buf = append(f.cur.buf, b[:n]...)
		b = b[n:]
		if int64(len(f.cur.buf)) == f.c.size {
			if err := f.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sends the current part and begins the next.
func (f *filling) flush() error {
	if err := f.ctx.Err(); err != nil {
		return context.Cause(f.ctx)
	}
	p := f.cur
	if p.number > maxParts {
		return fmt.Errorf("upload %s: larger than %d parts of %d bytes: its upper bound was wrong", f.key, maxParts, f.c.size)
	}
	p.crc = crc.NVME(p.buf)
	f.sum = crc.Combine(f.sum, p.crc, int64(len(p.buf)))
	f.cur = part{number: p.number + 1, off: p.off + int64(len(p.buf))}
	if err := f.c.note(p); err != nil {
		return err
	}
	f.group.Go(func() error {
		if err := f.c.send(f.ctx, p); err != nil {
			return err
		}
		f.pool <- p.buf[:0]
		return nil
	})
	return nil
}

// body is the body of one attempt. net/http may go on reading it after the
// attempt has returned; detach ends that, so that the bytes can be changed.
type body struct {
	mu sync.Mutex
	r  *bytes.Reader
}

func newBody(b []byte) *body { return &body{r: bytes.NewReader(b)} }

var errDetached = errors.New("the attempt is over")

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errDetached
	}
	return b.r.Read(p)
}

func (b *body) Seek(off int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errDetached
	}
	return b.r.Seek(off, whence)
}

func (b *body) detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
}

var _ io.ReadSeeker = (*body)(nil)
