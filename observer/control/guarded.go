package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// guarded is a node whose holds have a journal, and a guard process that outlives
// eddy.
type guarded struct {
	name     string // for messages
	control  string // for the journal
	node     *node
	linger   time.Duration
	early    time.Duration // how long before a hold's deadline its guards act, to be in time
	mayStart func(context.Context) error

	mu     sync.Mutex
	guards []*guard // left behind to watch on; reaped once they are gone

	mayEnd time.Time // until then the end of a node whose halt failed is reckoned with
}

var _ Control = (*guarded)(nil)

func (e *guarded) String() string { return e.name }

func (e *guarded) Status(ctx context.Context) (Status, error) {
	st, since, err := e.node.status(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("%s: %w", e, err)
	}
	rec, err := ReadHold(e.node.Dir)
	if err != nil && !errors.Is(err, ErrTorn) {
		return Status{}, fmt.Errorf("%s: %w", e, err)
	}
	return Status{Running: st == running, Held: rec != nil, Since: since}, nil
}

// lock takes the hold lock.
func (e *guarded) lock() (*fsx.Lock, error) { return e.lockBy(fsx.TryLock) }

// lockOfTheDying takes the hold lock, also from somebody who was killed just now.
func (e *guarded) lockOfTheDying(ctx context.Context) (*fsx.Lock, error) {
	return e.lockBy(func(path string) (*fsx.Lock, error) { return fsx.LockSoon(ctx, path) })
}

func (e *guarded) lockBy(take func(path string) (*fsx.Lock, error)) (*fsx.Lock, error) {
	l, err := take(filepath.Join(e.node.Dir, lockFile))
	if errors.Is(err, fsx.ErrLocked) {
		err = ErrHeld
		if rec, rerr := ReadHold(e.node.Dir); rec != nil && rerr == nil {
			err = fmt.Errorf("%w: %s", err, rec)
		}
		return nil, hint.Add(err, "another eddy is at work, or the guard of an earlier one still watches: wait, or read guard.log in "+e.node.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("take the hold lock: %w", err)
	}
	e.reap()
	return l, nil
}

// reap collects the guards that were left behind and are gone.
func (e *guarded) reap() {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := e.guards[:0]
	for _, g := range e.guards {
		if !g.reap(0) {
			keep = append(keep, g)
		}
	}
	e.guards = keep
}

func (e *guarded) leave(g *guard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.guards = append(e.guards, g)
}

func (e *guarded) Hold(ctx context.Context, r Request) (Hold, error) {
	h, err := e.hold(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s: hold: %w", e, err)
	}
	return h, nil
}

func (e *guarded) hold(ctx context.Context, r Request) (*guardedHold, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	if r.Deadline -= e.early; r.Deadline <= r.Timeout {
		return nil, hint.Add(fmt.Errorf("the node may take %s to stop, and its guards %s to start it, but the whole hold only %s", r.Timeout, e.early, r.Deadline+e.early),
			fmt.Sprintf("set `replica.control.deadline: %s`, or more", r.Timeout+2*e.early+time.Minute))
	}
	// A workdir below the job's own is ours to make; only its parent must be there.
	if err := os.Mkdir(e.node.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("workdir: %w", err)
	}
	lock, err := e.lock()
	if err != nil {
		return nil, err
	}
	rec, err := e.mayHold(ctx, r)
	if err == nil {
		err = rec.write(e.node.Dir)
	}
	if err != nil {
		return nil, join(err, lock.Unlock())
	}
	began := time.Now()
	watching, cancel := context.WithCancel(context.Background())
	h := &guardedHold{e: e, node: e.node.of(rec), lock: lock, lost: make(chan struct{}), release: cancel}
	h.guard, err = startGuard(ctx, lock, guardMsg{
		Op: gArm, Node: h.node, Unlock: r.Unlock, DeadlineMS: r.Deadline.Milliseconds(), WatchMS: (r.Timeout + e.linger).Milliseconds(),
	}, e.node.Dir)
	if err != nil { // nothing was stopped yet
		cancel()
		return nil, join(err, removeRecord(e.node.Dir), lock.Unlock())
	}
	h.wg.Go(func() { h.watch(watching, began.Add(r.Deadline)) })
	if err := h.stop(ctx, r, began); err != nil {
		return nil, err
	}
	return h, nil
}

// mayHold makes the record of a hold, where one may begin now.
func (e *guarded) mayHold(ctx context.Context, r Request) (rec Record, err error) {
	if old, err := ReadHold(e.node.Dir); old != nil || err != nil {
		return rec, hint.Add(join(errors.New("an earlier hold is still open"), err), "`eddy backup` closes it first")
	}
	if err := swapping(e.node.SwapFile); err != nil {
		return rec, err
	}
	if err := notProcessOne(os.Getpid()); err != nil {
		return rec, err
	}
	st, since, err := e.node.status(ctx)
	if err != nil {
		return rec, err
	}
	if st != running {
		if err := e.node.by.fit(ctx, &rec); errors.Is(err, ErrStopped) && hint.Of(err) != "" {
			return rec, err // it knows more
		}
		return rec, hint.Add(ErrStopped, "somebody stopped it: "+byHand(e.node.by)+" starts it; then `eddy backup`")
	}
	boot, err := fsx.BootID()
	if err != nil {
		return rec, fmt.Errorf("read the boot id: %w", err)
	}
	now := time.Now().UTC().Round(0)
	rec = Record{
		Format: recordFormat, MinReader: recordFormat, Kind: kindHold, Control: e.control,
		BootID: boot, Started: now, Deadline: now.Add(r.Deadline), StopMS: r.Timeout.Milliseconds(),
		Purpose: r.Purpose, Stage: printable(r.Stage, maxWord), Identity: since, PID: pidOfThis(),
	}
	return rec, e.node.by.fit(ctx, &rec)
}

// notProcessOne refuses an eddy that no process of its own container may kill:
// the kernel shields process 1. If it froze, what it has locked stayed locked.
func notProcessOne(pid int) error {
	if pid != 1 {
		return nil
	}
	return hint.Add(errors.New("eddy is process 1 of its container, which its guard could not kill if it froze"),
		"give its container an init: docker run --init, or init: true in the compose file")
}

const taintedHint = "what lies on its disk is not a clean state; look at the node's log"

// guardFirst is how long after the deadline a guard that seems alive is taken
// for frozen.
const guardFirst = time.Second

// guardedHold is a node that its manager stopped.
type guardedHold struct {
	e     *guarded
	node  *node // as the journal names it
	lock  *fsx.Lock
	guard *guard
	wg    sync.WaitGroup

	lostOnce sync.Once
	lost     chan struct{}
	release  func() // ends watch

	mu   sync.Mutex // of Release
	over bool       // journal, lock and guard are given up
	ends error      // what Release had to say
}

func (h *guardedHold) Lost() <-chan struct{} { return h.lost }

func (h *guardedHold) lose() { h.lostOnce.Do(func() { close(h.lost) }) }

// stop stops the node and proves it. On an error the node runs, or h's guard
// watches over it (ErrDown, ErrStopping), and h is over.
func (h *guardedHold) stop(ctx context.Context, r Request, began time.Time) error {
	n := h.node
	if err := h.guard.send(guardMsg{Op: gStopping}); err != nil {
		return join(fmt.Errorf("tell the guard: %w", err), h.Release(ctx))
	}
	// Once asked for, a stop goes on whatever becomes of ctx: it is seen through.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Timeout-time.Since(began))
	defer cancel()
	if by, ok := n.by.(armer); ok {
		if err := by.arm(within); err != nil {
			return join(fmt.Errorf("stop: %w", err), h.Release(ctx))
		}
	}
	st, failed, err := n.stop(ctx, within, r.Timeout)
	switch {
	case errors.Is(err, ErrStopTimeout):
		return join(err, ErrStopping, h.abandon(h.e.linger))
	case err != nil:
		return join(err, h.Release(ctx))
	}
	switch {
	case st != stopped && st != dead:
		// It may have been asked all the same, so it is watched for a while.
		return join(fmt.Errorf("stop: %w", failed), ErrStopping, h.abandon(r.Timeout))
	case failed != nil:
		return join(hint.Add(fmt.Errorf("%w: stop: %w", ErrKilled, failed), taintedHint), h.Release(ctx))
	case st == dead:
		return join(hint.Add(fmt.Errorf("%w: its status says that it is dead, not stopped", ErrKilled), taintedHint), h.Release(ctx))
	}
	n.still.Store(true)
	if err := h.guard.send(guardMsg{Op: gHeld}); err != nil {
		return join(fmt.Errorf("tell the guard: %w", err), h.Release(ctx))
	}
	err = context.Cause(ctx)
	if err == nil {
		err = proveDown(ctx, r, began)
	}
	if err != nil {
		return join(err, h.Release(ctx))
	}
	return nil
}

// stop stops the node and returns its state: that it is down, or failed, which is
// what its manager said of the stop. within is the time that it has.
func (n *node) stop(ctx, within context.Context, timeout time.Duration) (st runState, failed, err error) {
	failed, err = n.by.stop(within)
	if err != nil {
		return unknown, nil, fmt.Errorf("stop: %w", err)
	}
	last := unknown
	for {
		var serr error
		// A question is not cut short by the end of the time: it has its own.
		if st, _, serr = n.status(context.WithoutCancel(ctx)); st != unknown {
			last = st
		}
		if st == stopped || st == dead || failed != nil {
			return st, failed, nil
		}
		if sleep(within, pollEvery) != nil {
			return st, nil, join(hint.Add(fmt.Errorf("%w: %s after %s", ErrStopTimeout, state(last), timeout),
				"it was not killed, and is started again if it ends; raise replica.control.timeout if it only needs longer"), serr)
		}
	}
}

func state(st runState) string {
	if st == running {
		return "it still runs"
	}
	return "its status cannot be told"
}

// watch listens to the guard, and looks at the node, until ctx is done. A guard
// that dies ends the hold, too: nobody would start the node if eddy died next.
// What then remains of its duty at the deadline is done here.
func (h *guardedHold) watch(ctx context.Context, deadline time.Time) {
	late := time.NewTimer(time.Until(deadline) + guardFirst)
	defer late.Stop()
	var look <-chan time.Time
	if every := h.node.by.lookEvery(); every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		look = t.C
	}
	for over := false; !over && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-h.guard.gone: // dead, or acting
			over = true
			late.Reset(time.Until(deadline))
		case <-late.C:
			late.Reset(0)
			over = true
		case <-look:
			_, _, _ = h.node.status(ctx) // it notes what we want to know
			if over = h.node.moved.Load(); over {
				late.Reset(time.Until(deadline))
			}
		}
	}
	if ctx.Err() != nil {
		return
	}
	h.lose()
	select {
	case <-ctx.Done():
		return
	case <-late.C:
	}
	_ = h.guard.send(guardMsg{Op: gReleasing})      // it may be frozen, and wake up
	_ = h.node.revive(ctx, true, 0, func(error) {}) // Release, which ends this, reports
}

// Release starts the node. What it cannot do within StartTimeout it leaves to
// the guard, or to the next eddy.
func (h *guardedHold) Release(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	n := h.node
	if h.over {
		if h.ends != nil {
			if st, _, _ := n.status(ctx); st == running {
				h.ends = nil
			}
		}
		return h.ends
	}
	h.release()
	_ = h.guard.send(guardMsg{Op: gReleasing}) // a dead guard kills nobody
	gone := n.revive(ctx, true, n.StartTimeout, func(error) {})
	if n.moved.Load() {
		h.lose()
	}
	if gone != nil && !errors.Is(gone, errGone) {
		next := "the guard goes on trying"
		if h.guard.send(guardMsg{Op: gHandover}) != nil {
			next = "its guard is dead, the next eddy backup tries again"
		}
		h.ends = fmt.Errorf("%s: release: %w: %w (%s)", h.e, ErrDown, gone, next)
		return join(h.ends, h.finish(h.lock.Close, 0))
	}
	err := removeRecord(n.Dir)
	if err == nil {
		_ = h.guard.send(guardMsg{Op: gReleased})
	}
	err = join(err, h.finish(h.lock.Unlock, dismissTime))
	switch {
	case gone != nil:
		h.ends = fmt.Errorf("%s: release: %w", h.e, join(gone, err))
	case err != nil:
		h.ends = fmt.Errorf("%s: release: the node runs, but: %w", h.e, err)
	}
	return h.ends
}

// abandon leaves the node to the guard for a while: it runs, but may end yet.
func (h *guardedHold) abandon(d time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.guard.send(guardMsg{Op: gWatch, WatchMS: d.Milliseconds()})
	h.release()
	return join(err, h.finish(h.lock.Close, 0))
}

// finish ends this process's part in the hold. The lock is closed, not unlocked,
// where the guard keeps it, which is then not waited for.
func (h *guardedHold) finish(unlock func() error, dismiss time.Duration) error {
	h.over = true
	h.guard.hangUp()
	h.wg.Wait()
	if !h.guard.reap(dismiss) {
		h.e.leave(h.guard)
	}
	return unlock()
}

// Recover closes the journal that a dead eddy, with a dead guard, left open.
func (e *guarded) Recover(ctx context.Context) (acted bool, err error) {
	if rec, err := ReadHold(e.node.Dir); rec == nil && err == nil {
		return false, nil
	}
	lock, err := e.lockOfTheDying(ctx)
	if err != nil {
		if st, _, _ := e.node.status(ctx); errors.Is(err, ErrHeld) && st != running {
			err = fmt.Errorf("%w: %w", ErrDown, err)
		}
		return false, fmt.Errorf("%s: recover: %w", e, err)
	}
	acted, err = e.recover(ctx)
	if err = join(err, lock.Unlock()); err != nil {
		return acted, fmt.Errorf("%s: recover: %w", e, err)
	}
	return acted, nil
}

func (e *guarded) recover(ctx context.Context) (bool, error) {
	rec, err := ReadHold(e.node.Dir)
	switch {
	case errors.Is(err, ErrTorn):
		// It was written before a stop. That is all we need: what was stopped is
		// what the configuration names.
	case err != nil:
		return false, err
	case rec == nil: // a guard closed it meanwhile
		return false, nil
	case rec.Kind != "" && rec.Kind != kindHold || rec.Control != "" && rec.Control != e.control:
		return false, hint.Add(fmt.Errorf("the hold journal is of another control (%s %s)", printable(rec.Kind, 32), printable(rec.Control, 32)),
			settleByHand(e.node.Dir))
	case rec.Purpose != "" && rec.Purpose != purposeBackup:
		return false, hint.Add(fmt.Errorf("%w: the node is held for a %s", ErrRestoring, printable(rec.Purpose, 32)), "finish the restore")
	}
	n := e.node.of(*rec)
	if err := swapping(n.SwapFile); err != nil {
		return false, err
	}
	switch st, since, err := n.status(ctx); {
	case errors.Is(err, errGone), st != running && since != "" && n.run != "" && since != n.run:
		// What we stopped is no more, or has run since and was stopped by somebody
		// else: that is not ours to undo.
		return true, removeRecord(n.Dir)
	case st != running && e.mayStart != nil:
		if err := e.mayStart(ctx); err != nil {
			return false, fmt.Errorf("the node is left down: %w", err)
		}
	}
	boot, err := fsx.BootID()
	if err != nil {
		return false, fmt.Errorf("read the boot id: %w", err)
	}
	var window time.Duration // in which a stop may still be under way
	if rec.BootID == boot {
		timeout := time.Duration(min(max(rec.StopMS, 0), maxMillis)) * time.Millisecond
		window = min(max(timeout-time.Since(rec.Started), 0), timeout) // whatever the clock did
	}
	if err := n.settle(ctx, window, n.StartTimeout, func(error) {}); err != nil && !errors.Is(err, errGone) {
		return false, err
	}
	return true, removeRecord(n.Dir)
}
