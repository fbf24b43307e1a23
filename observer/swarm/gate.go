package swarm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

// Gate implements observer.Gater: the manager may be stopped now, and will come back.
func (r *Replica) Gate(ctx context.Context, s observer.State) error {
	if err := mayStop(s); err != nil {
		return err
	}
	i, err := r.engine.info(ctx)
	if err != nil {
		return fmt.Errorf("%w: ask the engine: %w", observer.ErrNotFit, err)
	}
	if filepath.Clean(i.DockerRootDir) != filepath.Clean(r.o.DataRoot) {
		return hint.Add(fmt.Errorf("%w: the engine keeps its data in %s, not in %s", observer.ErrNotFit, i.DockerRootDir, r.o.DataRoot), "set `replica.swarm.data_root: "+i.DockerRootDir+"`")
	}
	if i.Swarm.Cluster != nil && i.Swarm.Cluster.RootRotationInProgress {
		return fmt.Errorf("%w: %w: the swarm changes its CA", observer.ErrNotFit, observer.ErrBehind)
	}
	if err := r.outside(ctx, ownContainers("/proc/self")); err != nil {
		return err
	}
	if err := r.idle(ctx); err != nil {
		return err
	}
	return r.haveKey(ctx)
}

// mayStop decides by what the cluster says of itself.
func mayStop(s observer.State) error {
	no := func(advice, text string, args ...any) error {
		return hint.Add(fmt.Errorf("%w: "+text, append([]any{observer.ErrNotFit}, args...)...), advice)
	}
	q := observer.QuorumOf(s.Members)
	self := s.Self()
	switch {
	case s.Node.Role == roleLocked:
		return no("as root: `docker swarm unlock`, with the key that `docker swarm unlock-key` shows on another manager; or write that to a file of mode 0600 and set `replica.swarm.unlock_key: {file: FILE}`", "the manager is locked")
	case s.Node.Role == roleNone:
		return no("run eddy on a manager of the swarm", "the engine is no member of a swarm")
	case s.Node.Role == roleWorker || self == nil:
		return no("run eddy on a manager of the swarm: `docker node ls`, there, lists them", "the node is no manager that can be asked")
	case q.Voters < 3:
		return no("add managers until there are three: `docker swarm join-token manager` tells how; two bear the loss of none", "a swarm with %d managers stands still while one of them does", q.Voters)
	case q.Leaders != 1:
		return no("wait until the managers agree: `docker node ls`", "the swarm has %d leaders", q.Leaders)
	case self.Leader:
		return no("back up another manager: `docker node ls` lists them", "the manager leads the swarm")
	case !self.Reachable:
		return observer.Mark(observer.ErrBehind, no("wait, or look at the engine's log", "the leader does not reach this manager"))
	case !q.MayStop(*self):
		return no("bring managers back first: `docker node ls` shows which are not reachable", "%d of %d managers are reachable, and %d are needed while this one stands still", q.Reachable, q.Voters, q.Needed)
	}
	return nil
}

// idle refuses to stop what runs beside the manager.
func (r *Replica) idle(ctx context.Context) error {
	if r.o.AllowRunning {
		return nil
	}
	all, err := r.engine.running(ctx)
	if err != nil {
		return fmt.Errorf("%w: ask for the containers: %w", observer.ErrNotFit, err)
	}
	if len(all) == 0 {
		return nil
	}
	tasks, names := 0, []string{}
	for _, c := range all {
		if c.Labels["com.docker.swarm.task.id"] != "" {
			tasks++
		}
		names = append(names, c.name())
	}
	return hint.Add(fmt.Errorf("%w: stopping Docker stops these %d containers, %d of them tasks of the swarm: %s", observer.ErrNotFit, len(all), tasks, fewNames(names)),
		"back up a manager that runs nothing: `docker node update --availability drain NODE`; or set `replica.swarm.allow_running_tasks: true`")
}

// containerID is a container's in a path of cgroups or mounts.
var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// ownContainers are the ids of containers that this process may be in, as its cgroups
// and mounts have them.
func ownContainers(proc string) (ids []string) {
	seen := map[string]bool{}
	for _, name := range []string{"cgroup", "mountinfo"} {
		b, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			continue
		}
		for _, id := range containerID.FindAllString(string(b), 64) {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// outside refuses an eddy that would stop itself with the engine.
func (r *Replica) outside(ctx context.Context, ids []string) error {
	for _, id := range ids {
		var c struct{ State struct{ Pid int } }
		err := r.engine.get(ctx, "/containers/"+id+"/json", &c)
		var no *control.Refusal
		if errors.As(err, &no) && no.Code == http.StatusNotFound {
			continue // a layer's, or of another engine
		}
		if err != nil {
			return fmt.Errorf("%w: ask whether eddy runs in a container of this engine: %w", observer.ErrNotFit, err)
		}
		return hint.Add(fmt.Errorf("%w: eddy runs in container %s of the engine that it would stop", observer.ErrNotFit, id[:12]), "run eddy as a service of the host: deploy/systemd")
	}
	return nil
}
