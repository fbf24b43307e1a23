package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Owner is whom restored files are given to.
type Owner struct{ UID, GID int }

// ExtractOptions say where and what to extract.
type ExtractOptions struct {
	FS        fsx.FS   // makes the changes
	Dir       string   // an existing empty directory
	Only      []string // globs of path.Match against a name or one of its parents; empty: everything
	Owner     *Owner   // nil: the ids of the archive
	Workers   int      // decoders; 0: one for each processor
	Preflight bool     // refuse before the first byte when the filesystem has no room
	Progress  func(done, total int64)
}

// Report tells what was extracted.
type Report struct {
	Files, Bytes int64 // Bytes of content
}

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

// Extract brings an archive back. It writes nothing outside Dir, follows no
// link, and returns nil only when every frame, every header and every file had
// the hash that the index says, the archive had an end, and all of it is on the
// disk. An error with ErrCorrupt means that the archive is to blame.
func Extract(ctx context.Context, vols []VolumeSource, o ExtractOptions) (Report, error) {
	root, err := o.FS.OpenRoot(o.Dir)
	if err != nil {
		return Report{}, err
	}
	defer root.Close()
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	x := &extraction{o: o, root: root}
	if err := x.readIndexes(ctx, vols); err != nil {
		return Report{}, err
	}
	if o.Preflight {
		if err := x.preflight(); err != nil {
			return Report{}, err
		}
	}
	for _, ix := range x.indexes {
		if err := x.volume(ctx, ix); err != nil {
			return Report{}, errors.Join(err, x.closeFile())
		}
	}
	if x.file != nil || x.goesOn {
		return Report{}, errors.Join(vols[len(vols)-1].corrupt("it ends inside a file"), x.closeFile())
	}
	if err := x.finish(); err != nil {
		return Report{}, err
	}
	return x.report, nil
}

// extraction is the state between frames: an open file, and what is done last.
type extraction struct {
	o       ExtractOptions
	root    *fsx.Root
	indexes []*Index
	total   int64 // content bytes to come
	names   int64
	done    int64
	report  Report

	goesOn bool   // a file continues in the next frame
	name   string // of that file
	off    int64  // content bytes of it so far
	sum    hash.Hash
	file   *fsx.File // nil where the file was not wanted

	dirs  []Entry // rights and times are set at the end, deepest first
	links []Entry // made at the end: nothing can be written through them
}

func (x *extraction) readIndexes(ctx context.Context, vols []VolumeSource) error {
	if len(vols) == 0 {
		return fmt.Errorf("%w: no volumes", ErrCorrupt)
	}
	for i, v := range vols {
		ix, err := ReadIndex(ctx, v)
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
			for _, e := range f.Entries {
				if e.Len < 0 || e.Off < 0 || e.Size < 0 || e.Off+e.Len > e.Size {
					return v.corrupt("its index has impossible sizes for %q", e.entry().Name)
				}
				if x.wanted(e.entry().Name) {
					x.total += e.Len
					if e.Off == 0 {
						x.names++
					}
				}
			}
		}
	}
	return nil
}

func (x *extraction) preflight() error {
	free, inodes, err := fsx.FreeBytes(x.o.Dir)
	if err != nil {
		return err
	}
	need := x.total + x.names*2048 // half a block for each name's last one
	if need > free-free/spare {
		return hint.Add(fmt.Errorf("%s has %d MiB free, the backup needs %d MiB", x.o.Dir, free>>20, (need>>20)+1), "restore to a larger filesystem; nothing was written")
	}
	if inodes >= 0 && x.names > inodes {
		return hint.Add(fmt.Errorf("%s has %d inodes left, the backup needs %d", x.o.Dir, inodes, x.names), "restore to a filesystem with more inodes; nothing was written")
	}
	return nil
}

func (x *extraction) wanted(name string) bool {
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

// decoding is a frame on its way from the store to the disk.
type decoding struct {
	frame  IndexFrame
	stored []byte
	raw    []byte
	err    error
	done   chan struct{}
}

// volume reads one volume's frames in one stream, decodes them in parallel and
// writes them in order.
func (x *extraction) volume(ctx context.Context, ix *Index) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	n := x.o.Workers
	free := make(chan *decoding, n+2)
	for range n + 2 {
		free <- new(decoding)
	}
	todo, order := make(chan *decoding, n+2), make(chan *decoding, n+2)
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		return fetch(ctx, ix, free, todo, order)
	})
	for range n {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrameLen))
		if err != nil {
			return errors.Join(err, stopAll(cancel, g))
		}
		g.Go(func() error {
			defer dec.Close()
			for d := range todo {
				d.decode(dec, ix.vol)
				close(d.done)
			}
			return nil
		})
	}
	err := x.write(ctx, ix, order, free)
	cancel()
	if werr := g.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
		return werr
	}
	return err
}

func stopAll(cancel context.CancelFunc, g *errgroup.Group) error {
	cancel()
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (x *extraction) write(ctx context.Context, ix *Index, order <-chan *decoding, free chan<- *decoding) error {
	for d := range order {
		select {
		case <-d.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if d.err != nil {
			return d.err
		}
		if err := x.frame(ix.vol, d.frame, d.raw); err != nil {
			return err
		}
		if x.o.Progress != nil {
			x.o.Progress(x.done, x.total)
		}
		free <- d
	}
	return ctx.Err()
}

// fetch reads the stored frames of a volume, in one stream.
func fetch(ctx context.Context, ix *Index, free <-chan *decoding, todo, order chan<- *decoding) error {
	r, err := ix.vol.Open(ctx, 0, ix.Data)
	if err != nil {
		return fmt.Errorf("%s: %w", ix.vol.Name, err)
	}
	defer r.Close()
	for f, err := range ix.Frames() {
		if err != nil {
			return err
		}
		var d *decoding
		select {
		case d = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		d.frame, d.done, d.err = f, make(chan struct{}), nil
		if cap(d.stored) < f.CLen {
			d.stored = make([]byte, f.CLen)
		}
		d.stored = d.stored[:f.CLen]
		if _, err := io.ReadFull(r, d.stored); err != nil {
			return ix.vol.readError(err)
		}
		todo <- d
		order <- d
	}
	return nil
}

// decode checks the stored bytes and decodes them, never beyond the length that
// the index promised.
func (d *decoding) decode(dec *zstd.Decoder, v VolumeSource) {
	f := d.frame
	if got := fmt.Sprintf("%016x", crc.NVME(d.stored)); got != f.CRC {
		d.err = v.corrupt("the frame at %d has checksum %s, its index says %s", f.Off, got, f.CRC)
		return
	}
	if cap(d.raw) < f.ULen {
		d.raw = make([]byte, 0, f.ULen)
	}
	var err error
	d.raw, err = dec.DecodeAll(d.stored, d.raw[:0])
	if err != nil || len(d.raw) != f.ULen {
		d.err = v.corrupt("the frame at %d decodes to %d bytes, its index says %d (%v)", f.Off, len(d.raw), f.ULen, err)
	}
}

// frame checks a decoded frame piece by piece against the index and writes it.
func (x *extraction) frame(v VolumeSource, f IndexFrame, raw []byte) error {
	id := newFrameID()
	for _, p := range f.Entries {
		e := p.entry()
		if err := checkEntry(e); err != nil {
			return v.corrupt("its index names %v", err)
		}
		bad := func(what string) error { return v.corrupt("%s of %q is not what the index says", what, e.Name) }
		var head []byte
		if p.Off == 0 {
			var err error
			if head, err = header(e); err != nil {
				return v.corrupt("%v", err)
			}
			if x.goesOn || !bytes.HasPrefix(raw, head) {
				return bad("the header")
			}
			raw = raw[len(head):]
		} else if !x.goesOn || x.name != e.Name || x.off != p.Off {
			return bad("a piece")
		}
		pad := int64(0)
		if p.Off+p.Len == p.Size {
			pad = padding(p.Size)
		}
		if int64(len(raw)) < p.Len+pad || !allZero(raw[p.Len:p.Len+pad]) {
			return bad("the content")
		}
		content := raw[:p.Len]
		raw = raw[p.Len+pad:]
		sum := sha256.Sum256(content)
		id.piece(head, sum, p.Len, pad)
		if err := x.piece(v, p, e, content, sum); err != nil {
			return err
		}
	}
	if !allZero(raw) || (len(raw) > 0 && len(f.Entries) > 0) {
		return v.corrupt("the frame at %d holds more than its index says", f.Off)
	}
	if got := id.sum(); hex.EncodeToString(got[:]) != f.ID {
		return v.corrupt("the frame at %d has another ID than its index says", f.Off)
	}
	return nil
}

// piece writes one piece, and closes the file at its last one when its hash is
// right.
func (x *extraction) piece(v VolumeSource, p IndexEntry, e Entry, content []byte, sum [sha256.Size]byte) error {
	want := x.wanted(e.Name)
	if e.Type != TypeFile {
		if !want {
			return nil
		}
		if e.Type == TypeSymlink {
			x.links = append(x.links, e)
			return nil
		}
		x.dirs = append(x.dirs, e)
		return x.mkdir(v, e.Name)
	}
	if p.Off == 0 && want {
		if err := x.create(v, e); err != nil {
			return err
		}
	}
	if x.file != nil {
		if err := x.put(content, p.Off, e.Sparse); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
		x.done += p.Len
	}
	if p.Off+p.Len < p.Size {
		if p.Off == 0 {
			x.sum = sha256.New()
		}
		x.sum.Write(content)
		x.goesOn, x.name, x.off = true, e.Name, p.Off+p.Len
		return nil
	}
	if p.Off > 0 {
		x.sum.Write(content)
		x.sum.Sum(sum[:0])
	}
	x.goesOn, x.name = false, ""
	if hex.EncodeToString(sum[:]) != p.SHA256 {
		return v.corrupt("%q has another hash than the index says", e.Name)
	}
	if x.file == nil {
		return nil
	}
	x.report.Files++
	x.report.Bytes += e.Size
	return x.endFile(e)
}

func (x *extraction) mkdir(v VolumeSource, name string) error {
	err := x.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(name) != "." {
		if err := x.root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return x.escaped(v, name, err)
		}
		err = x.root.Mkdir(name, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		if st, serr := x.root.Lstat(name); serr == nil && st.IsDir() {
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
	open := func() (*fsx.File, error) { return x.root.OpenFile(e.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) }
	x.file, err = open()
	if errors.Is(err, fs.ErrNotExist) {
		if err := x.root.MkdirAll(path.Dir(e.Name), 0o700); err != nil {
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
		err = x.root.Chtimes(e.Name, time.Now(), e.MTime)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	return nil
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
		err := x.root.Symlink(e.Link, e.Name)
		if errors.Is(err, fs.ErrNotExist) {
			if err = x.root.MkdirAll(path.Dir(e.Name), 0o700); err == nil {
				err = x.root.Symlink(e.Link, e.Name)
			}
		}
		if err == nil {
			err = x.own(func(uid, gid int) error { return x.root.Lchown(e.Name, uid, gid) }, e)
		}
		if err != nil {
			return fmt.Errorf("link %s: %w", e.Name, err)
		}
	}
	for i := len(x.dirs) - 1; i >= 0; i-- {
		e := x.dirs[i]
		err := x.own(func(uid, gid int) error { return x.root.Chown(e.Name, uid, gid) }, e)
		if err == nil {
			err = x.root.Chmod(e.Name, fs.FileMode(e.Mode&0o777))
		}
		if err == nil {
			err = x.root.Chtimes(e.Name, time.Now(), e.MTime)
		}
		if err != nil {
			return fmt.Errorf("directory %s: %w", e.Name, err)
		}
	}
	return x.o.FS.SyncFS(filepath.Clean(x.o.Dir))
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
