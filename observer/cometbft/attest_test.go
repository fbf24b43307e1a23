package cometbft

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// history is a real chain, a fork of it, a chain of strangers of the same name,
// and the position of a dump.
type history struct {
	validator, forked, stranger *running
	observer                    node.Home
	p                           observer.Position
}

// newHistory backs an observer up while its chain goes on, with transactions in
// every block.
func newHistory(t *testing.T) history {
	t.Helper()
	const pause = 250 * time.Millisecond
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: 1, ChainID: "attested-1", Commit: pause})
	must(t, err)
	others, err := node.Testnet(filepath.Join(t.TempDir(), "strangers"), node.TestnetOptions{Validators: 1, ChainID: "attested-1", Commit: pause})
	must(t, err)
	fork := forkOf(t, homes[0])
	h := history{validator: run(t, homes[0]), forked: run(t, fork), stranger: run(t, others[0]), observer: homes[1]}
	o := run(t, homes[1])
	h.validator.reach(1)
	h.validator.keepBusy()
	o.reach(4)
	o.stop()
	l := layoutOf(t, homes[1].Dir, nil)
	st := staged(t, l)
	h.p, err = l.Locate(t.Context(), st, Offline{})
	must(t, err)
	for _, n := range []*running{h.validator, h.forked, h.stranger} {
		n.reach(int64(h.p.Index) + 2)
	}
	return h
}

// at tells whether a call is of a height.
func (c call) at(method string, height uint64) bool {
	return c.Method == method && c.Params.Height == strconv.FormatUint(height, 10)
}

// swap puts other characters in place of those that the pattern's group matches.
func swap(pattern string) func([]byte) []byte {
	re := regexp.MustCompile(pattern)
	return func(b []byte) []byte {
		m := re.FindSubmatchIndex(b)
		if m == nil {
			return b
		}
		out := bytes.Clone(b)
		for i := m[2]; i < m[3]; i++ {
			if c := out[i]; c >= '0' && c <= '8' || c >= 'A' && c <= 'E' {
				out[i]++ // the next digit
			}
		}
		return out
	}
}

func silentServer(t *testing.T, answer func(http.ResponseWriter)) string {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w) }))
	t.Cleanup(web.Close)
	return web.URL
}

func TestAttest(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	t.Run("judges each witness", func(t *testing.T) { judgesEachWitness(t, h) })
	t.Run("leads back to a pinned block", func(t *testing.T) { leadsBackToAPinnedBlock(t, h) })
}

// Each witness is judged by itself, by what it proves.
func judgesEachWitness(t *testing.T, h history) {
	p, rpc := h.p, h.validator.RPC
	// The trap: what /status calls the latest app hash is that of the block before.
	// Here every block changes it, so that one who fell into the trap agrees with
	// nobody.
	b, err := lightBlock(t.Context(), rpc, "attested-1", int64(p.Index))
	must(t, err)
	if bytes.Equal(b.AppHash, p.Hash) {
		t.Fatalf("app hash %X stands in the header of height %d already: the test proves nothing", p.Hash, p.Index)
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, gone.Close())

	noNext := func(then func(c call, answer []byte) []byte) string {
		return between(t, rpc, func(c call, answer []byte) []byte {
			switch {
			case c.at("commit", p.Index+1):
				return refusal(fmt.Sprintf("height %d must be less than or equal to the current blockchain height %d", p.Index+1, p.Index))
			case c.Method == "abci_info":
				return then(c, answer)
			}
			return answer
		})
	}
	app := func(height uint64, hash []byte) string {
		return noNext(func(call, []byte) []byte {
			return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":0,"result":{"response":{"last_block_height":"%d","last_block_app_hash":%q}}}`, height, b64(hash))
		})
	}
	altered := func(method string, height uint64, change func([]byte) []byte) string {
		return between(t, rpc, func(c call, answer []byte) []byte {
			if c.at(method, height) {
				return change(answer)
			}
			return answer
		})
	}
	// whole passes off the next block, with its validators, as this one.
	whole := between(t, rpc, func(c call, answer []byte) []byte {
		if !c.at("commit", p.Index) {
			return answer
		}
		return bytes.ReplaceAll(answer, fmt.Appendf(nil, `"height":"%d"`, p.Index), fmt.Appendf(nil, `"height":"%d"`, p.Index+1))
	})
	wrongApp := p
	wrongApp.Hash = b.AppHash // what who falls into the trap takes for the app hash

	for name, c := range map[string]struct {
		raw  string
		p    observer.Position
		want string
		said string
		by   string
	}{
		"honest":                       {raw: rpc, p: p, want: observer.Agrees, by: byHeader},
		"fork":                         {raw: h.forked.RPC, p: p, want: observer.Fork, said: "more than two thirds of the validators"},
		"another app hash":             {raw: rpc, p: wrongApp, want: observer.Fork, said: "signed by the validators; the dump has", by: byHeader},
		"strangers of the same name":   {raw: h.stranger.RPC, p: p, want: observer.OtherChain, said: "unknown to the dump"},
		"another chain":                {raw: between(t, rpc, func(_ call, b []byte) []byte { return bytes.ReplaceAll(b, []byte("attested-1"), []byte("attested-2")) }), p: p, want: observer.OtherChain, said: "on chain attested-2"},
		"app hash altered in a header": {raw: altered("commit", p.Index, swap(`"app_hash":"([0-9A-F]+)"`)), p: p, want: observer.Liar, said: "does not fit together"},
		"data hash altered":            {raw: altered("commit", p.Index, swap(`"data_hash":"([0-9A-F]+)"`)), p: p, want: observer.Liar, said: "does not fit together"},
		"signature altered":            {raw: altered("commit", p.Index, swap(`"signature":"([^"]+)"`)), p: p, want: observer.Liar, said: "is not signed"},
		"validators altered":           {raw: altered("validators", p.Index, swap(`"value":"([^"]+)"`)), p: p, want: observer.Liar, said: "does not fit together"},
		"voting power altered": {raw: altered("validators", p.Index, func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(`"voting_power":"10"`), []byte(`"voting_power":"1"`))
		}), p: p, want: observer.Liar, said: "does not fit together"},
		"another height":                {raw: whole, p: p, want: observer.Liar, said: "does not fit together"},
		"app hash altered in the next":  {raw: altered("commit", p.Index+1, swap(`"app_hash":"([0-9A-F]+)"`)), p: p, want: observer.Liar, said: "does not fit together"},
		"signature altered in the next": {raw: altered("commit", p.Index+1, swap(`"signature":"([^"]+)"`)), p: p, want: observer.Liar, said: "does not follow"},
		"behind": {raw: between(t, rpc, func(c call, b []byte) []byte {
			return regexp.MustCompile(`"latest_block_height":"\d+"`).ReplaceAll(b, []byte(`"latest_block_height":"1"`))
		}), p: p, want: observer.Laggard, said: "at height 1"},
		"pruned": {raw: altered("commit", p.Index, func([]byte) []byte {
			return refusal(fmt.Sprintf("height %d is not available, lowest height is 900", p.Index))
		}), p: p, want: observer.Pruned, said: "has pruned"},
		"gone":                       {raw: "http://" + gone.Addr().String(), p: p, want: observer.Unreachable, said: "refused"},
		"no node":                    {raw: silentServer(t, func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }), p: p, want: observer.Unreachable},
		"broken":                     {raw: silentServer(t, func(w http.ResponseWriter) { w.WriteHeader(500) }), p: p, want: observer.Unreachable},
		"long-winded":                {raw: between(t, rpc, func(call, []byte) []byte { return refusal(strings.Repeat("no\n", 1<<20)) }), p: p, want: observer.Unreachable, said: "no no no"},
		"no end":                     {raw: silentServer(t, func(w http.ResponseWriter) { endless(w) }), p: p, want: observer.Unreachable},
		"no next block, app there":   {raw: app(p.Index, p.Hash), p: p, want: observer.Agrees, by: byABCIInfo},
		"no next block, other app":   {raw: app(p.Index, b.AppHash), p: p, want: observer.Liar, said: "nobody has signed", by: byABCIInfo},
		"no next block, app further": {raw: app(p.Index+1, p.Hash), p: p, want: observer.Pending, said: "its app is at"},
		"secret":                     {raw: strings.Replace(noNext(func(call, []byte) []byte { return refusal("no token-hunter2 here") }), "//", "//me:hunter2@", 1) + "/token-hunter2", p: p, want: observer.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &Attestor{Witnesses: []string{c.raw}}
			e, err := a.Attest(t.Context(), c.p, observer.Evidence{}, 0)
			must(t, err)
			got := e.Of[0]
			t.Logf("%s: %s: %s", e.Grade(), got.Verdict, got.Said)
			if got.Verdict != c.want || !strings.Contains(got.Said, c.said) || got.By != c.by || (got.Said == "") != (c.want == observer.Agrees) {
				t.Errorf("%+v, want %s: %s", got, c.want, c.said)
			}
			if got.Height != p.Index || got.When.IsZero() || len(got.Said) > 800 || strings.ContainsAny(got.Said, "\n\x1b") || strings.Contains(fmt.Sprint(e), "hunter2") {
				t.Errorf("%+v", got)
			}
			if c.want == observer.Agrees && (got.BlockHash != p.Marks[markBlock] || got.AppHash != hex.EncodeToString(p.Hash)) {
				t.Errorf("%+v, want block %s and app hash %X", got, p.Marks[markBlock], p.Hash)
			}
		})
	}
}

// endless writes until nobody reads any more.
func endless(w http.ResponseWriter) {
	for {
		if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<20)); err != nil {
			return
		}
	}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// Those who cannot say yet are waited for, and asked once more where they could
// not; who has agreed is not asked again.
func TestAttestWaitsForTheNextBlock(t *testing.T) {
	t.Parallel()
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: 1, ChainID: "slow-1", Commit: 2 * time.Second})
	must(t, err)
	v, o := run(t, homes[0]), run(t, homes[1])
	v.reach(1)
	v.keepBusy()
	o.reach(3)
	o.stop()
	l := layoutOf(t, homes[1].Dir, nil)
	st := staged(t, l)
	p, err := l.Locate(t.Context(), st, Offline{})
	must(t, err)
	var asked atomic.Int64
	counted := between(t, v.RPC, func(_ call, b []byte) []byte { asked.Add(1); return b })
	a := &Attestor{Witnesses: []string{counted, between(t, v.RPC, func(c call, b []byte) []byte {
		if c.Method == "status" {
			return refusal("not ready")
		}
		return b
	})}}
	begun := time.Now()
	e, err := a.Attest(t.Context(), p, observer.Evidence{}, 20*time.Second)
	must(t, err)
	if e.Grade() != "1 of 2" || e.Of[0].By != byHeader || e.Of[1].Verdict != observer.Unreachable {
		t.Errorf("%s after %s: %+v", e.Grade(), time.Since(begun), e.Of)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %s: one who agrees is enough to stop waiting", took)
	}
	n := asked.Load()
	a.Witnesses[1] = v.RPC
	e, err = a.Attest(t.Context(), p, e, 0)
	must(t, err)
	if e.Grade() != "2 of 2" || asked.Load() != n {
		t.Errorf("%s, the first was asked %d times more: %+v", e.Grade(), asked.Load()-n, e.Of)
	}
	if e, err := new(Attestor).Attest(t.Context(), p, observer.Evidence{}, 0); err != nil || e.Grade() != "not possible" || e.NotPossible == "" {
		t.Errorf("without witnesses: %+v, %v", e, err)
	}
	again := p
	p.Marks = nil
	if e, err := a.Attest(t.Context(), p, observer.Evidence{}, 0); err != nil || e.Grade() != "not possible" || e.NotPossible == "" {
		t.Errorf("without a block: %+v, %v", e, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Attestor{Witnesses: []string{v.RPC}}).Attest(ctx, again, observer.Evidence{}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// What a witness says must lead back to a pinned block, and the trust is carried on.
func leadsBackToAPinnedBlock(t *testing.T, h history) {
	ctx, file := t.Context(), filepath.Join(t.TempDir(), "trust.json")
	hashAt := func(n *running, height int64) []byte {
		b, err := lightBlock(ctx, n.RPC, "attested-1", height)
		must(t, err)
		return b.Hash()
	}
	pin := func(n *running) *Trusted {
		return &Trusted{Height: 2, Hash: hashAt(n, 2), Period: time.Hour}
	}
	at := func(height int64, hash []byte, period time.Duration) *Trusted {
		return &Trusted{Height: height, Hash: hash, Period: period}
	}
	carried := pin(h.validator)
	carried.File = file
	for _, c := range []struct {
		name string
		raw  string
		t    *Trusted
		want string
		said string
		no   bool // the dump cannot be of the trusted chain
	}{
		{"honest", h.validator.RPC, pin(h.validator), observer.Agrees, "", false},
		{"honest, carried on", h.validator.RPC, carried, observer.Agrees, "", false},
		{"the dump is of the fork", h.forked.RPC, pin(h.forked), observer.Fork, "leads back to the pinned one", false},
		{"the witness is of the fork", h.forked.RPC, pin(h.validator), observer.OtherChain, "is trusted", false},
		{"strangers", h.stranger.RPC, pin(h.validator), observer.OtherChain, "is trusted", false},
		{"too old", h.validator.RPC, at(2, hashAt(h.validator, 2), time.Millisecond), observer.Pruned, "older than attest.trusted.period", false},
		{"pruned", between(t, h.validator.RPC, func(c call, b []byte) []byte {
			if c.at("commit", 2) {
				return refusal("height 2 is not available, lowest height is 900")
			}
			return b
		}), pin(h.validator), observer.Pruned, "has pruned height 2", false},
		{"the very height", h.validator.RPC, at(int64(h.p.Index), hashAt(h.validator, int64(h.p.Index)), time.Hour), observer.Agrees, "", false},
		{"a wrong pin", h.validator.RPC, at(2, bytes.Repeat([]byte{1}, 32), time.Hour), observer.OtherChain, "is trusted", true},
	} {
		e, err := (&Attestor{Witnesses: []string{c.raw}, Trusted: c.t}).Attest(ctx, h.p, observer.Evidence{}, 0)
		must(t, err)
		if len(e.Of) != 1 || e.Of[0].Verdict != c.want || !strings.Contains(e.Of[0].Said, c.said) || !strings.Contains(e.Trust, "pinned") || (e.Refuted != "") != c.no {
			t.Errorf("%s: %+v, want %s: %s", c.name, e, c.want, c.said)
		}
	}
	if height, hash := carried.carried(int64(h.p.Index)); height != int64(h.p.Index) || hex.EncodeToString(hash) != h.p.Marks[markBlock] {
		t.Errorf("carried to %d: %X", height, hash)
	}
	// A file of another pin, or one that is damaged, counts for nothing.
	other := *carried
	other.Hash = hashAt(h.forked, 2)
	if height, _ := other.carried(int64(h.p.Index)); height != 2 {
		t.Errorf("the trust of another pin was taken: %d", height)
	}
	must(t, os.WriteFile(file, []byte("{"), 0o600))
	if height, _ := carried.carried(int64(h.p.Index)); height != 2 {
		t.Errorf("a damaged file was believed: %d", height)
	}
	// One witness that says so is not enough while another cannot be asked.
	wrong := at(2, bytes.Repeat([]byte{1}, 32), time.Hour)
	if e, err := (&Attestor{Witnesses: []string{h.validator.RPC, "http://127.0.0.1:1"}, Trusted: wrong}).Attest(ctx, h.p, observer.Evidence{}, 0); err != nil || e.Refuted != "" || e.Grade() != "0 of 2" {
		t.Errorf("a wrong pin, one of two: %+v, %v", e, err)
	}
	for name, c := range map[string]struct {
		pinned *Trusted
		no     bool
	}{
		"another block at this height": {at(int64(h.p.Index), bytes.Repeat([]byte{1}, 32), time.Hour), true},
		"a height to come":             {at(int64(h.p.Index)+9, bytes.Repeat([]byte{1}, 32), time.Hour), false},
	} {
		e, err := (&Attestor{Witnesses: []string{h.validator.RPC}, Trusted: c.pinned}).Attest(ctx, h.p, observer.Evidence{}, 0)
		must(t, err)
		if e.Grade() != "not possible" || (e.Refuted != "") != c.no || (e.NotPossible == "") != c.no {
			t.Errorf("%s: %+v", name, e)
		}
	}

	// The gate compares histories before anything is stopped.
	o := run(t, h.observer)
	o.reach(int64(h.p.Index) + 1)
	liar := between(t, h.validator.RPC, func(c call, b []byte) []byte {
		if c.Method == "commit" {
			return swap(`"block_id":\{"hash":"([0-9A-F]{64})"`)(b)
		}
		return b
	})
	for _, c := range []struct {
		name      string
		witnesses []string
		want      string // in the refusal; "": none
		verdicts  []string
	}{
		{"the same history", []string{h.validator.RPC}, "", []string{observer.Agrees}},
		{"a fork", []string{h.validator.RPC, h.forked.RPC}, "the chain has forked", []string{observer.Agrees, observer.Fork}},
		{"strangers only", []string{h.stranger.RPC}, "no witness shares the node's history", []string{observer.OtherChain}},
		{"a stranger beside", []string{h.stranger.RPC, h.validator.RPC}, "", []string{observer.OtherChain, observer.Agrees}},
		{"a liar beside", []string{liar, h.validator.RPC}, "", []string{observer.Liar, observer.Agrees}},
	} {
		r, err := New(Options{Home: h.observer.Dir, RPC: h.observer.RPC, Witnesses: c.witnesses})
		must(t, err)
		s, err := r.Describe(ctx)
		must(t, err)
		for i, w := range s.Witness {
			if w.Verdict != c.verdicts[i] {
				t.Errorf("%s: %+v, want %s", c.name, w, c.verdicts[i])
			}
		}
		err = r.witnessesAgree(s)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, observer.ErrNotFit)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// What is trusted never goes back: an older backup may be asked about later.
func TestTrustIsCarriedOnlyForward(t *testing.T) {
	p := &Trusted{Height: 1, Hash: bytes.Repeat([]byte{1}, 32), Period: time.Hour, File: filepath.Join(t.TempDir(), "trust.json")}
	at := func(height int64) claim {
		c := claim{height: height}
		c.block.Hash = bytes.Repeat([]byte{byte(height)}, 32)
		return c
	}
	for _, c := range []struct{ height, want int64 }{{10, 10}, {5, 10}, {10, 10}, {12, 12}} {
		must(t, p.keep(at(c.height)))
		if got, hash := p.carried(100); got != c.want || hash[0] != byte(c.want) {
			t.Errorf("kept %d: %d %x", c.height, got, hash)
		}
	}
	if got, _ := p.carried(11); got != 1 {
		t.Errorf("for a height below: %d", got)
	}
}
