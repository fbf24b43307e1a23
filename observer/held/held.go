package held

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// ErrLost: what was captured is worthless.
var ErrLost = fmt.Errorf("%w: its guard started the node before the capture was done", observer.ErrLost)

// Node is a node under a control. It is for one hold at a time.
type Node struct {
	Control  control.Control
	Timeout  time.Duration // the node's own stop
	Deadline time.Duration // the whole hold
	// Down proves, beyond the manager's word, that the node is down.
	Down func(ctx context.Context) error
	// Unlock is the guard's Awake, of an engine; nil: nothing.
	Unlock *control.Unlock
	// Awake is what a node needs after each start before it serves, as a locked one
	// does; its error is that of a node that stands still. nil: nothing.
	Awake func(ctx context.Context) error

	hold control.Hold // the newest; Capture runs inside it
}

// Hold stops the node. See observer.Holder.
func (n *Node) Hold(ctx context.Context, st *snapshot.Stage) (release func(context.Context) error, err error) {
	h, err := n.Control.Hold(ctx, control.Request{
		Purpose: "backup", Timeout: n.Timeout, Deadline: n.Deadline, Stage: st.ID(), Down: n.Down, Unlock: n.Unlock,
	})
	if err != nil {
		return nil, Error(err)
	}
	n.hold = h
	return func(ctx context.Context) error {
		if err := h.Release(ctx); err != nil {
			return Error(err)
		}
		if err := n.awake(ctx); err != nil {
			return err
		}
		if isLost(h) {
			return ErrLost
		}
		return nil
	}, nil
}

func (n *Node) awake(ctx context.Context) error {
	if n.Awake == nil {
		return nil
	}
	if err := n.Awake(ctx); err != nil {
		return observer.Mark(observer.ErrDown, err)
	}
	return nil
}

// During runs a capture inside the hold, where there is one, and cancels it when the
// hold is lost: locks that it has would keep the node from starting.
func (n *Node) During(ctx context.Context, capture func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	h := n.hold
	if h != nil {
		watch.Go(func() {
			select {
			case <-h.Lost():
				cancel()
			case <-ctx.Done():
			}
		})
	}
	err := capture(ctx)
	if h != nil && isLost(h) {
		return ErrLost
	}
	return err
}

// Recover starts a node that a dead eddy left stopped.
func (n *Node) Recover(ctx context.Context) (acted bool, err error) {
	acted, err = n.Control.Recover(ctx)
	if err == nil && acted {
		err = n.awake(ctx)
	}
	return acted, Error(err)
}

// Still returns nil where somebody else has stopped the node, and it is proven to be
// down. Nothing is stopped for that. A manager that is gone itself says nothing, and
// the proof does without its word.
func (n *Node) Still(ctx context.Context) error {
	if s, err := n.Control.Status(ctx); err == nil && s.Running {
		return fmt.Errorf("%w: %s says that it runs", control.ErrNotDown, n.Control)
	}
	return n.Down(ctx)
}

func isLost(h control.Hold) bool {
	select {
	case <-h.Lost():
		return true
	default:
		return false
	}
}

// Error is an error of package control with what observers know it by.
func Error(err error) error {
	switch {
	case errors.Is(err, control.ErrDown):
		return observer.Mark(observer.ErrDown, err)
	case errors.Is(err, control.ErrStopping):
		return observer.Mark(observer.ErrStopping, err)
	}
	return err
}
