// Package scripts holds the shell scripts that restore without eddy, so that
// the binary can write them out.
package scripts

import _ "embed"

// RestoreLatest is restore-latest.sh.
//
//go:embed restore-latest.sh
var RestoreLatest []byte
