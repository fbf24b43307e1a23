//go:build lab

package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/s3fake"
)

// A backup goes to a store that lacks things, says so where it matters, and comes
// back.
func TestBackupToStoresThatLackThings(t *testing.T) {
	c := newClinic(t)
	notImplemented := s3fake.Reply{Status: http.StatusNotImplemented, Code: "NotImplemented"}
	for name, q := range map[string]s3fake.Quirks{
		"equal parts only":        {EqualParts: true},
		"no checksums of parts":   {Checksums: s3fake.SumsPartRefused, Refuses: map[string]s3fake.Reply{"DeleteObjects": notImplemented}},
		"no checksums at all":     {Checksums: s3fake.SumsRefused},
		"no conditional writes":   {Conditions: s3fake.CondRefused},
		"conditions without work": {Conditions: s3fake.CondIgnored},
	} {
		t.Run(name, func(t *testing.T) {
			c.t, c.now, c.env = t, c.yaml, nil
			c.bucket(q)
			for i := range 2 {
				code, out, errs := c.eddy("backup")
				if code != exitDone || !strings.Contains(out, "READY") {
					t.Fatalf("exit code %d: %s%s", code, out, errs)
				}
				if said := strings.Contains(errs, "warning: the store"); said != (q.Conditions != s3fake.CondKept) {
					t.Errorf("backup %d: a warning about latest: %t: %s", i+1, said, errs)
				}
				if probed := strings.Contains(errs, "finding out what"); probed != (i == 0) {
					t.Errorf("backup %d: probed: %t", i+1, probed)
				}
				must(t, waitForNext(c.home.RPC))
			}
			code, out, errs := c.eddy("list")
			if code != exitDone || strings.Count(out, "READY") != 2 {
				t.Errorf("list: exit code %d: %s%s", code, out, errs)
			}
			if code, out, errs = c.eddy("restore", "latest", "--into", filepath.Join(t.TempDir(), "home")); code != exitDone {
				t.Errorf("restore: exit code %d: %s%s", code, out, errs)
			}
		})
	}
}

// waitForNext waits for a new block, or the next backup would be unchanged.
func waitForNext(rpc string) error {
	h, err := heightOf(rpc)
	if err != nil {
		return err
	}
	return waitFor(rpc, h+1)
}
