//go:build pebbledb

package cometbft

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

func pebbleTables(t testing.TB, dir string) (out []engine.Table) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{ReadOnly: true, Logger: quiet{}})
	must(t, err)
	defer db.Close()
	levels, err := db.SSTables()
	must(t, err)
	for _, level := range levels {
		for _, x := range level {
			out = append(out, engine.Table{Num: uint64(x.FileNum), Size: x.Size})
		}
	}
	slices.SortFunc(out, engine.ByNumber)
	return out
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Fatalf(string, ...any) {}
