package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes as a flag: "3GB", "500MiB", "1048576".
type Size int64

// String gives the bytes as a plain number.
func (s *Size) String() string { return strconv.FormatInt(int64(*s), 10) }

// Set parses a number with an optional unit: B, kB, MB, GB, KiB, MiB, GiB.
func (s *Size) Set(text string) error {
	units := []struct {
		suffix string
		factor float64
	}{
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"kB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
		{"B", 1},
	}
	number, factor := text, 1.0
	for _, u := range units {
		if n, ok := strings.CutSuffix(text, u.suffix); ok {
			number, factor = strings.TrimSpace(n), u.factor
			break
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f > 0) || f*factor > 1<<50 {
		return fmt.Errorf("size %q: want a number above 0 with kB, MB, GB, KiB, MiB or GiB", text)
	}
	*s = Size(f * factor)
	return nil
}
