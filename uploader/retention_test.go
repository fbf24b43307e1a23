package uploader

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// Whatever the history and the policy, retention leaves the newest READY backup that
// failed no proof, what latest points to, the newest verified, pinned ones, all that
// were not READY, or had no READY successor, three days ago, and what it cannot judge.
func TestRetentionNeverEatsTheLastGoodOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := t0
		hours := func(name string, most int) time.Duration {
			return time.Duration(rapid.IntRange(0, most).Draw(t, name)) * time.Hour
		}
		var all []Backup
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			b := newBackup(NewID(now.Add(-hours("age", 60*24)), "auto"))
			b.Status = rapid.SampledFrom([]Status{
				StatusReady, StatusReady, StatusReady, StatusIncomplete, StatusError, StatusAbandoned, StatusDamaged, StatusNewer, StatusBackingUp,
			}).Draw(t, "status")
			b.Ready = b.Created.Add(hours("took", 48))
			b.Touched = b.Ready
			b.objects = rapid.IntRange(0, 2).Draw(t, "objects")
			b.givenUp = b.Status == StatusError && rapid.Bool().Draw(t, "given up")
			if b.Status == StatusReady || b.Status == StatusDamaged {
				b.Manifest = &Manifest{ID: b.ID, Incarnation: rapid.SampledFrom([]string{"aa", "bb"}).Draw(t, "incarnation")}
				b.Manifest.Position.Index = rapid.Uint64Range(1, 9).Draw(t, "height")
				b.Latest = rapid.IntRange(0, 5).Draw(t, "latest") == 0
				if rapid.IntRange(0, 4).Draw(t, "graded") == 0 {
					b.Verified = now
				}
				if rapid.IntRange(0, 4).Draw(t, "failed") == 0 {
					b.Failed = &Grade{}
				}
				if rapid.IntRange(0, 6).Draw(t, "pinned") == 0 {
					b.Pins = []Pin{{Who: "ops"}}
				}
			}
			all = append(all, b)
		}
		all = newestFirst(all, rapid.SampledFrom([]string{"aa", "bb", ""}).Draw(t, "history"))
		gone := map[string]bool{}
		for _, x := range PlanExpire(all, Policy{Last: rapid.IntRange(-1, 5).Draw(t, "last")}, now) {
			gone[x.ID] = true
		}
		var newer *Backup
		verified := false
		for i, b := range all {
			dead := gone[b.ID]
			switch b.Status {
			case StatusReady:
				graded := b.good() && !b.Verified.IsZero()
				if dead && (newer == nil || now.Sub(newer.Ready) < 72*time.Hour || now.Sub(b.Ready) < 72*time.Hour || b.Latest || len(b.Pins) > 0 || graded && !verified) {
					t.Fatalf("%+v would be deleted; its successor is %+v", b, newer)
				}
				if verified = verified || graded; b.good() { // one that failed takes nobody's place
					newer = &all[i]
				}
			case StatusDamaged, StatusNewer, StatusBackingUp:
				if dead {
					t.Fatalf("%s is %s and would be deleted", b.ID, b.Status)
				}
			default:
				superseded := slices.ContainsFunc(all, func(r Backup) bool { return r.good() && r.ID > b.ID })
				busy := slices.ContainsFunc(all, func(r Backup) bool { return r.Status == StatusBackingUp })
				if dead && (now.Sub(b.Touched) <= 7*24*time.Hour && !(b.givenUp && superseded) || busy && b.objects > 0) {
					t.Fatalf("%s is %s, touched %v ago, and would be deleted", b.ID, b.Status, now.Sub(b.Touched))
				}
			}
		}
	})
}

func TestPlanExpire(t *testing.T) {
	day := 24 * time.Hour
	at := func(age time.Duration, status Status, change ...func(*Backup)) Backup {
		b := newBackup(NewID(t0.Add(-age), "auto"))
		b.Status, b.Ready, b.Touched, b.objects = status, b.Created, b.Created, 2
		if status == StatusReady {
			b.Manifest = &Manifest{ID: b.ID, Incarnation: "aa"}
		}
		for _, c := range change {
			c(&b)
		}
		return b
	}
	for name, c := range map[string]struct {
		last int
		all  []Backup
		want []int // places of what goes
	}{
		"the last three stay":        {3, []Backup{at(1*day, StatusReady), at(5*day, StatusReady), at(9*day, StatusReady), at(13*day, StatusReady), at(17*day, StatusReady)}, []int{3, 4}},
		"last 0 means 1":             {0, []Backup{at(9*day, StatusReady), at(10*day, StatusReady)}, []int{1}},
		"72 hours of grace":          {1, []Backup{at(71*time.Hour, StatusReady), at(30*day, StatusReady), at(31*day, StatusReady)}, []int{2}},
		"grace from READY on":        {1, []Backup{at(4*day, StatusReady, func(b *Backup) { b.Ready = b.Created.Add(2 * day) }), at(30*day, StatusReady)}, nil},
		"no newer one, but late":     {1, []Backup{at(9*day, StatusReady), at(20*day, StatusReady, func(b *Backup) { b.Ready = t0.Add(-time.Hour) })}, nil},
		"damaged counts for none":    {1, []Backup{at(1*day, StatusDamaged), at(9*day, StatusReady), at(19*day, StatusReady)}, []int{2}},
		"pinned":                     {1, []Backup{at(9*day, StatusReady), at(19*day, StatusReady, func(b *Backup) { b.Pins = []Pin{{Who: "x"}} }), at(29*day, StatusReady)}, []int{2}},
		"newest verified":            {1, []Backup{at(9*day, StatusReady), at(19*day, StatusReady, verifiedNow), at(29*day, StatusReady, verifiedNow)}, []int{2}},
		"failed ones stand for none": {1, []Backup{at(1*day, StatusReady, failedNow), at(9*day, StatusReady, failedNow), at(19*day, StatusReady), at(29*day, StatusReady), at(39*day, StatusReady, failedNow)}, []int{3, 4}},
		"verified, and failed since": {1, []Backup{at(9*day, StatusReady), at(19*day, StatusReady, verifiedNow, failedNow), at(29*day, StatusReady, verifiedNow)}, []int{1}},
		"leavings after a week":      {1, []Backup{at(6*day, StatusIncomplete), at(8*day, StatusIncomplete), at(8*day, StatusAbandoned)}, []int{1, 2}},
		"a slow upload":              {1, []Backup{at(20*day, StatusIncomplete, func(b *Backup) { b.Touched = t0.Add(-time.Hour) })}, nil},
		"errors after two":           {1, []Backup{at(6*day, StatusError), at(8*day, StatusError), at(8*day, StatusError, func(b *Backup) { b.objects = 0 }), at(15*day, StatusError)}, []int{1, 3}},
		"not while they serve":       {1, []Backup{at(0, StatusBackingUp), at(8*day, StatusIncomplete), at(8*day, StatusError), at(15*day, StatusError, func(b *Backup) { b.objects = 0 })}, []int{3}},
		"given up and superseded":    {1, []Backup{at(0, StatusError, givenUp), at(1*day, StatusReady), at(2*day, StatusError, givenUp), at(2*day, StatusError)}, []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			for _, x := range PlanExpire(c.all, Policy{Last: c.last}, t0) {
				got = append(got, slices.IndexFunc(c.all, func(b Backup) bool { return b.ID == x.ID }))
			}
			if !slices.Equal(got, c.want) {
				t.Fatalf("%v would go, want %v", got, c.want)
			}
		})
	}
}

func givenUp(b *Backup) { b.givenUp = true }

func verifiedNow(b *Backup) { b.Verified = t0 }

func failedNow(b *Backup) { b.Failed = &Grade{Kind: GradeFailed} }

// age sets the times of all that the store has of a backup.
func age(t *testing.T, c *Catalog, id string, to time.Time) {
	t.Helper()
	dir := c.Store().(*fileStore).dir
	for _, k := range listKeys(t, c) {
		if filepath.Base(filepath.Dir(k)) == id || k == c.runKey(id) {
			if err := os.Chtimes(filepath.Join(dir, filepath.FromSlash(k)), to, to); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A pin keeps a backup for as long as it is there.
func TestPins(t *testing.T) {
	c := testCatalog(t)
	for i := range 3 {
		when := t0.Add(time.Duration(i-40) * 24 * time.Hour)
		age(t, c, mustBackup(t, c, when, "auto", uint64(i+1)), when)
	}
	plan := func() int {
		t.Helper()
		p, err := c.PlanExpire(t.Context(), Policy{Last: 1}, t0)
		if err != nil {
			t.Fatal(err)
		}
		return len(p)
	}
	first := func() Backup {
		t.Helper()
		b, err := c.Select(t.Context(), "height:1")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if n := plan(); n != 2 {
		t.Fatalf("%d would go", n)
	}
	for _, who := range []string{"upgrade-v2", "ops", "ops"} {
		if err := c.Pin(t.Context(), first(), Pin{Who: who}, t0); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Pin(t.Context(), first(), Pin{Who: "../x"}, t0); err == nil {
		t.Error("pinned as ../x")
	}
	if err := c.Pin(t.Context(), Backup{ID: first().ID, Status: StatusDamaged}, Pin{Who: "ops"}, t0); err == nil {
		t.Error("what is DAMAGED was pinned")
	}
	if b := first(); !slices.Equal(b.Pins, []Pin{{Who: "ops"}, {Who: "upgrade-v2"}}) || plan() != 1 {
		t.Fatalf("pins %v, %d would go", b.Pins, plan())
	}
	if err := c.Unpin(t.Context(), first(), "ops"); err != nil || plan() != 1 {
		t.Fatalf("%v, %d would go", err, plan())
	}
	if err := c.Unpin(t.Context(), first(), "ops"); !errors.Is(err, ErrNoSuchBackup) {
		t.Errorf("taken back twice: %v", err)
	}
	if err := c.Unpin(t.Context(), first(), "upgrade-v2"); err != nil || plan() != 2 {
		t.Fatalf("%v, %d would go", err, plan())
	}
}

// A pin that has an end counts until then; one that cannot be read has none.
func TestPinsEnd(t *testing.T) {
	c := testCatalog(t)
	id := mustBackup(t, c, t0, "auto", 1)
	b, err := c.Select(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, p := range []Pin{{Who: "over", Until: now.Add(-time.Minute)}, {Who: "soon", Until: now.Add(time.Hour)}, {Who: "ops"}} {
		if err := c.Pin(t.Context(), b, p, now); err != nil {
			t.Fatal(err)
		}
	}
	for who, text := range map[string]string{"damaged": "{", "newer": `{"format":9,"min_reader":9,"until":"2001-01-01T00:00:00Z"}`} {
		if _, err := c.store.PutSmall(t.Context(), c.pinKey(b.ID, who), []byte(text), "application/json", Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	b, err = c.Select(t.Context(), b.ID)
	if got, want := PinText(b.Pins), "damaged, newer, ops, soon until "+now.Add(time.Hour).UTC().Format(time.DateOnly); err != nil || got != want {
		t.Errorf("%v: %s, want %s", err, got, want)
	}
	if err := c.Delete(t.Context(), b.ID); !errors.Is(err, ErrPinned) {
		t.Errorf("deleted: %v", err)
	}
}

// A backup that is being restored stays, whoever wants it gone.
func TestRestoringStays(t *testing.T) {
	c := testCatalog(t)
	var ids []string
	for i := range 3 {
		when := t0.Add(time.Duration(i-40) * 24 * time.Hour)
		id := mustBackup(t, c, when, "auto", uint64(i+1))
		age(t, c, id, when)
		ids = append(ids, id)
	}
	run := Run{ID: NewID(time.Now(), "restore"), Status: StatusRestoring, Component: "swarm", Host: "m2", Of: ids[0]}
	if err := c.StartRun(t.Context(), run); err != nil {
		t.Fatal(err)
	}
	plan, err := c.PlanExpire(t.Context(), Policy{Last: 1}, t0)
	if err != nil || len(plan) != 1 || plan[0].ID != ids[1] {
		t.Errorf("%v: %+v", err, plan)
	}
	for _, id := range []string{ids[0], run.ID} {
		if err := c.Delete(t.Context(), id); !errors.Is(err, fsx.ErrLocked) {
			t.Errorf("%s was deleted: %v", id, err)
		}
	}
	all, err := c.List(t.Context())
	if err != nil || all[0].Status != StatusRestoring || all[0].Of != ids[0] || all[0].Component != "swarm" || all[0].Text != "restore of "+ids[0]+" on m2" {
		t.Errorf("%v: %+v", err, all[0])
	}
	if got, err := c.Restores(t.Context(), ids[0]); err != nil || len(got) != 1 || got[0].Status != StatusRestoring {
		t.Errorf("%v: %+v", err, got)
	}
	if err := c.GiveUpRun(t.Context(), run.ID, errors.New("no room")); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Select(t.Context(), run.ID); err != nil || b.Status != StatusError || !strings.HasSuffix(b.Text, "on m2: no room") {
		t.Errorf("%v: %+v", err, b)
	}
	if err := c.EndRestores(t.Context(), ids[0], "m2"); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), ids[0]); err != nil {
		t.Error(err)
	}
}

func TestApplyAsksAgain(t *testing.T) {
	c := testCatalog(t)
	now := t0
	var ids []string
	for i := range 4 {
		when := now.Add(time.Duration(i-40) * 24 * time.Hour)
		id := mustBackup(t, c, when, "auto", uint64(i+1))
		age(t, c, id, when)
		ids = append(ids, id)
	}
	failed := NewID(now.Add(-10*24*time.Hour), "failed")
	put(t, c, c.ObjectKey(failed, VolumeName(0)), "x")
	if err := c.FailRun(t.Context(), failed, errors.New("no")); err != nil {
		t.Fatal(err)
	}
	age(t, c, failed, now.Add(-10*24*time.Hour))
	// The writer of the newest one died between commit and EndRun.
	if err := c.StartRun(t.Context(), Run{ID: ids[3]}); err != nil {
		t.Fatal(err)
	}
	age(t, c, ids[3], now.Add(-37*24*time.Hour))

	p := Policy{Last: 1}
	plan, err := c.PlanExpire(t.Context(), p, now)
	if err != nil || len(plan) != 4 {
		t.Fatalf("%+v, %v", plan, err)
	}
	put(t, c, c.ObjectKey(ids[1], "pins/ops.json"), "{}") // meanwhile
	plan = append(plan, Expiry{ID: ids[3], Reason: "a forged line"})
	var gone []string
	if err := c.Apply(t.Context(), plan, p, now, always, func(x Expiry) { gone = append(gone, x.ID) }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(gone)
	want := []string{ids[0], ids[2], failed}
	slices.Sort(want)
	if !slices.Equal(gone, want) {
		t.Fatalf("gone: %v, want %v", gone, want)
	}
	left := map[string]Status{}
	all, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		left[b.ID] = b.Status
	}
	if len(left) != 3 || left[ids[1]] != StatusReady || left[ids[3]] != StatusReady || left[failed] != StatusError {
		t.Fatalf("left: %v", left)
	}
	if slices.Contains(listKeys(t, c), c.runKey(ids[3])) {
		t.Fatal("the stale record of a READY backup was not swept")
	}
}

// The newest grade "verified" of a backup that is still there counts; others, and
// those of what was deleted, do not.
func TestLastVerified(t *testing.T) {
	c := testCatalog(t)
	last := func() time.Time {
		t.Helper()
		at, err := c.LastVerified(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	if at := last(); !at.IsZero() {
		t.Errorf("an empty bucket was verified at %s", at)
	}
	a, b := mustBackup(t, c, t0, "auto", 1), mustBackup(t, c, t0.Add(time.Hour), "auto", 2)
	for _, g := range []string{a + "/grades/20261122T010203Z-verified", b + "/grades/20261121T000000Z-verified", b + "/grades/20261130T000000Z-sampled", b + "/grades/nonsense-verified"} {
		put(t, c, c.dataPrefix()+g+".json", "{}")
	}
	if at, want := last(), time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC); !at.Equal(want) {
		t.Errorf("%s, want %s", at, want)
	}
	if err := c.Store().Delete(t.Context(), c.ObjectKey(a, manifestName)); err != nil {
		t.Fatal(err)
	}
	if at, want := last(), time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC); !at.Equal(want) {
		t.Errorf("after a deletion %s, want %s", at, want)
	}
}

func always(context.Context) error { return nil }

// Who may no longer delete stops before the next backup, and what is left is whole.
func TestExpireStopsBetweenBackups(t *testing.T) {
	c := testCatalog(t)
	for i := range 5 {
		mustBackup(t, c, t0.Add(time.Duration(i)*time.Hour), "some", uint64(i+1))
	}
	now, p := time.Now().Add(100*24*time.Hour), Policy{Last: 1}
	plan, err := c.PlanExpire(t.Context(), p, now)
	if err != nil || len(plan) != 4 {
		t.Fatalf("%v, %v", plan, err)
	}
	asked, gone := 0, 0
	err = c.Apply(t.Context(), plan, p, now, func(context.Context) error {
		if asked++; asked == 3 {
			return ErrLeaseLost
		}
		return nil
	}, func(Expiry) { gone++ })
	if !errors.Is(err, ErrLeaseLost) || gone != 2 {
		t.Errorf("%d deleted, %v; want 2, ErrLeaseLost", gone, err)
	}
	all, err := c.List(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%d are left, %v", len(all), err)
	}
	for _, b := range all {
		if b.Status != StatusReady {
			t.Errorf("%s is %s", b.ID, b.Status)
		}
	}
}
