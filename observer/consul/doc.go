// Package consul backs up the servers that give a snapshot of their raft state by
// HTTP: Consul, Nomad and Vault. One source serves the three; a system is a table of
// paths, headers and questions.
//
// It refuses to stop anything, to know what the snapshot means beyond its form and
// the counts of its records, and to believe a status of 200: how old the answer is
// stands in the headers, which are looked at before a byte counts, and whether it is
// whole in the archive itself. Its invariants: every call has a deadline; a token
// goes to the configured server only (of Vault: to the leader that it names), by a
// header, and stands in no error; of two snapshots at one index no byte need be
// equal, so that nothing is ever compared but index and term.
package consul
