package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// containerInfo is what the engine says of a container, as far as it matters to
// somebody who stops and starts it.
type containerInfo struct {
	id   string
	name string
	host string // the engine that says so

	status    string // created, running, paused, restarting, removing, exited, dead
	startedAt string // of this run or the last one, RFC 3339; "": it never ran
	exitCode  int    // of the last run
	oomKilled bool

	restart     string        // restart policy, as docker update takes it: no, on-failure[:N], always, unless-stopped
	stopSignal  string        // what container or image say, else SIGTERM
	stopTimeout time.Duration // after which anybody's stop but eddy's is a SIGKILL; negative: never
	autoRemove  bool          // removed when it stops
	task        bool          // made by an orchestrator
}

// defaultStopTimeout is the engine's, where a container has none of its own.
const defaultStopTimeout = 10 * time.Second

// parseContainer reads the engine's description of a container. Only what is
// named here is looked at: an engine of another age, or another maker, may say
// the rest in its own way, and a held node must be started all the same.
func parseContainer(b []byte) (containerInfo, error) {
	var c struct {
		ID    string `json:"Id"`
		Name  string
		State struct {
			Status    string
			StartedAt string
			ExitCode  int
			OOMKilled bool
		}
		HostConfig struct {
			RestartPolicy struct {
				Name              string
				MaximumRetryCount int
			}
			AutoRemove bool
		}
		Config struct {
			StopSignal  string
			StopTimeout *int
			Labels      map[string]string
		}
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return containerInfo{}, fmt.Errorf("the engine's description of the container: %w", err)
	}
	if !hexID(c.ID) || c.State.Status == "" {
		return containerInfo{}, errors.New("the engine's description of the container lacks its id or its state")
	}
	i := containerInfo{
		id: c.ID, name: printable(strings.TrimPrefix(c.Name, "/"), maxWord),
		status: printable(c.State.Status, 32), exitCode: c.State.ExitCode, oomKilled: c.State.OOMKilled,
		restart: printable(c.HostConfig.RestartPolicy.Name, 32), autoRemove: c.HostConfig.AutoRemove,
		stopSignal: printable(c.Config.StopSignal, 32), stopTimeout: defaultStopTimeout,
	}
	if t, err := time.Parse(time.RFC3339Nano, c.State.StartedAt); err == nil && t.Year() > 1 {
		i.startedAt = c.State.StartedAt
	}
	if i.restart == "" {
		i.restart = "no"
	}
	if n := c.HostConfig.RestartPolicy.MaximumRetryCount; i.restart == "on-failure" && n > 0 {
		i.restart += ":" + strconv.Itoa(n)
	}
	if i.stopSignal == "" {
		i.stopSignal = "SIGTERM"
	}
	if s := c.Config.StopTimeout; s != nil {
		i.stopTimeout = time.Duration(min(max(*s, -1), int(maxMillis/1000))) * time.Second
	}
	for _, label := range []string{"com.docker.swarm.task.id", "io.kubernetes.pod.name"} {
		if _, ok := c.Config.Labels[label]; ok {
			i.task = true
		}
	}
	return i, nil
}

// hexID tells whether s can be a container's full id.
func hexID(s string) bool {
	return len(s) >= 12 && len(s) <= 128 && strings.Trim(s, "0123456789abcdef") == ""
}

// run names the container's present run, or its last one; "": it never ran.
func (i containerInfo) run() string {
	if i.startedAt == "" {
		return ""
	}
	return i.id + "@" + i.startedAt
}

// state is the container's in the words of a node. One that is paused was
// started; what may not be done with it is refusal's business.
func (i containerInfo) state() (runState, error) {
	switch i.status {
	case "running", "paused":
		return running, nil
	case "created":
		return stopped, nil
	case "exited":
		if i.ending() != nil {
			return dead, nil
		}
		return stopped, nil
	case "restarting":
		return unknown, hint.Add(fmt.Errorf("container %s ends by itself again and again (exit code %d)", i.name, i.exitCode), hint.Command(dockerArgv(i.host, "logs", "--tail", "100", i.name)...)+" says why")
	}
	return unknown, hint.Add(fmt.Errorf("container %s is %s", i.name, i.status), hint.Command(dockerArgv(i.host, "ps", "-a")...)+" shows it; make the container again, if it stays so")
}

// cleanExits are the exit codes of a node that ended by itself when it was asked
// to: as for supervise, 0 and 128 + INT or TERM.
var cleanExits = []int{0, 128 + int(unix.SIGINT), 128 + int(unix.SIGTERM)}

// ending says what was wrong with the end of the last run, nil if nothing.
func (i containerInfo) ending() error {
	how := fmt.Sprintf("it ended with exit code %d", i.exitCode)
	if sig := i.exitCode - 128; sig > 0 && sig < 64 {
		how += " (" + unix.SignalName(unix.Signal(sig)) + ")"
	}
	switch {
	case i.oomKilled:
		return errors.New(how + ", out of memory")
	case !slices.Contains(cleanExits, i.exitCode):
		return errors.New(how)
	}
	return nil
}

// refusal says why the container must not be held, nil where it may.
func (i containerInfo) refusal() error {
	refuse := func(todo, what string) error {
		return hint.Add(fmt.Errorf("container %s %s", i.name, what), todo)
	}
	const supervise = "run the node under `eddy supervise --home HOME --socket SOCKET -- CMD`, in its container, and set `replica.control.supervise: SOCKET` instead of replica.control.docker"
	switch st, err := i.state(); {
	case err != nil:
		return err
	case i.status == "created":
		return refuse(hint.Command(dockerArgv(i.host, "start", i.name)...), "was made but never started")
	case i.status == "paused":
		return refuse(hint.Command(dockerArgv(i.host, "unpause", i.name)...), "is paused")
	case st != running: // that it is stopped is for the caller to judge
		return nil
	case i.autoRemove:
		return refuse("make it anew without --rm", "is removed when it stops")
	case i.task:
		return refuse(supervise, "is a task of an orchestrator, which would start another in its place")
	case slices.Contains([]string{"SIGKILL", "KILL", "9"}, strings.ToUpper(i.stopSignal)):
		return refuse("make it anew with --stop-signal SIGTERM", "is stopped by SIGKILL")
	case ownContainer(i.id):
		return refuse(supervise+"; or run eddy in a container of its own", "is the one that eddy itself runs in")
	}
	return nil
}

// ownContainer tells whether this process runs in the container: the engine
// mounts files from a directory with its id in its name (hostname, resolv.conf).
func ownContainer(id string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(b), "/"+id+"/")
}
