// Package etcd pins a real etcd, its server and its tools, for tests: `make lab-etcd`
// builds them. Nothing is imported from it.
package etcd
