package main

import (
	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/observer/cometbft/check"
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

// newCheckCommand is the process that opens a dump's databases. Only eddy starts it.
func newCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:    check.Verb,
		Short:  "open the databases of a dump (started by eddy itself)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return check.Child(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// newUnitGuardCommand is one look at a held unit, at which the timer
// eddy-guard@UNIT starts the node if nobody else can. Only systemd starts it.
func newUnitGuardCommand() *cobra.Command {
	var workdir string
	cmd := &cobra.Command{
		Use:    control.UnitGuardVerb + " UNIT",
		Short:  "look after a held unit (started by systemd)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return control.RunUnitGuard(cmd.Context(), workdir, args[0])
		},
	}
	cmd.Flags().StringVar(&workdir, "workdir", "/var/lib/eddy", "where the hold journal is")
	return cmd
}
