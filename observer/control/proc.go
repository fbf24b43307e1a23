package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is another process, held by a pidfd: unlike a pid it never comes to
// mean somebody else.
type process struct{ fd int }

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return &process{fd: fd}, nil
}

// mayKill tells whether this process has the right to kill p. It has not where
// the two belong to different users, or live in pid namespaces beside each other.
func (p *process) mayKill() bool {
	err := unix.PidfdSendSignal(p.fd, 0, nil, 0)
	return err == nil || errors.Is(err, unix.ESRCH)
}

// kill ends p at once, also when it is stopped (SIGSTOP). A process that is gone
// already is no error.
func (p *process) kill() error {
	err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the holder: %w", err)
	}
	return nil
}

// exited waits up to d for the end of p; its files, and with them its database
// locks, are closed by then.
func (p *process) exited(d time.Duration) bool {
	end := time.Now().Add(d)
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		if n > 0 {
			return true
		}
		if (err == nil || !errors.Is(err, unix.EINTR)) && !time.Now().Before(end) {
			return false
		}
	}
}

func (p *process) close() { _ = unix.Close(p.fd) }

// child is a command that eddy runs for the operator: stop, start or status. It
// is a session of its own, so that a ctrl-C at eddy's terminal does not reach
// the node, and it is never tied to eddy by a pipe: a pipe that breaks when eddy
// is killed would kill what the command is about to do.
type child struct {
	name string
	pid  int
	proc *process
	out  *os.File // an unlinked memory file, nil: /dev/null
	ws   syscall.WaitStatus
	done bool
}

// spawn starts argv without a shell. With keep the output is kept for messages;
// a command that leaves a daemon behind must not have it, as the daemon would
// write there for ever. lock, when set, becomes descriptor 3 of the command.
func spawn(argv, env []string, keep bool, lock *os.File) (c *child, err error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	c = &child{name: argv[0]}
	out := null
	if keep {
		fd, err := unix.MemfdCreate("eddy-output", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("memfd_create: %w", err)
		}
		c.out = os.NewFile(uintptr(fd), "output")
		out = c.out
	}
	files := []uintptr{null.Fd(), out.Fd(), out.Fd()}
	if lock != nil {
		files = append(files, lock.Fd())
	}
	pidfd := -1
	c.pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		c.free()
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	c.proc = &process{fd: pidfd}
	return c, nil
}

// ended waits up to d for the command to end and reaps it.
func (c *child) ended(d time.Duration) bool {
	if c.done {
		return true
	}
	if !c.proc.exited(d) {
		return false
	}
	for {
		_, err := syscall.Wait4(c.pid, &c.ws, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	c.done = true
	return true
}

// wait waits until the command ended or ctx is done.
func (c *child) wait(ctx context.Context) error {
	for !c.ended(20 * time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// output is what the command wrote, at most its first 4 KiB.
func (c *child) output() []byte {
	if c.out == nil {
		return nil
	}
	b := make([]byte, 4096)
	n, _ := c.out.ReadAt(b, 0) // a short read is the common case: io.EOF
	return b[:n]
}

// firstLine is the first line of the output that says something.
func (c *child) firstLine() string {
	for line := range bytes.Lines(c.output()) {
		if s := printable(string(line), 200); s != "" {
			return s
		}
	}
	return ""
}

func (c *child) free() {
	if c.out != nil {
		c.out.Close()
	}
	if c.proc != nil {
		c.proc.close()
	}
}

// outcome says how the command ended, nil for exit status 0.
func (c *child) outcome() error {
	if c.ws.Exited() && c.ws.ExitStatus() == 0 {
		return nil
	}
	err := fmt.Errorf("%s: %s", c.name, describe(c.ws))
	if line := c.firstLine(); line != "" {
		err = fmt.Errorf("%w: %s", err, line)
	}
	return err
}

func describe(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return fmt.Sprintf("killed by %s", unix.SignalName(ws.Signal()))
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

// printable makes text of another program fit for one line of a message: control
// characters become spaces, and it is cut to n bytes.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// join is errors.Join on one line, as an operator reads it.
func join(errs ...error) (all error) {
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
