package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/secret"
	"github.com/eddy-backup/eddy/observer/swarm"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// swarmManager is a manager of a swarm as the job wants it.
type swarmManager struct{ *swarm.Replica }

func (swarmManager) Facts(context.Context) (job.Facts, error) { return job.Facts{}, nil }

func (a *app) newSwarm(c *config.Config) (job.Replica, error) {
	ctl, err := newControl(c)
	if err != nil {
		return nil, err
	}
	o := swarmOptions(c)
	o.Control, o.StopTimeout, o.HoldDeadline = ctl, c.Replica.Control.Timeout.D(), c.Replica.Control.Deadline.D()
	o.StageDir = filepath.Join(c.Workdir, "dump")
	o.Drill = swarm.Drill{Command: c.Drill.Command, Check: c.Drill.Check, Canary: c.Replica.Swarm.Canary, Timeout: c.Drill.Timeout.D()}
	o.KeepKey = func(ctx context.Context, key swarm.UnlockKey, version uint64) error {
		kept, err := a.backUpKeys(ctx, c, "", false, unlockFile(key, version))
		if err != nil && !errors.Is(err, job.ErrWarnings) {
			return fmt.Errorf("keep the unlock key in a bundle: %w", err)
		}
		a.ui.Emit(job.Phase{Phase: "keys", Text: fmt.Sprintf("the unlock key (version %d) is in bundle %s of %s", version, kept.ID, kept.Node)})
		return nil
	}
	r, err := swarm.New(o)
	if err != nil {
		return nil, err
	}
	return swarmManager{r}, nil
}

// swarmOptions are those that need no control.
func swarmOptions(c *config.Config) swarm.Options {
	k := c.Replica.Swarm
	o := swarm.Options{
		Cluster: c.Cluster, DataRoot: k.DataRoot, Host: dockerHost(k.Socket), AllowRunning: k.AllowRunningTasks == "true",
	}
	if k.UnlockKey.File != "" || len(k.UnlockKey.Command) > 0 {
		o.Keys = func(ctx context.Context) ([]swarm.UnlockKey, error) { return readUnlockKeys(ctx, k.UnlockKey) }
	}
	return o
}

// unlockName is where an unlock key out of a bundle is put.
const unlockName = "/etc/eddy/swarm-unlock-key"

func unlockFile(key swarm.UnlockKey, version uint64) bundle.Source {
	return bundle.Source{Path: unlockName, Data: append(fmt.Appendf(nil, "# kek-version %d\n", version), key.KeyText()...)}
}

// heldKeys are secrets of the replica that lie in no file.
func heldKeys(ctx context.Context, c *config.Config) ([]bundle.Source, error) {
	if c.Replica.Kind != "swarm" {
		return nil, nil
	}
	r, err := swarm.New(swarmOptions(c))
	if err != nil {
		return nil, err
	}
	key, version, err := r.HeldKey(ctx)
	if err != nil || key == "" {
		return nil, err
	}
	return []bundle.Source{unlockFile(key, version)}, nil
}

const (
	maxUnlock  = 64 << 10 // bytes of what holds unlock keys
	unlockTime = 30 * time.Second
)

// readUnlockKeys reads what the configuration names. No key is in an error.
func readUnlockKeys(ctx context.Context, k config.SwarmUnlockKey) ([]swarm.UnlockKey, error) {
	const key = "replica.swarm.unlock_key"
	text, err := "", error(nil)
	if k.File != "" {
		text, err = secret.Read(k.File, "unlock key")
	} else {
		ctx, cancel := context.WithTimeout(ctx, unlockTime)
		defer cancel()
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, k.Command[0], k.Command[1:]...)
		cmd.Stdout, cmd.WaitDelay = &out, time.Second
		if err = cmd.Run(); err == nil && out.Len() > maxUnlock {
			err = errors.New("it prints too much")
		}
		err = hint.Add(err, "run it by hand, as eddy's user: "+hint.Command(k.Command...))
		text = out.String()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	keys, err := swarm.ParseUnlockKeys(text)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%s: %w", key, err), "it is what `docker swarm unlock-key -q` prints on a manager")
	}
	return keys, nil
}
