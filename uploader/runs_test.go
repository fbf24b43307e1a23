package uploader

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestRunsLiveAndEnd(t *testing.T) {
	c := testCatalog(t)
	id := NewID(t0, "auto")
	if err := c.UpdateRun(t.Context(), id, 1, 2, nil); !errors.Is(err, ErrNotFound) {
		t.Fatalf("update of a run that was never announced: %v", err)
	}
	if err := c.StartRun(t.Context(), Run{ID: "../x"}); err == nil {
		t.Fatal("a run without a proper id was announced")
	}
	if err := c.StartRun(t.Context(), Run{ID: id, Component: "backup", Host: "obs-1"}); err != nil {
		t.Fatal(err)
	}
	if err := c.UpdateRun(t.Context(), id, 1, 3, nil); err != nil {
		t.Fatal(err)
	}
	r, err := c.getRun(t.Context(), id)
	if err != nil || r.Status != StatusBackingUp || r.Host != "obs-1" || r.Cluster != "test" || r.Started.IsZero() || r.Updated.Before(r.Started) {
		t.Fatalf("%+v, %v", r, err)
	}
	if s, text := r.state(time.Now()); s != StatusBackingUp || text != "on obs-1, 33 %" {
		t.Fatalf("%s %q", s, text)
	}
	if err := c.FailRun(t.Context(), id, errors.New(strings.Repeat("ä", 100<<10))); err != nil {
		t.Fatal(err)
	}
	r, err = c.getRun(t.Context(), id)
	if err != nil || r.Status != StatusError || len(r.Error) > maxRunText+3 || !utf8.ValidString(r.Error) || r.Host != "obs-1" {
		t.Fatalf("%s, %d bytes of error, %v", r.Status, len(r.Error), err)
	}
	for range 2 {
		if err := c.EndRun(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Select(t.Context(), id); !errors.Is(err, ErrNoSuchBackup) {
		t.Fatalf("after its end: %v", err)
	}
}

func TestASilentRunIsAbandoned(t *testing.T) {
	for name, c := range map[string]struct {
		r    Run
		want Status
	}{
		"just now":                   {Run{Updated: t0}, StatusBackingUp},
		"an hour":                    {Run{Updated: t0.Add(-time.Hour)}, StatusBackingUp},
		"more":                       {Run{Updated: t0.Add(-time.Hour - 1)}, StatusAbandoned},
		"a lapse of its own":         {Run{Updated: t0.Add(-time.Minute), LapseSeconds: 30}, StatusAbandoned},
		"an absurd lapse":            {Run{Updated: t0.Add(-15 * 24 * time.Hour), LapseSeconds: 1 << 62}, StatusAbandoned},
		"its host's clock is behind": {Run{Updated: t0.Add(-9 * time.Hour), modified: t0.Add(-time.Minute)}, StatusBackingUp},
		"its host's clock is ahead":  {Run{Updated: t0.Add(9 * time.Hour), modified: t0.Add(-2 * time.Hour)}, StatusAbandoned},
		"an error stays one":         {Run{Status: StatusError, Updated: t0.Add(-99 * time.Hour)}, StatusError},
		"no total":                   {Run{Updated: t0, Done: 5}, StatusBackingUp},
	} {
		if got, _ := c.r.state(t0); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzDecodeRun(f *testing.F) {
	const id = "20261120T120000Z-auto-000001"
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"` + id + `","status":"BACKING_UP","done":1,"total":2,"updated":"2026-11-20T12:00:00Z"}`))
	f.Add([]byte(`{"format":3,"min_reader":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRun(b, id)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
		if err == nil {
			if s, _ := r.state(t0); s != StatusError && s != StatusBackingUp && s != StatusAbandoned {
				t.Fatalf("%q is %s", b, s)
			}
		}
	})
}

// What a run has stored can be copied from by others that encode alike, whatever
// became of it.
func TestCopySources(t *testing.T) {
	c := testCatalog(t)
	stored := []Volume{{Name: VolumeName(0), Size: 7, ETag: "e"}}
	var ids []string
	for i, r := range []Run{
		{Encoder: "zstd v1", Level: 1, Volumes: stored},
		{Encoder: "zstd v1", Level: 1, Volumes: slices.Repeat(stored, 10*maxRunVolumes)},
		{Encoder: "zstd v2", Level: 1, Volumes: stored},
		{Encoder: "zstd v1", Level: 2, Volumes: stored},
		{Encoder: "zstd v1", Level: 1},
	} {
		r.ID = NewID(t0.Add(time.Duration(i)*time.Hour), "auto")
		ids = append(ids, r.ID)
		if err := c.StartRun(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.GiveUpRun(t.Context(), ids[0], errors.New("its stage is gone")); err != nil {
		t.Fatal(err)
	}
	look := func(own string) (got []string) {
		runs, err := c.CopySources(t.Context(), own, "zstd v1", 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			got = append(got, r.ID)
			if len(r.Volumes) > maxRunVolumes || r.GivenUp != (r.ID == ids[0]) {
				t.Errorf("%s has %d volumes, given up: %t", r.ID, len(r.Volumes), r.GivenUp)
			}
		}
		return got
	}
	if got := look(""); !slices.Equal(got, []string{ids[1], ids[0]}) {
		t.Errorf("%v, want the two that encode alike, the newest first", got)
	}
	if got := look(ids[1]); !slices.Equal(got, ids[:1]) {
		t.Errorf("%v, want the other one", got)
	}
	if err := c.UpdateRun(t.Context(), ids[4], 1, 2, stored); err != nil {
		t.Fatal(err)
	}
	if got := look(""); len(got) != 3 || got[0] != ids[4] {
		t.Errorf("%v, want what was stored since", got)
	}
}
