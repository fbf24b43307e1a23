package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A staged file costs nothing while the replica has it as well, and all of its
// blocks once it has removed its own.
func TestPinnedBytes(t *testing.T) {
	dir := t.TempDir()
	root := Root{Path: dir}
	pinned := func() int64 {
		t.Helper()
		n, err := PinnedBytes(t.Context(), []Root{root, {Name: "other", Path: t.TempDir()}})
		must(t, err)
		return n
	}
	if n := pinned(); n != 0 {
		t.Errorf("%d bytes without a stage", n)
	}
	big := filepath.Join(dir, "000001.ldb")
	must(t, os.WriteFile(big, make([]byte, 1<<20), 0o600), os.WriteFile(filepath.Join(dir, "000002.ldb"), make([]byte, 1<<20), 0o600))
	st := newStage(t, root)
	must(t, st.Link(t.Context(), "", "000001.ldb"), st.Link(t.Context(), "", "000002.ldb"))
	if n := pinned(); n != 0 {
		t.Errorf("%d bytes of files that the replica has as well", n)
	}
	must(t, os.Remove(big), os.MkdirAll(filepath.Join(dir, StageDir, "before-x"), 0o700), os.WriteFile(filepath.Join(dir, StageDir, "before-x", "y"), make([]byte, 1<<20), 0o600))
	if n := pinned(); n < 1<<20 || n > 1<<20+64<<10 {
		t.Errorf("%d bytes, want those of one file", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := PinnedBytes(ctx, []Root{root}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	must(t, st.Remove())
	if n := pinned(); n != 0 {
		t.Errorf("%d bytes after the stage", n)
	}
}
