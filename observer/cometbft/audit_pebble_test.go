//go:build pebbledb

package cometbft

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble"
)

func pebbleTables(t testing.TB, dir string) (out []table) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{ReadOnly: true, Logger: silent{}})
	must(t, err)
	defer db.Close()
	levels, err := db.SSTables()
	must(t, err)
	for _, level := range levels {
		for _, x := range level {
			out = append(out, table{uint64(x.FileNum), x.Size})
		}
	}
	slices.SortFunc(out, byNumber)
	return out
}
