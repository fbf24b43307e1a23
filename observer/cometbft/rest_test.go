package cometbft

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	cfg "github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// A chain that makes blocks only for transactions, and has none, is not waited for:
// neither by those who attest, nor by a node that came back.
func TestChainAtRest(t *testing.T) {
	t.Parallel()
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: 1, ChainID: "rest-1", Commit: 250 * time.Millisecond})
	must(t, err)
	configure(t, homes[0].Dir, func(c *cfg.Config) { c.Consensus.CreateEmptyBlocks = false })
	for _, h := range homes { // the first block has the genesis' time
		file := filepath.Join(h.Dir, "config", "genesis.json")
		g, err := types.GenesisDocFromFile(file)
		must(t, err)
		g.GenesisTime = time.Now().Add(-time.Hour).Truncate(time.Hour).UTC()
		must(t, g.SaveAs(file))
	}
	v, o := run(t, homes[0]), run(t, homes[1])
	o.reach(1)
	o.stop()
	l := layoutOf(t, homes[1].Dir, nil)
	p, err := l.Locate(t.Context(), staged(t, l), Offline{})
	must(t, err)
	r, err := New(Options{Home: homes[1].Dir, RPC: homes[1].RPC, Witnesses: []string{homes[0].RPC}})
	must(t, err)

	begun := time.Now()
	e, err := r.Attest(t.Context(), p, observer.Evidence{}, time.Minute)
	must(t, err)
	if took := time.Since(begun); e.Grade() != "1 of 1" || e.Of[0].By != byABCIInfo || took > 10*time.Second {
		t.Errorf("attested: %s after %s: %+v", e.Grade(), took, e.Of)
	}
	wrong := p
	wrong.Hash = []byte("another app")
	if e, err = r.Attest(t.Context(), wrong, observer.Evidence{}, time.Second); err != nil || e.Of[0].Verdict != observer.Liar {
		t.Errorf("another app hash: %+v, %v", e.Of, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	before := observer.State{Position: p}
	short, end := context.WithTimeout(t.Context(), time.Second)
	defer end()
	if err := r.Rejoined(short, before); err == nil {
		t.Error("a node that is down has rejoined")
	}
	o = run(t, homes[1])
	must(t, r.Rejoined(ctx, before))
	v.stop() // no peer, and no witness, says that there is no newer block
	short, end = context.WithTimeout(t.Context(), time.Second)
	defer end()
	if err := r.Rejoined(short, before); err == nil {
		t.Error("a node that nobody speaks to has rejoined")
	}
	o.stop()
}
