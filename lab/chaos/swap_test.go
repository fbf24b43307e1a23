package chaos

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestWhole(t *testing.T) {
	grown := func(sum string) content { return content{"data/grown-state.db/000001.ldb": sum} }
	at := func(sum string, a, b uint64) portrait {
		return portrait{grown: grown(sum), dirs: map[string]uint64{"state.db": a, "blockstore.db": b}}
	}
	for name, c := range map[string]struct {
		now   portrait
		came  bool
		wrong string
	}{
		"what was":                  {now: at("was", 1, 2)},
		"what came":                 {now: at("comes", 3, 4), came: true},
		"neither":                   {now: at("other", 3, 4), wrong: "neither"},
		"one was left":              {now: at("comes", 1, 4), came: true, wrong: "state.db is what was there"},
		"one came too early":        {now: at("was", 1, 4), wrong: "blockstore.db is another one"},
		"one has not come back":     {now: portrait{grown: grown("was"), dirs: map[string]uint64{"state.db": 1}}, wrong: "blockstore.db is gone"},
		"nothing of what was grown": {now: portrait{dirs: map[string]uint64{"state.db": 1, "blockstore.db": 2}}, wrong: "neither"},
	} {
		came, err := whole(at("was", 1, 2), c.now, grown("comes"))
		switch {
		case c.wrong == "" && err != nil, c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: %v, want %q", name, err, c.wrong)
		case c.wrong == "" && came != c.came:
			t.Errorf("%s: came %t", name, came)
		}
	}
}

// A node that is being stopped may run; one that is started may not.
func TestGuardSwap(t *testing.T) {
	stopping, moving := swapDoc{ID: "a", Step: "stopping"}, swapDoc{ID: "a", Step: "moving"}
	type look struct {
		swap swapDoc
		pid  int
	}
	for name, c := range map[string]struct {
		looks []look
		wrong bool
	}{
		"a whole swap":             {looks: []look{{swapDoc{}, 7}, {stopping, 7}, {stopping, 7}, {stopping, 0}, {moving, 0}, {swapDoc{}, 0}, {swapDoc{}, 8}}},
		"down before it":           {looks: []look{{swapDoc{}, 0}, {stopping, 0}, {moving, 0}, {swapDoc{}, 8}}},
		"alive as names are moved": {looks: []look{{stopping, 7}, {moving, 7}}, wrong: true},
		"started into it":          {looks: []look{{stopping, 7}, {stopping, 0}, {stopping, 8}}, wrong: true},
		"started and moved":        {looks: []look{{stopping, 0}, {moving, 0}, {moving, 8}}, wrong: true},
		"restarted at once":        {looks: []look{{stopping, 7}, {stopping, 8}}, wrong: true},
	} {
		w := &watcher{pid: c.looks[0].pid}
		for _, l := range c.looks {
			w.guardSwap(l.swap, l.pid)
			w.pid = l.pid
		}
		if wrong := w.takeWrong(); len(wrong) > 0 != c.wrong {
			t.Errorf("%s: %q", name, wrong)
		}
	}
}

// The last line promises only what held.
func TestLastLine(t *testing.T) {
	last := func(rounds ...outcome) (string, error) {
		var out bytes.Buffer
		tl := &tally{out: &out}
		for i, o := range rounds {
			tl.line(i+1, round{}, o)
		}
		err := tl.end(time.Second)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return lines[len(lines)-1], err
	}
	got, err := last(outcome{}, outcome{})
	if want := "chaos: 2 rounds, 0 lost, 0 stuck nodes, bytes sent again <= in-flight parts in every round"; got != want || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	broken := outcome{verdicts: verdicts{found: []string{"I8: torn", "I4: left", "I4: left, too"}}}
	got, err = last(broken, outcome{}, outcome{verdicts: verdicts{lost: 1, found: []string{"missed: 50 %", "I4: left"}}})
	if want := "chaos: 3 rounds, 1 lost, 0 stuck nodes, I4 broken in round 1, 3; I8 broken in round 1; other broken in round 3"; got != want || err == nil {
		t.Errorf("%q, %v", got, err)
	}
}
