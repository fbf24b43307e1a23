package snapshot

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// The journal of an extraction is lines of JSON: a header that names the archive
// by the hashes of its indexes, then ranges of files. Files are counted in the
// order of the archive, from 0, wanted or not. A range is written when all of it
// is on the disk, so that its line needs no care: one that is lost or torn means
// that these files are fetched again.
type journalHeader struct {
	Format    int      `json:"format"`
	MinReader int      `json:"min_reader"`
	Archive   string   `json:"archive"`
	Indexes   []string `json:"indexes"` // sha256 of each volume's
	Only      []string `json:"only,omitempty"`
	Owner     *Owner   `json:"owner,omitempty"`
	Places    []string `json:"places"` // prefix and directory by turns
}

type journalRange struct {
	From int `json:"from"`
	To   int `json:"to"` // the first that is not in it
}

const journalFormat = 1

// After how much the files are made durable and a range is written down.
const (
	flushBytes = 256 << 20
	flushFiles = 1024
	flushEvery = 2 * time.Second
)

// journal is the writing side. Its zero value writes nothing.
type journal struct {
	f        *fsx.File
	from, to int // what is complete and not written down yet
	files    int
	bytes    int64
	last     time.Time
}

// add notes that the files up to number are complete.
func (j *journal) add(number int, bytes int64) {
	j.to, j.files, j.bytes = number, j.files+1, j.bytes+bytes
}

func (j *journal) mayFlush(x *extraction) error {
	if j.bytes < flushBytes && j.files < flushFiles && time.Since(j.last) < flushEvery {
		return nil
	}
	return j.flush(x)
}

// flush makes what is complete durable, and writes it down.
func (j *journal) flush(x *extraction) error {
	if j.f == nil || j.from >= j.to {
		return nil
	}
	if err := x.sync(); err != nil {
		return err
	}
	b, err := json.Marshal(journalRange{j.from, j.to})
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("journal of the extraction: %w", err)
	}
	j.from, j.files, j.bytes, j.last = j.to, 0, 0, time.Now()
	return nil
}

// resume finds out what an earlier extraction left that can be kept, removes the
// rest, and opens the journal for this one.
func (x *extraction) resume() error {
	if x.o.Journal == "" {
		return nil
	}
	h := journalHeader{Format: journalFormat, MinReader: journalFormat, Archive: x.indexes[0].Header.Archive, Only: x.o.Only, Owner: x.o.Owner}
	for _, ix := range x.indexes {
		h.Indexes = append(h.Indexes, ix.SHA256)
	}
	for _, p := range x.places {
		h.Places = append(h.Places, p.prefix, p.dir)
	}
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(x.o.Journal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if complete, ok := parseJournal(old, head, x.files); ok {
		if err := x.keep(complete); err != nil {
			return err
		}
	} else {
		if err := x.clear(); err != nil {
			return err
		}
		if err := x.o.FS.WriteFileAtomic(x.o.Journal, append(head, '\n'), 0o600); err != nil {
			return err
		}
	}
	x.progress.last = time.Now()
	x.progress.f, err = x.o.FS.OpenFile(x.o.Journal, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil && len(old) > 0 && old[len(old)-1] != '\n' {
		_, err = x.progress.f.Write([]byte{'\n'}) // a torn line ends here
	}
	return err
}

// parseJournal reads a journal that begins with head, of an archive with so many
// files. A line that is none is passed over.
func parseJournal(b, head []byte, files int) (complete bitset, ok bool) {
	in := bufio.NewScanner(bytes.NewReader(b))
	in.Buffer(nil, max(bufio.MaxScanTokenSize, len(head)+1))
	if !in.Scan() || !bytes.Equal(in.Bytes(), head) {
		return nil, false
	}
	for in.Scan() {
		var r journalRange
		if json.Unmarshal(in.Bytes(), &r) != nil || r.From < 0 || r.To < r.From || r.To > files {
			continue
		}
		for i := r.From; i < r.To; i++ {
			complete.set(i)
		}
	}
	return complete, true
}

// clear empties every place.
func (x *extraction) clear() error {
	for _, p := range x.places {
		names, err := os.ReadDir(p.dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := p.root.RemoveAll(n.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep looks at every name that the archive has: a file that is complete by the
// journal, and has size and time still, is kept; all other files and links are
// removed, so that they can be made again.
func (x *extraction) keep(complete bitset) error {
	number := 0
	for _, ix := range x.indexes {
		for f, err := range ix.Frames() {
			if err != nil {
				return err
			}
			for _, p := range f.Entries {
				if p.Off != 0 {
					continue
				}
				e := p.entry()
				if err := checkEntry(e); err != nil {
					return ix.vol.corrupt("its index names %v", err)
				}
				if e.Type == TypeFile {
					number++
				}
				if x.wanted(e.Name) {
					if err := x.keepName(e, number-1, complete); err != nil {
						return fmt.Errorf("go on with the extraction: %w", err)
					}
				}
			}
		}
	}
	return nil
}

func (x *extraction) keepName(e Entry, number int, complete bitset) error {
	at, rel := x.at(e.Name)
	if rel == "." {
		return nil
	}
	st, err := at.root.Lstat(rel)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil
	case err != nil:
		return err
	case e.Type == TypeDir && st.IsDir():
		return at.root.Chmod(rel, 0o700) // it gets its own rights at the end
	case e.Type == TypeFile && complete.has(number) && st.Mode().IsRegular() && st.Size() == e.Size && sameTime(st.ModTime(), e.MTime):
		x.kept.set(number)
		x.report.Files++
		x.report.KeptFiles++
		x.report.Bytes += e.Size
		x.report.KeptBytes += e.Size
		x.done += e.Size
		at.bytes -= e.Size
		at.names--
		return nil
	}
	return at.root.RemoveAll(rel)
}

// sameTime compares a file's time with the archive's; filesystems keep
// nanoseconds, or whole seconds.
func sameTime(got, want time.Time) bool {
	return got.Equal(want) || got.Equal(want.Truncate(time.Second))
}

// isKept tells whether a frame need not be fetched: it has files, and all of them
// are kept. before is the number of files that began in earlier frames; after
// counts those of this one as well.
func (x *extraction) isKept(f IndexFrame, before int) (kept bool, after int) {
	if x.verify != nil {
		return !x.verify.chosen(), before
	}
	files, after := 0, before
	kept = true
	for _, p := range f.Entries {
		if p.Type != TypeFile {
			continue
		}
		files++
		if p.Off == 0 {
			after++
		}
		kept = kept && x.kept.has(after-1)
	}
	return kept && files > 0, after
}

// pass takes from the index of a frame that was not fetched what follows need.
func (x *extraction) pass(v VolumeSource, f IndexFrame) error {
	for _, p := range f.Entries {
		e := p.entry()
		switch e.Type {
		case TypeFile:
			if p.Off == 0 {
				x.number++
			}
			x.goesOn, x.sum = p.Off+p.Len < p.Size, nil
			x.name, x.off = e.Name, p.Off+p.Len
		default:
			if err := x.noFile(v, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// bitset is a set of small numbers.
type bitset []uint64

func (b *bitset) set(i int) {
	if n := i/64 + 1; n > len(*b) {
		*b = append(slices.Grow(*b, n-len(*b)), make([]uint64, n-len(*b))...)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitset) has(i int) bool {
	return i >= 0 && i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0
}
