package uploader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

const pinsPrefix = "pins/"

// pin is data/<id>/pins/<who>.json. One that cannot be read counts as one without an
// end.
type pin struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Who       string    `json:"who"`
	Made      time.Time `json:"made"`
	Until     time.Time `json:"until,omitzero"`
}

const (
	maxPin   = 64 << 10 // bytes
	readPins = 16       // pins of a backup that a listing reads at most; the others count as without an end
)

// Pin keeps a backup.
type Pin struct {
	Who   string    `json:"who"`
	Until time.Time `json:"until,omitzero"` // the zero time: for ever
}

// String is the pin for people.
func (p Pin) String() string {
	if p.Until.IsZero() {
		return p.Who
	}
	return p.Who + " until " + p.Until.UTC().Format(time.DateOnly)
}

// Pin keeps retention from deleting a READY backup, until each who that has pinned it
// has taken its pin back, or the pin's time is over. To pin it again is no error: the
// new pin takes the place of the old one of that name. Rules of the bucket know no pins.
func (c *Catalog) Pin(ctx context.Context, b Backup, p Pin, now time.Time) error {
	if b.Status != StatusReady && b.Status != StatusSalvage {
		return hint.Add(fmt.Errorf("%s is %s: there is nothing to keep", b.ID, b.Status), "`eddy list` shows those that are READY")
	}
	return c.PinAhead(ctx, b.ID, p, now)
}

// PinAhead is Pin for a backup that is about to be READY: it never is without.
func (c *Catalog) PinAhead(ctx context.Context, id string, p Pin, now time.Time) error {
	if err := CheckName(p.Who); err != nil {
		return err
	}
	body, err := json.MarshalIndent(pin{
		Format: manifestFormat, MinReader: manifestMinReader, ID: id, Who: p.Who,
		Made: now.UTC().Truncate(time.Second), Until: p.Until.UTC().Truncate(time.Second),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("pin %s: %w", id, err)
	}
	if _, err := c.store.PutSmall(ctx, c.pinKey(id, p.Who), append(body, '\n'), "application/json", Condition{}); err != nil {
		return fmt.Errorf("pin %s: %w", id, err)
	}
	return nil
}

// pinned reads how long the pins of a backup count, and drops those whose time is
// over.
func (c *Catalog) pinned(ctx context.Context, b *Backup, now time.Time) error {
	pins := b.Pins
	b.Pins = nil
	for i, p := range pins {
		if i < readPins {
			body, _, err := c.store.GetSmall(ctx, c.pinKey(b.ID, p.Who), maxPin)
			switch {
			case errors.Is(err, ErrNotFound): // taken back since it was listed
				continue
			case err != nil && !errors.Is(err, ErrDamaged):
				return err
			case err == nil:
				p.Until = pinUntil(body)
			}
		}
		if p.Until.IsZero() || now.Before(p.Until) {
			b.Pins = append(b.Pins, p)
		}
	}
	return nil
}

// pinUntil is when a pin ends; the zero time where it does not say, or cannot be read.
func pinUntil(body []byte) time.Time {
	var p pin
	if readable("pin", body) != nil || json.Unmarshal(body, &p) != nil {
		return time.Time{}
	}
	return p.Until
}

// Unpin takes a pin back; ErrNoSuchBackup: there was none of that name.
func (c *Catalog) Unpin(ctx context.Context, b Backup, who string) error {
	if !slices.ContainsFunc(b.Pins, func(p Pin) bool { return p.Who == who }) {
		return hint.Add(fmt.Errorf("%w: %s has no pin of %s", ErrNoSuchBackup, b.ID, who), "those that it has: "+PinText(b.Pins))
	}
	if err := c.store.Delete(ctx, c.pinKey(b.ID, who)); err != nil {
		return fmt.Errorf("unpin %s: %w", b.ID, err)
	}
	return nil
}

// PinText is pins for people, "" of none.
func PinText(pins []Pin) string {
	words := make([]string, len(pins))
	for i, p := range pins {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

func (c *Catalog) pinKey(id, who string) string { return c.ObjectKey(id, pinsPrefix+who+".json") }
