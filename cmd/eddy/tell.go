package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/internal/alarm"
	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// teller tells the operator's hooks, his dead man's switch and his metrics what
// becomes of runs, as docs/alarms.md describes. What it cannot tell is a warning:
// no run fails by it.
type teller struct {
	a     *app
	c     *config.Config
	host  string
	ping  *alarm.Ping     // nil: none
	ctl   control.Control // nil: none can be made, as newBackup will say
	begun bool            // Begun was called since the last end

	mu     sync.Mutex // of the textfile and of what follows
	roots  []snapshot.Root
	pinned int64 // as last measured, negative: not known
}

var _ job.Watcher = (*teller)(nil)

func (a *app) newTeller(c *config.Config) (*teller, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	t := &teller{a: a, c: c, host: host, pinned: -1}
	if c.Replica.Home != "" { // else nothing is staged before the replica says where
		t.roots = []snapshot.Root{{Path: c.Replica.Home}}
	}
	if ctl, err := newControl(c); err == nil {
		t.ctl = ctl
	}
	if c.Notify.PingURL != "" {
		t.ping, err = alarm.NewPing(c.Notify.PingURL)
	}
	return t, err
}

// stagesIn says where stages lie; until then it is the home.
func (t *teller) stagesIn(roots []snapshot.Root) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.roots = roots
}

// message is what a hook is told.
type message struct {
	Event   string       `json:"event"` // success, failure, killed, missed, warning
	Time    time.Time    `json:"time"`
	Cluster string       `json:"cluster"`
	Host    string       `json:"host"`
	Text    string       `json:"text"`
	Hint    string       `json:"hint,omitempty"`
	Reason  string       `json:"reason,omitempty"` // of a failure
	Code    int          `json:"code"`             // exit code of the run
	Summary *job.Summary `json:"summary,omitempty"`
}

// vars are the parts of the message for the hook's environment.
func (m message) vars() ([]string, error) {
	all, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	v := []string{
		"EDDY_HOOK_EVENT=" + m.Event, "EDDY_HOOK_CLUSTER=" + m.Cluster, "EDDY_HOOK_HOST=" + m.Host,
		"EDDY_HOOK_TEXT=" + m.Text, "EDDY_HOOK_HINT=" + m.Hint, "EDDY_HOOK_REASON=" + m.Reason,
		"EDDY_HOOK_CODE=" + strconv.Itoa(m.Code), "EDDY_HOOK_JSON=" + string(all),
	}
	id, position := "", ""
	if m.Summary != nil {
		id, position = m.Summary.ID, strconv.FormatUint(m.Summary.Position, 10)
	}
	return append(v, "EDDY_HOOK_ID="+id, "EDDY_HOOK_POSITION="+position), nil
}

// letter is the message for people.
func (m message) letter() string {
	s := fmt.Sprintf("eddy on %s, %s: %s\n", m.Host, m.Cluster, m.Text)
	if m.Hint != "" {
		s += "hint: " + m.Hint + "\n"
	}
	return s
}

func (t *teller) cannot(ctx context.Context, what string, err error) {
	if err != nil && ctx.Err() == nil {
		t.a.ui.Emit(job.Warning{Text: what + ": " + err.Error(), Hint: hint.Of(err)})
	}
}

func (t *teller) hook(ctx context.Context, key string, argv []string, m message) {
	if len(argv) == 0 {
		return
	}
	m.Time, m.Cluster, m.Host = time.Now().UTC(), t.c.Cluster, t.host
	vars, err := m.vars()
	if err == nil {
		err = alarm.Hook(argv).Run(ctx, vars, m.letter(), t.a.ui.Writer())
	}
	t.cannot(ctx, key, err)
}

func (t *teller) fails(ctx context.Context, m message) {
	t.hook(ctx, "notify.on_failure", t.c.Notify.OnFailure, m)
}

func (t *teller) pings(ctx context.Context, how func(*alarm.Ping, context.Context) error) {
	if t.ping != nil {
		t.cannot(ctx, "notify.ping_url", how(t.ping, ctx))
	}
}

// Begun implements job.Watcher.
func (t *teller) Begun(ctx context.Context) {
	t.begun = true
	t.pings(ctx, (*alarm.Ping).Start)
}

// Died implements job.Watcher.
func (t *teller) Died(ctx context.Context, text string) {
	t.metrics(ctx, true)
	t.fails(ctx, message{Event: "killed", Text: text, Reason: job.ReasonKilled, Code: exitFailed, Hint: "look at the machine's log: eddy was killed, or the machine went down"})
	t.pings(ctx, (*alarm.Ping).Fail)
}

// Missed implements job.Watcher.
func (t *teller) Missed(ctx context.Context, due time.Time) {
	t.fails(ctx, message{Event: "missed", Text: job.Missed{Due: due}.Line(), Hint: "`eddy run` was down; look at its unit or container"})
}

// Warned implements job.Watcher.
func (t *teller) Warned(ctx context.Context, text, advice string) {
	t.fails(ctx, message{Event: "warning", Text: text, Hint: advice, Code: exitWarnings})
}

// How long the end of a run is told at most: when nobody waits, and when somebody
// has asked eddy to end.
const (
	tellTime  = 3 * time.Minute
	tellShort = 20 * time.Second
)

// ended tells what became of a run. A run that did not begin because another was
// at work is not told: that one tells of its own end, unless nobody is at work but
// the guard of a node that does not start. One that was skipped is neither good nor
// bad, and the switch will notice when there are too many.
func (t *teller) ended(ctx context.Context, sum job.Summary, err error) {
	limit := tellTime
	if ctx.Err() != nil {
		limit = tellShort
	}
	code := exitCode(ctx, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	begun := t.begun
	t.begun = false
	t.metrics(ctx, true)
	switch {
	case errors.Is(err, fsx.ErrLocked) && !errors.Is(err, observer.ErrDown) && !begun, err == nil && sum.Outcome == "skipped":
	case err == nil, errors.Is(err, job.ErrWarnings):
		text := sum.Line()
		for _, w := range sum.Warnings {
			text += "\nwarning: " + w
		}
		t.hook(ctx, "notify.on_success", t.c.Notify.OnSuccess, message{Event: "success", Text: text, Code: code, Summary: &sum})
		t.pings(ctx, (*alarm.Ping).Success)
	default:
		text := "backup failed: " + err.Error()
		if code == exitInterrupted {
			text = "backup failed: it was interrupted"
		}
		t.fails(ctx, message{Event: "failure", Text: text, Hint: hint.Of(err), Reason: reason(err), Code: code})
		t.pings(ctx, (*alarm.Ping).Fail)
	}
}

// proved tells of a proof of the daemon's that failed, or could not be made. One that
// passed is told by the metrics alone.
func (t *teller) proved(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
	defer cancel()
	if err != nil && !errors.Is(err, job.ErrWarnings) {
		text := what + " failed: " + err.Error()
		t.cannot(ctx, "what became of it", t.workdir().Fail(reason(err), errors.New(text), time.Now()))
		t.fails(ctx, message{Event: "failure", Text: text, Hint: hint.Of(err), Reason: reason(err), Code: exitCode(ctx, err)})
		t.pings(ctx, (*alarm.Ping).Fail)
	}
	t.metrics(ctx, false)
}

// drilled tells of a drill of the daemon's. One that was not possible proves
// nothing, and is no failure; that it was not possible should be known.
func (t *teller) drilled(ctx context.Context, out job.Drilled, err error) {
	if errors.Is(err, job.ErrWarnings) && ctx.Err() == nil {
		text := strings.Join(append([]string{"drill of " + out.ID + " " + out.Outcome}, out.Warnings...), "; ")
		if out.Why != "" {
			text += ": " + out.Why
		}
		t.Warned(ctx, text, out.Hint)
	}
	t.proved(ctx, "drill", err)
}

// notBegun counts and tells a run that could not begin, and returns why.
func (t *teller) notBegun(ctx context.Context, err error) error {
	word := reason(err)
	if word == job.ReasonOther {
		word = job.ReasonConfig
	}
	err = errors.Join(err, t.workdir().Fail(word, err, time.Now()))
	t.ended(ctx, job.Summary{}, err)
	return err
}

func (t *teller) workdir() job.Workdir { return job.Workdir{Dir: t.c.Workdir} }

// metrics writes the textfile, where there is one; measure says whether the
// stages are walked for it.
func (t *teller) metrics(ctx context.Context, measure bool) {
	if t.c.Notify.Textfile == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	last, err := t.workdir().Last()
	if err != nil {
		t.cannot(ctx, "notify.textfile", err)
		return
	}
	if measure {
		if t.pinned, err = snapshot.PinnedBytes(ctx, t.roots); err != nil {
			t.pinned = -1
			t.cannot(ctx, "notify.textfile: what the stage pins", err)
		}
	}
	f := alarm.Figures{
		Cluster: t.c.Cluster, LastSuccess: last.LastSuccess, LastVerified: last.LastVerified, Position: last.Position,
		HeldSeconds: last.HeldSeconds, PinnedBytes: t.pinned, Failures: map[string]uint64{},
	}
	f.LastDrilled = last.LastDrilled
	if d := last.LastDrill; d != nil && d.Outcome != observer.DrillNotPossible {
		passed := d.Outcome == observer.DrillPassed
		f.DrillPassed = &passed
	}
	for _, word := range job.Reasons() {
		f.Failures[word] = last.Failures[word]
	}
	if t.ctl != nil {
		st, err := t.ctl.Status(ctx)
		f.Up = err == nil && st.Running
	}
	t.cannot(ctx, "notify.textfile", alarm.WriteTextfile(t.c.Notify.Textfile, f))
}

// How often the daemon writes the metrics, and measures for them what the stages
// pin: a walk of all their names.
const (
	metricsEvery = time.Minute
	measureEvery = 10 * metricsEvery
)

// keep writes the metrics again and again until ctx ends, but never while the
// node is held: it stands still for a backup, and nothing else.
func (t *teller) keep(ctx context.Context) {
	tick := time.NewTicker(metricsEvery)
	defer tick.Stop()
	var measured time.Time
	for {
		if st, err := t.workdir().State(); err == nil && (st == nil || !st.Holding()) {
			measure := time.Since(measured) >= measureEvery
			if measure {
				measured = time.Now()
			}
			t.metrics(ctx, measure)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
