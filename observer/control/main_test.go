package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// The test binary plays every process that takes part in a hold: the node, the
// commands that control it, supervise, the holder (an eddy), and its guard.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if play := roles[os.Args[1]]; play != nil {
			os.Exit(play(os.Args[2:]))
		}
	}
	// These tests wait much and compute little. The race detector makes a process
	// sleep for a second before it exits: not the ones that we start.
	flag.Parse()
	if err := errors.Join(flag.Set("test.parallel", "8"), os.Setenv("GORACE", "atexit_sleep_ms=0")); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

var roles = map[string]func(args []string) int{
	GuardVerb: func([]string) int {
		if err := RunGuard(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	},
	UnitGuardVerb: func(args []string) int { // --workdir DIR UNIT
		if err := RunUnitGuard(context.Background(), args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	},
	"play-node":      playNode,
	"play-ctl":       playCtl,
	"play-supervise": playSupervise,
	"play-holder":    playHolder,
	"play-orphans":   playOrphans,
	"play-status":    playStatus,
	"play-recover":   playRecover,
	"play-restore":   playRestore,
	"play-checks":    playChecks,
	"play-findings":  playFindings,
	"play-run":       playRun,
}

func self() string {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return exe
}

// home is the directory of a fake node:
//
//	pid      of the running node; a clean stop removes it
//	starts   a line for each start
//	signals  a line for each signal
//	double   there when two nodes ran at once
//	mode     what SIGTERM does: clean, ignore, slow DURATION, kill, exit N
//	usr1     what SIGUSR1 does, likewise
type home string

func (h home) path(name string) string { return filepath.Join(string(h), name) }

func (h home) read(name string) string {
	b, err := os.ReadFile(h.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err)
	}
	return strings.TrimSpace(string(b))
}

func (h home) write(name, text string) {
	if err := fsx.WriteFileAtomic(h.path(name), []byte(text), 0o644); err != nil {
		panic(err)
	}
}

func (h home) add(name, text string) {
	f, err := os.OpenFile(h.path(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, text)
}

// pid is of the node that runs, 0 where none does.
func (h home) pid() int {
	pid, _ := strconv.Atoi(h.read("pid"))
	if pid == 0 {
		return 0
	}
	cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty for a zombie
	if !bytes.Contains(cmd, []byte("play-node\x00"+string(h)+"\x00")) {
		return 0
	}
	return pid
}

func (h home) starts() int { return len(strings.Fields(h.read("starts"))) }

func (h home) nodeArgv() []string { return []string{self(), "play-node", string(h)} }

func playNode(args []string) int {
	h := home(args[0])
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	var lock *fsx.Lock
	for range 30 * slower {
		var err error
		if lock, err = fsx.TryLock(h.path("node.lock")); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if lock == nil {
		h.add("double", "x")
		return 9
	}
	h.add("starts", strconv.Itoa(os.Getpid()))
	h.write("pid", strconv.Itoa(os.Getpid()))
	for sig := range sigs {
		h.add("signals", unix.SignalName(sig.(syscall.Signal)))
		mode := ""
		switch sig {
		case unix.SIGTERM, unix.SIGINT:
			mode = h.read("mode")
			if mode == "" {
				mode = "clean"
			}
		case unix.SIGUSR1:
			mode = h.read("usr1")
		}
		word, arg, _ := strings.Cut(mode, " ")
		switch word {
		case "kill":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			time.Sleep(time.Minute)
		case "exit":
			n, _ := strconv.Atoi(arg)
			return n
		case "slow":
			d, _ := time.ParseDuration(arg)
			time.Sleep(d)
			fallthrough
		case "clean":
			// The pid file goes last: without it the node counts as stopped.
			if err := lock.Unlock(); err != nil {
				return 6
			}
			if err := os.Remove(h.path("pid")); err != nil {
				return 8
			}
			return 0
		}
	}
	return 7
}

// playCtl are the commands of exec: start, stop and status of a node in a directory.
func playCtl(args []string) int {
	h := home(args[1])
	switch args[0] {
	case "start":
		if msg := h.read("start-fails"); msg != "" {
			fmt.Println(msg)
			return 1
		}
		if d, err := time.ParseDuration(h.read("start-slow")); err == nil {
			time.Sleep(d)
		}
		cmd := exec.Command(self(), "play-node", string(h), "daemon")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if f3 := os.NewFile(3, "lock"); f3 != nil && h.read("inherit") != "" {
			cmd.ExtraFiles = []*os.File{f3}
		}
		if err := cmd.Start(); err != nil {
			return 1
		}
		for range 200 * slower {
			if h.pid() == cmd.Process.Pid {
				return 0
			}
			time.Sleep(5 * time.Millisecond)
		}
		return 1
	case "stop":
		if msg := h.read("stop-fails"); msg != "" {
			fmt.Println(msg)
			return 1
		}
		if pid := h.pid(); pid != 0 {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
		return 0
	case "status":
		h.add("asked", "x")
		if code, err := strconv.Atoi(h.read("status-says")); err == nil {
			return code
		}
		if pid := h.pid(); pid != 0 {
			fmt.Println("pid", pid)
			return 0
		}
		if h.read("pid") != "" {
			return 1
		}
		return 3
	}
	return 64
}

func playSupervise(args []string) int {
	var o SuperviseOptions
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		panic(err)
	}
	o.Log = zerolog.New(os.Stderr)
	code, err := Supervise(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "supervise:", err)
	}
	return code
}

// holderArgs is a hold as another process makes it.
type holderArgs struct {
	Socket   string      // or
	Exec     *ExecConfig // or
	Docker   *DockerConfig
	Systemd  *SystemdConfig
	Timeout  time.Duration
	Deadline time.Duration
}

func (a holderArgs) control() Control {
	var c Control
	var err error
	switch {
	case a.Systemd != nil:
		c, err = NewSystemd(*a.Systemd)
	case a.Exec != nil:
		c, err = NewExec(*a.Exec)
	case a.Docker != nil:
		c, err = NewDocker(*a.Docker)
	default:
		c = NewSupervise(a.Socket)
	}
	if err != nil {
		panic(err)
	}
	return c
}

// playHolder is an eddy: it holds, tells what happens on stdout, and releases
// when stdin says so.
func playHolder(args []string) int {
	var a holderArgs
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	fmt.Println("begin")
	h, err := a.control().Hold(context.Background(), Request{Timeout: a.Timeout, Deadline: a.Deadline, Stage: "s1"})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("held")
	word := make(chan string)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			word <- in.Text()
		}
		select {} // the test ends us
	}()
	lost := h.Lost()
	for {
		select {
		case <-lost:
			fmt.Println("lost")
			lost = nil
		case <-word:
			if err := h.Release(context.Background()); err != nil {
				fmt.Println("error", err)
				return 1
			}
			fmt.Println("released")
			return 0
		}
	}
}

// playRecover is an eddy that closes what an earlier one left open.
func playRecover(args []string) int {
	var a holderArgs
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	acted, err := a.control().Recover(context.Background())
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("acted", acted)
	return 0
}

// playRestore is the part of a restore in place that its second argument names.
func playRestore(args []string) int {
	var a holderArgs
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	c, ctx := a.control(), context.Background()
	err := map[string]func() error{
		"may":   func() error { return c.MayHalt(ctx, false) },
		"halt":  func() error { return c.Halt(ctx, Request{Timeout: a.Timeout}) },
		"start": func() error { return c.Start(ctx) },
	}[args[1]]()
	if err != nil {
		fmt.Printf("error %v\nhint %s\n", err, hint.Of(err))
		return 1
	}
	fmt.Println("ok")
	return 0
}

// playChecks prints the names and verdicts of what doctor is told.
func playChecks(args []string) int {
	var a holderArgs
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	for _, f := range a.control().(check.Checker).Checks(context.Background()) {
		fmt.Printf("%s: %s\n", f.Name, f.Level)
	}
	return 0
}

// playFindings prints what doctor is told, as JSON.
func playFindings(args []string) int {
	var a holderArgs
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(Checks(context.Background(), a.control(), a.Systemd.Dir, DefaultTimeout)); err != nil {
		panic(err)
	}
	return 0
}

// playRun is the daemon: it recovers, and holds once in the node's life.
func playRun(args []string) int {
	if code := playRecover(args); code != 0 {
		return code
	}
	const h = home("/var/lib/gaia")
	if os.Remove(h.path("hold-once")) != nil {
		time.Sleep(time.Hour)
	}
	var a holderArgs
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	if _, err := a.control().Hold(context.Background(), Request{Timeout: a.Timeout, Deadline: a.Deadline, Stage: "s1"}); err != nil {
		fmt.Println("error", err)
		return 1
	}
	h.write("held", "x")
	time.Sleep(time.Hour)
	return 0
}

// playOrphans is a node that leaves zombies to its parent.
func playOrphans(args []string) int {
	h := home(args[0])
	for range 5 {
		out, err := exec.Command("/bin/sh", "-c", "sleep 0.05 >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			panic(err)
		}
		h.add("orphans", strings.TrimSpace(string(out)))
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGTERM)
	h.add("starts", strconv.Itoa(os.Getpid()))
	<-sigs
	return 0
}

// playStatus asks supervise, after becoming another user where args say so.
func playStatus(args []string) int {
	if len(args) > 1 {
		uid, _ := strconv.Atoi(args[1])
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
			panic(err)
		}
	}
	st, err := NewSupervise(args[0]).Status(context.Background())
	fmt.Printf("%v %v\n", st.Running, err)
	return 0
}

// proc is a process of a test, with its lines.
type proc struct {
	*exec.Cmd
	lines chan string
	done  chan struct{}
	in    func(string)
	err   *bytes.Buffer
}

func spawnSelf(t *testing.T, args ...string) *proc {
	t.Helper()
	return spawnCmd(t, exec.Command(self(), args...))
}

func spawnCmd(t *testing.T, cmd *exec.Cmd) *proc {
	t.Helper()
	p := &proc{Cmd: cmd, lines: make(chan string, 64), done: make(chan struct{}), err: &bytes.Buffer{}}
	stdin, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = func(s string) { fmt.Fprintln(stdin, s) }
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = w, p.err
	p.WaitDelay = 5 * time.Second
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() {
		defer close(p.lines)
		in := bufio.NewScanner(r)
		for in.Scan() {
			p.lines <- in.Text()
		}
		r.Close()
	}()
	go func() {
		defer close(p.done)
		_ = p.Wait()
	}()
	t.Cleanup(func() {
		_ = p.Process.Signal(unix.SIGTERM) // supervise takes all of its node with it
		select {
		case <-p.done:
		case <-time.After(time.Second):
			_ = p.Process.Kill()
			<-p.done
		}
		if t.Failed() {
			t.Logf("%q said:\n%s", cmd.Args, p.err)
		}
	})
	return p
}

func (p *proc) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case line := <-p.lines:
		if !strings.HasPrefix(line, want) {
			t.Fatalf("said %q, want %q", line, want)
		}
	case <-time.After(30 * slower * time.Second):
		t.Fatalf("said nothing, want %q", want)
	}
}

func (p *proc) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
		return p.ProcessState.ExitCode()
	case <-time.After(30 * slower * time.Second):
		t.Fatal("it does not exit")
		return 0
	}
}

func holder(t *testing.T, a holderArgs) *proc {
	t.Helper()
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	p := spawnSelf(t, "play-holder", string(b))
	p.expect(t, "begin")
	return p
}

// patience is what a busy machine may add to any time: it stops and starts
// processes late. How long something took is logged.
const patience = 20 * time.Second

// eventually waits until something is so and tells how long that took. It should
// be so within the time given, and fails well after it.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > within*slower+patience {
			t.Fatalf("not even %s after %s: %s", patience, within*slower, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

func newHome(t *testing.T) home {
	t.Helper()
	h := home(t.TempDir())
	t.Cleanup(func() {
		if h.read("double") != "" {
			t.Error("two nodes ran at once")
		}
		if pid := h.pid(); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
			eventually(t, 5*time.Second, "the node is gone", func() bool { return h.pid() == 0 })
		}
	})
	return h
}

// ended tells whether pid is gone, or a zombie: its files are closed.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.HasPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" Z"))
}

// children are the processes whose parent is pid.
func children(pid int) (list []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(rest) > 1 && rest[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			list = append(list, n)
		}
	}
	return list
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*slower*time.Second)
	t.Cleanup(cancel)
	return ctx
}
