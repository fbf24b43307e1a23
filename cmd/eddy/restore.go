package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
)

func errorsJoinUsage(err error) error { return fmt.Errorf("%w: %w", errUsage, err) }

// restoreFlags are those of `eddy restore`.
type restoreFlags struct {
	into, owner           string
	only, roots           []string
	noStart, undo, forget bool
	acceptFailed          bool
	overwrite             bool
	signers               []string
	rollback              uint64
	lost                  string
	keys, node            string
	otherNode             bool
}

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore SEL [--into DIR]",
		Short: "bring a backup back, in place or into a directory",
		Long: `Restore one backup. SEL is an id, the beginning of one, latest, verified, drilled,
height:N, before:TIME or label:L.

With --into it fills an empty or absent directory, and needs neither configuration
nor node. Without, it replaces the data of the node that the configuration names:
the backup is extracted beside the data and verified while the node runs, then the
node is stopped, names are exchanged, and it is started again. Config, keys and the
sign state stay as they are. What was there before is kept: --undo brings it back,
--forget removes it. A restore that was killed is gone on with by the next one, and
nothing starts the node between two of its steps.

A dump of what is no chain is opened with -i FILE, looked at once more, and given back to
its system, which is another work for each: docs/etcd.md, consul.md, zookeeper.md, swarm.md,
command.md. What is there is saved first; a target that is not fresh needs --overwrite-live.
There is no --undo.

With --keys the node's keys and configuration come back behind the data, in the same
run: killed anywhere, the next run goes on, and nothing starts the node before both are
there. The plan is shown first, file by file. The node is left down: look at the
addresses (eddy keys check, eddy keys peers), then start it. What signs blocks stays in
the bundle, eddy keys restore --with-validator-key is for that.

A restore never takes a chain back: where blocks above the backup's would be lost for
good it refuses. That decision is --rollback-chain, with the lost heights typed in, on
every node of the chain (docs/runbooks/chain-rollback.md).`,
		Example: "  eddy restore latest\n  eddy restore --undo\n  eddy restore latest --into /var/lib/gaia-restored\n  eddy restore height:1200000 --into /srv/x --store s3://backups/eddy --cluster gaia-main",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(args); err != nil {
				return errorsJoinUsage(err)
			}
			boundMemory()
			if f.into != "" {
				return a.restoreInto(cmd.Context(), f, args[0])
			}
			return a.restoreInPlace(cmd.Context(), f, args)
		},
	}
	c.Flags().StringVar(&f.into, "into", "", "fill this directory, empty or absent, instead of replacing the node's data")
	c.Flags().StringVar(&f.owner, "owner", "", "USER:GROUP of the restored files (default: the owner of DIR or of its nearest parent, of the home in place)")
	c.Flags().StringArrayVar(&f.only, "only", nil, "restore only what matches this glob (repeatable; with --into)")
	c.Flags().StringArrayVar(&f.roots, "root", nil, "NAME=DIR: where a root outside the home belongs on this machine (repeatable; in place)")
	c.Flags().BoolVar(&f.noStart, "no-start", false, "leave the node down (in place)")
	c.Flags().BoolVar(&f.acceptFailed, "accept-failed", false, "restore it although a proof of it failed")
	c.Flags().StringArrayVar(&f.signers, "signer", nil, "public key, or its PEM file: take only what it has signed (repeatable; default: signers)")
	c.Flags().BoolVar(&f.overwrite, "overwrite-live", false, "let a dump replace what lives (swarm, zookeeper, etcd, consul)")
	c.Flags().StringVar(&f.keys, "keys", "", "restore this bundle of keys and configuration, too: latest, an id, before:TIME (needs -i)")
	c.Flags().StringVar(&f.node, "node", "", "with --keys: whose bundle (default: the only node that has any)")
	c.Flags().BoolVar(&f.otherNode, "other-node", false, "with --keys: allow the bundle of another node: this home becomes that one")
	c.Flags().Uint64Var(&f.rollback, "rollback-chain", 0, "take the whole chain back to this height, the backup's: sign states are lowered, the node stays down")
	c.Flags().StringVar(&f.lost, "lost", "", "FIRST-LAST: the heights that --rollback-chain gives up, typed; --yes does not stand for it")
	c.Flags().BoolVar(&f.undo, "undo", false, "bring back what was there before the newest restore in place")
	c.Flags().BoolVar(&f.forget, "forget", false, "remove what restores in place have kept")
	return c
}

func (f restoreFlags) check(args []string) error {
	switch {
	case f.undo && f.forget:
		return errors.New("--undo and --forget exclude each other")
	case (f.undo || f.forget) && (len(args) > 0 || f.into != ""):
		return errors.New("--undo and --forget take no backup and no --into: they are of the node's home")
	case !f.undo && !f.forget && len(args) == 0:
		return hint.Add(errors.New("no backup was named"), "`eddy list` shows them; latest is one")
	case f.into != "" && (f.noStart || len(f.roots) > 0):
		return errors.New("--no-start and --root are for a restore in place, without --into")
	case f.rollback > 0 && (f.undo || f.forget || f.into != ""):
		return errors.New("--rollback-chain replaces a node's data by a backup: without --into, --undo and --forget")
	case f.lost != "" && f.rollback == 0:
		return errors.New("--lost is for --rollback-chain HEIGHT")
	case f.keys == "" && (f.node != "" || f.otherNode):
		return errors.New("--node and --other-node are for --keys SEL")
	case f.keys != "" && (f.undo || f.forget || len(f.only) > 0):
		return hint.Add(errors.New("--keys is for a whole restore: without --only, --undo and --forget"), "`eddy keys restore latest` brings back single files of a bundle")
	case f.into == "" && len(f.only) > 0:
		return hint.Add(errors.New("--only needs --into: a node's data are replaced whole"), "name an empty or absent directory")
	}
	return nil
}

func (a *app) newRestore(ctx context.Context, c *config.Config, f restoreFlags, sel string) (r job.Restore, err error) {
	cat, err := a.openTrusted(ctx, c, f.signers)
	if err != nil {
		return r, err
	}
	r = job.Restore{Store: cat.Store(), Catalog: cat, Selector: sel, AcceptFailed: f.acceptFailed, Into: f.into, Only: f.only, Home: c.Replica.Home, Events: a.ui, Now: time.Now}
	ids, err := a.readIdentities()
	if err != nil {
		return r, err
	}
	if len(ids) > 0 {
		r.Unseal = ids.DecryptAt
	}
	if r.Host, err = os.Hostname(); err != nil {
		return r, fmt.Errorf("host name: %w", err)
	}
	if f.owner != "" {
		if r.Owner, err = job.ParseOwner(f.owner); err != nil {
			return r, errorsJoinUsage(err)
		}
	}
	if f.keys != "" {
		r.Keys, err = a.keysBeside(ctx, c, f)
	}
	return r, err
}

// keysBeside is the bundle that is restored with the data. What is asked in place is
// asked once for both, behind its plan. --owner means the data: of a bundle each file
// has its own, a unit's is root.
func (a *app) keysBeside(ctx context.Context, c *config.Config, f restoreFlags) (*job.KeysRestore, error) {
	r := &job.KeysRestore{Selector: f.keys, Root: "/", OtherNode: f.otherNode, Events: a.ui, Now: time.Now}
	if err := a.bundleOf(ctx, c, r, f.node, f.signers); err != nil {
		return nil, err
	}
	r.Confirm = func(plan []job.KeysFile) error {
		writes := 0
		for _, p := range plan {
			a.ui.Emit(p)
			if p.Writes() {
				writes++
			}
		}
		if f.into == "" || writes == 0 {
			return nil
		}
		return a.confirm(fmt.Sprintf("restore %s into %s, and write these %d files, keys among them", f.keys, f.into, writes), c.Cluster)
	}
	return r, nil
}

func (a *app) restoreInto(ctx context.Context, f restoreFlags, sel string) error {
	c, err := a.load(config.NeedCatalog)
	if err != nil {
		return err
	}
	r, err := a.newRestore(ctx, c, f, sel)
	if err != nil {
		return err
	}
	done, err := r.Run(ctx)
	if err != nil {
		return err
	}
	return a.result(done)
}

func (a *app) restoreInPlace(ctx context.Context, f restoreFlags, args []string) error {
	need := config.NeedBackup
	if f.undo || f.forget { // what they bring back, or remove, is in the home
		need = config.NeedReplica | config.NeedCluster
	}
	c, err := a.load(need)
	if err != nil {
		return hint.Add(err, "a restore in place needs to know the node; one --into DIR only the store and the cluster")
	}
	for _, r := range f.roots {
		name, dir, ok := strings.Cut(r, "=")
		if !ok || name == "" || !filepath.IsAbs(dir) {
			return errorsJoinUsage(fmt.Errorf("--root %q is not NAME=DIR with an absolute path", r))
		}
		if c.Roots == nil {
			c.Roots = map[string]string{}
		}
		c.Roots[name] = dir
	}
	if !c.Replica.Chain() {
		return a.bringBack(ctx, c, f, args)
	}
	rep, err := newReplica(c)
	if err != nil {
		return err
	}
	r := &job.Replace{
		Replica: rep, Workdir: job.Workdir{Dir: c.Workdir}, NoStart: f.noStart || f.rollback > 0 || f.keys != "",
		RollbackTo:  f.rollback,
		ConfirmLost: func(first, known uint64) (uint64, error) { return a.confirmLost(f.lost, first, known) },
		Confirm: func(there, comes string) error {
			return a.confirm(fmt.Sprintf("there is: %s\ncomes:    %s", there, comes), c.Cluster)
		},
	}
	if f.undo || f.forget {
		r.Restore = job.Restore{Events: a.ui, Now: time.Now}
	} else if r.Restore, err = a.newRestore(ctx, c, f, args[0]); err != nil {
		return err
	}
	if f.forget {
		done, err := r.Forget(ctx)
		if err != nil {
			return err
		}
		return a.result(done)
	}
	var done job.Restored
	if f.undo {
		done, err = r.Undo(ctx)
	} else {
		done, err = r.Run(ctx)
	}
	if err != nil && !errors.Is(err, job.ErrWarnings) {
		return err
	}
	return errors.Join(a.result(done), err)
}

// confirmLost asks for the heights that a rollback gives up, where typed does not have
// them. Who takes back many nodes by a script gives each of them the highest that any
// of them knows of.
func (a *app) confirmLost(typed string, first, known uint64) (last uint64, err error) {
	question := fmt.Sprintf("the whole chain goes back to height %d. No block above it that this node knows of: the other nodes know what is lost", first-1)
	want := fmt.Sprintf("%d-HEIGHT, the highest of all nodes", first)
	if known >= first {
		question = fmt.Sprintf("the whole chain goes back to height %d: the blocks %d to %d are given up, and may be signed again", first-1, first, known)
		want = fmt.Sprintf("%d-%d", first, known)
	}
	if typed == "" {
		if !ui.IsTerminal(a.in) {
			return 0, hint.Add(fmt.Errorf("%s: %w", question, job.ErrNotConfirmed), "say --lost "+want+"; --yes is not enough")
		}
		fmt.Fprintf(a.err, "%s\ntype %s to go on: ", question, want)
		_, _ = fmt.Fscanln(a.in, &typed) // nothing is what nobody meant
	}
	from, to, ok := strings.Cut(typed, "-")
	begin, err1 := strconv.ParseUint(from, 10, 63)
	last, err2 := strconv.ParseUint(to, 10, 63)
	if !ok || err1 != nil || err2 != nil || begin != first || last < max(first, known) {
		return 0, hint.Add(fmt.Errorf("%s; %.40q was typed: %w", question, typed, job.ErrNotConfirmed), "the lost heights are "+want)
	}
	return last, nil
}
