package grow_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	dbm "github.com/cometbft/cometbft-db"

	"github.com/eddy-backup/eddy/lab/grow"
)

func TestRun(t *testing.T) {
	for engine, table := range map[string]string{"goleveldb": "*.ldb", "pebbledb": "*.sst"} {
		t.Run(engine, func(t *testing.T) {
			dir := t.TempDir()
			o := grow.Options{Dir: dir, Engine: engine, Prefix: "g-", Size: 32 << 20, Seed: 1}
			res, err := grow.Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if res.OnDisk < 16<<20 || res.OnDisk > 128<<20 {
				t.Errorf("%d bytes on disk, asked for %d", res.OnDisk, o.Size)
			}
			for _, name := range []string{"blockstore", "application", "tx_index", "state"} {
				tables, err := filepath.Glob(filepath.Join(dir, "g-"+name+".db", table))
				if err != nil || len(tables) == 0 {
					t.Errorf("%s has no %s: %v", name, table, err)
				}
			}
			db, err := dbm.NewDB("g-blockstore", dbm.BackendType(engine), dir)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			v, err := db.Get([]byte("P:3:1"))
			if err != nil || len(v) != 65_000 {
				t.Errorf("P:3:1 has %d bytes, %v", len(v), err)
			}
			if _, err := grow.Run(t.Context(), o); !errors.Is(err, fs.ErrExist) {
				t.Errorf("second run: %v, want refusal", err)
			}
		})
	}
}

func TestRunMore(t *testing.T) {
	o := grow.Options{Dir: t.TempDir(), Engine: "pebbledb", Size: 8 << 20, Seed: 1, More: true}
	if _, err := grow.Run(t.Context(), o); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("more of nothing: %v", err)
	}
	o.More = false
	before, err := grow.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.More, o.Size = true, 2*before.OnDisk
	after, err := grow.Run(t.Context(), o)
	if err != nil || after.OnDisk <= before.OnDisk {
		t.Fatalf("%d bytes became %d, %v", before.OnDisk, after.OnDisk, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := grow.Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(o.Dir, "*.db")); err != nil || len(left) != 4 {
		t.Fatalf("%v are left of four databases, %v", left, err)
	}
}

func TestRunCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	o := grow.Options{Dir: dir, Engine: "goleveldb", Size: 1 << 40, Progress: func(int64) { cancel() }}
	if _, err := grow.Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRunUnknownEngine(t *testing.T) {
	if _, err := grow.Run(t.Context(), grow.Options{Dir: t.TempDir(), Engine: "bolt", Size: 1}); err == nil {
		t.Error("no error")
	}
}
