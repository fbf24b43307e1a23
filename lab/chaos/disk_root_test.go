//go:build root

package chaos

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Only the victim meets the fault, on files that it opens and on those in the page
// cache, too.
func TestDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
	d, err := mountDisk(dir)
	must(t, err)
	t.Cleanup(func() { must(t, d.unmount()) })
	name, body := filepath.Join(dir, "data", "x"), bytes.Repeat([]byte("content"), 10_000)
	must(t, os.WriteFile(name, body, 0o600))
	must(t, os.Link(name, filepath.Join(dir, "link")))
	must(t, os.Rename(filepath.Join(dir, "link"), filepath.Join(dir, "data", "y")))
	read := func() error {
		b, err := os.ReadFile(name)
		if err == nil && !bytes.Equal(b, body) {
			return errors.New("other content")
		}
		return err
	}
	must(t, read())
	d.harm(&diskFault{victim: 1, write: syscall.ENOSPC, read: syscall.EIO})
	must(t, read())
	d.harm(&diskFault{victim: os.Getpid(), write: syscall.ENOSPC, read: syscall.EIO})
	for what, err := range map[string]error{
		"create": os.WriteFile(filepath.Join(dir, "new"), nil, 0o600),
		"mkdir":  os.Mkdir(filepath.Join(dir, "newer"), 0o700),
		"link":   os.Link(name, filepath.Join(dir, "newest")),
	} {
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := read(); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	f := &diskFault{victim: os.Getpid(), write: syscall.ENOSPC}
	f.after.Store(10_000)
	d.harm(f)
	if err := os.WriteFile(name, body, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write over the limit: %v", err)
	}
	d.harm(&diskFault{victim: os.Getpid(), delay: 50 * time.Millisecond})
	begun := time.Now()
	must(t, os.WriteFile(name, body, 0o600))
	if took := time.Since(begun); took < 50*time.Millisecond {
		t.Errorf("a slow disk wrote in %s", took)
	}
	asked := 0
	d.harm(&diskFault{victim: os.Getpid(), rename: func() syscall.Errno {
		asked++
		return syscall.EIO
	}})
	if err := os.Rename(name, name+"2"); !errors.Is(err, syscall.EIO) || asked != 1 {
		t.Errorf("rename: %v, asked %d times", err, asked)
	}
	d.heal()
	must(t, read())
	if b, err := os.ReadFile(filepath.Join(d.backing, "data", "y")); err != nil || !bytes.Equal(b, body) {
		t.Errorf("the link beside has %d bytes, %v", len(b), err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
