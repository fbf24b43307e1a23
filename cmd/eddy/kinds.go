package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/command"
	"github.com/eddy-backup/eddy/snapshot"
)

// newSource makes the replica of the configured kind.
func (a *app) newSource(c *config.Config) (job.Replica, error) {
	switch c.Replica.Kind {
	case "cometbft":
		return newReplica(c)
	case "command":
		return asked{a.newCommand(c), filepath.Join(c.Workdir, "dump")}, nil
	case "consul", "nomad", "vault":
		return newConsul(c)
	case "etcd":
		return newEtcdSource(c)
	case "zookeeper":
		return newZookeeper(c)
	case "swarm":
		return a.newSwarm(c)
	}
	return nil, fmt.Errorf("replica.kind %q is not wired", c.Replica.Kind) // config has refused it before
}

// homeOf is the directory of the replica's own files, by whatever name its kind has
// for it: a chain's home, a data directory. "": nothing says where it is.
func homeOf(c *config.Config) (string, error) {
	home := c.Replica.Home // or --home, of any kind
	if home == "" {
		switch c.Replica.Kind {
		case "swarm":
			home = c.Replica.Swarm.DataRoot
		case "etcd":
			home = c.Replica.Etcd.Restore.DataDir
		case "zookeeper":
			o, err := zookeeperOptions(c)
			if err != nil {
				return "", err
			}
			home = o.Conf.DataDir
		}
	}
	if home == "" {
		return "", nil
	}
	return filepath.Abs(home)
}

// newSealing encrypts what holds secrets, to the configured recipients; nil for a
// chain, whose archives hold none.
func newSealing(c *config.Config) (*job.Sealing, error) {
	if c.Replica.Chain() {
		return nil, nil
	}
	to, err := readRecipients(c.Encryption)
	if err != nil {
		return nil, err
	}
	return &job.Sealing{Scheme: "age", Recipients: to.Fingerprints(), Seal: to.Encrypt}, nil
}

// asks is a system that gives its dump while it lives.
type asks interface {
	Describe(ctx context.Context) (observer.State, error)
	Gate(ctx context.Context, s observer.State) error
	Capture(ctx context.Context, st *snapshot.Stage) error
	Locate(ctx context.Context, st *snapshot.Stage, before observer.State) (observer.Position, error)
	observer.Checker
	observer.Restorer
}

// asked is such a system as the job wants it: what it prints is staged in a directory
// of the workdir, and nothing of it is ever stopped.
type asked struct {
	asks
	dir string
}

func (r asked) Roots(context.Context) ([]snapshot.Root, error) {
	return []snapshot.Root{{Path: r.dir}}, nil
}

// Recover has nobody to start; it makes the directory, which later steps rely on.
func (r asked) Recover(context.Context) (bool, error) {
	return false, fsx.FS{}.MkdirAll(r.dir, 0o700)
}

func (r asked) Facts(context.Context) (job.Facts, error) { return job.Facts{}, nil }

// bringBack brings a dump back into the cluster that the configuration names.
func (a *app) bringBack(ctx context.Context, c *config.Config, f restoreFlags, args []string) error {
	if f.undo || f.forget {
		return errorsJoinUsage(hint.Add(errors.New("--undo and --forget are for chains"), "what a restore of kind "+c.Replica.Kind+" replaced was saved where it said so"))
	}
	src, err := a.newSource(c)
	if err != nil {
		return err
	}
	restorer, ok := src.(observer.Restorer)
	if !ok {
		return fmt.Errorf("a %s takes no dump back", c.Replica.Kind)
	}
	r := &job.Bring{
		Replica: restorer, Kind: c.Replica.Kind, Workdir: job.Workdir{Dir: c.Workdir}, NoStart: f.noStart, Overwrite: f.overwrite,
		Confirm: func(there, comes string) error {
			return a.confirm(fmt.Sprintf("there is: %s\ncomes:    %s", there, comes), c.Cluster)
		},
	}
	if r.Restore, err = a.newRestore(ctx, c, f, args[0]); err != nil {
		return err
	}
	r.Home, r.Now = "", time.Now
	done, err := r.Run(ctx)
	if err != nil {
		return err
	}
	return a.result(done)
}

// newCommand makes the program that the configuration describes; a preset fills in
// what it leaves out.
func (a *app) newCommand(c *config.Config) *command.Command {
	k := c.Replica.Command
	o := command.Options{
		Cluster: c.Cluster, Argv: k.Argv, Precheck: k.Precheck, Version: k.Version, Restore: k.Restore,
		EnvFiles: k.EnvFiles, Timeout: k.Timeout.D(),
		Expect: command.Expect{Form: command.Form(k.Expect.Form), Contains: k.Expect.Contains, Members: k.Expect.Members},
		Log:    func(line string) { a.ui.Emit(job.Phase{Phase: "said", Text: "  | " + line}) },
	}
	if k.Preset != "" {
		o = o.Preset(k.Preset, k.Image, k.Args)
	}
	return command.New(o)
}
