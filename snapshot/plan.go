package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// The cuts of format 1. They decide which bytes share a frame, and so what an
// unchanged file can be recognised by: changing one makes every frame new.
const (
	ownFrame      = 256 << 10 // files of this size and above start a frame of their own, bytes
	frameContent  = 8 << 20   // content bytes in a frame at most
	groupContent  = 1 << 20   // content bytes in a group of small files at most
	groupEntries  = 256       // entries in a group at most
	groupBorder   = 32        // one name in so many starts a new group
	formatVersion = 1
	minReader     = 1
)

// DefaultVolumeSize is how many bytes of plan go into one volume.
const DefaultVolumeSize = 256 << 30

// Source is a sealed stage, as planning and encoding see it. Entries come in
// archive order; Open refuses a file that is not what was staged.
type Source interface {
	Entries() iter.Seq2[Entry, error]
	Open(Entry) (*os.File, error)
}

var _ Source = (*Stage)(nil)

// PlanOptions say how an archive is cut and encoded.
type PlanOptions struct {
	Archive    string    // id of the archive; stands in every volume's index
	VolumeSize int64     // bytes of plan in a volume; 0: DefaultVolumeSize
	Level      int       // zstd's, 1 (the default) to 19
	Workers    int       // encoders; 0: one for each processor
	Sums       io.Writer // gets a line for each file, as sha256sum writes them; may be nil
	Producer   string    // "eddy v1.2.3"

	// frame stands in for frameContent in tests of what happens at the borders of
	// frames, which need many of them and not 8 MiB in each; 0: frameContent.
	frame int64
}

// Plan is an archive before its bytes: names and sizes in order, cut into frames
// and volumes. It holds no list of files, but reads the source's as it goes.
type Plan struct {
	src     Source
	roots   []Root
	o       PlanOptions
	volumes []volumeSize
	files   int64
	cuts    string
	digest  string

	next   int
	reader reader
	pull   func() (framePlan, error, bool)
	stop   func()
	last   *Volume

	encoders []*zstd.Encoder
}

// volumeSize is what the first pass learned of a volume.
type volumeSize struct{ frames, upper, plan int64 }

// DefaultLevel is zstd's level where none is given.
const DefaultLevel = 1

// EncoderName is the compressor and its version: what decides the stored bytes,
// besides the level.
func EncoderName() string {
	name := "klauspost/compress/zstd"
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, d := range bi.Deps {
			if d.Path == "github.com/klauspost/compress" {
				return name + " " + d.Version
			}
		}
	}
	return name
}

// NewPlan plans the archive of a sealed source. It reads the listing once and no
// content.
func NewPlan(src Source, roots []Root, o PlanOptions) (*Plan, error) {
	if o.VolumeSize == 0 {
		o.VolumeSize = DefaultVolumeSize
	}
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.frame == 0 {
		o.frame = frameContent
	}
	p := &Plan{src: src, roots: roots, o: o, reader: reader{src: src, frame: o.frame}}
	h := sha256.New()
	fmt.Fprintf(h, "eddy plan %d\nvolume %d\n", formatVersion, o.VolumeSize)
	var v volumeSize
	for f, err := range cut(src.Entries(), o.frame) {
		if err != nil {
			return nil, err
		}
		p.files += f.files()
		v.frames++
		v.plan += f.size
		v.upper += f.upper()
		fmt.Fprintf(h, "%d %d %s\n", f.size, len(f.pieces), f.pieces[0].entry.Name)
		if v.plan >= o.VolumeSize {
			p.volumes = append(p.volumes, v)
			v = volumeSize{}
		}
	}
	// The end blocks are a frame of the last volume; an archive that ended just at
	// a border gets them into the volume before it.
	if v.frames == 0 && len(p.volumes) > 0 {
		v = p.volumes[len(p.volumes)-1]
		p.volumes = p.volumes[:len(p.volumes)-1]
	}
	end := endFrame()
	v.frames++
	v.plan += end.size
	v.upper += end.upper()
	p.volumes = append(p.volumes, v)
	p.cuts = hex.EncodeToString(h.Sum(nil))
	fmt.Fprintf(h, "%s\nlevel %d\n", EncoderName(), o.Level)
	p.digest = hex.EncodeToString(h.Sum(nil))
	return p, nil
}

// Totals are the bytes of the tar stream and the number of files in it.
func (p *Plan) Totals() (bytes, files int64) {
	for _, v := range p.volumes {
		bytes += v.plan
	}
	return bytes, p.files
}

// Volumes is how many volumes there are.
func (p *Plan) Volumes() int { return len(p.volumes) }

// Digest changes with anything that could change a stored byte; Cuts does not
// change with the encoder. Volumes of the same cuts belong together.
func (p *Plan) Digest() string { return p.digest }

// Cuts names what is in which frame and in which volume.
func (p *Plan) Cuts() string { return p.cuts }

// Next returns the next volume, io.EOF after the last. The frames of the volume
// before must have been read to their end.
func (p *Plan) Next(ctx context.Context) (*Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.last != nil && !p.last.done {
		return nil, errors.New("plan: the volume before is not finished")
	}
	if p.last != nil {
		p.last.closeRedone()
	}
	if p.pull == nil {
		p.pull, p.stop = iter.Pull2(cut(p.src.Entries(), p.o.frame))
	}
	if p.next == len(p.volumes) {
		return nil, io.EOF
	}
	p.last = &Volume{plan: p, number: p.next, size: p.volumes[p.next]}
	p.next++
	return p.last, nil
}

// Skip passes over the next volume, which is complete: nothing of it is read.
// carry is its VolumeResult.Carry; of the last that is passed over it is needed.
// It returns the bytes of the tar stream in it.
func (p *Plan) Skip(ctx context.Context, carry []byte) (int64, error) {
	v, err := p.Next(ctx)
	if err != nil {
		return 0, err
	}
	var last framePlan
	for i := range v.size.frames {
		if last, err = v.frame(i); err != nil {
			return 0, err
		}
	}
	v.done = true
	if carry != nil {
		err = p.reader.goOn(last, carry)
	}
	return v.size.plan, err
}

// Ended yields the files that end in a volume or in one before it. It reads the
// listing again.
func (p *Plan) Ended(volume int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var frames int64
		for _, v := range p.volumes[:volume+1] {
			frames += v.frames
		}
		for f, err := range cut(p.src.Entries(), p.o.frame) {
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if frames--; frames < 0 {
				return
			}
			for _, piece := range f.pieces {
				if piece.ends() && !yield(piece.entry, nil) {
					return
				}
			}
		}
	}
}

// Close frees what the plan holds of its source. It is called on every path.
func (p *Plan) Close() {
	p.reader.close()
	if p.last != nil {
		p.last.closeRedone()
	}
	if p.stop != nil {
		p.stop()
	}
}

// framePlan is one frame before its bytes.
type framePlan struct {
	pieces []piecePlan
	size   int64 // decoded bytes: headers, content, padding
	names  int64 // bytes of names, for the index's upper bound
	end    bool  // the tar stream's end blocks
}

// piecePlan is a file's share of a frame: all of a small one, up to 8 MiB of a
// large one. Directories and symlinks are pieces without content.
type piecePlan struct {
	entry  Entry
	header []byte // of the first piece only
	off, n int64  // content bytes
	pad    int64  // of the last piece only
}

func (f *framePlan) add(p piecePlan) {
	f.pieces = append(f.pieces, p)
	f.size += int64(len(p.header)) + p.n + p.pad
	f.names += int64(len(p.entry.Name) + len(p.entry.Link))
}

func (f *framePlan) files() (n int64) {
	for _, p := range f.pieces {
		if p.entry.Type == TypeFile && p.off == 0 {
			n++
		}
	}
	return n
}

// upper bounds what the frame takes in the volume: its bytes as raw blocks, its
// line in the index (hex hashes, names escaped at worst), its seek table entry.
func (f *framePlan) upper() int64 {
	return f.size + f.size/1024 + 256 + 512 + int64(len(f.pieces))*512 + 6*f.names
}

// ends counts the files that end in the frame.
func (f *framePlan) ends() (n int) {
	for _, p := range f.pieces {
		if p.ends() {
			n++
		}
	}
	return n
}

// goesOn is the piece of a file that goes on in the next frame; nil where none
// does.
func (f *framePlan) goesOn() *piecePlan {
	if n := len(f.pieces); n > 0 && f.pieces[n-1].entry.Type == TypeFile && !f.pieces[n-1].ends() {
		return &f.pieces[n-1]
	}
	return nil
}

// String names the frame for messages.
func (f framePlan) String() string {
	if f.end {
		return "the end of the archive"
	}
	return fmt.Sprintf("%s at %d", f.pieces[0].entry.Name, f.pieces[0].off)
}

// ends tells whether p is the last piece of a file.
func (p *piecePlan) ends() bool { return p.entry.Type == TypeFile && p.off+p.n == p.entry.Size }

func endFrame() framePlan { return framePlan{end: true, size: 2 * tarBlock} }

// cut groups entries into frames. An insertion moves the border of one group
// only, because borders are chosen by the names themselves. frame is how much of a
// file goes into one, in bytes.
func cut(entries iter.Seq2[Entry, error], frame int64) iter.Seq2[framePlan, error] {
	return func(yield func(framePlan, error) bool) {
		var group framePlan
		var dir string
		var content int64
		flush := func() bool {
			if len(group.pieces) == 0 {
				return true
			}
			f := group
			group, content = framePlan{}, 0
			return yield(f, nil)
		}
		for e, err := range entries {
			if err == nil {
				err = checkEntry(e)
			}
			if err != nil {
				yield(framePlan{}, err)
				return
			}
			e.MTime = representable(e.MTime)
			h, err := header(e)
			if err != nil {
				yield(framePlan{}, err)
				return
			}
			if e.Size >= ownFrame {
				if !flush() || !yieldLarge(yield, e, h, frame) {
					return
				}
				continue
			}
			d := groupOf(e)
			if d != dir || startsGroup(e.Name) || content+e.Size > groupContent || len(group.pieces) == groupEntries {
				if !flush() {
					return
				}
				dir = d
			}
			group.add(piecePlan{entry: e, header: h, n: e.Size, pad: padding(e.Size)})
			content += e.Size
		}
		flush()
	}
}

func yieldLarge(yield func(framePlan, error) bool, e Entry, h []byte, frame int64) bool {
	for off := int64(0); off < e.Size; off += frame {
		p := piecePlan{entry: e, off: off, n: min(frame, e.Size-off)}
		if off == 0 {
			p.header = h
		}
		if off+p.n == e.Size {
			p.pad = padding(e.Size)
		}
		var f framePlan
		f.add(p)
		if !yield(f, nil) {
			return false
		}
	}
	return true
}

// groupOf names the group in which an entry may share a frame: directories among
// themselves, files with those of their own directory and treatment.
func groupOf(e Entry) string {
	if e.Type == TypeDir {
		return "d"
	}
	return fmt.Sprintf("%d%s", class(e), path.Dir(e.Name))
}

func startsGroup(name string) bool {
	h := fnv.New32a()
	io.WriteString(h, name)
	return h.Sum32()%groupBorder == 0
}

// representable brings a time into the years 1678 to 2262, which nanoseconds in 64
// bits can tell. Filesystems hold others; the header must agree with the index.
func representable(t time.Time) time.Time {
	first, last := time.Unix(0, math.MinInt64), time.Unix(0, math.MaxInt64)
	switch {
	case t.Before(first):
		return first
	case t.After(last):
		return last
	default:
		return t
	}
}

// checkEntry refuses names that no extraction could accept.
func checkEntry(e Entry) error {
	if err := checkName(e.Name); err != nil {
		return err
	}
	if e.Size < 0 || (e.Type != TypeFile && e.Size != 0) {
		return fmt.Errorf("%q: size %d", e.Name, e.Size)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name[0] == '/' || strings.IndexByte(name, 0) >= 0 || path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../") {
		return fmt.Errorf("%q is no name for an archive", name)
	}
	return nil
}
