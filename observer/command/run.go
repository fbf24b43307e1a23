package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/secret"
)

const (
	drain    = 2 * time.Second // for what a killed program left in its pipes
	maxText  = 64 << 10        // bytes of what a program tells
	maxLines = 200             // of stderr that go on
	maxLine  = 400             // bytes of each
)

// process is one run of a program.
type process struct {
	ctx   context.Context
	limit time.Duration
	argv  []string
	vars  map[string]string
	log   func(string)
}

func (c *Command) run(ctx context.Context, limit time.Duration, argv []string) process {
	return process{ctx: ctx, limit: limit, argv: argv, vars: c.o.EnvFiles, log: c.o.Log}
}

// text runs the program for what it prints.
func (p process) text() (string, error) {
	var b bytes.Buffer
	err := p.into(nil, &limited{&b, maxText})
	return b.String(), err
}

// into runs the program to its end. It must exit with 0, and end within the limit:
// then it is killed, with all that is in its process group.
func (p process) into(in io.Reader, out io.Writer) error {
	env, err := p.environment()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	said := &lines{log: p.log}
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, in, out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drain
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind; mostly nobody is there
	}
	said.end()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && p.ctx.Err() == nil:
		return hint.Add(fmt.Errorf("%s has not ended within %s and was killed", p.argv[0], p.limit), "if it needs longer, set `replica.command.timeout: DURATION`")
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if said.last != "" {
		err = fmt.Errorf("%w: %s", err, said.last)
	}
	return hint.Add(fmt.Errorf("%s: %w", p.argv[0], err), "run it by hand, as eddy's user")
}

// environment is eddy's own without what only eddy needs, and the secrets.
func (p process) environment() ([]string, error) {
	env := secret.Environ()
	for _, name := range sortedVars(p.vars) {
		value, err := secret.Read(p.vars[name], "value of a variable")
		if err != nil {
			return nil, fmt.Errorf("replica.command.env_files.%s: %w", name, err)
		}
		env = append(env, name+"="+value)
	}
	return env, nil
}

// limited takes so many bytes and drops the rest.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	take := b[:min(len(b), l.left)]
	l.left -= len(take)
	if _, err := l.w.Write(take); err != nil {
		return 0, err
	}
	return len(b), nil
}

// lines passes stderr on, a line at a time, up to a bound.
type lines struct {
	log  func(string)
	mu   sync.Mutex
	part []byte
	n    int
	last string // for the error of a program that fails
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range b {
		if c == '\n' {
			l.flush()
		} else if len(l.part) < maxLine {
			l.part = append(l.part, c)
		}
	}
	return len(b), nil
}

func (l *lines) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
}

func (l *lines) flush() {
	text := strings.TrimSpace(strings.ToValidUTF8(string(l.part), "?"))
	l.part = l.part[:0]
	if text == "" {
		return
	}
	l.last = text
	switch l.n++; {
	case l.log == nil || l.n > maxLines:
	case l.n == maxLines:
		l.log("(and more, which is left out)")
	default:
		l.log(text)
	}
}

// logger passes stdout on as lines.
type logger struct{ log func(string) }

func (l logger) Write(b []byte) (int, error) {
	if l.log != nil {
		for line := range strings.Lines(strings.ToValidUTF8(string(b), "?")) {
			if line = strings.TrimSpace(line); line != "" {
				l.log(line[:min(len(line), maxLine)])
			}
		}
	}
	return len(b), nil
}
