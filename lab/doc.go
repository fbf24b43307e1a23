// Package lab runs the real servers that demo, tests and benchmarks need.
//
// It is a module of its own so that the product's go.mod stays lean: a server
// brings a hundred modules with it. The servers are built from the module proxy
// at the versions pinned in lab/go.mod; this package starts their binaries on a
// free loopback port in a directory of their own, says when they are ready, and
// stops them again. Machine boots a whole systemd for what needs one. It refuses to know eddy. Its invariant: whatever it started
// is gone, with its directory, when Stop has returned.
package lab
