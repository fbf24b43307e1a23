package detect

import (
	"errors"
	"fmt"
	"strings"

	"github.com/eddy-backup/eddy/internal/config"
)

// fill takes a fact for a value that nobody has said.
func fill(v *config.TemplateValues, to *string, key string, f Fact) {
	if *to != "" || f.Value == "" {
		return
	}
	if v.From == nil {
		v.From = map[string]string{}
	}
	*to, v.From[key] = f.Value, f.From
}

// missing is the comment of a value that was looked for.
func missing(v *config.TemplateValues, key, why string) {
	if v.From == nil {
		v.From = map[string]string{}
	}
	v.From[key] = why
}

// Fill writes what was found into the values of an eddy.yaml that nobody has
// said. What was not found stays a placeholder, which config.Load refuses.
func (f Found) Fill(v *config.TemplateValues) {
	fill(v, &v.Home, "replica.home", f.Home)
	fill(v, &v.ChainID, "replica.chain_id", f.ChainID)
	fill(v, &v.Cluster, "cluster", Fact{f.ChainID.Value, "the chain id in " + f.ChainID.From})
	fill(v, &v.RPC, "replica.rpc", f.RPC)
	fill(v, &v.RPC, "replica.rpc", Fact{"http://CHANGE-ME:26657", "not found"})
	if v.Witnesses == nil {
		for i, w := range f.Witnesses {
			at := ""
			fill(v, &at, fmt.Sprintf("replica.witnesses[%d]", i), w)
			v.Witnesses = append(v.Witnesses, w.Value)
		}
		if len(f.Witnesses) == 0 {
			missing(v, "replica.witnesses[0]", "none found: no peer has an RPC that answers from here")
		}
	}
	f.fillControl(v)
	for _, x := range f.Beside() {
		v.Found = append(v.Found, fmt.Sprintf("%-10s %s", x.Name, x.Value))
	}
	v.Found = append(v.Found, f.Notes...)
}

// fillControl says how the node is stopped: by the eddy that is its parent, else
// by whoever runs it.
func (f Found) fillControl(v *config.TemplateValues) {
	if v.Supervise+v.Unit+v.Container != "" || v.Exec {
		return
	}
	switch {
	case f.Supervise.Value != "":
		fill(v, &v.Supervise, "replica.control.supervise", f.Supervise)
	case f.Unit != nil:
		fill(v, &v.Unit, "replica.control.systemd.unit", Fact{f.Unit.Name, "the service that runs the node"})
	case f.Container != nil:
		fill(v, &v.Container, "replica.control.docker.container", Fact{f.Container.Name, "the container that runs the node"})
	default:
		fill(v, &v.Supervise, "replica.control.supervise", Fact{"/run/eddy/node.sock", "neither a service nor a container runs it: start it with eddy supervise"})
	}
}

// Named is a fact with its name, for people.
type Named struct {
	Name string
	Fact
}

// Beside lists what was found that is no key of eddy.yaml.
func (f Found) Beside() (out []Named) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, Named{name, Fact{Value: value}})
		}
	}
	add("user", f.User.Name)
	engines := strings.Join(f.Engines, ", ")
	if f.Backend != "" && f.Backend != engines {
		engines = strings.TrimSpace(engines + " (config.toml says " + f.Backend + ")")
	}
	add("engine", engines)
	add("pruning", f.Pruning)
	if f.Cosmovisor != "" {
		add("cosmovisor", f.Cosmovisor+", runs "+f.Current)
	}
	for _, r := range f.Roots {
		add("elsewhere", r)
	}
	return out
}

// Fill takes over the old settings where nobody has said, and nothing has shown,
// otherwise.
func (s Script) Fill(v *config.TemplateValues) {
	fill(v, &v.Store, "store.url", s.Store)
	if v.Store == s.Store.Value {
		fill(v, &v.Region, "store.region", s.Region)
	}
	fill(v, &v.Home, "replica.home", s.Home)
	if strings.Contains(v.RPC, "CHANGE-ME") && s.RPC.Value != "" {
		v.RPC = ""
	}
	fill(v, &v.RPC, "replica.rpc", s.RPC)
	if v.Supervise+v.Container == "" && !v.Exec {
		fill(v, &v.Unit, "replica.control.systemd.unit", s.Unit)
	}
	fill(v, &v.Timeout, "replica.control.timeout", s.Timeout)
	fill(v, &v.Deadline, "replica.control.deadline", s.Deadline)
	v.Found = append(v.Found, s.Notes...)
}

// Choice adds to what the operator says what the old settings say of which node
// is meant: their service where this machine has it, else their directory.
func (s Script) Choice(h Host, want Choice) Choice {
	if want != (Choice{}) {
		return want
	}
	if s.Unit.Value != "" && h.unit(serviceName(s.Unit.Value)) >= 0 {
		want.Unit = s.Unit.Value
		if _, err := h.named(want); errors.Is(err, ErrNoNode) {
			want.Home = s.Home
		}
		return want
	}
	want.Home = s.Home
	return want
}
