package cometbft

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cometbft/cometbft/privval"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
)

func TestSignFile(t *testing.T) {
	const oldKey = `{"address":"AA","last_height":"7","last_round":"1","last_signature":{"type":"ed25519","value":"c2ln"},"last_signbytes":"AB","last_step":2,"priv_key":{"type":"t","value":"topsecret"}}`
	const plain = `{"height":"9","round":0,"step":3,"signature":"bmV3","signbytes":"CD"}`
	for name, c := range map[string]struct {
		old, from string
		s         SignStatus
		want      []string
		never     []string
	}{
		"a new file":            {"", plain, SignStatus{Height: 9, Step: 3}, []string{`"height": "9"`, `"round": 0`, `"step": 3`, `"signature": "bmV3"`, `"signbytes": "CD"`}, nil},
		"over a lower one":      {`{"height":"1","round":5,"step":1,"signature":"b2xk"}`, plain, SignStatus{Height: 9, Step: 3}, []string{`"height": "9"`, `"round": 0`, `"signature": "bmV3"`}, []string{"b2xk"}},
		"into a key file":       {oldKey, plain, SignStatus{Height: 9, Step: 3}, []string{`"last_height": "9"`, `"last_round": "0"`, `"last_step": 3`, "topsecret", `"address": "AA"`}, []string{"bmV3", "c2ln", `"height"`}},
		"out of a key file":     {"", oldKey, SignStatus{Height: 7, Round: 1, Step: 2}, []string{`"height": "7"`, `"round": 1`, `"step": 2`}, []string{"topsecret", "c2ln", "priv_key", "AA"}},
		"between key files":     {oldKey, strings.Replace(oldKey, "c2ln", "bmV3", 1), SignStatus{Height: 8}, []string{`"last_height": "8"`, "bmV3", "topsecret"}, []string{"c2ln"}},
		"a key file without":    {`{"priv_key":{"value":"topsecret"}}`, "", SignStatus{Height: 4, Step: 1}, []string{`"last_height": "4"`, "topsecret"}, []string{`"height"`}},
		"a floor":               {plain, "", floorAt(20), []string{`"height": "20"`, `"round": 2147483647`}, []string{"bmV3", "CD"}},
		"names in another case": {`{"Height":"1","ROUND":5,"step":1}`, plain, SignStatus{Height: 9, Step: 3}, []string{`"Height": "9"`, `"ROUND": 0`}, []string{`"height"`}},
	} {
		t.Run(name, func(t *testing.T) {
			bytesOf := func(s string) []byte {
				if s == "" {
					return nil
				}
				return []byte(s)
			}
			b, err := signFile(bytesOf(c.old), bytesOf(c.from), c.s)
			must(t, err)
			for _, w := range c.want {
				if !strings.Contains(string(b), w) {
					t.Errorf("no %s in %s", w, b)
				}
			}
			for _, n := range c.never {
				if strings.Contains(string(b), n) {
					t.Errorf("%s in %s", n, b)
				}
			}
			if s, ok, err := parseSignState(b); err != nil || !ok || s != c.s {
				t.Errorf("read back %+v, %t, %v; want %+v", s, ok, err, c.s)
			}
		})
	}
	for _, bad := range []string{`{"topsecret`, `["topsecret"]`, `{"height":"1","priv_key":"topsecret"}`} {
		if _, err := signFile([]byte(bad), nil, SignStatus{Height: 3}); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: %v; want an error that quotes nothing", bad, err)
		}
	}
}

func FuzzSignFile(f *testing.F) {
	f.Add([]byte(`{"height":"5","round":0,"step":3,"signature":"x"}`), []byte(`{"last_height":5}`), int64(9))
	f.Add([]byte(`{"priv_key":{},"LAST_STEP":null}`), []byte(`{}`), int64(1))
	f.Fuzz(func(t *testing.T, old, from []byte, h int64) {
		want := SignStatus{Height: max(h, 0), Step: 2}
		b, err := signFile(old, from, want)
		if err != nil {
			return
		}
		if s, ok, err := parseSignState(b); err != nil || !ok || s != want {
			t.Fatalf("%q with %q: %q: %+v, %v", old, from, b, s, err)
		}
	})
}

// validator is a home with a real key that has signed.
func validator(t testing.TB, height int64) (home string, pv *privval.FilePV) {
	t.Helper()
	home = t.TempDir()
	put(t, home, map[string]string{"data/x": "", "config/config.toml": ""})
	pv = privval.GenFilePV(filepath.Join(home, "config/priv_validator_key.json"), filepath.Join(home, "data/priv_validator_state.json"))
	pv.Save()
	if height > 0 {
		must(t, sign(pv, height, "block"))
	}
	return home, pv
}

// sign signs a precommit for a block at a height.
func sign(pv *privval.FilePV, height int64, block string) error {
	hash := make([]byte, 32)
	copy(hash, block)
	return pv.SignVote("chain", &cmtproto.Vote{Type: cmtproto.PrecommitType, Height: height, BlockID: cmtproto.BlockID{
		Hash: hash, PartSetHeader: cmtproto.PartSetHeader{Total: 1, Hash: hash},
	}})
}

// CometBFT's own signer: what a naive restore does to it, and what ours does.
func TestARestoreWithUsDoesNotSignTwice(t *testing.T) {
	home, pv := validator(t, 5)
	stateFile := filepath.Join(home, "data/priv_validator_state.json")
	old, err := os.ReadFile(stateFile)
	must(t, err)
	must(t, sign(pv, 8, "the block that the chain has"))
	newest, err := os.ReadFile(stateFile)
	must(t, err)
	load := func() *privval.FilePV {
		return privval.LoadFilePV(filepath.Join(home, "config/priv_validator_key.json"), stateFile)
	}
	// Naive: the state goes back with the data. The key signs another block 8.
	must(t, os.WriteFile(stateFile, old, 0o600))
	must(t, sign(load(), 8, "another block"))
	// With us: what lies beside is carried, wherever somebody has left it.
	for _, left := range []string{".eddy/before-1/data/priv_validator_state.json", "data/priv_validator_state.json.bak", "data-backup-2026/priv_validator_state.json"} {
		must(t, os.WriteFile(stateFile, old, 0o600))
		put(t, home, map[string]string{left: string(newest)})
		must(t, replicaOf(t, home).CarrySigns(t.Context(), []string{filepath.Join(home, ".eddy/before-1")}))
		if err := sign(load(), 8, "another block"); err == nil || !strings.Contains(err.Error(), "conflicting data") {
			t.Errorf("%s: it signs a second block 8: %v", left, err)
		}
		must(t, sign(load(), 8, "the block that the chain has"))
		must(t, os.RemoveAll(filepath.Join(home, left)))
	}
	// A copy of another key's state is none of ours, nor is one that nobody can tell.
	must(t, os.WriteFile(stateFile, old, 0o600))
	other, opv := validator(t, 0)
	must(t, sign(opv, 900, "theirs"))
	theirs, err := os.ReadFile(filepath.Join(other, "data/priv_validator_state.json"))
	must(t, err)
	put(t, home, map[string]string{"data/priv_validator_state.old": string(theirs), "data-backup-1/priv_validator_state.json": `{"height":"700","round":0,"step":3}`, ".eddy/before-1/data/priv_validator_state.json": string(theirs)})
	must(t, replicaOf(t, home).CarrySigns(t.Context(), []string{filepath.Join(home, ".eddy/before-1")}))
	if now, err := os.ReadFile(stateFile); err != nil || string(now) != string(old) {
		t.Errorf("the state of another key was taken over: %s, %v", now, err)
	}
}

// The old form holds key and state: the state is merged into it, the key stays, and
// nothing of a key leaves.
func TestOldKeyFilesAreMerged(t *testing.T) {
	home := t.TempDir()
	const key = `{"address":"AA","last_height":"12","last_round":"0","last_step":2,"last_signature":null,"priv_key":{"type":"t","value":"topsecret"}}`
	put(t, home, map[string]string{
		"chaindata/data/x": "", "chaindata/config/priv_validator.json": key, "loom.yml": "",
		".eddy/before-1/chaindata/data/priv_validator_state.json": `{"height":"40","round":1,"step":3}`,
		".eddy/before-1/chaindata/config/priv_validator.json":     strings.Replace(key, `"12"`, `"30"`, 1),
	})
	must(t, replicaOf(t, home).CarrySigns(t.Context(), []string{filepath.Join(home, ".eddy/before-1")}))
	b, err := os.ReadFile(filepath.Join(home, "chaindata/config/priv_validator.json"))
	must(t, err)
	if s, ok, err := parseSignState(b); err != nil || !ok || s != (SignStatus{Height: 40, Round: 1, Step: 3}) || !strings.Contains(string(b), "topsecret") {
		t.Errorf("%s: %+v, %v", b, s, err)
	}
	// And out of it, where the node has become one of the newer form.
	put(t, home, map[string]string{
		"chaindata/config/config.toml":             "priv_validator_key_file = \"config/priv_validator_key.json\"\n",
		"chaindata/config/priv_validator_key.json": string(b),
	})
	must(t, os.Remove(filepath.Join(home, "chaindata/config/priv_validator.json")))
	must(t, replicaOf(t, home).CarrySigns(t.Context(), nil))
	b, err = os.ReadFile(filepath.Join(home, "chaindata/data/priv_validator_state.json"))
	must(t, err)
	if s, _, err := parseSignState(b); err != nil || s.Height != 40 || strings.Contains(string(b), "topsecret") {
		t.Errorf("%s, %v", b, err)
	}
	if fi, err := os.Stat(filepath.Join(home, "chaindata/data/priv_validator_state.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}

// names notes what a capture would take.
type names []string

func (n *names) Dir(string, string) error { return nil }
func (n *names) Link(_ context.Context, _, rel string) error {
	*n = append(*n, rel)
	return nil
}

func (n *names) Copy(_ context.Context, _, rel string) error {
	*n = append(*n, rel)
	return nil
}
func (n *names) Symlink(string, string) error          { return nil }
func (n *names) LeaveOut(string, string, string) error { return nil }

func TestNoArchiveTakesAKeyOrASignState(t *testing.T) {
	_, pv := validator(t, 3)
	home := filepath.Join(t.TempDir(), "home")
	real, err := os.ReadFile(filepath.Join(filepath.Dir(pvFile(t, pv)), "priv_validator_key.json"))
	must(t, err)
	secrets := map[string]string{
		// By name, whatever is in it.
		"data/priv_validator_state.json": "{}", "data/priv_validator_key.json.bak": "x", "data/old/PRIV_VALIDATOR.json": "x", "data/node_key.json": "x",
		"data/my-mnemonic.txt": "x", "data/keyring-file/k.info": "x", "data/bls_key.json": "x", "wasm/state/priv_validator.json~": "x",
		// By content, under names that nobody would suspect.
		"data/a": string(real), "data/b.txt": "\ufeff\n " + string(real), "data/list": "[" + string(real) + "]", "data/two": `{"x":1}` + string(real),
		"data/cut": string(real) + "\x00\x00", "data/deep": `{"keys":[{"mine":` + string(real) + `}]}`,
		"data/state1": `{"height":"5","round":0,"step":3}`, "data/state2": `{"height":"5","round":0,"step":3,"signature":"x","signbytes":"AB"}`,
		"data/both":  `{"address":"A","last_height":"5","last_round":"0","last_step":3,"priv_key":{"type":"t","value":"v"}}`,
		"data/both2": `{"last_height":5,"last_round":0,"last_step":3,"last_signature":"x"}`,
		"data/pem":   "some words\n-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "data/age": "# created\nAGE-SECRET-KEY-1" + strings.Repeat("Q", 58), "data/eth": `{"crypto":{"cipher":"aes","ciphertext":"x"},"version":3}`,
		"wasm/state/k": `{"mnemonic":"a b c d e f g h i j k l"}`,
	}
	plain := map[string]string{
		"data/application.db/CURRENT": "MANIFEST-000001\n", "data/app.json": `{"height":"5","round":0,"step":3,"of":"the app"}`,
		"data/tree.json": `{"nodes":[{"height":5,"round":0,"step":1}]}`, "data/text": "priv_key: none", "data/array": "[1,2,3]", "data/cut.json": `{"priv`,
	}
	put(t, home, secrets)
	put(t, home, plain)
	l, err := ReadLayout(home, nil, nil)
	must(t, err)
	w := walker{l: &l}
	must(t, w.walk(t.Context()))
	var got names
	for _, d := range w.dirs {
		must(t, w.capture(t.Context(), &got, d))
	}
	for name := range secrets {
		if slices.Contains(got, name) {
			t.Errorf("%s would be in the archive", name)
		}
	}
	for name := range plain {
		if !slices.Contains(got, name) {
			t.Errorf("%s would be missing in the archive", name)
		}
	}
}

func pvFile(t testing.TB, pv *privval.FilePV) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "priv_validator_key.json")
	privval.NewFilePV(pv.Key.PrivKey, file, filepath.Join(dir, "s")).Save()
	return file
}
