// Package cometbft observes chains on CometBFT: Cosmos SDK chains, plain
// CometBFT apps, Loom.
//
// It knows a node's RPC, where a node keeps its files and which of them may be
// linked, and when a node may be stopped. It refuses to know any bucket and how
// a node is stopped. Its invariant: a node that takes part in consensus, or might,
// is never held still, and no key and no sign state is ever staged.
package cometbft
