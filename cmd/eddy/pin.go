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
	Type string `json:"-"`
	ID   string `json:"id"`
	As   string `json:"as"`
}

func (p pinned) MessageType() string { return p.Type }
func (p pinned) Line() string        { return fmt.Sprintf("%s %s as %s", p.Type, p.ID, p.As) }

// pinCommand is `eddy pin` or `eddy unpin`: what do does, and the word for done.
func (a *app) pinCommand(use, short, done string, do func(context.Context, *uploader.Catalog, uploader.Backup, string) error) *cobra.Command {
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
			return a.result(pinned{Type: done, ID: b.ID, As: as})
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
