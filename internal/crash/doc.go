// Package crash plays what a crash leaves, at every change that eddy makes.
//
// It is a simulation in one process: the real job, snapshot and uploader packages,
// with a bucket in memory, a node that is a few files, and a clock of its own. Every
// change to a file, every request that changes the bucket and every stop and start of
// the node is an effect with a name. A process is stopped at one of them, a new one
// goes on with what is left, and a checker that shares no code with the engine says
// whether the invariants hold.
//
// It has no code that is built into eddy. `make crash` runs its tests.
package crash
