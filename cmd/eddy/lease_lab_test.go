//go:build lab

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/uploader"
)

// Two observers of one cluster: the second says who is at work, and does as
// backup.when_busy says. Losing the lease costs a backup nothing.
func TestTwoEddysOfOneCluster(t *testing.T) {
	c := newClinic(t)
	c.now = c.yaml
	url := "file://" + filepath.Join(c.dir, "bucket")
	store, err := uploader.Open(t.Context(), uploader.Config{URL: url})
	must(t, err)
	cat := uploader.NewCatalog(store, "clinic")
	other, err := cat.Lease(t.Context(), uploader.LeaseOptions{Holder: "a backup on the other host", Nonce: "other", TTL: 3 * time.Second})
	must(t, err)
	for _, x := range []struct {
		args []string
		busy string
		code int
		says string
	}{
		{args: []string{"backup"}, code: exitLocked, says: "a backup on the other host works on clinic"},
		{args: []string{"backup"}, busy: "wait 2s", code: exitLocked, says: "a backup on the other host works on clinic"},
		{args: []string{"backup"}, busy: "skip", code: exitDone, says: "skipped"},
	} {
		if x.busy != "" {
			c.now = strings.Replace(c.yaml, "retention:", "backup: {when_busy: "+x.busy+"}\nretention:", 1)
		}
		code, out, errs := c.eddy(x.args...)
		if code != x.code || !strings.Contains(out+errs, x.says) {
			t.Errorf("%s with when_busy %q: exit code %d, want %d with %q: %s%s", x.args, x.busy, code, x.code, x.says, out, errs)
		}
	}
	// Whoever gave it back is not waited for.
	must(t, other.Release(t.Context()))
	c.now = c.yaml
	if code, out, errs := c.eddy("backup"); code != exitDone || !strings.Contains(out, "READY") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "state", "lease.json")); err == nil {
		t.Error("the workdir still notes a lease")
	}
	other, err = cat.Lease(t.Context(), uploader.LeaseOptions{Holder: "a backup on the other host", Nonce: "other", TTL: 3 * time.Second})
	must(t, err)
	all, err := cat.List(t.Context())
	must(t, err)
	if code, out, errs := c.eddy("--yes", "delete", all[0].ID); code != exitLocked || !strings.Contains(errs, "the other host works on clinic") {
		t.Errorf("delete beside another: exit code %d: %s%s", code, out, errs)
	}
	must(t, other.Release(t.Context()))
	// Killed in the middle, the same host goes on at once: its own lease is its own.
	must(t, os.WriteFile(filepath.Join(c.dir, "state", "lease.json"), []byte(`{"format":1,"min_reader":1,"nonce":"killed"}`), 0o600))
	_, err = store.PutSmall(t.Context(), "clinic/lease.json", []byte(`{"format":1,"min_reader":1,"holder":"us","nonce":"killed","ttl_seconds":120,"beat":3}`), "", uploader.Condition{})
	must(t, err)
	must(t, waitForNext(c.home.RPC))
	begun := time.Now()
	if code, out, errs := c.eddy("backup"); code != exitDone || strings.Contains(errs, "looking whether") || time.Since(begun) > time.Minute {
		t.Errorf("after a kill: exit code %d after %s: %s%s", code, time.Since(begun), out, errs)
	}
}
