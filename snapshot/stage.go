package snapshot

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// StageDir is the directory in every root in which stages lie. Nothing in it is
// ever staged.
const StageDir = ".eddy"

const listingName = "listing.ndjson"

// Stage is the directory, one on the mount of each root, in which the files of a
// held replica are gathered and from which the archive is made. It is filled by
// one capture, from many goroutines where that helps, then sealed; a sealed stage
// is only read.
type Stage struct {
	id    string
	roots []Root

	mu      sync.Mutex
	prelink map[string]identity // staged path -> what was linked while the replica ran
	entries []Entry
	left    []LeftOut
	stats   StageStats
	copyAll bool
	digest  string // "" until sealed
}

// StageStats counts what a capture did, files and bytes by treatment.
type StageStats struct {
	Dirs, Symlinks            int64
	Linked, Cloned, Copied    int64
	LinkedBytes, ClonedBytes  int64
	CopiedBytes               int64
	PrelinkedKept, LinkedLate int64 // of Linked: made before the hold, and during it
}

type identity struct {
	ino, dev uint64
	size     int64
	mtime    int64
}

func identityOf(st *syscall.Stat_t) identity {
	return identity{ino: st.Ino, dev: st.Dev, size: st.Size, mtime: st.Mtim.Nano()}
}

// CreateStage makes an empty stage: ROOT/.eddy/ID in every root. It refuses a
// root whose .eddy is not on the root's own mount, because links fail there.
func CreateStage(id string, roots []Root) (*Stage, error) {
	s := &Stage{id: id, roots: roots, prelink: map[string]identity{}}
	for _, r := range roots {
		dir := filepath.Join(r.Path, StageDir)
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, hint.Add(fmt.Errorf("make the stage: %w", err), "run eddy as the node's user: it needs to write to "+r.Path)
		}
		if err := sameMount(r.Path, dir); err != nil {
			return nil, err
		}
		if err := os.Mkdir(s.dir(r), 0o700); err != nil {
			return nil, errors.Join(hint.Add(fmt.Errorf("make the stage: %w", err), "run eddy as the node's user: it needs to write to "+dir), s.Remove())
		}
	}
	return s, nil
}

func sameMount(root, dir string) error {
	a, err := fsx.MountID(root)
	if err != nil {
		return err
	}
	b, err := fsx.MountID(dir)
	if err != nil {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if a != b || !st.IsDir() {
		return hint.Add(fmt.Errorf("the stage %s is on another mount than %s, so nothing can be linked into it", dir, root),
			"let "+dir+" be a plain directory on the data's own mount")
	}
	return nil
}

func (s *Stage) dir(r Root) string { return filepath.Join(r.Path, StageDir, s.id) }

func (s *Stage) root(name string) (Root, error) {
	i := slices.IndexFunc(s.roots, func(r Root) bool { return r.Name == name })
	if i < 0 {
		return Root{}, fmt.Errorf("stage: no root %q", name)
	}
	return s.roots[i], nil
}

// ID is the backup's id, and the name of the stage's directories.
func (s *Stage) ID() string { return s.id }

// Roots are the roots of the stage.
func (s *Stage) Roots() []Root { return s.roots }

// CopyAll makes the stage copy, or clone, what it is asked to link. It is for
// who accepts a long hold where links cannot be made.
func (s *Stage) CopyAll() { s.copyAll = true }

// ProbeLinks links one file of each root into the stage and removes the link
// again: the right to link (protected_hardlinks) and the mount are tried, not
// guessed, before anything is stopped.
func (s *Stage) ProbeLinks() error {
	for _, r := range s.roots {
		src, err := anyFile(r.Path)
		if err != nil {
			return err
		}
		if src == "" {
			continue
		}
		dst := filepath.Join(s.dir(r), ".probe")
		if err := os.Link(src, dst); err != nil {
			advice := "stage and data must lie on one mount: let " + filepath.Join(r.Path, StageDir) + " be a plain directory"
			if errors.Is(err, fs.ErrPermission) {
				advice = "run eddy as the user who owns the files: only he may link them"
			}
			return hint.Add(fmt.Errorf("files of %s cannot be linked: %w", r.Path, err), advice)
		}
		if err := os.Remove(dst); err != nil {
			return err
		}
	}
	return nil
}

var errFound = errors.New("found")

// anyFile finds a regular file below dir, "" where there is none.
func anyFile(dir string) (found string, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // the node removed it meanwhile
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == StageDir:
			return fs.SkipDir
		case d.Type().IsRegular():
			found = p
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	if err != nil {
		return "", hint.Add(fmt.Errorf("look for files: %w", err), "run eddy as the node's user")
	}
	return found, nil
}

// Prelink links a file that its database never writes again, while the replica
// still runs. A file that has vanished is no error.
func (s *Stage) Prelink(root, rel string) error {
	if s.copyAll {
		return nil
	}
	r, err := s.root(root)
	if err != nil {
		return err
	}
	src, dst := filepath.Join(r.Path, rel), filepath.Join(s.dir(r), rel)
	err = linkInto(src, dst)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := os.Lstat(dst)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prelink[dst] = identityOf(st.Sys().(*syscall.Stat_t))
	return nil
}

func linkInto(src, dst string) error {
	err := os.Link(src, dst)
	if errors.Is(err, fs.ErrNotExist) {
		if merr := os.MkdirAll(filepath.Dir(dst), 0o700); merr != nil {
			return merr
		}
		err = os.Link(src, dst)
	}
	return err
}

// Link takes an immutable file of the held replica: the link made before the
// hold where it is still the same file, a new one otherwise.
func (s *Stage) Link(root, rel string) error {
	if s.copyAll {
		return s.Copy(root, rel)
	}
	r, e, st, err := s.lstat(root, rel)
	if err != nil {
		return err
	}
	dst := filepath.Join(s.dir(r), rel)
	s.mu.Lock()
	old, ok := s.prelink[dst]
	delete(s.prelink, dst)
	s.mu.Unlock()
	kept := ok && old == identityOf(st)
	if !kept {
		if ok {
			if err := os.Remove(dst); err != nil {
				return err
			}
		}
		if err := linkInto(filepath.Join(r.Path, rel), dst); err != nil {
			return err
		}
	}
	e.Treatment = Linked
	s.add(e, func(n *StageStats) {
		n.Linked++
		n.LinkedBytes += e.Size
		if kept {
			n.PrelinkedKept++
		} else {
			n.LinkedLate++
		}
	})
	return nil
}

// Copy takes a file that is written in place or that nobody knows: a clone where
// the filesystem shares extents, a copy with its holes otherwise.
func (s *Stage) Copy(root, rel string) error {
	r, e, _, err := s.lstat(root, rel)
	if err != nil {
		return err
	}
	dst := filepath.Join(s.dir(r), rel)
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	cloned, _, err := fsx.CloneOrCopy(filepath.Join(r.Path, rel), dst, 0o600)
	if err != nil {
		return err
	}
	e.Treatment = Copied
	if cloned {
		e.Treatment = Cloned
	}
	s.add(e, func(n *StageStats) {
		if cloned {
			n.Cloned++
			n.ClonedBytes += e.Size
			return
		}
		n.Copied++
		n.CopiedBytes += e.Size
	})
	return nil
}

// Dir takes a directory's name and rights; "." is the root itself, which has a
// place in the archive only below a prefix.
func (s *Stage) Dir(root, rel string) error {
	r, e, _, err := s.lstat(root, rel)
	if err != nil || e.Name == "" {
		return err
	}
	if rel == "." && r.Prefix == "" {
		return nil
	}
	s.add(e, func(n *StageStats) { n.Dirs++ })
	return nil
}

// Symlink takes a symbolic link as it is.
func (s *Stage) Symlink(root, rel string) error {
	r, e, _, err := s.lstat(root, rel)
	if err != nil {
		return err
	}
	if e.Link, err = os.Readlink(filepath.Join(r.Path, rel)); err != nil {
		return err
	}
	s.add(e, func(n *StageStats) { n.Symlinks++ })
	return nil
}

// LeaveOut notes what was seen and not taken.
func (s *Stage) LeaveOut(root, rel, reason string) error {
	r, err := s.root(root)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, LeftOut{Name: path.Join(r.Prefix, filepath.ToSlash(rel)), Reason: reason})
	return nil
}

func (s *Stage) add(e Entry, count func(*StageStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, e)
	count(&s.stats)
}

// lstat makes the entry of a name from the original, at this moment.
func (s *Stage) lstat(root, rel string) (Root, Entry, *syscall.Stat_t, error) {
	r, err := s.root(root)
	if err != nil {
		return r, Entry{}, nil, err
	}
	fi, err := os.Lstat(filepath.Join(r.Path, rel))
	if err != nil {
		return r, Entry{}, nil, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	e := Entry{
		Name: path.Join(r.Prefix, filepath.ToSlash(rel)), Root: root, Mode: st.Mode & 0o7777,
		MTime: time.Unix(st.Mtim.Unix()), UID: int(st.Uid), GID: int(st.Gid), Inode: st.Ino,
	}
	switch {
	case fi.Mode().IsRegular():
		e.Type, e.Size = TypeFile, st.Size
		e.Sparse = st.Blocks*512 < st.Size
	case fi.IsDir():
		e.Type = TypeDir
	case fi.Mode()&fs.ModeSymlink != 0:
		e.Type = TypeSymlink
	default:
		return r, e, nil, fmt.Errorf("%s is a %s", e.Name, fi.Mode().Type())
	}
	return r, e, st, nil
}

// Seal makes the stage durable and fixes its listing. It is called after the
// replica was started again, because a sync in the hold would cost held time.
func (s *Stage) Seal(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for dst := range s.prelink { // linked before the hold, gone from the replica since
		if err := os.Remove(dst); err != nil {
			return err
		}
	}
	s.prelink = nil
	slices.SortFunc(s.entries, archiveOrder)
	h := sha256.New()
	f, err := os.OpenFile(s.listing(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	for _, e := range s.entries {
		line, err := json.Marshal(listed(e))
		if err != nil {
			return err
		}
		line = append(line, '\n')
		h.Write(line)
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range s.roots {
		if err := fsx.SyncFS(s.dir(r)); err != nil {
			return err
		}
	}
	s.entries = nil
	s.digest = hex.EncodeToString(h.Sum(nil))
	return nil
}

func (s *Stage) listing() string {
	return filepath.Join(s.roots[0].Path, StageDir, s.id, listingName)
}

// Digest is the sha256 of a sealed stage's listing, in hex.
func (s *Stage) Digest() string { return s.digest }

// Stats tells what the capture did.
func (s *Stage) Stats() StageStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// LeftOut lists what was seen and not taken.
func (s *Stage) LeftOut() []LeftOut {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// maxListingLine bounds a line of the listing: a path of 4096 bytes in base64.
const maxListingLine = 16 << 10

// Entries yields the names of a sealed stage in archive order: directories,
// parents first; then linked files by root and path, digits compared as numbers;
// then all others; CURRENT files last.
func (s *Stage) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if s.digest == "" {
			yield(Entry{}, errors.New("stage: not sealed"))
			return
		}
		f, err := os.Open(s.listing())
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer f.Close()
		sc := bufio.NewScanner(f)
		sc.Buffer(make([]byte, 0, 4096), maxListingLine)
		for sc.Scan() {
			e, err := parseListed(sc.Bytes())
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err := sc.Err(); err != nil {
			yield(Entry{}, err)
		}
	}
}

// Path is where a staged file or directory lies on this machine.
func (s *Stage) Path(e Entry) (string, error) {
	r, err := s.root(e.Root)
	if err != nil {
		return "", err
	}
	rel := e.Name
	if r.Prefix != "" {
		if rel, err = filepath.Rel(r.Prefix, e.Name); err != nil {
			return "", err
		}
	}
	return filepath.Join(s.dir(r), rel), nil
}

// Open opens a staged file and refuses one that is not what was staged.
func (s *Stage) Open(e Entry) (*os.File, error) {
	p, err := s.Path(e)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() != e.Size ||
		(e.Treatment == Linked && st.Sys().(*syscall.Stat_t).Ino != e.Inode)) {
		err = fmt.Errorf("%s changed in the stage: it has %d bytes, %d were staged", e.Name, st.Size(), e.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Remove deletes the stage. One that is gone is no error.
func (s *Stage) Remove() error {
	var errs []error
	for _, r := range s.roots {
		errs = append(errs, os.RemoveAll(s.dir(r)))
	}
	return errors.Join(errs...)
}

// SweepStages deletes all stages of the roots but the one with id keep. Only
// directories that look like a backup's id are touched: .eddy holds other things
// as well.
func SweepStages(roots []Root, keep string) error {
	var errs []error
	for _, r := range roots {
		names, err := os.ReadDir(filepath.Join(r.Path, StageDir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if n.IsDir() && n.Name() != keep && looksLikeID(n.Name()) {
				errs = append(errs, os.RemoveAll(filepath.Join(r.Path, StageDir, n.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// looksLikeID knows a backup's id by its time: 20261120T235500Z-...
func looksLikeID(s string) bool {
	if len(s) < 17 || s[16] != '-' {
		return false
	}
	_, err := time.Parse("20060102T150405Z", s[:16])
	return err == nil
}

// listedEntry is an entry in the listing. Names are bytes: one that is no UTF-8
// stands in base64, because JSON would replace what it cannot hold.
type listedEntry struct {
	Entry
	NameB64 []byte `json:"name_b64,omitempty"`
	LinkB64 []byte `json:"link_b64,omitempty"`
}

func listed(e Entry) listedEntry {
	l := listedEntry{Entry: e}
	if !utf8.ValidString(e.Name) {
		l.Name, l.NameB64 = "", []byte(e.Name)
	}
	if !utf8.ValidString(e.Link) {
		l.Link, l.LinkB64 = "", []byte(e.Link)
	}
	return l
}

func parseListed(line []byte) (Entry, error) {
	var l listedEntry
	if err := json.Unmarshal(line, &l); err != nil {
		return Entry{}, fmt.Errorf("stage listing: %w", err)
	}
	if l.NameB64 != nil {
		l.Name = string(l.NameB64)
	}
	if l.LinkB64 != nil {
		l.Link = string(l.LinkB64)
	}
	return l.Entry, nil
}

func archiveOrder(a, b Entry) int {
	return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(a.Root, b.Root), comparePaths(a.Name, b.Name))
}

func class(e Entry) int {
	switch {
	case e.Type == TypeDir:
		return 0
	case e.Treatment == Linked:
		return 1
	case path.Base(e.Name) == "CURRENT":
		return 3
	default:
		return 2
	}
}

// comparePaths compares byte by byte, but "/" comes before everything, so that a
// directory's content follows it, and runs of digits are compared as numbers.
func comparePaths(a, b string) int {
	for a != "" && b != "" {
		if isDigit(a[0]) && isDigit(b[0]) {
			na, nb := digits(a), digits(b)
			va, vb := trimZeros(na), trimZeros(nb)
			if c := cmp.Or(cmp.Compare(len(va), len(vb)), cmp.Compare(va, vb), cmp.Compare(len(na), len(nb))); c != 0 {
				return c
			}
			a, b = a[len(na):], b[len(nb):]
			continue
		}
		if a[0] != b[0] {
			if a[0] == '/' {
				return -1
			}
			if b[0] == '/' {
				return 1
			}
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func digits(s string) string {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return s[:n]
}

func trimZeros(s string) string {
	return string(bytes.TrimLeft([]byte(s), "0"))
}
