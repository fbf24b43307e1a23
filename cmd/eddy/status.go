package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// status is what `eddy status` prints.
type status struct {
	Running *job.State      `json:"running,omitempty"`
	Hold    *control.Record `json:"hold,omitempty"`
	// Unfinished is what the next backup goes on with.
	Unfinished *job.Unfinished `json:"unfinished,omitempty"`
	Last       job.Last        `json:"last"`
	Node       *control.Status `json:"node,omitempty"`
	NodeErr    string          `json:"node_error,omitempty"`
	Swap       *snapshot.Swap  `json:"swap,omitempty"` // a restore in place under way, or dead
	Kept       []string        `json:"kept,omitempty"` // by restores in place
}

func (status) MessageType() string { return "status" }

func (s status) Line() string {
	var b strings.Builder
	if s.Running == nil {
		b.WriteString("no backup is running")
	} else {
		fmt.Fprintf(&b, "backup %s: %s, begun %s", s.Running.ID, s.Running.State, s.Running.Started.Local().Format(time.RFC3339))
	}
	if u := s.Unfinished; u != nil && s.Running == nil {
		fmt.Fprintf(&b, "\nunfinished: %s, height %d, held at %s, %d of %d volumes stored; the next backup goes on with it",
			u.ID, u.Position, u.Held.Local().Format(time.RFC3339), u.Stored, u.Volumes)
	}
	switch {
	case s.NodeErr != "":
		fmt.Fprintf(&b, "\nnode: unknown (%s)", s.NodeErr)
	case s.Node != nil && s.Node.Held:
		b.WriteString("\nnode: held still by eddy")
	case s.Node != nil && s.Node.Running:
		b.WriteString("\nnode: running")
	case s.Node != nil:
		b.WriteString("\nnode: stopped")
	}
	if s.Hold != nil {
		fmt.Fprintf(&b, "\nopen hold: for a %s since %s, until %s at the latest", s.Hold.Purpose, s.Hold.Started.Local().Format(time.RFC3339), s.Hold.Deadline.Local().Format(time.RFC3339))
	}
	if s.Swap != nil {
		fmt.Fprintf(&b, "\nrestore of %s: its swap is %s, begun %s; the node stays down meanwhile", s.Swap.What, s.Swap.Step, s.Swap.Begun.Local().Format(time.RFC3339))
	}
	if len(s.Kept) > 0 {
		fmt.Fprintf(&b, "\nkept of earlier restores: %s (eddy restore --forget frees the space)", strings.Join(s.Kept, ", "))
	}
	if s.Last.LastSuccess.IsZero() {
		b.WriteString("\nlast success: never")
	} else {
		fmt.Fprintf(&b, "\nlast success: %s (%s), node held %.2f s", s.Last.LastSuccess.Local().Format(time.RFC3339), s.Last.LastID, s.Last.HeldSeconds)
	}
	if d := s.Last.LastDrill; d != nil {
		fmt.Fprintf(&b, "\nlast drill: %s (%s), %s", ui.Ago(time.Since(d.Time)), d.ID, d.Outcome)
		if d.Why != "" {
			b.WriteString(": " + d.Why)
		}
		if at := s.Last.LastDrilled; d.Outcome != observer.DrillPassed && !at.IsZero() {
			fmt.Fprintf(&b, "\nlast drill that passed: %s (%s)", ui.Ago(time.Since(at)), s.Last.LastDrilledID)
		}
	}
	if s.Last.LastError != "" {
		fmt.Fprintf(&b, "\nlast run, %s, failed: %s", s.Last.LastFailed.Local().Format(time.RFC3339), s.Last.LastError)
	}
	return b.String()
}

// defaultMaxAge lets a daily backup be two hours late.
const defaultMaxAge = 26 * time.Hour

func (a *app) statusCommand() *cobra.Command {
	var check bool
	var maxAge time.Duration
	c := &cobra.Command{
		Use: "status", Short: "is a backup running, when was the last", Args: cobra.NoArgs,
		Long: `Show whether a backup is running, whether the node stands still, and when the
last success was. Nothing is changed or started, and the store is not asked.

With --check the answer is one line and an exit code in the manner of Nagios:
0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.`,
		Example: "  eddy status\n  eddy status --check --max-age 26h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if maxAge <= 0 {
				return hint.Add(errorsJoinUsage(fmt.Errorf("--max-age %s", maxAge)), "say how old the last success may be, 26h for instance")
			}
			if !check && cmd.Flags().Changed("max-age") {
				return hint.Add(errorsJoinUsage(errors.New("--max-age without --check")), "say --check")
			}
			c, err := a.load(config.NeedReplica)
			var s status
			if err == nil {
				s, err = readStatus(cmd.Context(), c)
			}
			switch {
			case check && err != nil:
				return a.verdict(statusCheck{State: verdictUnknown.word(), Text: err.Error(), MaxAge: maxAge.Seconds(), verdict: verdictUnknown})
			case err != nil:
				return err
			case check:
				return a.verdict(judge(s, cmp.Or(s.Last.Cluster, c.Cluster), maxAge, time.Now()))
			}
			return a.result(s)
		},
	}
	c.Flags().BoolVar(&check, "check", false, "one line and an exit code in the manner of Nagios")
	c.Flags().DurationVar(&maxAge, "max-age", defaultMaxAge, "how old the last success may be, with --check")
	return c
}

func readStatus(ctx context.Context, c *config.Config) (s status, err error) {
	w := job.Workdir{Dir: c.Workdir}
	if s.Running, err = w.State(); err != nil {
		return s, err
	}
	if s.Unfinished, err = w.Unfinished(); err != nil {
		return s, err
	}
	if s.Last, err = w.Last(); err != nil {
		return s, err
	}
	if s.Hold, err = control.ReadHold(c.Workdir); err != nil {
		return s, err
	}
	if home, herr := filepath.EvalSymlinks(c.Replica.Home); herr == nil && home != "" { // a home that is gone is for the node's state to tell
		if s.Swap, err = snapshot.ReadSwap(fsx.FS{}, home); err != nil {
			return s, err
		}
		if s.Kept, err = job.Kept([]snapshot.Root{{Path: home}}); err != nil {
			return s, err
		}
	}
	if !c.Replica.Controlled() {
		return s, nil
	}
	ctl, err := newControl(c)
	if err != nil {
		return s, err
	}
	if st, err := ctl.Status(ctx); err != nil {
		s.NodeErr = err.Error()
	} else {
		s.Node = &st
	}
	return s, nil
}

// statusCheck is `eddy status --check`.
type statusCheck struct {
	State    string   `json:"state"` // OK, WARNING, CRITICAL, UNKNOWN
	Cluster  string   `json:"cluster,omitempty"`
	Text     string   `json:"text"`
	Problems []string `json:"problems,omitempty"`
	Age      *float64 `json:"age_seconds,omitempty"` // of the last success; nil: there was none
	MaxAge   float64  `json:"max_age_seconds"`
	Held     float64  `json:"held_seconds,omitempty"` // by the last hold
	Position uint64   `json:"position,omitempty"`

	verdict verdict
}

func (statusCheck) MessageType() string { return "status_check" }

// Line is as the monitoring-plugins guidelines have it: text, a bar, figures with
// their thresholds.
func (s statusCheck) Line() string {
	line := "EDDY " + s.State + " - "
	if s.Cluster != "" {
		line += s.Cluster + ": "
	}
	line += strings.ReplaceAll(s.Text, "|", "/")
	if s.Age == nil {
		return line
	}
	return line + fmt.Sprintf(" | age=%.0fs;;%.0f;0 held=%.2fs;;;0 position=%d", *s.Age, s.MaxAge, s.Held, s.Position)
}

func (a *app) verdict(s statusCheck) error {
	if err := a.result(s); err != nil || s.verdict == verdictOK {
		return err
	}
	return s.verdict
}

// judge makes a check of a status. A backup that is too old and a node that does
// not run are critical; a run that failed while the last good backup is still
// young enough is a warning.
func judge(s status, cluster string, maxAge time.Duration, now time.Time) statusCheck {
	out := statusCheck{Cluster: cluster, MaxAge: maxAge.Seconds(), Held: s.Last.HeldSeconds, Position: s.Last.Position}
	add := func(v verdict, format string, args ...any) {
		out.verdict = max(out.verdict, v)
		out.Problems = append(out.Problems, fmt.Sprintf(format, args...))
	}
	age := now.Sub(s.Last.LastSuccess).Round(time.Second)
	switch {
	case s.Last.LastSuccess.IsZero():
		add(verdictCritical, "there is no backup yet")
	case age > maxAge:
		add(verdictCritical, "the last success is %s old, more than %s", age, ui.Duration(maxAge))
	}
	if !s.Last.LastSuccess.IsZero() {
		seconds := age.Seconds()
		out.Age = &seconds
	}
	if s.Swap != nil {
		add(verdictCritical, "a restore in place is %s since %s", s.Swap.Step, s.Swap.Begun.Local().Format(time.RFC3339))
	}
	if s.Hold != nil && now.After(s.Hold.Deadline) {
		add(verdictCritical, "a hold is open past its deadline, %s", s.Hold.Deadline.Local().Format(time.RFC3339))
	}
	switch {
	case s.NodeErr != "":
		add(verdictWarning, "nobody knows whether the node runs (%s)", s.NodeErr)
	case s.Node != nil && !s.Node.Running && !s.Node.Held:
		add(verdictCritical, "the node is stopped")
	}
	if s.Last.LastError != "" {
		add(verdictWarning, "the last run, %s, failed: %s", s.Last.LastFailed.Local().Format(time.RFC3339), s.Last.LastError)
	}
	out.State = out.verdict.word()
	if len(out.Problems) > 0 {
		out.Text = strings.ReplaceAll(strings.Join(out.Problems, "; "), "\n", ": ")
		return out
	}
	out.Text = fmt.Sprintf("last success %s ago (%s)", age, s.Last.LastID)
	return out
}
