package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/eddy-backup/eddy/internal/crc"
)

// Frame is a run of stored bytes: an independent zstd frame, or at a volume's end
// pieces of the index and the seek table, which have no ID.
type Frame struct {
	ID   string // hex sha256 of what it decodes to; "" for index and seek table
	Off  int64  // in the volume
	CLen int    // stored bytes
	ULen int    // decoded bytes
	CRC  uint64 // CRC64NVME of the stored bytes
	// Data is valid until the sequence advances; nil for a frame of an earlier run,
	// and for one that stands on the shelf.
	Data []byte
	// Again makes the bytes that Data lacks, from the source. It is called until the
	// plan's next volume is asked for or the plan is closed, also when the sequence
	// has ended, one call of the volume's at a time; what it returns is valid until
	// the next one.
	Again func(ctx context.Context) ([]byte, error)
	// Place, where set, is where the same bytes are stored already.
	Place *StoredAt
	// Record is what a later run needs to pass over this frame; with ID, CLen and
	// CRC it makes a Known.
	Record json.RawMessage
}

// Known is a frame that an earlier run has made.
type Known struct {
	ID     string
	CLen   int
	CRC    uint64
	Record json.RawMessage
}

// frameRecord is Frame.Record.
type frameRecord struct {
	ULen int       `json:"ulen"`
	Born time.Time `json:"born"`
	Sums []string  `json:"sums,omitempty"` // of the files that end in it, in order
	Hash []byte    `json:"hash,omitempty"` // the running sha256 of the file that goes on, marshalled
}

// Volume is one object of an archive.
type Volume struct {
	plan   *Plan
	number int
	size   volumeSize
	shelf  *Shelf
	done   bool
	result VolumeResult
	redone *redone
}

// VolumeResult is known when all frames of a volume were made.
type VolumeResult struct {
	Size        int64 // stored bytes
	PlanBytes   int64 // bytes of the tar stream
	SourceBytes int64 // content bytes in it
	ReadBytes   int64 // content bytes that this run has read
	Frames      int64
	Files       int64 // that end in this volume
	IndexSHA256 string
	CRC64NVME   string // of the whole volume, base64
	// Carry is the running hash of a file that goes on in the next volume; nil
	// where none does. Plan.Skip needs it.
	Carry []byte
}

// Number counts from 0.
func (v *Volume) Number() int { return v.number }

// Last is true for the archive's last volume.
func (v *Volume) Last() bool { return v.number == len(v.plan.volumes)-1 }

// Upper bounds the stored size in bytes.
func (v *Volume) Upper() int64 { return v.size.upper + 64<<10 }

// Reuse lets Frames pass frames on without their bytes that are on the shelf. It
// is called before Frames; nil is an empty shelf.
func (v *Volume) Reuse(s *Shelf) { v.shelf = s }

// Result is valid when Frames has ended without an error, and while no frame is
// being made again.
func (v *Volume) Result() VolumeResult {
	r := v.result
	r.ReadBytes += v.redone.bytes()
	return r
}

// work is a frame on its way through the pipeline.
type work struct {
	plan framePlan
	raw  []byte
	out  []byte
	id   [sha256.Size]byte
	sums []string // per piece; "" where the file goes on
	hash []byte   // frameRecord.Hash
	crc  uint64
	// place is set where the frame is on the shelf; out is not made then.
	place *shelved
	done  chan struct{}
}

// Frames makes the volume's frames in order: one goroutine reads, each byte
// once, several encode. It is consumed once. Memory is bounded by the number of
// encoders.
//
// known are the frames that an earlier run of the same plan has made, from the
// volume's first on; nil where there was none. They are yielded without their
// bytes, and nothing of them is read.
func (v *Volume) Frames(ctx context.Context, known iter.Seq2[Known, error]) iter.Seq2[Frame, error] {
	if known == nil {
		known = func(func(Known, error) bool) {}
	}
	return func(yield func(Frame, error) bool) {
		if err := v.run(ctx, known, yield); err != nil && !errors.Is(err, errStopped) {
			yield(Frame{}, err)
		}
	}
}

var (
	// errStopped: the consumer wants no more.
	errStopped = errors.New("stopped")
	// errOtherFrames: what an earlier run has made is not of this plan.
	errOtherFrames = errors.New("the frames of the earlier run are not of this stage")
)

func (v *Volume) run(ctx context.Context, known iter.Seq2[Known, error], yield func(Frame, error) bool) error {
	next, stop := iter.Pull2(known)
	defer stop()
	c, err := v.newCollector(next, yield)
	if err != nil {
		return err
	}
	if err := c.pass(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	err = v.pipeline(ctx, g, c)
	cancel()
	// A failed reader cancels the others, so its error is the cause of theirs.
	if werr := g.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
		return werr
	}
	return err
}

func (v *Volume) pipeline(ctx context.Context, g *errgroup.Group, c *collector) error {
	n := v.plan.o.Workers
	free := make(chan *work, n+2)
	for range n + 2 {
		free <- new(work)
	}
	todo, order := make(chan *work, n+2), make(chan *work, n+2)
	first := c.r.Frames
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		return v.readAll(ctx, first, free, todo, order)
	})
	for i := range n {
		enc, err := v.plan.encoder(i)
		if err != nil {
			return err
		}
		g.Go(func() error {
			for w := range todo {
				w.encode(enc, v.shelf)
				close(w.done)
			}
			return nil
		})
	}
	for w := range order {
		select {
		case <-w.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := c.made(w); err != nil {
			return err
		}
		free <- w
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.r.Frames != v.size.frames {
		return nil // the reader failed; its error is told by the group
	}
	return c.finish()
}

func (p *Plan) newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(p.o.Level)),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
}

// encoder is the pipeline's i-th. It is kept from volume to volume, of which one is
// made at a time: an encoder has ten megabytes of its own.
func (p *Plan) encoder(i int) (*zstd.Encoder, error) {
	if i == len(p.encoders) {
		enc, err := p.newEncoder()
		if err != nil {
			return nil, err
		}
		p.encoders = append(p.encoders, enc)
	}
	return p.encoders[i], nil
}

// frame is the i-th frame of the volume, before its bytes. It is called once for
// each, in order.
func (v *Volume) frame(i int64) (framePlan, error) {
	if v.Last() && i == v.size.frames-1 {
		return endFrame(), nil
	}
	f, err, ok := v.plan.pull()
	if err != nil {
		return f, err
	}
	if !ok {
		return f, errors.New("the stage lists fewer files than it did")
	}
	return f, nil
}

// readAll fills the volume's frames from the source, in order, from the first
// that no earlier run has made.
func (v *Volume) readAll(ctx context.Context, first int64, free <-chan *work, todo, order chan<- *work) error {
	for i := first; i < v.size.frames; i++ {
		var w *work
		select {
		case w = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		if w.plan, err = v.frame(i); err != nil {
			return err
		}
		if err := v.plan.reader.fill(w); err != nil {
			return err
		}
		w.done = make(chan struct{})
		todo <- w // never blocks: as many places as works
		order <- w
	}
	return nil
}

// reader is the one that reads the source. A file that goes on in the next frame,
// or the next volume, stays open, with its running hash.
type reader struct {
	src   Source
	frame int64 // content of the largest frames, bytes
	file  *os.File
	sum   hash.Hash
	// apart: frames come out of order, and the hashes of files that span them are
	// known already.
	apart bool
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// fill reads a frame's bytes into w.raw and computes the hashes of files that
// span frames; those of files that fit are left to the encoders.
func (r *reader) fill(w *work) error {
	w.raw, w.sums, w.hash = w.raw[:0], w.sums[:0], nil
	if w.plan.end {
		w.raw = append(w.raw, make([]byte, w.plan.size)...)
		return nil
	}
	w.reserve(int(w.plan.size), int(r.frame))
	for _, p := range w.plan.pieces {
		w.raw = append(w.raw, p.header...)
		sum := ""
		if p.entry.Type == TypeFile {
			at := len(w.raw)
			w.raw = w.raw[:at+int(p.n)]
			var err error
			if sum, err = r.piece(p, w.raw[at:], w); err != nil {
				return fmt.Errorf("read %s: %w", p.entry.Name, err)
			}
		}
		w.raw = append(w.raw, zeros[:p.pad]...)
		w.sums = append(w.sums, sum)
	}
	return nil
}

var zeros [tarBlock]byte

// reserve makes room for n decoded bytes and what they are encoded to. Buffers
// that grew from frame to frame would leave garbage several times their size, so
// the first large frame gets what the largest needs.
func (w *work) reserve(n, frame int) {
	if cap(w.raw) >= n {
		return
	}
	if n > groupContent+groupEntries*4*tarBlock {
		n = max(n, frame+64<<10)
	}
	w.raw = make([]byte, 0, n)
	w.out = make([]byte, 0, n+n>>10+256)
}

// pending marks a piece whose sum the encoder makes.
const pending = "pending"

func (r *reader) piece(p piecePlan, buf []byte, w *work) (string, error) {
	if p.off == 0 || r.apart {
		r.close()
		f, err := r.src.Open(p.entry)
		if err != nil {
			return "", err
		}
		r.file = f
		if _, err := f.Seek(p.off, io.SeekStart); err != nil {
			return "", err
		}
	}
	if r.file == nil {
		return "", errOtherFrames
	}
	if _, err := io.ReadFull(r.file, buf); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it shrank in the stage")
		}
		return "", err
	}
	last := p.ends()
	if last {
		if n, err := r.file.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			return "", errors.New("it grew in the stage")
		}
		r.close()
	}
	if p.off == 0 && last {
		return pending, nil
	}
	if r.apart {
		return "", nil
	}
	if p.off == 0 {
		r.sum = sha256.New()
	}
	r.sum.Write(buf)
	if last {
		return hex.EncodeToString(r.sum.Sum(nil)), nil
	}
	var err error
	w.hash, err = r.sum.(encoding.BinaryMarshaler).MarshalBinary()
	return "", err
}

// goOn puts the reader behind the frame f, whose running hash is known, where a
// file goes on in the next frame.
func (r *reader) goOn(f framePlan, hash []byte) error {
	r.close()
	p := f.goesOn()
	if p == nil {
		if hash != nil {
			return errOtherFrames
		}
		return nil
	}
	r.sum = sha256.New()
	if err := r.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(hash); err != nil {
		return fmt.Errorf("%w: %w", errOtherFrames, err)
	}
	file, err := r.src.Open(p.entry)
	if err != nil {
		return err
	}
	r.file = file
	_, err = file.Seek(p.off+p.n, io.SeekStart)
	return err
}

// encode computes the frame's ID and the sums of the files that it holds whole,
// and compresses it, unless it is on the shelf.
func (w *work) encode(enc *zstd.Encoder, shelf *Shelf) {
	id := newFrameID()
	at := 0
	for i, p := range w.plan.pieces {
		at += len(p.header)
		content := w.raw[at : at+int(p.n)]
		at += int(p.n + p.pad)
		sum := sha256.Sum256(content)
		id.piece(p.header, sum, p.n, p.pad)
		if w.sums[i] == pending {
			w.sums[i] = hex.EncodeToString(sum[:])
		}
	}
	w.id, w.place = id.sum(), nil
	if f, ok := shelf.find(w.id, len(w.raw)); ok {
		w.place = &f
		return
	}
	w.out = enc.EncodeAll(w.raw, w.out[:0])
	w.crc = crc.NVME(w.out)
}

// frameID hashes what a frame decodes to, through the hashes of its pieces: a
// file that fits its frame is hashed once, for itself and for the ID.
type frameID struct{ h hash.Hash }

func newFrameID() frameID {
	h := sha256.New()
	io.WriteString(h, "eddy frame 1\n")
	return frameID{h: h}
}

func (f frameID) piece(header []byte, content [sha256.Size]byte, n, pad int64) {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], uint64(len(header)))
	binary.LittleEndian.PutUint64(b[8:], uint64(n))
	binary.LittleEndian.PutUint64(b[16:], uint64(pad))
	f.h.Write(b[:])
	f.h.Write(header)
	f.h.Write(content[:])
}

func (f frameID) sum() (id [sha256.Size]byte) {
	f.h.Sum(id[:0])
	return id
}

// writeSum writes a line as sha256sum does: names with a backslash, a line feed
// or a carriage return are escaped, and the line then begins with a backslash.
func writeSum(w io.Writer, name, sum string) error {
	if w == nil {
		return nil
	}
	escaped := sumEscaper.Replace(name)
	lead := ""
	if escaped != name {
		lead = `\`
	}
	_, err := fmt.Fprintf(w, "%s%s  %s\n", lead, sum, escaped)
	return err
}

var sumEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)
