// Package alone runs the throw-away server of a drill: one that knows nobody, on
// loopback, out of one directory, and that is gone when the drill is.
//
// What kind of server it is, how it is asked whether it serves, and what it must prove
// is for the package of the kind. Its invariant: no server, and nothing of its process
// group, is left behind a Stop, and the server is gone where eddy was killed without a
// chance to stop it.
package alone
