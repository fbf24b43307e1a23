// Package wasmd holds nothing of its own: its module pins the programs that make
// a real Cosmos SDK chain, wasmd and the cosmovisor that runs it, and `make
// lab-wasmd` builds them. It is a module apart so that lab's go.mod, and the many
// versions that a chain wants, stay out of each other's way.
package wasmd
