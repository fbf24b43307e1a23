package fsx

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWriteFileAtomicReplacesAndLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	for _, want := range []string{"one", "two, and longer"} {
		if err := WriteFileAtomic(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("read back %q, %v; want %q", got, err, want)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", st.Mode(), err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("directory holds %v, %v; want only the file", names, err)
	}
}

func TestCopyKeepsHolesAndBytes(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "sparse")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	payload := bytes.Repeat([]byte("eddy"), 4096)
	for _, off := range []int64{0, 20 << 20} {
		if _, err := f.WriteAt(payload, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(dir, "copy")
	if _, err := Copy(t.Context(), src, dst, 0o600); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the copy differs from its source")
	}
	var st unix.Stat_t
	if err := unix.Stat(dst, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > size/4 {
		t.Fatalf("the copy takes %d bytes on disk: its holes were filled", st.Blocks*512)
	}
	if _, err := Copy(t.Context(), src, dst, 0o600); !errors.Is(err, os.ErrExist) {
		t.Fatalf("copy over an existing file: %v, want ErrExist", err)
	}
}

func TestLockExcludesUntilUnlocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(path); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v, want ErrLocked", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	l, err = TryLock(path)
	if err != nil {
		t.Fatalf("lock after unlock: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// A child that was not yet another program when its parent was killed still has the
// lock for a moment; who lives has it for good.
func TestLockSoonOutlastsTheDying(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "0.3")
	child.ExtraFiles = []*os.File{l.File()}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(path); !errors.Is(err, ErrLocked) {
		t.Fatalf("the child has the lock: %v", err)
	}
	cut, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := LockSoon(cut, path); !errors.Is(err, ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("interrupted: %v", err)
	}
	if l, err = LockSoon(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := LockSoon(t.Context(), path); !errors.Is(err, ErrLocked) || time.Since(begun) < dying {
		t.Fatalf("%v after %s", err, time.Since(begun))
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestMountIDAgreesWithinOneDirectory(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	a, err := MountID(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := MountID(sub)
	if err != nil {
		t.Fatal(err)
	}
	p, err := MountID("/proc")
	if err != nil {
		t.Fatal(err)
	}
	if a != b || a == p {
		t.Fatalf("mount ids %d, %d and /proc %d: want the first two equal, the last different", a, b, p)
	}
}

// Whether a filesystem clones is asked without writing to it; where it says yes,
// a clone works.
func TestClonesIsTrue(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm", "/proc"} {
		yes, err := Clones(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !yes {
			continue
		}
		src := filepath.Join(dir, "src")
		if err := os.WriteFile(src, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Clone(src, filepath.Join(dir, "dst"), 0o600); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := Clones("/nonexistent"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
