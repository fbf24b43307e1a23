package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// agent is what an agent of Consul or Nomad says of itself. The two spell the fields
// alike but for their case, which does not matter to the decoder.
type agent struct {
	Config struct {
		Datacenter, NodeName, NodeID, Region string
		Version                              json.RawMessage // Consul: a text; Nomad: an object with Version in it
	}
	Stats map[string]map[string]string
}

func (a agent) version() string {
	var text string
	if json.Unmarshal(a.Config.Version, &text) == nil {
		return text
	}
	var v struct{ Version string }
	_ = json.Unmarshal(a.Config.Version, &v) // another form says no version
	return v.Version
}

// position is where the agent's raft is. It tells a cluster in which nothing has
// happened, as exactly as a snapshot of that server would: a follower learns of what
// is committed a heartbeat later. The zero one: it has no raft, or that is not exact
// enough.
func (a agent) position(o *Options) (p observer.Position) {
	raft := a.Stats["raft"]
	lag, err := time.ParseDuration(raft["last_contact"]) // "0" of who leads
	if o.Mode == Consistent || err != nil || lag > o.MaxLag {
		return p
	}
	p.Index, err = strconv.ParseUint(raft["commit_index"], 10, 64)
	if err != nil {
		return observer.Position{}
	}
	p.Epoch, _ = strconv.ParseUint(raft["term"], 10, 64) // 0: it is not told
	return p
}

// describeConsul asks the agent. What only a larger right shows is left out.
func describeConsul(ctx context.Context, a *api) (s observer.State, err error) {
	s, self, err := describeAgent(ctx, a)
	if err != nil {
		return s, err
	}
	var alive []struct {
		Addr   string
		Status int // of serf: 1 is alive
		Tags   map[string]string
	}
	err = allowed(a.ask(ctx, "/v1/agent/members", nil, &alive))
	if err != nil {
		return s, err
	}
	up := map[string]bool{}
	for _, m := range alive {
		if m.Tags["role"] == "consul" && m.Status == 1 && m.Tags["dc"] == self.Config.Datacenter {
			up[net.JoinHostPort(m.Addr, m.Tags["port"])] = true
		}
	}
	reach(s.Members, up)
	s.Position.Incarnation = self.Config.Datacenter
	if a.o.Scope != "" {
		s.Position.Incarnation = a.o.Scope
	}
	return s, nil
}

// describeNomad is describeConsul in Nomad's words (its API documents; not tried on
// one).
func describeNomad(ctx context.Context, a *api) (s observer.State, err error) {
	s, self, err := describeAgent(ctx, a)
	if err != nil {
		return s, err
	}
	var alive struct {
		Members []struct {
			Addr, Status string
			Tags         map[string]string
		}
	}
	if err = allowed(a.ask(ctx, "/v1/agent/members", nil, &alive)); err != nil {
		return s, err
	}
	up := map[string]bool{}
	for _, m := range alive.Members {
		if m.Status == "alive" {
			up[net.JoinHostPort(m.Addr, m.Tags["port"])] = true
		}
	}
	reach(s.Members, up)
	s.Position.Incarnation = self.Config.Region
	if a.o.Scope != "" {
		s.Position.Incarnation = a.o.Scope
	}
	return s, nil
}

// describeAgent asks what both have: the agent, who leads, and the servers.
func describeAgent(ctx context.Context, a *api) (s observer.State, self agent, err error) {
	if err = allowed(a.ask(ctx, "/v1/agent/self", nil, &self)); err != nil {
		return s, self, err
	}
	s.Node = observer.Node{ID: self.Config.NodeID, Name: self.Config.NodeName, Role: "client"}
	s.Version, s.Position = self.version(), self.position(a.o)
	if self.Stats["raft"] != nil {
		s.Node.Role = strings.ToLower(self.Stats["raft"]["state"])
	}
	leader := ""
	if err = a.ask(ctx, "/v1/status/leader", nil, &leader); code(err) == http.StatusInternalServerError {
		err = nil // a client without a server that it knows says so
	}
	if err != nil {
		return s, self, err
	}
	var conf struct {
		Servers []struct {
			ID, Node, Address string
			Leader, Voter     bool
		}
	}
	err = allowed(a.ask(ctx, "/v1/operator/raft/configuration", url.Values{"stale": {""}}, &conf))
	if err != nil {
		return s, self, err
	}
	if len(conf.Servers) > 0 {
		for _, m := range conf.Servers {
			s.Members = append(s.Members, observer.Member{
				ID: m.ID, Name: m.Node, Address: m.Address, Voter: m.Voter, Leader: m.Address == leader && leader != "", Self: m.ID == self.Config.NodeID && m.ID != "",
			})
		}
		return s, self, nil
	}
	var peers []string
	if err = a.ask(ctx, "/v1/status/peers", nil, &peers); err != nil {
		return s, self, err
	}
	for _, p := range peers {
		s.Members = append(s.Members, observer.Member{ID: p, Address: p, Voter: true, Leader: p == leader && leader != ""})
	}
	return s, self, nil
}

// reach tells who is there. Where nobody may say that, a leader does: without a
// quorum there is none for long.
func reach(members []observer.Member, up map[string]bool) {
	led := observer.QuorumOf(members).Leaders == 1
	for i := range members {
		m := &members[i]
		m.Reachable = up[m.Address] || m.Leader || len(up) == 0 && led
	}
}

// allowed takes a refusal for an answer that says nothing.
func allowed(err error) error {
	if code(err) == http.StatusForbidden {
		return nil
	}
	return err
}

// consulHolds counts what a restore would replace.
func consulHolds(ctx context.Context, a *api) (h holdings, err error) {
	var keys []string
	err = a.ask(ctx, "/v1/kv/", url.Values{"keys": {""}}, &keys)
	if code(err) == http.StatusNotFound { // there are none
		err = nil
	}
	if err != nil {
		return h, err
	}
	var services map[string][]string
	if err := a.ask(ctx, "/v1/catalog/services", nil, &services); err != nil {
		return h, err
	}
	delete(services, Consul) // the servers themselves
	return holdings{
		what: fmt.Sprintf("%d keys, %d services", len(keys), len(services)), keys: len(keys),
		fresh: len(keys) == 0 && len(services) == 0,
	}, nil
}

func nomadHolds(ctx context.Context, a *api) (h holdings, err error) {
	var jobs []struct{}
	if err := a.ask(ctx, "/v1/jobs", url.Values{"namespace": {"*"}}, &jobs); err != nil {
		return h, err
	}
	return holdings{what: fmt.Sprintf("%d jobs", len(jobs)), fresh: len(jobs) == 0}, nil
}

// vaultHealth asks for 200 whatever state the server is in (API documents,
// sys/health).
func vaultHealth(ctx context.Context, a *api) (h struct {
	Initialized, Sealed bool
	Version             string
	Cluster             string `json:"cluster_name"`
	ID                  string `json:"cluster_id"`
}, err error,
) {
	err = a.ask(ctx, "/v1/sys/health", url.Values{"standbyok": {"true"}, "perfstandbyok": {"true"}, "sealedcode": {"200"}, "uninitcode": {"200"}, "drsecondarycode": {"200"}}, &h)
	return h, err
}

// leadingVault is the api of the active server: only that one gives a snapshot. It
// has the token sent to where the configured server says that the leader is.
func leadingVault(ctx context.Context, a *api) (*api, error) {
	var l struct {
		Self    bool   `json:"is_self"`
		HA      bool   `json:"ha_enabled"`
		Address string `json:"leader_address"`
	}
	err := a.ask(ctx, "/v1/sys/leader", nil, &l)
	switch {
	case err != nil:
		return nil, err
	case l.Self || !l.HA:
		return a, nil
	case l.Address == "":
		return nil, errors.New("no server is active")
	case strings.HasPrefix(a.base, "https:") && !strings.HasPrefix(l.Address, "https:"):
		return nil, fmt.Errorf("the active server is said to be at %.100q, without TLS: it gets no token", l.Address)
	}
	o := *a.o
	o.Address = l.Address
	return newAPI(&o, a.sys, a.max)
}

// describeVault asks the active server (API documents; not tried on one).
func describeVault(ctx context.Context, a *api) (s observer.State, err error) {
	h, err := vaultHealth(ctx, a)
	if err != nil {
		return s, err
	}
	s.Version, s.Position.Incarnation = h.Version, h.ID
	s.Node.Role = "leader"
	switch {
	case !h.Initialized:
		return s, errors.New("it is not initialised: `vault operator init` first")
	case h.Sealed:
		return s, errors.New("it is sealed: unseal it first")
	}
	var conf struct {
		Data struct {
			Config struct {
				Servers []struct {
					ID      string `json:"node_id"`
					Address string
					Leader  bool
					Voter   bool
				}
			}
		}
	}
	if err := a.ask(ctx, "/v1/sys/storage/raft/configuration", nil, &conf); err != nil {
		return s, err
	}
	for _, m := range conf.Data.Config.Servers {
		// It is not told who is there; a leader that answers has a quorum.
		s.Members = append(s.Members, observer.Member{ID: m.ID, Name: m.ID, Address: m.Address, Voter: m.Voter, Leader: m.Leader, Reachable: true, Self: m.Leader})
		if m.Leader {
			s.Node.ID, s.Node.Name = m.ID, m.ID
		}
	}
	return s, nil
}

// vaultHolds counts mounts beside those that every Vault has.
func vaultHolds(ctx context.Context, a *api) (h holdings, err error) {
	var mounts struct{ Data map[string]json.RawMessage }
	if err := a.ask(ctx, "/v1/sys/mounts", nil, &mounts); err != nil {
		return h, err
	}
	n := 0
	for name := range mounts.Data {
		switch name {
		case "cubbyhole/", "identity/", "sys/":
		default:
			n++
		}
	}
	return holdings{what: fmt.Sprintf("%d secret engines", n), fresh: n == 0}, nil
}
