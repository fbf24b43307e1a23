package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/uploader"
)

// pinned is the result of `eddy pin` and `eddy unpin`.
type pinned struct {
	ID     string `json:"id"`
	As     string `json:"as"`
	Pinned bool   `json:"pinned"`
}

func (pinned) MessageType() string { return "pin" }
func (p pinned) Line() string {
	if p.Pinned {
		return fmt.Sprintf("pinned %s as %s", p.ID, p.As)
	}
	return fmt.Sprintf("unpinned %s as %s", p.ID, p.As)
}

// pinCommand is `eddy pin` or `eddy unpin`: what do does, and whether it is pinned then.
func (a *app) pinCommand(use, short string, pins bool, do func(context.Context, *uploader.Catalog, uploader.Backup, string) error) *cobra.Command {
	var as string
	c := &cobra.Command{
		Use: use + " SEL", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, cat, err := a.selected(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := do(cmd.Context(), cat, b, as); err != nil {
				return err
			}
			return a.result(pinned{ID: b.ID, As: as, Pinned: pins})
		},
	}
	c.Flags().StringVar(&as, "as", "operator", "the name of the pin: a backup may have several")
	return c
}

func pin(ctx context.Context, cat *uploader.Catalog, b uploader.Backup, as string) error {
	return cat.Pin(ctx, b, as, time.Now())
}

func unpin(ctx context.Context, cat *uploader.Catalog, b uploader.Backup, as string) error {
	return cat.Unpin(ctx, b, as)
}
