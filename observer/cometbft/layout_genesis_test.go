package cometbft

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestIncarnationIsOfTheChainNotOfTheFile(t *testing.T) {
	sum := sha256.Sum256([]byte("eddy-test\n2026-01-02T01:04:05.678Z\n5\n"))
	want := hex.EncodeToString(sum[:])
	for name, file := range map[string]string{
		"as published":  testGenesis,
		"in UTC":        `{"chain_id":"eddy-test","initial_height":5,"genesis_time":"2026-01-02T01:04:05.678Z"}`,
		"other order":   "{\n \"app_state\": {\"chain_id\":\"no\",\"a\":[{\"initial_height\":\"9\"},[]]},\n \"initial_height\": \"5\", \"chain_id\": \"eddy-test\",\n \"genesis_time\": \"2026-01-02T01:04:05.678000Z\"}",
		"state at last": testGenesis + "and what follows is not read",
	} {
		home := t.TempDir()
		put(t, home, map[string]string{"data/x": "", "config/genesis.json": file})
		got, err := Incarnation(home)
		must(t, err)
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		chain, err := ChainID(home)
		if err != nil || chain != "eddy-test" {
			t.Errorf("%s: chain id %q, %v", name, chain, err)
		}
	}
	for _, h := range []string{`"initial_height":"1",`, `"initial_height":0,`, `"initial_height":null,`, ``} {
		g, err := readGenesis(strings.NewReader(`{` + h + `"chain_id":"x","genesis_time":"2026-01-02T01:04:05Z"}`))
		if err != nil || g.InitialHeight != 1 {
			t.Errorf("%s: %d, %v; want 1", h, g.InitialHeight, err)
		}
	}
}

func TestBrokenGenesisIsRefused(t *testing.T) {
	for _, file := range []string{
		``, `[]`, `{`, `{"chain_id":"x"`, `{"chain_id":""}`, `{"chain_id":{"a":1}}`, `{"chain_id":"a\nb","genesis_time":"2026-01-02T01:04:05Z"}`,
		`{"chain_id":"x","genesis_time":"yesterday"}`, `{"chain_id":"x","initial_height":"-1","genesis_time":"2026-01-02T01:04:05Z"}`,
		`{"chain_id":"x","initial_height":1.5}`, `{"app_state":{"a":[1,2}`, `{"genesis_time":"2026-01-02T01:04:05Z"}`,
	} {
		home := t.TempDir()
		put(t, home, map[string]string{"data/x": "", "config/genesis.json": file})
		if _, err := Incarnation(home); err == nil || hint.Of(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want an error in one line with a hint", file, err)
		}
	}
	home := t.TempDir()
	put(t, home, map[string]string{"data/x": ""})
	if _, err := ChainID(home); err == nil || hint.Of(err) == "" {
		t.Errorf("no genesis: %v, want an error with a hint", err)
	}
}

// TestALargeGenesisIsNotHeld reads 64 MB of application state that stands before
// the fields.
func TestALargeGenesisIsNotHeld(t *testing.T) {
	account := `{"address":"cosmos1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq","coins":[{"denom":"uatom","amount":"1000000"}]},`
	r := io.MultiReader(strings.NewReader(`{"app_state":{"accounts":[`), io.LimitReader(&repeat{s: account}, int64(len(account)*(64<<20/len(account)))),
		strings.NewReader(`{}]},"chain_id":"big","genesis_time":"2026-01-02T01:04:05Z","initial_height":"1"}`))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	g, err := readGenesis(r)
	runtime.ReadMemStats(&after)
	if err != nil || g.ChainID != "big" {
		t.Fatalf("%+v, %v", g, err)
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 32<<20 {
		t.Errorf("reading it took %d MB of heap", grown>>20)
	}
}

type repeat struct {
	s   string
	off int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.s[r.off:])
	r.off = (r.off + n) % len(r.s)
	return n, nil
}

func TestIncarnationTellsChainsApart(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) Genesis {
		return Genesis{
			ChainID: rapid.StringMatching(`[a-b1-2-]{1,3}`).Draw(t, "chain"), InitialHeight: rapid.Int64Range(1, 3).Draw(t, "height"),
			Time: time.Unix(rapid.Int64Range(0, 2).Draw(t, "time"), 0),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		if (a == b) != (a.Incarnation() == b.Incarnation()) {
			t.Fatalf("%+v and %+v", a, b)
		}
	})
}

func FuzzGenesis(f *testing.F) {
	f.Add(testGenesis)
	f.Add(`{"app_state":{"a":[1,{"b":null}]},"chain_id":"x","genesis_time":"2026-01-02T01:04:05Z"}`)
	f.Add(`{"chain_id":"x","genesis_time":`)
	f.Fuzz(func(t *testing.T, file string) {
		g, err := readGenesis(strings.NewReader(file))
		if err != nil {
			return
		}
		if g.ChainID == "" || g.InitialHeight < 1 {
			t.Fatalf("accepted %+v", g)
		}
		var whole struct {
			ChainID string `json:"chain_id"`
		}
		// A file that is valid as a whole and names each key once reads the same.
		if json.Unmarshal([]byte(file), &whole) == nil && strings.Count(strings.ToLower(file), "chain_id") == 1 && strings.Count(file, `\`) == 0 &&
			whole.ChainID != g.ChainID {
			t.Fatalf("read chain id %q, want %q", g.ChainID, whole.ChainID)
		}
	})
}
