package check

import "testing"

func TestWorst(t *testing.T) {
	for _, c := range []struct {
		levels []Level
		want   Level
	}{
		{nil, OK},
		{[]Level{OK, OK}, OK},
		{[]Level{OK, Warn, OK}, Warn},
		{[]Level{Fail, Warn}, Fail},
		{[]Level{Warn, Fail, OK}, Fail},
	} {
		var all []Finding
		for _, l := range c.levels {
			all = append(all, Finding{Level: l})
		}
		if got := Worst(all); got != c.want {
			t.Errorf("worst of %v: %s, want %s", c.levels, got, c.want)
		}
	}
}
