package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// errMissed: the moment at which the fault was to strike did not come.
var errMissed = errors.New("missed")

// trial is one round under way.
type trial struct {
	w       *world
	s       *setup
	e       *eddy
	rnd     *rand.Rand
	out     *verdicts
	deaths  []map[partID]sent // what the store had taken each time that eddy was killed
	note    string
	guarded string // what the guard said of the hold that was disturbed
	target  string // of a restore, below into

	meanwhile *eddy // another node's, at work on the same cluster; nil: none

	// Of an exchange of the live data: what was there, and what is to come.
	was   portrait
	comes content
}

// fault strikes a run and returns when it has had its time. Faults of disk, wire
// and store are ended by the caller.
type fault func(ctx context.Context, t *trial) error

// striking is how long a fault lasts that a run can live with.
const striking = 4 * time.Second

// wait returns after d, or when the run has ended.
func (t *trial) wait(d time.Duration) {
	select {
	case <-t.e.done:
	case <-time.After(d):
	}
}

func (t *trial) reach(ctx context.Context, p point) error {
	if !t.w.reach(ctx, t.s, t.e, p) {
		return fmt.Errorf("%w: %s was not reached", errMissed, p.name)
	}
	return nil
}

// the processes that a kill is for
type who int

const (
	itself who = 1 << iota
	guard
)

// kill -9 of eddy, its guard, or both, at a point.
func kill(p point, whom who) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		g := 0
		for deadline := time.Now().Add(5 * time.Second); whom&guard != 0 && g == 0; g = guardOf(t.e.pid()) {
			if t.e.ended() || time.Now().After(deadline) {
				return fmt.Errorf("%w: no guard was seen", errMissed)
			}
		}
		if err := signal(g, syscall.SIGKILL); err != nil {
			return err
		}
		if whom&itself == 0 {
			return nil
		}
		if err := signal(t.e.pid(), syscall.SIGKILL); err != nil {
			return err
		}
		<-t.e.done
		t.deaths = append(t.deaths, t.w.liar.ledger())
		return nil
	}
}

// killSometime does it at a random moment of a backup's usual length.
func killSometime(ctx context.Context, t *trial) error {
	d := time.Duration(t.rnd.Int64N(int64(6 * time.Second)))
	t.note = fmt.Sprintf("after %.2f s", d.Seconds())
	return kill(after(d), itself)(ctx, t)
}

func term(p point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		return signal(t.e.pid(), syscall.SIGTERM)
	}
}

// freeze stops eddy for a while. In a hold that is until the node is back, which
// somebody else must then see to.
func freeze(p point, d time.Duration) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		if err := signal(t.e.pid(), syscall.SIGSTOP); err != nil {
			return err
		}
		if d > 0 {
			t.wait(d)
		} else {
			t.s.untilUp(ctx)
		}
		return signal(t.e.pid(), syscall.SIGCONT)
	}
}

// untilUp waits until a node that is down, or will be at once, is up again, or too late.
func (s *setup) untilUp(ctx context.Context) {
	seen := false // that it was down
	for begun := time.Now(); time.Since(begun) < deadline+slack && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		up, _ := s.watch.up()
		seen = seen || !up
		if up && (seen || time.Since(begun) > time.Second) {
			return
		}
	}
}

// onWire does something to the network at a point.
func onWire(p point, d time.Duration, harm func(*wire) error) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		if err := harm(t.w.wire); err != nil {
			return err
		}
		t.wait(d)
		return nil
	}
}

func cut(w *wire) error { w.cut(); return nil }

func toxic(kind string, attributes map[string]int) func(*wire) error {
	return func(w *wire) error { return w.toxic(kind, attributes) }
}

// deadBucket takes the store away in the moment of the stop, and gives it back when
// the node runs.
func deadBucket(harm func(*wire) error) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, state("holding")); err != nil {
			return err
		}
		if err := harm(t.w.wire); err != nil {
			return err
		}
		t.s.untilUp(ctx)
		t.wait(time.Second)
		return nil
	}
}

// lies has the store lie from a point on.
func lies(p point, d time.Duration, f func() lie) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		t.w.liar.tell(f())
		t.wait(d)
		if t.w.liar.lied() == 0 {
			return fmt.Errorf("%w: nothing was asked that could be lied about", errMissed)
		}
		return nil
	}
}

// lifecycle aborts all uploads, as a rule of the bucket may.
func lifecycle(p point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		return t.w.bucket.abortAll(ctx)
	}
}

// full fills the filesystem of the workdir.
func full(p point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		if err := t.s.fill(); err != nil {
			return err
		}
		t.wait(striking)
		return nil
	}
}

// badDisk has the home's disk, or that of a restore, fail for eddy.
func badDisk(of func(*trial) *disk, p point, f func(*rand.Rand) *diskFault) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		d := f(t.rnd)
		d.victim = t.e.pid()
		of(t).harm(d)
		t.wait(striking)
		if d.met.Load() == 0 {
			return fmt.Errorf("%w: the disk was not asked for anything", errMissed)
		}
		return nil
	}
}

func homeDisk(t *trial) *disk { return t.s.disk }
func intoDisk(t *trial) *disk { return t.w.into }

func failing(write, read syscall.Errno, after int64) func(*rand.Rand) *diskFault {
	return func(r *rand.Rand) *diskFault {
		f := &diskFault{write: write, read: read}
		f.after.Store(r.Int64N(after))
		return f
	}
}

func slow(*rand.Rand) *diskFault { return &diskFault{delay: 20 * time.Millisecond} }

// both does one after the other to the same run.
func both(a, b fault) fault {
	return func(ctx context.Context, t *trial) error {
		if err := a(ctx, t); err != nil {
			return err
		}
		return b(ctx, t)
	}
}

// twice kills the run, and the one after it.
func twice(p, again point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := kill(p, itself)(ctx, t); err != nil {
			return err
		}
		var err error
		if t.e, err = t.w.start(t.s, "backup"); err != nil {
			return err
		}
		t.s.sentBefore = t.w.liar.stored()
		return kill(again, itself)(ctx, t)
	}
}

// atOnce runs a second backup while the first is at work: it must be refused.
func atOnce(p point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		code, said, err := t.w.run(ctx, t.s, time.Minute, "backup")
		if err == nil && code != locked {
			t.out.add("a second eddy at the same time exits with %d, want %d:\n%s", code, locked, said)
		}
		return err
	}
}

// extracted is reached when so many bytes of a restore lie on the disk.
func extracted(bytes int64) point {
	return point{fmt.Sprintf("%d MB extracted", bytes/1e6), func(w *world, _ *setup, _ *eddy) bool {
		return regularBytes(w.into.backing) >= bytes
	}}
}
