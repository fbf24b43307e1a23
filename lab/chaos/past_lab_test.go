//go:build lab

package chaos

import (
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/lab"
)

// A checker of retention must be known to find something.
func TestJudgePast(t *testing.T) {
	store, err := lab.StartS3(t.Context(), lab.S3Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		name, want string
		harm       func(g *gallery)
	}{
		{"nothing", "", func(*gallery) {}},
		{"what stays is gone", "I3", func(g *gallery) { g.check(g.w.bucket.remove(g.Context(), "chaos/c/data/"+newer)) }},
		{"what stays is another", "I3", func(g *gallery) { g.put("data/"+newer+"/vol-0000.tar.zst", pack(t, "data/a", "other")) }},
		{"a volume of what goes is left", "I4", func(g *gallery) { g.put("data/"+older+"/vol-0000.tar.zst", nil) }},
		{"a pin of what goes is left", "I4", func(g *gallery) { g.put("data/"+older+"/pins/ops.json", []byte("{}")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGallery(t, store)
			if found := g.judge(); len(found) > 0 {
				t.Fatalf("before the harm: %q", found)
			}
			g.s.past = history{older: true, newer: false}
			g.check(g.w.bucket.remove(t.Context(), "chaos/c/data/"+older))
			c.harm(g)
			var out verdicts
			g.check(g.w.judgePast(g.Context(), g.s, &out))
			if found := strings.Join(out.found, "; "); (found == "") != (c.want == "") || !strings.Contains(found, c.want) {
				t.Errorf("found %q, want %s", found, c.want)
			}
		})
	}
}

// A copy of the newest backup is a good one of its own.
func TestCopyBackup(t *testing.T) {
	store, err := lab.StartS3(t.Context(), lab.S3Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Stop(); err != nil {
			t.Error(err)
		}
	})
	g := newGallery(t, store)
	if found := g.judge(); len(found) > 0 {
		t.Fatalf("before: %q", found)
	}
	const id = "20261101T000000Z-auto-000000"
	g.check(g.w.copyBackup(t.Context(), g.s, id))
	g.s.past = history{id: false}
	g.check(g.w.known(t.Context(), g.s))
	var out verdicts
	g.check(g.w.judgePast(t.Context(), g.s, &out))
	if found := append(out.found, g.judge()...); len(found) > 0 {
		t.Errorf("%q", found)
	}
}
