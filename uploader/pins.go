package uploader

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

const pinsPrefix = "pins/"

// pin is data/<id>/pins/<who>.json. That it is there is all that counts.
type pin struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Who       string    `json:"who"`
	Made      time.Time `json:"made"`
}

// Pin keeps retention from deleting a READY backup, until each who that has pinned it
// has taken its pin back. To pin it again is no error. Rules of the bucket know no
// pins.
func (c *Catalog) Pin(ctx context.Context, b Backup, who string, now time.Time) error {
	if err := CheckName(who); err != nil {
		return err
	}
	if b.Status != StatusReady && b.Status != StatusSalvage {
		return hint.Add(fmt.Errorf("%s is %s: there is nothing to keep", b.ID, b.Status), "`eddy list` shows those that are READY")
	}
	body, err := json.MarshalIndent(pin{Format: manifestFormat, MinReader: manifestMinReader, ID: b.ID, Who: who, Made: now.UTC().Truncate(time.Second)}, "", "  ")
	if err != nil {
		return fmt.Errorf("pin %s: %w", b.ID, err)
	}
	if _, err := c.store.PutSmall(ctx, c.pinKey(b.ID, who), append(body, '\n'), "application/json", Condition{}); err != nil {
		return fmt.Errorf("pin %s: %w", b.ID, err)
	}
	return nil
}

// Unpin takes a pin back; ErrNoSuchBackup: there was none of that name.
func (c *Catalog) Unpin(ctx context.Context, b Backup, who string) error {
	if !slices.Contains(b.Pins, who) {
		return hint.Add(fmt.Errorf("%w: %s has no pin of %s", ErrNoSuchBackup, b.ID, who), "those that it has: "+strings.Join(b.Pins, ", "))
	}
	if err := c.store.Delete(ctx, c.pinKey(b.ID, who)); err != nil {
		return fmt.Errorf("unpin %s: %w", b.ID, err)
	}
	return nil
}

func (c *Catalog) pinKey(id, who string) string { return c.ObjectKey(id, pinsPrefix+who+".json") }
