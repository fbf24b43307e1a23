// Package drill drills a large chain of real blocks and looks for what is left.
package drill
