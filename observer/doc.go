// Package observer says what it is to observe a cluster: what a replica must be
// able to do to be backed up, what some replicas can do beyond that, and the
// words for a node's state and for a position in a replicated history.
//
// It refuses to know any bucket. The systems are packages below this one; how a
// node is stopped and started is observer/control.
package observer
