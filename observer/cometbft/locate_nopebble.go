//go:build !pebbledb

package cometbft

// readerOf returns how a database of an engine is opened, nil where this build
// cannot. The tag pebbledb adds pebble.
func readerOf(e Engine) reader {
	if e == GoLevelDB {
		return readGoLevelDB
	}
	return nil
}
