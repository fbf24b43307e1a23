package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Process is a server that runs in the background. It is in a process group of
// its own, so that a ctrl-C at the terminal reaches the program under test and
// not the server that the program still needs to end well.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been reaped
	err  error         // what Wait said; read after done

	stop sync.Once
}

// StartProcess starts argv with exactly env as its environment and its output
// appended to the file at log.
func StartProcess(argv, env []string, log string) (*Process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{}
	return startProcess(cmd, log)
}

func startProcess(cmd *exec.Cmd, log string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own descriptor
	cmd.Stdout, cmd.Stderr = out, out
	// The kernel kills the server when we die without a chance to stop it. The
	// signal is tied to the thread that started the child; the runtime keeps its
	// threads unless a goroutine locked to one exits, which nothing here does.
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Args[0], err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid is the number of the process, until it has ended.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended, for whatever reason.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended returns how the process ended. It may be called once Done is closed.
func (p *Process) Ended() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// Stop asks the process to end and kills it when it has not after grace. It
// returns when the process is gone; calling it again does nothing.
func (p *Process) Stop(grace time.Duration) error {
	var err error
	p.stop.Do(func() {
		if err = p.signal(syscall.SIGTERM); err != nil {
			return
		}
		select {
		case <-p.done:
			return
		case <-time.After(grace):
		}
		if err = p.signal(syscall.SIGKILL); err == nil {
			<-p.done
			err = fmt.Errorf("%s did not stop within %s and was killed", p.cmd.Path, grace)
		}
	})
	return err
}

func (p *Process) signal(s os.Signal) error {
	err := p.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// waitReady polls ready until it returns nil, the process ends, or ctx does.
func (p *Process) waitReady(ctx context.Context, ready func(context.Context) error) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("ended before it was ready: %s", p.Ended())
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (last answer: %w)", ctx.Err(), err)
		case <-t.C:
		}
	}
}
