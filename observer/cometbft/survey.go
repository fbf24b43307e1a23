package cometbft

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

var _ observer.Surveyor = (*Replica)(nil)

// Survey implements observer.Surveyor.
func (r *Replica) Survey(ctx context.Context) (observer.Survey, error) { return r.layout.Survey(ctx) }

// Survey gives every name that Capture would take to a counter, by the same walk
// and the same rules. The node may run: names that vanish are forgiven.
func (l Layout) Survey(ctx context.Context) (observer.Survey, error) {
	w := walker{l: &l, live: true}
	if err := w.walk(ctx); err != nil {
		return observer.Survey{}, err
	}
	c := counter{l: &l, left: w.leftOut()}
	for _, r := range l.Roots {
		clones, err := fsx.Clones(r.Path)
		if err != nil {
			return observer.Survey{}, err
		}
		free, _, err := fsx.FreeBytes(r.Path)
		if err != nil {
			return observer.Survey{}, err
		}
		c.clones = append(c.clones, clones)
		c.roots = append(c.roots, observer.RootSurvey{
			Root: r, Free: free, Writable: unix.Access(r.Path, unix.W_OK|unix.X_OK) == nil,
		})
	}
	err := l.each(ctx, w.dirs, func(ctx context.Context, d directory) error {
		return w.vanished(w.capture(ctx, &c, d))
	})
	slices.SortFunc(c.left, func(a, b snapshot.LeftOut) int { return strings.Compare(a.Name, b.Name) })
	return observer.Survey{Roots: c.roots, LeftOut: c.left}, err
}

// counter is a taker that takes nothing.
type counter struct {
	l      *Layout
	clones []bool // by root: its filesystem shares extents

	mu    sync.Mutex
	roots []observer.RootSurvey
	left  []snapshot.LeftOut
}

// file counts a file under what pick chooses.
func (c *counter) file(root, rel string, pick func(i int) *observer.Treated) error {
	i := slices.IndexFunc(c.l.Roots, func(r snapshot.Root) bool { return r.Name == root })
	fi, err := os.Lstat(filepath.Join(c.l.Roots[i].Path, rel))
	if os.IsNotExist(err) {
		return nil // removed since it was listed; the rest of its directory is there
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := pick(i)
	t.Files++
	t.Bytes += fi.Size()
	return nil
}

func (c *counter) Link(_ context.Context, root, rel string) error {
	return c.file(root, rel, func(i int) *observer.Treated { return &c.roots[i].Linked })
}

func (c *counter) Copy(_ context.Context, root, rel string) error {
	return c.file(root, rel, func(i int) *observer.Treated {
		if c.clones[i] {
			return &c.roots[i].Cloned
		}
		return &c.roots[i].Copied
	})
}

func (c *counter) LeaveOut(root, rel, why string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, snapshot.LeftOut{Name: path.Join(c.l.root(root).Prefix, filepath.ToSlash(rel)), Reason: why})
	return nil
}

func (c *counter) Dir(string, string) error     { return nil }
func (c *counter) Symlink(string, string) error { return nil }
