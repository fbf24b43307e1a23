package cometbft

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	dbm "github.com/cometbft/cometbft-db"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/observer/held"
	"github.com/eddy-backup/eddy/snapshot"
)

// lostHold is a hold whose guard has acted.
type lostHold struct{ lost chan struct{} }

func (h lostHold) Lost() <-chan struct{}         { return h.lost }
func (h lostHold) Release(context.Context) error { return nil }

type holder struct {
	control.Control
	h lostHold
}

func (c holder) Hold(context.Context, control.Request) (control.Hold, error) { return c.h, nil }

// TestLostHoldEndsTheCapture: a node that was started by its guard must find its
// databases unlocked.
func TestLostHoldEndsTheCapture(t *testing.T) {
	home := t.TempDir()
	data := filepath.Join(home, "data")
	must(t, os.MkdirAll(filepath.Join(home, "config"), 0o755), os.MkdirAll(data, 0o755))
	db, err := dbm.NewGoLevelDB("application", data)
	must(t, err)
	must(t, db.Set([]byte("k"), []byte("v")), db.Close())

	h := lostHold{lost: make(chan struct{})}
	r, err := New(Options{Home: home, RPC: "http://127.0.0.1:1", Control: holder{h: h}})
	must(t, err)
	roots, err := r.Roots(t.Context())
	must(t, err)
	st, err := snapshot.CreateStage(fsx.FS{}, "20261120T235500Z-auto-00105a", roots)
	must(t, err)
	release, err := r.Hold(t.Context(), st)
	must(t, err)
	must(t, r.Capture(t.Context(), st)) // a hold that stands
	close(h.lost)
	if err := r.Capture(t.Context(), st); !errors.Is(err, held.ErrLost) {
		t.Errorf("capture in a lost hold: %v", err)
	}
	if err := release(t.Context()); !errors.Is(err, held.ErrLost) {
		t.Errorf("release of a lost hold: %v", err)
	}
	db, err = dbm.NewGoLevelDB("application", data)
	must(t, err)
	must(t, db.Close(), st.Remove())
}
