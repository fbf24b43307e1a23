//go:build !pebbledb

package cometbft

// readers are the engines whose databases this build can open. With the tag
// pebbledb there is one more.
var readers = map[Engine]reader{GoLevelDB: readGoLevelDB}
