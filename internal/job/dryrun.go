package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// DryRun says what a backup would do. It stops nothing, writes nothing and asks
// nothing of the store.
type DryRun struct {
	Replica interface {
		Describe(ctx context.Context) (observer.State, error)
	}
	Workdir Workdir
	Cluster string
	// Wait is how long a backup would wait for a replica that is behind; 0: it
	// would not.
	Wait time.Duration
}

// copyRate is what a copy within one filesystem is expected to do at least, in
// bytes a second: small files, some of them cold, on a disk that the node uses.
const copyRate = 100 << 20

// Run looks. The error is the gate's, and the forecast is whole beside it: what
// hinders a backup should not hide what it would be. A replica that a backup would
// wait for is no error.
func (d *DryRun) Run(ctx context.Context) (Forecast, error) {
	f := Forecast{Cluster: d.Cluster}
	state, gate := d.Replica.Describe(ctx)
	if g, ok := d.Replica.(observer.Gater); ok && gate == nil {
		gate = g.Gate(ctx, state)
	}
	f.Position, f.At, f.Standing = state.Position.Index, state.Position.String(), standing(state)
	f.Peers, f.Members = state.Peers, state.Members
	var behind error
	if d.Wait > 0 && errors.Is(gate, observer.ErrBehind) {
		behind, gate = gate, nil
		f.WaitSeconds = d.Wait.Seconds()
	}
	begun := time.Now()
	var survey observer.Survey
	var err error
	s, files := d.Replica.(observer.Surveyor)
	if files {
		if survey, err = s.Survey(ctx); err != nil {
			return Forecast{}, errors.Join(gate, err)
		}
	}
	walked := time.Since(begun)
	f.Held = files
	last, err := d.Workdir.Last()
	if err != nil {
		return Forecast{}, errors.Join(gate, err)
	}
	f.Roots, f.LeftOut = survey.Roots, survey.LeftOut
	for _, r := range survey.Roots {
		for _, t := range []struct{ sum, of *observer.Treated }{{&f.Linked, &r.Linked}, {&f.Cloned, &r.Cloned}, {&f.Copied, &r.Copied}} {
			t.sum.Files += t.of.Files
			t.sum.Bytes += t.of.Bytes
		}
		switch {
		case gate != nil:
		case !r.Writable:
			gate = hint.Add(fmt.Errorf("%w: the stage cannot be made in %s: no right to write there", observer.ErrNotFit, r.Path), "run eddy as the node's user")
		case r.Copied.Bytes > r.Free:
			gate = hint.Add(fmt.Errorf("%w: %s are to be copied in %s, where %s are free", observer.ErrNotFit, ui.Bytes(r.Copied.Bytes), r.Path, ui.Bytes(r.Free)), "free "+missing(r.Copied.Bytes-r.Free)+" more there")
		}
	}
	// Inside the hold every name is looked at once more, as it was just now.
	f.StageSeconds = (walked + time.Duration(float64(f.Copied.Bytes)/copyRate*float64(time.Second))).Seconds()
	f.NodeSeconds = last.NodeSeconds
	f.HeldSeconds = f.StageSeconds + f.NodeSeconds
	f.LastHeldSeconds = last.HeldSeconds
	if gate != nil {
		f.WaitSeconds = 0 // waiting would not cure that
	}
	why := cmp.Or(gate, behind)
	f.Fit = why == nil
	if why != nil {
		f.Gate, f.Hint = why.Error(), hint.Of(why)
	}
	return f, gate
}

// Forecast is what a dry run finds.
type Forecast struct {
	Cluster string `json:"cluster"`
	Fit     bool   `json:"fit"`
	Gate    string `json:"gate,omitempty"` // why it is not fit
	Hint    string `json:"hint,omitempty"`
	// WaitSeconds is how long a backup would wait until it is fit; 0: it would not.
	WaitSeconds float64               `json:"wait_seconds,omitempty"`
	Position    uint64                `json:"position,omitempty"`
	At          string                `json:"at,omitempty"` // the position, for people
	Standing    string                `json:"-"`
	Peers       int                   `json:"peers"`
	Members     []observer.Member     `json:"members,omitempty"`
	Held        bool                  `json:"held"` // the replica would be stopped for it
	Roots       []observer.RootSurvey `json:"roots"`
	Linked      observer.Treated      `json:"link"`
	Cloned      observer.Treated      `json:"clone"`
	Copied      observer.Treated      `json:"copy"`
	LeftOut     []snapshot.LeftOut    `json:"left_out"`
	// HeldSeconds is how long the node is expected to be held: StageSeconds, and
	// what its own stop and start took last time (NodeSeconds; 0: not known yet).
	HeldSeconds     float64 `json:"held_seconds"`
	StageSeconds    float64 `json:"stage_seconds"`
	NodeSeconds     float64 `json:"node_seconds"`
	LastHeldSeconds float64 `json:"last_held_seconds,omitempty"`
}

// MessageType implements ui.Event.
func (Forecast) MessageType() string { return "dry_run" }

// namesShown is how many names of a reason people are shown; JSON has them all.
const namesShown = 4

// Line implements ui.Event.
func (f Forecast) Line() string {
	var b strings.Builder
	b.WriteString("dry run: nothing was stopped, nothing was written\n")
	switch {
	case f.Fit:
		fmt.Fprintf(&b, "gate: %s%s, fit for a backup\n", f.Cluster, f.Standing)
	case f.WaitSeconds > 0:
		wait := ui.Duration(time.Duration(f.WaitSeconds * float64(time.Second)))
		fmt.Fprintf(&b, "gate: a backup would wait up to %s: %s\n  hint: %s\n", wait, f.Gate, f.Hint)
	default:
		fmt.Fprintf(&b, "gate: %s\n", f.Gate)
	}
	if !f.Held {
		b.WriteString("expected hold: none; the dump is asked for while the cluster works")
		return b.String()
	}
	for _, r := range f.Roots {
		name := r.Prefix
		if name == "" {
			name = "home"
		}
		fmt.Fprintf(&b, "root %s: %s, %s free; link %s, clone %s, copy %s\n", name, r.Path, ui.Bytes(r.Free), count(r.Linked), count(r.Cloned), count(r.Copied))
	}
	fmt.Fprintf(&b, "link:  %s: before the hold, all but what is new by then\n", count(f.Linked))
	fmt.Fprintf(&b, "clone: %s: inside the hold, sharing its blocks\n", count(f.Cloned))
	fmt.Fprintf(&b, "copy:  %s: inside the hold\n", count(f.Copied))
	fmt.Fprintf(&b, "left out: %d names\n", len(f.LeftOut))
	b.WriteString(f.leftOut())
	fmt.Fprintf(&b, "expected hold: %.1f s for the stage", f.StageSeconds)
	if f.NodeSeconds > 0 {
		fmt.Fprintf(&b, ", and %.1f s for the node's own stop and start, as last time: %.1f s", f.NodeSeconds, f.HeldSeconds)
	} else {
		b.WriteString(", and the node's own stop and start, which the first backup will measure")
	}
	return b.String()
}

func count(t observer.Treated) string {
	if t.Files == 1 {
		return "1 file, " + ui.Bytes(t.Bytes)
	}
	return fmt.Sprintf("%d files, %s", t.Files, ui.Bytes(t.Bytes))
}

// leftOut is a line for each reason, with the first names.
func (f Forecast) leftOut() string {
	names := map[string][]string{}
	var reasons []string
	for _, l := range f.LeftOut {
		if names[l.Reason] == nil {
			reasons = append(reasons, l.Reason)
		}
		names[l.Reason] = append(names[l.Reason], l.Name)
	}
	slices.Sort(reasons)
	var b strings.Builder
	for _, why := range reasons {
		all := names[why]
		more := ""
		if n := len(all) - namesShown; n > 0 {
			all, more = all[:namesShown], fmt.Sprintf(" and %d more", n)
		}
		fmt.Fprintf(&b, "  %s: %s%s\n", why, strings.Join(all, ", "), more)
	}
	return b.String()
}
