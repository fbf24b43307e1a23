//go:build !pebbledb

package node

const pebbleBuiltIn = false
