package cometbft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"path/filepath"
	"slices"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// MayReplace says why the data of this node must not be replaced by what comes: a
// dump of that position, made by that program; zero for what it had before. The
// node need not run: what it cannot be asked is read from its home. there says
// what is there now, for people; other what they should know of the program that
// made what comes.
func (r *Replica) MayReplace(ctx context.Context, how observer.Replacing) (there string, other, err error) {
	g, err := ReadGenesis(r.o.Home)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	comes := how.Comes
	if comes.System != "" {
		if err := r.isOnHistory(g, comes.Position); err != nil {
			return "", nil, err
		}
	}
	there = g.ChainID + ", in " + r.layout.Home
	var now observer.State
	s, err := askStatus(ctx, r.o.RPC)
	switch {
	case err != nil:
		there += ", does not answer"
	case s.chainID != g.ChainID:
		return "", nil, unfit("replica.rpc and replica.home must be of one node", "its RPC is on chain %s, the genesis in %s is of chain %s", s.chainID, r.o.Home, g.ChainID)
	default:
		now = observer.State{System: system, Version: s.version, Position: observer.Position{Index: uint64(s.height)}}
		now.App, _, _ = appAndPeers(ctx, r.o.RPC) // unknown where it does not say
		there += fmt.Sprintf(", at height %d, run by %s", s.height, now.Program())
	}
	if err := r.mayGo(ctx, how, g, s); err != nil {
		return "", nil, err
	}
	if comes.System != "" {
		last, err := upgradePlan(r.o.Home)
		if err == nil {
			other, err = otherProgram(comes, now, last)
		}
		if err == nil && !how.LeaveDown {
			err = mayStart(r.o.Home, comes, last)
		}
		if err != nil {
			return "", nil, err
		}
	}
	return there, other, r.o.Control.MayHalt(ctx, how.LeaveDown)
}

// mayGo tells a restore, a rollback of the chain and the undo of one apart, and says
// why this one must not be.
func (r *Replica) mayGo(ctx context.Context, how observer.Replacing, g Genesis, s nodeStatus) error {
	if how.Rollback != nil {
		return r.mayGoBack(ctx, int64(how.Rollback.At), g.ChainID, s)
	}
	if how.Kept != "" {
		if took, err := r.tookBack(how.Kept); took || err != nil {
			return err // what a rollback found there was a validator's, and may be again
		}
	}
	if how.Comes.System != "" {
		back, err := r.back(ctx, int64(how.Comes.Position.Index), g.ChainID, s, false)
		if err == nil {
			err = back.isRestore()
		}
		if err != nil {
			return err
		}
	}
	return r.mayBeReplaced(s)
}

// mayBeReplaced refuses a node that signs, or whose key may have.
func (r *Replica) mayBeReplaced(s nodeStatus) error {
	if err := r.isNoValidator(observer.State{Voting: s.power, Node: observer.Node{Name: s.moniker}}); err != nil {
		return err
	}
	sign, err := SignState(r.o.Home)
	if err != nil {
		return fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	switch {
	case sign.Remote != "":
		return unfit("restore --into a directory of its own", "somebody else signs for it (priv_validator_laddr %s): it is a validator", sign.Remote)
	case sign.Key && sign.Path == "":
		return unfit("move its priv_validator_key.json away: the node then makes a new one, with a sign state of its own", "it has a validator key, but no sign state: nobody knows what that key has signed")
	}
	return nil
}

// Halt stops the node for a restore, as Hold does, and nothing starts it while the
// swap file is there.
func (r *Replica) Halt(ctx context.Context) error {
	down, err := r.down()
	if err != nil {
		return err
	}
	return r.o.Control.Halt(ctx, control.Request{Timeout: r.o.StopTimeout, Deadline: r.o.HoldDeadline, Down: down})
}

// Start starts the node that Halt has stopped, once the swap file is gone, and a
// witness has passed the floor of a key whose sign state nobody knows.
func (r *Replica) Start(ctx context.Context) error {
	if err := r.awaitFloor(ctx); err != nil {
		return err
	}
	return r.o.Control.Start(ctx)
}

// down proves that the node is down: its RPC port refuses and no process has a
// file open under the roots.
func (r *Replica) down() (func(context.Context) error, error) {
	u, err := url.Parse(r.o.RPC)
	if err != nil {
		return nil, errors.New("replica.rpc is no URL")
	}
	var dirs []string
	for _, root := range r.layout.Roots {
		dirs = append(dirs, root.Path)
	}
	return control.AllDown(dirs, []string{hostPort(u)}), nil
}

// Cover tells a swap what is data and what is not, by what a backup would take
// now. The node must be down.
func (r *Replica) Cover(ctx context.Context) (snapshot.Cover, error) {
	w := walker{l: &r.layout}
	if err := w.walk(ctx); err != nil {
		return nil, w.vanished(err)
	}
	c := &cover{l: &r.layout, dirs: map[place]directory{}, kept: map[place]bool{}, above: map[place]bool{}}
	for _, d := range w.dirs {
		c.dirs[place{d.root, d.rel}] = d
	}
	for _, o := range w.left {
		if keeps(o.why) {
			c.keep(o.root, o.rel)
		}
	}
	for _, d := range w.dirs { // keys under names that nobody would suspect
		if err := w.capture(ctx, c, d); err != nil {
			return nil, w.vanished(err)
		}
	}
	for _, b := range r.layout.bases { // a home without it is none, also in the middle of a swap
		for _, root := range r.layout.Roots {
			if rel, ok := relBelow(root.Path, resolved(b.data)); ok && rel != "." {
				c.keepAbove(root.Name, filepath.Join(rel, "*"))
			}
		}
	}
	for _, inner := range r.layout.Roots[1:] {
		for _, outer := range r.layout.Roots {
			if rel, ok := relBelow(outer.Path, inner.Path); ok && rel != "." {
				c.keep(outer.Name, rel) // a mount
			}
			rel, ok := relBelow(outer.Prefix, inner.Prefix)
			if outer.Prefix == "" {
				rel, ok = inner.Prefix, true
			}
			if ok && rel != "." {
				c.keep(outer.Name, filepath.FromSlash(rel)) // or the symlink that leads to it
			}
		}
	}
	return c.part, nil
}

// keeps tells whether what was left out for that reason must stay where it is.
func keeps(why string) bool {
	return slices.Contains([]string{whyKey, whyConfig, whyAddresses, whySecret}, why)
}

type place struct{ root, rel string }

// cover is what a walk over the live roots found. Its methods of a taker are called
// from one goroutine.
type cover struct {
	l     *Layout
	dirs  map[place]directory
	kept  map[place]bool
	above map[place]bool // directories that something kept is in
}

var _ taker = (*cover)(nil)

func (c *cover) Dir(string, string) error                   { return nil }
func (c *cover) Link(context.Context, string, string) error { return nil }
func (c *cover) Copy(context.Context, string, string) error { return nil }
func (c *cover) Symlink(string, string) error               { return nil }
func (c *cover) LeaveOut(root, rel, _ string) error         { c.keep(root, rel); return nil }

func (c *cover) keep(root, rel string) {
	c.kept[place{root, rel}] = true
	c.keepAbove(root, rel)
}

// keepAbove keeps the directories that a name stands in.
func (c *cover) keepAbove(root, rel string) {
	for d := filepath.Dir(rel); d != "."; d = filepath.Dir(d) {
		c.above[place{root, d}] = true
	}
}

func (c *cover) part(r snapshot.Root, rel string, isDir bool) snapshot.Part {
	at := place{r.Name, rel}
	parent, name := filepath.Dir(rel), filepath.Base(rel)
	why, denied := c.l.scope.denied(filepath.Join(r.Path, parent), path.Join(r.Prefix, filepath.ToSlash(parent)), name, isDir)
	d, taken := c.dirs[at]
	up, upTaken := c.dirs[place{r.Name, parent}]
	switch {
	case c.kept[at], denied && keeps(why), r.Name == "" && rel == outside:
		return snapshot.Kept
	case c.above[at], taken && d.only != nil:
		return snapshot.Partly
	case taken:
		return snapshot.Replaced
	case why == whyCopy:
		return snapshot.Foreign
	case upTaken && (up.only == nil || slices.Contains(up.only, name)):
		return snapshot.Replaced
	}
	return snapshot.Foreign
}

// CheckRestored opens the state database of an extracted dump, as Locate does that
// of a stage, and compares what it says with what the manifest says. at says where
// a name of the archive lies.
func (r *Replica) CheckRestored(ctx context.Context, want observer.Position, at func(name string) string) error {
	var names []string
	if db, err := r.layout.stateDB(); err == nil {
		names = append(names, db.Name)
	}
	for _, b := range r.layout.bases {
		names = append(names, path.Join(b.rel, "data/state.db"), path.Join(b.rel, "data/state"))
	}
	for _, name := range names {
		dir := at(name)
		kind, err := engine.Detect(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
			continue
		}
		if err != nil || !engine.CanOpen(kind) {
			return err
		}
		tip, err := r.o.Offline.tip(ctx, dir)
		switch {
		case errors.Is(err, ErrNoPosition):
			return nil
		case err != nil:
			return fmt.Errorf("open %s as restored: %w", name, err)
		case uint64(tip.Height) != want.Index && want.Consistency == "stopped":
			return fmt.Errorf("%w: its state is at height %d, its manifest says %d", snapshot.ErrCorrupt, tip.Height, want.Index)
		case want.HashKind == "app_hash" && want.Consistency == "stopped" && !bytes.Equal(tip.AppHash, want.Hash):
			return fmt.Errorf("%w: its state has app hash %X, its manifest says %X", snapshot.ErrCorrupt, tip.AppHash, want.Hash)
		}
		g, err := ReadGenesis(r.o.Home)
		if err == nil && tip.ChainID != g.ChainID {
			err = fmt.Errorf("the dump is of chain %q, the genesis file of chain %q", tip.ChainID, g.ChainID)
		}
		return err
	}
	return nil // the dump of a node without one; nothing can be asked
}
