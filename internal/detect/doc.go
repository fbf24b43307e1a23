// Package detect finds the chain nodes of a machine and what eddy.yaml must say
// of them.
//
// Look gathers what the machine runs (systemd's services, processes, containers)
// into a Host. Everything after it is a function of that value, of the files of
// the homes, and of what a Chain answers: the same Host gives the same answer, so
// set-ups can be written down and tested. A home is recognised by its files,
// never by the name of a program; a program's name only says where to look.
//
// The package changes nothing, starts nothing, and refuses to guess: a value that
// it gives comes with the place where it was found, and of two nodes it picks
// none. It keeps nothing of an environment but the variables that name homes,
// addresses and peers; no secret gets into a Host.
package detect
