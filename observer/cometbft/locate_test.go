package cometbft

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/crypto/ed25519"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/snapshot"
)

const testGenesis = `{"genesis_time":"2026-01-02T03:04:05.678+02:00","chain_id":"eddy-test","initial_height":"5","app_state":{}}`

// chainHome makes a home whose state database says height.
func chainHome(t testing.TB, backend dbm.BackendType, base string, height int64) string {
	t.Helper()
	home := t.TempDir()
	dir := filepath.Join(home, base)
	put(t, dir, map[string]string{"config/genesis.json": testGenesis, "config/config.toml": "", "data/cs.wal/wal": ""})
	db, err := dbm.NewDB("state", backend, filepath.Join(dir, "data"))
	must(t, err)
	key := ed25519.GenPrivKeyFromSecret([]byte("test")).PubKey()
	s, err := sm.MakeGenesisState(&types.GenesisDoc{
		ChainID: "eddy-test", InitialHeight: 5, GenesisTime: time.Unix(1, 0), ConsensusParams: types.DefaultConsensusParams(),
		Validators: []types.GenesisValidator{{Address: key.Address(), PubKey: key, Power: 1}},
	})
	must(t, err)
	s.LastBlockHeight, s.AppHash = height, []byte{0xAB, 0xCD}
	s.LastBlockTime = time.Unix(1800000000, 7)
	s.LastBlockID = types.BlockID{Hash: bytes.Repeat([]byte{9}, 32), PartSetHeader: types.PartSetHeader{Total: 1, Hash: bytes.Repeat([]byte{8}, 32)}}
	s.LastValidators = s.Validators
	must(t, db.SetSync([]byte("stateKey"), s.Bytes()), db.Close())
	return home
}

func TestLocateReadsTheDumpAndLeavesItAlone(t *testing.T) {
	for backend, engine := range backends() {
		for _, base := range []string{"", loomBase} {
			home := chainHome(t, backend, base, 42)
			l := layoutOf(t, home, nil)
			st := staged(t, l)
			before := sums(t, st)
			p, err := l.Locate(t.Context(), st, Offline{})
			must(t, err)
			want, err := Incarnation(home)
			must(t, err)
			if p.Index != 42 || !bytes.Equal(p.Hash, []byte{0xAB, 0xCD}) || p.HashKind != "app_hash" || p.Incarnation != want ||
				p.Consistency != "stopped" || !p.Time.Equal(time.Unix(1800000000, 7)) {
				t.Errorf("%s: position %+v", engine, p)
			}
			tip, err := l.Tip(t.Context(), st, Offline{})
			must(t, err)
			if tip.ChainID != "eddy-test" || tip.Engine != engine || !bytes.Equal(tip.BlockHash, bytes.Repeat([]byte{9}, 32)) {
				t.Errorf("%s: tip %+v", engine, tip)
			}
			after := sums(t, st)
			if len(before) != len(after) {
				t.Errorf("%s: the stage had %d files, has %d", engine, len(before), len(after))
			}
			names, err := os.ReadDir(filepath.Join(home, snapshot.StageDir))
			must(t, err)
			if len(names) != 1 {
				t.Errorf("%s: left beside the stage: %v", engine, names)
			}
			staged, err := os.ReadDir(filepath.Join(home, snapshot.StageDir, testID, base, "data/state.db"))
			must(t, err)
			for _, n := range staged {
				if n.Name() == "LOCK" {
					t.Errorf("%s: the stage was opened: it has a LOCK", engine)
				}
			}
		}
	}
}

func TestLocateTellsNoPositionFromABadDump(t *testing.T) {
	// Another chain's genesis beside the data.
	home := chainHome(t, dbm.GoLevelDBBackend, "", 42)
	put(t, home, map[string]string{"config/genesis.json": strings.Replace(testGenesis, "eddy-test", "other", 1)})
	l := layoutOf(t, home, nil)
	if _, err := l.Locate(t.Context(), staged(t, l), Offline{}); err == nil || errors.Is(err, ErrNoPosition) || !strings.Contains(err.Error(), "other") {
		t.Errorf("another chain's genesis: %v", err)
	}

	// A dump whose tables are damaged must not pass for one that cannot be read.
	for backend, engine := range backends() {
		home = chainHome(t, backend, "", 42)
		manifests, err := filepath.Glob(filepath.Join(home, "data/state.db/MANIFEST-*"))
		must(t, err)
		for _, m := range manifests {
			must(t, os.WriteFile(m, []byte("this is no manifest, whatever its name says"), 0o600))
		}
		l = layoutOf(t, home, nil)
		if _, err := l.Tip(t.Context(), staged(t, l), Offline{}); err == nil || errors.Is(err, ErrNoPosition) {
			t.Errorf("%s with a broken manifest: %v, want an error that is not ErrNoPosition", engine, err)
		}
	}

	// No state database, an empty one, one of another engine or generation.
	home = t.TempDir()
	put(t, home, map[string]string{"data/x": "", "config/genesis.json": testGenesis})
	l = layoutOf(t, home, nil)
	if _, err := l.Locate(t.Context(), staged(t, l), Offline{}); !errors.Is(err, ErrNoPosition) {
		t.Errorf("no state.db: %v, want ErrNoPosition", err)
	}
	for name, value := range map[string][]byte{"empty": nil, "other": []byte("\x0a\x08amino...")} {
		home = t.TempDir()
		put(t, home, map[string]string{"data/x": "", "config/genesis.json": testGenesis})
		db, err := dbm.NewDB("state", dbm.GoLevelDBBackend, filepath.Join(home, "data"))
		must(t, err)
		if value != nil {
			must(t, db.SetSync([]byte("stateKey"), value))
		}
		must(t, db.Close())
		l = layoutOf(t, home, nil)
		if _, err := l.Locate(t.Context(), staged(t, l), Offline{}); !errors.Is(err, ErrNoPosition) {
			t.Errorf("%s: %v, want ErrNoPosition", name, err)
		}
	}
	home = t.TempDir()
	put(t, home, map[string]string{"data/state.db/IDENTITY": "i", "data/state.db/CURRENT": "c", "config/genesis.json": testGenesis})
	l = layoutOf(t, home, nil)
	if _, err := l.Locate(t.Context(), staged(t, l), Offline{}); !errors.Is(err, ErrNoPosition) || !strings.Contains(err.Error(), "rocksdb") {
		t.Errorf("rocksdb: %v, want ErrNoPosition that names it", err)
	}
}
