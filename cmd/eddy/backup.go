package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/netresearch/go-cron"
	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/uploader"
)

func (a *app) backupCommand() *cobra.Command {
	var label, pin string
	var newIncarnation, acceptShrink, dryRun, fresh, salvage bool
	c := &cobra.Command{
		Use: "backup", Short: "make one backup now and wait for it", Args: cobra.NoArgs,
		Example: "  eddy backup\n  eddy backup --label before-v18\n  eddy backup --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := uploader.CheckLabel(label); err != nil {
				return hint.Add(errorsJoinUsage(err), "3 to 25 of letters, digits, _ . -, not beginning with two dots")
			}
			keep, err := pinTime(pin)
			if err != nil {
				return err
			}
			boundMemory()
			c, err := a.load(config.NeedBackup)
			if err != nil {
				return err
			}
			if salvage && c.Replica.Chain() {
				return errorsJoinUsage(hint.Add(errors.New("--salvage is not for chains"), "a chain's node holds whole blocks, whoever else is there: `eddy backup`"))
			}
			if dryRun {
				return a.dryRun(cmd.Context(), c)
			}
			t, err := a.newTeller(c)
			if err != nil {
				return err
			}
			b, err := a.newBackup(cmd.Context(), c, t, label)
			if err != nil {
				return t.notBegun(cmd.Context(), err)
			}
			if err := a.sweepDrill(cmd.Context(), c); err != nil {
				return t.notBegun(cmd.Context(), err)
			}
			b.NewIncarn, b.AcceptShrink, b.Fresh, b.Salvage = newIncarnation, acceptShrink, fresh, salvage
			b.Pin = keep
			return a.makeBackup(cmd.Context(), b, t)
		},
	}
	c.Flags().StringVar(&label, "label", "auto", "a word of your own for this backup")
	c.Flags().StringVar(&pin, "pin", "", "keep it that long, 90d for instance, whatever retention says")
	c.Flags().BoolVar(&salvage, "salvage", false, "take what this member has of a cluster that has lost its quorum: no gate, never the latest (not for chains)")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and stop and write nothing")
	c.Flags().BoolVar(&fresh, "fresh", false, "remove what an earlier run has sent instead of going on with it")
	c.Flags().BoolVar(&newIncarnation, "new-incarnation", false, "accept that this cluster's history began anew (another genesis)")
	c.Flags().BoolVar(&acceptShrink, "accept-shrink", false, "accept a dump of less than half the newest backup's size")
	return c
}

// dryRun prints what a backup would do.
func (a *app) dryRun(ctx context.Context, c *config.Config) error {
	rep, err := a.newSource(c)
	if err != nil {
		return err
	}
	d := job.DryRun{Replica: rep, Workdir: job.Workdir{Dir: c.Workdir}, Cluster: c.Cluster, Wait: c.Backup.WhenBehind.Wait()}
	f, gate := d.Run(ctx)
	if f.Cluster == "" {
		return gate
	}
	return errors.Join(a.result(f), gate)
}

// makeBackup runs a backup, prints what came of it, and tells it.
func (a *app) makeBackup(ctx context.Context, b *job.Backup, t *teller) error {
	sum, err := b.Run(ctx)
	defer func() { t.ended(ctx, sum, err) }() // of the run itself, not of the printing
	if sum.Outcome == "" {
		return err
	}
	if perr := a.result(sum); perr != nil && (err == nil || errors.Is(err, job.ErrWarnings)) {
		return perr
	}
	return err
}

// verifyLatest reads the latest backup back, and tells what came of it.
func (a *app) verifyLatest(ctx context.Context, c *config.Config, t *teller) error {
	cat, err := a.openTrusted(ctx, c, nil)
	if err != nil {
		return err
	}
	v := job.Verify{Catalog: cat, Selector: "latest", By: uploader.ByReadData, Version: version, Host: t.host, Events: a.ui, Now: time.Now}
	v.NoOpen, v.Lookers, v.Scratch = c.Verify.Open == "false", lookers(c), scratch(c, "")
	v.Attester = attester(c)
	done, err := v.Run(ctx)
	if done.ID != "" {
		a.ui.Emit(done)
	}
	if done.Grade == uploader.GradeVerified {
		if werr := t.workdir().Verified(time.Now()); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	t.proved(ctx, "verify", err)
	return err
}

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "the daemon: back up by the schedule until told to stop", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			boundMemory()
			c, err := a.load(config.NeedRun)
			if err != nil {
				return err
			}
			schedule, err := cron.ParseStandard(c.Schedule)
			if err != nil {
				return err // config has parsed it before
			}
			t, err := a.newTeller(c)
			if err != nil {
				return err
			}
			first, err := a.newBackup(cmd.Context(), c, t, "auto")
			if err != nil {
				return t.notBegun(cmd.Context(), err)
			}
			d := &job.Daemon{
				Workdir: first.Workdir, Schedule: schedule, Events: a.ui, Watch: t, Now: first.Now,
				Recover: first.Replica.Recover,
				Backup: func(ctx context.Context) error {
					b, err := a.newBackup(ctx, c, t, "auto")
					if err != nil {
						return t.notBegun(ctx, err)
					}
					return a.makeBackup(ctx, b, t)
				},
			}
			if c.Retention.By == "eddy" {
				d.Expire = func(ctx context.Context) error {
					return a.expire(ctx, first.Catalog, uploader.Policy{Last: c.Retention.Last}, c.Keys.Keep, true)
				}
			}
			if c.Verify.ReadData != "" {
				when, err := cron.ParseStandard(c.Verify.ReadData)
				if err != nil {
					return err // config has parsed it before
				}
				d.Tasks = append(d.Tasks, job.Task{Name: "verify", Schedule: when, Run: func(ctx context.Context) error { return a.verifyLatest(ctx, c, t) }})
			}
			if err := a.drills(c, t, d); err != nil {
				return err
			}
			if err := a.keysTask(c, t, d); err != nil {
				return err
			}
			if err := a.sweepDrill(cmd.Context(), c); err != nil {
				a.ui.Emit(job.Warning{Text: err.Error(), Hint: hint.Of(err)})
			}
			ctx, stop := context.WithCancel(cmd.Context())
			var metrics sync.WaitGroup
			metrics.Go(func() { t.keep(ctx) })
			defer metrics.Wait()
			defer stop()
			return d.Run(ctx)
		},
	}
}
