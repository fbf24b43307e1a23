package snapshot

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"math"
	"path"
	"runtime"
	"sync/atomic"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Owner is whom restored files are given to.
type Owner struct{ UID, GID int }

// ExtractOptions say where and what to extract.
type ExtractOptions struct {
	FS        fsx.FS   // makes the changes
	Dir       string   // an existing directory; empty, where there is no Journal
	Places    []Place  // what does not go to Dir, by the first components of its name
	Journal   string   // a file in which an extraction writes down how far it is, to go on after a kill; "": it does not
	Only      []string // globs of path.Match against a name or one of its parents; empty: everything
	Owner     *Owner   // nil: the ids of the archive
	Workers   int      // decoders; 0: one for each processor
	Preflight bool     // refuse before the first byte when the filesystem has no room
	Progress  func(done, total int64)
}

// Place is a directory for all names below Prefix, which itself is not made there:
// "data" with /mnt/x brings "data/app.db" to /mnt/x/app.db. It exists, as Dir does.
type Place struct{ Prefix, Dir string }

// Report tells what was extracted.
type Report struct {
	Files, Bytes         int64 // all that is there now; Bytes of content
	KeptFiles, KeptBytes int64 // of these: there before, from an extraction that was cut short
	Fetched              int64 // bytes of frames that were read from the volumes
}

// ErrNoRoom: there is less free than an archive needs. Nothing was written.
var ErrNoRoom = errors.New("there is no room")

// spare is the share of the filesystem's free space that an extraction leaves
// for what it cannot foresee (directories, the journal): one in so many.
const spare = 100

// Measure returns how many bytes and names an extraction of all volumes writes.
func Measure(ctx context.Context, vols []VolumeSource, only []string) (bytes, names int64, err error) {
	x := &extraction{o: ExtractOptions{Only: only}}
	if err := x.readIndexes(ctx, vols); err != nil {
		return 0, 0, err
	}
	return x.total, x.names, nil
}

// Extract brings an archive back. It writes nothing outside Dir and Places,
// follows no link, and returns nil only when every frame, every header and every
// file had the hash that the index says, the archive had an end, and all of it is
// on the disk. An error with ErrCorrupt means that the archive is to blame.
//
// With a Journal an extraction that failed or was killed is gone on with by the
// next one of the same archive: files that were complete and on the disk, and have
// size and time still, are not fetched again. Of another archive's nothing stays.
func Extract(ctx context.Context, vols []VolumeSource, o ExtractOptions) (rep Report, err error) {
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	x := &extraction{o: o}
	defer func() { err = errors.Join(err, x.close()) }()
	if err := x.open(); err != nil {
		return Report{}, err
	}
	if err := x.readIndexes(ctx, vols); err != nil {
		return Report{}, err
	}
	if err := x.resume(); err != nil {
		return Report{}, err
	}
	if o.Preflight {
		if err := x.preflight(); err != nil {
			return Report{}, err
		}
	}
	for _, ix := range x.indexes {
		if err := x.volume(ctx, ix); err != nil {
			return Report{}, errors.Join(err, x.closeFile(), x.progress.flush(x))
		}
	}
	if x.file != nil || x.goesOn {
		return Report{}, errors.Join(vols[len(vols)-1].corrupt("it ends inside a file"), x.closeFile())
	}
	if err := x.finish(); err != nil {
		return Report{}, err
	}
	x.report.Fetched = x.fetched.Load()
	return x.report, x.progress.flush(x)
}

// extraction is the state between frames: an open file, and what is done last.
type extraction struct {
	o        ExtractOptions
	places   []*place // the longest prefix first
	indexes  []*Index
	total    int64 // content bytes in all
	names    int64
	files    int // wanted or not
	done     int64
	kept     bitset // files that are there already, by their number
	number   int    // of files that have begun in the frames so far
	progress journal
	fetched  atomic.Int64 // stored bytes
	report   Report

	// Of Verify: it writes nothing, fetches the frames that are chosen, and tells of
	// damaged ones instead of ending at the first.
	verify *VerifyOptions
	lost   int // frames that were told of

	goesOn bool      // a file continues in the next frame
	name   string    // of that file
	off    int64     // content bytes of it so far
	sum    hash.Hash // nil where its first pieces were not read, as it is kept
	file   *fsx.File // nil where the file was not wanted, or is kept
	upTo   int64     // of that file's bytes are written

	dirs  []Entry // rights and times are set at the end, deepest first
	links []Entry // made at the end: nothing can be written through them
}

func (x *extraction) readIndexes(ctx context.Context, vols []VolumeSource) error {
	if len(vols) == 0 {
		return fmt.Errorf("%w: no volumes", ErrCorrupt)
	}
	for i, v := range vols {
		ix, err := x.readIndex(ctx, i, v)
		if err != nil {
			return err
		}
		h := ix.Header
		if h.Volume != i || h.Last != (i == len(vols)-1) {
			return v.corrupt("it is volume %d of its archive (last: %t), found as number %d of %d", h.Volume, h.Last, i, len(vols))
		}
		if i > 0 && h.Archive != x.indexes[0].Header.Archive {
			return v.corrupt("it belongs to archive %s, the first volume to %s", h.Archive, x.indexes[0].Header.Archive)
		}
		x.indexes = append(x.indexes, ix)
		for f, err := range ix.Frames() {
			if err != nil {
				return err
			}
			for _, p := range f.Entries {
				e := p.entry()
				if p.Len < 0 || p.Off < 0 || p.Size < 0 || p.Off+p.Len > p.Size {
					return v.corrupt("its index has impossible sizes for %q", e.Name)
				}
				if e.Type == TypeFile && p.Off == 0 {
					x.files++
				}
				head, ok := x.head(e.Name)
				if !ok || x.verify != nil && e.Type != TypeFile {
					continue
				}
				written := max(0, min(p.Len, head-p.Off))
				x.total += written
				if p.Off == 0 {
					x.names++
				}
				if len(x.places) > 0 { // not when it is only measured
					at, _ := x.at(e.Name)
					at.bytes += written
					if p.Off == 0 {
						at.names++
					}
				}
			}
		}
	}
	return nil
}

func (x *extraction) readIndex(ctx context.Context, i int, v VolumeSource) (*Index, error) {
	if x.verify != nil {
		return x.verify.Indexes[i], nil
	}
	return ReadIndex(ctx, v)
}

// preflight compares what is to come with what is free, place by place. Two
// places on one filesystem are added up.
func (x *extraction) preflight() error {
	type need struct {
		dir          string
		bytes, names int64
	}
	needs := map[uint64]*need{}
	for _, p := range x.places {
		dev, err := deviceOf(p.dir)
		if err != nil {
			return err
		}
		n := needs[dev]
		if n == nil {
			n = &need{dir: p.dir}
			needs[dev] = n
		}
		n.bytes += p.bytes + p.names*2048 // half a block for each name's last one
		n.names += p.names
	}
	for _, n := range needs {
		free, inodes, err := fsx.FreeBytes(n.dir)
		if err != nil {
			return err
		}
		if n.bytes > free-free/spare {
			return hint.Add(fmt.Errorf("%w: %s has %d MiB free, the backup needs %d MiB", ErrNoRoom, n.dir, free>>20, (n.bytes>>20)+1), "make room, or restore to a larger filesystem; nothing was written")
		}
		if inodes >= 0 && n.names > inodes {
			return hint.Add(fmt.Errorf("%w: %s has %d inodes left, the backup needs %d", ErrNoRoom, n.dir, inodes, n.names), "restore to a filesystem with more inodes; nothing was written")
		}
	}
	return nil
}

// head is how much of a file is written, and whether anything of it is.
func (x *extraction) head(name string) (int64, bool) {
	switch {
	case x.verify == nil:
		return math.MaxInt64, x.wanted(name)
	case x.verify.Into == nil:
		return 0, false
	}
	n, ok := x.verify.Into.Head(name)
	return max(0, n), ok
}

// wanted tells whether a name is extracted; nothing is where it is only verified.
func (x *extraction) wanted(name string) bool {
	if x.verify != nil {
		return false
	}
	if len(x.o.Only) == 0 {
		return true
	}
	for _, glob := range x.o.Only {
		for n := name; n != "."; n = path.Dir(n) {
			if ok, err := path.Match(glob, n); err == nil && ok {
				return true
			}
		}
	}
	return false
}
