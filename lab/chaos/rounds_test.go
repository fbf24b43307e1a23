package chaos

import (
	"slices"
	"testing"
)

// What continuous integration plays stands first, and no two rounds can be taken
// for each other in the output.
func TestRounds(t *testing.T) {
	all := rounds()
	want := []string{
		"backup killed in the hold", "backup killed at 50 %", "backup connections cut", "backup workdir full", "backup answer of Complete lost",
	}
	var first []string
	for _, r := range all[:5] {
		first = append(first, title(r))
	}
	if !slices.Equal(first, want) {
		t.Errorf("the first five are %q", first)
	}
	type id struct {
		on   int
		name string
	}
	seen := map[id]bool{}
	for _, r := range all {
		if k := (id{r.on, title(r)}); seen[k] {
			t.Errorf("%s is there twice", k.name)
		} else {
			seen[k] = true
		}
	}
}

func TestSignState(t *testing.T) {
	order := []signState{{1, 0, 1}, {1, 0, 2}, {1, 1, 1}, {2, 0, 0}}
	for i, a := range order {
		for j, b := range order {
			if a.below(b) != (i < j) {
				t.Errorf("%+v below %+v: %t", a, b, a.below(b))
			}
		}
	}
}
