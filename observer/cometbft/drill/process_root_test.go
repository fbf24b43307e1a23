//go:build root

package drill

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRootRunsNothingAsRoot: what is started in a directory of another user's is
// his, and has what is his only; a link out of it gives nothing away.
func TestRootRunsNothingAsRoot(t *testing.T) {
	scratch := t.TempDir()
	secret := filepath.Join(t.TempDir(), "credentials")
	const uid = 65534
	for _, err := range []error{
		os.Chmod(filepath.Dir(scratch), 0o755), os.Chown(scratch, uid, uid),
		os.WriteFile(secret, []byte("key"), 0o600), os.Symlink(secret, filepath.Join(scratch, "link")),
		os.Mkdir(filepath.Join(scratch, "home"), 0o700), os.WriteFile(filepath.Join(scratch, "home", "f"), []byte("mine"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := newWorld(true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.end()
	if w.as, err = handOver(scratch); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(scratch, "log")
	c, err := w.start([]string{"/bin/sh", "-c", "id -u; id -G; cat home/f; echo; cat " + secret + " link"}, []string{"PATH=/usr/bin:/bin"}, scratch, log)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
	}
	c.stop()
	b, err := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if err != nil || len(lines) != 5 || !slices.Equal(lines[:3], []string{"65534", "65534", "mine"}) || strings.Count(string(b), "Permission denied") != 2 {
		t.Errorf("%v\n%s", err, b)
	}
	fi, err := os.Stat(secret)
	if err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the target of a link was given away: %v", err)
	}
	root := t.TempDir()
	if as, err := handOver(root); as != nil || err != nil {
		t.Errorf("a directory of root's: %v, %v", as, err)
	}
}
