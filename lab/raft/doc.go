// Package raft tries backups of real raft clusters by the real eddy: under load,
// with everything destroyed after, and every key proven when it is back.
//
// It holds tests only. Each kind has a file of its own.
package raft
