package cometbft

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/snapshot"
)

// ErrMoving is returned by Capture when files change or vanish while the node is
// supposed to stand still.
var ErrMoving = errors.New("the files of the held node still change")

// Prepare links into the stage what no engine writes again, while the node runs,
// so that the hold has only the rest to do. It may be repeated; files that come
// and go meanwhile are left to Capture.
func (l Layout) Prepare(ctx context.Context, st *snapshot.Stage) error {
	w := walker{l: &l, live: true}
	if err := w.walk(ctx); err != nil {
		return err
	}
	return l.each(ctx, w.dirs, func(ctx context.Context, d directory) error {
		if d.engine == Unknown || d.engine == Badger {
			return nil
		}
		dir := filepath.Join(l.root(d.root).Path, d.rel)
		err := engine.EachName(dir, func(e fs.DirEntry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !e.Type().IsRegular() || !d.engine.Linkable(e.Name(), d.head) {
				return nil
			}
			return st.Prelink(d.root, filepath.Join(d.rel, e.Name()))
		})
		return w.vanished(err)
	})
}

// Capture fills the stage from the held node: it links what Prepare has not,
// clones or copies everything else, and holds the databases' own locks meanwhile,
// so that nobody opens them. ErrInUse and ErrMoving mean that the node is not
// down; the stage is then worthless.
func (l Layout) Capture(ctx context.Context, st *snapshot.Stage) (err error) {
	w := walker{l: &l}
	if err := w.walk(ctx); err != nil {
		return w.vanished(err)
	}
	for _, d := range w.databases {
		lock, lerr := lockDB(d)
		if lerr != nil {
			return lerr
		}
		if lock != nil {
			defer func() { err = errors.Join(err, lock.release()) }()
		}
	}
	for _, o := range w.left {
		if err := st.LeaveOut(o.root, o.rel, o.why); err != nil {
			return err
		}
	}
	return l.each(ctx, w.dirs, func(ctx context.Context, d directory) error {
		return w.vanished(w.capture(ctx, st, d))
	})
}

// each handles directories in parallel. Links into one directory wait for each
// other in the kernel, so more goroutines for one directory gain nothing.
func (l Layout) each(ctx context.Context, dirs []directory, f func(context.Context, directory) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(4, runtime.GOMAXPROCS(0)))
	for _, d := range dirs {
		g.Go(func() error { return f(ctx, d) })
	}
	return g.Wait()
}

// taker is what names are given to, each once, from many goroutines: a stage, or
// somebody who only counts.
type taker interface {
	Dir(root, rel string) error
	Link(ctx context.Context, root, rel string) error
	Copy(ctx context.Context, root, rel string) error
	Symlink(root, rel string) error
	LeaveOut(root, rel, why string) error
}

var _ taker = (*snapshot.Stage)(nil)

func (w *walker) capture(ctx context.Context, st taker, d directory) error {
	if err := st.Dir(d.root, d.rel); err != nil || d.part {
		return err
	}
	r := w.l.root(d.root)
	dir := filepath.Join(r.Path, d.rel)
	return engine.EachName(dir, func(e fs.DirEntry) error {
		name, rel := e.Name(), filepath.Join(d.rel, e.Name())
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.only != nil && !slices.Contains(d.only, name) {
			return nil
		}
		if _, denied := w.l.scope.denied(dir, path.Join(r.Prefix, d.rel), name, e.IsDir()); denied || e.IsDir() || isSpecial(e.Type()) {
			return nil // the walk has dealt with it
		}
		if e.Type()&fs.ModeSymlink != 0 {
			if w.isRoot(path.Join(r.Prefix, rel)) {
				return nil
			}
			return st.Symlink(d.root, rel)
		}
		if d.engine.Linkable(name, d.head) {
			return st.Link(ctx, d.root, rel)
		}
		secret, err := looksSecret(filepath.Join(dir, name))
		if err != nil {
			return w.vanished(err)
		}
		if secret {
			return st.LeaveOut(d.root, rel, whySecret)
		}
		return st.Copy(ctx, d.root, rel)
	})
}

// maxSecret bounds the files whose content is looked at, bytes: keys and sign
// states are small, and the node waits.
const maxSecret = 64 << 10

// looksSecret tells whether a small file is a key or a sign state under a name
// that nobody would suspect.
func looksSecret(file string) (bool, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = hint.Add(err, "run eddy as the node's user"+ownerOf(file))
		}
		return false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() > maxSecret || fi.Size() < int64(minSecret) {
		return false, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return false, err
	}
	return secretContent(b), nil
}
