package config

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestUnitsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Size(rapid.Int64Range(0, math.MaxInt64).Draw(t, "size") >> rapid.IntRange(0, 62).Draw(t, "shift"))
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Fatalf("%s (%d) reads back as %d: %v", s, int64(s), int64(again), err)
		}
		d := Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "duration"))
		var d2 Duration
		if err := d2.UnmarshalText([]byte(d.String())); err != nil || d2 != d {
			t.Fatalf("%s reads back as %s: %v", d, d2, err)
		}
		w := WhenBehind{Action: rapid.SampledFrom([]string{"wait", "skip", "fail"}).Draw(t, "action")}
		if w.Action == "wait" {
			w.For = max(1, d.D())
		}
		var w2 WhenBehind
		if err := w2.UnmarshalText([]byte(w.String())); err != nil || w2 != w {
			t.Fatalf("%s reads back as %s: %v", w, w2, err)
		}
	})
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]Size{"64KiB": 64 << 10, "256GiB": 256 << 30, "1 TiB": 1 << 40, "10B": 10, "0B": 0, "7TiB": 7 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s is %d: %v", text, int64(s), err)
		}
	}
	for _, text := range []string{"", "B", "-1B", "1.5GiB", "64", "64MB", "64m", "1 kb", "9223372036854775808B", "8388608TiB", "1PiB", "1GiB x"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("size %q is read as %s", text, s)
		}
	}
	for text, want := range map[string]Duration{"15m": Duration(15 * time.Minute), "2h30m": Duration(150 * time.Minute), "7d": Duration(168 * time.Hour), "0s": 0} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d != want {
			t.Errorf("%s is %s: %v", text, d, err)
		}
	}
	for _, text := range []string{"", "15", "1.5", "d", "1.5d", "-1d", "99999999d", "soon", "15 m"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("duration %q is read as %s", text, d)
		}
	}
	for _, text := range []string{"", "wait", "wait ", "wait 0s", "wait -1s", "skip 5m", "fail now", "hope"} {
		var w WhenBehind
		if err := w.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("policy %q is read as %s", text, w)
		}
	}
}

func TestClosest(t *testing.T) {
	words := []string{"url", "region", "endpoint", "path_style", "profile"}
	for word, want := range map[string]string{"regoin": "region", "ur": "url", "URL": "url", "endpiont": "endpoint", "pathstyle": "path_style", "colour": "", "x": "", "": ""} {
		if got := closest(word, words); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestPrice(t *testing.T) {
	for text, want := range map[string]float64{"": 0, "0.023 USD": 0.023, "5": 5, "0.5 EUR": 0.5} {
		c, err := Load(write(t, "store: {price: \""+text+"\"}\n"), nil, Overrides{}, NeedNothing)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Store.PerGBMonth(); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	for _, text := range []string{"USD 5", "-1", "1e9", "five", "1 US Dollar"} {
		if _, err := Load(write(t, "store: {price: \""+text+"\"}\n"), nil, Overrides{}, NeedNothing); err == nil {
			t.Errorf("%q passes", text)
		}
	}
}
