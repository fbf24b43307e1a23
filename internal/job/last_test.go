package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// A run that begins and never ends is counted once, by whoever comes next.
func TestARunThatDiedIsCountedOnce(t *testing.T) {
	w := Workdir{Dir: t.TempDir()}
	begun := time.Date(2026, 11, 20, 3, 0, 0, 0, time.UTC)
	if died, err := w.begin("c", begun); err != nil || died != "" {
		t.Fatalf("the first run: %q, %v", died, err)
	}
	if err := w.enter(&State{ID: "x"}, stateHolding); err != nil {
		t.Fatal(err)
	}
	const want = "the run of 2026-11-20T03:00:00Z died as it was holding"
	if died, err := w.settle(); err != nil || died != want {
		t.Errorf("%q, %v", died, err)
	}
	if died, err := w.settle(); err != nil || died != "" {
		t.Errorf("settled twice: %q, %v", died, err)
	}
	if err := w.leave(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.begin("c", begun); err != nil {
			t.Fatal(err)
		}
	}
	l, err := w.Last()
	if err != nil || l.Failures[ReasonKilled] != 2 || !l.Open || l.LastError != "the run of 2026-11-20T03:00:00Z died" {
		t.Errorf("%+v, %v", l, err)
	}
}

// While another eddy works here its run is open and alive: a daemon that begins
// neither counts it nor touches what it has in hand.
func TestDaemonLeavesALiveRunAlone(t *testing.T) {
	w := Workdir{Dir: t.TempDir()}
	lock, err := w.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.begin("c", time.Now()); err != nil {
		t.Fatal(err)
	}
	d := Daemon{Workdir: w, Events: nothing{}, Recover: func(context.Context) (bool, error) {
		t.Error("the daemon recovers what another eddy is at work on")
		return false, nil
	}}
	if err := d.takeOver(t.Context()); err != nil {
		t.Error(err)
	}
	// And who finds it at work is counted, without touching what it has to say.
	b := Backup{Workdir: w, Now: time.Now}
	if _, err := b.Run(t.Context()); !errors.Is(err, fsx.ErrLocked) {
		t.Error(err)
	}
	l, err := w.Last()
	if err != nil || !l.Open || l.LastError != "" || l.Failures[ReasonLocked] != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestFailuresOfManyAtOnceAreAllCounted(t *testing.T) {
	w := Workdir{Dir: t.TempDir()}
	const many = 40
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			if err := w.Fail(ReasonStore, errors.New("no bucket"), time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l, err := w.Last()
	if err != nil || l.Failures[ReasonStore] != many || l.LastError != "no bucket" {
		t.Errorf("%+v, %v", l, err)
	}
}

// heard writes down what a Watcher is told.
type heard struct{ got []string }

func (h *heard) Begun(context.Context)               { h.got = append(h.got, "begun") }
func (h *heard) Died(_ context.Context, text string) { h.got = append(h.got, "died "+text) }
func (h *heard) Missed(_ context.Context, d time.Time) {
	h.got = append(h.got, "missed "+d.UTC().Format(time.RFC3339))
}
func (h *heard) Warned(_ context.Context, text, _ string) { h.got = append(h.got, "warned "+text) }

func TestDaemonTellsWhatWentWrong(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, _ := daemon(t, dir, func(int64) error { return nil })
		h := &heard{}
		d.Watch = h
		d.Recover = func(context.Context) (bool, error) { return false, errors.New("no such unit") }
		d.Expire = func(context.Context) error { return errors.New("access denied") }
		begun := time.Now().Add(-100 * time.Hour)
		if _, err := d.Workdir.begin("c", begun); err != nil {
			t.Fatal(err)
		}
		runFor(t, d, time.Minute)
		want := []string{
			"warned the node that an earlier run left stopped could not be started: no such unit",
			fmt.Sprintf("died the run of %s died", begun.UTC().Format(time.RFC3339)),
			"missed " + daily(t).Next(begun).UTC().Format(time.RFC3339),
			"warned expire: access denied",
		}
		if !slices.Equal(h.got, want) {
			t.Errorf("told %q, want %q", h.got, want)
		}
	})
}
