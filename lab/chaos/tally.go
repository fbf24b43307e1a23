package chaos

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tally adds the rounds up.
type tally struct {
	out                         io.Writer
	rounds, lost, stuck, broken int
	broke                       map[string][]string // the rounds, by what did not hold
	held                        time.Duration       // the longest
	orphan                      time.Duration       // the longest where nobody was left to start the node
	dead                        []time.Duration     // where the bucket was dead
	again                       int64               // bytes, in the worst round
}

func (t *tally) line(i int, r round, o outcome) {
	t.rounds++
	t.lost += o.lost
	t.stuck += o.stuck
	if !r.orphaned {
		t.held = max(t.held, o.held)
	} else {
		t.orphan = max(t.orphan, o.held)
	}
	if r.dead {
		t.dead = append(t.dead, o.held)
	}
	verdict := "ok"
	if len(o.found) > 0 {
		t.broken++
		verdict = "BROKEN"
		for _, what := range o.invariants() {
			if t.broke == nil {
				t.broke = map[string][]string{}
			}
			t.broke[what] = append(t.broke[what], strconv.Itoa(i))
		}
	}
	again := ""
	if o.killed {
		t.again = max(t.again, o.again)
		again = fmt.Sprintf(", sent again %.1f MB", mega(o.again))
	}
	fmt.Fprintf(t.out, "%3d %-9s %-50s %s: node down %.2f s%s, %s, %.1f s\n", i, r.where(), title(r), verdict, o.held.Seconds(), again, o.note, o.seconds)
	if o.why != "" {
		fmt.Fprintf(t.out, "    %s\n", o.why)
	}
	for _, f := range o.found {
		fmt.Fprintf(t.out, "    %s\n", f)
	}
}

func (t *tally) end(took time.Duration) error {
	for _, h := range t.dead {
		fmt.Fprintf(t.out, "chaos: the bucket dead from the moment of the stop: the node was back after %.2f s, its deadline is %s\n", h.Seconds(), deadline)
	}
	fmt.Fprintf(t.out, "chaos: node down at most %.2f s (%.2f s where eddy and guard were killed), %.1f MB sent again at most, %.0f s\n",
		t.held.Seconds(), t.orphan.Seconds(), mega(t.again), took.Seconds())
	held := "bytes sent again <= in-flight parts in every round"
	if t.broken > 0 {
		var broke []string
		for _, what := range slices.Sorted(maps.Keys(t.broke)) {
			broke = append(broke, what+" broken in round "+strings.Join(t.broke[what], ", "))
		}
		held = strings.Join(broke, "; ")
	}
	fmt.Fprintf(t.out, "chaos: %d rounds, %d lost, %d stuck nodes, %s\n", t.rounds, t.lost, t.stuck, held)
	if t.broken > 0 {
		return fmt.Errorf("an invariant did not hold in %d of %d rounds", t.broken, t.rounds)
	}
	return nil
}
