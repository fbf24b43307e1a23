package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netresearch/go-cron"
	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/recovery"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

// finding is a line of `eddy doctor`.
type finding struct{ check.Finding }

func (finding) MessageType() string { return "check" }

func (f finding) Line() string {
	s := fmt.Sprintf("%-4s  %s: %s", f.Level, f.Name, f.Said)
	if f.Hint != "" {
		s += "\n      hint: " + f.Hint
	}
	return s
}

// diagnosis is the last line of `eddy doctor`.
type diagnosis struct {
	OK   int `json:"ok"`
	Warn int `json:"warn"`
	Fail int `json:"fail"`
}

func (diagnosis) MessageType() string { return "doctor" }

func (d diagnosis) Line() string {
	return fmt.Sprintf("%d OK, %d WARN, %d FAIL", d.OK, d.Warn, d.Fail)
}

func (a *app) doctorCommand() *cobra.Command {
	crawl := 20 * time.Second
	cmd := &cobra.Command{
		Use: "doctor", Short: "look at all that a backup will need; change nothing", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(config.NeedBackup)
			if err != nil {
				return err
			}
			return a.judge(cmd.Context(), "a backup would fail, could not be restored, or other nodes list this one: see each FAIL",
				func(show func(check.Finding)) { a.examine(cmd.Context(), c, crawl, show) },
				func(sum diagnosis) ui.Event { return sum })
		},
	}
	cmd.Flags().DurationVar(&crawl, "crawl", crawl, "how long other nodes may be asked whether they tell the node's address; 0: not at all")
	return cmd
}

// judge prints what look finds, and behind it what last makes of the sum. The error
// is the verdict; failed says what a FAIL means.
func (a *app) judge(ctx context.Context, failed string, look func(show func(check.Finding)), last func(diagnosis) ui.Event) error {
	var sum diagnosis
	var printed error
	look(func(f check.Finding) {
		switch f.Level {
		case check.OK:
			sum.OK++
		case check.Warn:
			sum.Warn++
		case check.Fail:
			sum.Fail++
		}
		printed = errors.Join(printed, a.result(finding{f}))
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	switch err := errors.Join(printed, a.result(last(sum))); {
	case err != nil:
		return err
	case sum.Fail > 0:
		return hint.Add(fmt.Errorf("%d of %d checks failed", sum.Fail, sum.OK+sum.Warn+sum.Fail), failed)
	case sum.Warn > 0:
		return job.ErrWarnings
	}
	return nil
}

// examine runs every check that the configuration allows. What cannot be looked
// at is a finding; the rest goes on.
func (a *app) examine(ctx context.Context, c *config.Config, crawl time.Duration, show func(check.Finding)) {
	failed := func(name string, err error, todo string) {
		if h := hint.Of(err); h != "" {
			todo = h
		}
		show(check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: todo})
	}
	show(check.Good("configuration", "no mistakes"))
	amount, currency := c.Store.PerGBMonth()
	d := job.Doctor{
		CopyFallback: c.Stage.Fallback == "copy", Workdir: job.Workdir{Dir: c.Workdir}, Cluster: c.Cluster,
		RetentionBy: c.Retention.By, Keep: c.Retention.Last, PerMonth: perMonth(c.Schedule, time.Now()),
		GBMonth: amount, Currency: currency, Now: time.Now,
	}
	if !c.Replica.Controlled() {
		show(check.Good("control", "nothing is stopped for a backup of kind "+c.Replica.Kind))
	} else if ctl, err := newControl(c); err != nil {
		failed("control", err, "look at replica.control")
	} else {
		for _, f := range control.Checks(ctx, ctl, c.Workdir, c.Replica.Control.Timeout.D()) {
			if f.Name != "restore in place" || c.Replica.Chain() { // no other restore stops or starts a node
				show(f)
			}
		}
	}
	if r, err := a.newSource(c); err != nil {
		failed("home", err, "look at replica.home")
	} else {
		if k, ok := r.(interface {
			Checks(ctx context.Context) []check.Finding
		}); ok {
			for _, f := range k.Checks(ctx) {
				show(f)
			}
		}
		if k, ok := r.(interface {
			Unlisted(ctx context.Context, within time.Duration) []check.Finding
		}); ok && crawl > 0 {
			for _, f := range k.Unlisted(ctx, crawl) {
				show(f)
			}
		}
		_, held := r.(observer.Holder)
		if !c.Replica.Chain() {
			for _, f := range clusterChecks(ctx, r, held) {
				show(f)
			}
		}
		if !held {
			// what it prints goes into the workdir, which is looked at anyway
		} else if d.Roots, err = r.Roots(ctx); err != nil {
			failed("home", err, "look at replica.home")
		}
		if k, ok := r.(interface {
			Size(ctx context.Context) (int64, error)
		}); ok {
			d.DataSize = k.Size
		}
	}
	var err error
	if _, d.Catalog, err = a.openCatalog(ctx, c); err != nil {
		failed("store", err, "look at the store's settings")
	}
	d.Run(ctx, show)
}

// clusterChecks asks a replica that is no chain's who the members are, and whether a
// backup of it could be made now.
func clusterChecks(ctx context.Context, r job.Replica, held bool) []check.Finding {
	const name = "replica"
	failed := func(err error) check.Finding {
		return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: hint.Or(err, "look at `replica` in eddy.yaml; `eddy recover` says what to do where the cluster is in trouble")}
	}
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	s, err := r.Describe(ctx)
	out := recovery.Checks(s, held)
	if err != nil {
		return append(out, failed(err))
	}
	g, ok := r.(observer.Gater)
	if !ok {
		return out
	}
	if err := g.Gate(ctx, s); err != nil {
		return append(out, failed(err))
	}
	said := "fit for a backup now"
	if p := s.Program(); p != "" {
		said += ": " + p
	}
	if s.Position.Index > 0 { // not every system tells it before there is a dump
		said += " at " + s.Position.String()
	}
	return append(out, check.Good(name, said))
}

// perMonth is how often a schedule comes in 30 days.
func perMonth(schedule string, from time.Time) int {
	s, err := cron.ParseStandard(schedule)
	if err != nil { // none is set; a wrong one is a mistake of the configuration
		return 0
	}
	n, end := 0, from.AddDate(0, 0, 30)
	for t := s.Next(from); !t.IsZero() && t.Before(end) && n < 100_000; t = s.Next(t) {
		n++
	}
	return n
}
