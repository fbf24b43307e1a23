// Package e2e holds tests that take minutes: eddy as a process beside a chain of
// processes and a real S3 server, on more data than a quick test can make. They
// need the build tag e2e, and the tools that `make e2e` builds.
package e2e
