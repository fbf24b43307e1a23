package alarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

const (
	hookTimeout = time.Minute
	hookDrain   = 2 * time.Second // for what a killed command left in the pipe
)

// Hook is a command of the operator's: program and arguments, run without a
// shell. It gets the message as text on stdin and its parts in the environment,
// beside the environment of eddy itself.
type Hook []string

// Run runs the command to its end, for a minute at most: then it and what it
// started are killed. vars are the parts, NAME=text. What the command prints goes
// to out; its exit code must be 0.
func (h Hook) Run(ctx context.Context, vars []string, text string, out io.Writer) error {
	return h.run(ctx, hookTimeout, vars, text, out)
}

func (h Hook) run(ctx context.Context, limit time.Duration, vars []string, text string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, h[0], h[1:]...)
	cmd.Env = os.Environ()
	for _, v := range vars {
		cmd.Env = append(cmd.Env, strings.ReplaceAll(v, "\x00", "")) // or nothing could be run
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookDrain
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // done, and left something running that has its pipe
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return hint.Add(fmt.Errorf("%s has not ended in time and was killed", h[0]), "a hook has a minute; let it start in the background what takes longer")
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", h[0], ctx.Err())
	}
	return hint.Add(fmt.Errorf("%s: %w", h[0], err), "run it by hand, as eddy's user; what it printed is in eddy's own output")
}
