// Package etcd backs an etcd cluster up from one of its members, and brings it back.
//
// The member streams its database while it serves; nothing is stopped. Best is a
// learner: it has all that was decided and decides nothing. The package knows the
// snapshot to its bytes: what the stream ends with, the pages of the database, and
// the hash by which etcd's members compare what they hold, so that a dump is proven
// without a server, and attested by voters that it did not come from. It refuses to
// know how a member is started: a restore makes data directories, by etcd's own
// etcdutl, and says the order. Its invariants: a dump is read, never opened by what
// could write to it; every call has a deadline; no password stands anywhere but in
// memory; and what a restore replaces is kept aside.
package etcd
