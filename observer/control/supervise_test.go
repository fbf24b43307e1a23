package control

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// supervised starts supervise over a fake node and waits until that runs.
func supervise(t *testing.T, h home, o SuperviseOptions) (*proc, string) {
	t.Helper()
	if o.Socket == "" {
		if err := os.MkdirAll(h.path(".eddy"), 0o700); err != nil {
			t.Fatal(err)
		}
		o.Socket = h.path(".eddy/sock")
	}
	if o.Argv == nil {
		o.Argv = h.nodeArgv()
		o.Argv = append(o.Argv, "child")
	}
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	before := h.starts()
	p := spawnSelf(t, "play-supervise", string(b))
	eventually(t, 5*time.Second, "the node starts", func() bool {
		return h.starts() > before && h.read("pid") != "" || o.Argv[1] != "play-node" && h.starts() > before
	})
	return p, o.Socket
}

func TestSuperviseHoldAndRelease(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, sock := supervise(t, h, SuperviseOptions{})
	c := NewSupervise(sock)
	ctx := ctxOf(t)
	before, err := c.Status(ctx)
	if err != nil || !before.Running || before.Held || before.PID != h.pid() {
		t.Fatalf("before: %+v, %v", before, err)
	}
	asked := 0
	began := time.Now()
	hold, err := c.Hold(ctx, Request{Stage: "s1", Down: func(ctx context.Context) error {
		if asked++; asked < 3 {
			return ErrNotDown
		}
		return AllDown([]string{string(h)}, nil)(ctx)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("held after %s", time.Since(began))
	if h.pid() != 0 || asked != 3 {
		t.Fatalf("node %d runs, proof asked %d times", h.pid(), asked)
	}
	st, err := c.Status(ctx)
	if err != nil || st.Running || !st.Held {
		t.Fatalf("in the hold: %+v, %v", st, err)
	}
	if err := Health(ctx, sock); err != nil {
		t.Fatalf("a held node is not alive: %v", err)
	}
	began = time.Now()
	for range 2 {
		if err := hold.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("released after %s", time.Since(began))
	after, err := c.Status(ctx)
	if err != nil || !after.Running || after.Held || after.Since == before.Since || after.PID == before.PID {
		t.Fatalf("after: %+v, %v; before %+v", after, err, before)
	}
	select {
	case <-hold.Lost():
		t.Fatal("a released hold counts as lost")
	case <-time.After(20 * time.Millisecond):
	}
	eventually(t, 5*time.Second, "second run", func() bool { return h.starts() == 2 })
}

func TestSuperviseHolderDiesOrFreezes(t *testing.T) {
	t.Parallel()
	const deadline = 4 * time.Second
	for name, tc := range map[string]struct {
		signal unix.Signal
		within time.Duration
	}{
		"killed": {unix.SIGKILL, time.Second},
		"frozen": {unix.SIGSTOP, deadline + time.Second},
		"silent": {0, deadline + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			_, sock := supervise(t, h, SuperviseOptions{})
			began := time.Now()
			p := holder(t, holderArgs{Socket: sock, Timeout: 3 * time.Second, Deadline: deadline})
			p.expect(t, "held")
			if tc.signal != 0 {
				if err := p.Process.Signal(tc.signal); err != nil {
					t.Fatal(err)
				}
			}
			took := eventually(t, tc.within, "the node runs again", func() bool { return h.starts() == 2 })
			t.Logf("node runs %s after the fault, %s after the hold began (deadline %s)", took, time.Since(began), deadline)
			if code := p.exit(t); code != -1 {
				t.Fatalf("the holder lives on or ended with %d", code)
			}
			eventually(t, time.Second, "pid", func() bool { return h.pid() != 0 })
		})
	}
}

func TestSuperviseConnectionDrop(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, sock := supervise(t, h, SuperviseOptions{})
	hold, err := NewSupervise(sock).Hold(ctxOf(t), Request{})
	if err != nil {
		t.Fatal(err)
	}
	hold.(*supervisedHold).line.conn.Close()
	select {
	case <-hold.Lost():
	case <-time.After(5 * time.Second):
		t.Fatal("not lost")
	}
	eventually(t, 3*time.Second, "the node runs again", func() bool { return h.starts() == 2 })
	if err := hold.Release(ctxOf(t)); err != nil {
		t.Fatalf("release of a lost hold: %v", err)
	}
}

// The supervisor is the guard: when it is killed its manager starts it again,
// and it the node.
func TestSuperviseKilledOrRebooted(t *testing.T) {
	t.Parallel()
	for name, both := range map[string]bool{"guard only": false, "guard and holder, a reboot": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			p, sock := supervise(t, h, SuperviseOptions{})
			hp := holder(t, holderArgs{Socket: sock, Timeout: 4 * time.Second, Deadline: 5 * time.Second})
			hp.expect(t, "held")
			_ = p.Process.Kill()
			p.exit(t)
			if both {
				_ = hp.Process.Kill()
				hp.exit(t)
			} else {
				hp.expect(t, "lost")
			}
			began := time.Now()
			_, sock = supervise(t, h, SuperviseOptions{}) // over its stale socket
			t.Logf("node runs %s after supervise was started again", time.Since(began))
			st, err := NewSupervise(sock).Status(ctxOf(t))
			if err != nil || !st.Running {
				t.Fatalf("%+v, %v", st, err)
			}
		})
	}
}

func TestSuperviseStopsThatGoWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mode   string
		want   error
		starts int // right after the error
	}{
		"slow":           {"slow 100ms", nil, 1},
		"too slow":       {"slow " + (1500 * slower * time.Millisecond).String(), ErrStopTimeout, 1},
		"ignores":        {"ignore", ErrStopTimeout, 1},
		"dies of KILL":   {"kill", ErrKilled, 2},
		"crashes":        {"exit 2", ErrKilled, 2},
		"exits 128+TERM": {"exit 143", nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			h.write("mode", tc.mode)
			_, sock := supervise(t, h, SuperviseOptions{})
			c := NewSupervise(sock)
			pid := h.pid()
			timeout := 10 * time.Second
			if tc.want == ErrStopTimeout {
				timeout = 800 * slower * time.Millisecond
			}
			hold, err := c.Hold(ctxOf(t), Request{Timeout: timeout, Deadline: time.Minute})
			if !errors.Is(err, tc.want) {
				t.Fatalf("hold: %v, want %v", err, tc.want)
			}
			if err != nil {
				t.Logf("%v\n hint: %s", err, hint.Of(err))
			}
			if advice := hint.Of(err); strings.Contains(advice, "--clean-exit 2,0,130,143") != (tc.mode == "exit 2") {
				t.Errorf("hint: %s", advice)
			}
			if errors.Is(err, ErrStopping) != (tc.want == ErrStopTimeout) || errors.Is(err, ErrDown) {
				t.Errorf("of the node it says: %v", err)
			}
			if tc.want == ErrKilled || tc.want == nil {
				if hold != nil {
					if err := hold.Release(ctxOf(t)); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, 2*time.Second, "the node runs again", func() bool { return h.starts() == 2 && h.pid() != 0 })
				return
			}
			st, err := c.Status(ctxOf(t))
			if err != nil || !st.Running || st.Held || h.pid() != pid {
				t.Fatalf("after the time-out: %+v, %v, node %d, was %d", st, err, h.pid(), pid)
			}
			if tc.mode != "ignore" {
				eventually(t, 3*time.Second, "it ended late and was started again", func() bool { return h.starts() == 2 && h.pid() != 0 })
				return
			}
			// It ignored SIGTERM; a later hold may try again, and works.
			h.write("mode", "clean")
			if hold, err = c.Hold(ctxOf(t), Request{}); err != nil {
				t.Fatal(err)
			}
			if err := hold.Release(ctxOf(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSuperviseHoldAbandonedDuringTheStop(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.write("mode", "slow 400ms")
	_, sock := supervise(t, h, SuperviseOptions{})
	p := holder(t, holderArgs{Socket: sock, Timeout: 5 * time.Second, Deadline: 10 * time.Second})
	eventually(t, 2*time.Second, "the stop begins", func() bool { return h.read("signals") != "" })
	_ = p.Process.Kill()
	eventually(t, 2*time.Second, "the node runs again", func() bool { return h.starts() == 2 })
}

func TestSuperviseRefuses(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	p, sock := supervise(t, h, SuperviseOptions{MaxHold: time.Minute, MaxHeldPerHour: 90 * time.Second})
	c, ctx := NewSupervise(sock), ctxOf(t)
	hold, err := c.Hold(ctx, Request{Timeout: 10 * time.Second, Deadline: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hold(ctx, Request{Timeout: time.Second, Deadline: 2 * time.Second}); !errors.Is(err, ErrHeld) || !errors.Is(err, fsx.ErrLocked) {
		t.Fatalf("second hold: %v, want ErrHeld", err)
	}
	if err := hold.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hold(ctx, Request{Deadline: time.Hour}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Fatalf("too long: %v", err)
	}
	if _, err := c.Hold(ctx, Request{Purpose: "restore"}); err == nil {
		t.Fatal("a hold for a restore was given")
	}
	if _, err := c.Hold(ctx, Request{Timeout: time.Minute, Deadline: time.Minute}); err == nil || hint.Of(err) == "" {
		t.Fatalf("deadline not beyond the time-out: %v", err)
	}
	// A second supervise on the same socket must not take it over.
	out, err := exec.Command(self(), "play-supervise", `{"Socket":"`+sock+`","Argv":["/bin/true"]}`).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "locked") {
		t.Fatalf("second supervise: %v, %s", err, out)
	}
	if st, err := c.Status(ctx); err != nil || !st.Running || p.ProcessState != nil {
		t.Fatalf("%+v %v", st, err)
	}
}

func TestSuperviseHeldPerHour(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, sock := supervise(t, h, SuperviseOptions{MaxHeldPerHour: 12 * time.Second})
	c, ctx := NewSupervise(sock), ctxOf(t)
	r := Request{Timeout: 10 * time.Second, Deadline: 11900 * time.Millisecond}
	hold, err := c.Hold(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if err := hold.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hold(ctx, r); err == nil || !strings.Contains(err.Error(), "in the last hour") {
		t.Fatalf("over the cap: %v", err)
	}
}

func TestSuperviseForwardsSignalsAndExitCode(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.write("mode", "exit 42")
	p, _ := supervise(t, h, SuperviseOptions{})
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2} {
		_ = p.Process.Signal(sig)
		eventually(t, 2*time.Second, "signal", func() bool { return strings.HasSuffix(h.read("signals"), unix.SignalName(sig)) })
	}
	_ = p.Process.Signal(unix.SIGTERM)
	if code := p.exit(t); code != 42 {
		t.Fatalf("exit code %d, want the node's", code)
	}
	if got := h.read("signals"); got != "SIGHUP\nSIGUSR1\nSIGUSR2\nSIGTERM" {
		t.Fatalf("the node saw %q", got)
	}
	if _, err := os.Lstat(h.path(".eddy/sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the socket is left behind: %v", err)
	}
}

func TestSuperviseExitsWithTheNode(t *testing.T) {
	t.Parallel()
	for usr1, want := range map[string]int{"exit 3": 3, "kill": 137, "clean": 0} {
		h := newHome(t)
		h.write("usr1", usr1)
		p, _ := supervise(t, h, SuperviseOptions{})
		_ = unix.Kill(h.pid(), unix.SIGUSR1)
		if code := p.exit(t); code != want {
			t.Fatalf("%s: exit code %d, want %d", usr1, code, want)
		}
	}
	out := spawnSelf(t, "play-supervise", `{"Socket":"`+filepath.Join(t.TempDir(), "s")+`","Argv":["/nonexistent"]}`)
	if code := out.exit(t); code != 127 {
		t.Fatalf("exit code %d for a command that is not there", code)
	}
}

func TestSuperviseToldToStopDuringAHold(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	p, sock := supervise(t, h, SuperviseOptions{})
	hold, err := NewSupervise(sock).Hold(ctxOf(t), Request{})
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Process.Signal(unix.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Fatalf("exit code %d, want the node's last", code)
	}
	<-hold.Lost()
	if h.starts() != 1 {
		t.Fatal("its manager stopped it, and it was started")
	}
	hold.(*supervisedHold).line.conn.Close()
	hold.(*supervisedHold).wg.Wait()
}

// When supervise is killed the node gets a SIGTERM, not an orphan's life.
func TestSuperviseDeathStopsTheNode(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	p, _ := supervise(t, h, SuperviseOptions{})
	_ = p.Process.Kill()
	eventually(t, 3*time.Second, "the node ends", func() bool { return h.pid() == 0 })
	if h.read("signals") != "SIGTERM" || h.read("pid") != "" {
		t.Fatalf("signals %q: not a clean stop", h.read("signals"))
	}
}

func TestSuperviseReapsOrphans(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	argv := []string{self(), "play-orphans", string(h)}
	check := func(t *testing.T, pid int) {
		orphans := strings.Fields(h.read("orphans"))
		if len(orphans) != 5 {
			t.Fatalf("orphans: %v", orphans)
		}
		eventually(t, 3*time.Second, "only the node is left", func() bool { return len(children(pid)) == 1 })
	}
	p, _ := supervise(t, h, SuperviseOptions{Argv: argv})
	check(t, p.Process.Pid)
	_ = p.Process.Signal(unix.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

func TestSuperviseAsPID1(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Log("not root: a pid namespace needs a user namespace, too")
	}
	h := newHome(t)
	b, err := json.Marshal(SuperviseOptions{Socket: h.path("sock"), Argv: []string{self(), "play-orphans", string(h)}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self(), "play-supervise", string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the node starts", func() bool { return h.starts() == 1 })
	eventually(t, 3*time.Second, "only the node is left", func() bool { return len(children(cmd.Process.Pid)) == 1 })
	// From outside the namespace the holder's pid is not visible in it.
	st, err := NewSupervise(h.path("sock")).Status(ctxOf(t))
	if err != nil || !st.Running {
		t.Fatalf("%+v, %v", st, err)
	}
	hold, err := NewSupervise(h.path("sock")).Hold(ctxOf(t), Request{Timeout: 4 * time.Second, Deadline: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	wire, err := NewSupervise(h.path("sock")).(*supervised).status(ctxOf(t))
	if err != nil || wire.Guard != "close" {
		t.Fatalf("%+v, %v: the holder cannot be killed from inside", wire, err)
	}
	<-hold.Lost() // cut off at the deadline
	if err := hold.Release(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the second run", func() bool { return h.starts() == 2 })
	_ = cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A wrapper that dies of SIGTERM leaves the node behind: it counts only when
// that is gone, too, and as unclean.
func TestSuperviseWrapperScript(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	node := strings.Join(h.nodeArgv(), " ")
	_, sock := supervise(t, h, SuperviseOptions{Argv: []string{"/bin/sh", "-c", node + " child; exit $?"}})
	eventually(t, 2*time.Second, "node", func() bool { return h.pid() != 0 })
	_, err := NewSupervise(sock).Hold(ctxOf(t), Request{})
	if !errors.Is(err, ErrKilled) {
		t.Fatalf("hold: %v, want ErrKilled", err)
	}
	if h.read("signals") != "SIGTERM" {
		t.Fatalf("the node saw %q", h.read("signals"))
	}
	eventually(t, 2*time.Second, "the node runs again", func() bool { return h.starts() == 2 })
}

func TestSuperviseSwapFile(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	swap := h.path("swap.json")
	_, sock := supervise(t, h, SuperviseOptions{SwapFile: swap})
	c, ctx := NewSupervise(sock), ctxOf(t)
	hold, err := c.Hold(ctx, Request{})
	if err != nil {
		t.Fatal(err)
	}
	h.write("swap.json", "{}")
	if err := hold.Release(ctx); !errors.Is(err, ErrRestoring) {
		t.Fatalf("release during a swap: %v", err)
	}
	if err := Health(ctx, sock); err != nil {
		t.Fatalf("blocked is not dead: %v", err)
	}
	if _, err := c.Hold(ctx, Request{}); !errors.Is(err, ErrRestoring) {
		t.Fatalf("hold during a swap: %v", err)
	}
	time.Sleep(300 * time.Millisecond)
	if h.starts() != 1 {
		t.Fatal("the node was started between two steps of a swap")
	}
	if err := os.Remove(swap); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Second, "the node runs", func() bool { return h.starts() == 2 })
	if err := hold.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestSupervisePeers(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Log("not root: only our own user can be tried")
		return
	}
	for name, tc := range map[string]struct {
		o    SuperviseOptions
		want string
	}{
		"nobody is refused":   {SuperviseOptions{}, "permission denied"},
		"nobody is allowed":   {SuperviseOptions{AllowUIDs: []int{65534}, AllowGID: 65534}, "true <nil>"},
		"its group is enough": {SuperviseOptions{AllowGID: 65534}, "true <nil>"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			dir, err := os.MkdirTemp("/tmp", "eddy-peer")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			// The test binary must be within nobody's reach. cp writes it: a test beside
			// us that forks while we have it open keeps it from being run.
			bin := filepath.Join(dir, "t")
			if out, err := exec.Command("cp", self(), bin).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			tc.o.Socket = filepath.Join(dir, "s")
			_, sock := supervise(t, h, tc.o)
			st, err := os.Stat(sock)
			if err != nil || st.Mode().Perm() != 0o660 {
				t.Fatalf("mode of the socket: %v, %v", st.Mode(), err)
			}
			out, err := exec.Command(bin, "play-status", sock, "65534").CombinedOutput()
			if err != nil || !strings.Contains(string(out), tc.want) {
				t.Fatalf("%v: %s", err, out)
			}
			// Past the file's mode the credentials decide.
			if err := os.Chmod(sock, 0o666); err != nil {
				t.Fatal(err)
			}
			if out, err = exec.Command(bin, "play-status", sock, "65533").CombinedOutput(); err != nil || !strings.Contains(string(out), "may not use this socket") {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}

func TestSuperviseProtocolErrors(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, sock := supervise(t, h, SuperviseOptions{})
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dec := json.NewDecoder(conn)
	for _, line := range []string{"nonsense", `{"format":9,"op":"hold"}`, `{"format":1,"op":"burn"}`, `{"format":1,"op":"hold"}`, `{"format":1,"op":"hold","deadline_ms":9e18,"purpose":"backup"}`, `{"format":1,"op":"release"}`, `{"format":1,"op":"status","new":1}`} {
		if _, err := conn.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
		var r response
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.OK != strings.Contains(line, "status") || r.Format != 1 {
			t.Fatalf("%s: %+v", line, r)
		}
	}
	_, _ = conn.Write([]byte(strings.Repeat("x", maxLine+10)))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("an endless line was taken")
	}
	if h.starts() != 1 || h.pid() == 0 {
		t.Fatal("the node noticed")
	}
}

func TestSuperviseUnreachable(t *testing.T) {
	t.Parallel()
	_, err := NewSupervise(filepath.Join(t.TempDir(), "none")).Hold(ctxOf(t), Request{})
	if err == nil || !strings.Contains(hint.Of(err), "eddy supervise --home HOME --socket") {
		t.Fatalf("%v, hint %q", err, hint.Of(err))
	}
}
