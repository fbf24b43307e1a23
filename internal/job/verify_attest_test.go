package job

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// oracle is what witnesses say.
type oracle struct {
	verdicts []string
	err      error
	asked    int
	at       observer.Position
}

func (o *oracle) Attest(_ context.Context, p observer.Position, _ observer.Evidence, wait time.Duration) (e observer.Evidence, err error) {
	o.asked++
	o.at = p
	if wait != 0 {
		return e, errors.New("nobody waits here")
	}
	for _, v := range o.verdicts {
		e.Of = append(e.Of, observer.Attestation{Witness: "http://w", Verdict: v, Said: "said"})
	}
	return e, o.err
}

// The witnesses are asked about a backup with which none has agreed, until one does.
// What they say is a grade; the manifest stays.
func TestTheWitnessesAreAskedAgain(t *testing.T) {
	b := newBucket(t, "file")
	cat := b.catalog("c")
	var m *uploader.Manifest
	used := false
	for _, c := range []struct {
		name     string
		oracle   oracle
		noGrade  bool
		err      error
		attested string
		grade    bool
		told     string
	}{
		{"one agrees", oracle{verdicts: []string{observer.Agrees, observer.Laggard}}, false, nil, "1 of 2", true, "attested: 1 of 2 at height"},
		{"no grade", oracle{verdicts: []string{observer.Agrees}}, true, nil, "1 of 1", false, ""},
		{"still pending", oracle{verdicts: []string{observer.Pending}}, false, nil, "pending", false, "attested: pending"},
		{"gone", oracle{verdicts: []string{observer.Pruned}}, false, nil, "0 of 1", false, "pruned"},
		{"a liar", oracle{verdicts: []string{observer.Liar}}, false, ErrWarnings, "0 of 1", false, "lies"},
		{"a fork", oracle{verdicts: []string{observer.Agrees, observer.Fork}}, false, ErrProof, "1 of 2", true, "another history"},
		{"no answer", oracle{err: errors.New("broken")}, false, ErrWarnings, "not possible", false, "could not be asked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if m == nil || used { // of one without a grade nobody knows that it was asked about
				m = b.backupOf("c", 1, uint64(time.Now().UnixNano()), nil)
			}
			used = c.grade
			o := c.oracle
			verify := func(o *oracle, noGrade bool) (Verified, *told, error) {
				said := &told{}
				out, err := (&Verify{Catalog: cat, Selector: m.ID, By: uploader.ByQuick, NoGrade: noGrade, Attester: o, Events: said, Now: time.Now}).Run(t.Context())
				return out, said, err
			}
			out, said, err := verify(&o, c.noGrade)
			if !errors.Is(err, c.err) || out.Attested != c.attested || o.asked != 1 || o.at.Index != m.Position.Index {
				t.Fatalf("attested %q, %v, asked %d times at %v", out.Attested, err, o.asked, o.at)
			}
			if text := strings.Join(said.lines, "\n") + "\n"; !strings.Contains(text, c.told) && err == nil {
				t.Errorf("it said %s", text)
			}
			got, err := cat.Select(t.Context(), m.ID)
			if err != nil || len(got.Grades) > 0 != c.grade || got.Manifest.Attested != m.Attested {
				t.Errorf("%+v, %v", got, err)
			}
			if c.err == ErrProof {
				if got.Failed == nil || got.Failed.By != uploader.ByAttest {
					t.Errorf("a fork: %+v", got.Failed)
				}
				return
			}
			// Once one has agreed nobody is asked again.
			again := &oracle{verdicts: []string{observer.Agrees}}
			if _, _, err := verify(again, true); err != nil || (again.asked == 0) != c.grade {
				t.Errorf("asked %d times again, %v", again.asked, err)
			}
		})
	}
}
