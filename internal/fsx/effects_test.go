package fsx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorder writes down what is done, and plays a crash at the nth effect.
type recorder struct {
	base string
	seen []string
	stop int // 0: never
	half bool
}

var errStopped = errors.New("stopped")

func (r *recorder) Do(e Effect, do func() error) error {
	name := func(p string) string {
		rel, err := filepath.Rel(r.base, p)
		if err != nil {
			return p
		}
		dir, file := filepath.Split(rel)
		if before, _, ok := strings.Cut(file, ".tmp-"); ok {
			file = before + ".tmp"
		}
		return dir + file
	}
	r.seen = append(r.seen, strings.TrimRight(fmt.Sprint(e.Kind, " ", name(e.Path), " ", name(e.To)), " ."))
	if r.stop == 0 || len(r.seen) < r.stop {
		return do()
	}
	if r.half && len(r.seen) == r.stop && e.Half != nil {
		return errors.Join(e.Half(), errStopped)
	}
	return errStopped
}

// Every step of a change that is made of several is an effect of its own, in the
// order in which the disk sees them.
func TestEffectsAreTheSteps(t *testing.T) {
	base := t.TempDir()
	r := &recorder{base: base}
	f := FS{Effects: r}
	root, err := f.OpenRoot(base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	src := filepath.Join(base, "a", "b", "state")
	for _, err := range []error{
		f.MkdirAll(filepath.Dir(src), 0o700), f.WriteFileAtomic(src, []byte("one"), 0o600), root.MkdirAll("a/c", 0o700),
		f.Link(src, src+"2"), f.Rename(src+"2", src+"3"), f.RemoveAll(filepath.Join(base, "a")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"mkdir a", "mkdir a/b", "create a/b/.state.tmp", "write a/b/.state.tmp", "attr a/b/.state.tmp", "sync a/b/.state.tmp",
		"rename a/b/.state.tmp a/b/state", "syncdir a/b", "mkdir a/c", "link a/b/state a/b/state2", "rename a/b/state2 a/b/state3", "remove-all a",
	}
	if diff := cmp.Diff(want, r.seen); diff != "" {
		t.Error(diff)
	}
}

// A process that stops at any step of an atomic write leaves the old content or
// the new one.
func TestAtomicWriteStoppedAnywhere(t *testing.T) {
	for _, half := range []bool{false, true} {
		for n := 1; n <= 7; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "state")
			if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := FS{Effects: &recorder{base: dir, stop: n, half: half}}.WriteFileAtomic(path, []byte("new and longer"), 0o600)
			if n < 7 != errors.Is(err, errStopped) {
				t.Errorf("stopped at %d: %v", n, err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != "old" && string(b) != "new and longer" {
				t.Errorf("stopped at %d, half %t: %q, %v", n, half, b, err)
			}
		}
	}
}

// What is made by half is less than the whole, and more than nothing.
func TestHalves(t *testing.T) {
	dir := t.TempDir()
	r := &recorder{base: dir, half: true}
	f := FS{Effects: r}
	file, err := f.OpenFile(filepath.Join(dir, "file"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r.stop = len(r.seen) + 1
	if n, err := file.Write([]byte("12345678")); n != 0 || !errors.Is(err, errStopped) {
		t.Errorf("%d, %v", n, err)
	}
	r.stop, r.seen = 1, nil
	if _, _, err := f.CloneOrCopy(t.Context(), file.Name(), filepath.Join(dir, "copy"), 0o600); !errors.Is(err, errStopped) {
		t.Error(err)
	}
	for name, want := range map[string]string{"file": "1234", "copy": "12"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	r.stop, r.seen = 1, nil
	if err := f.RemoveAll(dir); !errors.Is(err, errStopped) {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || names[0].Name() != "file" {
		t.Errorf("%v, %v", names, err)
	}
}

// What a killed write left goes, and nothing else does.
func TestSweepTemp(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := (FS{Effects: &recorder{base: dir, stop: 3}}).WriteFileAtomic(path, []byte("new"), 0o600); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	for _, name := range []string{"state", ".state", ".other.tmp-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadDir(dir)
	if err != nil || len(before) != 4 {
		t.Fatalf("%v, %v", before, err)
	}
	if err := (FS{}).SweepTemp(path); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Fatalf("%v, %v", left, err)
	}
}
