package main

import (
	"context"
	"os"
	"strings"
	"testing"
)

func TestTimed(t *testing.T) {
	u, out, err := timed(t.Context(), t.TempDir(), os.Environ(), "bash", "-c", "for ((i = 0; i < 100000; i++)); do :; done; echo done")
	if err != nil {
		t.Fatal(err)
	}
	if out != "done\n" || u.wall <= 0 || u.cpu <= 0 || u.cpu > u.wall+0.1 {
		t.Errorf("output %q, %+v", out, u)
	}
	if u.rss < 1<<20 || u.rss > 64<<20 {
		t.Errorf("bash took %d bytes of memory", u.rss)
	}
	if _, _, err := timed(t.Context(), t.TempDir(), os.Environ(), "bash", "-c", "echo why >&2; false | true; exit 4"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a program that fails: %v", err)
	}
}

func TestUsageRead(t *testing.T) {
	var u usage
	if err := u.read("\tUser time (seconds): 1.50\n\tSystem time (seconds): 0.25\n\tMaximum resident set size (kbytes): 2048\n"); err != nil {
		t.Fatal(err)
	}
	if u.cpu != 1.75 || u.rss != 2<<20 {
		t.Errorf("%+v", u)
	}
	if err := u.read("User time (seconds): 1\n"); err == nil {
		t.Error("a report cut short was accepted")
	}
}

func TestLastSummary(t *testing.T) {
	s, err := lastSummary(`{"message_type":"phase","phase":"held"}
{"message_type":"summary","outcome":"ready","id":"x","held_seconds":1.5,"stop_seconds":1,"stage_seconds":0.1,"start_seconds":0.4}
`)
	if err != nil || s.ID != "x" || s.Held != 1.5 || s.Stage != 0.1 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, out := range []string{"", "no json\n", `{"message_type":"summary","outcome":"unchanged"}`} {
		if _, err := lastSummary(out); err == nil {
			t.Errorf("%q: no error", out)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}

func TestOutputCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := output(ctx, nil, "sleep", "60"); err == nil {
		t.Error("no error")
	}
}
