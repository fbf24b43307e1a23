package alone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	stopWithin = 10 * time.Second // for each of the two steps of a stop
	logLines   = 20               // of a server that did not pass
	logTail    = 16 << 10         // bytes of its log that these are taken of
	maxSaid    = 16 << 10         // bytes of what a program says
	drain      = 2 * time.Second  // for what left a program's group and has its output
)

// Command is how a server is run.
type Command struct {
	Argv []string // in the foreground; the first is looked for in PATH
	Env  []string // all of it: nothing is added
	Dir  string
	Log  string // the file that its output is appended to
}

// Server is one that was started. Stop must be called.
type Server struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // once done is closed
}

// Start starts a server.
func Start(c Command) (*Server, error) {
	out, err := os.OpenFile(c.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the server has its own descriptor
	s := &Server{cmd: exec.Command(c.Argv[0], c.Argv[1:]...), log: c.Log, done: make(chan struct{})}
	s.cmd.Env = append([]string{}, c.Env...) // never nil, which would be all of eddy's own
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = c.Dir, out, out
	s.cmd.SysProcAttr = dies()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // see dies
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.err = reap(s.cmd)
			close(s.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return s, nil
}

// dies makes the kernel kill a child where eddy dies without a chance to. The kernel
// does so already when the thread ends that forked the child (PR_SET_PDEATHSIG in
// prctl(2)), and the runtime ends a thread whose goroutine returns while it is locked
// to it, as that of a drill in a network of its own does. So who starts a child keeps
// the thread for himself until the child has ended.
func dies() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// reap waits until a child has ended, and kills what it left in its group while its
// number, and so the group's, cannot be anybody else's.
func reap(cmd *exec.Cmd) error {
	for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // mostly nobody is there
	return cmd.Wait()
}

// Argv is what was run.
func (s *Server) Argv() []string { return s.cmd.Args }

// Done is closed when the server has ended, with all that is in its group.
func (s *Server) Done() <-chan struct{} { return s.done }

// Ended is how it ended; nil stands for exit code 0. It may be called once Done is closed.
func (s *Server) Ended() error { return s.err }

// Stop ends the server and returns when it is gone. It is asked to end, and after ten
// seconds killed; what else is in its process group is killed. A second Stop, and that
// of a server that has ended, does nothing.
func (s *Server) Stop() error {
	return s.stop(stopWithin)
}

func (s *Server) stop(within time.Duration) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // one that has ended needs none
	if s.gone(within) {
		return nil
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it was there a moment ago
	if s.gone(within) {
		return nil
	}
	return fmt.Errorf("the drill's server (pid %d) does not end", s.cmd.Process.Pid)
}

func (s *Server) gone(within time.Duration) bool {
	select {
	case <-s.done:
		return true
	case <-time.After(within):
		return false
	}
}

// Tail is the end of the server's log, 20 lines at most, as a terminal may show them.
// A log that cannot be read has none.
func (s *Server) Tail() []string {
	f, err := os.Open(s.log)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > logTail {
		_, _ = f.Seek(-logTail, io.SeekEnd) // else it is read from its beginning
	}
	b, err := io.ReadAll(io.LimitReader(f, logTail))
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return nil
	}
	lines := strings.Split(strings.ToValidUTF8(string(b), "?"), "\n")
	lines = lines[max(0, len(lines)-logLines):]
	for i, l := range lines {
		lines[i] = strings.Map(shown, strings.TrimRight(l, "\r"))
	}
	return lines
}

func shown(r rune) rune {
	switch {
	case r == '\t':
		return ' '
	case !unicode.IsGraphic(r):
		return '?'
	}
	return r
}

// Run runs a program beside a server to its end, and returns the last 16 KiB of what it
// said. It is killed with ctx; what it left in its process group is killed, too.
func Run(ctx context.Context, dir string, env []string, argv ...string) (said []byte, err error) {
	runtime.LockOSThread() // see dies
	defer runtime.UnlockOSThread()
	var out tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, append([]string{}, env...), drain
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = dies()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = reap(cmd)
	return out.b.Bytes(), err
}

// tail keeps the end of what is written. The buffer is not embedded: its ReadFrom
// would be found, and know no bound.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(b []byte) (int, error) {
	n := len(b)
	b = b[max(0, n-maxSaid):]
	t.b.Next(max(0, t.b.Len()+len(b)-maxSaid))
	_, err := t.b.Write(b)
	return n, err
}

// Ports are so many of 127.0.0.1 that nobody listens at. They are free only until
// somebody else takes them.
func Ports(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are open until all are known, so that no two are the same
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Bare is an environment of PATH and HOME alone: variables of the member beside it
// must not make a copy a member.
func Bare(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
}
