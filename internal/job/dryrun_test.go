package job

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// looked is a replica as a dry run sees it.
type looked struct {
	describe, gate error
	survey         observer.Survey
}

func (l looked) Describe(context.Context) (observer.State, error) {
	return observer.State{Position: observer.Position{Kind: "cometbft", Index: 7}, Peers: 3}, l.describe
}
func (l looked) Gate(context.Context, observer.State) error      { return l.gate }
func (l looked) Survey(context.Context) (observer.Survey, error) { return l.survey, nil }

func TestDryRun(t *testing.T) {
	root := observer.RootSurvey{
		Root:   snapshot.Root{Path: "/srv/home"},
		Linked: observer.Treated{Files: 5, Bytes: 5 << 30}, Cloned: observer.Treated{Files: 1, Bytes: 9}, Copied: observer.Treated{Files: 2, Bytes: 200 << 20},
		Free: 1 << 30, Writable: true,
	}
	full, foreign := root, root
	full.Free = 1 << 20
	foreign.Writable = false
	left := []snapshot.LeftOut{{Name: "a", Reason: "lock"}, {Name: "b", Reason: "lock"}, {Name: "c", Reason: "lock"}, {Name: "d", Reason: "lock"}, {Name: "e", Reason: "lock"}, {Name: "k", Reason: "key"}}
	survey := observer.Survey{Roots: []observer.RootSurvey{root, root}, LeftOut: left}
	for name, x := range map[string]struct {
		replica looked
		last    Last
		wait    time.Duration
		fit, ok bool
		want    []string // in its text
	}{
		"fit": {looked{survey: survey}, Last{}, 0, true, true, []string{
			"gate: c at height 7, 3 peers, fit", "root home: /srv/home, 1.0 GiB free; link 5 files, 5.0 GiB, clone 1 file, 9 B, copy 2 files, 200.0 MiB",
			"\nlink:  10 files, 10.0 GiB", "\ncopy:  4 files, 400.0 MiB", "left out: 6 names", "\n  key: k\n", "\n  lock: a, b, c, d and 1 more\n",
			"expected hold: 4.0 s for the stage, and the node's own stop and start, which the first backup will measure",
		}},
		"with a hold before": {looked{survey: survey}, Last{NodeSeconds: 2.5, HeldSeconds: 3}, 0, true, true, []string{
			"4.0 s for the stage, and 2.5 s for the node's own stop and start, as last time: 6.5 s",
		}},
		"not fit":      {looked{survey: survey, gate: observer.ErrBehind}, Last{}, 0, false, false, []string{"gate: it has not caught up", "\nlink:  10 files"}},
		"does not run": {looked{survey: survey, describe: observer.ErrNotFit}, Last{}, 0, false, false, []string{"gate: the replica is not fit", "\nlink:  10 files"}},
		"behind, and waited for": {looked{survey: survey, gate: hint.Add(observer.ErrBehind, "wait")}, Last{}, 15 * time.Minute, false, true, []string{
			"gate: a backup would wait up to 15m0s: it has not caught up\n  hint: wait\n", "\nlink:  10 files", "expected hold",
		}},
		"behind, without room": {looked{survey: observer.Survey{Roots: []observer.RootSurvey{full}}, gate: observer.ErrBehind}, Last{}, time.Minute, false, false, []string{"gate: the replica is not fit: 200.0 MiB are to be copied"}},
		"no room":              {looked{survey: observer.Survey{Roots: []observer.RootSurvey{full}}}, Last{}, 0, false, false, []string{"200.0 MiB are to be copied in /srv/home, where 1.0 MiB are free"}},
		"no right":             {looked{survey: observer.Survey{Roots: []observer.RootSurvey{foreign}}}, Last{}, 0, false, false, []string{"no right to write there"}},
	} {
		w := Workdir{Dir: filepath.Join(t.TempDir(), "work")}
		if x.last.NodeSeconds > 0 {
			if err := w.remember(func(l *Last) { *l = x.last }); err != nil {
				t.Fatal(err)
			}
		}
		d := DryRun{Replica: x.replica, Workdir: w, Cluster: "c", Wait: x.wait}
		f, err := d.Run(t.Context())
		if f.Fit != x.fit || (err == nil) != x.ok || (f.WaitSeconds > 0) != (x.ok && !x.fit) {
			t.Errorf("%s: fit %t, %v", name, f.Fit, err)
		}
		for _, want := range x.want {
			if !strings.Contains(f.Line(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, f.Line())
			}
		}
		if _, err := os.Stat(w.Dir); x.last.NodeSeconds == 0 && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the workdir was made (%v)", name, err)
		}
	}
}
