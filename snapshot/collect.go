package snapshot

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/crc"
)

// collector gets a volume's frames in order, yields them, and writes index, seek
// table and sums. Frames of an earlier run come first.
type collector struct {
	v     *Volume
	ix    *indexWriter
	known func() (Known, error, bool)
	yield func(Frame, error) bool
	born  time.Time // of frames that this run makes
	r     VolumeResult
	total uint64
}

func (v *Volume) newCollector(known func() (Known, error, bool), yield func(Frame, error) bool) (*collector, error) {
	ix, err := newIndexWriter(IndexHeader{
		Format: formatVersion, MinReader: minReader, Archive: v.plan.o.Archive, Volume: v.number, Last: v.Last(),
		Roots: v.plan.roots, Producer: v.plan.o.Producer,
	})
	return &collector{
		v: v, ix: ix, known: known, yield: yield, born: time.Now().UTC().Truncate(time.Second),
		r: VolumeResult{PlanBytes: v.size.plan},
	}, err
}

// pass takes over the frames that an earlier run has made, without reading any.
func (c *collector) pass(ctx context.Context) error {
	var last framePlan
	var hash []byte
	for c.r.Frames < c.v.size.frames {
		k, err, ok := c.known()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := c.v.frame(c.r.Frames)
		if err != nil {
			return err
		}
		var rec frameRecord
		if err := json.Unmarshal(k.Record, &rec); err != nil {
			return fmt.Errorf("%w: %w", errOtherFrames, err)
		}
		if k.ID == "" || int64(rec.ULen) != f.size || len(rec.Sums) != f.ends() {
			return errOtherFrames
		}
		if err := c.take(f, Frame{ID: k.ID, CLen: k.CLen, ULen: rec.ULen, CRC: k.CRC, Again: c.again(f, k.ID), Record: k.Record}, rec); err != nil {
			return err
		}
		last, hash = f, rec.Hash
	}
	if c.r.Frames == 0 {
		return nil
	}
	return c.v.plan.reader.goOn(last, hash)
}

// again is Frame.Again.
func (c *collector) again(f framePlan, id string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) { return c.v.again(ctx, f, id) }
}

// made takes a frame that was read, and encoded or found on the shelf.
func (c *collector) made(w *work) error {
	rec := frameRecord{ULen: len(w.raw), Born: c.born, Hash: w.hash}
	for i, p := range w.plan.pieces {
		c.r.ReadBytes += p.n
		if w.sums[i] != "" {
			rec.Sums = append(rec.Sums, w.sums[i])
		}
	}
	f := Frame{ID: hex.EncodeToString(w.id[:]), ULen: len(w.raw)}
	if p := w.place; p != nil {
		rec.Born = time.Unix(p.born, 0).UTC()
		f.CLen, f.CRC, f.Place, f.Again = int(p.clen), p.crc, &StoredAt{Volume: int(p.volume), Off: p.off}, c.again(w.plan, f.ID)
	} else {
		f.CLen, f.CRC, f.Data = len(w.out), w.crc, w.out
	}
	var err error
	if f.Record, err = json.Marshal(rec); err != nil {
		return err
	}
	return c.take(w.plan, f, rec)
}

func (c *collector) take(plan framePlan, f Frame, rec frameRecord) error {
	x := IndexFrame{ID: f.ID, Off: c.r.Size, CLen: f.CLen, ULen: f.ULen, CRC: fmt.Sprintf("%016x", f.CRC), Born: rec.Born}
	sums := rec.Sums
	for _, p := range plan.pieces {
		e := indexEntry(p)
		if p.ends() {
			e.SHA256, sums = sums[0], sums[1:]
			c.r.Files++
			if err := writeSum(c.v.plan.o.Sums, p.entry.Name, e.SHA256); err != nil {
				return err
			}
		}
		c.r.SourceBytes += p.n
		x.Entries = append(x.Entries, e)
	}
	if err := c.ix.frame(x); err != nil {
		return err
	}
	c.r.Frames++
	c.r.Carry = rec.Hash
	return c.emit(f)
}

func (c *collector) emit(f Frame) error {
	f.Off = c.r.Size
	c.r.Size += int64(f.CLen)
	c.total = crc.Combine(c.total, f.CRC, int64(f.CLen))
	if !c.yield(f, nil) {
		return errStopped
	}
	return nil
}

// finish makes index and seek table. An earlier run that came so far has made the
// same.
func (c *collector) finish() error {
	index, sum, seek, err := c.ix.finish()
	if err != nil {
		return err
	}
	c.r.IndexSHA256 = sum
	for _, b := range append(index, seek) {
		f := Frame{CLen: len(b), CRC: crc.NVME(b), Data: b}
		k, err, ok := c.known()
		if err != nil {
			return err
		}
		if ok && (k.CLen != f.CLen || k.CRC != f.CRC) {
			return errOtherFrames
		}
		if err := c.emit(f); err != nil {
			return err
		}
	}
	c.r.CRC64NVME = crc.Base64(c.total)
	c.v.result, c.v.done = c.r, true
	return nil
}

// redone is what frames are made again with.
type redone struct {
	w    work
	enc  *zstd.Encoder
	read int64 // content bytes
}

func (r *redone) bytes() int64 {
	if r == nil {
		return 0
	}
	return r.read
}

// again makes the bytes of a frame that was yielded without them. It refuses one that has become
// another frame: the stage is not what it was.
func (v *Volume) again(ctx context.Context, f framePlan, id string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if v.redone == nil {
		enc, err := v.plan.newEncoder()
		if err != nil {
			return nil, err
		}
		v.redone = &redone{enc: enc}
	}
	w := &v.redone.w
	w.plan = f
	r := &reader{src: v.plan.src, frame: v.plan.o.frame, apart: true}
	err := r.fill(w)
	r.close()
	if err != nil {
		return nil, err
	}
	for _, p := range f.pieces {
		v.redone.read += p.n
	}
	w.encode(v.redone.enc, nil)
	if hex.EncodeToString(w.id[:]) != id {
		return nil, fmt.Errorf("the stage has changed since it was read: %s", f)
	}
	return w.out, nil
}

func (v *Volume) closeRedone() {
	if v.redone != nil {
		v.redone.enc.Close()
	}
}
