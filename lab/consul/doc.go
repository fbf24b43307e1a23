// Package consul holds nothing of its own: its module pins consul, the server that
// backups of kind consul are tried on, and `make lab-consul` builds it. It is run as
// a server by tests, and nothing of it is linked into anything.
package consul
