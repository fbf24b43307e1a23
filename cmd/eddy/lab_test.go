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

// TestNodeScripts runs the stories that stop, replace and start nodes again and
// again. They need no server; they take longer than a developer likes to wait.
func TestNodeScripts(t *testing.T) { runScripts(t, filepath.Join("testdata", "nodes")) }
