package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// ExecConfig says how a node is stopped and started by commands. They run
// without a shell, each as a session of its own, without eddy's AWS_* and EDDY_*
// variables.
type ExecConfig struct {
	// Stop asks the node to stop. It may return before the node has stopped, must
	// never kill it, and fails where the stop was no clean one.
	Stop []string
	// Start starts the node and returns. It may leave a daemon behind; its output
	// goes to /dev/null, as the daemon would inherit it. Descriptor 3 is a lock
	// that it need not care for.
	Start []string
	// Status exits with 0 when the node runs, 3 when it is stopped, 1 or 2 when it
	// is dead but left its pid or lock file (LSB). Anything else is an error. The
	// first line of its output may name this very run of the node.
	Status []string

	// MayStart, where set, is asked by Recover before it starts a node that was
	// left down: much may have happened since. An error leaves node and journal
	// as they are.
	MayStart func(context.Context) error `json:"-"`

	Dir      string // workdir, for the journal; must exist
	SwapFile string // see SuperviseOptions; "": none

	StartTimeout  time.Duration // from the start command to a status that says running; 0: 120 s
	StatusTimeout time.Duration // 0: 10 s
	// Linger is how long the guard watches over a node that did not stop in time,
	// to start it in case it ends after all. Until then nobody else can hold the
	// node. 0: 15 minutes.
	Linger time.Duration
}

// NewExec controls a node by commands. The guard is this very executable, run as
// "eddy guard": the program must call RunGuard for that verb.
func NewExec(c ExecConfig) (Control, error) {
	if c.StartTimeout == 0 {
		c.StartTimeout = 120 * time.Second
	}
	if c.StatusTimeout == 0 {
		c.StatusTimeout = 10 * time.Second
	}
	if c.Linger == 0 {
		c.Linger = 15 * time.Minute
	}
	for name, argv := range map[string][]string{"stop": c.Stop, "start": c.Start, "status": c.Status} {
		if err := checkArgv(argv); err != nil {
			return nil, hint.Add(fmt.Errorf("control.exec.%s: %w", name, err), "set replica.control.exec.stop, replica.control.exec.start and replica.control.exec.status, each as a list of words")
		}
	}
	if c.Dir == "" {
		return nil, errors.New("control.exec: no workdir for the hold journal")
	}
	if c.StartTimeout < 0 || c.StatusTimeout < 0 || c.Linger < 0 {
		return nil, errors.New("control.exec: a time-out must not be negative")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("control.exec: %w", err)
	}
	return &guarded{
		name: controlExec + " " + c.Start[0], control: controlExec, linger: c.Linger, mayStart: c.MayStart,
		node: (&node{
			Argv: Argv{Stop: c.Stop, Start: c.Start, Status: c.Status}, Dir: dir, SwapFile: c.SwapFile,
			StartTimeout: c.StartTimeout, StatusTimeout: c.StatusTimeout,
		}).managed(),
	}, nil
}

// commands is the manager of a node that is stopped and started by commands.
type commands struct {
	argv Argv
	left *leftovers
}

// leftovers are commands that outlived their time. They are reaped when they end.
type leftovers struct {
	mu   sync.Mutex
	list []*child
}

// nodeEnv is the environment of the node's commands: ours, without what is only
// for eddy. A node that a start command leaves behind must not carry the
// bucket's credentials about.
func nodeEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "AWS_") && !strings.HasPrefix(kv, "EDDY_") {
			env = append(env, kv)
		}
	}
	return env
}

func (c *commands) status(ctx context.Context) (runState, string, error) {
	c.left.collect()
	cmd, err := spawn(c.argv.Status, nodeEnv(), true, nil)
	if err != nil {
		return unknown, "", fmt.Errorf("status: %w", err)
	}
	if err := cmd.wait(ctx); err != nil {
		_ = cmd.proc.kill() // a question may be cut off
		cmd.ended(time.Second)
		c.left.leave(cmd)
		return unknown, "", fmt.Errorf("status: %s did not end: %w", cmd.name, err)
	}
	defer cmd.free()
	if cmd.ws.Exited() {
		switch cmd.ws.ExitStatus() {
		case 0:
			return running, cmd.firstLine(), nil
		case 3:
			return stopped, "", nil
		case 1, 2:
			return dead, "", nil
		}
	}
	return unknown, "", hint.Add(fmt.Errorf("status: %w", cmd.outcome()),
		"run it by hand, as eddy's user: "+hint.Command(c.argv.Status...)+" must exit with 0 when the node runs and with 3 when it is stopped")
}

// fit implements manager: whether the commands work shows only when they are run.
func (c *commands) fit(_ context.Context, r *Record) error {
	r.Argv = c.argv
	return nil
}

// startArgv implements manager.
func (c *commands) startArgv() []string { return c.argv.Start }

// lookEvery implements manager: a process for each look is too much.
func (c *commands) lookEvery() time.Duration { return 0 }

func (c *commands) stop(ctx context.Context) (failed, err error) {
	cmd, err := spawn(c.argv.Stop, nodeEnv(), true, nil)
	if err != nil {
		return nil, err
	}
	if cmd.wait(ctx) != nil { // its time is over; what became of the node is asked next
		c.left.leave(cmd)
		return nil, nil
	}
	defer cmd.free()
	return hint.Add(cmd.outcome(), "run it by hand, as eddy's user, and read what it says: "+hint.Command(c.argv.Stop...)), nil
}

func (c *commands) start(ctx context.Context, lock *os.File) (failed, err error) {
	cmd, err := spawn(c.argv.Start, nodeEnv(), false, lock)
	if err != nil {
		return nil, err
	}
	if err := cmd.wait(ctx); err != nil {
		c.left.leave(cmd) // it may be the node itself, so it is left alone, and keeps the lock
		return nil, hint.Add(fmt.Errorf("%w: %s: %w", errNoReturn, cmd.name, context.Cause(ctx)),
			"the start command must return when the node has been started, not be the node: "+hint.Command(c.argv.Start...))
	}
	defer cmd.free()
	return hint.Add(cmd.outcome(), "run it by hand, as eddy's user, and read what it says: "+hint.Command(c.argv.Start...)), nil
}

// leave keeps a command that did not end in time, to be reaped later.
func (l *leftovers) leave(c *child) {
	if c.done {
		c.free()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, c)
}

// collect reaps the left commands that have ended by now.
func (l *leftovers) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := l.list[:0]
	for _, c := range l.list {
		if c.ended(0) {
			c.free()
			continue
		}
		keep = append(keep, c)
	}
	l.list = keep
}
