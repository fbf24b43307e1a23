package job

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netresearch/go-cron"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/uploader"
)

type nothing struct{}

func (nothing) Emit(ui.Event) {}

func daily(t *testing.T) Schedule {
	t.Helper()
	s, err := cron.ParseStandard("0 3 * * *")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// daemon counts its runs; outcome says how each ends.
func daemon(t *testing.T, dir string, outcome func(n int64) error) (*Daemon, *atomic.Int64) {
	t.Helper()
	runs := new(atomic.Int64)
	w := Workdir{Dir: dir}
	return &Daemon{
		Workdir: w, Schedule: daily(t), Events: nothing{}, Now: time.Now,
		Recover: func(context.Context) (bool, error) { return false, nil },
		Backup: func(context.Context) error {
			n := runs.Add(1)
			if err := w.remember(func(l *Last) { l.LastRun = time.Now() }); err != nil {
				t.Error(err)
			}
			return outcome(n)
		},
	}, runs
}

func runFor(t *testing.T, d *Daemon, dur time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), dur)
	defer cancel()
	if err := d.Run(ctx); err != nil {
		t.Fatalf("a daemon that is told to end returns %v, want nil", err)
	}
}

func TestDaemonRunsOnceADay(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, runs := daemon(t, dir, func(int64) error { return nil })
		runFor(t, d, 5*24*time.Hour-time.Hour)
		if got := runs.Load(); got != 6 { // the first ever at once, then five nights
			t.Fatalf("%d runs in five days, want 6", got)
		}
	})
}

func TestDaemonCatchesUpOneMissedRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, runs := daemon(t, dir, func(int64) error { return nil })
		if err := d.Workdir.remember(func(l *Last) { l.LastRun = time.Now().Add(-100 * time.Hour) }); err != nil {
			t.Fatal(err)
		}
		runFor(t, d, time.Minute)
		if got := runs.Load(); got != 1 {
			t.Fatalf("%d runs right after four missed nights, want 1", got)
		}
		runFor(t, d, time.Minute) // a restart of the daemon is no reason to run again
		if got := runs.Load(); got != 1 {
			t.Fatalf("%d runs after a restart, want still 1", got)
		}
	})
}

func TestDaemonTriesAgainAfterAFailureButNotAfterALock(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, runs := daemon(t, dir, func(n int64) error {
			if n == 1 {
				return errors.New("bucket on fire")
			}
			return fsx.ErrLocked
		})
		runFor(t, d, time.Hour)
		if got := runs.Load(); got != 2 {
			t.Fatalf("%d runs in an hour, want the first and its retry", got)
		}
	})
}

func TestDaemonExpiresOnlyAfterAGoodBackup(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var expired int
		d, _ := daemon(t, dir, func(n int64) error {
			if n == 1 {
				return errors.New("no")
			}
			return ErrWarnings
		})
		d.Expire = func(context.Context) error { expired++; return nil }
		runFor(t, d, 20*time.Minute)
		if expired != 1 {
			t.Fatalf("expired %d times, want once: after the second run only", expired)
		}
	})
}

// A task has a schedule of its own and never meets a backup; one that was missed is
// caught up, one whose store did not answer is tried again, and a finding is not.
func TestDaemonDoesTasksBetweenBackups(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want int64 // runs in three days and a bit
	}{
		"passes":      {nil, 4},
		"fails":       {uploader.ErrDamaged, 4},
		"unreachable": {uploader.ErrUnreachable, 290},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var busy, runs atomic.Int64
				d, _ := daemon(t, dir, func(int64) error {
					if busy.Add(1) > 1 {
						t.Error("a backup began during a task")
					}
					time.Sleep(time.Hour)
					busy.Add(-1)
					return nil
				})
				if err := d.Workdir.remember(func(l *Last) { l.Tasks = map[string]time.Time{"verify": time.Now().Add(-50 * time.Hour)} }); err != nil {
					t.Fatal(err)
				}
				d.Tasks = []Task{{Name: "verify", Schedule: daily(t), Run: func(context.Context) error {
					if busy.Add(1) > 1 {
						t.Error("a task began during a backup")
					}
					runs.Add(1)
					time.Sleep(time.Second)
					busy.Add(-1)
					return c.err
				}}}
				runFor(t, d, 73*time.Hour)
				if n := runs.Load(); n < c.want-20 && c.want > 20 || c.want < 20 && n != c.want {
					t.Errorf("%d runs, want %d", n, c.want)
				}
				l, err := d.Workdir.Last()
				if err != nil || c.want < 20 && time.Since(l.Tasks["verify"]) > 25*time.Hour {
					t.Errorf("%v, %v", l.Tasks, err)
				}
			})
		})
	}
}
