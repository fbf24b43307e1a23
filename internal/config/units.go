package config

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span written as "90s", "15m", "2h30m" or "7d".
type Duration time.Duration

// D is the span as the standard library wants it.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String is the shortest text that UnmarshalText reads back.
func (d Duration) String() string {
	if d == 0 {
		return "0s"
	}
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return &valueError{fmt.Sprintf("%s has no unit", quote(s)), fmt.Sprintf("write %ss, or use m, h or d", s)}
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err == nil {
			*d = Duration(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return &valueError{fmt.Sprintf("%s is not a duration", quote(s)), "write a number with a unit: 90s, 15m, 2h30m, 7d"}
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes written as "64MiB" or "256GiB".
type Size int64

// Bytes is the size in bytes.
func (s Size) Bytes() int64 { return int64(s) }

var sizeUnits = []struct {
	name  string
	shift int
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"B", 0}}

// String is the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%(1<<u.shift) == 0 {
			return strconv.FormatInt(int64(s)>>u.shift, 10) + u.name
		}
	}
	return "0B"
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	t := string(text)
	end := strings.IndexFunc(t, func(r rune) bool { return r < '0' || r > '9' })
	switch {
	case t != "" && (end < 0 || end > 0 && strings.TrimSpace(t[end:]) == ""):
		return &valueError{fmt.Sprintf("%s has no unit", quote(t)), "write B, KiB, MiB, GiB or TiB behind the number"}
	case end <= 0:
		return &valueError{fmt.Sprintf("%s is not a size", quote(t)), "write a whole number with a unit: 64MiB, 256GiB"}
	}
	unit := strings.TrimSpace(t[end:])
	for _, u := range sizeUnits {
		if unit != u.name {
			continue
		}
		n, err := strconv.ParseUint(t[:end], 10, 63)
		if err != nil || bits.Len64(n)+u.shift > 63 {
			return &valueError{fmt.Sprintf("%s is too large", quote(t)), "the largest size is below 8388608TiB"}
		}
		*s = Size(n << u.shift)
		return nil
	}
	for _, u := range sizeUnits {
		// KB, kb and k mean 1000 to some and 1024 to others.
		if u.shift > 0 && strings.EqualFold(unit[:1], u.name[:1]) && len(unit) <= 3 {
			return &valueError{fmt.Sprintf("%s has an unknown unit", quote(t)), fmt.Sprintf("write %s%s, which is %s times 2 to the power of %d bytes", t[:end], u.name, t[:end], u.shift)}
		}
	}
	return &valueError{fmt.Sprintf("%s has an unknown unit", quote(t)), "use B, KiB, MiB, GiB or TiB"}
}

// WhenBehind is what becomes of a backup whose replica has not caught up.
type WhenBehind struct {
	Action string        // "wait", "skip" (no backup, no failure) or "fail"
	For    time.Duration // how long to wait; 0 unless Action is "wait"
}

// Wait is how long to wait for the replica before giving up.
func (w WhenBehind) Wait() time.Duration { return w.For }

// Skip tells that a replica which is behind is no failure.
func (w WhenBehind) Skip() bool { return w.Action == "skip" }

// String is the text that UnmarshalText reads back.
func (w WhenBehind) String() string {
	if w.Action == "wait" {
		return "wait " + Duration(w.For).String()
	}
	return w.Action
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *WhenBehind) UnmarshalText(text []byte) error {
	s := string(text)
	action, rest, timed := strings.Cut(strings.TrimSpace(s), " ")
	switch {
	case (action == "skip" || action == "fail") && !timed:
		*w = WhenBehind{Action: action}
		return nil
	case action == "wait" && timed:
		var d Duration
		if err := d.UnmarshalText([]byte(strings.TrimSpace(rest))); err != nil {
			return err
		}
		if d <= 0 {
			return &valueError{fmt.Sprintf("%s waits for nothing", quote(s)), "write wait 15m, skip or fail"}
		}
		*w = WhenBehind{Action: "wait", For: d.D()}
		return nil
	case action == "wait":
		return &valueError{"wait does not say how long", "write wait 15m"}
	}
	return &valueError{fmt.Sprintf("unknown value %s", quote(s)), "write wait 15m, skip or fail"}
}
