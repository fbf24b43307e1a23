package alone

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary also plays an eddy that starts a server and is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ALONE_TEST_EDDY"); dir != "" {
		s, err := Start(Command{Argv: []string{"sleep", "300"}, Env: Bare(dir), Dir: dir, Log: filepath.Join(dir, "log")})
		fmt.Println(s.cmd.Process.Pid, err)
		<-s.Done()
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func script(dir, text string) Command {
	return Command{Argv: []string{"sh", "-c", text}, Env: Bare(dir), Dir: dir, Log: filepath.Join(dir, "log")}
}

func shell(t *testing.T, text string) *Server {
	t.Helper()
	s, err := Start(script(t.TempDir(), text))
	return started(t, s, err)
}

func started(t *testing.T, s *Server, err error) *Server {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// said waits until the log's last line begins with a word, and returns the rest of it.
func said(t *testing.T, s *Server, word string) string {
	t.Helper()
	for range 1000 {
		if tail := s.Tail(); len(tail) > 0 {
			if rest, ok := strings.CutPrefix(tail[len(tail)-1], word); ok {
				return strings.TrimSpace(rest)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it does not say %q: %q", word, s.Tail())
	return ""
}

// gone waits until a process is no more, or waits for nothing but its reaper.
func gone(t *testing.T, pid string) {
	t.Helper()
	if n, err := strconv.Atoi(pid); err != nil || n < 2 {
		t.Fatalf("%q is no process", pid)
	}
	for range 500 {
		if !lives(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %s lives", pid)
}

func lives(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// A server gets the environment it is given and no more, is asked to end, and is given
// the time for it.
func TestServer(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	s := shell(t, `trap 'echo ended well; exit 7' TERM; env; pwd; echo ready; while :; do sleep 0.01; done`)
	said(t, s, "ready")
	select {
	case <-s.Done():
		t.Fatal("it has ended")
	default:
	}
	begun := time.Now()
	if err := s.Stop(); err != nil || time.Since(begun) > stopWithin {
		t.Errorf("%v after %s", err, time.Since(begun))
	}
	said(t, s, "ended well")
	var code *exec.ExitError
	if !errors.As(s.Ended(), &code) || code.ExitCode() != 7 {
		t.Error(s.Ended())
	}
	log := strings.Join(s.Tail(), "\n")
	if strings.Contains(log, "hunter2") || !strings.Contains(log, "HOME="+s.cmd.Dir+"\n") || !strings.Contains(log, "\n"+s.cmd.Dir+"\n") {
		t.Error(log)
	}
	if st, err := os.Stat(s.log); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("the second stop: %v", err)
	}
}

// One that will not end is killed, and so is what it has started.
func TestStopKills(t *testing.T) {
	s := shell(t, `trap '' TERM; sleep 300 & echo child $!; wait`)
	child := said(t, s, "child")
	if err := s.stop(50 * time.Millisecond); err != nil {
		t.Error(err)
	}
	if s.Ended() == nil {
		t.Error("it ended by itself")
	}
	gone(t, child)
}

// One that ended leaves nobody behind, however it ended.
func TestEndsByItself(t *testing.T) {
	for _, code := range []int{0, 3} {
		s := shell(t, fmt.Sprintf(`sleep 300 & echo child $!; exit %d`, code))
		<-s.Done()
		if (s.Ended() == nil) != (code == 0) {
			t.Errorf("%d: %v", code, s.Ended())
		}
		gone(t, said(t, s, "child"))
	}
}

// The thread of who starts a server may end: the server does not.
func TestThreadEnds(t *testing.T) {
	c := script(t.TempDir(), `echo ready; sleep 300`)
	var s *Server
	var err error
	thread := onThread(func() { s, err = Start(c) })
	said(t, started(t, s, err), "ready")
	for range 500 {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread)); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	select {
	case <-s.Done():
		t.Errorf("it ended with a thread: %v", s.Ended())
	case <-time.After(50 * time.Millisecond):
	}
}

// onThread runs f on a thread that ends behind it: on any but the first, which the
// runtime keeps.
func onThread(f func()) (id int) {
	end := make(chan struct{})
	go func() {
		defer close(end)
		runtime.LockOSThread()
		if id = syscall.Gettid(); id == os.Getpid() {
			id = onThread(f) // elsewhere, for this one is taken
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-end
	return id
}

// A killed eddy takes its server along.
func TestEddyDies(t *testing.T) {
	dir := t.TempDir()
	eddy := exec.Command(os.Args[0])
	eddy.Env = append(os.Environ(), "ALONE_TEST_EDDY="+dir)
	eddy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := eddy.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := eddy.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || rest != "<nil>" || !lives(pid) {
		t.Errorf("%q, %v", line, err)
	}
	if err := eddy.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = eddy.Wait() // it was killed
	gone(t, pid)
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]Command{
		"no program":    {Argv: []string{"/nowhere/server"}, Log: filepath.Join(dir, "log")},
		"no log":        {Argv: []string{"true"}, Log: filepath.Join(dir, "none", "log")},
		"no directory":  {Argv: []string{"true"}, Log: filepath.Join(dir, "log"), Dir: filepath.Join(dir, "none")},
		"not in a PATH": {Argv: []string{"no-such-server"}, Log: filepath.Join(dir, "log")},
	} {
		if s, err := Start(c); err == nil || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func TestTail(t *testing.T) {
	s := &Server{log: filepath.Join(t.TempDir(), "log")}
	if got := s.Tail(); got != nil {
		t.Errorf("no log: %q", got)
	}
	for name, c := range map[string]struct {
		text, last string
		lines      int
	}{
		"empty":         {"\n\n", "", 0},
		"a line":        {"one\n", "one", 1},
		"a terminal's":  {"a\tb \x1b[31mred\r\n", "a b ?[31mred", 1},
		"no text":       {"\xff\xfe", "?", 1},
		"many":          {strings.Repeat("line\n", 100) + "last\n", "last", logLines},
		"a long line":   {strings.Repeat("x", 3*logTail), strings.Repeat("x", logTail), 1},
		"with a blank":  {"one\n\ntwo", "two", 3},
		"cut in a rune": {strings.Repeat("é", logTail) + "x", "?" + strings.Repeat("é", logTail/2-1) + "x", 1},
	} {
		if err := os.WriteFile(s.log, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := s.Tail()
		if len(got) != c.lines || c.lines > 0 && got[len(got)-1] != c.last {
			t.Errorf("%s: %d lines, %q", name, len(got), got)
		}
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	run := func(within time.Duration, script string) (string, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		said, err := Run(ctx, dir, []string{"PATH=" + os.Getenv("PATH"), "EDDY_DRILL_ADDRESS=here"}, "sh", "-c", script)
		return strings.TrimSpace(string(said)), err
	}
	if said, err := run(time.Minute, `echo "$EDDY_DRILL_ADDRESS $PWD"; echo wrong >&2`); err != nil || said != "here "+dir+"\nwrong" {
		t.Errorf("%q, %v", said, err)
	}
	if said, err := run(time.Minute, `echo no; exit 4`); err == nil || err.Error() != "exit status 4" || said != "no" {
		t.Errorf("%q, %v", said, err)
	}
	if said, err := run(time.Minute, `head -c 100000 /dev/zero | tr '\0' x; echo end`); err != nil || len(said) != maxSaid-1 || !strings.HasSuffix(said, "xend") {
		t.Errorf("%d bytes, %v", len(said), err)
	}
	begun := time.Now()
	child, err := run(time.Minute, `sleep 300 & echo $!`)
	if err != nil {
		t.Error(err)
	}
	gone(t, child)
	if child, err = run(300*time.Millisecond, `sleep 300 & echo $!; wait`); err == nil {
		t.Error("it had no limit")
	}
	gone(t, child)
	if took := time.Since(begun); took > stopWithin {
		t.Errorf("it took %s", took)
	}
	if _, err := Run(t.Context(), dir, nil, "/nowhere/check"); err == nil {
		t.Error("a program that is none")
	}
}

func TestPorts(t *testing.T) {
	ports, err := Ports(8)
	if err != nil || len(ports) != 8 {
		t.Fatal(ports, err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil || seen[p] {
			t.Fatalf("%d: %v", p, err)
		}
		defer l.Close()
		seen[p] = true
	}
}
