// Package control stops and starts a node through whatever manages it, and
// makes sure that a node which eddy stopped runs again.
//
// Whoever holds the flock on hold.lock owns the hold journal and may start the
// node: eddy, then its guard, which inherits the descriptor. The journal is
// written before the stop and removed after the start. It refuses to know what
// is done while the node stands still.
//
// Invariant: from the moment the journal says holding, every path (error, panic,
// kill -9 of eddy or guard, a frozen eddy, a reboot) ends with the node started
// within the deadline, or with an open journal that the next eddy which may
// change something acts on.
package control
