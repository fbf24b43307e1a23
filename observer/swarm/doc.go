// Package swarm observes a manager of a Docker Swarm.
//
// It knows where a manager keeps its state (DATA_ROOT/swarm: certificates, the node's
// key, the encrypted raft log and its snapshots), how to read all of that without an
// engine, what the engine says of the swarm over its socket, and what makes a copied
// state a running swarm again. It refuses to stop a manager that leads, or that the
// quorum needs, or that would stay locked.
//
// The formats are those of github.com/moby/swarmkit/v2 and go.etcd.io/etcd; why they
// are read by lines of our own stands in docs/decisions. Its invariant: every byte of a
// dump is covered by something that Check looks at, and no key, and nothing of a
// secret's content, is in an error, a log or a position.
package swarm
