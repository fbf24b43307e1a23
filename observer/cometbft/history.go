package cometbft

import (
	"bytes"
	"context"
	"errors"
	"sync"

	cryptoenc "github.com/cometbft/cometbft/crypto/encoding"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer"
)

// compare asks each witness whether its history is the node's, at the newest
// height that both have: a chain that began anew under the same name, or forked,
// is told before anything is stopped. What cannot be asked has no verdict.
func (r *Replica) compare(ctx context.Context, s *observer.State) {
	var wg sync.WaitGroup
	for i, raw := range r.o.Witnesses {
		w := &s.Witness[i]
		height := int64(min(w.Position.Index, s.Position.Index))
		if w.Error != "" || w.Cluster != s.Cluster || height == 0 {
			continue
		}
		wg.Go(func() { w.Verdict, w.Said = r.sameHistory(ctx, raw, s.Cluster, height) })
	}
	wg.Wait()
}

func (r *Replica) sameHistory(ctx context.Context, raw, chainID string, height int64) (verdict, said string) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	own, err := blockID(ctx, r.o.RPC, height)
	if err != nil {
		return "", ""
	}
	theirs, err := blockID(ctx, raw, height)
	if err != nil {
		return "", ""
	}
	if own.Equals(theirs) {
		return observer.Agrees, ""
	}
	b, err := lightBlock(ctx, r.o.RPC, chainID, height)
	if err != nil {
		return "", ""
	}
	a := r.attestor()
	a.Trusted = nil // whether the two differ is asked, not which of them is right
	at := a.ask(ctx, raw, claim{chainID: chainID, height: height, block: b.Commit.BlockID, vals: b.ValidatorSet.Hash()}, true)
	return at.Verdict, at.Said
}

// blockID is what a node says that its block at a height is. It is believed: who
// says the same here must prove it when the dump is attested.
func blockID(ctx context.Context, raw string, height int64) (types.BlockID, error) {
	c, err := dial(raw)
	if err != nil {
		return types.BlockID{}, redact(err, raw)
	}
	b, err := c.Commit(ctx, &height)
	if err != nil {
		return types.BlockID{}, redact(err, raw)
	}
	if b.Commit == nil || b.Commit.Height != height {
		return types.BlockID{}, errors.New("the answer is of another height")
	}
	return b.Commit.BlockID, nil
}

// nextPower is the voting power that the node's key will have two blocks after its
// newest one; /status tells that of the next block. The results of a block name the
// validators that change then. 0 where there are no results to be had.
func nextPower(ctx context.Context, raw string, s nodeStatus) int64 {
	c, err := dial(raw)
	if err != nil || s.key == nil || s.height == 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := c.BlockResults(ctx, &s.height)
	if err != nil {
		return 0
	}
	for _, u := range res.ValidatorUpdates {
		if k, err := cryptoenc.PubKeyFromProto(u.PubKey); err == nil && bytes.Equal(k.Bytes(), s.key.Bytes()) {
			return u.Power
		}
	}
	return 0
}
