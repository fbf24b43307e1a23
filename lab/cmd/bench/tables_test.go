package main

import (
	"os"
	"path/filepath"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
)

// A node opens such a database, writes to it, and keeps its tables.
func TestGrowTables(t *testing.T) {
	dir := t.TempDir()
	const n = 3000 // more than a block of the log
	if err := growTables(filepath.Join(dir, "state.db"), n); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		db, err := dbm.NewDB("state", dbm.GoLevelDBBackend, dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.SetSync([]byte("stateKey"), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if b, err := db.Get([]byte("stateKey")); err != nil || string(b) != "x" {
			t.Errorf("%q, %v", b, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := filepath.Glob(filepath.Join(dir, "state.db", "*.ldb")); err != nil || len(all) < n {
		t.Errorf("%d tables, %v", len(all), err)
	}
}

func TestWatched(t *testing.T) {
	peak, out, err := watched(t.Context(), os.Environ(), "bash", "-c", "sleep 0.1; echo done")
	if err != nil || out != "done\n" || peak < 1<<20 || peak > 64<<20 {
		t.Errorf("%d bytes, %q, %v", peak, out, err)
	}
	if _, _, err := watched(t.Context(), os.Environ(), "bash", "-c", "exit 4"); err == nil {
		t.Error("a program that fails: no error")
	}
}
