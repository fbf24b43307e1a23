package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/uploader"
)

// pinned is the result of `eddy pin` and `eddy unpin`.
type pinned struct {
	ID     string `json:"id"`
	As     string `json:"as"`
	Pinned bool   `json:"pinned"`
	// Until is when the pin ends; the zero time: never.
	Until time.Time `json:"until,omitzero"`
}

func (pinned) MessageType() string { return "pin" }
func (p pinned) Line() string {
	if p.Pinned {
		return fmt.Sprintf("pinned %s as %s", p.ID, uploader.Pin{Who: p.As, Until: p.Until})
	}
	return fmt.Sprintf("unpinned %s as %s", p.ID, p.As)
}

// pinCommand is `eddy pin` or `eddy unpin`: what do does, and whether it is pinned then.
func (a *app) pinCommand(use, short string, pins bool, do func(context.Context, *uploader.Catalog, uploader.Backup, uploader.Pin) error) *cobra.Command {
	var as, last string
	c := &cobra.Command{
		Use: use + " SEL", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := pinTime(last)
			if err != nil {
				return err
			}
			b, cat, err := a.selected(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			p := uploader.Pin{Who: as}
			if d > 0 {
				p.Until = time.Now().Add(d).UTC().Truncate(time.Second)
			}
			if err := do(cmd.Context(), cat, b, p); err != nil {
				return err
			}
			return a.result(pinned{ID: b.ID, As: as, Pinned: pins, Until: p.Until})
		},
	}
	c.Flags().StringVar(&as, "as", "operator", "the name of the pin: a backup may have several")
	if pins {
		c.Flags().StringVar(&last, "for", "", "how long it counts, 90d for instance (default: until it is taken back)")
	}
	return c
}

// pinTime is how long a pin counts; 0: no end was named.
func pinTime(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	var d config.Duration
	if err := d.UnmarshalText([]byte(text)); err != nil || d <= 0 {
		return 0, hint.Add(errorsJoinUsage(fmt.Errorf("%.40q is no time that a pin could count", text)), "write 90d, or 36h")
	}
	return d.D(), nil
}

func pin(ctx context.Context, cat *uploader.Catalog, b uploader.Backup, p uploader.Pin) error {
	return cat.Pin(ctx, b, p, time.Now())
}

func unpin(ctx context.Context, cat *uploader.Catalog, b uploader.Backup, p uploader.Pin) error {
	return cat.Unpin(ctx, b, p.Who)
}
