//go:build lab

package cometbft

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cometbft/cometbft/abci/example/kvstore"
	cryptoenc "github.com/cometbft/cometbft/crypto/encoding"
	cmtmath "github.com/cometbft/cometbft/libs/math"
	"github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/privval"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// power gives a node's key voting power, by a transaction that the key-value app
// knows; 0 takes it.
func (r *running) power(of node.Home, power int64) {
	r.t.Helper()
	dir := filepath.Join(of.Dir, "config")
	pub := privval.LoadFilePVEmptyState(filepath.Join(dir, "priv_validator_key.json"), filepath.Join(dir, "none")).Key.PubKey
	key, err := cryptoenc.PubKeyToProto(pub)
	must(r.t, err)
	c, err := dial(r.RPC)
	must(r.t, err)
	got, err := c.BroadcastTxSync(r.t.Context(), kvstore.MakeValSetChangeTx(key, power))
	must(r.t, err)
	if got.Code != 0 {
		r.t.Fatalf("the app refuses the change: %+v", got)
	}
}

// voters waits until those who vote have so much power together, and returns at
// which height that is.
func (r *running) voters(chainID string, power int64) (height int64) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		s, err := askStatus(r.t.Context(), r.RPC)
		if err != nil {
			continue
		}
		if b, err := lightBlock(r.t.Context(), r.RPC, chainID, s.height); err == nil && b.ValidatorSet.TotalVotingPower() == power {
			return s.height
		}
	}
	r.t.Fatalf("nobody votes with power %d", power)
	return 0
}

// The gate knows a validator before it votes, while it does, and ever after.
func TestGateKnowsAValidatorToBe(t *testing.T) {
	t.Parallel()
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: 1, ChainID: "becomes-1", Commit: 2 * time.Second})
	must(t, err)
	v, o := run(t, homes[0]), run(t, homes[1])
	o.reach(2)
	r, err := New(Options{Home: o.Dir, RPC: o.RPC, Witnesses: []string{v.RPC}})
	must(t, err)
	until := func(what string, is func(observer.State) bool) error {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if s, err := r.Describe(t.Context()); err == nil && is(s) {
				return r.isNoValidator(s)
			}
		}
		t.Fatalf("%s is never seen", what)
		return nil
	}
	if err := until("an observer", func(s observer.State) bool { return s.Voting+s.NextVoting == 0 }); err != nil {
		t.Errorf("an observer is refused: %v", err)
	}
	v.power(o.Home, 1)
	for _, c := range []struct {
		what string
		is   func(observer.State) bool
		want string
	}{
		{"a validator to be", func(s observer.State) bool { return s.Voting == 0 && s.NextVoting == 1 }, "is about to be a validator (voting power 1)"},
		{"a validator", func(s observer.State) bool { return s.Voting == 1 }, "is a validator (voting power 1)"},
	} {
		if err := until(c.what, c.is); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	o.reach(int64(v.voters("becomes-1", 11)) + 2)
	v.power(o.Home, 0)
	if err := until("one that was a validator", func(s observer.State) bool { return s.Voting+s.NextVoting == 0 }); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "it is or was a validator") {
		t.Errorf("one that was a validator: %v", err)
	}
}

// A dump is led back to a pinned block though none of those who signed that one has
// signed the dump's: by the blocks between, in which they changed step by step.
func TestPinnedTrustAcrossOtherValidators(t *testing.T) {
	t.Parallel()
	const chainID = "changes-1"
	ctx := t.Context()
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: 2, ChainID: chainID, Commit: 250 * time.Millisecond})
	must(t, err)
	first, second, o := run(t, homes[0]), run(t, homes[1]), run(t, homes[2])
	second.reach(3)
	first.power(second.Home, 4)
	first.voters(chainID, 14)
	first.power(second.Home, 100)
	first.voters(chainID, 110)
	first.power(first.Home, 0)
	o.reach(second.voters(chainID, 100) + 3)
	o.stop()
	l := layoutOf(t, o.Dir, nil)
	p, err := l.Locate(ctx, staged(t, l), Offline{})
	must(t, err)
	second.reach(int64(p.Index) + 2)

	const pinned = 2
	from, err := lightBlock(ctx, second.RPC, chainID, pinned)
	must(t, err)
	to, err := lightBlock(ctx, second.RPC, chainID, int64(p.Index))
	must(t, err)
	err = light.Verify(from.SignedHeader, from.ValidatorSet, to.SignedHeader, to.ValidatorSet, time.Hour, time.Now(), time.Second, cmtmath.Fraction{Numerator: 1, Denominator: 3})
	if !errors.As(err, new(light.ErrNewValSetCantBeTrusted)) {
		t.Fatalf("one step is enough (%v): nothing is proven", err)
	}
	var steps atomic.Int64
	watched := between(t, second.RPC, func(c call, b []byte) []byte {
		if h, _ := strconv.ParseUint(c.Params.Height, 10, 64); c.Method == "commit" && h > pinned && h < p.Index {
			steps.Add(1)
		}
		return b
	})
	liar := between(t, second.RPC, func(c call, b []byte) []byte {
		if h, _ := strconv.ParseUint(c.Params.Height, 10, 64); c.Method == "commit" && h > pinned && h < p.Index {
			return swap(`"signature":"([^"]+)"`)(b)
		}
		return b
	})
	pin := func(period time.Duration) *Trusted {
		return &Trusted{Height: pinned, Hash: from.Hash(), Period: period}
	}
	other := pin(time.Hour)
	other.Hash = to.Hash()
	for _, c := range []struct {
		name, raw string
		t         *Trusted
		want      string
		said      string
		no        bool
	}{
		{"step by step", watched, pin(time.Hour), observer.Agrees, "", false},
		{"a step that is forged", liar, pin(time.Hour), observer.Liar, "", false},
		{"another hash is pinned", second.RPC, other, observer.OtherChain, "is trusted", true},
		{"its time is over", second.RPC, pin(time.Second), observer.Pruned, "older than attest.trusted.period", false},
	} {
		e, err := (&Attestor{Witnesses: []string{c.raw}, Trusted: c.t}).Attest(ctx, p, observer.Evidence{}, 0)
		must(t, err)
		t.Logf("%s: %s: %+v", c.name, e.Grade(), e.Of)
		if e.Of[0].Verdict != c.want || !strings.Contains(e.Of[0].Said, c.said) || (e.Refuted != "") != c.no {
			t.Errorf("%s: %+v, want %s: %s", c.name, e, c.want, c.said)
		}
	}
	if steps.Load() == 0 {
		t.Error("no block between was asked for")
	}
	t.Logf("heights %d to %d, %d blocks between were asked for", pinned, p.Index, steps.Load())
}
