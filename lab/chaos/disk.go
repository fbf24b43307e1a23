package chaos

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// disk is a directory seen through a filesystem that can be slow and can fail for
// one process, its victim, while others, the node among them, see a sound one.
type disk struct {
	mount, backing string
	server         *fuse.Server
	fault          atomic.Pointer[diskFault]
}

// diskFault is what the victim meets.
type diskFault struct {
	victim int
	write  syscall.Errno // of everything that changes the disk
	read   syscall.Errno
	after  atomic.Int64  // bytes of the kind that fails which pass before the first failure
	delay  time.Duration // of each read and write
	met    atomic.Int64  // how often it was
	// rename, where set, is asked before each rename.
	rename func() syscall.Errno
}

// mountDisk moves the directory at path aside and mounts it again where it was.
func mountDisk(path string) (*disk, error) {
	d := &disk{mount: path, backing: path + ".real"}
	if err := os.Rename(path, d.backing); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	root, err := fs.NewLoopbackRoot(d.backing)
	if err != nil {
		return nil, err
	}
	ttl := time.Second
	d.server, err = fs.Mount(path, &node{LoopbackNode: root.(*fs.LoopbackNode), d: d}, &fs.Options{
		EntryTimeout: &ttl, AttrTimeout: &ttl,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "chaos", Name: "chaos"},
	})
	if err != nil {
		return nil, fmt.Errorf("mount a FUSE filesystem at %s: %w", path, err)
	}
	return d, nil
}

// unmount waits for the last file to be closed, as long as that takes.
func (d *disk) unmount() error {
	d.heal()
	err := d.server.Unmount()
	if err == nil {
		d.server.Wait()
	}
	return err
}

func (d *disk) heal() { d.fault.Store(nil) }

func (d *disk) harm(f *diskFault) { d.fault.Store(f) }

// struck returns the fault where the caller is its victim. The kernel names the
// calling thread.
func (d *disk) struck(ctx context.Context) *diskFault {
	f := d.fault.Load()
	if f == nil {
		return nil
	}
	if c, ok := fuse.FromContext(ctx); !ok || process(int(c.Pid)) != f.victim {
		return nil
	}
	return f
}

// process is the process of a thread, 0 where it is gone.
func process(thread int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(thread) + "/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\nTgid:")
	line, _, _ := strings.Cut(rest, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return 0
	}
	return pid
}

// changes is asked before the disk is changed by n bytes.
func (d *disk) changes(ctx context.Context, n int) syscall.Errno {
	f := d.struck(ctx)
	if f == nil {
		return 0
	}
	return f.meet(f.write, n)
}

func (d *disk) reads(ctx context.Context, n int) syscall.Errno {
	f := d.struck(ctx)
	if f == nil {
		return 0
	}
	return f.meet(f.read, n)
}

func (f *diskFault) meet(errno syscall.Errno, n int) syscall.Errno {
	time.Sleep(f.delay)
	if errno != 0 && f.after.Add(-int64(n)) >= 0 {
		return 0
	}
	if errno != 0 || f.delay > 0 {
		f.met.Add(1)
	}
	return errno
}

// node is a file or directory.
type node struct {
	*fs.LoopbackNode
	d *disk
}

func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: ops.(*fs.LoopbackNode), d: n.d}
}

// direct keeps the page cache out of the victim's way: what lies in it is read and
// fails without us.
func (n *node) direct(ctx context.Context, flags uint32) uint32 {
	if n.d.struck(ctx) != nil {
		return flags | fuse.FOPEN_DIRECT_IO
	}
	return flags
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, out, errno := n.LoopbackNode.Open(ctx, flags)
	if errno != 0 {
		return h, out, errno
	}
	return &file{LoopbackFile: h.(*fs.LoopbackFile), d: n.d}, n.direct(ctx, out), 0
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.d.changes(ctx, 1); errno != 0 {
		return nil, nil, 0, errno
	}
	in, h, fl, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if errno != 0 {
		return in, h, fl, errno
	}
	return in, &file{LoopbackFile: h.(*fs.LoopbackFile), d: n.d}, n.direct(ctx, fl), 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.d.changes(ctx, 1); errno != 0 {
		return nil, errno
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.d.changes(ctx, 1); errno != 0 {
		return nil, errno
	}
	return n.LoopbackNode.Symlink(ctx, target, name, out)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.d.changes(ctx, 1); errno != 0 {
		return nil, errno
	}
	t, ok := target.(*node)
	if !ok {
		return nil, syscall.EXDEV
	}
	return n.LoopbackNode.Link(ctx, t.LoopbackNode, name, out)
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	p, ok := parent.(*node)
	if !ok {
		return syscall.EXDEV
	}
	if f := n.d.struck(ctx); f != nil && f.rename != nil {
		if errno := f.rename(); errno != 0 {
			return errno
		}
	}
	return n.LoopbackNode.Rename(ctx, name, p.LoopbackNode, newName, flags)
}

// file is an open one. The kernel must not read the backing file by itself.
type file struct {
	*fs.LoopbackFile
	d *disk
}

func (f *file) PassthroughFd() (int, bool) { return 0, false }

func (f *file) Read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.d.reads(ctx, len(buf)); errno != 0 {
		return nil, errno
	}
	return f.LoopbackFile.Read(ctx, buf, off)
}

func (f *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := f.d.changes(ctx, len(data)); errno != 0 {
		return 0, errno
	}
	return f.LoopbackFile.Write(ctx, data, off)
}
