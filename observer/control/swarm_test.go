package control

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// An engine is given its key when it says that it is locked, until it is not; a wrong
// key is not tried twice, and is in no error.
func TestUnlock(t *testing.T) {
	const right = "SWMKEY-1-right"
	var asked, unlocks atomic.Int32
	var open atomic.Bool
	host := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", host)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/info":
			if asked.Add(1) == 1 { // it has only just started
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			state := map[bool]string{true: "active", false: "locked"}[open.Load()]
			_ = json.NewEncoder(w).Encode(map[string]any{"Swarm": map[string]string{"LocalNodeState": state}})
		case "/swarm/unlock":
			unlocks.Add(1)
			var k struct{ UnlockKey string }
			if json.NewDecoder(r.Body).Decode(&k) != nil || k.UnlockKey != right {
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = w.Write([]byte(`{"message": "invalid key"}`))
				return
			}
			open.Store(true)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-done }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = (&Unlock{Host: "unix://" + host, Key: "SWMKEY-1-wrong"}).Do(ctx)
	if err == nil || strings.Contains(err.Error()+hint.Of(err), "wrong") || unlocks.Load() != 1 {
		t.Errorf("%v, after %d", err, unlocks.Load())
	}
	u := &Unlock{Host: "unix://" + host, Key: right}
	for range 2 { // the second time there is nothing to do
		if err := u.Do(ctx); err != nil {
			t.Error(err)
		}
	}
	if unlocks.Load() != 2 || strings.Contains(u.String(), right) {
		t.Errorf("%d, %s", unlocks.Load(), u)
	}
}

// Sockets that start a unit are left out of what speaks against its hold where they are
// stopped with it, and are names of sockets in a journal.
func TestUnitWithoutItsSockets(t *testing.T) {
	u := goodUnit()
	u.triggeredBy, u.stopsWith = []string{"docker.socket", "x.timer"}, []string{"docker.socket"}
	if w := u.without([]string{"docker.socket"}); len(w.triggeredBy) != 1 || len(w.stopsWith) != 0 || len(u.triggeredBy) != 2 {
		t.Errorf("%+v, %+v", w, u)
	}
	ref := UnitRef{Name: "docker.service", Rights: RightsPolkit, Sockets: []string{"docker.socket"}}
	if err := checkUnit(ref); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"x.service", "-x.socket", "a b.socket", ""} {
		ref.Sockets = []string{name}
		if checkUnit(ref) == nil {
			t.Errorf("%q is no socket", name)
		}
	}
}
