package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// place is where a part of the names goes.
type place struct {
	prefix, dir  string
	root         *fsx.Root
	bytes, names int64 // that go there
}

func (x *extraction) open() error {
	for _, p := range append(slices.Clone(x.o.Places), Place{Dir: x.o.Dir}) {
		root, err := x.o.FS.OpenRoot(p.Dir)
		if err != nil {
			return err
		}
		x.places = append(x.places, &place{prefix: p.Prefix, dir: p.Dir, root: root})
	}
	slices.SortStableFunc(x.places, func(a, b *place) int { return len(b.prefix) - len(a.prefix) })
	return nil
}

func (x *extraction) close() error {
	var errs []error
	for _, p := range x.places {
		errs = append(errs, p.root.Close())
	}
	if x.progress.f != nil {
		errs = append(errs, x.progress.f.Close())
	}
	return errors.Join(errs...)
}

// at says where a name goes, and what it is called there: "." where it is a
// place itself.
func (x *extraction) at(name string) (*place, string) {
	for _, p := range x.places {
		if p.prefix == "" {
			return p, name
		}
		if name == p.prefix {
			return p, "."
		}
		if rel, ok := strings.CutPrefix(name, p.prefix+"/"); ok {
			return p, rel
		}
	}
	panic("snapshot: the place of all other names is missing")
}

func deviceOf(dir string) (uint64, error) {
	fi, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	return fi.Sys().(*syscall.Stat_t).Dev, nil
}

func (x *extraction) mkdir(v VolumeSource, name string) error {
	p, rel := x.at(name)
	if rel == "." {
		return nil
	}
	err := p.root.Mkdir(rel, 0o700)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(rel) != "." {
		if err := p.root.MkdirAll(path.Dir(rel), 0o700); err != nil {
			return x.escaped(v, name, err)
		}
		err = p.root.Mkdir(rel, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		if st, serr := p.root.Lstat(rel); serr == nil && st.IsDir() {
			return nil // made for a file that stood in the archive before it
		}
		return v.corrupt("it holds the name %q twice", name)
	}
	return x.escaped(v, name, err)
}

// escaped tells an archive that tries to leave the target from a disk's error.
func (x *extraction) escaped(v VolumeSource, name string, err error) error {
	if err == nil {
		return nil
	}
	if strings.Contains(err.Error(), "escapes") {
		return v.corrupt("the name %q leads out of the target", name)
	}
	return err
}

func (x *extraction) create(v VolumeSource, e Entry) (err error) {
	p, rel := x.at(e.Name)
	open := func() (*fsx.File, error) { return p.root.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) }
	x.file, err = open()
	if errors.Is(err, fs.ErrNotExist) {
		if err := p.root.MkdirAll(path.Dir(rel), 0o700); err != nil {
			return x.escaped(v, e.Name, err)
		}
		x.file, err = open()
	}
	if errors.Is(err, fs.ErrExist) {
		return v.corrupt("it holds the name %q twice", e.Name)
	}
	if err != nil {
		x.file = nil
		return x.escaped(v, e.Name, err)
	}
	return nil
}

// holeUnit is the run of zeros, aligned, that becomes a hole in a sparse file.
const holeUnit = 4096

func (x *extraction) put(b []byte, off int64, sparse bool) error {
	if !sparse {
		_, err := x.file.WriteAt(b, off)
		return err
	}
	for len(b) > 0 {
		n := min(holeUnit, len(b))
		if !allZero(b[:n]) {
			if _, err := x.file.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (x *extraction) endFile(e Entry) error {
	f := x.file
	x.file = nil
	var err error
	if e.Sparse {
		err = f.Truncate(e.Size)
	}
	if err == nil {
		err = x.own(f.Chown, e)
	}
	if err == nil {
		// The set-id bits have no place on data, and are never restored.
		err = f.Chmod(fs.FileMode(e.Mode & 0o777))
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		p, rel := x.at(e.Name)
		err = p.root.Chtimes(rel, time.Now(), e.MTime)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	return nil
}

// endPick ends a file of which a part may be missing.
func (x *extraction) endPick(e Entry) error {
	if e.Sparse || x.upTo < e.Size {
		if err := x.file.Truncate(e.Size); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", e.Name, err), x.closeFile())
		}
	}
	return x.closeFile()
}

func (x *extraction) own(chown func(uid, gid int) error, e Entry) error {
	o := Owner{e.UID, e.GID}
	if x.o.Owner != nil {
		o = *x.o.Owner
	} else if os.Geteuid() != 0 {
		return nil // only root can give files away
	}
	return chown(o.UID, o.GID)
}

func (x *extraction) closeFile() error {
	if x.file == nil {
		return nil
	}
	err := x.file.Close()
	x.file = nil
	return err
}

// finish makes the links, then gives the directories their rights, owners and
// times, deepest first, and makes all of it durable.
func (x *extraction) finish() error {
	for _, e := range x.links {
		p, rel := x.at(e.Name)
		err := p.root.Symlink(e.Link, rel)
		if errors.Is(err, fs.ErrNotExist) {
			if err = p.root.MkdirAll(path.Dir(rel), 0o700); err == nil {
				err = p.root.Symlink(e.Link, rel)
			}
		}
		if err == nil {
			err = x.own(func(uid, gid int) error { return p.root.Lchown(rel, uid, gid) }, e)
		}
		if err != nil {
			return fmt.Errorf("link %s: %w", e.Name, err)
		}
	}
	for i := len(x.dirs) - 1; i >= 0; i-- {
		e := x.dirs[i]
		p, rel := x.at(e.Name)
		if rel == "." {
			continue // a place is not ours to change
		}
		err := x.own(func(uid, gid int) error { return p.root.Chown(rel, uid, gid) }, e)
		if err == nil {
			err = p.root.Chmod(rel, fs.FileMode(e.Mode&0o777))
		}
		if err == nil {
			err = p.root.Chtimes(rel, time.Now(), e.MTime)
		}
		if err != nil {
			return fmt.Errorf("directory %s: %w", e.Name, err)
		}
	}
	return x.sync()
}

// sync makes all that was written durable, by one call for each filesystem.
func (x *extraction) sync() error {
	seen := map[uint64]bool{}
	for _, p := range x.places {
		dev, err := deviceOf(p.dir)
		if err != nil {
			return err
		}
		if seen[dev] {
			continue
		}
		seen[dev] = true
		if err := x.o.FS.SyncFS(p.dir); err != nil {
			return err
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for len(b) >= len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
