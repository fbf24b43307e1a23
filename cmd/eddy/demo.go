package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	o := demo.Options{Validators: 4}
	var parent string
	c := &cobra.Command{
		Use:   "demo",
		Short: "a chain, an observer, backups, a disaster, a restore and its proof, on this machine",
		Long: `Plays the whole promise on loopback with real processes. Backups go to a
directory, or to the store that --store names. Nothing is left behind.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Eddy, err = os.Executable(); err != nil {
				return err
			}
			if o.Dir, err = os.MkdirTemp(parent, "eddy-demo-"); err != nil {
				return err
			}
			o.Store, o.Endpoint, o.Region, o.Out = a.store, a.endpoint, a.region, a.out
			if o.Store == "" {
				o.Store = "file://" + filepath.Join(o.Dir, "bucket")
			}
			if err := demo.Run(cmd.Context(), o); err != nil {
				return childExit(exitProof) // the story has told why
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.Engine, "engine", "goleveldb", "the nodes' database: goleveldb or pebbledb")
	c.Flags().StringVar(&o.VolumeSize, "volume-size", "", "cut archives into volumes of this size (64MiB)")
	c.Flags().StringVar(&parent, "dir", "", "where to make the temporary directory")
	c.Flags().BoolVar(&o.Keep, "keep", false, "keep the directory")
	return c
}
