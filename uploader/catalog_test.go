package uploader

import (
	"context"
	"errors"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

var t0 = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func testCatalog(t testing.TB) *Catalog {
	t.Helper()
	return NewCatalog(newFileStore(memDir(t)), "test")
}

// memDir is a directory in memory, where there is one: the stores of these tests
// are made by the hundred, and what fsync does to them is tested elsewhere.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// manifestAt is a manifest whose one volume is stored.
func manifestAt(t testing.TB, c *Catalog, when time.Time, label string, height uint64) Manifest {
	t.Helper()
	m := Manifest{ID: NewID(when, label), Label: label, Cluster: c.cluster, Incarnation: "aa", Created: when}
	m.Position.Index, m.Position.Time = height, when
	o, err := c.Store().PutSmall(t.Context(), c.ObjectKey(m.ID, VolumeName(0)), []byte(m.ID), "", Condition{})
	if err != nil {
		t.Fatal(err)
	}
	m.Volumes = []Volume{{Name: VolumeName(0), Size: o.Size}}
	m.LeftOut = []LeftOut{{Name: "config/x", Reason: "no data"}}
	return m
}

// backupIn stores a tiny READY backup at a height.
func backupIn(t testing.TB, c *Catalog, when time.Time, label string, height uint64) (string, error) {
	t.Helper()
	m := manifestAt(t, c, when, label, height)
	return m.ID, c.Commit(t.Context(), m, false)
}

func mustBackup(t testing.TB, c *Catalog, when time.Time, label string, height uint64) string {
	t.Helper()
	id, err := backupIn(t, c, when, label, height)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func put(t testing.TB, c *Catalog, key, body string) {
	t.Helper()
	if _, err := c.Store().PutSmall(t.Context(), key, []byte(body), "", Condition{}); err != nil {
		t.Fatal(err)
	}
}

var errInjected = errors.New("injected")

// faulty fails the nth call, from 1: before it does anything, or after all of it
// as if the answer was lost. Everything after that fails too, as it does for a
// process that was killed.
type faulty struct {
	Store
	mu    sync.Mutex
	calls int
	at    int
	after bool
}

func (f *faulty) fails() (before, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	return f.calls > f.at || f.calls == f.at && !f.after, f.calls == f.at && f.after
}

func (f *faulty) PutSmall(ctx context.Context, key string, body []byte, ct string, c Condition) (Object, error) {
	before, after := f.fails()
	if before {
		return Object{}, errInjected
	}
	o, err := f.Store.PutSmall(ctx, key, body, ct, c)
	if after {
		return Object{}, errInjected
	}
	return o, err
}

func (f *faulty) GetSmall(ctx context.Context, key string, limit int64) ([]byte, Object, error) {
	if before, after := f.fails(); before || after {
		return nil, Object{}, errInjected
	}
	return f.Store.GetSmall(ctx, key, limit)
}

func (f *faulty) Stat(ctx context.Context, key string) (Object, error) {
	if before, after := f.fails(); before || after {
		return Object{}, errInjected
	}
	return f.Store.Stat(ctx, key)
}

func (f *faulty) List(ctx context.Context, prefix, delimiter string) iter.Seq2[Object, error] {
	if before, after := f.fails(); before || after {
		return func(yield func(Object, error) bool) { yield(Object{}, errInjected) }
	}
	return f.Store.List(ctx, prefix, delimiter)
}

// Delete is torn: one that fails afterwards has removed all but its first key. A
// store promises no order inside of one call.
func (f *faulty) Delete(ctx context.Context, keys ...string) error {
	before, after := f.fails()
	if before {
		return errInjected
	}
	if after && len(keys) > 1 {
		keys = keys[1:]
	}
	err := f.Store.Delete(ctx, keys...)
	if after {
		return errInjected
	}
	return err
}

// everyFault calls run with a store that fails at the first call, the second,
// ..., until a run gets through. run reports its error.
func everyFault(t *testing.T, run func(wrap func(Store) *faulty) error) {
	t.Helper()
	for _, after := range []bool{false, true} {
		for at := 1; ; at++ {
			var f *faulty
			err := run(func(s Store) *faulty { f = &faulty{Store: s, at: at, after: after}; return f })
			if f.calls < at {
				if err != nil || at < 3 {
					t.Fatalf("without a fault, after %d calls: %v", f.calls, err)
				}
				break
			}
			if err != nil && !errors.Is(err, errInjected) {
				t.Fatalf("fault at call %d: %v", at, err)
			}
		}
	}
}

func TestListTellsWhatIsNotReady(t *testing.T) {
	c := testCatalog(t)
	ready := mustBackup(t, c, t0, "ready", 1)
	damaged := mustBackup(t, c, t0.Add(time.Hour), "damaged", 2)
	if err := c.Store().Delete(t.Context(), c.ObjectKey(damaged, VolumeName(0))); err != nil {
		t.Fatal(err)
	}
	short := mustBackup(t, c, t0.Add(time.Hour), "short", 2)
	put(t, c, c.ObjectKey(short, VolumeName(0)), "x")
	bare := NewID(t0, "bare")
	put(t, c, c.ObjectKey(bare, VolumeName(0)), "x")
	running, failed, quiet := NewID(t0, "running"), NewID(t0, "failed"), NewID(t0, "quiet")
	garbled, newer, foreign, noise := NewID(t0, "garbled"), NewID(t0, "newer"), NewID(t0, "foreign"), NewID(t0, "noise")
	for id, lapse := range map[string]int64{running: 0, quiet: 1} {
		if err := c.StartRun(t.Context(), Run{ID: id, Host: "h", LapseSeconds: lapse}); err != nil {
			t.Fatal(err)
		}
	}
	put(t, c, c.ObjectKey(running, VolumeName(0)), "x") // its first volume is there already
	if err := c.UpdateRun(t.Context(), running, 34, 100, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.FailRun(t.Context(), failed, errors.New("bucket on fire")); err != nil {
		t.Fatal(err)
	}
	put(t, c, c.ObjectKey(garbled, manifestName), "{")
	put(t, c, c.ObjectKey(newer, manifestName), `{"format":9,"min_reader":9,"id":["of another kind"]}`)
	put(t, c, c.ObjectKey(foreign, manifestName), `{"format":1,"min_reader":1,"id":"`+foreign+`","label":"foreign","cluster":"other","volumes":[{"name":"vol-0000.tar.zst","size":1}]}`)
	put(t, c, c.runKey(noise), "not JSON")
	put(t, c, "test/data/README", "not a backup")
	put(t, c, "test/runs/x.json", "not a run")
	time.Sleep(1100 * time.Millisecond) // beyond the lapse of the quiet one

	all, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Backup{}
	for _, b := range all {
		got[b.ID] = b
	}
	for id, want := range map[string]struct {
		status Status
		text   string
	}{
		ready:   {StatusReady, ""},
		damaged: {StatusDamaged, "vol-0000.tar.zst is missing"},
		short:   {StatusDamaged, "has 1 bytes, its manifest says"},
		bare:    {StatusIncomplete, ""},
		running: {StatusBackingUp, "on h, 34 %"},
		quiet:   {StatusAbandoned, "on h, last heard of"},
		failed:  {StatusError, "bucket on fire"},
		garbled: {StatusDamaged, "manifest"},
		newer:   {StatusNewer, "needs a reader of format 9"},
		foreign: {StatusDamaged, "of other"},
		noise:   {StatusError, "stored bytes differ"},
	} {
		if b := got[id]; b.Status != want.status || !strings.Contains(b.Text, want.text) {
			t.Errorf("%s is %q (%s), want %s (%s)", id, b.Status, b.Text, want.status, want.text)
		}
	}
	if len(all) != 11 {
		t.Errorf("%d lines, want 11", len(all))
	}
	if b := got[ready]; b.Manifest == nil || b.Manifest.LeftOut != nil || b.Ready.IsZero() || b.Size == 0 || b.Volumes != 1 {
		t.Errorf("the line of a READY one: %+v", b)
	}

	b, err := c.Latest(t.Context())
	if err != nil || b.ID != ready || b.Warning == "" {
		t.Fatalf("latest is %s, warning %q, %v; want %s with a warning", b.ID, b.Warning, err, ready)
	}
	if len(b.Manifest.Volumes) != 1 || len(b.Manifest.LeftOut) != 1 {
		t.Fatalf("a selected manifest is not whole: %+v", b.Manifest)
	}
	if _, err := c.Select(t.Context(), "label:damaged"); !errors.Is(err, ErrDamaged) || hint.Of(err) == "" {
		t.Fatalf("a damaged one by label: %v, want ErrDamaged", err)
	}
}

// A latest.json that nobody can read hides no backup.
func TestListWorksWithoutAPointer(t *testing.T) {
	for name, body := range map[string]string{"garbled": "{", "newer": `{"format":7,"min_reader":7}`, "empty": "{}"} {
		t.Run(name, func(t *testing.T) {
			c := testCatalog(t)
			id := mustBackup(t, c, t0, "only", 1)
			put(t, c, c.latestKey(), body)
			b, err := c.Latest(t.Context())
			if err != nil || b.ID != id || b.Warning == "" {
				t.Fatalf("latest is %s, %q, %v", b.ID, b.Warning, err)
			}
			before := len(listKeys(t, c))
			if _, err := backupIn(t, c, t0.Add(time.Hour), "next", 2); err == nil {
				t.Fatal("a commit went over a pointer that it cannot read")
			}
			if n := len(listKeys(t, c)); n != before+1 {
				t.Fatalf("the refused commit left %d objects, want its volume only", n-before)
			}
		})
	}
}

func listKeys(t testing.TB, c *Catalog) (keys []string) {
	t.Helper()
	for o, err := range c.Store().List(t.Context(), c.cluster+"/", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func TestSelect(t *testing.T) {
	c := testCatalog(t)
	first := mustBackup(t, c, t0, "first", 100)
	second := mustBackup(t, c, t0.Add(2*time.Hour), "second", 200)
	for sel, want := range map[string]string{
		"latest": second, "height:150": first, "height:200": second, "height:18446744073709551615": second,
		"label:first": first, "before:2026-11-20T12:30:00Z": first, "before:2026-11-21": second, first: first, second[:20]: second,
	} {
		b, err := c.Select(t.Context(), sel)
		if err != nil || b.ID != want || b.Warning != "" || b.Latest != (want == second) || b.Manifest == nil {
			t.Errorf("select %s: %+v, %v; want %s", sel, b, err, want)
		}
	}
	for _, sel := range []string{
		"height:99", "height:x", "height:-1", "height:", "label:no", "before:never", "before:2026-11-20", "2026", "1999", "verified", "drilled", "", "..",
		"20261120T120000Z-first-000000",
	} {
		if b, err := c.Select(t.Context(), sel); !errors.Is(err, ErrNoSuchBackup) || hint.Of(err) == "" {
			t.Errorf("select %q: %s, %v, want ErrNoSuchBackup with a hint", sel, b.ID, err)
		}
	}
}

// With a single backup in the store an empty name must still not mean it.
func TestAnEmptyNameSelectsNothing(t *testing.T) {
	c := testCatalog(t)
	mustBackup(t, c, t0, "only", 1)
	if b, err := c.Select(t.Context(), ""); !errors.Is(err, ErrNoSuchBackup) {
		t.Fatalf("selected %s, %v", b.ID, err)
	}
}

// What was begun before a time but holds a later block is not from before it.
func TestBeforeLooksAtTheDataToo(t *testing.T) {
	c := testCatalog(t)
	m := manifestAt(t, c, t0, "waited", 5)
	m.Position.Time = t0.Add(10 * time.Minute)
	if err := c.Commit(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Select(t.Context(), "before:2026-11-20T12:05:00Z"); !errors.Is(err, ErrNoSuchBackup) {
		t.Fatalf("selected %s, %v", b.ID, err)
	}
	if _, err := c.Select(t.Context(), "before:2026-11-20T12:11:00Z"); err != nil {
		t.Fatal(err)
	}
}

func TestClusters(t *testing.T) {
	c := testCatalog(t)
	mustBackup(t, c, t0, "one", 1)
	put(t, c, "other/latest.json", "{}")
	put(t, c, "stray", "x")
	got, err := c.Clusters(t.Context())
	if err != nil || !slices.Equal(got, []string{"other", "test"}) {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestDelete(t *testing.T) {
	c := testCatalog(t)
	old := mustBackup(t, c, t0, "old", 1)
	if err := c.Delete(t.Context(), old); !errors.Is(err, ErrNewest) || hint.Of(err) == "" {
		t.Fatalf("delete the only one: %v, want ErrNewest", err)
	}
	mustBackup(t, c, t0.Add(time.Hour), "new", 2)
	put(t, c, c.ObjectKey(old, "grades/20261121T000000Z-sampled.json"), "{}")
	before := listKeys(t, c)
	if err := c.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for _, k := range listKeys(t, c) {
		if strings.Contains(k, old) {
			t.Fatalf("%s is left", k)
		}
	}
	if n := len(before) - len(listKeys(t, c)); n != 3 {
		t.Fatalf("%d objects went, want manifest, volume and grade", n)
	}
	if err := c.Delete(t.Context(), old); !errors.Is(err, ErrNoSuchBackup) {
		t.Fatalf("delete it again: %v", err)
	}
	running := NewID(t0, "running")
	if err := c.StartRun(t.Context(), Run{ID: running, Host: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), running); !errors.Is(err, fsx.ErrLocked) {
		t.Fatalf("delete what is being made: %v, want ErrLocked", err)
	}
	if err := c.FailRun(t.Context(), running, errors.New("no")); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), running); err != nil {
		t.Fatal(err)
	}
}

// latest may point behind the highest READY one (a crash between manifest and
// pointer): neither of the two can be deleted.
func TestDeleteKeepsTheHighestAndThePointedTo(t *testing.T) {
	c := testCatalog(t)
	low := mustBackup(t, c, t0, "low", 1)
	pointer, _, err := c.Store().GetSmall(t.Context(), c.latestKey(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	high := mustBackup(t, c, t0.Add(time.Hour), "high", 2)
	put(t, c, c.latestKey(), string(pointer))
	for _, id := range []string{low, high} {
		if err := c.Delete(t.Context(), id); !errors.Is(err, ErrNewest) {
			t.Errorf("delete %s: %v, want ErrNewest", id, err)
		}
	}
}

// Whatever call of a deletion fails, the backup is whole or not READY, and the
// deletion can be taken up again.
func TestADeletionThatBreaksOffLeavesNothingReady(t *testing.T) {
	everyFault(t, func(wrap func(Store) *faulty) error {
		c := testCatalog(t)
		m := manifestAt(t, c, t0, "old", 1)
		for i := 1; i < 3; i++ {
			put(t, c, c.ObjectKey(m.ID, VolumeName(i)), "x")
			m.Volumes = append(m.Volumes, Volume{Name: VolumeName(i), Size: 1})
		}
		if err := c.Commit(t.Context(), m, false); err != nil {
			t.Fatal(err)
		}
		newest := mustBackup(t, c, t0.Add(time.Hour), "new", 2)
		f := wrap(c.Store())
		err := NewCatalog(f, "test").Delete(t.Context(), m.ID)
		b, lerr := c.one(t.Context(), m.ID)
		if lerr != nil && !errors.Is(lerr, ErrNoSuchBackup) {
			t.Fatal(lerr)
		}
		if b.Status == StatusReady && b.Volumes != 3 || b.Status == StatusDamaged {
			t.Fatalf("after a fault at call %d: %s with %d volumes", f.at, b.Status, b.Volumes)
		}
		if err := c.Delete(t.Context(), m.ID); err != nil && !errors.Is(err, ErrNoSuchBackup) {
			t.Fatalf("again: %v", err)
		}
		if l, err := c.Latest(t.Context()); err != nil || l.ID != newest || l.Warning != "" {
			t.Fatalf("latest: %+v, %v", l, err)
		}
		return err
	})
}

// The order does not depend on how the store lists, and inside a history nothing
// stands before what has a higher position.
func TestNewestFirstIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []Backup
		for i := range rapid.IntRange(0, 10).Draw(t, "n") {
			b := newBackup(t0.Add(time.Duration(rapid.IntRange(0, 9).Draw(t, "at"))*time.Hour).Format(idTime) + "-auto-" + strings.Repeat(string(rune('a'+i%6)), 6))
			b.Size = int64(i)
			if rapid.Bool().Draw(t, "known") {
				b.Manifest = &Manifest{Incarnation: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "incarnation")}
				b.Manifest.Position.Index = rapid.Uint64Range(1, 4).Draw(t, "height")
			}
			if !slices.ContainsFunc(all, func(o Backup) bool { return o.ID == b.ID }) {
				all = append(all, b)
			}
		}
		got := newestFirst(all, "y")
		other := newestFirst(rapid.Permutation(all).Draw(t, "listed"), "y")
		for i := range got {
			if len(got) != len(all) || got[i].ID != other[i].ID {
				t.Fatalf("place %d: %s or %s", i, got[i].ID, other[i].ID)
			}
		}
		high := map[string]uint64{}
		ended := map[string]bool{}
		last := ""
		for _, b := range got {
			if b.Manifest == nil {
				continue
			}
			inc, at := b.Manifest.Incarnation, b.Manifest.Position.Index
			if h, ok := high[inc]; ok && at > h {
				t.Fatalf("height %d stands behind %d of %s", at, h, inc)
			}
			high[inc] = at
			if inc != last {
				if ended[inc] || inc == "y" && last != "" {
					t.Fatalf("history %s is torn, or the latest is not first", inc)
				}
				ended[last], last = true, inc
			}
		}
	})
}
