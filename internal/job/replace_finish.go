package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// finisher brings a swap to its end, whoever began it.
type finisher struct {
	replica Replaceable
	workdir Workdir
	swap    *snapshot.Swap
}

// toStart is startFile.
type toStart struct {
	Format    int    `json:"format"`
	MinReader int    `json:"min_reader"`
	Swap      string `json:"swap"`
}

// finish moves the swap forward or back, whatever it still takes, sees to the sign
// state, ends the swap and starts the node. forward tells which way it went. cause
// is why a swap that has moved nothing is given up.
func (f finisher) finish(ctx context.Context, cause error) (forward bool, err error) {
	s := f.swap
	if s.Step == snapshot.SwapMoving && cause == nil {
		if err := s.Forward(); err != nil {
			return false, errors.Join(fmt.Errorf("put what comes in its place: %w", err), f.back(ctx))
		}
		forward = true
	} else if s.Step != snapshot.SwapStopping {
		if err := s.Back(); err != nil {
			return false, f.stuck(err)
		}
	}
	return forward, f.end(ctx, forward)
}

func (f finisher) back(ctx context.Context) error {
	if err := f.swap.Back(); err != nil {
		return f.stuck(err)
	}
	return f.end(ctx, false)
}

func (f finisher) stuck(err error) error {
	return hint.Add(fmt.Errorf("bring back what was there: %w", err), "the node stays down; mend what is said, then run `eddy backup`: it goes on with it, as every restore does")
}

// end ends the swap with the node running.
func (f finisher) end(ctx context.Context, forward bool) error {
	s := f.swap
	var dirs []string
	for _, r := range s.Roots {
		own := filepath.Join(r.Path, snapshot.StageDir)
		dirs = append(dirs, filepath.Join(own, s.From), filepath.Join(own, snapshot.BeforePrefix+s.ID))
	}
	var what observer.Replaced
	if forward {
		if len(s.Words) > 0 { // an older eddy wrote none
			if err := json.Unmarshal(s.Words, &what); err != nil {
				return f.stuck(err)
			}
		}
		what.From, what.Before = s.From, snapshot.BeforePrefix+s.ID
		if err := f.replica.Replaced(ctx, what); err != nil {
			return f.stuck(err)
		}
	}
	if what.Rollback == nil {
		if err := f.replica.CarrySigns(ctx, dirs); err != nil {
			return f.stuck(err)
		}
	}
	if err := placeOf(s.FS, s.Roots[0].Path).swapped(s, forward); err != nil {
		return f.stuck(fmt.Errorf("keys and configuration: %w", err))
	}
	if !s.NoStart {
		if err := f.workdir.write(startFile, toStart{stateFormat, stateMinReader, s.ID}); err != nil {
			return err
		}
	}
	if err := s.End(); err != nil {
		return err
	}
	if forward { // only directories are left of it
		if err := removeOwn(s.FS, s.Roots, func(name string) bool { return name == s.From || name == s.From+".journal" }); err != nil {
			return err
		}
	}
	if s.NoStart {
		return nil
	}
	return startHalted(ctx, f.replica, f.workdir)
}

// startHalted starts the node that a restore has halted.
func startHalted(ctx context.Context, r Replaceable, w Workdir) error {
	if err := r.Start(ctx); err != nil {
		return mark(ErrStart, err)
	}
	err := w.FS.Remove(w.path(startFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// servesWait is how long a node that was found halted is waited for.
const servesWait = time.Minute

// serves waits until a node that has just been started answers and follows its
// chain. One that does not is no error here: whoever called asks it next.
func serves(ctx context.Context, r Replaceable) {
	ctx, cancel := context.WithTimeout(ctx, servesWait)
	defer cancel()
	_ = r.Rejoined(ctx, observer.State{})
}

// FinishSwap finishes what a restore that died has begun: nothing, a swap in the
// middle, or a node that was not started. It needs the workdir's lock; all verbs
// that change something call it before anything else. It says what it did.
func FinishSwap(ctx context.Context, r Replaceable, roots []snapshot.Root, w Workdir) (did string, err error) {
	s, err := snapshot.ReadSwap(w.FS, roots[0].Path)
	if err != nil {
		return "", err
	}
	if s == nil {
		if err := errors.Join(snapshot.SweepSwap(w.FS, roots[0].Path), sweepKeys(w.FS, roots[0].Path)); err != nil {
			return "", err
		}
		var t toStart
		if ok, err := w.read(startFile, &t); err != nil || !ok {
			return "", err
		}
		if err := startHalted(ctx, r, w); err != nil {
			return "", err
		}
		serves(ctx, r)
		return "an earlier restore left the node stopped; it has been started", nil
	}
	asked := ctx
	ctx = context.WithoutCancel(ctx)
	if s.Step != snapshot.SwapStopping {
		if err := r.Halt(ctx); err != nil {
			return "", fmt.Errorf("go on with the exchange of data that died as it was %s: %w", s.Step, err)
		}
	}
	f := finisher{r, w, s}
	forward, err := f.finish(ctx, nil)
	if err == nil && !s.NoStart {
		serves(asked, r)
	}
	did = "an earlier restore died as it was " + s.Step + "; "
	if forward {
		return did + "it has been finished: " + s.What + " is in place", err
	}
	return did + "what was there before is in place", err
}

// Undo brings back what was there before the newest restore, by another swap: what
// is there now lies aside after it.
func (r *Replace) Undo(ctx context.Context) (Restored, error) {
	begun := r.Now()
	unlock, err := r.lock(ctx)
	if err != nil {
		return Restored{}, err
	}
	defer unlock()
	roots, err := r.Replica.Roots(ctx)
	if err != nil {
		return Restored{}, err
	}
	kept, err := Kept(roots)
	if err != nil {
		return Restored{}, err
	}
	if len(kept) == 0 {
		return Restored{}, hint.Add(fmt.Errorf("%w: nothing is kept of an earlier restore in %s", uploader.ErrNoSuchBackup, roots[0].Path), "only a restore in place can be undone, until `eddy restore --forget`")
	}
	last := kept[len(kept)-1]
	there, _, err := r.Replica.MayReplace(ctx, observer.Replacing{Kept: last, LeaveDown: r.NoStart})
	if err != nil {
		return Restored{}, err
	}
	if err := r.Confirm(there, "what was there before "+last); err != nil {
		return Restored{}, err
	}
	out := Restored{ID: last, Dir: roots[0].Path}
	stage := func(swap string) error { return placeOf(r.FS, roots[0].Path).stageUndo(last, swap, r.Now()) }
	err = r.exchange(ctx, roots, last, last, observer.Replaced{}, stage, &out)
	out.Seconds = r.Now().Sub(begun).Seconds()
	return out, err
}

// Kept lists what restores in place have put aside, the newest last.
func Kept(roots []snapshot.Root) ([]string, error) {
	var kept []string
	for _, root := range roots {
		names, err := os.ReadDir(filepath.Join(root.Path, snapshot.StageDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, n := range names {
			if strings.HasPrefix(n.Name(), snapshot.BeforePrefix) {
				kept = append(kept, n.Name())
			}
		}
	}
	slices.Sort(kept)
	return slices.Compact(kept), nil
}

// Forgotten ends a Forget.
type Forgotten struct {
	Kept  []string `json:"kept"` // that was removed
	Bytes int64    `json:"bytes"`
}

// MessageType implements ui.Event.
func (Forgotten) MessageType() string { return "forgotten" }

// Line implements ui.Event.
func (f Forgotten) Line() string {
	if len(f.Kept) == 0 {
		return "nothing is kept of an earlier restore"
	}
	return fmt.Sprintf("removed %s: %s", strings.Join(f.Kept, ", "), ui.Bytes(f.Bytes))
}

// KeptSize is how many bytes the kept data have.
func KeptSize(roots []snapshot.Root, kept []string) (int64, error) {
	var sum int64
	for _, root := range roots {
		for _, k := range kept {
			err := filepath.WalkDir(filepath.Join(root.Path, snapshot.StageDir, k), func(_ string, e fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Type().IsRegular() {
					return nil
				}
				if err != nil {
					return err
				}
				fi, err := e.Info()
				if err == nil {
					sum += fi.Size()
				}
				return err
			})
			if err != nil {
				return 0, err
			}
		}
	}
	return sum, nil
}

// Forget removes what restores in place have put aside. Nothing of it can be
// brought back. What one that died has extracted goes, too: the bucket has it.
func (r *Replace) Forget(ctx context.Context) (Forgotten, error) {
	unlock, err := r.lock(ctx)
	if err != nil {
		return Forgotten{}, err
	}
	defer unlock()
	roots, err := r.Replica.Roots(ctx)
	if err != nil {
		return Forgotten{}, err
	}
	var out Forgotten
	if out.Kept, err = Kept(roots); err != nil {
		return out, err
	}
	if len(out.Kept) == 0 {
		return out, r.sweep(roots, "")
	}
	if out.Bytes, err = KeptSize(roots, out.Kept); err != nil {
		return out, err
	}
	if err := r.Confirm(strings.Join(out.Kept, ", ")+" ("+ui.Bytes(out.Bytes)+")", "nothing: it is removed"); err != nil {
		return Forgotten{}, err
	}
	for _, kept := range out.Kept {
		err = errors.Join(err, placeOf(r.FS, roots[0].Path).forgetKept(kept))
	}
	err = errors.Join(err, removeOwn(r.FS, roots, func(name string) bool { return slices.Contains(out.Kept, name) }))
	return out, errors.Join(err, r.sweep(roots, ""))
}
