// Package control stops and starts a node through whatever manages it, and
// makes sure that a node which eddy stopped runs again.
//
// There are three ways. NewSupervise talks to "eddy supervise", the node's parent
// (Supervise, PROTOCOL.md): a hold lives and dies with a connection, and nothing
// is written to disk. NewExec runs the operator's commands, NewDocker asks a
// container engine; a hold then has a journal and a guard process (RunGuard) that
// outlives eddy. NewSystemd asks systemd; such a hold has, beside journal and
// guard process, a timer of systemd's that looks after both (RunUnitGuard).
// AllDown makes the proof, beyond any manager's word, that a node is down.
//
// For all but supervise, whoever holds the flock on hold.lock owns the hold journal and may
// start the node: eddy, then its guard, which inherits the descriptor. The
// journal is written before the stop and removed after the start. The package
// refuses to know what is done while the node stands still.
//
// Invariant: from the moment the journal says holding, every path (error, panic,
// kill -9 of eddy or guard, a frozen eddy, a reboot) ends with the node started
// within the deadline, or with an open journal that the next eddy which may
// change something acts on.
package control
