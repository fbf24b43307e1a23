package held

import (
	"context"
	"errors"
	"testing"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// way is a control that does what it is told to.
type way struct {
	control.Control
	status   control.Status
	gone     error // of the manager
	lost     chan struct{}
	released int
	release  error
	acted    bool
}

func (w *way) Status(context.Context) (control.Status, error) { return w.status, w.gone }
func (w *way) String() string                                 { return "way" }
func (w *way) Lost() <-chan struct{}                          { return w.lost }
func (w *way) Recover(context.Context) (bool, error)          { return w.acted, nil }

func (w *way) Hold(ctx context.Context, r control.Request) (control.Hold, error) {
	if err := r.Down(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *way) Release(context.Context) error {
	w.released++
	return w.release
}

// A node that needs a word after its start stands still until it has got it.
func TestReleaseEndsWithANodeThatServes(t *testing.T) {
	st, err := snapshot.CreateStage(fsx.FS{}, "20261121T000000Z-auto-00105a", []snapshot.Root{{Path: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	w := &way{lost: make(chan struct{}), acted: true}
	locked := errors.New("it is locked")
	n := &Node{Control: w, Down: func(context.Context) error { return nil }, Awake: func(context.Context) error { return locked }}
	release, err := n.Hold(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(t.Context()); !errors.Is(err, observer.ErrDown) || !errors.Is(err, locked) {
		t.Errorf("released though it is locked: %v", err)
	}
	if _, err := n.Recover(t.Context()); !errors.Is(err, observer.ErrDown) {
		t.Errorf("recovered though it is locked: %v", err)
	}
	locked = nil
	if err := release(t.Context()); err != nil || w.released != 2 {
		t.Errorf("%v after %d", err, w.released)
	}
	if acted, err := n.Recover(t.Context()); !acted || err != nil {
		t.Errorf("%t, %v", acted, err)
	}
	close(w.lost)
	if err := n.During(t.Context(), func(context.Context) error { return nil }); !errors.Is(err, observer.ErrLost) {
		t.Errorf("captured in a lost hold: %v", err)
	}
	if err := release(t.Context()); !errors.Is(err, observer.ErrLost) {
		t.Errorf("released a lost hold: %v", err)
	}
	w.release = control.ErrDown
	if err := release(t.Context()); !errors.Is(err, observer.ErrDown) {
		t.Errorf("%v", err)
	}
}

// That somebody has stopped it is the manager's word, and proven beside it.
func TestStill(t *testing.T) {
	open := errors.New("a file is open")
	w := &way{status: control.Status{Running: true}}
	n := &Node{Control: w, Down: func(context.Context) error { return open }}
	if err := n.Still(t.Context()); !errors.Is(err, control.ErrNotDown) {
		t.Errorf("it runs: %v", err)
	}
	w.status.Running = false
	if err := n.Still(t.Context()); !errors.Is(err, open) {
		t.Errorf("somebody has a file open: %v", err)
	}
	open = nil
	for _, w.gone = range []error{nil, errors.New("no such socket")} {
		if err := n.Still(t.Context()); err != nil {
			t.Errorf("it is down: %v", err)
		}
	}
}
