package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// node is the commands of a node and what eddy, its guard and Recover alike do
// with them. Its fields travel to the guard as JSON.
type node struct {
	Argv          Argv          `json:"argv"`
	Dir           string        `json:"dir"`
	StartTimeout  time.Duration `json:"start_timeout"`
	StatusTimeout time.Duration `json:"status_timeout"`
	SwapFile      string        `json:"swap_file"`

	blind atomic.Bool // started once without knowing whether it ran

	mu       sync.Mutex
	leftover []*child // commands that outlived their time, reaped when they end
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

// runState is what the status command says.
type runState int

const (
	unknown runState = iota
	running          // exit status 0
	stopped          // 3: not running, as the LSB has it
	dead             // 1 or 2: not running, but its pid or lock file is there: it did not stop properly
)

// status runs the status command. A state of unknown comes with an error.
func (n *node) status(ctx context.Context) (runState, string, error) {
	n.collect()
	ctx, cancel := context.WithTimeout(ctx, n.StatusTimeout)
	defer cancel()
	c, err := spawn(n.Argv.Status, nodeEnv(), true, nil)
	if err != nil {
		return unknown, "", fmt.Errorf("status: %w", err)
	}
	if err := c.wait(ctx); err != nil {
		_ = c.proc.kill() // a question may be cut off
		c.ended(time.Second)
		n.leave(c)
		return unknown, "", fmt.Errorf("status: %s did not end: %w", c.name, err)
	}
	defer c.free()
	if c.ws.Exited() {
		switch c.ws.ExitStatus() {
		case 0:
			return running, c.firstLine(), nil
		case 3:
			return stopped, "", nil
		case 1, 2:
			return dead, "", nil
		}
	}
	return unknown, "", hint.Add(fmt.Errorf("status: %w", c.outcome()),
		"the status command must exit with 0 when the node runs and with 3 when it is stopped")
}

// leave keeps a command that did not end in time, to be reaped later.
func (n *node) leave(c *child) {
	if c.done {
		c.free()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leftover = append(n.leftover, c)
}

// collect reaps the left commands that have ended by now.
func (n *node) collect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := n.leftover[:0]
	for _, c := range n.leftover {
		if c.ended(0) {
			c.free()
			continue
		}
		keep = append(keep, c)
	}
	n.leftover = keep
}

// ensureRunning starts the node where it does not run, and returns when its
// status says that it does. It gives up after StartTimeout. surelyDown says that
// the node was seen down before: then a status command that says nothing does
// not keep us from starting it, once.
//
// It may be called by several processes at the same time: the start lock is
// handed to the start command as descriptor 3, so that it stays taken while that
// command lives, whoever was killed meanwhile. (A node that inherits it frees it
// at once: unlocking is for all who share it.)
func (n *node) ensureRunning(ctx context.Context, surelyDown bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.StartTimeout, fmt.Errorf("it was given %s", n.StartTimeout))
	defer cancel()
	for {
		done, err := n.tryStart(ctx, surelyDown)
		if done || err != nil {
			return err
		}
		if sleep(ctx, pollEvery) != nil {
			return fmt.Errorf("start: another start is under way for too long: %w", context.Cause(ctx))
		}
	}
}

// revive is ensureRunning until it succeeds, at most limit long; 0: as long as
// it takes, or until ctx is done. failed hears of every attempt that failed.
func (n *node) revive(ctx context.Context, surelyDown bool, limit time.Duration, failed func(error)) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 200*time.Millisecond, 30*time.Second, limit
	op := func() error { return n.ensureRunning(ctx, surelyDown) }
	note := func(err error, _ time.Duration) { failed(err) }
	return backoff.RetryNotify(op, backoff.WithContext(b, ctx), note)
}

// settle is for a node that was told to stop by somebody who is gone: it starts
// the node when it is down. A node that runs may be about to end, so that this
// is believed only after window.
func (n *node) settle(ctx context.Context, window, limit time.Duration, failed func(error)) error {
	over := time.Now().Add(window)
	for {
		st, _, err := n.status(ctx)
		switch {
		case st == stopped || st == dead:
			return n.revive(ctx, true, limit, failed)
		case st == running && !time.Now().Before(over):
			return nil
		case st == unknown && !time.Now().Before(over):
			return err
		case st == unknown:
			failed(err)
		}
		if err := sleep(ctx, 4*pollEvery); err != nil {
			return err
		}
	}
}

// tryStart is one attempt. Neither done nor an error: somebody else is starting it.
func (n *node) tryStart(ctx context.Context, surelyDown bool) (done bool, err error) {
	st, _, err := n.status(ctx)
	if st == running {
		return true, nil
	}
	if st == unknown && (!surelyDown || n.blind.Load()) {
		return false, err
	}
	lock, err := fsx.TryLock(filepath.Join(n.Dir, startLockFile))
	if errors.Is(err, fsx.ErrLocked) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("start: %w", err)
	}
	// Between the question and the lock somebody may have started it.
	if st, _, _ = n.status(ctx); st == running {
		return true, lock.Unlock()
	}
	if err := swapping(n.SwapFile); err != nil {
		return false, join(fmt.Errorf("start: %w", err), lock.Unlock())
	}
	n.blind.Store(st == unknown)
	c, err := spawn(n.Argv.Start, nodeEnv(), false, lock.File())
	if err != nil {
		return false, join(fmt.Errorf("start: %w", err), lock.Unlock())
	}
	if err := c.wait(ctx); err != nil {
		// It may be the node itself, so it is left alone, and keeps the lock.
		n.leave(c)
		st, _, serr := n.status(context.WithoutCancel(ctx))
		if st == running {
			return true, lock.Unlock()
		}
		return false, join(hint.Add(fmt.Errorf("start: %s has not returned: %w", c.name, context.Cause(ctx)),
			"the start command must return when the node has been started, not be the node"), serr, lock.Close())
	}
	defer c.free()
	if err := lock.Unlock(); err != nil {
		return false, fmt.Errorf("start: %w", err)
	}
	return n.awaitStarted(ctx, c.outcome())
}

// awaitStarted asks until the status says running. A start command that failed
// gets one look: it may have found the node running.
func (n *node) awaitStarted(ctx context.Context, failed error) (bool, error) {
	for {
		st, _, err := n.status(ctx)
		if st == running {
			return true, nil
		}
		if failed != nil {
			return false, hint.Add(fmt.Errorf("start: %w", failed), "run the start command by hand and read what it says")
		}
		if sleep(ctx, pollEvery) != nil {
			return false, hint.Add(join(fmt.Errorf("start: the node does not run: %w", context.Cause(ctx)), err),
				"look at the node's log; a node that needs longer needs a longer start time-out")
		}
	}
}

// of is n with the commands of a journal, where it has them: they name what was
// stopped, whatever the configuration says by now.
func (n *node) of(a Argv) *node {
	m := &node{Argv: n.Argv, Dir: n.Dir, StartTimeout: n.StartTimeout, StatusTimeout: n.StatusTimeout, SwapFile: n.SwapFile}
	if a.Start != nil && a.Status != nil {
		m.Argv = a
	}
	return m
}
