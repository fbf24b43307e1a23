package check

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What real nodes leave is sound, whatever engine they have, early and late, and
// is not touched by being checked.
func TestSound(t *testing.T) {
	for backend, kind := range backends() {
		c := chains.get(t, "sound", backend)
		for _, home := range []string{c.early, c.late} {
			before := sums(t, home)
			for _, o := range []Options{{}, {Deep: true}, {ChainID: "sound", Last: 3}} {
				r, err := Run(t.Context(), home, o)
				must(t, err)
				if !r.Sound() || r.Opened != All || r.Grade != Clean || r.Kind != "kvstore" || len(r.Notes) > 0 {
					t.Errorf("%s, %+v: %+v", kind, o, r)
				}
				if r.ChainID != "sound" || r.Store != r.Height || r.App != r.Height || r.Base != 1 || r.Height < 8 || len(r.AppHash) != 8 || len(r.BlockHash) != 32 || r.Time.IsZero() {
					t.Errorf("%s: position %+v", kind, r)
				}
				p := r.Proven
				if p.Headers < min(r.Height, 3) || p.Blocks < 8 || p.Commits < 8 || o.Deep && (p.Pairs < 6*r.Height || p.Blocks != r.Height || p.Headers != r.Height || p.Commits != r.Height) {
					t.Errorf("%s, %+v: proven %+v of %d", kind, o, p, r.Height)
				}
				if home == c.late && p.Tables == 0 {
					t.Errorf("%s: no table was looked at", kind)
				}
			}
			if diff := cmp.Diff(before, sums(t, home)); diff != "" {
				t.Errorf("%s: being checked has changed it:\n%s", kind, diff)
			}
		}
	}
}

func sums(t testing.TB, dir string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = sha256.Sum256(b)
		return err
	}))
	return out
}

func TestRunEndsWithItsContext(t *testing.T) {
	for backend := range backends() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Run(ctx, chains.get(t, "sound", backend).late, Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", backend, err)
		}
	}
}

func TestNothingThere(t *testing.T) {
	if _, err := Run(t.Context(), filepath.Join(t.TempDir(), "x"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	r, err := Run(t.Context(), t.TempDir(), Options{})
	if err != nil || r.Opened != None || r.Grade != Structure || len(r.Layers) != 3 {
		t.Errorf("an empty directory: %+v, %v", r, err)
	}
}

// A dump whose roots lie apart, as those of a home whose data/ is a mount, is
// checked as if they stood where they belong; and an application has a root of its
// own where it is another process.
func TestRootsThatLieApart(t *testing.T) {
	for backend, kind := range backends() {
		c := chains.get(t, "sound", backend)
		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "home"), 0o700), os.CopyFS(filepath.Join(dir, "mount"), os.DirFS(filepath.Join(c.late, "data"))))
		whole := Options{Trees: []Tree{{Name: "data", Dir: filepath.Join(dir, "mount")}}}
		r, err := Run(t.Context(), filepath.Join(dir, "home"), whole)
		must(t, err)
		if !r.Sound() || r.Opened != All || r.Layers[0].Name != "data/blockstore.db" {
			t.Errorf("%s, data/ apart: %+v", kind, r)
		}
		must(t, os.Mkdir(filepath.Join(dir, "app"), 0o700), os.Rename(filepath.Join(dir, "mount/application.db"), filepath.Join(dir, "app/application.db")))
		if r, err = Run(t.Context(), filepath.Join(dir, "home"), whole); err != nil || r.Opened != Part {
			t.Errorf("%s, no application: %+v, %v", kind, r, err)
		}
		whole.Trees = append(whole.Trees, Tree{Name: ".eddy-root/app", Dir: filepath.Join(dir, "app")})
		r, err = Run(t.Context(), filepath.Join(dir, "home"), whole)
		must(t, err)
		if !r.Sound() || r.Opened != All || r.Layers[2].Name != ".eddy-root/app/application.db" {
			t.Errorf("%s, the application apart: %+v", kind, r)
		}
	}
}
