// Package bundle collects the keys and the configuration of one node, seals them
// for age recipients, and opens them again.
//
// A bundle is a tar of regular files, compressed with zstd and encrypted with age:
// `age -d | zstd -d | tar -x` reads it. Its last member lists all others with
// their hashes, classes, modes and owners; FORMAT.md specifies it.
//
// It refuses to know where bundles go and who decides what of one is restored: no
// network, no bucket, no writing of files. Its invariants: nothing that it has read
// is ever written in the clear, to no disk; a file that changed while it was read is
// in no bundle; what [Open] returns was compared with the list to the last byte; what
// signs blocks is told from all else by the node's own configuration, by name and by
// content.
package bundle
