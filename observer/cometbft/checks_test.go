package cometbft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

func TestAdvertisedAddresses(t *testing.T) {
	for listen, listed := range map[string]bool{
		"tcp://0.0.0.0:26656": false, "tcp://[::]:26656": false, "0.0.0.0:26656": false, "tcp://127.0.0.1:26656": true,
		"": false, "tcp://:26656": false, "nonsense": false,
		"tcp://10.0.0.7:26656": true, "203.0.113.9:26656": true, "tcp://node.example.com:26656": true, "tcp://[2001:db8::1]:26656": true,
	} {
		if _, _, ok := advertised(listen); ok != listed {
			t.Errorf("%q: listed %t, want %t", listen, ok, listed)
		}
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for ahead, want := range map[time.Duration]check.Level{
		-11 * time.Minute: check.Warn, -time.Minute: check.OK, 0: check.OK, 20 * time.Second: check.OK,
		time.Minute: check.Warn, 11 * time.Minute: check.Fail,
	} {
		s := observer.State{Cluster: "c", Taken: now, Position: observer.Position{Time: now.Add(-time.Hour)}}
		s.Witness = []observer.Witness{
			{Cluster: "c", Position: observer.Position{Time: now.Add(ahead)}},
			{Cluster: "other", Position: observer.Position{Time: now.Add(24 * time.Hour)}},
		}
		if f := clock(s); f.Level != want || (f.Hint == "") != (want == check.OK) {
			t.Errorf("blocks %s ahead: %+v, want %s", ahead, f, want)
		}
	}
}

func TestWitnessFindings(t *testing.T) {
	good, dead, foreign := observer.Witness{Cluster: "c"}, observer.Witness{Error: "refused"}, observer.Witness{Cluster: "d"}
	for name, c := range map[string]struct {
		all  []observer.Witness
		want check.Level
	}{
		"none":                   {nil, check.Warn},
		"one":                    {[]observer.Witness{good}, check.Warn},
		"two":                    {[]observer.Witness{good, good}, check.OK},
		"one of two":             {[]observer.Witness{good, dead}, check.Warn},
		"none of two":            {[]observer.Witness{dead, dead}, check.Fail},
		"one of another chain":   {[]observer.Witness{good, good, foreign}, check.Fail},
		"the only one is no one": {[]observer.Witness{dead}, check.Fail},
	} {
		all := (&Replica{}).witnesses(observer.State{Cluster: "c", Witness: c.all})
		if got := check.Worst(all); got != c.want {
			t.Errorf("%s: %s, want %s: %+v", name, got, c.want, all)
		}
		for _, f := range all {
			if f.Level != check.OK && f.Hint == "" {
				t.Errorf("%s: no hint: %+v", name, f)
			}
		}
	}
}

// A finding says what is wrong, not once more that the replica is not fit.
func TestFailedFindings(t *testing.T) {
	if f := failed("x", behind("wait", "it is at height %d", 7)); f.Said != "it is at height 7" || f.Hint != "wait" || f.Level != check.Fail {
		t.Errorf("%+v", f)
	}
	if f := failed("x", fmt.Errorf("read: %w", errors.New("no"))); f.Hint == "" {
		t.Errorf("%+v", f)
	}
	if f := failed("x", hint.Add(errors.New("no"), "do")); f.Hint != "do" {
		t.Errorf("%+v", f)
	}
}

// A node without peers waits in vain, one with peers only needs time.
func TestCaughtUp(t *testing.T) {
	r := &Replica{o: Options{MaxBehind: 3}}
	s := observer.State{Cluster: "c", CatchUp: true, Peers: 2, Taken: time.Now()}
	if f := r.caughtUp(s); f.Level != check.Warn {
		t.Errorf("%+v", f)
	}
	s.Peers = 0
	if f := r.caughtUp(s); f.Level != check.Fail {
		t.Errorf("%+v", f)
	}
	s = observer.State{Cluster: "c", Peers: 2, Taken: time.Now(), Witness: []observer.Witness{{Error: "refused"}}}
	if f := r.caughtUp(s); f.Level != check.Fail {
		t.Errorf("no witness answers: %+v", f)
	}
}
