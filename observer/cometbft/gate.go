package cometbft

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

// unfit makes an error with observer.ErrNotFit and a hint.
func unfit(advice, format string, args ...any) error {
	return hint.Add(fmt.Errorf("%w: %s", observer.ErrNotFit, fmt.Sprintf(format, args...)), advice)
}

// leader is the position that the witnesses of the same chain agree on: their
// median, the lower one of two. A single liar among three can neither make us
// wait for ever nor pass off a node that is behind; one that is known counts for
// nothing.
func leader(s observer.State) *observer.Position {
	var known []observer.Position
	for _, w := range s.Witness {
		if w.Error == "" && w.Cluster == s.Cluster && w.Verdict != observer.Liar && w.Verdict != observer.OtherChain {
			known = append(known, w.Position)
		}
	}
	if len(known) == 0 {
		return nil
	}
	slices.SortFunc(known, func(a, b observer.Position) int { return int(a.Index) - int(b.Index) })
	return &known[(len(known)-1)/2]
}

// forked is what to do where two histories are signed by the same validators.
const forked = "make no backup and restore none until you know which history the chain goes on with: ask those who run it; the node's log and the witness's tell since when they differ"

// stale is how old the newest block of a node without witnesses may be.
const stale = 10 * time.Minute

// Gate implements observer.Holder. What might be cured by waiting is
// isUpgrading's and isBehind's; everything else is refused for good.
func (r *Replica) Gate(ctx context.Context, s observer.State) error {
	for _, check := range []func(observer.State) error{r.isOnChain, r.isNoValidator, r.witnessesAgree, r.isUpgrading, r.isBehind} {
		if err := check(s); err != nil {
			return err
		}
	}
	st, err := r.o.Control.Status(ctx)
	if err != nil {
		return hint.Add(fmt.Errorf("%w: %s: %w", observer.ErrNotFit, r.o.Control, err), hint.Or(err, "look at replica.control"))
	}
	if !st.Running {
		return unfit(control.HowToStart(r.o.Control)+"; eddy starts no node that somebody else stopped", "%s says that the node is stopped", r.o.Control)
	}
	return nil
}

// isOnChain compares the node's chain with the configuration's and its home's.
func (r *Replica) isOnChain(s observer.State) error {
	chain, err := ChainID(r.o.Home)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	case r.o.ChainID != "" && s.Cluster != r.o.ChainID:
		return unfit("set `replica.chain_id: "+s.Cluster+"` if that is the chain that you mean, else `replica.rpc: URL` to the RPC of a node on "+r.o.ChainID+", and replica.home to its home", "it is on chain %s, the configuration says %s", s.Cluster, r.o.ChainID)
	case chain != s.Cluster:
		return unfit("set `replica.home: DIR` to the home of the node at "+bare(r.o.RPC)+", or `replica.rpc: URL` to the RPC of the node that has this home", "its RPC is on chain %s, the genesis in %s is of chain %s", s.Cluster, r.o.Home, chain)
	}
	return nil
}

// isNoValidator refuses a node that takes part in consensus, or did.
func (r *Replica) isNoValidator(s observer.State) error {
	if s.Voting > 0 {
		return unfit("back up an observer beside it, a full node of the chain with a key of its own: set `replica.home: DIR` and `replica.rpc: URL` to that one's", "%s is a validator (voting power %d): it must not be stopped", s.Node.Name, s.Voting)
	}
	if s.NextVoting > 0 {
		return unfit("back up an observer beside it, a full node of the chain with a key of its own: set `replica.home: DIR` and `replica.rpc: URL` to that one's", "%s is about to be a validator (voting power %d): it must not be stopped", s.Node.Name, s.NextVoting)
	}
	sign, err := SignState(r.o.Home)
	if err != nil {
		return fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	if !sign.Zero() {
		return unfit("back up an observer beside it, a full node of the chain with a key of its own: set `replica.home: DIR` and `replica.rpc: URL` to that one's; a node that is no validator any more needs a new key", "its key has signed (height %d): it is or was a validator", sign.Height)
	}
	return nil
}

// witnessesAgree: a witness of another chain is a mistake in the configuration, a
// fork is one in the world. A liar is passed over, as long as somebody else shares
// the node's history, or could not be asked.
func (r *Replica) witnessesAgree(s observer.State) error {
	strangers, others := 0, 0
	for _, w := range s.Witness {
		if w.Error == "" && w.Cluster != s.Cluster {
			return unfit(otherWitness(w.URL), "witness %s is on chain %s, the node on %s", w.URL, w.Cluster, s.Cluster)
		}
		if w.Verdict == observer.Fork {
			return unfit(forked, "the chain has forked, or the node is on its own: witness %s: %s", w.URL, w.Said)
		}
		switch {
		case w.Verdict == observer.OtherChain:
			strangers++
		case w.Error == "" && w.Verdict != observer.Liar:
			others++
		}
	}
	if strangers > 0 && others == 0 {
		w := s.Witness[slices.IndexFunc(s.Witness, func(w observer.Witness) bool { return w.Verdict == observer.OtherChain })]
		return unfit("look which of them has the chain's genesis file: if it is the witness, the chain began anew and the node must join it; else "+otherWitness(w.URL),
			"no witness shares the node's history: %s: %s", w.URL, w.Said)
	}
	return nil
}

// behind makes an error that waiting may cure.
func behind(advice, format string, args ...any) error {
	return hint.Add(fmt.Errorf("%w: %w: %s", observer.ErrNotFit, observer.ErrBehind, fmt.Sprintf(format, args...)), advice)
}

// isBehind tells whether the node has caught up with its chain.
func (r *Replica) isBehind(s observer.State) error {
	peers := ""
	if s.Peers == 0 {
		peers = "; it has no peers: see `eddy doctor`, inbound slots"
	}
	h := s.Position.Index
	switch {
	case s.CatchUp:
		return behind("wait until it has caught up"+peers, "it is at height %d", h)
	case s.Leader != nil && h+r.o.MaxBehind < s.Leader.Index:
		return behind("wait until it has caught up"+peers, "it is at height %d, the chain at %d", h, s.Leader.Index)
	case s.Leader == nil && len(s.Witness) > 0:
		return behind(otherWitness(s.Witness[0].URL), "no witness answers (%s)", s.Witness[0].Error)
	case s.Leader == nil && s.Taken.Sub(s.Position.Time) > stale:
		return behind("wait until it has caught up, or set `replica.witnesses: [URL1, URL2]` to nodes that know how high the chain is"+peers, "its newest block is %s old", s.Taken.Sub(s.Position.Time).Round(time.Second))
	}
	return nil
}
