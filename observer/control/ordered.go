package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
)

// ordered is a node that is several processes, each with a control of its own.
type ordered []Control

var _ Control = ordered(nil)

// NewOrdered controls a node and, behind it, what it cannot run without: an app
// that is a process of its own. They are stopped in the order given, so that
// nobody asks an app that is gone, and started in the other one.
//
// Each has its own journal and its own guard. Where eddy dies, the guards start
// theirs at the same time; a node then waits for its app.
func NewOrdered(controls ...Control) Control { return ordered(controls) }

func (o ordered) String() string {
	var names []string
	for _, c := range o {
		names = append(names, c.String())
	}
	return strings.Join(names, ", ")
}

// Status is that of all: it runs where all of them run, and is held where one is.
func (o ordered) Status(ctx context.Context) (Status, error) {
	all := Status{Running: true}
	var since []string
	for i, c := range o {
		st, err := c.Status(ctx)
		if err != nil {
			return Status{}, err
		}
		all.Running = all.Running && st.Running
		all.Held = all.Held || st.Held
		if i == 0 {
			all.PID = st.PID
		}
		since = append(since, st.Since)
	}
	all.Since = strings.Join(since, ", ")
	return all, nil
}

func (o ordered) Hold(ctx context.Context, r Request) (Hold, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	// Asked first: one that somebody stopped on purpose would be found only when
	// the others stand still.
	for _, c := range o {
		if st, err := c.Status(ctx); err != nil {
			return nil, err
		} else if !st.Running && !st.Held {
			return nil, hint.Add(fmt.Errorf("%s: hold: %w", c, ErrStopped), "somebody stopped it: "+HowToStart(c)+", then `eddy backup`")
		}
	}
	began, down := time.Now(), r.Down
	h := &orderedHold{lost: make(chan struct{}), over: make(chan struct{})}
	for i, c := range o {
		one := r
		one.Down = nil // what is down shows only when all are
		if i == len(o)-1 {
			one.Down = down
		}
		if one.Deadline -= time.Since(began); one.Deadline <= one.Timeout {
			err = fmt.Errorf("hold: no time is left to stop %s: %w", c, ErrStopTimeout)
		}
		var held Hold
		if err == nil {
			held, err = c.Hold(ctx, one)
		}
		if err != nil {
			return nil, join(err, h.Release(ctx))
		}
		h.add(held)
	}
	return h, nil
}

// Checks implements check.Checker with what each control has to say.
func (o ordered) Checks(ctx context.Context) (all []check.Finding) {
	for _, c := range o {
		if more, ok := c.(check.Checker); ok {
			all = append(all, more.Checks(ctx)...)
		}
	}
	return all
}

// Recover closes the journals of all, the last one's first.
func (o ordered) Recover(ctx context.Context) (acted bool, err error) {
	for i := len(o) - 1; i >= 0; i-- {
		did, oneErr := o[i].Recover(ctx)
		acted, err = acted || did, join(err, oneErr)
	}
	return acted, err
}

// orderedHold is several holds, in the order in which they began.
type orderedHold struct {
	holds []Hold
	wg    sync.WaitGroup

	lostOnce, overOnce sync.Once
	lost               chan struct{} // one of the holds is lost
	over               chan struct{} // Release has begun: nothing can be lost any more
}

func (h *orderedHold) add(one Hold) {
	h.holds = append(h.holds, one)
	h.wg.Go(func() {
		select {
		case <-one.Lost():
			h.lostOnce.Do(func() { close(h.lost) })
		case <-h.over:
		}
	})
}

func (h *orderedHold) Lost() <-chan struct{} { return h.lost }

// Release tries all, whatever becomes of one: each that runs is one less to care
// for.
func (h *orderedHold) Release(ctx context.Context) error {
	h.overOnce.Do(func() { close(h.over) })
	h.wg.Wait()
	var err error
	for i := len(h.holds) - 1; i >= 0; i-- {
		err = join(err, h.holds[i].Release(ctx))
	}
	return err
}
