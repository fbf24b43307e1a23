package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// manager is what stops and starts a node: its operator's commands, say.
// Its methods may be called by many goroutines. None of them kills the node.
type manager interface {
	// status says how the node is; unknown comes with an error. since names this
	// run of it, or the one that ended, where the manager knows.
	status(ctx context.Context) (st runState, since string, err error)
	// fit refuses a hold of the running node that could not end well, and notes in
	// r what will name the node to whoever has to start it. It is also asked of a
	// node that is down: then it starts nothing, and may say ErrStopped with a hint.
	fit(ctx context.Context, r *Record) error
	// stop asks for the stop and waits for the manager's answer until ctx is done,
	// which is no error: what became of the node is asked next. failed is what the
	// manager said, err that it could not be asked at all.
	stop(ctx context.Context) (failed, err error)
	// start likewise. lock may stay taken by what outlives ctx: then err is
	// errNoReturn.
	start(ctx context.Context, lock *os.File) (failed, err error)
	// startArgv is the command by which a person starts the node.
	startArgv() []string
	// lookEvery is how often a held node is looked at; 0: when it is released.
	lookEvery() time.Duration
}

// armer is a manager that has something of its own to watch over a hold. It is
// asked before the stop.
type armer interface {
	arm(ctx context.Context) error
}

// halter is a manager that must be made to leave a node down that a restore halts.
type halter interface {
	// mayHalt says why it would not, or why it could not stop and start the node.
	mayHalt(ctx context.Context) error
}

// errNoReturn is returned by manager.start where the start is still under way.
var errNoReturn = errors.New("the start has not returned")

// errGone says that what was stopped is no more, or that somebody does not want it
// to run any more: there is nothing to start.
var errGone = errors.New("somebody took it away while it was held")

// errChanging says that the manager is about to start the node, or to stop it: a
// stop ends either.
var errChanging = errors.New("its manager is at work on it")

// node is a node and what eddy, its guard and Recover alike do with it. Its
// exported fields travel to the guard as JSON.
type node struct {
	Argv          Argv          `json:"argv,omitzero"`      // one of the three
	Container     ContainerRef  `json:"container,omitzero"` //
	Unit          UnitRef       `json:"unit,omitzero"`      //
	Dir           string        `json:"dir"`
	StartTimeout  time.Duration `json:"start_timeout"`
	StatusTimeout time.Duration `json:"status_timeout"`
	SwapFile      string        `json:"swap_file"`

	run   string // the one that a hold stopped; "": not told
	by    manager
	left  *leftovers
	blind atomic.Bool // started once without knowing whether it ran
	still atomic.Bool // stopped by a hold, and nobody of this process has started it since
	moved atomic.Bool // somebody else has
}

// managed gives n the manager that its fields name.
func (n *node) managed() *node {
	if n.left == nil {
		n.left = &leftovers{}
	}
	switch {
	case n.Container.Name != "":
		n.by = newContainer(n.Container)
	case n.Unit.Name != "":
		n.by = newService(n.Unit, n.Dir, n.SwapFile)
	default:
		n.by = &commands{argv: n.Argv, left: n.left}
	}
	return n
}

// runState is what the manager says of the node.
type runState int

const (
	unknown runState = iota
	running          // a status command's exit status 0
	stopped          // 3: not running, as the LSB has it
	dead             // 1 or 2: not running, but its pid or lock file is there: it did not stop properly
)

// status asks the manager. A state of unknown comes with an error. Of a node that
// stands still it notes when somebody else has started it.
func (n *node) status(ctx context.Context) (runState, string, error) {
	ctx, cancel := context.WithTimeout(ctx, n.StatusTimeout)
	defer cancel()
	st, since, err := n.by.status(ctx)
	if n.still.Load() && (st == running || since != "" && since != n.run || errors.Is(err, errGone)) {
		n.moved.Store(true)
	}
	return st, since, err
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
// it takes, or until ctx is done, or until the node is gone for good (errGone).
// failed hears of every attempt that failed.
func (n *node) revive(ctx context.Context, surelyDown bool, limit time.Duration, failed func(error)) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 200*time.Millisecond, 30*time.Second, limit
	op := func() error {
		err := n.ensureRunning(ctx, surelyDown)
		if errors.Is(err, errGone) {
			err = backoff.Permanent(err)
		}
		return err
	}
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
		case st == unknown && (!time.Now().Before(over) || errors.Is(err, errGone)):
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
	if st == unknown && (!surelyDown || n.blind.Load() || errors.Is(err, errGone)) {
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
	n.still.Store(false)
	failed, err := n.by.start(ctx, lock.File())
	switch {
	case errors.Is(err, errNoReturn):
		st, _, serr := n.status(context.WithoutCancel(ctx))
		if st == running {
			return true, lock.Unlock()
		}
		return false, join(fmt.Errorf("start: %w", err), serr, lock.Close())
	case err != nil:
		n.still.Store(true) // nobody was asked
		return false, join(fmt.Errorf("start: %w", err), lock.Unlock())
	}
	if err := lock.Unlock(); err != nil {
		return false, fmt.Errorf("start: %w", err)
	}
	return n.awaitStarted(ctx, failed)
}

// awaitStarted asks until the status says running. A start that failed gets one
// look: it may have found the node running.
func (n *node) awaitStarted(ctx context.Context, failed error) (bool, error) {
	for {
		st, _, err := n.status(ctx)
		if st == running {
			return true, nil
		}
		if failed != nil {
			return false, fmt.Errorf("start: %w", failed)
		}
		if errors.Is(err, errGone) {
			return false, err
		}
		if sleep(ctx, pollEvery) != nil {
			return false, hint.Add(join(fmt.Errorf("start: the node does not run: %w", context.Cause(ctx)), err),
				"look at the node's log")
		}
	}
}

// of is n as a journal names it: what was stopped, whatever the configuration
// says by now.
func (n *node) of(r Record) *node {
	m := &node{
		Argv: n.Argv, Container: n.Container, Unit: n.Unit, Dir: n.Dir, StartTimeout: n.StartTimeout, StatusTimeout: n.StatusTimeout,
		SwapFile: n.SwapFile, run: r.Identity, left: n.left,
	}
	if r.Argv.Start != nil && r.Argv.Status != nil {
		m.Argv = r.Argv
	}
	if r.Container.ID != "" {
		m.Container = r.Container
	}
	if r.Unit.Name != "" {
		m.Unit = r.Unit
	}
	return m.managed()
}
