package fsx

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FS is how eddy changes files. The zero value changes those of the machine.
// Reading is no effect: it stays with package os.
type FS struct {
	// Effects, where set, decides about every change before it is made. Nil costs
	// nothing that shows beside a system call.
	Effects Effects
}

// Effects sees every change. It may make it, by calling do once, refuse it with an
// error, or make it and return an error all the same, as a process that dies
// between a change and its answer. It may be called from many goroutines.
type Effects interface {
	Do(e Effect, do func() error) error
}

// Kind names what an effect does.
type Kind string

// The kinds of changes. A kind that syncs changes nothing but what a power cut
// may take back.
const (
	KindMkdir     Kind = "mkdir"
	KindRemove    Kind = "remove" // one name
	KindRemoveAll Kind = "remove-all"
	KindRename    Kind = "rename"
	KindLink      Kind = "link"
	KindSymlink   Kind = "symlink"
	KindCreate    Kind = "create" // or empty, where the file was there
	KindWrite     Kind = "write"
	KindTruncate  Kind = "truncate"
	KindCopy      Kind = "copy"    // whole file: a clone, or its bytes
	KindAttr      Kind = "attr"    // mode, owner or times
	KindSync      Kind = "sync"    // the content of a file
	KindSyncDir   Kind = "syncdir" // the names in a directory
	KindSyncFS    Kind = "syncfs"  // all of a filesystem
)

// Effect is one change that is about to be made.
type Effect struct {
	Kind Kind
	Path string // what is changed; of rename, link and copy the old name
	To   string // of rename, link, symlink and copy the new name
	Off  int64  // of write: where, -1 behind the last one; of truncate: the new size
	Len  int64  // of write
	// Half makes a part of the change, as a crash in the middle of it would leave.
	// It is nil where the kernel makes all or nothing, and is called instead of do.
	Half func() error
}

func (f FS) do(e Effect, do func() error) error {
	if f.Effects == nil {
		return do()
	}
	return f.Effects.Do(e, do)
}

// Mkdir is os.Mkdir.
func (f FS) Mkdir(dir string, perm fs.FileMode) error {
	return f.do(Effect{Kind: KindMkdir, Path: dir}, func() error { return os.Mkdir(dir, perm) })
}

// MkdirAll is os.MkdirAll, one effect for each directory that is missing.
func (f FS) MkdirAll(dir string, perm fs.FileMode) error {
	if st, err := os.Stat(dir); err == nil {
		if st.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := f.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	err := f.Mkdir(dir, perm)
	if err == nil {
		return nil
	}
	if st, serr := os.Lstat(dir); serr == nil && st.IsDir() {
		return nil // somebody else made it meanwhile
	}
	return err
}

// MkdirTemp is os.MkdirTemp.
func (f FS) MkdirTemp(dir, pattern string) (name string, err error) {
	return name, temp(dir, pattern, func(p string) error {
		name = p
		return f.Mkdir(p, 0o700)
	})
}

// temp makes something with a name that nobody has. The name is chosen here, so
// that an effect tells it.
func temp(dir, pattern string, create func(name string) error) (err error) {
	prefix, suffix, _ := strings.Cut(pattern, "*")
	for range 1000 {
		err = create(filepath.Join(dir, fmt.Sprintf("%s%010d%s", prefix, rand.Uint32(), suffix)))
		if !os.IsExist(err) {
			break
		}
	}
	return err
}

// Remove is os.Remove.
func (f FS) Remove(name string) error {
	return f.do(Effect{Kind: KindRemove, Path: name}, func() error { return os.Remove(name) })
}

// Unlink removes a name that is no directory.
func (f FS) Unlink(name string) error {
	return f.do(Effect{Kind: KindRemove, Path: name}, func() error { return pathError("unlink", name, unix.Unlink(name)) })
}

// Rmdir removes an empty directory.
func (f FS) Rmdir(name string) error {
	return f.do(Effect{Kind: KindRemove, Path: name}, func() error { return pathError("rmdir", name, unix.Rmdir(name)) })
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// RemoveAll is os.RemoveAll.
func (f FS) RemoveAll(name string) error {
	return f.do(Effect{Kind: KindRemoveAll, Path: name, Half: func() error { return removeHalf(name) }},
		func() error { return os.RemoveAll(name) })
}

// removeHalf removes the first half of what lies below dir.
func removeHalf(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	if len(names) == 1 && names[0].IsDir() {
		return removeHalf(filepath.Join(dir, names[0].Name()))
	}
	for _, n := range names[:len(names)/2] {
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Rename is os.Rename.
func (f FS) Rename(from, to string) error {
	return f.do(Effect{Kind: KindRename, Path: from, To: to}, func() error { return os.Rename(from, to) })
}

// Link is os.Link.
func (f FS) Link(from, to string) error {
	return f.do(Effect{Kind: KindLink, Path: from, To: to}, func() error { return os.Link(from, to) })
}

// Symlink is os.Symlink.
func (f FS) Symlink(target, name string) error {
	return f.do(Effect{Kind: KindSymlink, Path: target, To: name}, func() error { return os.Symlink(target, name) })
}

// Chown is os.Chown.
func (f FS) Chown(name string, uid, gid int) error {
	return f.do(Effect{Kind: KindAttr, Path: name}, func() error { return os.Chown(name, uid, gid) })
}

// SyncDir makes renames, creations and removals in dir durable.
func (f FS) SyncDir(dir string) error {
	return f.do(Effect{Kind: KindSyncDir, Path: dir}, func() error { return syncDir(dir) })
}

// SyncFS flushes the whole filesystem that holds path (syncfs(2)). It is what
// makes a stage of many links durable with one call.
func (f FS) SyncFS(path string) error {
	return f.do(Effect{Kind: KindSyncFS, Path: path}, func() error { return syncFS(path) })
}

// OpenFile is os.OpenFile for a file that is to be written.
func (f FS) OpenFile(name string, flag int, perm fs.FileMode) (*File, error) {
	return f.open(name, flag, func() (*os.File, error) { return os.OpenFile(name, flag, perm) })
}

func (f FS) open(name string, flag int, open func() (*os.File, error)) (*File, error) {
	out := &File{fs: f, name: name}
	do := func() (err error) {
		out.f, err = open()
		return err
	}
	var err error
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		err = f.do(Effect{Kind: KindCreate, Path: name}, do)
	} else {
		err = do()
	}
	if err != nil {
		if out.f != nil {
			out.f.Close()
		}
		return nil, err
	}
	return out, nil
}

// CreateTemp is os.CreateTemp.
func (f FS) CreateTemp(dir, pattern string) (out *File, err error) {
	return out, temp(dir, pattern, func(p string) (err error) {
		out, err = f.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
}

// File is a file that is being written. What is written to it at once is one
// effect.
type File struct {
	f    *os.File
	fs   FS
	name string
}

// OS is the open file, to be read and asked.
func (f *File) OS() *os.File { return f.f }

// Name is the file's name, as it was opened.
func (f *File) Name() string { return f.name }

// Close is os.File's.
func (f *File) Close() error { return f.f.Close() }

// Write is os.File's.
func (f *File) Write(b []byte) (n int, err error) {
	return f.write(b, -1, f.f.Write)
}

// WriteAt is os.File's.
func (f *File) WriteAt(b []byte, off int64) (n int, err error) {
	return f.write(b, off, func(b []byte) (int, error) { return f.f.WriteAt(b, off) })
}

func (f *File) write(b []byte, off int64, write func([]byte) (int, error)) (n int, err error) {
	e := Effect{Kind: KindWrite, Path: f.name, Off: off, Len: int64(len(b)), Half: func() error {
		_, err := write(b[:len(b)/2])
		return err
	}}
	err = f.fs.do(e, func() error {
		n, err = write(b)
		return err
	})
	return n, err
}

// Truncate is os.File's.
func (f *File) Truncate(size int64) error {
	return f.fs.do(Effect{Kind: KindTruncate, Path: f.name, Off: size}, func() error { return f.f.Truncate(size) })
}

// Chmod is os.File's.
func (f *File) Chmod(mode fs.FileMode) error {
	return f.fs.do(Effect{Kind: KindAttr, Path: f.name}, func() error { return f.f.Chmod(mode) })
}

// Chown is os.File's.
func (f *File) Chown(uid, gid int) error {
	return f.fs.do(Effect{Kind: KindAttr, Path: f.name}, func() error { return f.f.Chown(uid, gid) })
}

// Sync makes the file's content durable, not its name.
func (f *File) Sync() error {
	return f.fs.do(Effect{Kind: KindSync, Path: f.name}, f.f.Sync)
}

// SyncData is Sync without times and the like (fdatasync(2)).
func (f *File) SyncData() error {
	return f.fs.do(Effect{Kind: KindSync, Path: f.name}, func() error {
		if err := unix.Fdatasync(int(f.f.Fd())); err != nil {
			return &fs.PathError{Op: "fdatasync", Path: f.name, Err: err}
		}
		return nil
	})
}

// Root is an os.Root of which the changes are effects.
type Root struct {
	r  *os.Root
	fs FS
}

// OpenRoot is os.OpenRoot.
func (f FS) OpenRoot(dir string) (*Root, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Root{r: r, fs: f}, nil
}

func (r *Root) path(name string) string { return filepath.Join(r.r.Name(), name) }

// Close is os.Root's.
func (r *Root) Close() error { return r.r.Close() }

// Lstat is os.Root's.
func (r *Root) Lstat(name string) (fs.FileInfo, error) { return r.r.Lstat(name) }

// Mkdir is os.Root's.
func (r *Root) Mkdir(name string, perm fs.FileMode) error {
	return r.fs.do(Effect{Kind: KindMkdir, Path: r.path(name)}, func() error { return r.r.Mkdir(name, perm) })
}

// MkdirAll is os.Root's, one effect for each directory that is missing.
func (r *Root) MkdirAll(name string, perm fs.FileMode) error {
	if st, err := r.r.Lstat(name); err == nil && st.IsDir() {
		return nil
	}
	if parent := filepath.Dir(name); parent != name && parent != "." {
		if err := r.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	return r.Mkdir(name, perm)
}

// OpenFile is os.Root's, for a file that is to be written.
func (r *Root) OpenFile(name string, flag int, perm fs.FileMode) (*File, error) {
	return r.fs.open(r.path(name), flag, func() (*os.File, error) { return r.r.OpenFile(name, flag, perm) })
}

// Symlink is os.Root's.
func (r *Root) Symlink(target, name string) error {
	return r.fs.do(Effect{Kind: KindSymlink, Path: target, To: r.path(name)}, func() error { return r.r.Symlink(target, name) })
}

// RemoveAll is os.Root's.
func (r *Root) RemoveAll(name string) error {
	return r.fs.do(Effect{Kind: KindRemoveAll, Path: r.path(name), Half: func() error { return removeHalf(r.path(name)) }},
		func() error { return r.r.RemoveAll(name) })
}

// Chmod is os.Root's.
func (r *Root) Chmod(name string, mode fs.FileMode) error {
	return r.fs.do(Effect{Kind: KindAttr, Path: r.path(name)}, func() error { return r.r.Chmod(name, mode) })
}

// Chown is os.Root's.
func (r *Root) Chown(name string, uid, gid int) error {
	return r.fs.do(Effect{Kind: KindAttr, Path: r.path(name)}, func() error { return r.r.Chown(name, uid, gid) })
}

// Lchown is os.Root's.
func (r *Root) Lchown(name string, uid, gid int) error {
	return r.fs.do(Effect{Kind: KindAttr, Path: r.path(name)}, func() error { return r.r.Lchown(name, uid, gid) })
}

// Chtimes is os.Root's.
func (r *Root) Chtimes(name string, atime, mtime time.Time) error {
	return r.fs.do(Effect{Kind: KindAttr, Path: r.path(name)}, func() error { return r.r.Chtimes(name, atime, mtime) })
}
