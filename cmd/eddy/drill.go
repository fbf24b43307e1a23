package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/netresearch/go-cron"
	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/detect"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/observer/cometbft/drill"
)

func (a *app) drillCommand() *cobra.Command {
	var keep bool
	var blocks int
	c := &cobra.Command{
		Use: "drill [SEL]", Short: "bring a backup to life, apart from everything that matters", Args: cobra.MaximumNArgs(1),
		Long: `Restore a backup into a scratch directory, start the chain's own program on it with
fresh keys and without a network, and let it execute the blocks after it. It passes
when the app hash after each of them is the one that the living chain has. What came
of it is written beside the backup. Nothing is left: no process, no file, no port.

Of etcd a cluster of one on loopback is made of the dump, and must have its hash and its
keys. Of a Consul a fresh server on loopback takes the snapshot, and must have as many keys as
that. Of a server of ZooKeeper the copy runs alone on loopback, plays its log, and must come
to the tree that its leader had. Of a manager of a swarm an engine without a network makes
a swarm of the copy, which must have the objects of the dump. These need -i FILE. Other
kinds are not drilled.

SEL is latest unless it is given. The live node is not touched.`,
		Example: "  eddy drill\n  eddy drill label:before-v18 --blocks 100\n  eddy drill --keep",
		RunE: func(cmd *cobra.Command, args []string) error {
			boundMemory()
			c, err := a.load(config.NeedDrill)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("blocks") {
				c.Drill.Blocks = blocks
			}
			if c.Drill.Blocks < 1 {
				return errorsJoinUsage(hint.Add(errors.New("--blocks is less than 1"), "20 is a good number"))
			}
			sel := "latest"
			if len(args) == 1 {
				sel = args[0]
			}
			return a.drill(cmd.Context(), c, sel, keep)
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave the copy and its log for a look; nothing of it runs")
	c.Flags().IntVar(&blocks, "blocks", 0, "how many blocks must be executed (default: drill.blocks, 20)")
	return c
}

// drill drills one backup and prints what came of it.
func (a *app) drill(ctx context.Context, c *config.Config, sel string, keep bool) error {
	_, err := a.drillOnce(ctx, c, sel, keep)
	return err
}

func (a *app) drillOnce(ctx context.Context, c *config.Config, sel string, keep bool) (job.Drilled, error) {
	d, err := a.newDrill(ctx, c, sel)
	if err != nil {
		return job.Drilled{}, err
	}
	d.Keep = keep
	out, err := d.Run(ctx)
	if out.Outcome == "" {
		return out, err
	}
	if perr := a.result(out); perr != nil && (err == nil || errors.Is(err, job.ErrWarnings)) {
		return out, perr
	}
	return out, err
}

// sweepDrill ends what a drill left that was killed.
func (a *app) sweepDrill(ctx context.Context, c *config.Config) error {
	d := job.Drill{Restore: job.Restore{Events: a.ui, Now: time.Now}, Driller: new(drill.Driller), Workdir: job.Workdir{Dir: c.Workdir}}
	return d.Sweep(ctx)
}

// drills gives the daemon its drills, where the file asks for them.
func (a *app) drills(c *config.Config, t *teller, d *job.Daemon) error {
	if c.Verify.Drill == "" {
		return nil
	}
	when, err := cron.ParseStandard(c.Verify.Drill)
	if err != nil {
		return err // config has parsed it before
	}
	d.Tasks = append(d.Tasks, job.Task{Name: "drill", Schedule: when, Run: func(ctx context.Context) error {
		out, err := a.drillOnce(ctx, c, "latest", false)
		t.drilled(ctx, out, err)
		return err
	}})
	return nil
}

func (a *app) newDrill(ctx context.Context, c *config.Config, sel string) (*job.Drill, error) {
	r, err := a.newRestore(ctx, c, restoreFlags{}, sel)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	driller, err := a.newDriller(ctx, c)
	if err != nil {
		return nil, err
	}
	r.Home = "" // what is restored does not stay
	return &job.Drill{
		Restore: r, Driller: driller, Workdir: job.Workdir{Dir: c.Workdir},
		Dir: cmp.Or(c.Drill.Dir, filepath.Join(c.Workdir, "drill")), Version: version, Host: host,
	}, nil
}

// newDriller makes the driller of the configured kind.
func (a *app) newDriller(ctx context.Context, c *config.Config) (observer.Driller, error) {
	if !c.Replica.Chain() {
		src, err := a.newSource(c)
		if err != nil {
			return nil, err
		}
		if d, ok := src.(interface{ Driller() observer.Driller }); ok {
			return d.Driller(), nil
		}
		return nil, hint.Add(errors.New("no backup of a "+c.Replica.Kind+" can be drilled"), "`eddy restore SEL --into DIR` shows what is in it")
	}
	d := &drill.Driller{
		From: c.Replica.Home, RPC: c.Replica.RPC, Witnesses: c.Replica.Witnesses,
		Command: c.Drill.Command, Blocks: c.Drill.Blocks, Timeout: c.Drill.Timeout.D(),
		Isolated: c.Drill.Isolated == "true", Peers: c.Drill.Peers, Check: c.Drill.Check,
	}
	if len(d.Command) == 0 {
		lctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		argv, _, err := detect.Look(lctx).NodeCommand(c.Replica.Home)
		if err != nil {
			return nil, err
		}
		d.Command = argv
	}
	if !d.Isolated && len(d.Peers) == 0 {
		if text, err := os.ReadFile(filepath.Join(c.Replica.Home, "config", "config.toml")); err == nil {
			if s, err := nodeconfig.Parse(string(text)); err == nil {
				d.Peers = s.Peers
			}
		}
		// The node itself is a peer that has all blocks and is near.
		if p, err := cometbft.PeerAddress(ctx, c.Replica.RPC); err == nil {
			d.Peers = append(d.Peers, p)
		}
	}
	return d, nil
}
