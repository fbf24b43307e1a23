// Package recovery decides what is to be done about a cluster that keeps its state
// by a quorum: what to back up while it is well, what not to touch while it is not,
// and in which order it is brought back.
//
// Decide is a function of what was seen: it asks nobody, runs nothing and reads no
// clock. Its invariants: no step gives up a cluster whose quorum stands, or of which
// two members say that they lead; nothing is restored, and no cluster is forced into
// one member, before those that are missing were looked for; what is given up was
// saved first, where anything is left that can be saved; where the quorum just stands
// nothing is stopped. Every step is commands that can be pasted.
package recovery
