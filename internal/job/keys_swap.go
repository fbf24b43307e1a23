package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/snapshot"
)

// Keys and configuration that are restored in one run with the data: their journal has
// the id of the swap, and nothing of it is moved before that has gone forward. While it
// has not ended nothing starts the node, so that the node never sees one without the
// other. What was moved is kept beside what the swap has put aside, for Undo.

// record is the journal of what was moved with the swap that has put kept aside.
func (p *keysPlace) record(kept string) string {
	return filepath.Join(filepath.Dir(p.journal), "keys-"+kept+".json")
}

// swapped ends what is part of a swap: it goes where that went. It may be called again,
// by whoever ends the swap.
func (p *keysPlace) swapped(s *snapshot.Swap, forward bool) error {
	record := p.record(snapshot.BeforePrefix + s.ID)
	j, err := p.read()
	if err != nil {
		return err
	}
	switch {
	case j == nil || j.Swap != s.ID: // there is none, or all of it is in its place
		if forward {
			return nil
		}
		if j, err = readKeysJournal(record); err != nil || j == nil {
			return err
		}
		return p.takeBack(j, record)
	case !forward:
		return p.takeBack(j, p.journal)
	}
	if _, err := p.move(j); err != nil {
		return err
	}
	// What an Undo has brought back needs its record no more.
	if err := ignoreGone(p.fs.Remove(p.record(s.From))); err != nil {
		return err
	}
	if err := p.fs.Rename(p.journal, record); err != nil {
		return err
	}
	return p.fs.SyncDir(filepath.Dir(record))
}

// stageUndo makes the journal that takes back what was moved with an earlier swap, as
// part of the one that takes back its data.
func (p *keysPlace) stageUndo(kept, swap string, now time.Time) error {
	was, err := readKeysJournal(p.record(kept))
	if err != nil || was == nil {
		return err
	}
	j := keysJournal{Format: stateFormat, MinReader: stateMinReader, ID: was.ID, Swap: swap}
	for _, m := range was.Moves {
		back := keysMove{From: m.Saved, To: m.To}
		if m.From != "" { // else nothing came, and nothing is there
			back.Saved = savedName(m.To, now)
		}
		j.Moves = append(j.Moves, back)
	}
	return p.keep(j)
}

// takeBack undoes what was moved of a journal, in a file, and removes what was to come.
// It may be stopped between any two changes and begun again: a place is taken back
// only as long as what was saved of it is there, or what came is not.
func (p *keysPlace) takeBack(j *keysJournal, file string) error {
	for _, m := range j.Moves {
		if err := p.takeOneBack(m); err != nil {
			return fmt.Errorf("take back %s: %w", m.To, err)
		}
	}
	return p.forget(file)
}

func (p *keysPlace) takeOneBack(m keysMove) error {
	saved, err := there(m.Saved)
	if err != nil {
		return err
	}
	came, err := there(m.To)
	if err != nil {
		return err
	}
	waits, err := there(m.From)
	if err != nil {
		return err
	}
	if m.From != "" && !waits && came && (saved || m.Saved == "") {
		if err := p.fs.Rename(m.To, m.From); err != nil {
			return err
		}
		came = false
	}
	if saved && !came {
		if err := p.fs.Rename(m.Saved, m.To); err != nil {
			return err
		}
	}
	// Others are what an earlier restore has put aside.
	if strings.Contains(filepath.Base(m.From), keysComing) {
		if err := ignoreGone(p.fs.Remove(m.From)); err != nil {
			return err
		}
	}
	return p.fs.SyncDir(filepath.Dir(m.To))
}

// there tells whether a file is there, of any kind; "" is not.
func there(name string) (bool, error) {
	if name == "" {
		return false, nil
	}
	_, err := os.Lstat(name)
	return err == nil, ignoreGone(err)
}

// forgetKept removes what was put aside with a swap, for good.
func (p *keysPlace) forgetKept(kept string) error {
	j, err := readKeysJournal(p.record(kept))
	if err != nil || j == nil {
		return err
	}
	for _, m := range j.Moves {
		if m.Saved != "" {
			err = errors.Join(err, ignoreGone(p.fs.Remove(m.Saved)))
		}
	}
	if err != nil {
		return err
	}
	return p.forget(p.record(kept))
}

// sweepKeys removes what a restore in place has left that died before its swap began.
// It needs the workdir's lock. What another user's restore has left is his.
func sweepKeys(fsys fsx.FS, home string) error {
	p := placeOf(fsys, home)
	if st, err := os.Lstat(p.journal); err != nil || !ownFile(st) {
		return nil
	}
	j, err := p.read()
	if err != nil || j == nil || j.Swap == "" {
		return err
	}
	return p.takeBack(j, p.journal)
}

// withKeys claims the home for the configuration of a restore in place and decides
// about it; leave gives it back.
func (r *Replace) withKeys(ctx context.Context, home string) (place *keysPlace, d decided, leave func() error, err error) {
	if r.Keys == nil {
		return nil, d, func() error { return nil }, nil
	}
	r.Keys.Home = home
	if place, err = r.Keys.claim(); err != nil {
		return nil, d, nil, err
	}
	if d, err = r.Keys.decide(ctx); err != nil {
		return nil, d, nil, errors.Join(err, place.leave())
	}
	return place, d, place.leave, nil
}
