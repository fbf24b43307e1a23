package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/eddy-backup/eddy/internal/crc"
)

// part is a run of an object's bytes: in a pooled buffer, or, where from is set,
// in an object of the same bucket.
type part struct {
	number int32 // from 1
	off    int64
	len    int64
	buf    []byte
	crc    uint64
	from   *Range
	shares []share        // what from consists of
	proof  *proof         // of from
	pieces []journalPiece // those that end in it, but for those that were noted before
	held   int            // bytes of their records, about
	open   *journalOpen   // the one that goes on behind it
}

// proof is what can be known of a part that is copied: it is cut anywhere in its
// pieces, but of whole pieces the checksum is known. They may reach into its
// neighbours.
type proof struct {
	Off int64  `json:"off"` // in the object
	Len int64  `json:"len"`
	CRC string `json:"crc64nvme"`
}

// cutter gathers pieces into parts of equal size and hands them to send, several
// at once. Its memory is the pool: one buffer more than parts in flight.
//
// Behind an earlier run it makes the same parts again, and passes over those that
// the store has: a piece that lies in such parts only is never asked for its
// bytes.
type cutter struct {
	size  int64 // of every part but the last
	limit int   // parts in flight
	prior []priorPart
	// copies, where set, tells whether a range of the bucket may be copied. A part
	// of full size all of whose bytes stand beside each other in one object is then
	// handed to copy as that range, and not asked for its bytes, unless copy
	// answers that it cannot be done.
	copies func(*Range) bool
	// note is called in order, and for each new part before send or copy; these are
	// called from several goroutines. A part's buffer is used again once send has
	// returned nil.
	note func(part) error
	// more is called, in order, with pieces that end in the part of that number, which
	// is noted later: of tiny pieces a part has very many. After it they are forgotten.
	more func(number int32, pieces []journalPiece) error
	send func(context.Context, part) error
	copy func(context.Context, part) (done bool, err error)
}

// run consumes the pieces and returns the object's size and CRC64NVME. When it
// returns, no part is being sent any more.
func (c *cutter) run(ctx context.Context, key string, pieces iter.Seq2[Piece, error]) (size int64, sum uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.limit)
	f := &filling{c: c, key: key, group: g, ctx: gctx, pool: make(chan []byte, c.limit+1)}
	for range cap(f.pool) {
		f.pool <- nil // made when first needed: a small object needs one
	}
	err = f.consume(pieces)
	broken := gctx.Err() != nil
	if err != nil {
		cancel() // of no use without the rest
	}
	if werr := g.Wait(); werr != nil && (broken || err == nil) {
		err = werr // the cause; what consume returned is its consequence
	}
	return f.size, f.sum, err
}

// filling is a run of the cutter.
type filling struct {
	c     *cutter
	key   string
	group *errgroup.Group
	ctx   context.Context // ends when a part fails
	pool  chan []byte
	size  int64  // of all pieces so far
	sum   uint64 // of them

	making sync.Mutex // of bytes by pieces that have a length
	kept   []byte     // of the piece that was made last: it may go on in the next part

	cur part
	// lazy is what cur consists of while none of its bytes were needed: neighbours
	// in one object of the bucket.
	lazy []share
}

// share is a run of a piece's bytes in a part.
type share struct {
	p       *Piece
	at      int64 // of the piece, in the object
	from, n int64
}

func (f *filling) consume(pieces iter.Seq2[Piece, error]) error {
	for p, err := range pieces {
		if err != nil {
			return err
		}
		var b []byte
		if p.Len == 0 {
			if b, err = p.Bytes(f.ctx); err != nil {
				return err
			}
			if len(b) == 0 {
				continue
			}
			if p.Len = int64(len(b)); p.CRC == 0 {
				p.CRC = crc.NVME(b)
			}
		}
		f.size += p.Len
		f.sum = crc.Combine(f.sum, p.CRC, p.Len)
		if err := f.take(&p, b); err != nil {
			return err
		}
	}
	if f.cur.len > 0 {
		if err := f.flush(); err != nil {
			return err
		}
	}
	if f.size == 0 {
		return fmt.Errorf("upload %s: nothing to send", f.key)
	}
	if int(f.cur.number) < len(f.c.prior) {
		return f.changed("it ends earlier")
	}
	return nil
}

// changed: the pieces are not those of the earlier run, though its journal says
// that they must be.
func (f *filling) changed(how string) error {
	return &storeError{op: "go on with the upload of", key: f.key, kind: ErrDamaged, cause: errChanged, said: "what was sent before cannot be made again: " + how}
}

var errChanged = errors.New("the pieces have changed")

// prior is the current part of the earlier run; nil where it came to none.
func (f *filling) prior() *priorPart {
	if n := int(f.cur.number); n <= len(f.c.prior) {
		return &f.c.prior[n-1]
	}
	return nil
}

// take spreads a piece over parts. b is nil where its bytes were not asked for.
func (f *filling) take(p *Piece, b []byte) error {
	for from := int64(0); from < p.Len; {
		if f.cur.len == 0 {
			if err := f.begin(); err != nil {
				return err
			}
		}
		whole := f.c.size
		if old := f.prior(); old != nil {
			whole = old.len
		}
		n := min(p.Len-from, whole-f.cur.len)
		var err error
		if b, err = f.put(share{p, f.size - p.Len, from, n}, b); err != nil {
			return err
		}
		f.cur.len += n
		from += n
		// A piece is noted with the part that takes its last byte: with an earlier
		// one the journal would claim what was not sent.
		if from == p.Len && f.prior() == nil {
			if err := f.noted(p); err != nil {
				return err
			}
		}
		if f.cur.len < whole {
			continue
		}
		if from < p.Len && b != nil {
			f.cur.open = &journalOpen{Len: from, CRC: crc.Base64(crc.NVME(b[:from]))}
		}
		if err := f.flush(); err != nil {
			return err
		}
	}
	return nil
}

// maxHeld is how much of the records of a part's pieces is kept in memory, in bytes.
const maxHeld = 1 << 20

// noted takes a piece into the part in which it ends.
func (f *filling) noted(p *Piece) error {
	f.cur.pieces = append(f.cur.pieces, journalPiece{ID: p.ID, Len: p.Len, CRC: crc.Base64(p.CRC), Record: p.Record})
	f.cur.held += len(p.Record) + 128
	p.Record = nil // p may be kept for its bytes
	if f.cur.held < maxHeld || f.c.more == nil {
		return nil
	}
	err := f.c.more(f.cur.number, f.cur.pieces)
	f.cur.pieces, f.cur.held = nil, 0
	return err
}

// begin starts the next part.
func (f *filling) begin() error {
	if err := f.ctx.Err(); err != nil {
		return context.Cause(f.ctx)
	}
	f.cur.number++
	if n := f.cur.number; n > maxParts {
		return fmt.Errorf("upload %s: larger than %d parts of %d bytes: its upper bound was wrong", f.key, maxParts, f.c.size)
	}
	if n := int(f.cur.number); n > 1 && n <= len(f.c.prior)+1 && f.c.prior[n-2].len < f.c.size {
		return f.changed("it goes on behind its last part")
	}
	return nil
}

// put takes a share into the current part. It returns the bytes of the whole
// piece where they were needed, so that they are made once.
func (f *filling) put(s share, b []byte) ([]byte, error) {
	if old := f.prior(); old != nil && old.stored {
		return b, nil
	}
	if f.neighbour(s) {
		f.lazy = append(f.lazy, s)
		return nil, nil
	}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f.add(s, b)
}

// neighbour tells whether the part is, with s, still one range of one object.
func (f *filling) neighbour(s share) bool {
	if s.p.Reuse == nil || f.c.copies == nil || len(f.cur.buf) > 0 || !f.c.copies(s.p.Reuse) {
		return false
	}
	if len(f.lazy) == 0 {
		return true
	}
	last := f.lazy[len(f.lazy)-1]
	a, b := last.p.Reuse, s.p.Reuse
	return a.Key == b.Key && a.ETag == b.ETag && a.Off+last.from+last.n == b.Off+s.from
}

// load makes the bytes of what the part consists of so far.
func (f *filling) load() error {
	for _, s := range f.lazy {
		if _, err := f.add(s, nil); err != nil {
			return err
		}
	}
	f.lazy = nil
	return nil
}

// add copies a share's bytes into the current part.
func (f *filling) add(s share, b []byte) (_ []byte, err error) {
	if f.cur.buf == nil {
		if f.cur.buf, err = f.buffer(f.ctx); err != nil {
			return nil, err
		}
	}
	if b != nil {
		f.cur.buf = append(f.cur.buf, b[s.from:s.from+s.n]...)
		return b, nil
	}
	f.making.Lock()
	defer f.making.Unlock()
	if b, err = f.bytes(f.ctx, s.p); err != nil {
		return nil, err
	}
	f.cur.buf = append(f.cur.buf, b[s.from:s.from+s.n]...)
	if s.from+s.n == s.p.Len {
		return b, nil // no more of it is needed
	}
	f.kept = append(f.kept[:0], b...)
	return f.kept, nil
}

// buffer takes one from the pool. There is always one for whoever has none: one
// more than parts that are made or in flight.
func (f *filling) buffer(ctx context.Context) ([]byte, error) {
	var b []byte
	select {
	case b = <-f.pool:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if b == nil {
		b = make([]byte, 0, f.c.size)
	}
	return b, nil
}

// bytes makes those of a piece that has a length. f.making is held until they are
// copied.
func (f *filling) bytes(ctx context.Context, p *Piece) ([]byte, error) {
	b, err := p.Bytes(ctx)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != p.Len || crc.NVME(b) != p.CRC {
		return nil, f.changed("a piece has other bytes")
	}
	return b, nil
}

// fetch makes the bytes of a part that could not be copied.
func (f *filling) fetch(ctx context.Context, p *part) (err error) {
	if p.buf, err = f.buffer(ctx); err != nil {
		return err
	}
	for _, s := range p.shares {
		if err := f.append(ctx, p, s); err != nil {
			return err
		}
	}
	p.crc, p.from, p.shares, p.proof = crc.NVME(p.buf), nil, nil, nil
	return nil
}

func (f *filling) append(ctx context.Context, p *part, s share) error {
	f.making.Lock()
	defer f.making.Unlock()
	b, err := f.bytes(ctx, s.p)
	if err == nil {
		p.buf = append(p.buf, b[s.from:s.from+s.n]...)
	}
	return err
}

// flush ends the current part and has it sent, unless the store has it.
func (f *filling) flush() error {
	if f.cur.len < f.c.size { // the last one: stores may refuse to copy so little
		if err := f.load(); err != nil {
			return err
		}
	}
	p, old := f.cur, f.prior()
	f.cur = part{number: p.number, off: p.off + p.len}
	if len(f.lazy) > 0 {
		p.reuse(f.lazy)
		f.lazy = nil
	} else if p.buf != nil {
		p.crc = crc.NVME(p.buf)
	}
	if old == nil {
		if err := f.c.note(p); err != nil {
			return err
		}
	} else {
		switch {
		case old.len != p.len:
			return f.changed("it ends earlier")
		case p.open != nil && old.open != nil && *p.open != *old.open,
			!old.stored && p.from == nil && old.crc != "" && old.crc != crc.Base64(p.crc):
			return f.changed("a part has other bytes")
		case old.stored:
			return nil
		}
	}
	f.group.Go(func() error {
		if p.from != nil {
			if done, err := f.c.copy(f.ctx, p); done || err != nil {
				return err
			}
			if err := f.fetch(f.ctx, &p); err != nil {
				return err
			}
		}
		if err := f.c.send(f.ctx, p); err != nil {
			return err
		}
		f.pool <- p.buf[:0]
		return nil
	})
	return nil
}

// reuse makes the part a range of another object.
func (p *part) reuse(shares []share) {
	first, last := shares[0], shares[len(shares)-1]
	r := first.p.Reuse
	p.from = &Range{Key: r.Key, ETag: r.ETag, Off: r.Off + first.from, Len: p.len}
	p.shares = shares
	var sum uint64
	for _, s := range shares {
		sum = crc.Combine(sum, s.p.CRC, s.p.Len)
	}
	p.proof = &proof{Off: first.at, Len: last.at + last.p.Len - first.at, CRC: crc.Base64(sum)}
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
