package chaos

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// daemon is eddy's verb for what goes on for ever. Its schedule, period, leaves time
// behind a backup to end it before the next.
var daemon = []string{"run"}

const period = 10 * time.Second

// hangUp ends a run as a terminal does that is closed, which is an end in order.
func hangUp(p point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		if err := signal(t.e.pid(), syscall.SIGHUP); err != nil {
			return err
		}
		code, err := t.e.end(runTime)
		if err == nil && code != 0 {
			t.out.add("SIGHUP ends eddy run with %d, want 0:\n%s", code, t.e.tail())
		}
		t.deaths = append(t.deaths, t.w.liar.ledger())
		return err
	}
}

// interruptTwice is two ctrl-C at a terminal: all of the job's processes get them.
func interruptTwice(p point) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, p); err != nil {
			return err
		}
		between := time.Duration(t.rnd.Int64N(int64(100 * time.Millisecond)))
		t.note = fmt.Sprintf("%.0f ms between the two", between.Seconds()*1e3)
		for range 2 {
			if err := signal(-t.e.pid(), syscall.SIGINT); err != nil {
				return err
			}
			t.wait(between)
		}
		<-t.e.done
		t.deaths = append(t.deaths, t.w.liar.ledger())
		return nil
	}
}

// goodRun has eddy run bring a backup to its good end, and looks at everything.
func (w *world) goodRun(ctx context.Context, t *trial) error {
	if err := w.runOnce(ctx, t); err != nil {
		return err
	}
	v, err := w.judgeVisible(ctx, t.s, t.out)
	if err != nil {
		return err
	}
	return w.judgeSwept(ctx, t.s, v, t.out)
}

// runOnce has eddy run start the node where it is down, end what was begun, and make
// a backup; then it is ended.
func (w *world) runOnce(ctx context.Context, t *trial) error {
	s, was := t.s, t.s.latest.ID
	e, err := w.start(s, daemon...)
	if err != nil {
		return err
	}
	ended := func(code int, err error) error {
		if err == nil && code != 0 {
			t.out.add("I6: eddy run exits with %d:\n%s", code, e.tail())
		}
		return err
	}
	var v *view
	for turn, late := 2, time.After(handover); ; { // the first word of a schedule is that of its start
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.done:
			return ended(e.end(0))
		case <-late:
			t.out.add("I6: eddy run has made no backup in %s:\n%s", handover, e.tail())
			return ended(e.term())
		case <-time.After(20 * time.Millisecond):
		}
		if e.count("scheduled") < turn {
			continue
		}
		if v, err = w.bucket.view(ctx, s.name); err != nil {
			return err
		}
		if v.latest != nil && v.latest.ID != was {
			break
		}
		turn++ // one that was not fit yet, or that failed
	}
	s.stored = v.manifests[v.latest.ID].Sizes.Stored
	return ended(e.term())
}
