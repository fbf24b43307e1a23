package job

import (
	"context"
	"fmt"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// The words of backup.require.opened.
const (
	OpenedPossible = "possible" // all that this eddy can open
	OpenedAll      = "all"
	OpenedPart     = "part"
	OpenedNone     = "none"
)

// check looks into the dump before anything of it is sent, and says where it is:
// what is not sound is refused with ErrProof.
func (b *Backup) check(ctx context.Context, stage *snapshot.Stage, before observer.State, sum *Summary) (*uploader.Check, observer.Position, error) {
	c, ok := b.Replica.(observer.Checker)
	var r observer.Checked
	if ok {
		var err error
		if r, err = c.Check(ctx, stage.Trees(), observer.Position{}); err != nil {
			return nil, observer.Position{}, mark(ErrStage, err)
		}
	}
	at := r.At
	if at == nil && len(r.Findings) == 0 {
		p, err := b.Replica.Locate(ctx, stage, before)
		if err != nil {
			return nil, p, mark(ErrStage, err)
		}
		at = &p
	}
	if at != nil {
		sum.at(*at)
		sum.Hash = fmt.Sprintf("%X", at.Hash)
		b.phase(stage.ID(), "sealed", "the dump is at %s", at)
	}
	if !ok {
		return nil, *at, nil
	}
	out, err := b.sound(stage, r)
	if err != nil {
		return nil, observer.Position{}, err
	}
	return out, *at, nil
}

// sound tells what a look into the dump has shown, and makes an entry of it.
func (b *Backup) sound(stage *snapshot.Stage, r observer.Checked) (*uploader.Check, error) {
	if len(r.Findings) > 0 {
		for _, f := range r.Findings[1:] {
			b.Events.Emit(Warning{Text: "the dump is not sound: " + f})
		}
		return nil, mark(ErrProof, hint.Add(fmt.Errorf("%w: %s", observer.ErrUnsound, r.Findings[0]), r.Hint))
	}
	if r.Unfinished != "" {
		b.warn("the dump could not be checked: "+r.Unfinished, r.Hint)
	} else {
		b.phase(stage.ID(), "check", "%s", whatWasOpened(r))
	}
	return checkOf(r), nil
}

// checkOf is what a manifest, or a grade, has of a look into a dump.
func checkOf(r observer.Checked) *uploader.Check {
	out := &uploader.Check{
		Opened: r.Opened, Grade: r.Grade, Proven: r.Proven, Notes: r.Notes, Seconds: r.Seconds, Peak: r.Peak, Unfinished: r.Unfinished,
	}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, uploader.CheckedLayer(l))
	}
	return out
}

// whatWasOpened is a look into a dump for people.
func whatWasOpened(r observer.Checked) string {
	text := fmt.Sprintf("opened: %s, %s", r.Opened, r.Grade)
	for _, l := range r.Layers {
		if !l.Opened {
			text += fmt.Sprintf("; %s: %s", l.Name, l.Said)
		}
	}
	for _, n := range r.Notes {
		text += "; " + n
	}
	return text
}

// unopened says what the look into a dump lacks to make it the latest; nil: nothing.
func (b *Backup) unopened(m *uploader.Manifest) error {
	rank := map[string]int{OpenedPart: 1, OpenedAll: 2}
	need := b.Opened
	switch {
	case need == "" || need == OpenedPossible:
		if m.Check == nil || m.Check.Unfinished == "" {
			return nil
		}
		need = OpenedPossible
	case rank[m.Opened] >= rank[need]:
		return nil
	}
	return hint.Add(fmt.Errorf("of %s was opened: %s, demanded is: %s (backup.require.opened)", m.ID, m.Opened, need),
		"`eddy show "+m.ID+"` tells what could not be opened and why")
}
