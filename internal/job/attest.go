package job

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// attest asks the witnesses about the dump and takes down what they say. It is
// asked at once, while they still have that height, and once more before the
// commit, of those who could not say. A fork ends the attempt: nothing of it
// counts.
func (s *sender) attest(ctx context.Context, wait time.Duration) error {
	b, m := s.b, &s.a.Manifest
	a, ok := b.Replica.(observer.Attester)
	if !ok || s.sent || !m.Times.Uploaded.IsZero() {
		return nil
	}
	first := m.Attest == nil
	before := evidence(m)
	if !first && (before.NotPossible != "" || settled(before)) {
		return nil
	}
	e, err := a.Attest(ctx, PositionOf(m), before, wait)
	if err != nil {
		return fmt.Errorf("attest: %w", err)
	}
	if e.Refuted != "" {
		return hint.Add(fmt.Errorf("%w: this is not the chain that is trusted: %s", ErrProof, e.Refuted),
			"look attest.trusted.height and attest.trusted.hash up once more where you took them from; if they are right, the node and its witnesses follow another chain")
	}
	m.Attest, m.Attested = attestOf(e), e.Grade()
	if err := forked(e); err != nil {
		return err
	}
	if err := b.Workdir.keep(s.a); err != nil {
		return err
	}
	if !first && e.Grade() == before.Grade() {
		return nil
	}
	s.say(e)
	return nil
}

// say tells what came of it, each liar by name.
func (s *sender) say(e observer.Evidence) {
	m := &s.a.Manifest
	sayAttested(e, PositionOf(m), func(text string) { s.b.phase(m.ID, "attest", "%s", text) }, s.b.warn)
}

func sayAttested(e observer.Evidence, at observer.Position, phase func(text string), warn func(text, advice string)) {
	if e.NotPossible != "" {
		phase("attested: not possible: " + e.NotPossible)
		return
	}
	var not []string
	for _, w := range e.Of {
		if w.Verdict != observer.Agrees {
			not = append(not, fmt.Sprintf("%s: %s (%s)", w.Witness, w.Verdict, w.Said))
		}
		if w.Verdict == observer.Liar {
			advice := "write the RPC address of another node of the chain in place of " + w.Witness + " in replica.witnesses"
			if at.Kind != "cometbft" {
				advice = "others agree with the dump, so that its data may be damaged: look at that member before you rely on it"
			}
			warn(fmt.Sprintf("witness %s lies, and counts for nothing: %s", w.Witness, w.Said), advice)
		}
	}
	text := fmt.Sprintf("attested: %s at %s", e.Grade(), at)
	if len(not) > 0 {
		text += "; " + strings.Join(not, "; ")
	}
	phase(text)
}

// forked is the error of a witness that proves another history; nil: none does.
func forked(e observer.Evidence) error {
	for _, w := range e.Of {
		if w.Verdict == observer.Fork {
			return hint.Add(fmt.Errorf("%w: others have another history than the dump: witness %s: %s", ErrProof, w.Witness, w.Said),
				"restore no backup of this node before you know why: it may be on a fork, or its data damaged; ask those who run the others which history it goes on with")
		}
	}
	return nil
}

// lacks says what the backup lacks to become the latest; nil: nothing. Where
// nobody can be asked nothing is demanded.
func (s *sender) lacks() error {
	if err := s.b.unopened(&s.a.Manifest); err != nil {
		return err
	}
	e := evidence(&s.a.Manifest)
	n := e.Count(observer.Agrees)
	if len(e.Of) == 0 || n >= s.b.Attested {
		return nil
	}
	return hint.Add(fmt.Errorf("%d of %d witnesses agree with %s, %d must (backup.require.attested)", n, len(e.Of), s.a.Manifest.ID, s.b.Attested),
		"`eddy show "+s.a.Manifest.ID+"` tells what each of them said; the next backup asks again")
}

func settled(e observer.Evidence) bool {
	for _, a := range e.Of {
		if !a.Settled() {
			return false
		}
	}
	return true
}

// PositionOf is the position that a manifest records.
func PositionOf(m *uploader.Manifest) observer.Position {
	p := m.Position
	hash, err := hex.DecodeString(p.Hash)
	if err != nil {
		hash = nil // no eddy writes that; it agrees with nobody's
	}
	return observer.Position{
		Kind: p.Kind, Incarnation: m.Incarnation, Epoch: p.Epoch, Index: p.Index, Hash: hash, HashKind: p.HashKind,
		Time: p.Time, Consistency: p.Consistency, Marks: p.Marks,
	}
}

func attestOf(e observer.Evidence) *uploader.Attest {
	out := &uploader.Attest{Trust: e.Trust, NotPossible: e.NotPossible}
	for _, a := range e.Of {
		out.Witnesses = append(out.Witnesses, uploader.Attestation(a))
	}
	return out
}

func evidence(m *uploader.Manifest) (e observer.Evidence) {
	if m.Attest == nil {
		return e
	}
	e.Trust, e.NotPossible = m.Attest.Trust, m.Attest.NotPossible
	for _, a := range m.Attest.Witnesses {
		e.Of = append(e.Of, observer.Attestation(a))
	}
	return e
}
