// Package drill starts a node on a restored copy of a chain's data and proves that
// it executes the blocks after it with the results that the living chain has.
//
// A right hash at the head proves little: copies are known that match it on every
// store and compute a wrong one on the next block. The copy gets blocks from peers,
// or, with no network at all, from a throw-away peer of eddy's own that has fetched
// them by RPC. The package refuses to know any bucket, and what a live node does
// meanwhile. Its invariants: no key of the real node is ever in a drill's home and
// a copy with voting power is killed; nothing that the node would open, listen on
// or write lies outside the scratch directory and loopback; whatever happens,
// nothing that was started is left running.
package drill
