package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/eddy-backup/eddy/internal/crc"
)

// decoding is a frame on its way from the store to the disk.
type decoding struct {
	frame  IndexFrame
	stored []byte
	raw    []byte
	err    error
	skip   bool // all of its files are kept: it was not fetched
	done   chan struct{}
}

// volume reads one volume's frames in one stream, decodes them in parallel and
// writes them in order.
func (x *extraction) volume(ctx context.Context, ix *Index) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	n := x.o.Workers
	free := make(chan *decoding, n+2)
	for range n + 2 {
		free <- new(decoding)
	}
	todo, order := make(chan *decoding, n+2), make(chan *decoding, n+2)
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		return x.fetch(ctx, ix, free, todo, order)
	})
	for range n {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrameLen))
		if err != nil {
			return errors.Join(err, stopAll(cancel, g))
		}
		g.Go(func() error {
			defer dec.Close()
			for d := range todo {
				d.decode(dec, ix.vol)
				if x.verify != nil && d.err == nil {
					d.err = checkStock(d.stored, d.frame, ix.vol)
				}
				close(d.done)
			}
			return nil
		})
	}
	err := x.write(ctx, ix, order, free)
	cancel()
	if werr := g.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
		return werr
	}
	return err
}

func stopAll(cancel context.CancelFunc, g *errgroup.Group) error {
	cancel()
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (x *extraction) write(ctx context.Context, ix *Index, order <-chan *decoding, free chan<- *decoding) error {
	for d := range order {
		select {
		case <-d.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		switch {
		case d.err != nil:
			err = d.err
		case d.skip:
			err = x.pass(ix.vol, d.frame)
		default:
			x.follow(d.frame)
			err = x.frame(ix.vol, d.frame, d.raw)
		}
		if err = x.tell(ix, d.frame, err); err != nil {
			return err
		}
		if err := x.progress.mayFlush(x); err != nil {
			return err
		}
		if x.o.Progress != nil {
			x.o.Progress(x.done, x.total)
		}
		free <- d
	}
	return ctx.Err()
}

// gapBytes is how much is read and thrown away, rather than ask for another range.
const gapBytes = 4 << 20

// fetch reads the stored frames of a volume: in one stream, but for runs of
// frames whose files are there already.
func (x *extraction) fetch(ctx context.Context, ix *Index, free <-chan *decoding, todo, order chan<- *decoding) (err error) {
	var r io.ReadCloser
	at := int64(0) // where r is
	defer func() {
		if r != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	number := x.number
	for f, err := range ix.Frames() {
		if err != nil {
			return err
		}
		var d *decoding
		select {
		case d = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		d.frame, d.done, d.err = f, make(chan struct{}), nil
		d.skip, number = x.isKept(f, number)
		if d.skip {
			close(d.done)
			order <- d
			continue
		}
		if r != nil && f.Off-at > x.gap() {
			cerr := r.Close()
			if r = nil; cerr != nil {
				return cerr
			}
		}
		if r == nil {
			if r, err = ix.vol.Open(ctx, f.Off, x.ahead(ix, f)); err != nil {
				return fmt.Errorf("%s: %w", ix.vol.Name, err)
			}
			at = f.Off
		}
		if _, err := io.CopyN(io.Discard, r, f.Off-at); err != nil {
			return ix.vol.readError(err)
		}
		if cap(d.stored) < f.CLen {
			d.stored = make([]byte, f.CLen)
		}
		d.stored = d.stored[:f.CLen]
		if _, err := io.ReadFull(r, d.stored); err != nil {
			return ix.vol.readError(err)
		}
		at = f.Off + int64(f.CLen)
		x.fetched.Add(int64(f.CLen))
		todo <- d
		order <- d
	}
	return nil
}

// decode checks the stored bytes and decodes them, never beyond the length that
// the index promised.
func (d *decoding) decode(dec *zstd.Decoder, v VolumeSource) {
	f := d.frame
	if got := fmt.Sprintf("%016x", crc.NVME(d.stored)); got != f.CRC {
		d.err = v.corrupt("the frame at %d has checksum %s, its index says %s", f.Off, got, f.CRC)
		return
	}
	if cap(d.raw) < f.ULen {
		d.raw = make([]byte, 0, f.ULen)
	}
	var err error
	d.raw, err = dec.DecodeAll(d.stored, d.raw[:0])
	if err != nil || len(d.raw) != f.ULen {
		d.err = v.corrupt("the frame at %d decodes to %d bytes, its index says %d (%v)", f.Off, len(d.raw), f.ULen, err)
	}
}

// frame checks a decoded frame piece by piece against the index and writes it.
func (x *extraction) frame(v VolumeSource, f IndexFrame, raw []byte) error {
	id := newFrameID()
	for _, p := range f.Entries {
		e := p.entry()
		if err := checkEntry(e); err != nil {
			return v.corrupt("its index names %v", err)
		}
		bad := func(what string) error { return v.corrupt("%s of %q is not what the index says", what, e.Name) }
		var head []byte
		if p.Off == 0 {
			var err error
			if head, err = header(e); err != nil {
				return v.corrupt("%v", err)
			}
			if x.goesOn || !bytes.HasPrefix(raw, head) {
				return bad("the header")
			}
			raw = raw[len(head):]
		} else if !x.goesOn || x.name != e.Name || x.off != p.Off {
			return bad("a piece")
		}
		pad := int64(0)
		if p.Off+p.Len == p.Size {
			pad = padding(p.Size)
		}
		if int64(len(raw)) < p.Len+pad || !allZero(raw[p.Len:p.Len+pad]) {
			return bad("the content")
		}
		content := raw[:p.Len]
		raw = raw[p.Len+pad:]
		sum := sha256.Sum256(content)
		id.piece(head, sum, p.Len, pad)
		if err := x.piece(v, p, e, content, sum); err != nil {
			return err
		}
	}
	if !allZero(raw) || (len(raw) > 0 && len(f.Entries) > 0) {
		return v.corrupt("the frame at %d holds more than its index says", f.Off)
	}
	if got := id.sum(); hex.EncodeToString(got[:]) != f.ID {
		return v.corrupt("the frame at %d has another ID than its index says", f.Off)
	}
	return nil
}

// piece writes one piece, and closes the file at its last one when its hash is
// right.
func (x *extraction) piece(v VolumeSource, p IndexEntry, e Entry, content []byte, sum [sha256.Size]byte) error {
	if e.Type != TypeFile {
		return x.noFile(v, e)
	}
	if p.Off == 0 {
		x.number++
	}
	kept := x.kept.has(x.number - 1)
	if p.Off == 0 && !kept {
		head, ok := x.head(e.Name)
		if x.upTo = head; ok {
			if err := x.create(v, e); err != nil {
				return err
			}
		}
	}
	if n := min(p.Len, x.upTo-p.Off); x.file != nil && n >= 0 {
		if err := x.put(content[:n], p.Off, e.Sparse); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
		x.done += p.Len
	}
	if p.Off+p.Len < p.Size {
		if p.Off == 0 {
			x.sum = sha256.New()
		}
		if x.sum != nil {
			x.sum.Write(content)
		}
		x.goesOn, x.name, x.off = true, e.Name, p.Off+p.Len
		return nil
	}
	x.goesOn, x.name = false, ""
	if p.Off > 0 && x.sum == nil {
		return nil // it was found right when it was written
	}
	if p.Off > 0 {
		x.sum.Write(content)
		x.sum.Sum(sum[:0])
	}
	if hex.EncodeToString(sum[:]) != p.SHA256 {
		return v.corrupt("%q has another hash than the index says", e.Name)
	}
	if x.file == nil {
		return nil
	}
	if x.verify != nil {
		return x.endPick(e)
	}
	x.report.Files++
	x.report.Bytes += e.Size
	if err := x.endFile(e); err != nil {
		return err
	}
	x.progress.add(x.number, e.Size)
	return nil
}

// noFile deals with a directory or a link.
func (x *extraction) noFile(v VolumeSource, e Entry) error {
	if x.verify != nil && x.verify.Into != nil && e.Type == TypeDir { // that it is there may matter
		return x.mkdir(v, e.Name)
	}
	if !x.wanted(e.Name) {
		return nil
	}
	if e.Type == TypeSymlink {
		x.links = append(x.links, e)
		return nil
	}
	x.dirs = append(x.dirs, e)
	return x.mkdir(v, e.Name)
}
