package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Killed at any moment, from before the guard is armed until after the release,
// with its guard or without, an eddy leaves a node that runs, or a journal that
// Recover closes.
func TestExecKilledAnywhere(t *testing.T) {
	t.Parallel()
	for i := range 16 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			delay := time.Duration(rand.Int64N(int64(150 * slower * time.Millisecond)))
			both := i%2 == 1
			t.Logf("killed after %s, both: %v", delay, both)
			h, c := execNode(t)
			h.write("mode", "slow 20ms")
			p := holder(t, holderArgs{Exec: &c, Timeout: 2 * slower * time.Second, Deadline: time.Minute})
			if i%4 < 2 {
				p.in("release")
			}
			time.Sleep(delay)
			if both {
				_ = unix.Kill(p.Process.Pid, unix.SIGSTOP)
				for _, child := range children(p.Process.Pid) {
					if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child)); string(b) == "eddy\x00guard\x00" {
						_ = unix.Kill(child, unix.SIGKILL)
						eventually(t, 2*time.Second, "the guard is gone", func() bool { return ended(child) })
					}
				}
			}
			_ = p.Process.Kill()
			p.exit(t)
			// The guard closes the journal; where there is none any more, Recover does.
			eventually(t, 15*time.Second, "the journal is closed", func() bool {
				_, err := mustExec(t, c).Recover(ctxOf(t))
				if err != nil && !errors.Is(err, ErrHeld) {
					t.Fatal(err)
				}
				rec, rerr := ReadHold(c.Dir)
				return err == nil && rec == nil && rerr == nil
			})
			closed(t, c)
			eventually(t, time.Second, "the node runs", func() bool { return h.pid() != 0 })
			time.Sleep(100 * time.Millisecond)
			if h.pid() == 0 {
				t.Fatal("it ended after the journal was closed")
			}
		})
	}
}

// A start that fails is left to the guard, which goes on until it works.
func TestExecStartThatFails(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	c.StartTimeout = 700 * slower * time.Millisecond
	e, ctx := mustExec(t, c), ctxOf(t)
	hold, err := e.Hold(ctx, Request{})
	if err != nil {
		t.Fatal(err)
	}
	h.write("start-fails", "resource temporarily unavailable")
	err = hold.Release(ctx)
	if !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "the guard goes on trying") {
		t.Fatalf("release: %v", err)
	}
	t.Logf("%v\n hint: %s", err, hint.Of(err))
	if err := hold.Release(ctx); !errors.Is(err, ErrDown) {
		t.Fatalf("second release, while it stands still: %v", err)
	}
	if _, err := e.Recover(ctx); !errors.Is(err, ErrDown) || !errors.Is(err, ErrHeld) {
		t.Fatalf("recover while the guard tries: %v", err)
	}
	if err := os.Remove(h.path("start-fails")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the guard starts it", func() bool { return h.starts() == 2 })
	closed(t, c)
	if err := hold.Release(ctx); err != nil {
		t.Fatalf("second release, while the node runs: %v", err)
	}
	if _, err := e.Recover(ctx); err != nil {
		t.Fatal(err)
	}
}

// A stop that went wrong, and then a start that fails: what matters is said, too.
func TestExecKilledAndNotStarted(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	c.StartTimeout = 700 * slower * time.Millisecond
	h.write("mode", "kill")
	h.write("start-fails", "resource temporarily unavailable")
	_, err := mustExec(t, c).Hold(ctxOf(t), Request{})
	if !errors.Is(err, ErrKilled) || !errors.Is(err, ErrDown) {
		t.Errorf("hold: %v", err)
	}
	for _, f := range []string{"mode", "start-fails"} {
		if err := os.Remove(h.path(f)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 5*time.Second, "the guard starts it", func() bool { return h.starts() == 2 })
	closed(t, c)
}

// The start that eddy began is seen through by its guard, never doubled, also
// when the node inherits the start lock.
func TestExecKilledInTheStart(t *testing.T) {
	t.Parallel()
	for _, inherit := range []string{"", "yes"} {
		t.Run("inherit "+inherit, func(t *testing.T) {
			t.Parallel()
			h, c := execNode(t)
			p := holder(t, holderArgs{Exec: &c, Timeout: 2 * slower * time.Second, Deadline: time.Minute})
			p.expect(t, "held")
			h.write("start-slow", "400ms")
			if inherit != "" {
				h.write("inherit", inherit)
			}
			p.in("release")
			eventually(t, 3*time.Second, "a start is under way", func() bool {
				l, err := fsx.TryLock(c.Dir + "/" + startLockFile)
				if err == nil {
					_ = l.Unlock()
				}
				return errors.Is(err, fsx.ErrLocked)
			})
			_ = p.Process.Kill()
			eventually(t, 5*time.Second, "the node runs", func() bool { return h.pid() != 0 })
			closed(t, c)
			time.Sleep(500 * time.Millisecond) // a second start would show by now
			if h.starts() != 2 {
				t.Fatalf("%d starts", h.starts())
			}
		})
	}
}

func TestExecRecover(t *testing.T) {
	t.Parallel()
	rec := Record{
		Format: 1, MinReader: 1, Kind: "hold", Control: "exec", BootID: "another boot", Started: time.Now().Add(-time.Hour),
		Deadline: time.Now().Add(-time.Minute), StopMS: 1000, Purpose: "backup", Stage: "s1",
	}
	for name, tc := range map[string]struct {
		raw     string // of the journal; "": rec after edit
		edit    func(*Record)
		running bool
		want    error
		starts  int
		closed  bool
	}{
		"another boot":            {starts: 2, closed: true},
		"this boot":               {edit: func(r *Record) { r.BootID = bootNow(t) }, starts: 2, closed: true},
		"started meanwhile":       {running: true, starts: 1, closed: true},
		"a clock far behind":      {edit: func(r *Record) { r.BootID = bootNow(t); r.Started = time.Now().Add(100000 * time.Hour) }, running: true, starts: 1, closed: true},
		"torn":                    {raw: `{"format":1,"ki`, starts: 2, closed: true},
		"empty":                   {raw: " ", starts: 2, closed: true},
		"a later version":         {raw: `{"format":7,"min_reader":7,"kind":"hold","control":"exec","purpose":"backup","argv":{"stop":3,"start":"x"},"started":17}`, starts: 2, closed: true},
		"for a restore":           {edit: func(r *Record) { r.Purpose = "restore" }, want: ErrRestoring, starts: 1},
		"of another control":      {edit: func(r *Record) { r.Control = "docker" }, want: errAny, starts: 1},
		"torn and nobody's fault": {raw: "\x00\x00\x00", running: true, starts: 1, closed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := execNode(t)
			if !tc.running {
				playCtlProcess(t, c.Stop)
				eventually(t, 3*time.Second, "stopped", func() bool { return h.pid() == 0 })
			}
			r := rec
			if tc.edit != nil {
				tc.edit(&r)
			}
			var err error
			if tc.raw != "" {
				err = os.WriteFile(c.Dir+"/"+recordFile, []byte(tc.raw), 0o600)
			} else {
				err = r.write(c.Dir)
			}
			if err != nil {
				t.Fatal(err)
			}
			acted, err := mustExec(t, c).Recover(ctxOf(t))
			if (tc.want == nil) != (err == nil) || tc.want != nil && tc.want != errAny && !errors.Is(err, tc.want) || acted != (tc.want == nil) {
				t.Fatalf("recover: %v, %v", acted, err)
			}
			if h.starts() != tc.starts {
				t.Fatalf("%d starts, want %d", h.starts(), tc.starts)
			}
			if left, _ := ReadHold(c.Dir); (left == nil) != tc.closed && tc.raw == "" {
				t.Fatalf("journal afterwards: %+v", left)
			}
		})
	}
}

func bootNow(t *testing.T) string {
	id, err := fsx.BootID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A node that must not run any more is left, with its journal, until that changes.
func TestExecRecoverMayNotStart(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	playCtlProcess(t, c.Stop)
	eventually(t, 3*time.Second, "stopped", func() bool { return h.pid() == 0 })
	if err := (Record{Format: 1, Kind: "hold", Control: "exec", Purpose: "backup"}).write(c.Dir); err != nil {
		t.Fatal(err)
	}
	no := errAny
	c.MayStart = func(context.Context) error { return no }
	if acted, err := mustExec(t, c).Recover(ctxOf(t)); acted || !errors.Is(err, errAny) || h.pid() != 0 {
		t.Fatalf("%v, %v, node %d", acted, err, h.pid())
	}
	no = nil
	if acted, err := mustExec(t, c).Recover(ctxOf(t)); !acted || err != nil || h.pid() == 0 {
		t.Fatalf("%v, %v, node %d", acted, err, h.pid())
	}
	closed(t, c)
}

// What the journal names is started, not what the configuration says by now.
func TestExecRecoverUsesTheRecordsCommands(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	playCtlProcess(t, c.Stop)
	eventually(t, 3*time.Second, "stopped", func() bool { return h.pid() == 0 })
	r := Record{Format: 1, Kind: "hold", Control: "exec", BootID: "b", Purpose: "backup", Argv: Argv{Stop: c.Stop, Start: c.Start, Status: c.Status}}
	if err := r.write(c.Dir); err != nil {
		t.Fatal(err)
	}
	c.Start, c.Status = []string{"/bin/false"}, []string{"/bin/true"}
	if acted, err := mustExec(t, c).Recover(ctxOf(t)); !acted || err != nil || h.starts() != 2 {
		t.Fatalf("%v, %v, %d starts", acted, err, h.starts())
	}
}

func TestGuardByHand(t *testing.T) {
	p := spawnSelf(t, GuardVerb)
	if code := p.exit(t); code != 1 || !strings.Contains(p.err.String(), "guard:") {
		t.Fatalf("exit code %d: %s", code, p.err)
	}
}
