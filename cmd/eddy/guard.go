package main

import (
	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/observer/control"
)

// newGuardCommand is the process that starts a node again when the eddy that
// stopped it is gone. Only eddy starts it.
func newGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use:    control.GuardVerb,
		Short:  "watch over a held node (started by eddy itself)",
		Hidden: true,
		RunE:   func(*cobra.Command, []string) error { return control.RunGuard() },
	}
}
