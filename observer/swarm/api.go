package swarm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

// callTime bounds a question to the engine; waits for a quorum are none.
const callTime = 15 * time.Second

// info is what GET /info says (API 1.24 and later).
type info struct {
	ID, Name, ServerVersion, DockerRootDir string
	Swarm                                  struct {
		NodeID, NodeAddr string
		LocalNodeState   string // inactive, pending, active, error, locked
		ControlAvailable bool
		Error            string
		Managers, Nodes  int
		Cluster          *struct {
			ID                     string
			RootRotationInProgress bool
		}
	}
}

// node is a node of GET /nodes.
type node struct {
	ID          string
	Spec        struct{ Role, Availability string }
	Description struct{ Hostname string }
	Status      struct{ State, Addr string }
	// ManagerStatus is nil of a worker.
	ManagerStatus *struct {
		Leader       bool
		Reachability string // reachable, unreachable, unknown
		Addr         string // host:port of the raft member
	}
}

// container is one of GET /containers/json.
type container struct {
	ID     string `json:"Id"`
	Names  []string
	Labels map[string]string
}

// name is what `docker ps` shows.
func (c container) name() string {
	if len(c.Names) > 0 && len(c.Names[0]) > 1 {
		return c.Names[0][1:]
	}
	return c.ID[:min(12, len(c.ID))]
}

// engine asks the manager's own.
type engine struct{ *control.Engine }

func (e engine) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTime, fmt.Errorf("no answer to GET %s within %s", path, callTime))
	defer cancel()
	return e.Call(ctx, http.MethodGet, path, nil, into)
}

func (e engine) info(ctx context.Context) (i info, err error) {
	return i, e.get(ctx, "/info", &i)
}

func (e engine) nodes(ctx context.Context) (all []node, err error) {
	return all, e.get(ctx, "/nodes", &all)
}

func (e engine) running(ctx context.Context) (all []container, err error) {
	return all, e.get(ctx, "/containers/json", &all)
}

// unlockKey is the key in force; "" where the swarm is not locked.
func (e engine) unlockKey(ctx context.Context) (UnlockKey, error) {
	var said struct{ UnlockKey string }
	if err := e.get(ctx, "/swarm/unlockkey", &said); err != nil {
		return "", err
	}
	k := UnlockKey(said.UnlockKey)
	_, err := k.bytes()
	return k, err
}

// members are the managers as the cluster sees them.
func members(self string, nodes []node) (all []observer.Member) {
	for _, n := range nodes {
		if n.ManagerStatus == nil {
			continue
		}
		all = append(all, observer.Member{
			ID: n.ID, Name: n.Description.Hostname, Address: n.ManagerStatus.Addr, Voter: true,
			Leader: n.ManagerStatus.Leader, Reachable: n.ManagerStatus.Reachability == "reachable", Self: n.ID == self,
		})
	}
	return all
}

// inventories are what a person would look up of a swarm that has to be built anew by
// hand: what was set, by names; of secrets no content, which no engine shows.
var inventories = []string{"services", "networks", "configs", "secrets", "nodes", "volumes"}

// swarmNetworks lists those that are the swarm's.
const swarmNetworks = "/networks?filters=%7B%22scope%22%3A%5B%22swarm%22%5D%7D"

// inventory asks for all of them. What an engine does not know is left out.
func (e engine) inventory(ctx context.Context) (map[string][]byte, error) {
	all := map[string][]byte{}
	for _, what := range inventories {
		var said json.RawMessage
		path := "/" + what
		if what == "networks" {
			path = swarmNetworks
		}
		if err := e.get(ctx, path, &said); err != nil {
			return nil, fmt.Errorf("list the %s: %w", what, err)
		}
		all[what+".json"] = append(slices.Clone([]byte(said)), '\n')
	}
	return all, nil
}
