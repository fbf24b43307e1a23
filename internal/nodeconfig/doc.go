// Package nodeconfig changes single values of a node's config.toml, and the lists of
// peers in loom.yml and in what defines the node's service, and leaves every other
// byte of the file as it is: comments, order, formatting, line ends.
//
// It knows which values hide an observer from the address books of its peers. It
// refuses to know where the file lies and who may restart the node. Its invariant:
// what it returns parses to the same keys and values as what it was given, apart
// from those that were to change; whatever it cannot change so, it refuses.
package nodeconfig
