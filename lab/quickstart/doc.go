// Package quickstart types the quick starts of docs into a machine of their own.
//
// The commands are taken from the pages themselves, so that a page and what is
// tested cannot drift: a fenced block marked sh is typed as it stands, in the
// order of the page, and every command of it has to succeed. What a reader is to
// choose from, or sees printed, is in blocks marked otherwise. The package refuses
// to help: what a reader does not have is not there.
package quickstart
