//go:build lab

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLabScripts runs the stories that need a real S3 server: `bin/lab s3 --`
// starts one and names it in the environment.
func TestLabScripts(t *testing.T) {
	if os.Getenv("EDDY_LAB_S3_ENDPOINT") == "" {
		t.Fatal("no S3 server: run this by `make test`, or below `bin/lab s3 --`")
	}
	runScripts(t, filepath.Join("testdata", "lab"))
}
