package cometbft

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// restoreHome makes a home with the files of a list, all of them empty.
func restoreHome(t *testing.T, files ...string) (home string) {
	t.Helper()
	home = filepath.Join(t.TempDir(), "home")
	for _, f := range append(files, "config/config.toml", "data/application.db/CURRENT", "data/application.db/000001.ldb") {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(home, f)), 0o755), os.WriteFile(filepath.Join(home, f), nil, 0o644))
	}
	return home
}

func replicaOf(t *testing.T, home string) *Replica {
	t.Helper()
	r, err := New(Options{Home: home, RPC: "http://127.0.0.1:1", Control: control.NewSupervise("/nowhere")})
	must(t, err)
	return r
}

func TestCoverKeepsKeysAndReplacesData(t *testing.T) {
	home := restoreHome(t,
		"data/priv_validator_state.json", "data/tx_index.db/CURRENT", "data/upgrade-info.json", "data/data-backup-1/x", "data/snapshots/1/chunk",
		"data/application.db/LOCK", "wasm/state/x", "wasm/cache/y", "keyring-file/k", "notes", "config/genesis.json",
	)
	secret := filepath.Join(home, "data/odd/name")
	must(t, os.MkdirAll(filepath.Dir(secret), 0o755), os.WriteFile(secret, []byte(`{"priv_key":{"type":"x","value":"hunter2hunter2"}}`), 0o600))
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.MkdirAll(filepath.Join(disk, "sub"), 0o755), os.WriteFile(filepath.Join(disk, "CURRENT"), nil, 0o644),
		os.Symlink(disk, filepath.Join(home, "data/blockstore.db")))
	r := replicaOf(t, home)
	cover, err := r.Cover(t.Context())
	must(t, err)
	roots, err := r.Roots(t.Context())
	must(t, err)
	for rel, want := range map[string]snapshot.Part{
		"data": snapshot.Partly, "data/priv_validator_state.json": snapshot.Kept, "data/application.db": snapshot.Replaced,
		"data/tx_index.db": snapshot.Replaced, "data/upgrade-info.json": snapshot.Replaced, "data/data-backup-1": snapshot.Foreign,
		"data/snapshots": snapshot.Replaced, "data/odd": snapshot.Partly, "data/odd/name": snapshot.Kept,
		"data/new.db": snapshot.Replaced, "wasm": snapshot.Replaced, "keyring-file": snapshot.Kept, "notes": snapshot.Foreign,
		"config": snapshot.Kept, "data/blockstore.db": snapshot.Kept, "data/sub/priv_validator_key.json": snapshot.Kept, ".eddy-root": snapshot.Kept,
	} {
		st, err := os.Stat(filepath.Join(home, rel))
		if got := cover(roots[0], rel, err == nil && st.IsDir()); got != want {
			t.Errorf("%s: %d, want %d", rel, got, want)
		}
	}
	if len(roots) != 2 {
		t.Fatalf("roots: %+v", roots)
	}
	if got := cover(roots[1], "CURRENT", false); got != snapshot.Replaced {
		t.Errorf("a file of a root of its own: %d", got)
	}
}

func TestSignStateIsCarriedUpOnly(t *testing.T) {
	home := restoreHome(t, "config/priv_validator_key.json")
	must(t, os.WriteFile(filepath.Join(home, "config/priv_validator_key.json"), []byte("{}"), 0o600))
	own := filepath.Join(home, "data/priv_validator_state.json")
	write := func(file, height string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(`{"height":"`+height+`","round":0,"step":1}`), 0o600))
	}
	came, before := filepath.Join(home, ".eddy/restore-x"), filepath.Join(home, ".eddy/before-y")
	for _, tc := range []struct{ own, came, before, want string }{
		{"5", "", "", "5"}, {"5", "4", "3", "5"}, {"5", "9", "7", "9"}, {"5", "1", "70", "70"}, {"", "3", "2", "3"},
	} {
		must(t, os.RemoveAll(filepath.Join(home, ".eddy")), os.RemoveAll(own))
		for file, height := range map[string]string{own: tc.own, filepath.Join(came, "data/priv_validator_state.json"): tc.came, filepath.Join(before, "data/priv_validator_state.json"): tc.before} {
			if height != "" {
				write(file, height)
			}
		}
		for range 2 {
			must(t, replicaOf(t, home).CarrySigns(t.Context(), []string{came, before}))
		}
		b, err := os.ReadFile(own)
		must(t, err)
		if !strings.Contains(string(b), `"`+tc.want+`"`) {
			t.Errorf("%+v: %s", tc, b)
		}
	}
}
