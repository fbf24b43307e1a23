// Package zookeeper observes ensembles of Apache ZooKeeper.
//
// It knows the four-letter words that a server answers, its zoo.cfg, and the forms of
// its snapshots and transaction logs, which it reads to the last byte without Java. It
// refuses to know any bucket and how a server is stopped. Its invariants: the leader
// and a follower whose stop would cost the quorum are never held; myid never travels;
// what is restored was read to its end before, with every checksum right and no gap
// from the snapshot to the last transaction.
//
// The forms are those of ZooKeeper 3.4 to 3.9, as FileSnap, FileTxnLog and SnapStream
// of org.apache.zookeeper.server.persistence write them; 3.8 was measured.
package zookeeper
