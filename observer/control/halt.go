package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrUnguarded says that somebody could start the node while a restore has it
// halted: nothing was touched.
var ErrUnguarded = errors.New("a restore in place could be started into")

const swapHint = "start it with --home, the node's home, before the command: `eddy supervise --home HOME --socket S -- CMD`"

// MayHalt implements Control.
func (c *supervised) MayHalt(ctx context.Context, leaveDown bool) error {
	st, err := c.status(ctx)
	switch {
	case notThere(err): // its manager starts it, or does not; that the node is down is proven later
		return nil
	case err != nil:
		return err
	case st.SwapFile == "":
		return hint.Add(fmt.Errorf("%w: %s does not look for %s", ErrUnguarded, c, swapName), swapHint)
	case leaveDown:
		return hint.Add(fmt.Errorf("%s starts the node as soon as the restore is done", c), "stop supervise itself, by its manager, then restore with --no-start")
	}
	return nil
}

// swapName is the file that keeps a node down, as seen from its home.
const swapName = ".eddy/swap.json"

func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// Halt implements Control. A supervise that is not there has no node.
func (c *supervised) Halt(ctx context.Context, r Request) error {
	r, err := r.withDefaults()
	if err != nil {
		return err
	}
	began := time.Now()
	st, err := c.status(ctx)
	switch {
	case notThere(err), err == nil && st.State == stateBlocked:
	case err != nil:
		return err
	default:
		if err := c.halt(ctx, r); err != nil {
			return fmt.Errorf("%s: halt: %w", c, err)
		}
	}
	if err := proveDown(ctx, r, began); err != nil {
		return fmt.Errorf("%s: halt: %w", c, err)
	}
	return nil
}

func (c *supervised) halt(ctx context.Context, r Request) error {
	l, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer l.conn.Close()
	st, err := l.ask(ctx, request{
		Op: opHold, DeadlineMS: r.Deadline.Milliseconds(), StopTimeoutMS: max(1, r.Timeout.Milliseconds()),
		Purpose: purposeRestore, Stage: r.Stage,
	}, r.Timeout+answerTimeout)
	if err == nil && st.State != stateBlocked {
		err = fmt.Errorf("the node is %s", st.State)
	}
	return err
}

// Start implements Control: supervise starts the node by itself once the swap file
// is gone.
func (c *supervised) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	for {
		st, err := c.status(ctx)
		if err == nil && st.State == stateRunning {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("the node is %s", st.State)
		}
		if sleep(ctx, pollEvery) != nil {
			return hint.Add(fmt.Errorf("%s: start: the node was not seen to run: %w", c, err), "let its manager start supervise, which starts the node")
		}
	}
}

// MayHalt implements Control.
func (e *guarded) MayHalt(ctx context.Context, _ bool) error {
	err := e.mayHalt(ctx)
	if err != nil {
		err = fmt.Errorf("%s: %w", e, err)
	}
	return err
}

func (e *guarded) mayHalt(ctx context.Context) error {
	if e.node.SwapFile == "" {
		return errors.New("no home is known, and so no swap file")
	}
	if by, ok := e.node.by.(halter); ok {
		return by.mayHalt(ctx)
	}
	st, _, err := e.node.status(ctx)
	if st != unknown {
		err = nil
	}
	return err
}

// Halt implements Control. The hold lock is taken meanwhile, so that no guard of an
// earlier hold is at work; no guard of its own watches over what follows.
func (e *guarded) Halt(ctx context.Context, r Request) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: halt: %w", e, err)
		}
	}()
	r, err = r.withDefaults()
	if err != nil {
		return err
	}
	if swapping(e.node.SwapFile) == nil {
		return fmt.Errorf("%w: there is no %s", ErrUnguarded, e.node.SwapFile)
	}
	lock, err := e.lockOfTheDying(ctx)
	if err != nil {
		return err
	}
	defer func() { err = join(err, lock.Unlock()) }()
	if rec, err := ReadHold(e.node.Dir); rec != nil || err != nil {
		return hint.Add(join(errors.New("an earlier hold is still open"), err), "the next `eddy backup` closes it")
	}
	began := time.Now()
	st, _, err := e.node.status(ctx)
	switch {
	case st == running, errors.Is(err, errChanging): // a node that cannot start is the likeliest to be restored
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Timeout)
		defer cancel()
		var failed error
		st, failed, err = e.node.stop(ctx, within, r.Timeout)
		if err != nil || st != stopped && st != dead {
			e.mayEnd = time.Now().Add(r.Timeout)
			return join(err, failed)
		}
	case st == unknown:
		return err
	}
	return proveDown(ctx, r, began)
}

// Start implements Control.
func (e *guarded) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: start: %w", e, err)
		}
	}()
	lock, err := e.lockOfTheDying(ctx)
	if err != nil {
		return err
	}
	defer func() { err = join(err, lock.Unlock()) }()
	if e.mayStart != nil {
		if err := e.mayStart(ctx); err != nil {
			return fmt.Errorf("the node is left down: %w", err)
		}
	}
	ctx = context.WithoutCancel(ctx)
	n := e.node
	if left := time.Until(e.mayEnd); left > 0 {
		return n.settle(ctx, left, n.StartTimeout, func(error) {})
	}
	return n.revive(ctx, true, n.StartTimeout, func(error) {})
}

var (
	_ halter = (*service)(nil)
	_ halter = (*container)(nil)
)

// mayHalt implements halter: the unit must have a condition that keeps it from
// being started by whomever, a reboot included; so that others may start it, but
// none may go down with it.
func (s *service) mayHalt(ctx context.Context) error {
	swapFile := s.swapFile
	u, err := s.systemd.unit(ctx, s.ref.Name)
	if err != nil {
		return err
	}
	if u.loadState != "loaded" {
		return hint.Add(fmt.Errorf("%s: systemd cannot load it (%s)", u.name, u.loadState), hint.Command("systemctl", "status", u.name)+" says why")
	}
	want := []string{filepath.Clean(swapFile)}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(filepath.Dir(swapFile))); err == nil {
		want = append(want, filepath.Join(dir, swapName))
	}
	if !slices.ContainsFunc(u.notWhile, func(p string) bool { return slices.Contains(want, filepath.Clean(p)) }) {
		return hint.Add(fmt.Errorf("%w: %s has no ConditionPathExists=!%s", ErrUnguarded, u.name, swapFile),
			"as root: "+dropIn(u.name, "[Unit]", "ConditionPathExists=!"+strings.ReplaceAll(swapFile, "%", "%%")))
	}
	if err := s.takesNoneDown(ctx, u); err != nil {
		return err
	}
	for _, verb := range []string{"stop", "start"} {
		if err := s.systemd.may(ctx, verb, u.name); err != nil {
			return err
		}
	}
	return nil
}

// mayHalt implements halter: an engine that is restarted starts what its policy
// says, whatever lies in the node's home.
func (c *container) mayHalt(ctx context.Context) error {
	i, err := c.look(ctx)
	if err != nil {
		return err
	}
	if _, err := i.state(); err == nil {
		if err := i.refusal(); err != nil {
			return err
		}
	}
	if i.restart != "no" {
		before, after := i.policies()
		return hint.Add(fmt.Errorf("%w: container %s has the restart policy %s", ErrUnguarded, i.name, i.restart),
			before+"; after the restore: "+after)
	}
	return nil
}

// policies are the commands that keep the engine from starting the container, and
// give it back the restart policy that it has.
func (i containerInfo) policies() (no, back string) {
	update := func(policy string) string {
		return hint.Command(dockerArgv(i.host, "update", "--restart", policy, i.name)...)
	}
	return update("no"), update(i.restart)
}

// MayHalt implements Control.
func (o ordered) MayHalt(ctx context.Context, leaveDown bool) (err error) {
	for _, c := range o {
		err = join(err, c.MayHalt(ctx, leaveDown))
	}
	return err
}

// Halt implements Control: what is down shows only when all are.
func (o ordered) Halt(ctx context.Context, r Request) error {
	down := r.Down
	for i, c := range o {
		if r.Down = nil; i == len(o)-1 {
			r.Down = down
		}
		if err := c.Halt(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Start implements Control. One that does not start keeps the others down: they
// could not work without it.
func (o ordered) Start(ctx context.Context) error {
	for _, c := range slices.Backward(o) {
		if err := c.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}
