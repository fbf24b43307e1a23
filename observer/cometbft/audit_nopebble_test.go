//go:build !pebbledb

package cometbft

import (
	"testing"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// pebbleTables is not called: without the tag no test makes a pebble database.
func pebbleTables(t testing.TB, dir string) []engine.Table {
	t.Helper()
	t.Fatalf("%s: this build has no pebble", dir)
	return nil
}
