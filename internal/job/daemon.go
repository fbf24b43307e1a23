package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// Schedule tells when the next run is due; netresearch/go-cron's schedules fit.
type Schedule interface{ Next(time.Time) time.Time }

// Daemon runs backups on a schedule until its context ends.
type Daemon struct {
	Workdir  Workdir
	Schedule Schedule
	// Recover starts a node that a dead eddy left stopped, and finishes the exchange
	// of its data. It is called once, at the start, with the workdir's lock.
	Recover func(context.Context) (bool, error)
	// Backup makes one backup; Expire, where set, deletes what retention no
	// longer keeps. Expire runs only after a backup that is READY.
	Backup func(context.Context) error
	Expire func(context.Context) error
	// Tasks are what is done beside backups, each by a schedule of its own. Nothing
	// overlaps: a backup that comes due waits until a task has ended, and goes before
	// tasks that are due as well.
	Tasks  []Task
	Events ui.Sink
	Watch  Watcher // nil: nobody
	Now    func() time.Time
}

// Task is something that a daemon does by a schedule beside backups: a proof.
type Task struct {
	Name     string // a word; in last.json, and in what is said of it
	Schedule Schedule
	Run      func(context.Context) error

	due time.Time
}

// retryAfter is how long after a failed run the daemon tries again, when the
// schedule leaves that much time.
const retryAfter = 15 * time.Minute

// Run waits and works until ctx is done, which is a clean end: it returns nil. A
// run that was missed while no daemon ran is caught up at once, many missed ones
// by one run. Runs never overlap: the next is planned when one has ended.
func (d *Daemon) Run(ctx context.Context) error {
	if err := d.takeOver(ctx); err != nil {
		return err
	}
	last, err := d.Workdir.Last()
	if err != nil {
		return err
	}
	due, missed := d.first(last)
	if !missed.IsZero() {
		d.Events.Emit(Missed{Due: missed})
		if d.Watch != nil {
			d.Watch.Missed(ctx, missed)
		}
	}
	for i := range d.Tasks {
		t := &d.Tasks[i]
		t.due = t.Schedule.Next(d.Now())
		if last := last.Tasks[t.Name]; !last.IsZero() && !last.After(d.Now()) {
			t.due = t.Schedule.Next(last)
		}
		d.say("scheduled", "next %s at %s", t.Name, later(t.due, d.Now()).Local().Format(time.RFC3339))
	}
	for {
		d.say("scheduled", "next backup at %s", due.Local().Format(time.RFC3339))
		for t := d.before(due); t != nil; t = d.before(due) {
			if !d.sleepUntil(ctx, t.due) {
				return nil
			}
			if err := d.task(ctx, t); err != nil || ctx.Err() != nil {
				return err
			}
		}
		if !d.sleepUntil(ctx, due) {
			return nil
		}
		failed := d.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now := d.Now()
		due = d.Schedule.Next(now)
		if retry := now.Add(retryAfter); failed && retry.Before(due) {
			due = retry
		}
	}
}

// takeOver sees to what an earlier eddy left. While another one is at work nothing
// was left: a hold that is open, or data that are being exchanged, are its own.
func (d *Daemon) takeOver(ctx context.Context) (err error) {
	lock, err := d.Workdir.Lock(ctx)
	if errors.Is(err, fsx.ErrLocked) {
		d.say("busy", "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if acted, err := d.Recover(ctx); err != nil {
		d.say("error", "the node that an earlier run left stopped could not be started: %v", err)
		if d.Watch != nil {
			d.Watch.Warned(ctx, "the node that an earlier run left stopped could not be started: "+err.Error(), hint.Of(err))
		}
	} else if acted {
		d.say("recovered", "an earlier run left the node stopped; it has been started")
	}
	died, err := d.Workdir.settle()
	if err == nil && died != "" && d.Watch != nil {
		d.Watch.Died(ctx, died)
	}
	return err
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// before is the task that is due first, and before the next backup; nil where none
// is. A backup that is due already goes first.
func (d *Daemon) before(backup time.Time) *Task {
	var first *Task
	backup = later(backup, d.Now())
	for i := range d.Tasks {
		if t := &d.Tasks[i]; later(t.due, d.Now()).Before(backup) && (first == nil || t.due.Before(first.due)) {
			first = t
		}
	}
	return first
}

// task runs one task. Its error is the daemon's own.
func (d *Daemon) task(ctx context.Context, t *Task) error {
	err := t.Run(ctx)
	if ctx.Err() != nil {
		return nil // cut short: it is due again at the next start
	}
	now := d.Now()
	t.due = t.Schedule.Next(now)
	if err != nil && !errors.Is(err, ErrWarnings) {
		d.Events.Emit(Failed{What: t.Name, Error: err.Error(), Hint: hint.Of(err)})
		if retry := now.Add(retryAfter); errors.Is(err, uploader.ErrUnreachable) && retry.Before(t.due) {
			t.due = retry
			return nil // nothing is proven, one way or the other
		}
	}
	d.say("scheduled", "next %s at %s", t.Name, t.due.Local().Format(time.RFC3339))
	return d.Workdir.remember(func(l *Last) {
		if l.Tasks == nil {
			l.Tasks = map[string]time.Time{}
		}
		l.Tasks[t.Name] = now.UTC()
	})
}

// first is when the first run is due: at once when one was missed, and then also
// when that one, the earliest, should have been.
func (d *Daemon) first(last Last) (due, missed time.Time) {
	now := d.Now()
	switch {
	case last.LastRun.IsZero():
		return now, time.Time{}
	case last.LastRun.After(now): // the clock was set back
		return d.Schedule.Next(now), time.Time{}
	}
	if missed := d.Schedule.Next(last.LastRun); !missed.After(now) {
		return now, missed
	}
	return d.Schedule.Next(now), time.Time{}
}

func (d *Daemon) once(ctx context.Context) (failed bool) {
	err := d.Backup(ctx)
	if errors.Is(err, fsx.ErrLocked) && !errors.Is(err, observer.ErrDown) {
		d.say("skipped", "skipped: %v", err)
		return false
	}
	if err != nil && !errors.Is(err, ErrWarnings) {
		if ctx.Err() == nil {
			d.Events.Emit(Failed{Error: err.Error(), Hint: hint.Of(err)})
		}
		return true
	}
	if d.Expire == nil {
		return false
	}
	if err := d.Expire(ctx); err != nil && ctx.Err() == nil {
		d.Events.Emit(Warning{Text: "expire: " + err.Error(), Hint: hint.Of(err)})
		if d.Watch != nil {
			d.Watch.Warned(ctx, "expire: "+err.Error(), hint.Of(err))
		}
	}
	return false
}

// sleepUntil waits in short steps, because a machine that was suspended, or
// whose clock was set, must not sleep on by the old reckoning. It reports false
// when ctx ended.
func (d *Daemon) sleepUntil(ctx context.Context, due time.Time) bool {
	for {
		left := due.Sub(d.Now())
		if left <= 0 {
			return ctx.Err() == nil
		}
		t := time.NewTimer(min(left, 30*time.Second))
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
}

func (d *Daemon) say(phase, format string, args ...any) {
	d.Events.Emit(Phase{Phase: phase, Text: fmt.Sprintf(format, args...)})
}

// Failed reports a run of the daemon that failed; the daemon goes on.
type Failed struct {
	What  string `json:"what,omitempty"` // verify, ...; "": a backup
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

// MessageType implements ui.Event.
func (Failed) MessageType() string { return "failed" }

// Line implements ui.Event.
func (f Failed) Line() string {
	line := cmp.Or(f.What, "backup") + " failed: " + f.Error
	if f.Hint == "" {
		return line
	}
	return line + "\n   hint: " + f.Hint
}

// Missed reports a run that was due while no daemon ran. It is caught up at once.
type Missed struct {
	Due time.Time `json:"due"`
}

// MessageType implements ui.Event.
func (Missed) MessageType() string { return "missed" }

// Line implements ui.Event.
func (m Missed) Line() string {
	return "missed: a backup was due at " + m.Due.Local().Format(time.RFC3339) + ", when eddy did not run; it is made now"
}
