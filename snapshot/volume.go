package snapshot

import (
	"context"
	"crypto/sha256"
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
// the index and the seek table, which have no ID.
type Frame struct {
	ID   string // hex sha256 of what it decodes to; "" for index and seek table
	Off  int64  // in the volume
	CLen int    // stored bytes
	ULen int    // decoded bytes
	CRC  uint64 // CRC64NVME of the stored bytes
	Data []byte // valid until the sequence advances
	// State is what a later run needs to go on behind this frame.
	State json.RawMessage
}

// frameState is Frame.State: the frame's ordinal in its volume and, inside a file
// that goes on, the running hash.
type frameState struct {
	Ordinal int64  `json:"ordinal"`
	File    string `json:"file,omitempty"`
	Off     int64  `json:"off,omitempty"`  // content bytes of File behind this frame
	SHA256  []byte `json:"hash,omitempty"` // encoding.BinaryMarshaler of the running sha256
}

// Volume is one object of an archive.
type Volume struct {
	plan   *Plan
	number int
	size   volumeSize
	done   bool
	result VolumeResult
}

// VolumeResult is known when all frames of a volume were made.
type VolumeResult struct {
	Size        int64 // stored bytes
	PlanBytes   int64 // bytes of the tar stream
	SourceBytes int64 // content bytes read
	Frames      int64
	Files       int64 // that end in this volume
	IndexSHA256 string
	CRC64NVME   string // of the whole volume, base64
}

// Number counts from 0.
func (v *Volume) Number() int { return v.number }

// Last is true for the archive's last volume.
func (v *Volume) Last() bool { return v.number == len(v.plan.volumes)-1 }

// Upper bounds the stored size in bytes.
func (v *Volume) Upper() int64 { return v.size.upper + 64<<10 }

// Result is valid when Frames has ended without an error.
func (v *Volume) Result() VolumeResult { return v.result }

// work is a frame on its way through the pipeline.
type work struct {
	plan  framePlan
	raw   []byte
	out   []byte
	id    [sha256.Size]byte
	sums  []string // per piece; "" where the file goes on
	state frameState
	crc   uint64
	done  chan struct{}
}

// Frames makes the volume's frames in order: one goroutine reads, each byte
// once, several encode. It is consumed once. Memory is bounded by the number of
// encoders.
func (v *Volume) Frames(ctx context.Context) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		if err := v.run(ctx, yield); err != nil && !errors.Is(err, errStopped) {
			yield(Frame{}, err)
		}
	}
}

// errStopped: the consumer wants no more.
var errStopped = errors.New("stopped")

func (v *Volume) run(ctx context.Context, yield func(Frame, error) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	err := v.pipeline(ctx, g, yield)
	cancel()
	// A failed reader cancels the others, so its error is the cause of theirs.
	if werr := g.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
		return werr
	}
	return err
}

func (v *Volume) pipeline(ctx context.Context, g *errgroup.Group, yield func(Frame, error) bool) error {
	n := v.plan.o.Workers
	free := make(chan *work, n+2)
	for range n + 2 {
		free <- new(work)
	}
	todo, order := make(chan *work, n+2), make(chan *work, n+2)
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		return v.readAll(ctx, free, todo, order)
	})
	for range n {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(v.plan.o.Level)),
			zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
		if err != nil {
			return err
		}
		g.Go(func() error {
			for w := range todo {
				w.encode(enc)
				close(w.done)
			}
			return nil
		})
	}
	return v.collect(ctx, order, free, yield)
}

// collect yields the frames in order, and writes index, seek table and sums.
func (v *Volume) collect(ctx context.Context, order <-chan *work, free chan<- *work, yield func(Frame, error) bool) error {
	born := time.Now().UTC().Truncate(time.Second)
	ix, err := newIndexWriter(IndexHeader{
		Format: formatVersion, MinReader: minReader, Archive: v.plan.o.Archive, Volume: v.number, Last: v.Last(),
		Roots: v.plan.roots, Producer: v.plan.o.Producer,
	})
	if err != nil {
		return err
	}
	r := VolumeResult{PlanBytes: v.size.plan}
	var total uint64
	emit := func(f Frame) error {
		f.Off = r.Size
		f.CLen = len(f.Data)
		r.Size += int64(f.CLen)
		total = crc.Combine(total, f.CRC, int64(f.CLen))
		if !yield(f, nil) {
			return errStopped
		}
		return nil
	}
	for w := range order {
		select {
		case <-w.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		f := IndexFrame{
			ID: hex.EncodeToString(w.id[:]), Off: r.Size, CLen: len(w.out), ULen: len(w.raw),
			CRC: fmt.Sprintf("%016x", w.crc), Born: born,
		}
		for i, p := range w.plan.pieces {
			e := indexEntry(p)
			e.SHA256 = w.sums[i]
			f.Entries = append(f.Entries, e)
			r.SourceBytes += p.n
			if e.SHA256 != "" {
				r.Files++
				if err := writeSum(v.plan.o.Sums, p.entry.Name, e.SHA256); err != nil {
					return err
				}
			}
		}
		if err := ix.frame(f); err != nil {
			return err
		}
		r.Frames++
		state, err := json.Marshal(w.state)
		if err != nil {
			return err
		}
		if err := emit(Frame{ID: f.ID, ULen: f.ULen, CRC: w.crc, Data: w.out, State: state}); err != nil {
			return err
		}
		free <- w
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.Frames != v.size.frames {
		return nil // the reader failed; its error is told by the group
	}
	index, sum, seek, err := ix.finish()
	if err != nil {
		return err
	}
	r.IndexSHA256 = sum
	for _, b := range [][]byte{index, seek} {
		if err := emit(Frame{CRC: crc.NVME(b), Data: b}); err != nil {
			return err
		}
	}
	r.CRC64NVME = crc.Base64(total)
	v.result, v.done = r, true
	return nil
}

// readAll fills the volume's frames from the source, in order.
func (v *Volume) readAll(ctx context.Context, free <-chan *work, todo, order chan<- *work) error {
	rd := &v.plan.reader
	for i := range v.size.frames {
		var w *work
		select {
		case w = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if v.Last() && i == v.size.frames-1 {
			w.plan = endFrame()
		} else {
			f, err, ok := v.plan.pull()
			if err != nil {
				return err
			}
			if !ok {
				return errors.New("the stage lists fewer files than it did")
			}
			w.plan = f
		}
		w.state = frameState{Ordinal: i}
		if err := rd.fill(w); err != nil {
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
	src  Source
	file *os.File
	sum  hash.Hash
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
	w.raw, w.sums = w.raw[:0], w.sums[:0]
	if w.plan.end {
		w.raw = append(w.raw, make([]byte, w.plan.size)...)
		return nil
	}
	w.reserve(int(w.plan.size))
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
func (w *work) reserve(n int) {
	if cap(w.raw) >= n {
		return
	}
	if n > groupContent+groupEntries*4*tarBlock {
		n = max(n, frameContent+64<<10)
	}
	w.raw = make([]byte, 0, n)
	w.out = make([]byte, 0, n+n>>10+256)
}

// pending marks a piece whose sum the encoder makes.
const pending = "pending"

func (r *reader) piece(p piecePlan, buf []byte, w *work) (string, error) {
	if p.off == 0 {
		r.close()
		f, err := r.src.Open(p.entry)
		if err != nil {
			return "", err
		}
		r.file = f
	}
	if _, err := io.ReadFull(r.file, buf); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it shrank in the stage")
		}
		return "", err
	}
	last := p.off+p.n == p.entry.Size
	if last {
		if n, err := r.file.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			return "", errors.New("it grew in the stage")
		}
		r.close()
	}
	if p.off == 0 && last {
		return pending, nil
	}
	if p.off == 0 {
		r.sum = sha256.New()
	}
	r.sum.Write(buf)
	if last {
		return hex.EncodeToString(r.sum.Sum(nil)), nil
	}
	state, err := r.sum.(interface{ MarshalBinary() ([]byte, error) }).MarshalBinary()
	if err != nil {
		return "", err
	}
	w.state.File, w.state.Off, w.state.SHA256 = p.entry.Name, p.off+p.n, state
	return "", nil
}

// encode compresses the frame and computes its ID and the sums of the files that
// it holds whole.
func (w *work) encode(enc *zstd.Encoder) {
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
	w.id = id.sum()
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
