package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// keysRestoreFlags are those of `eddy keys restore`.
type keysRestoreFlags struct {
	node, into, owner string
	only, signers     []string
	otherNode, dryRun bool
	validatorKey      bool
	noWitness         bool
	address           string
}

func (a *app) keysRestore() *cobra.Command {
	var f keysRestoreFlags
	c := &cobra.Command{
		Use: "restore SEL [--node NODE] [--into DIR]", Short: "open a bundle and bring its files back", Args: cobra.ExactArgs(1),
		Long: `Open a bundle with an identity and bring its files back. SEL is latest, an id, the
beginning of one, or before:TIME.

With --into the files of the node's home go to DIR/home, all others to DIR/root. Without, they go where
they were: into the home that --home or the configuration names, and by their absolute
paths. What would be done is shown first, file by file; a file that is there and
differs is kept beside, as NAME.eddy-saved-TIME. A bundle of another node than the one
whose key is there is refused.

What signs blocks, a validator key and its sign state, stays in the bundle, unless
--with-validator-key is said: then the witnesses are asked whether somebody signs with
it, and its sign state becomes one below which it can have signed nothing.`,
		Example: "  eddy keys restore latest --node val-1 --into /root/val-1 -i gaia-main.identity\n  eddy keys restore latest --node val-1 --home /var/lib/gaia -i gaia-main.identity --only 'config/*.toml'",
		RunE: func(cmd *cobra.Command, args []string) error {
			done, err := a.restoreKeys(cmd.Context(), f, args[0])
			if err != nil {
				return err
			}
			return a.result(done)
		},
	}
	c.Flags().StringVar(&f.node, "node", "", "whose bundle (default: the only node that has any)")
	c.Flags().StringVar(&f.into, "into", "", "bring the files below this directory instead of to their places")
	c.Flags().StringArrayVar(&f.only, "only", nil, "only files whose name, or path below the home, fits this glob (repeatable)")
	c.Flags().StringVar(&f.owner, "owner", "", "USER:GROUP of all files (default: the owners that they had, by name)")
	c.Flags().BoolVar(&f.otherNode, "other-node", false, "allow the bundle of another node: this home becomes that one")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would be done, and change nothing")
	c.Flags().BoolVar(&f.validatorKey, "with-validator-key", false, "bring the validator key back, too, where the witnesses see nobody sign with it")
	c.Flags().BoolVar(&f.noWitness, "no-witness", false, "no witness can be had: the key comes back when its consensus address is typed")
	c.Flags().StringVar(&f.address, "consensus-address", "", "with --no-witness: the key's consensus address, typed; --yes does not stand for it")
	c.Flags().StringArrayVar(&f.signers, "signer", nil, "public key, or its PEM file: take only what it has signed (repeatable; default: signers)")
	return c
}

func (a *app) restoreKeys(ctx context.Context, f keysRestoreFlags, sel string) (job.KeysRestored, error) {
	var none job.KeysRestored
	for _, glob := range f.only {
		if _, err := path.Match(glob, "x"); err != nil {
			return none, errorsJoinUsage(fmt.Errorf("--only %q is no pattern", glob))
		}
	}
	if !f.validatorKey && (f.noWitness || f.address != "") {
		return none, errorsJoinUsage(errors.New("--no-witness and --consensus-address are for --with-validator-key"))
	}
	c, err := a.load(config.NeedCatalog)
	if err != nil {
		return none, err
	}
	home, err := homeOf(c)
	if err != nil {
		return none, err
	}
	r := job.KeysRestore{Selector: sel, Home: home, Root: "/", Only: f.only, OtherNode: f.otherNode, DryRun: f.dryRun, Events: a.ui, Now: time.Now}
	if f.into != "" {
		into, err := filepath.Abs(f.into)
		if err != nil {
			return none, err
		}
		r.Home, r.Root = filepath.Join(into, "home"), filepath.Join(into, "root")
	}
	if r.Home == "" {
		return none, hint.Add(errorsJoinUsage(errors.New("nothing says where the node's home is")), "say --home DIR, or --into DIR to look at the files first")
	}
	if f.validatorKey {
		r.Signs = keySigns{a: a, c: c, home: r.Home, noWitness: f.noWitness, address: f.address}.decide
	}
	if f.owner != "" {
		if r.Owner, err = job.ParseOwner(f.owner); err != nil {
			return none, errorsJoinUsage(err)
		}
	}
	if err := a.bundleOf(ctx, c, &r, f.node, f.signers); err != nil {
		return none, err
	}
	r.Confirm = func(plan []job.KeysFile) error {
		writes := 0
		for _, p := range plan {
			if f.dryRun {
				if err := a.result(p); err != nil {
					return err
				}
				continue
			}
			a.ui.Emit(p)
			if p.Writes() {
				writes++
			}
		}
		if f.dryRun || f.into != "" || writes == 0 {
			return nil
		}
		return a.confirm(fmt.Sprintf("write these %d files, keys among them, into %s and their other places", writes, r.Home), c.Cluster)
	}
	return r.Run(ctx)
}

// bundleOf fills in where the bundle of a node is, and who opens it.
func (a *app) bundleOf(ctx context.Context, c *config.Config, r *job.KeysRestore, node string, signers []string) (err error) {
	if r.Identities, err = a.readIdentities(); err != nil {
		return err
	}
	if len(r.Identities) == 0 {
		return hint.Add(fmt.Errorf("%w: none was named", bundle.ErrIdentity), "say -i FILE, or set "+identityVar+"; the recovery sheet says where the identity is kept")
	}
	if r.Catalog, err = a.openTrusted(ctx, c, signers); err != nil {
		return err
	}
	r.Node, err = oneNode(ctx, r.Catalog, node)
	return err
}
