package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// execNode is a fake node that exec controls, running.
func execNode(t *testing.T) (home, ExecConfig) {
	t.Helper()
	h := newHome(t)
	ctl := func(verb string) []string { return []string{self(), "play-ctl", verb, string(h)} }
	c := ExecConfig{
		Stop: ctl("stop"), Start: ctl("start"), Status: ctl("status"), Dir: t.TempDir(), SwapFile: h.path("swap.json"),
		StartTimeout: 5 * slower * time.Second, StatusTimeout: 5 * slower * time.Second, Linger: 3 * slower * time.Second,
	}
	if code := playCtlProcess(t, c.Start); code != 0 {
		t.Fatalf("start: exit status %d", code)
	}
	return h, c
}

func playCtlProcess(t *testing.T, argv []string) int {
	t.Helper()
	c, err := spawn(argv, nodeEnv(), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.free()
	if err := c.wait(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	return c.ws.ExitStatus()
}

func mustExec(t *testing.T, c ExecConfig) *guarded {
	t.Helper()
	e, err := NewExec(c)
	if err != nil {
		t.Fatal(err)
	}
	return e.(*guarded)
}

// closed waits until the journal is closed and the lock free.
func closed(t *testing.T, c ExecConfig) {
	t.Helper()
	eventually(t, 5*time.Second, "the journal is closed", func() bool {
		rec, err := ReadHold(c.Dir)
		return rec == nil && err == nil
	})
	eventually(t, 5*time.Second, "the hold lock is free", func() bool {
		l, err := fsx.TryLock(c.Dir + "/" + lockFile)
		return err == nil && l.Unlock() == nil
	})
}

func guardOf(t *testing.T, eddy int) (pid int) {
	t.Helper()
	eventually(t, 5*time.Second, "a guard", func() bool {
		for _, c := range children(eddy) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c))
			if string(b) == "eddy\x00guard\x00" {
				pid = c
			}
		}
		return pid != 0
	})
	return pid
}

func TestExecHoldAndRelease(t *testing.T) {
	h, c := execNode(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	e, ctx, others := mustExec(t, c), ctxOf(t), children(os.Getpid())
	before, err := e.Status(ctx)
	if err != nil || !before.Running || before.Held || before.Since != fmt.Sprintf("pid %d", h.pid()) {
		t.Fatalf("before: %+v, %v", before, err)
	}
	began := time.Now()
	hold, err := e.Hold(ctx, Request{Stage: "s1\n", Down: AllDown([]string{string(h)}, []string{"127.0.0.1:1"})})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("held after %s", time.Since(began))
	rec, err := ReadHold(c.Dir)
	if err != nil || rec == nil || rec.Stage != "s1" || rec.Purpose != "backup" || rec.Identity != before.Since || rec.PID != os.Getpid() {
		t.Fatalf("journal: %+v, %v", rec, err)
	}
	if st, err := e.Status(ctx); err != nil || st.Running || !st.Held || h.pid() != 0 {
		t.Fatalf("in the hold: %+v, %v", st, err)
	}
	if _, err := mustExec(t, c).Hold(ctx, Request{}); !errors.Is(err, ErrHeld) || !errors.Is(err, fsx.ErrLocked) {
		t.Fatalf("second hold: %v, want ErrHeld", err)
	}
	if _, err := mustExec(t, c).Recover(ctx); !errors.Is(err, ErrHeld) {
		t.Fatalf("recover in the hold: %v, want ErrHeld", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	began = time.Now()
	for range 2 {
		if err := hold.Release(cancelled); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("released after %s", time.Since(began))
	select {
	case <-hold.Lost():
		t.Fatal("a released hold counts as lost")
	case <-time.After(20 * time.Millisecond):
	}
	if h.starts() != 2 || h.pid() == 0 {
		t.Fatalf("%d starts, node %d", h.starts(), h.pid())
	}
	closed(t, c)
	left := slices.DeleteFunc(children(os.Getpid()), func(pid int) bool { return slices.Contains(others, pid) })
	if len(left) != 0 {
		t.Fatalf("children are left: %v", left)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", h.pid()))
	if err != nil || strings.Contains(string(env), "hunter2") {
		t.Fatalf("the node carries our credentials about: %v", err)
	}
	if acted, err := e.Recover(ctx); acted || err != nil {
		t.Fatalf("nothing to recover: %v, %v", acted, err)
	}
}

// Whoever dies or freezes, the node runs again within the deadline and the
// journal is closed.
func TestExecFaultsInTheHold(t *testing.T) {
	t.Parallel()
	const deadline = 2500 * slower * time.Millisecond
	for name, tc := range map[string]struct {
		fault  func(eddy, guard int)
		within time.Duration // after the fault; 0: not without recover
		eddy   bool          // lives on
	}{
		"eddy killed":  {func(e, _ int) { _ = unix.Kill(e, unix.SIGKILL) }, deadline, false},
		"eddy frozen":  {func(e, _ int) { _ = unix.Kill(e, unix.SIGSTOP) }, deadline + time.Second, false},
		"eddy hangs":   {func(e, _ int) {}, deadline + time.Second, false},
		"guard killed": {func(_, g int) { _ = unix.Kill(g, unix.SIGKILL) }, deadline + time.Second, true},
		"guard frozen": {func(_, g int) { _ = unix.Kill(g, unix.SIGSTOP) }, deadline + guardFirst + time.Second, true},
		"guard told":   {func(_, g int) { _ = unix.Kill(g, unix.SIGTERM); _ = unix.Kill(g, unix.SIGHUP) }, deadline + time.Second, false},
		"both killed":  {func(e, g int) { _ = unix.Kill(g, unix.SIGKILL); _ = unix.Kill(e, unix.SIGKILL) }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := execNode(t)
			began := time.Now()
			p := holder(t, holderArgs{Exec: &c, Timeout: 2 * slower * time.Second, Deadline: deadline})
			p.expect(t, "held")
			guard := guardOf(t, p.Process.Pid)
			tc.fault(p.Process.Pid, guard)
			fault := time.Now()
			if tc.within == 0 {
				p.exit(t)
				eventually(t, time.Second, "the guard is gone", func() bool { return ended(guard) })
				if rec, err := ReadHold(c.Dir); rec == nil || err != nil || h.starts() != 1 {
					t.Fatalf("a look changed something: %+v, %v, %d starts", rec, err, h.starts())
				}
				if _, err := mustExec(t, c).Hold(ctxOf(t), Request{}); err == nil || hint.Of(err) == "" {
					t.Fatalf("a hold over an open journal: %v", err)
				}
				fault = time.Now()
				if acted, err := mustExec(t, c).Recover(ctxOf(t)); !acted || err != nil {
					t.Fatalf("recover: %v, %v", acted, err)
				}
				if h.starts() != 2 {
					t.Fatalf("%d starts", h.starts())
				}
			}
			eventually(t, max(tc.within, time.Second), "the node runs again", func() bool { return h.starts() == 2 })
			t.Logf("node runs %s after the fault, %s after the hold began (deadline %s)", time.Since(fault), time.Since(began), deadline)
			if tc.eddy {
				p.expect(t, "lost")
				_ = unix.Kill(guard, unix.SIGCONT)
				p.in("release")
				p.expect(t, "released")
			} else {
				p.exit(t)
			}
			closed(t, c)
			eventually(t, time.Second, "exactly one node", func() bool { return h.pid() != 0 && h.starts() == 2 })
			// The next hold works.
			hold, err := mustExec(t, c).Hold(ctxOf(t), Request{})
			if err != nil {
				t.Fatal(err)
			}
			if err := hold.Release(ctxOf(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Somebody starts the node while it is held: what was captured is worthless.
func TestExecStartedBySomebodyElse(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	hold, err := mustExec(t, c).Hold(ctxOf(t), Request{})
	if err != nil {
		t.Fatal(err)
	}
	playCtlProcess(t, c.Start)
	if err := hold.Release(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hold.Lost():
	default:
		t.Fatal("the hold does not count as lost")
	}
	if h.starts() != 2 {
		t.Fatalf("%d starts", h.starts())
	}
	closed(t, c)
}

// A reboot: everything is gone at once, and the boot id is another one.
func TestExecReboot(t *testing.T) {
	h, c := execNode(t)
	t.Setenv("EDDY_BOOT_ID", "before")
	p := holder(t, holderArgs{Exec: &c, Timeout: 10 * time.Second, Deadline: time.Minute})
	p.expect(t, "held")
	guard := guardOf(t, p.Process.Pid)
	_ = unix.Kill(p.Process.Pid, unix.SIGSTOP) // or it would see its guard die
	_ = unix.Kill(guard, unix.SIGKILL)
	_ = unix.Kill(p.Process.Pid, unix.SIGKILL)
	p.exit(t)
	eventually(t, time.Second, "the guard is gone", func() bool { return ended(guard) })
	t.Setenv("EDDY_BOOT_ID", "after")
	if rec, err := ReadHold(c.Dir); err != nil || rec == nil || rec.BootID != "before" {
		t.Fatalf("journal: %+v, %v", rec, err)
	}
	began := time.Now()
	if acted, err := mustExec(t, c).Recover(ctxOf(t)); !acted || err != nil || h.pid() == 0 {
		t.Fatalf("recover: %v, %v, node %d", acted, err, h.pid())
	}
	t.Logf("node runs %s after recover began", time.Since(began))
	closed(t, c)
}

func TestExecEddyDiesDuringTheStop(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	h.write("mode", "slow 500ms")
	p := holder(t, holderArgs{Exec: &c, Timeout: 2 * slower * time.Second, Deadline: time.Minute})
	eventually(t, 3*time.Second, "the stop begins", func() bool { return h.read("signals") != "" })
	_ = p.Process.Kill()
	took := eventually(t, 3*time.Second, "the node ended late and runs again", func() bool { return h.starts() == 2 })
	t.Logf("node runs %s after eddy died in the stop", took)
	closed(t, c)
}

func TestExecStopsThatGoWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		file, text string
		want       error
		starts     int // in the end
	}{
		"slow":         {"mode", "slow 100ms", nil, 2},
		"too slow":     {"mode", "slow " + (2 * slower * time.Second).String(), ErrStopTimeout, 2},
		"ignores":      {"mode", "ignore", ErrStopTimeout, 1},
		"dies of KILL": {"mode", "kill", ErrKilled, 2},
		"crashes":      {"mode", "exit 2", ErrKilled, 2},
		"stop fails":   {"stop-fails", "no right to do that", errAny, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := execNode(t)
			h.write(tc.file, tc.text)
			c.Linger = 2 * slower * time.Second
			e := mustExec(t, c)
			timeout := 1200 * slower * time.Millisecond
			if tc.want == nil || tc.want == ErrKilled {
				timeout = 10 * time.Second
			}
			hold, err := e.Hold(ctxOf(t), Request{Timeout: timeout, Deadline: time.Minute})
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if err := hold.Release(ctxOf(t)); err != nil {
					t.Fatal(err)
				}
			} else {
				if err == nil || tc.want != errAny && !errors.Is(err, tc.want) {
					t.Fatalf("hold: %v, want %v", err, tc.want)
				}
				t.Logf("%v\n hint: %s", err, hint.Of(err))
				if errors.Is(err, ErrStopping) != (tc.want != ErrKilled) || errors.Is(err, ErrDown) {
					t.Errorf("of the node it says: %v", err)
				}
			}
			if tc.want == ErrStopTimeout {
				if _, err := e.Hold(ctxOf(t), Request{}); !errors.Is(err, ErrHeld) {
					t.Fatalf("hold while the guard lingers: %v", err)
				}
			}
			closed(t, c)
			if h.pid() == 0 || h.starts() != tc.starts {
				t.Fatalf("node %d, %d starts", h.pid(), h.starts())
			}
			// Once the cause is gone it works again, and no guard stays a zombie.
			_ = os.Remove(h.path(tc.file))
			if hold, err = e.Hold(ctxOf(t), Request{}); err != nil {
				t.Fatal(err)
			}
			if err := hold.Release(ctxOf(t)); err != nil {
				t.Fatal(err)
			}
			eventually(t, 2*time.Second, "all guards are reaped", func() bool {
				e.reap()
				return len(e.guards) == 0
			})
		})
	}
}

var errAny = errors.New("any")

func TestExecHoldRefuses(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	e, ctx := mustExec(t, c), ctxOf(t)
	for name, tc := range map[string]struct {
		file, text string
		want       string
	}{
		"a swap":         {"swap.json", "{}", "a restore is under way"},
		"unknown status": {"status-says", "4", "exit status 4"},
		"stopped":        {"status-says", "3", ErrStopped.Error()},
	} {
		h.write(tc.file, tc.text)
		if _, err := e.Hold(ctx, Request{}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		_ = os.Remove(h.path(tc.file))
		closed(t, c)
	}
	if h.starts() != 1 || h.read("signals") != "" {
		t.Fatal("the node noticed")
	}
	for _, bad := range []ExecConfig{{}, {Stop: c.Stop, Start: c.Start, Dir: c.Dir}, {Stop: c.Stop, Start: c.Start, Status: []string{"a\x00"}, Dir: c.Dir}, {Stop: c.Stop, Start: c.Start, Status: c.Status}} {
		if _, err := NewExec(bad); err == nil {
			t.Errorf("taken: %+v", bad)
		}
	}
}

func TestExecProofFails(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	_, err := mustExec(t, c).Hold(ctxOf(t), Request{
		Timeout: 2 * slower * time.Second, Deadline: time.Minute, // a busy machine stops slowly
		Down: func(context.Context) error { return fmt.Errorf("%w: port 1 answers", ErrNotDown) },
	})
	if !errors.Is(err, ErrNotDown) {
		t.Fatalf("hold: %v", err)
	}
	if h.starts() != 2 || h.pid() == 0 {
		t.Fatal("the node was not started again")
	}
	closed(t, c)
}

func TestExecCancelledDuringTheStop(t *testing.T) {
	t.Parallel()
	h, c := execNode(t)
	h.write("mode", "slow 200ms")
	ctx, cancel := context.WithCancel(ctxOf(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for h.read("signals") == "" {
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err := mustExec(t, c).Hold(ctx, Request{Timeout: 3 * slower * time.Second, Deadline: time.Minute})
	<-done
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("hold: %v", err)
	}
	if h.pid() == 0 {
		t.Fatal("the node does not run")
	}
	closed(t, c)
}
