package cometbft

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/check"
	"github.com/eddy-backup/eddy/snapshot"
)

// Offline says how dumps are looked into offline.
type Offline struct {
	// Argv starts a process that calls check.Child; empty: this process looks itself.
	Argv []string
	// Memory is what that process may have, bytes; 0: check.DefaultMemory.
	Memory uint64
	// Within is how long it may take; 0: ten minutes. The look is bounded by itself:
	// what takes longer is an engine that does not end, or a disk that does not answer.
	Within time.Duration
}

const checkWithin = 10 * time.Minute

// maxGenesis is the largest genesis file whose copy in the state store is read.
const maxGenesis = 32 << 20

// Check implements observer.Checker.
func (r *Replica) Check(ctx context.Context, trees []snapshot.Tree, at observer.Position) (observer.Checked, error) {
	var began *check.Genesis
	g, err := ReadGenesis(r.o.Home)
	if err != nil {
		return observer.Checked{}, err
	}
	if st, err := os.Stat(r.layout.bases[0].genesis); err == nil && st.Size() <= maxGenesis {
		began = &check.Genesis{ChainID: g.ChainID, Time: g.Time, InitialHeight: g.InitialHeight}
	}
	incarnation, err := incarnationOf(r.o.Home, g)
	if err != nil {
		return observer.Checked{}, err
	}
	c, err := r.o.Offline.Check(ctx, trees, g.ChainID, began, at, true)
	if c.At != nil {
		c.At.Incarnation = incarnation
	}
	return c, err
}

// Looker implements observer.Looker: it looks into dumps of nodes, wherever they lie.
type Looker struct{ Offline }

var _ observer.Looker = Looker{}

// Needs implements observer.Looker.
func (Looker) Needs() observer.Needs { return new(check.Needs) }

// Check implements observer.Checker. How the chain's history began is not known here.
func (l Looker) Check(ctx context.Context, trees []snapshot.Tree, at observer.Position) (observer.Checked, error) {
	return l.Offline.Check(ctx, trees, at.Marks[markChain], nil, at, false)
}

// errLong: a look was given up.
var errLong = errors.New("it took longer than it may")

// run looks into a directory, for as long as it may.
func (o Offline) run(ctx context.Context, dir string, q check.Options) (r check.Report, err error) {
	limit := cmp.Or(o.Within, checkWithin)
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if len(o.Argv) > 0 {
		r, err = check.InChild(within, o.Argv, o.Memory, dir, q)
	} else {
		r, err = check.Run(within, dir, q)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("%w: %s", errLong, limit)
	}
	return r, err
}

// Check looks into the dump of a node of a chain. chainID is what it must be of, ""
// where that is not known; began is how the chain's history
// began, nil where that is not known; audited that its tables are known to be there.
func (o Offline) Check(ctx context.Context, trees []snapshot.Tree, chainID string, began *check.Genesis, at observer.Position, audited bool) (observer.Checked, error) {
	if len(trees) == 0 {
		return observer.Checked{}, errors.New("check: no directory of the dump")
	}
	q := check.Options{ChainID: chainID, Genesis: began, NoTables: audited}
	if at.Consistency == "stopped" && at.HashKind == "app_hash" { // it was read from the dump
		q.Height, q.AppHash = int64(at.Index), at.Hash
	}
	for _, t := range trees[1:] {
		q.Trees = append(q.Trees, check.Tree(t))
	}
	r, err := o.run(ctx, trees[0].Dir, q)
	if errors.Is(err, errLong) {
		return observer.Checked{
			Opened: string(check.None), Unfinished: err.Error(), Seconds: cmp.Or(o.Within, checkWithin).Seconds(),
			Hint: "look at the disk below the node's home, and what else works on it",
		}, nil
	}
	if err != nil {
		return observer.Checked{}, fmt.Errorf("check the dump: %w", err)
	}
	return checked(r)
}

func checked(r check.Report) (observer.Checked, error) {
	out := observer.Checked{Opened: string(r.Opened), Grade: string(r.Grade), Notes: r.Notes, Seconds: r.Seconds, Peak: r.Peak}
	if r.Located {
		at := tipOf(r).position()
		out.At = &at
	}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, observer.CheckedLayer{Name: string(l.Stage), Engine: l.Engine, Opened: l.Opened, Said: l.Said})
	}
	b, err := json.Marshal(r.Proven)
	if err != nil {
		return observer.Checked{}, err
	}
	if err := json.Unmarshal(b, &out.Proven); err != nil {
		return observer.Checked{}, err
	}
	maps.DeleteFunc(out.Proven, func(_ string, n int64) bool { return n == 0 })
	for i, f := range r.Findings {
		if i == 0 {
			out.Hint = f.Hint
		}
		if f.What == check.ChildMemory { // of a dump that is large, not of one that is broken
			out.Unfinished, out.Grade = f.Detail, ""
			continue
		}
		out.Findings = append(out.Findings, f.String())
	}
	return out, nil
}
