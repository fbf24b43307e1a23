// Package fsx is what eddy needs from a Linux filesystem beyond package os:
// atomic files, locks that die with the process, hard links, clones and sparse
// copies, free space, mounts and the boot id.
//
// It is a leaf under every other package and holds no policy: whether a file may
// be linked is decided by those who know the database that wrote it. Nothing in
// here falls back from one method to another unless its name says so, because a
// silent fall-back from a link to a copy is how a root disk fills up.
package fsx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// WriteFileAtomic replaces path with data so that after a crash either the old
// or the whole new content is there: temporary name in the same directory, fsync
// of the file, rename, fsync of the directory.
func WriteFileAtomic(path string, data []byte, perm fs.FileMode) error {
	return FS{}.WriteFileAtomic(path, data, perm)
}

// WriteFileAtomic is the function of that name.
func (f FS) WriteFileAtomic(path string, data []byte, perm fs.FileMode) error {
	return f.writeFile(path, data, func(f *File) error { return f.Chmod(perm) })
}

// WriteFileLike is WriteFileAtomic with the mode and the owner of like, which
// comes from os.Stat. It fails where the file cannot be given to that owner.
func WriteFileLike(path string, data []byte, like fs.FileInfo) error {
	return FS{}.WriteFileLike(path, data, like)
}

// WriteFileLike is the function of that name.
func (f FS) WriteFileLike(path string, data []byte, like fs.FileInfo) error {
	st := like.Sys().(*syscall.Stat_t)
	return f.writeFile(path, data, func(f *File) error {
		return errors.Join(f.Chown(int(st.Uid), int(st.Gid)), f.Chmod(like.Mode().Perm()))
	})
}

// WriteFileOwned is WriteFileAtomic for a file of another user.
func WriteFileOwned(path string, data []byte, perm fs.FileMode, uid, gid int) error {
	return FS{}.writeFile(path, data, func(f *File) error { return errors.Join(f.Chown(uid, gid), f.Chmod(perm)) })
}

// SweepTemp removes what an atomic write of path left that was killed. Nobody may
// be writing path at that moment.
func (f FS) SweepTemp(path string) error {
	dir := filepath.Dir(path)
	names, err := os.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	var errs []error
	for _, n := range names {
		if strings.HasPrefix(n.Name(), tempOf(path)) {
			errs = append(errs, ignoreNotExist(f.Remove(filepath.Join(dir, n.Name()))))
		}
	}
	return errors.Join(errs...)
}

// tempOf begins the names of the files that become path.
func tempOf(path string) string { return "." + filepath.Base(path) + ".tmp-" }

// writeFile writes beside path, lets prepare set the rights, and renames.
func (f FS) writeFile(path string, data []byte, prepare func(*File) error) (err error) {
	dir := filepath.Dir(path)
	tmp, err := f.CreateTemp(dir, tempOf(path))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreNotExist(f.Remove(tmp.Name())))
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = prepare(tmp)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = f.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return f.SyncDir(dir)
}

// SyncDir makes renames, creations and removals in dir durable.
func SyncDir(dir string) error { return FS{}.SyncDir(dir) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", path, err)
	}
	return nil
}

// Clone makes dst share src's extents (FICLONE). It fails with an error for
// which CannotClone is true where the filesystem has no reflinks or the two lie
// on different ones. dst must not exist.
func Clone(src, dst string, perm fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	return cloneTo(in, dst, perm)
}

func cloneTo(in *os.File, dst string, perm fs.FileMode) error {
	return into(dst, perm, func(out *os.File) error {
		if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err != nil {
			return &fs.PathError{Op: "clone", Path: in.Name(), Err: err}
		}
		return nil
	})
}

// into makes dst, which must not exist, lets fill write it, and removes it again
// when that fails.
func into(dst string, perm fs.FileMode, fill func(out *os.File) error) error {
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	err = fill(out)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, ignoreNotExist(os.Remove(dst)))
	}
	return nil
}

// CannotClone tells a filesystem without reflinks from a failed clone.
func CannotClone(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS)
}

// Copy copies src to dst, which must not exist, keeping holes: only the ranges
// that SEEK_DATA reports are read and written. It returns the number of bytes
// that were read. Nothing is fsynced. A copy that ctx ends leaves no dst.
func Copy(ctx context.Context, src, dst string, perm fs.FileMode) (n int64, err error) {
	in, err := os.Open(src)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	return copyTo(ctx, in, dst, perm)
}

func copyTo(ctx context.Context, in *os.File, dst string, perm fs.FileMode) (n int64, err error) {
	st, err := in.Stat()
	if err != nil {
		return 0, err
	}
	err = into(dst, perm, func(out *os.File) error {
		n, err = copyRanges(ctx, out, in, st.Size())
		if err != nil {
			return fmt.Errorf("copy %s: %w", in.Name(), err)
		}
		return nil
	})
	return n, err
}

// copyStep is how much is copied before the context is asked again, bytes.
const copyStep = 64 << 20

func copyRanges(ctx context.Context, out, in *os.File, size int64) (n int64, err error) {
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return n, context.Cause(ctx)
		}
		data, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole to the end
			return n, out.Truncate(size)
		case errors.Is(err, unix.EINVAL): // no SEEK_DATA here: all of it is data
			data = off
		case err != nil:
			return n, err
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil || hole > size {
			hole = size
		}
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return n, err
		}
		if _, err := out.Seek(data, io.SeekStart); err != nil {
			return n, err
		}
		hole = min(hole, data+copyStep)
		m, err := io.CopyN(out, in, hole-data)
		n += m
		if err != nil {
			return n, err // io.EOF: the file shrank under us
		}
		off = hole
	}
	return n, out.Truncate(size)
}

// CloneOrCopy clones where the filesystem can and copies where it cannot; cloned
// tells which it was, n the bytes read by a copy.
func (f FS) CloneOrCopy(ctx context.Context, src, dst string, perm fs.FileMode) (cloned bool, n int64, err error) {
	in, err := os.Open(src)
	if err != nil {
		return false, 0, err
	}
	defer in.Close()
	return f.CloneOrCopyFrom(ctx, in, dst, perm)
}

// CloneOrCopyFrom is CloneOrCopy from a file that the caller has opened, and so
// can ask before and after whether it is still the same.
func (f FS) CloneOrCopyFrom(ctx context.Context, in *os.File, dst string, perm fs.FileMode) (cloned bool, n int64, err error) {
	e := Effect{Kind: KindCopy, Path: in.Name(), To: dst, Half: func() error { return copyHalf(in, dst, perm) }}
	err = f.do(e, func() error {
		cloned, n, err = cloneOrCopyFrom(ctx, in, dst, perm)
		return err
	})
	return cloned, n, err
}

func cloneOrCopyFrom(ctx context.Context, in *os.File, dst string, perm fs.FileMode) (cloned bool, n int64, err error) {
	err = cloneTo(in, dst, perm)
	if err == nil {
		return true, 0, nil
	}
	if !CannotClone(err) {
		return false, 0, err
	}
	n, err = copyTo(ctx, in, dst, perm)
	return false, n, err
}

// copyHalf leaves what a crash in the middle of a copy does.
func copyHalf(in *os.File, dst string, perm fs.FileMode) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	return into(dst, perm, func(out *os.File) error {
		_, err := io.Copy(out, io.NewSectionReader(in, 0, st.Size()/2))
		return err
	})
}

// FreeBytes returns what an unprivileged process may still write to the
// filesystem of path, in bytes, and how many inodes are left. A filesystem
// without an inode table (btrfs) reports 0 inodes in all: files is then -1.
func FreeBytes(path string) (bytes, files int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	files = int64(st.Ffree)
	if st.Files == 0 {
		files = -1
	}
	return int64(st.Bavail) * st.Bsize, files, nil
}

// TotalBytes returns the size of the filesystem of path, in bytes.
func TotalBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// Clones tells whether the filesystem of a directory shares extents, by what it
// is: nothing is written. It may say no of one that does (a network's, a layered
// one); files are then copied, or cloned after all.
func Clones(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	switch uint32(st.Type) {
	case unix.BTRFS_SUPER_MAGIC, bcachefsMagic:
		return true, nil
	case unix.XFS_SUPER_MAGIC:
		return xfsClones(dir)
	}
	return false, nil
}

// bcachefsMagic is BCACHEFS_STATFS_MAGIC of Linux's fs/bcachefs/bcachefs_format.h.
const bcachefsMagic = 0xca451a4e

// xfsGeometry is struct xfs_fsop_geom_v4 of Linux's fs/xfs/libxfs/xfs_fs.h, of which
// only the flags matter here.
type xfsGeometry struct {
	_     [92]byte // block size to version
	flags uint32
	_     [16]byte
}

const (
	xfsGetGeometry = 0x8070587c // XFS_IOC_FSGEOMETRY_V4: _IOR('X', 124, struct xfs_fsop_geom_v4)
	xfsReflink     = 1 << 20    // XFS_FSOP_GEOM_FLAGS_REFLINK
)

// xfsClones asks an XFS whether it was made with reflink=1, which is the default
// since xfsprogs 5.1.
func xfsClones(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	var g xfsGeometry
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), xfsGetGeometry, uintptr(unsafe.Pointer(&g))); errno != 0 {
		return false, &fs.PathError{Op: "ask the geometry of", Path: dir, Err: errno}
	}
	return g.flags&xfsReflink != 0, nil
}

// MountID returns the id of the mount on which path lies (statx). Two paths on
// one filesystem but different mounts (a bind mount) have different ids, and
// link(2) between them fails with EXDEV: the device number does not tell.
func MountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), nil // before Linux 5.8
	}
	return st.Mnt_id, nil
}

// BootID identifies this boot of the machine. EDDY_BOOT_ID overrides it, for
// tests that play a reboot.
func BootID() (string, error) {
	if id := os.Getenv("EDDY_BOOT_ID"); id != "" {
		return id, nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
