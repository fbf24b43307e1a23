//go:build crash

package crash

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// disk remembers what a power cut may take back: changes of names until their
// directory is synced, of content until the file is, both until the filesystem is.
type disk struct {
	on      bool
	trash   string // keeps what was removed; on the same filesystem
	n       int
	pending []*undo
}

// undo is a change that is not durable.
type undo struct {
	names []string // directory entries that are lost with it
	file  os.FileInfo
	fd    *os.File // of a content
	take  func() error
}

// change makes a change and remembers how to take it back.
func (d *disk) change(e fsx.Effect, f func() error) error {
	if !d.on {
		return f()
	}
	switch e.Kind {
	case fsx.KindSync:
		err := f()
		if st, serr := os.Stat(e.Path); err == nil && serr == nil {
			d.drop(func(u *undo) bool { return u.file != nil && os.SameFile(u.file, st) })
		}
		return err
	case fsx.KindSyncDir:
		err := f()
		if err == nil {
			d.drop(func(u *undo) bool {
				if u.file != nil {
					return false
				}
				u.names = slices.DeleteFunc(u.names, func(n string) bool { return filepath.Dir(n) == filepath.Clean(e.Path) })
				return len(u.names) == 0
			})
		}
		return err
	case fsx.KindSyncFS:
		err := f()
		if err == nil {
			d.drop(func(*undo) bool { return true })
		}
		return err
	case fsx.KindAttr:
		return f()
	}
	u := d.prepare(e)
	err := f()
	switch {
	case u == nil:
	case err != nil && u.fd != nil:
		u.fd.Close()
	case err == nil:
		d.pending = append(d.pending, u)
	}
	if err == nil && e.Kind == fsx.KindCopy {
		if u := d.content(e.To, nil); u != nil {
			d.pending = append(d.pending, u)
		}
	}
	return err
}

func (d *disk) drop(durable func(*undo) bool) {
	d.pending = slices.DeleteFunc(d.pending, func(u *undo) bool {
		yes := durable(u)
		if yes && u.fd != nil {
			u.fd.Close()
		}
		return yes
	})
}

// place is a new name in the trash.
func (d *disk) place() string {
	d.n++
	return filepath.Join(d.trash, strconv.Itoa(d.n))
}

// prepare looks at what a change is about to destroy.
func (d *disk) prepare(e fsx.Effect) *undo {
	was, lerr := os.Lstat(e.Path)
	switch e.Kind {
	case fsx.KindMkdir:
		return &undo{names: []string{e.Path}, take: func() error { return os.RemoveAll(e.Path) }}
	case fsx.KindLink, fsx.KindSymlink, fsx.KindCopy:
		return &undo{names: []string{e.To}, take: func() error { return os.RemoveAll(e.To) }}
	case fsx.KindCreate:
		if lerr == nil {
			b, _ := os.ReadFile(e.Path)
			return d.content(e.Path, b)
		}
		return &undo{names: []string{e.Path}, take: func() error { return os.RemoveAll(e.Path) }}
	case fsx.KindWrite, fsx.KindTruncate:
		b, _ := os.ReadFile(e.Path)
		return d.content(e.Path, b)
	case fsx.KindRemove, fsx.KindRemoveAll:
		if lerr != nil {
			return nil
		}
		kept := d.place()
		linkTree(e.Path, kept)
		return &undo{names: []string{e.Path}, take: func() error {
			if err := os.RemoveAll(e.Path); err != nil {
				return err
			}
			return os.Rename(kept, e.Path)
		}}
	case fsx.KindRename:
		kept := ""
		if st, err := os.Lstat(e.To); err == nil && !(was != nil && os.SameFile(st, was)) {
			kept = d.place()
			linkTree(e.To, kept)
		}
		return &undo{names: []string{e.Path, e.To}, take: func() error {
			err := os.Rename(e.To, e.Path)
			if err == nil && kept != "" {
				err = os.Rename(kept, e.To)
			}
			return err
		}}
	}
	panic("a kind of effect that the disk does not know: " + e.Kind)
}

// content remembers what a file holds. The file is found again whatever its name
// is by then.
func (d *disk) content(path string, old []byte) *undo {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		panic(err)
	}
	return &undo{file: st, fd: f, take: func() error {
		if err := f.Truncate(int64(len(old))); err != nil {
			return err
		}
		_, err := f.WriteAt(old, 0)
		return err
	}}
}

// linkTree copies a tree by links.
func linkTree(from, to string) {
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.Mkdir(dst, 0o700)
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err == nil {
				err = os.Symlink(target, dst)
			}
			return err
		default:
			return os.Link(p, dst)
		}
	})
	if err != nil {
		panic(err)
	}
}

// cut takes the power away: of the changes that are not durable those are lost that
// lose says, and what came after them and needs them.
func (d *disk) cut(lose func() bool) error {
	var lost []*undo
	for _, u := range d.pending {
		if lose() || slices.ContainsFunc(lost, func(l *undo) bool { return u.needs(l) }) {
			lost = append(lost, u)
		}
	}
	for _, u := range slices.Backward(lost) {
		if err := u.take(); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	d.drop(func(*undo) bool { return true })
	return nil
}

// needs tells whether u cannot have happened without l.
func (u *undo) needs(l *undo) bool {
	if l.file != nil {
		return u.file != nil && os.SameFile(u.file, l.file)
	}
	for _, a := range u.names {
		for _, b := range l.names {
			if a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/") {
				return true
			}
		}
	}
	return false
}
