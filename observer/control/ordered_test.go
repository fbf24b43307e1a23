package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// scripted is one control of several, and writes down what it is asked.
type scripted struct {
	Control // what is not scripted is not asked for

	name   string
	said   *[]string
	down   bool          // somebody stopped it
	slow   time.Duration // what its stop takes
	fails  error         // what its Hold says
	sticks error         // what its Release says

	lost chan struct{}
	got  Request
}

func (s *scripted) String() string { return s.name }

func (s *scripted) Status(context.Context) (Status, error) {
	return Status{Running: !s.down, Since: s.name + "-1"}, nil
}

func (s *scripted) Hold(_ context.Context, r Request) (Hold, error) {
	s.got = r
	time.Sleep(s.slow)
	*s.said = append(*s.said, "stop "+s.name)
	if s.fails != nil {
		return nil, s.fails
	}
	if r.Down != nil {
		if err := r.Down(context.Background()); err != nil {
			return nil, err
		}
	}
	s.lost = make(chan struct{})
	return s, nil
}

func (s *scripted) Release(context.Context) error {
	*s.said = append(*s.said, "start "+s.name)
	return s.sticks
}

func (s *scripted) Lost() <-chan struct{} { return s.lost }

func (s *scripted) Recover(context.Context) (bool, error) {
	*s.said = append(*s.said, "recover "+s.name)
	return s.name == "app", s.sticks
}

func pair() (node, app *scripted, both Control, said *[]string) {
	said = new([]string)
	node, app = &scripted{name: "node", said: said}, &scripted{name: "app", said: said}
	return node, app, NewOrdered(node, app), said
}

func expectOrder(t *testing.T, said []string, want ...string) {
	t.Helper()
	if !slices.Equal(said, want) {
		t.Errorf("asked %q, want %q", said, want)
	}
}

func TestOrdered(t *testing.T) {
	node, app, both, said := pair()
	proven := func(context.Context) error {
		*said = append(*said, "prove")
		return nil
	}
	h, err := both.Hold(t.Context(), Request{Timeout: time.Second, Deadline: time.Minute, Down: proven})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectOrder(t, *said, "stop node", "stop app", "prove", "start app", "start node")
	if app.got.Deadline > node.got.Deadline || app.got.Timeout != time.Second || app.got.Purpose != purposeBackup {
		t.Errorf("node asked for %+v, app for %+v", node.got, app.got)
	}
	st, err := both.Status(t.Context())
	if err != nil || !st.Running || st.Since != "node-1, app-1" {
		t.Errorf("%+v, %v", st, err)
	}
	*said = nil
	if acted, err := both.Recover(t.Context()); !acted || err != nil {
		t.Errorf("recover: %v, %v", acted, err)
	}
	expectOrder(t, *said, "recover app", "recover node")
}

func TestOrderedHoldsAllOrNone(t *testing.T) {
	t.Run("the second fails", func(t *testing.T) {
		_, app, both, said := pair()
		app.fails = ErrKilled
		if _, err := both.Hold(t.Context(), Request{}); !errors.Is(err, ErrKilled) {
			t.Fatalf("hold: %v", err)
		}
		expectOrder(t, *said, "stop node", "stop app", "start node")
	})
	t.Run("the second was stopped on purpose", func(t *testing.T) {
		_, app, both, said := pair()
		app.down = true
		if _, err := both.Hold(t.Context(), Request{}); !errors.Is(err, ErrStopped) {
			t.Fatalf("hold: %v", err)
		}
		expectOrder(t, *said)
	})
	t.Run("no time is left", func(t *testing.T) {
		node, _, both, said := pair()
		node.slow = 30 * time.Millisecond
		if _, err := both.Hold(t.Context(), Request{Timeout: 20 * time.Millisecond, Deadline: 40 * time.Millisecond}); !errors.Is(err, ErrStopTimeout) {
			t.Fatalf("hold: %v", err)
		}
		expectOrder(t, *said, "stop node", "start node")
	})
	t.Run("a start fails", func(t *testing.T) {
		_, app, both, said := pair()
		app.sticks = fmt.Errorf("no such command")
		h, err := both.Hold(t.Context(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Release(t.Context()); err == nil || !strings.Contains(err.Error(), "no such command") {
			t.Errorf("release: %v", err)
		}
		expectOrder(t, *said, "stop node", "stop app", "start app", "start node")
	})
	t.Run("one is lost", func(t *testing.T) {
		node, _, both, _ := pair()
		h, err := both.Hold(t.Context(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		close(node.lost)
		select {
		case <-h.Lost():
		case <-time.After(5 * time.Second):
			t.Error("nobody says so")
		}
		if err := h.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
