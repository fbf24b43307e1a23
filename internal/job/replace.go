package job

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Replaceable is a replica whose live data can be replaced.
type Replaceable interface {
	Roots(ctx context.Context) ([]snapshot.Root, error)
	// MayReplace refuses, before anything is touched, what must not be: another
	// history, a validator, a node that something would start meanwhile, a program
	// that is known not to go on from what comes, what would take the whole cluster
	// back, and a rollback of a cluster that lives. It says what is there now, and what
	// is to be known of the other program that made what comes, nil where there is
	// nothing.
	MayReplace(ctx context.Context, how observer.Replacing) (there string, other, err error)
	// Later is the furthest position that the replica knows of: it has it, or has
	// agreed to it.
	Later(ctx context.Context) (uint64, error)
	// CheckRestored looks into what was extracted, and changes nothing of it. at says
	// where a name of the archive lies.
	CheckRestored(ctx context.Context, want observer.Position, at func(name string) string) error
	// Halt stops the node for good, while the swap file is there; one that is down
	// is no error. Start starts it again, without the swap file.
	Halt(ctx context.Context) error
	Start(ctx context.Context) error
	// Cover says which names are data. The node must be down.
	Cover(ctx context.Context) (snapshot.Cover, error)
	// Replaced is told of a swap that went forward before it ends, and again after a
	// crash. It lowers the home's sign state where that is a rollback.
	Replaced(ctx context.Context, what observer.Replaced) error
	// CarrySigns makes the home's sign state the highest of its own and those below
	// dirs. After a rollback it is not called.
	CarrySigns(ctx context.Context, dirs []string) error
	// Rejoined waits until the replica follows its cluster, beyond before.
	Rejoined(ctx context.Context, before observer.State) error
}

// Replace replaces the data of a live replica: by a backup (Run), or by what was
// there before (Undo). Construct it with all fields set.
type Replace struct {
	Restore // the backup; Into and Only mean nothing here, Keys go to the home of the first root
	Replica Replaceable
	Workdir Workdir
	NoStart bool // leave the node down; it must be set with Keys, and with RollbackTo
	// Confirm asks before the node is stopped; an error is the answer no.
	Confirm func(there, comes string) error
	// RollbackTo is the position that the whole cluster is taken back to, typed by
	// whoever decided it; 0: this is a restore.
	RollbackTo uint64
	// ConfirmLost asks for the positions that a rollback gives up, in words that
	// nothing but a person who knows them types: the first one, and the last one that
	// this node knows of, 0 where that is before the first. It returns the last one
	// that was typed.
	ConfirmLost func(first, known uint64) (last uint64, err error)
}

// startFile in the workdir says that a node is to be started that a restore has
// halted: from before the swap's journal goes until the node runs.
const startFile = "restart.json"

// Run replaces the data. All that can be refused is refused first; the backup is
// extracted beside the data and verified while the node runs; then the node is
// halted, names are exchanged, and it is started again. What was there stays in
// .eddy/before-ID of each root until Forget.
func (r *Replace) Run(ctx context.Context) (out Restored, err error) {
	begun := r.Now()
	unlock, err := r.lock(ctx)
	if err != nil {
		return Restored{}, err
	}
	defer unlock()
	m, err := r.find(ctx)
	if err != nil {
		return Restored{}, err
	}
	if m.System != "cometbft" {
		return Restored{}, hint.Add(fmt.Errorf("%w: backup %s is of a %s, this is a chain's node", observer.ErrNotFit, m.ID, m.System), "name a backup of this chain")
	}
	hash, err := hex.DecodeString(m.Position.Hash)
	if err != nil {
		return Restored{}, fmt.Errorf("%w: the manifest's hash %.70q: %w", snapshot.ErrCorrupt, m.Position.Hash, err)
	}
	pos := observer.Position{
		Kind: m.Position.Kind, Incarnation: m.Incarnation, Index: m.Position.Index,
		Hash: hash, HashKind: m.Position.HashKind, Consistency: m.Position.Consistency,
	}
	comes := madeBy(m)
	comes.Position = pos
	back, err := r.rollback(pos.Index)
	if err != nil {
		return Restored{}, err
	}
	there, other, err := r.Replica.MayReplace(ctx, observer.Replacing{Comes: comes, LeaveDown: r.NoStart, Rollback: back})
	if err != nil {
		return Restored{}, err
	}
	if other != nil {
		r.Events.Emit(Warning{Text: other.Error(), Hint: hint.Of(other)})
	}
	roots, err := r.Replica.Roots(ctx)
	if err != nil {
		return Restored{}, err
	}
	if err := placesFor(m.Roots, roots); err != nil {
		return Restored{}, err
	}
	vols, err := r.plain(ctx, m)
	if err != nil {
		return Restored{}, err
	}
	place, keys, leave, err := r.withKeys(ctx, roots[0].Path)
	if err != nil {
		return Restored{}, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	if err := r.Confirm(there, fmt.Sprintf("%s, %s at %s, made by %s", m.ID, m.Cluster, PositionOf(m), comes.Program())); err != nil {
		return Restored{}, err
	}
	if back != nil {
		known, err := r.Replica.Later(ctx)
		if err == nil {
			back.Lost, err = r.ConfirmLost(back.At+1, known)
		}
		if err != nil {
			return Restored{}, err
		}
	}
	owner, ownerText, err := r.owner(roots[0].Path)
	if err != nil {
		return Restored{}, err
	}
	ended := r.restoring(ctx, m)
	defer func() { ended(ctx, err) }()
	from := snapshot.ComingPrefix + m.ID
	rep, err := r.extract(ctx, roots, from, vols, owner)
	if err != nil {
		return Restored{}, err
	}
	err = r.Replica.CheckRestored(ctx, pos, func(name string) string {
		root, rel := rootOf(roots, name)
		return filepath.Join(root.Path, snapshot.StageDir, from, rel)
	})
	if err != nil {
		return Restored{}, fmt.Errorf("look into what was restored: %w", err)
	}
	out = restored(m, rep)
	out.Dir, out.Owner = roots[0].Path, ownerText
	stage := func(string) error { return nil }
	if r.Keys != nil {
		stage = func(swap string) error { return place.stage(ctx, keys, swap) }
	}
	err = r.exchange(ctx, roots, from, m.ID, observer.Replaced{Incarnation: m.Incarnation, Rollback: back}, stage, &out)
	if err == nil && r.Keys != nil {
		k := keys.done()
		out.Keys = &k
	}
	out.Seconds = r.Now().Sub(begun).Seconds()
	return out, err
}

// rollback is the decision that was typed, nil where none was: to a position that is
// the backup's.
func (r *Replace) rollback(at uint64) (*observer.Rollback, error) {
	switch {
	case r.RollbackTo == 0:
		return nil, nil
	case r.RollbackTo != at:
		return nil, hint.Add(fmt.Errorf("%w: the backup is at %d, the rollback is to be to %d", ErrNotConfirmed, at, r.RollbackTo), "`eddy list` shows where each backup ends; all nodes go back to the same one")
	}
	return &observer.Rollback{At: at}, nil
}

// lock admits one changing verb at a time, and finishes what an earlier one left.
func (r *Replace) lock(ctx context.Context) (unlock func(), err error) {
	lock, err := r.Workdir.Lock(ctx)
	if err != nil {
		return nil, err
	}
	roots, err := r.Replica.Roots(ctx)
	if err == nil {
		var acted string
		if acted, err = FinishSwap(ctx, r.Replica, roots, r.Workdir); acted != "" {
			r.Events.Emit(Warning{Text: acted})
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return func() { _ = lock.Unlock() }, nil // the process's end does it, too
}

// placesFor refuses an archive with a root that has no place here.
func placesFor(theirs []uploader.RootRef, ours []snapshot.Root) error {
	for _, t := range theirs {
		known := slices.ContainsFunc(ours, func(o snapshot.Root) bool { return o.Prefix == t.Prefix })
		if name, ok := strings.CutPrefix(t.Prefix, outsidePrefix); ok && !known {
			return hint.Add(fmt.Errorf("the backup holds %s (%s), which has no place here", name, t.Path), "say where it belongs: --root "+name+"=DIR, an existing directory")
		}
	}
	return nil
}

const outsidePrefix = ".eddy-root/"

// rootOf is the root to which a name of the archive goes, and its place there.
func rootOf(roots []snapshot.Root, name string) (root snapshot.Root, rel string) {
	root, rel = roots[0], name
	for _, r := range roots[1:] {
		if below, ok := strings.CutPrefix(name+"/", r.Prefix+"/"); ok && len(r.Prefix) > len(root.Prefix) {
			root, rel = r, strings.TrimSuffix(below, "/")
		}
	}
	return root, rel
}

// extract brings the backup beside the data of each root. What an interrupted
// restore of another backup left is removed.
func (r *Replace) extract(ctx context.Context, roots []snapshot.Root, from string, vols []snapshot.VolumeSource, owner *snapshot.Owner) (snapshot.Report, error) {
	if err := r.sweep(roots, from); err != nil {
		return snapshot.Report{}, fmt.Errorf("remove what an earlier restore left: %w", err)
	}
	o := snapshot.ExtractOptions{
		FS: r.FS, Owner: owner, Preflight: true, Progress: r.progress,
		Journal: filepath.Join(roots[0].Path, snapshot.StageDir, from+".journal"),
	}
	for _, root := range roots {
		dir := filepath.Join(root.Path, snapshot.StageDir, from)
		if err := makeLike(r.FS, dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return snapshot.Report{}, err
		}
		if root.Prefix == "" {
			o.Dir = dir
		} else {
			o.Places = append(o.Places, snapshot.Place{Prefix: root.Prefix, Dir: dir})
		}
	}
	return snapshot.Extract(ctx, vols, o)
}

// sweep removes what was extracted and is not wanted: all but keep, "" for none.
func (r *Replace) sweep(roots []snapshot.Root, keep string) error {
	return removeOwn(r.FS, roots, func(name string) bool {
		if strings.HasPrefix(name, "."+snapshot.ComingPrefix) { // its journal, half written
			return true
		}
		return strings.HasPrefix(name, snapshot.ComingPrefix) && name != keep && name != keep+".journal"
	})
}

// removeOwn removes names in the StageDir of each root.
func removeOwn(fsys fsx.FS, roots []snapshot.Root, which func(name string) bool) error {
	var errs []error
	for _, root := range roots {
		names, err := os.ReadDir(filepath.Join(root.Path, snapshot.StageDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, n := range names {
			if which(n.Name()) {
				errs = append(errs, fsys.RemoveAll(filepath.Join(root.Path, snapshot.StageDir, n.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// exchange halts the node, swaps its data for what lies in from, and starts it. stage
// prepares what goes the swap's way, whose id it gets. From the halt on ctx ends
// nothing: a swap is finished, or taken back.
func (r *Replace) exchange(ctx context.Context, roots []snapshot.Root, from, what string, did observer.Replaced, stage func(swap string) error, out *Restored) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	words, err := json.Marshal(did)
	if err != nil {
		return err
	}
	s := &snapshot.Swap{
		FS: r.FS, ID: uploader.NewID(r.Now(), "restore"), From: from, What: what,
		Begun: r.Now().UTC(), NoStart: r.NoStart, Roots: roots, Words: words,
	}
	if err := stage(s.ID); err != nil {
		return err
	}
	through := context.WithoutCancel(ctx)
	r.Events.Emit(Phase{ID: out.ID, Phase: "halt", Text: "every hash is right; halting the node"})
	halted := time.Now()
	if err := s.Begin(); err != nil {
		return errors.Join(err, sweepKeys(r.FS, roots[0].Path))
	}
	err = r.Replica.Halt(through)
	if err == nil {
		var cover snapshot.Cover
		if cover, err = r.Replica.Cover(through); err == nil {
			err = s.Plan(cover)
		}
	}
	f := finisher{r.Replica, r.Workdir, s}
	forward, ferr := f.finish(through, err)
	if err = errors.Join(err, ferr); err != nil || !forward {
		if err != nil && s.Step == snapshot.SwapStopping {
			err = fmt.Errorf("nothing was replaced: %w", err)
		}
		return err
	}
	out.Before = filepath.Join(snapshot.StageDir, snapshot.BeforePrefix+s.ID)
	out.Next = []string{
		"what was there lies in " + filepath.Join(roots[0].Path, out.Before) + "; eddy restore --undo brings it back, eddy restore --forget frees the space",
	}
	if did.Rollback != nil {
		out.Next = append(out.Next,
			fmt.Sprintf("a sign state above height %d was lowered to that; as it was it lies there, too", did.Rollback.At),
			"take every other node of the chain back to the same height before the first one is started",
			"the first backup after it needs --new-incarnation")
	}
	if r.NoStart {
		out.Next = append(out.Next, "the node is down: start it when it is time")
		return nil
	}
	out.HeldSeconds = time.Since(halted).Seconds()
	r.Events.Emit(Phase{ID: out.ID, Phase: "started", Text: fmt.Sprintf("the node runs again after %.2f s; waiting until it follows the chain", out.HeldSeconds)})
	wait, cancel := context.WithTimeout(ctx, rejoinWait)
	defer cancel()
	if err := r.Replica.Rejoined(wait, observer.State{Position: observer.Position{Index: out.Position}}); err != nil {
		r.Events.Emit(Warning{Text: "the node was started but has not been seen to follow the chain: " + err.Error(), Hint: "look at its log; it may have much to catch up with. `eddy restore --undo` brings back what was there"})
		return ErrWarnings
	}
	out.Follows = true
	return nil
}
