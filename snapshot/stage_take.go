package snapshot

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrChanged is in the chain when a file changed while it was copied: whoever
// writes it was not held.
var ErrChanged = errors.New("the file changed while it was copied")

// prelinks remembers what was linked into one directory before the hold, eight
// bytes a file: a database of 8 TB has four million. A hash that meets another by
// chance cannot do harm: Open compares the inode.
type prelinks struct {
	marks  []uint64 // of name and inode
	sorted bool
	taken  []bool // by index of marks, once sorted
}

func (s *Stage) mark(name string, ino uint64) uint64 {
	type key struct {
		name string
		ino  uint64
	}
	return maphash.Comparable(s.seed, key{name, ino})
}

func (p *prelinks) find(m uint64) (int, bool) {
	if !p.sorted {
		slices.Sort(p.marks)
		p.sorted, p.taken = true, make([]bool, len(p.marks))
	}
	return slices.BinarySearch(p.marks, m)
}

// Prelink links a file that its database never writes again, while the replica
// still runs. It may be repeated. A file that has vanished is no error.
func (s *Stage) Prelink(root, rel string) error {
	if s.copyAll {
		return nil
	}
	r, src, dst, err := s.paths(root, rel)
	if err != nil {
		return err
	}
	err = s.linkInto(src, dst)
	if errors.Is(err, fs.ErrExist) {
		same, serr := sameFile(src, dst)
		if serr != nil || same {
			return ignoreNotExist(serr)
		}
		if err = s.fs.Remove(dst); err == nil { // its number was used again
			err = s.linkInto(src, dst)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return linkError(err, r.Path)
	}
	st, err := os.Lstat(dst)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.prelinked[filepath.Dir(dst)]
	if p == nil {
		p = &prelinks{}
		s.prelinked[filepath.Dir(dst)] = p
	}
	p.sorted = false
	p.marks = append(p.marks, s.mark(filepath.Base(dst), st.Sys().(*syscall.Stat_t).Ino))
	return nil
}

func sameFile(a, b string) (bool, error) {
	as, err := os.Lstat(a)
	if err != nil {
		return false, err
	}
	bs, err := os.Lstat(b)
	return err == nil && os.SameFile(as, bs), err
}

func (s *Stage) linkInto(src, dst string) error {
	err := s.fs.Link(src, dst)
	if errors.Is(err, fs.ErrNotExist) {
		if merr := s.fs.MkdirAll(filepath.Dir(dst), 0o700); merr != nil {
			return merr
		}
		err = s.fs.Link(src, dst)
	}
	return err
}

// Link takes an immutable file of the held replica: the link made before the
// hold where it is still the same file, a new one otherwise.
func (s *Stage) Link(ctx context.Context, root, rel string) error {
	if s.copyAll {
		return s.Copy(ctx, root, rel)
	}
	r, src, dst, err := s.paths(root, rel)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(src)
	if err != nil {
		return err
	}
	e, err := entryOf(r, rel, fi)
	if err == nil {
		err = wantType(e, TypeFile)
	}
	if err != nil {
		return err
	}
	kept := s.keep(dst, e.Inode)
	if !kept {
		err := s.linkInto(src, dst)
		if errors.Is(err, fs.ErrExist) {
			if err = s.fs.Remove(dst); err == nil {
				err = s.linkInto(src, dst)
			}
		}
		if err != nil {
			return linkError(err, r.Path)
		}
	}
	e.Treatment = Linked
	return s.add(e, func(n *StageStats) {
		n.Linked++
		n.LinkedBytes += e.Size
		if kept {
			n.PrelinkedKept++
		} else {
			n.LinkedLate++
		}
	})
}

// keep tells whether a link was made before the hold to this very inode, and
// counts it as taken.
func (s *Stage) keep(dst string, ino uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.prelinked[filepath.Dir(dst)]
	if p == nil {
		return false
	}
	i, ok := p.find(s.mark(filepath.Base(dst), ino))
	if ok {
		p.taken[i] = true
	}
	return ok
}

// Copy takes a file that is written in place or that nobody knows: a clone where
// the filesystem shares extents, a copy with its holes otherwise.
func (s *Stage) Copy(ctx context.Context, root, rel string) (err error) {
	r, src, dst, err := s.paths(root, rel)
	if err != nil {
		return err
	}
	in, err := os.OpenFile(src, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = hint.Add(err, "run eddy as the node's user")
		}
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	before, err := in.Stat()
	if err != nil {
		return err
	}
	e, err := entryOf(r, rel, before)
	if err == nil {
		err = wantType(e, TypeFile)
	}
	if err != nil {
		return err
	}
	cloned, n, err := s.fs.CloneOrCopyFrom(ctx, in, dst, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.fs.MkdirAll(filepath.Dir(dst), 0o700); err == nil {
			cloned, n, err = s.fs.CloneOrCopyFrom(ctx, in, dst, 0o600)
		}
	}
	if errors.Is(err, fs.ErrExist) { // linked before the hold
		if err = s.fs.Remove(dst); err == nil {
			cloned, n, err = s.fs.CloneOrCopyFrom(ctx, in, dst, 0o600)
		}
	}
	after, serr := in.Stat()
	if serr == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
		return fmt.Errorf("%s: %w", e.Name, ErrChanged)
	}
	if err = errors.Join(err, serr); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = hint.Add(err, "the filesystem of "+r.Path+" is full: make room, small files are copied there")
		}
		return err
	}
	e.Treatment = Copied
	if cloned {
		e.Treatment = Cloned
	}
	return s.add(e, func(c *StageStats) {
		if cloned {
			c.Cloned++
			c.ClonedBytes += e.Size
			return
		}
		c.Copied++
		c.CopiedBytes += e.Size
		c.CopyRead += n
	})
}

// Dir takes a directory's name and rights; "." is the root itself, which has a
// place in the archive only below a prefix.
func (s *Stage) Dir(root, rel string) error {
	r, src, dst, err := s.paths(root, rel)
	if err != nil {
		return err
	}
	if filepath.Clean(rel) == "." && r.Prefix == "" {
		return nil
	}
	fi, err := os.Lstat(src)
	if err != nil {
		return err
	}
	e, err := entryOf(r, rel, fi)
	if err == nil {
		err = wantType(e, TypeDir)
	}
	if err == nil {
		err = s.fs.MkdirAll(dst, 0o700)
	}
	if err != nil {
		return err
	}
	return s.add(e, func(n *StageStats) { n.Dirs++ })
}

// Symlink takes a symbolic link as it is.
func (s *Stage) Symlink(root, rel string) error {
	r, src, dst, err := s.paths(root, rel)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(src)
	if err != nil {
		return err
	}
	e, err := entryOf(r, rel, fi)
	if err == nil {
		err = wantType(e, TypeSymlink)
	}
	if err == nil {
		e.Link, err = os.Readlink(src)
	}
	if err == nil {
		err = s.fs.MkdirAll(filepath.Dir(dst), 0o700)
	}
	if err == nil {
		err = s.fs.Symlink(e.Link, dst)
	}
	if err != nil {
		return err
	}
	return s.add(e, func(n *StageStats) { n.Symlinks++ })
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

// paths finds a name of a root on this machine and in the stage. It refuses what
// leads out of the root and what belongs to eddy.
func (s *Stage) paths(root, rel string) (r Root, src, dst string, err error) {
	if r, err = s.root(root); err != nil {
		return r, "", "", err
	}
	if !filepath.IsLocal(rel) {
		return r, "", "", fmt.Errorf("stage: %q leads out of root %q", rel, root)
	}
	rel = filepath.Clean(rel)
	if first, _, _ := cutPath(rel); first == StageDir {
		return r, "", "", fmt.Errorf("stage: %q is eddy's own", rel)
	}
	return r, filepath.Join(r.Path, rel), filepath.Join(s.dir(r), rel), nil
}

func cutPath(rel string) (first, rest string, found bool) {
	for i := range len(rel) {
		if rel[i] == '/' {
			return rel[:i], rel[i+1:], true
		}
	}
	return rel, "", false
}

// entryOf makes the entry of a name from what lstat says of the original.
func entryOf(r Root, rel string, fi fs.FileInfo) (Entry, error) {
	st := fi.Sys().(*syscall.Stat_t)
	e := Entry{
		Name: path.Join(r.Prefix, filepath.ToSlash(rel)), Root: r.Name, Mode: st.Mode & 0o7777,
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
		return e, fmt.Errorf("%s is a socket, device or pipe", e.Name)
	}
	return e, nil
}

func wantType(e Entry, want Type) error {
	if e.Type != want {
		return fmt.Errorf("%s is a %s, not a %s", e.Name, e.Type, want)
	}
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
