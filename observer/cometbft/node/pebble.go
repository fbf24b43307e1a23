//go:build pebbledb

package node

const pebbleBuiltIn = true
