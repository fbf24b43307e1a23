//go:build !pebbledb

package engine

import "errors"

// CanOpen tells which engines this program can open. The tag pebbledb adds pebble.
func CanOpen(e Engine) bool { return e == GoLevelDB }

func openPebble(string) (DB, error) { return nil, errors.New("this build has no pebble") }
