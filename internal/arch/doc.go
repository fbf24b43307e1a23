// Package arch holds the tests that keep the house as it is drawn: who may
// import whom, where the large modules are allowed, what no library does, and a
// package comment everywhere.
//
// It has no code of its own. A package that is new needs a row in the table; a
// row that must change is a decision, not a slip.
package arch
