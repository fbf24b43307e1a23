// Package command backs up whatever a program prints: its stdout is the dump.
//
// It runs argvs, never a shell, and takes nothing for granted: a dump is one when
// the program has exited with 0, has printed something, and what it printed is what
// the configuration says it must be. It refuses to know what is in the dump beyond
// that, and secrets reach the program by its environment only. Its invariants: a
// program that has not ended in time is killed with all that it started; nothing of
// what it prints goes anywhere but into the dump, and of its stderr no more than a
// few lines go on.
package command
