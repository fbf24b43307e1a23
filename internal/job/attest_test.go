package job

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// asked is a replica whose witnesses say one thing after the other.
type asked struct {
	*still
	say    []observer.Evidence
	waits  []time.Duration
	before []observer.Evidence
	broken error
}

func (a *asked) Attest(_ context.Context, _ observer.Position, before observer.Evidence, wait time.Duration) (observer.Evidence, error) {
	a.waits, a.before = append(a.waits, wait), append(a.before, before)
	if a.broken != nil {
		return observer.Evidence{}, a.broken
	}
	return a.say[min(len(a.waits), len(a.say))-1], nil
}

func said(verdicts ...string) (e observer.Evidence) {
	e.Trust = "the validators"
	for i, v := range verdicts {
		e.Of = append(e.Of, observer.Attestation{Witness: "http://w" + string(rune('0'+i)), Verdict: v, Said: "because", When: time.Unix(1, 0).UTC()})
	}
	return e
}

// What the witnesses say decides whether a backup is made, and whether it becomes
// the latest.
func TestBackupIsAttested(t *testing.T) {
	for name, c := range map[string]struct {
		say      []observer.Evidence
		need     int
		grade    string
		aside    bool
		asked    int
		warnings string
	}{
		"all agree":           {say: []observer.Evidence{said(observer.Agrees, observer.Agrees)}, need: 1, grade: "2 of 2", asked: 1},
		"one of two":          {say: []observer.Evidence{said(observer.Agrees, observer.Unreachable)}, need: 1, grade: "1 of 2", asked: 2},
		"one of two is few":   {say: []observer.Evidence{said(observer.Agrees, observer.Unreachable)}, need: 2, grade: "1 of 2", asked: 2, aside: true, warnings: "1 of 2 witnesses agree"},
		"pending, then known": {say: []observer.Evidence{said(observer.Pending), said(observer.Agrees)}, need: 1, grade: "1 of 1", asked: 2},
		"pending for good":    {say: []observer.Evidence{said(observer.Pending)}, need: 1, grade: "pending", asked: 2, aside: true, warnings: "0 of 1 witnesses agree"},
		"nobody need agree":   {say: []observer.Evidence{said(observer.Pruned)}, grade: "0 of 1", asked: 2},
		"a liar beside":       {say: []observer.Evidence{said(observer.Agrees, observer.Liar)}, need: 1, grade: "1 of 2", asked: 2, warnings: "http://w1 lies"},
		"only a liar":         {say: []observer.Evidence{said(observer.Liar)}, need: 1, grade: "0 of 1", asked: 2, aside: true, warnings: "http://w0 lies"},
		"nobody to ask":       {say: []observer.Evidence{{NotPossible: "no witnesses are named"}}, need: 1, grade: "not possible", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			x := newBench(t)
			a := &asked{still: x.replica, say: c.say}
			sum, err := x.backup(func(b *Backup) { b.Replica, b.AttestWait, b.Attested = a, time.Minute, c.need })
			if err != nil && !errors.Is(err, ErrWarnings) || (err != nil) != (c.warnings != "") || !strings.Contains(strings.Join(sum.Warnings, ";"), c.warnings) {
				t.Fatalf("%v: %q, want %q", err, sum.Warnings, c.warnings)
			}
			if sum.Attested != c.grade || len(a.waits) != c.asked || a.waits[0] != time.Minute || c.asked == 2 && (a.waits[1] != 0 || len(a.before[1].Of) == 0) {
				t.Errorf("attested %q, asked with %v", sum.Attested, a.waits)
			}
			b, err := x.catalog.Select(t.Context(), sum.ID)
			if err != nil || b.Status != uploader.StatusReady || b.Latest == c.aside {
				t.Fatalf("%+v, %v", b, err)
			}
			m := b.Manifest
			last := c.say[len(c.say)-1]
			if m.Attested != c.grade || m.Attest.NotPossible != last.NotPossible || len(m.Attest.Witnesses) != len(last.Of) || len(last.Of) > 0 && m.Attest.Witnesses[0].Verdict != last.Of[0].Verdict {
				t.Errorf("manifest: %q %+v", m.Attested, m.Attest)
			}
			x.leavings()
		})
	}
}

// A fork, whenever it shows, ends the backup, as does a pinned block that nobody has:
// nothing of it counts, nothing is left.
func TestAForkIsNoBackup(t *testing.T) {
	for name, say := range map[string][]observer.Evidence{
		"at once":           {said(observer.Agrees, observer.Fork)},
		"before the commit": {said(observer.Agrees, observer.Unreachable), said(observer.Agrees, observer.Fork)},
		"a wrong pin":       {{Refuted: "http://w1 has another block"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newBench(t)
			a := &asked{still: x.replica, say: say}
			_, err := x.backup(func(b *Backup) { b.Replica, b.Attested = a, 1 })
			if !errors.Is(err, ErrProof) || hint.Of(err) == "" || !strings.Contains(err.Error(), "http://w1") {
				t.Fatalf("%v (%s)", err, hint.Of(err))
			}
			if b, err := x.catalog.Latest(t.Context()); !errors.Is(err, uploader.ErrNoSuchBackup) {
				t.Errorf("latest: %+v, %v", b, err)
			}
			x.leavings()
		})
	}
}

// Who is interrupted while the witnesses are asked goes on with what was staged.
func TestAttestIsGoneOnWith(t *testing.T) {
	x := newBench(t)
	gone := errors.New("gone")
	a := &asked{still: x.replica, say: []observer.Evidence{said(observer.Agrees)}, broken: gone}
	use := func(b *Backup) { b.Replica, b.Attested = a, 1 }
	if _, err := x.backup(use); !errors.Is(err, gone) {
		t.Fatal(err)
	}
	holds := x.replica.holds
	a.broken = nil
	sum, err := x.backup(use)
	if err != nil || !sum.Resumed || x.replica.holds != holds || sum.Attested != "1 of 1" {
		t.Errorf("%+v, %v, held %d times more", sum, err, x.replica.holds-holds)
	}
	x.leavings()
}

// A node that stands behind its newest backup was set back, and is refused.
func TestANodeThatWentBack(t *testing.T) {
	x := newBench(t)
	if _, err := x.backup(nil); err != nil {
		t.Fatal(err)
	}
	x.replica.height -= 5
	holds := x.replica.holds
	if _, err := x.backup(nil); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "went back") || x.replica.holds != holds {
		t.Errorf("%v, held %d times more", err, x.replica.holds-holds)
	}
}
