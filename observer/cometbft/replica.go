package cometbft

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/observer/held"
	"github.com/eddy-backup/eddy/snapshot"
)

// Options of a replica.
type Options struct {
	Home         string
	RPC          string
	Witnesses    []string
	ChainID      string            // expected; "": whatever the genesis says
	ExtraRoots   map[string]string // see ReadLayout
	Include      []string          // see ReadLayout
	Control      control.Control
	StopTimeout  time.Duration // the node's own stop
	HoldDeadline time.Duration // the whole hold
	MaxBehind    uint64        // blocks behind the witnesses; 0: 3
	Trusted      *Trusted      // see Attestor
	Offline      Offline       // see Check
	FS           fsx.FS        // changes what a restore changes beside the swap: sign states, and the list of rollbacks
}

// Replica is a node of a chain that follows and does not vote.
type Replica struct {
	o      Options
	layout Layout
	node   held.Node

	patience time.Duration // how long a chain that may stand still is watched
}

var (
	_ observer.Replica = (*Replica)(nil)
	_ observer.Holder  = (*Replica)(nil)

	_ observer.Attester = (*Replica)(nil)
)

// New reads where the node keeps its files. It asks nothing of the live node.
func New(o Options) (*Replica, error) {
	if o.MaxBehind == 0 {
		o.MaxBehind = 3
	}
	l, err := ReadLayout(o.Home, o.ExtraRoots, o.Include)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %w", observer.ErrNotFit, err), hint.Of(err))
	}
	return &Replica{
		o: o, layout: l, patience: patience,
		node: held.Node{Control: o.Control, Timeout: o.StopTimeout, Deadline: o.HoldDeadline},
	}, nil
}

// Facts is what the manifest says of the node beside its position.
type Facts struct {
	Engines          []string
	Pruning, Indexer string
}

// Facts reads them from the layout.
func (r *Replica) Facts(context.Context) (Facts, error) {
	return Facts{Engines: r.layout.Engines(), Pruning: r.layout.Pruning, Indexer: r.layout.Indexer}, nil
}

// attestor asks the replica's witnesses.
func (r *Replica) attestor() *Attestor {
	return &Attestor{Witnesses: r.o.Witnesses, Own: r.o.RPC, Trusted: r.o.Trusted}
}

// Attest implements observer.Attester. See Attestor.
func (r *Replica) Attest(ctx context.Context, p observer.Position, before observer.Evidence, wait time.Duration) (observer.Evidence, error) {
	return r.attestor().Attest(ctx, p, before, wait)
}

// Roots implements observer.Replica.
func (r *Replica) Roots(context.Context) ([]snapshot.Root, error) { return r.layout.Roots, nil }

// Prepare implements observer.Holder.
func (r *Replica) Prepare(ctx context.Context, st *snapshot.Stage) error {
	return r.layout.Prepare(ctx, st)
}

// Capture implements observer.Replica. It ends when the hold is lost: the locks
// that it has on the databases would keep the node from starting.
func (r *Replica) Capture(ctx context.Context, st *snapshot.Stage) error {
	return r.node.During(ctx, func(ctx context.Context) error { return r.layout.Capture(ctx, st) })
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Hold implements observer.Holder. That the node is down is proven: its RPC port
// refuses and no process has a file open under the roots.
func (r *Replica) Hold(ctx context.Context, st *snapshot.Stage) (func(context.Context) error, error) {
	down, err := r.down()
	if err != nil {
		return nil, err
	}
	r.node.Down = down
	return r.node.Hold(ctx, st)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443"}[u.Scheme]
	}
	if port == "" {
		port = "80"
	}
	return u.Hostname() + ":" + port
}

// Locate implements observer.Replica: the position is read from the dump itself.
// Where the dump's engine cannot be opened here, what the node said before the
// hold stands, and Consistency says so.
func (r *Replica) Locate(ctx context.Context, st *snapshot.Stage, before observer.State) (observer.Position, error) {
	p, err := r.layout.Locate(ctx, st, r.o.Offline)
	if errors.Is(err, ErrNoPosition) {
		return before.Position, nil
	}
	return p, err
}

// Rejoined implements observer.Holder: the node makes, or follows, blocks beyond
// the one that it had before the hold. Right after a start its RPC tells the old
// height, which counts for nothing, unless its chain makes no blocks at present.
func (r *Replica) Rejoined(ctx context.Context, before observer.State) error {
	var last error
	for {
		s, err := askStatus(ctx, r.o.RPC)
		if err == nil && !s.catchingUp && (uint64(s.height) > before.Position.Index || uint64(s.height) == before.Position.Index && r.atRest(ctx, s)) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("height %d, catching up: %t", s.height, s.catchingUp)
		}
		last = err
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return fmt.Errorf("%w: last seen: %w", err, last)
		}
	}
}

// atRest tells whether the chain makes no blocks at present, as one does that makes
// them for transactions only: the node's newest is old, it has peers, and no witness
// has a newer one. Without witnesses nobody knows.
func (r *Replica) atRest(ctx context.Context, s nodeStatus) bool {
	if time.Since(s.time) < restAfter {
		return false
	}
	if _, peers, err := appAndPeers(ctx, r.o.RPC); err != nil || peers == 0 {
		return false
	}
	same := 0
	for _, raw := range r.o.Witnesses {
		w, err := askStatus(ctx, raw)
		if err != nil || w.chainID != s.chainID {
			continue
		}
		if w.height > s.height {
			return false
		}
		same++
	}
	return same > 0
}
