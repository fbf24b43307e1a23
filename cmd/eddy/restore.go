package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
)

func errorsJoinUsage(err error) error { return fmt.Errorf("%w: %w", errUsage, err) }

func (a *app) restoreCommand() *cobra.Command {
	var into, owner string
	var only []string
	c := &cobra.Command{
		Use:   "restore SEL --into DIR",
		Short: "bring a backup back into an empty or absent directory",
		Long: `Restore one backup. SEL is an id, the beginning of one, latest, height:N,
before:TIME or label:L.

Nothing appears in DIR before every byte has been compared with the archive's
index. Keys and sign states are in no archive: the node's config and its
priv_validator_state.json stay where they are.`,
		Example: "  eddy restore latest --into /var/lib/gaia-restored\n  eddy restore height:1200000 --into /srv/x --store s3://backups/eddy --cluster gaia-main",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if into == "" {
				return hint.Add(errorsJoinUsage(fmt.Errorf("--into is missing")), "name an empty or absent directory")
			}
			boundMemory()
			c, err := a.load(config.NeedCatalog)
			if err != nil {
				return err
			}
			_, cat, err := a.openCatalog(cmd.Context(), c)
			if err != nil {
				return err
			}
			r := &job.Restore{Store: cat.Store(), Catalog: cat, Selector: args[0], Into: into, Only: only, Home: c.Replica.Home, Events: a.ui, Now: time.Now}
			if owner != "" {
				if r.Owner, err = job.ParseOwner(owner); err != nil {
					return errorsJoinUsage(err)
				}
			}
			done, err := r.Run(cmd.Context())
			if err != nil {
				return err
			}
			return a.result(done)
		},
	}
	c.Flags().StringVar(&into, "into", "", "the directory to fill, empty or absent")
	c.Flags().StringVar(&owner, "owner", "", "USER:GROUP of the restored files (default: the owner of DIR or of its nearest parent)")
	c.Flags().StringArrayVar(&only, "only", nil, "restore only what matches this glob (repeatable)")
	return c
}
