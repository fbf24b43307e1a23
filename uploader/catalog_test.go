package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// backupIn stores a tiny READY backup at a height.
func backupIn(t testing.TB, c *Catalog, when time.Time, label string, height uint64) (string, error) {
	t.Helper()
	id := NewID(when, label)
	var m Manifest
	m.ID, m.Label, m.Cluster, m.Incarnation = id, label, "test", "aa"
	m.Position.Index = height
	o, err := c.Store().PutSmall(t.Context(), c.ObjectKey(id, VolumeName(0)), []byte(id), "", Condition{})
	if err != nil {
		t.Fatal(err)
	}
	m.Volumes = []Volume{{Name: VolumeName(0), Size: o.Size}}
	return id, c.Commit(t.Context(), m, false)
}

func testCatalog(t testing.TB) *Catalog {
	t.Helper()
	return NewCatalog(newFileStore(t.TempDir()), "test")
}

var t0 = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func TestCommitMakesReadyAndMovesLatestForwardOnly(t *testing.T) {
	c := testCatalog(t)
	first, err := backupIn(t, c, t0, "first", 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backupIn(t, c, t0.Add(time.Hour), "back", 99); !errors.Is(err, ErrBackwards) {
		t.Fatalf("a lower height: %v, want ErrBackwards", err)
	}
	b, err := c.Latest(t.Context())
	if err != nil || b.ID != first || b.Status != StatusReady {
		t.Fatalf("latest is %s %s, %v; want %s READY", b.ID, b.Status, err, first)
	}
	second, err := backupIn(t, c, t0.Add(2*time.Hour), "second", 200)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := c.latest(t.Context())
	if err != nil || p.ID != second || p.Seq != 2 {
		t.Fatalf("latest.json: %s seq %d, %v; want %s seq 2", p.ID, p.Seq, err, second)
	}
	for sel, want := range map[string]string{
		"latest": second, "height:150": first, "height:200": second, "label:first": first,
		"before:2026-11-20T12:30:00Z": first, first: first, second[:20]: second,
	} {
		if b, err := c.Select(t.Context(), sel); err != nil || b.ID != want {
			t.Errorf("select %s: %s, %v; want %s", sel, b.ID, err, want)
		}
	}
	for _, sel := range []string{"height:99", "height:x", "label:no", "before:never", "2026", "1999", "verified", ""} {
		if _, err := c.Select(t.Context(), sel); !errors.Is(err, ErrNoSuchBackup) {
			t.Errorf("select %q: %v, want ErrNoSuchBackup", sel, err)
		}
	}
}

func TestTwoCommitsAtOnceBothCountAndTheHigherWins(t *testing.T) {
	c := testCatalog(t)
	done := make(chan error)
	for i := range 8 {
		go func() {
			_, err := backupIn(t, c, t0.Add(time.Duration(i)*time.Minute), "race", uint64(100+i))
			if errors.Is(err, ErrBackwards) {
				err = nil // somebody higher was first
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	p, _, err := c.latest(t.Context())
	if err != nil || p.Position.Index != 107 {
		t.Fatalf("latest at %d, %v; want 107", p.Position.Index, err)
	}
}

func TestListTellsWhatIsNotReady(t *testing.T) {
	c := testCatalog(t)
	ready, err := backupIn(t, c, t0, "ready", 1)
	if err != nil {
		t.Fatal(err)
	}
	damaged, err := backupIn(t, c, t0.Add(time.Hour), "damaged", 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Store().Delete(t.Context(), c.ObjectKey(damaged, VolumeName(0))); err != nil {
		t.Fatal(err)
	}
	bare := NewID(t0, "bare")
	if _, err := c.Store().PutSmall(t.Context(), c.ObjectKey(bare, VolumeName(0)), []byte("x"), "", Condition{}); err != nil {
		t.Fatal(err)
	}
	running, failed := NewID(t0, "running"), NewID(t0, "failed")
	if err := c.StartRun(t.Context(), Run{ID: running, Status: StatusBackingUp, Host: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := c.FailRun(t.Context(), failed, errors.New("bucket on fire")); err != nil {
		t.Fatal(err)
	}
	all, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Status{}
	for _, b := range all {
		got[b.ID] = b.Status
	}
	for id, want := range map[string]Status{ready: StatusReady, damaged: StatusDamaged, bare: StatusIncomplete, running: StatusBackingUp, failed: StatusError} {
		if got[id] != want {
			t.Errorf("%s is %q, want %s", id, got[id], want)
		}
	}
	b, err := c.Latest(t.Context())
	if err != nil || b.ID != ready || b.Warning == "" {
		t.Fatalf("latest is %s, warning %q, %v; want %s with a warning", b.ID, b.Warning, err, ready)
	}
	if _, err := c.Select(t.Context(), "label:damaged"); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a damaged one by label: %v, want ErrDamaged", err)
	}
}

func TestDeleteRefusesTheNewest(t *testing.T) {
	c := testCatalog(t)
	old, err := backupIn(t, c, t0, "old", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), old); !errors.Is(err, ErrNewest) {
		t.Fatalf("delete the only one: %v, want ErrNewest", err)
	}
	if _, err := backupIn(t, c, t0.Add(time.Hour), "new", 2); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for o, err := range c.Store().List(t.Context(), "test/data/"+old, "") {
		t.Fatalf("%s is left, %v", o.Key, err)
	}
}

func TestLatestTextHasItsOwnChecksum(t *testing.T) {
	c := testCatalog(t)
	id, err := backupIn(t, c, t0, "first", 100)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := c.Store().GetSmall(context.Background(), "test/latest.txt", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 3 || lines[0] != "id "+id || lines[1] != fmt.Sprintf("%d test/data/%s/vol-0000.tar.zst", len(id), id) || !strings.HasPrefix(lines[2], "sha256 ") {
		t.Fatalf("latest.txt:\n%s", b)
	}
}

// Whatever the history and the policy, retention leaves the newest READY backup,
// what latest points to, and all that had no successor three days ago.
func TestRetentionNeverEatsTheLastGoodOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := t0
		var all []Backup
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			age := time.Duration(rapid.IntRange(0, 60*24).Draw(t, "hours")) * time.Hour
			all = append(all, Backup{
				ID: NewID(now.Add(-age), "auto"), Created: now.Add(-age),
				Status: rapid.SampledFrom([]Status{StatusReady, StatusReady, StatusIncomplete, StatusError, StatusDamaged, StatusBackingUp}).Draw(t, "status"),
			})
		}
		slices.SortFunc(all, newestFirst)
		gone := map[string]bool{}
		for _, x := range planExpire(all, Policy{Last: rapid.IntRange(0, 5).Draw(t, "last")}, now) {
			gone[x.ID] = true
		}
		var newer *Backup
		for i, b := range all {
			if b.Status == StatusDamaged || b.Status == StatusBackingUp {
				if gone[b.ID] {
					t.Fatalf("%s is %s and would be deleted", b.ID, b.Status)
				}
				continue
			}
			if b.Status != StatusReady {
				continue
			}
			if gone[b.ID] && (newer == nil || now.Sub(newer.Created) < graceOfReady) {
				t.Fatalf("%s would be deleted; its successor is %v", b.ID, newer)
			}
			newer = &all[i]
		}
	})
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"20261120T120000Z-auto-000001","cluster":"x","volumes":[{"name":"vol-0000.tar.zst","size":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err == nil && (!validID(m.ID) || len(m.Volumes) == 0) {
			t.Fatalf("accepted %q", b)
		}
	})
}

func FuzzParseJournal(f *testing.F) {
	f.Add("{\"format\":1,\"min_reader\":1,\"key\":\"k\",\"upload_id\":\"u\"}\n{\"part\":1,\"len\":3}\n{\"part\":2,\"le")
	f.Fuzz(func(t *testing.T, s string) {
		_, parts, err := parseJournal(strings.NewReader(s))
		for i, p := range parts {
			if err == nil && p.Part != int32(i+1) {
				t.Fatalf("part %d at place %d", p.Part, i)
			}
		}
	})
}
