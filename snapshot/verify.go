package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// VerifyOptions say how far an archive is read back.
type VerifyOptions struct {
	// Indexes are those of the volumes, in order, as ReadIndex has read them; frames
	// come from where they came.
	Indexes []*Index
	// Share of the frames, above 0; 1 and more is all of them. What is less is chosen
	// at random, always the same by the same Seed, one frame at least.
	Share    float64
	Seed     uint64
	Workers  int // decoders; 0: one
	Progress func(done, total int64)
	// Damaged is told of each frame that is not what its index says; reading goes on
	// behind it. It is called from one goroutine.
	Damaged func(FrameDamage)
	// Into, where set, gets what somebody wants to look at, in the same pass. Share is
	// 1 then.
	Into *Pick

	left, need int64 // frames that are still to be looked at, and to be chosen of them
	pick       *rand.Rand
}

// Pick is where what is picked of an archive goes, and what that is. It is for a
// look, not to be kept: owners, rights, times and links are left out, and nothing is
// made durable.
type Pick struct {
	FS  fsx.FS
	Dir string // exists, and is empty
	// See, where set, is told the name of every file before Head is asked.
	See func(name string)
	// Head says how many bytes of a file are written; the rest, up to its size, is a
	// hole. Where ok is false there is not even its name.
	Head func(name string) (n int64, ok bool)
}

func (p *Pick) see(indexes []*Index) error {
	if p.See == nil {
		return nil
	}
	for _, ix := range indexes {
		for f, err := range ix.Frames() {
			if err != nil {
				return err
			}
			for _, e := range f.Entries {
				if e.Type == TypeFile && e.Off == 0 {
					p.See(e.entry().Name)
				}
			}
		}
	}
	return nil
}

// FrameDamage is a frame that is not what its index says.
type FrameDamage struct {
	Volume string
	Off    int64
	Files  []string // that have a piece in it, the first few
	More   int      // further ones
	Err    error    // with ErrCorrupt
}

// VerifyReport says how far it went.
type VerifyReport struct {
	Frames, FramesRead int64
	Bytes, BytesRead   int64 // stored bytes of frames
	Damaged            int   // frames
}

// maxDamageNames is how many files a FrameDamage names.
const maxDamageNames = 3

// Verify fetches frames of an archive and compares each with its index: its
// checksum, what it decodes to, by the content checksum that every decoder looks
// at, the headers, the pieces and the ID; and, where all of a file's frames are
// read, the file's hash. It writes nothing but what Into picks, for which there must
// be room before the first byte is fetched (ErrNoRoom); behind a damaged frame no
// more is picked. Every stored byte is fetched once, its
// memory does not grow with the archive. An error with ErrCorrupt means that
// frames are damaged, or that the volumes are none of one archive.
func Verify(ctx context.Context, o VerifyOptions) (rep VerifyReport, err error) {
	var vols []VolumeSource
	for _, ix := range o.Indexes {
		vols = append(vols, ix.vol)
	}
	x := &extraction{o: ExtractOptions{Workers: max(1, o.Workers)}, verify: &o}
	if o.Into != nil {
		x.o.FS, x.o.Dir = o.Into.FS, o.Into.Dir
		if err := x.open(); err != nil {
			return rep, err
		}
		defer func() { err = errors.Join(err, x.closeFile(), x.close()) }()
		if err := o.Into.see(o.Indexes); err != nil {
			return rep, err
		}
	}
	if err := x.readIndexes(ctx, vols); err != nil {
		return rep, err
	}
	if o.Into != nil {
		if err := x.preflight(); err != nil {
			return rep, err
		}
	}
	for _, ix := range x.indexes {
		for _, err := range ix.Frames() {
			if err != nil {
				return rep, err
			}
			rep.Frames++
		}
		rep.Bytes += ix.Data
	}
	o.left, o.need = rep.Frames, rep.Frames
	todo := rep.Bytes
	if o.Share < 1 {
		o.need = min(rep.Frames, max(1, int64(math.Ceil(o.Share*float64(rep.Frames)))))
		o.pick = rand.New(rand.NewPCG(o.Seed, 0))
		todo = int64(float64(rep.Bytes) * float64(o.need) / float64(max(1, rep.Frames))) // about
	}
	rep.FramesRead = o.need
	x.o.Progress = func(_, _ int64) {
		if o.Progress != nil {
			done := x.fetched.Load()
			o.Progress(done, max(done, todo))
		}
	}
	for _, ix := range x.indexes {
		if err := x.volume(ctx, ix); err != nil {
			return rep, err
		}
	}
	rep.BytesRead, rep.Damaged = x.fetched.Load(), x.lost
	switch {
	case x.lost > 0:
		return rep, fmt.Errorf("%w: %d of %d frames", ErrCorrupt, x.lost, rep.FramesRead)
	case x.goesOn:
		return rep, vols[len(vols)-1].corrupt("it ends inside a file")
	}
	return rep, nil
}

// chosen decides on the next frame: of all choices of as many frames each is as
// likely as any other (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S).
func (o *VerifyOptions) chosen() bool {
	yes := o.pick == nil || o.pick.Float64()*float64(o.left) < float64(o.need)
	if o.left--; yes {
		o.need--
	}
	return yes
}

// sampled tells that not all frames are read.
func (x *extraction) sampled() bool { return x.verify != nil && x.verify.pick != nil }

// ahead is how many bytes a request asks for: all to the end of the frames, but for
// a sample, of which each frame is asked for by itself.
func (x *extraction) ahead(ix *Index, f IndexFrame) int64 {
	if x.sampled() {
		return int64(f.CLen)
	}
	return ix.Data - f.Off
}

// gap is how many bytes are rather read and thrown away than left out.
func (x *extraction) gap() int64 {
	if x.sampled() {
		return -1
	}
	return gapBytes
}

// follow makes a frame of a sample one whose predecessor was read: what that one
// left open is known from the index.
func (x *extraction) follow(f IndexFrame) {
	if !x.sampled() || len(f.Entries) == 0 {
		return
	}
	p := f.Entries[0]
	x.goesOn = p.Type == TypeFile && p.Off > 0
	x.name, x.off = p.entry().Name, p.Off
}

// tell reports a damaged frame and goes on as if it had been left out: of the
// files that it has a piece of no hash is made.
func (x *extraction) tell(ix *Index, f IndexFrame, err error) error {
	if err == nil || x.verify == nil || !errors.Is(err, ErrCorrupt) {
		return err
	}
	if x.lost++; x.verify.Into != nil { // what was picked is of no use
		x.verify.Into = nil
		if cerr := x.closeFile(); cerr != nil {
			return cerr
		}
	}
	if x.verify.Damaged != nil {
		d := FrameDamage{Volume: ix.vol.Name, Off: f.Off, Err: err}
		for _, p := range f.Entries {
			if p.Type != TypeFile {
				continue
			}
			if len(d.Files) == maxDamageNames {
				d.More++
				continue
			}
			d.Files = append(d.Files, path.Clean(p.entry().Name))
		}
		x.verify.Damaged(d)
	}
	return x.pass(ix.vol, f)
}

// SumsDiffer compares a list of hashes, plain, as sha256sum writes them, with what
// indexes say of the archive's files. It returns what is another one, "" where the
// list is what it should be to the last byte.
func SumsDiffer(indexes []*Index, list io.Reader) (string, error) {
	in := bufio.NewReaderSize(list, 64<<10)
	n := 0
	for _, ix := range indexes {
		for f, err := range ix.Frames() {
			if err != nil {
				return "", err
			}
			for _, p := range f.Entries {
				if p.Type != TypeFile || p.Off+p.Len < p.Size {
					continue
				}
				n++
				var want bytes.Buffer
				if err := writeSum(&want, p.entry().Name, p.SHA256); err != nil {
					return "", err
				}
				got := make([]byte, want.Len())
				if k, err := io.ReadFull(in, got); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					got = got[:k]
				} else if err != nil {
					return "", err
				}
				if !bytes.Equal(got, want.Bytes()) {
					return fmt.Sprintf("line %d is not that of %q", n, p.entry().Name), nil
				}
			}
		}
	}
	if _, err := in.ReadByte(); err == nil {
		return fmt.Sprintf("it goes on behind line %d, the last file's", n), nil
	} else if !errors.Is(err, io.EOF) {
		return "", err
	}
	return "", nil
}

// checkStock refuses a frame without a content checksum: stock decoders would not
// notice a flipped bit in it.
func checkStock(stored []byte, f IndexFrame, v VolumeSource) error {
	var h zstd.Header
	if err := h.Decode(stored); err != nil || !h.HasCheckSum || h.Skippable {
		return v.corrupt("the frame at %d is not one that zstd checks", f.Off)
	}
	return nil
}
