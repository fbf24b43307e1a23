package uploader

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func (g Grade) at(id string, t time.Time) Grade { g.ID, g.Given = id, t; return g }

// What stands of a backup's grades, whatever the order of events.
func TestGradesStand(t *testing.T) {
	verified := Grade{Kind: GradeVerified, By: ByReadData}
	sampled := Grade{Kind: GradeSampled, By: BySample}
	drilled := Grade{Kind: GradeDrilled, By: ByDrill}
	rotten := Grade{Kind: GradeFailed, By: BySample, Findings: []Finding{{Stage: "frames", Object: "vol-0000.tar.zst", Text: "rotten"}}}
	diverged := Grade{Kind: GradeFailed, By: ByDrill, Findings: []Finding{{Stage: "drill", Text: "diverged"}}}
	attested := Grade{Kind: GradeAttested, By: ByAttest}
	forked := Grade{Kind: GradeFailed, By: ByAttest, Findings: []Finding{{Stage: "attest", Text: "forked"}}}
	for name, c := range map[string]struct {
		given  []Grade
		failed string // why; "": it stands
	}{
		"none":                               {},
		"verified":                           {[]Grade{verified}, ""},
		"failed":                             {[]Grade{rotten}, "vol-0000.tar.zst: rotten"},
		"verified, then failed":              {[]Grade{verified, rotten}, "vol-0000.tar.zst: rotten"},
		"failed, then verified":              {[]Grade{rotten, verified}, ""},
		"failed, then sampled":               {[]Grade{rotten, sampled}, "vol-0000.tar.zst: rotten"},
		"a drill failed, then verified":      {[]Grade{diverged, verified}, "diverged"},
		"a drill failed, then drilled":       {[]Grade{diverged, drilled}, ""},
		"failed, then drilled":               {[]Grade{rotten, drilled}, "vol-0000.tar.zst: rotten"},
		"a fork, then drilled and verified":  {[]Grade{forked, drilled, verified}, "forked"},
		"a fork, then attested":              {[]Grade{forked, attested}, ""},
		"failed, then attested":              {[]Grade{rotten, attested}, "vol-0000.tar.zst: rotten"},
		"both failed, then one passed":       {[]Grade{diverged, rotten, verified}, "diverged"},
		"both failed, the other passed":      {[]Grade{diverged, rotten, drilled}, "vol-0000.tar.zst: rotten"},
		"both failed, both passed":           {[]Grade{rotten, diverged, drilled, verified}, ""},
		"failed in the second of a success":  {[]Grade{verified, rotten.at("same", time.Time{})}, "vol-0000.tar.zst: rotten"},
		"many failures, then both have gone": {append(slices.Repeat([]Grade{rotten}, 12), verified), ""},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := testCatalog(t)
			id := mustBackup(t, c2, t0, "graded", 1)
			now := t0
			for _, g := range c.given {
				if g.ID != "same" {
					now = now.Add(time.Minute)
				}
				if _, err := c2.PutGrade(t.Context(), g.at(id, now)); err != nil {
					t.Fatal(err)
				}
			}
			b, err := c2.Latest(t.Context())
			why := ""
			if b.Failed != nil {
				why = b.Failed.Why()
			}
			if err != nil || why != c.failed || len(b.Grades) != len(c.given) {
				t.Fatalf("failed: %q, want %q; %v, %v", why, c.failed, b.Grades, err)
			}
			passed := slices.ContainsFunc(c.given, func(g Grade) bool { return g.Kind == GradeVerified })
			last, err := c2.LastVerified(t.Context())
			if err != nil || last.IsZero() != (!passed || why != "") {
				t.Fatalf("last verified %v, %v", last, err)
			}
			got, err := c2.Select(t.Context(), "verified")
			if ok := passed && why == ""; ok != (err == nil && got.ID == id) || !ok && !errors.Is(err, ErrNoSuchBackup) {
				t.Fatalf("verified is %s, %v", got.ID, err)
			}
		})
	}
}

// A grade is never written over, and one that cannot be read is a failure where its
// name says so.
func TestGradesAreKept(t *testing.T) {
	c := testCatalog(t)
	id := mustBackup(t, c, t0, "graded", 1)
	keys := map[string]bool{}
	for range 3 {
		key, err := c.PutGrade(t.Context(), Grade{ID: id, Kind: GradeVerified, By: ByReadData, Given: t0, Findings: make([]Finding, 150)})
		if err != nil || keys[key] {
			t.Fatal(key, err)
		}
		keys[key] = true
	}
	b, err := c.Latest(t.Context())
	if err != nil || len(b.Grades) != 3 || !b.Verified.Equal(t0.Add(2*time.Second)) {
		t.Fatalf("%v, %v, %v", b.Grades, b.Verified, err)
	}
	g, err := c.Grade(t.Context(), id, b.Grades[0])
	if err != nil || len(g.Findings) != maxFindings || g.FindingsMore != 50 {
		t.Fatalf("%+v, %v", g, err)
	}
	name := t0.Add(time.Hour).UTC().Format(idTime) + "-failed"
	if _, err := c.store.PutSmall(t.Context(), c.gradeKey(id, name), []byte("{"), "", Condition{}); err != nil {
		t.Fatal(err)
	}
	if b, err = c.Latest(t.Context()); err != nil || b.Failed == nil {
		t.Fatalf("a failure that cannot be read: %+v, %v", b.Failed, err)
	}
	if _, err := c.PutGrade(t.Context(), Grade{ID: id, Kind: "good", Given: t0}); err == nil {
		t.Fatal("a kind that nobody knows was written")
	}
}

// The newest good one is what cannot be deleted, not one that failed.
func TestAFailedBackupMayBeDeleted(t *testing.T) {
	c := testCatalog(t)
	good := mustBackup(t, c, t0, "good", 1)
	bad := mustBackup(t, c, t0.Add(time.Hour), "bad", 2)
	if _, err := c.PutGrade(t.Context(), Grade{ID: bad, Kind: GradeFailed, By: ByQuick, Given: t0}); err != nil {
		t.Fatal(err)
	}
	for id, why := range map[string]string{good: "the newest", bad: "latest points to it"} {
		if err := c.Delete(t.Context(), id); !errors.Is(err, ErrNewest) {
			t.Errorf("%s, %s: %v", id, why, err)
		}
	}
	mustBackup(t, c, t0.Add(2*time.Hour), "next", 3)
	if err := c.Delete(t.Context(), bad); err != nil {
		t.Error(err)
	}
}

func FuzzGrade(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"20261120T235500Z-auto-9f02c1","kind":"failed","given":"2026-11-20T23:55:00Z","findings":[{"text":"x"}]}`))
	f.Add([]byte(`{"format":1,"min_reader":2}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := DecodeGrade(b)
		if err == nil && (g.ID == "" || strings.Contains(g.Kind, "/")) {
			t.Fatalf("%+v", g)
		}
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
	})
}
