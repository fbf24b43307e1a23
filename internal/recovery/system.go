package recovery

import (
	"encoding/json"
	"net"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// system is what the kinds of clusters differ in: their words and their commands.
type system struct {
	title  string // of the product
	member string
	// asked: a dump is asked for, and nothing is stopped for it.
	asked bool
	unit  string // the service that is a member
	// look shows who is a member and who leads.
	look func(at observer.Member) string
	// strike takes a dead member out of a cluster that decides.
	strike func(dead observer.Member) string
	// join adds a member; said is what is to be known of it.
	join func(to observer.Member) (run, said string)
}

func line(argv ...string) string { return hint.Shell(argv...) }

// address is where a member is, its id where that is not known.
func address(m observer.Member) string {
	if m.Address == "" {
		return name(m)
	}
	first, _, _ := strings.Cut(m.Address, ",") // of an etcd's there may be several
	return first
}

// host is the address without scheme and port.
func host(m observer.Member) string {
	a := address(m)
	if _, rest, ok := strings.Cut(a, "://"); ok {
		a = rest
	}
	if h, _, err := net.SplitHostPort(a); err == nil {
		return h
	}
	return a
}

func fixed(argv ...string) func(observer.Member) string {
	return func(observer.Member) string { return line(argv...) }
}

// strikeID is a command that ends in the dead member's id.
func strikeID(argv ...string) func(observer.Member) string {
	return func(m observer.Member) string {
		last := len(argv) - 1
		if strings.HasSuffix(argv[last], "=") {
			return line(append(argv[:last:last], argv[last]+m.ID)...)
		}
		return line(append(argv[:len(argv):len(argv)], m.ID)...)
	}
}

func systemOf(kind string) system {
	managers := system{
		title: "the Swarm", member: "manager", unit: "docker",
		look: fixed("docker", "node", "ls"),
		strike: func(m observer.Member) string {
			return line("docker", "node", "demote", m.ID) + " && " + line("docker", "node", "rm", "--force", m.ID)
		},
		join: func(observer.Member) (string, string) {
			return line("docker", "swarm", "join-token", "manager"), "it prints the command that is run on each new machine"
		},
	}
	switch kind {
	case "swarm":
		return managers
	case "ucp":
		managers.title, managers.asked = "UCP", true
		return managers
	case "dtr":
		return system{title: "DTR", member: "replica", asked: true, unit: "docker", look: func(m observer.Member) string {
			return "docker ps --format '{{.Names}} {{.Status}}' | grep " + line("dtr-.*-"+m.ID)
		}}
	case "etcd":
		return system{
			title: "etcd", member: "member", asked: true, unit: "etcd",
			look:   fixed("etcdctl", "endpoint", "status", "--cluster", "-w", "table"),
			strike: strikeID("etcdctl", "member", "remove"),
			join: func(observer.Member) (string, string) {
				return line("etcdctl", "member", "add", "NAME", "--learner", "--peer-urls=https://ADDRESS:2380"), "it prints the settings of the new member; when it has caught up, `etcdctl member promote ID` makes it a voter"
			},
		}
	case "consul":
		return system{
			title: "Consul", member: "server", asked: true, unit: "consul",
			look: fixed("consul", "operator", "raft", "list-peers"), strike: strikeID("consul", "operator", "raft", "remove-peer", "-id="),
			join: func(to observer.Member) (string, string) {
				return line("consul", "agent", "-server", "-retry-join="+host(to), "-config-dir=/etc/consul.d"), "on each new machine, with the configuration of the others"
			},
		}
	case "nomad":
		return system{
			title: "Nomad", member: "server", asked: true, unit: "nomad",
			look: fixed("nomad", "operator", "raft", "list-peers"), strike: strikeID("nomad", "operator", "raft", "remove-peer", "-peer-id="),
			join: func(to observer.Member) (string, string) {
				return line("nomad", "server", "join", host(to)), "on each new machine, when its agent runs as a server"
			},
		}
	case "vault":
		return system{
			title: "Vault", member: "server", asked: true, unit: "vault",
			look: fixed("vault", "operator", "raft", "list-peers"), strike: strikeID("vault", "operator", "raft", "remove-peer"),
			join: func(to observer.Member) (string, string) {
				return line("vault", "operator", "raft", "join", "https://"+host(to)+":8200"), "on each new machine; unseal it then"
			},
		}
	case "zookeeper":
		return system{
			title: "ZooKeeper", member: "server", unit: "zookeeper",
			look: func(m observer.Member) string {
				port := "2181"
				if _, p, err := net.SplitHostPort(m.Address); err == nil {
					port = p
				}
				return "printf srvr | " + line("nc", "-w", "2", host(m), port)
			},
			strike: func(m observer.Member) string { return line("zkCli.sh", "reconfig", "-remove", m.ID) },
			join: func(to observer.Member) (string, string) {
				return line("zkCli.sh", "-server", address(to), "reconfig", "-add", "server.MYID=ADDRESS:2888:3888;2181"), "it wants reconfigEnabled=true; without, the line goes into zoo.cfg of each server, and they are started again one after the other, the leader last"
			},
		}
	}
	return system{title: "the cluster", member: "member", unit: kind, look: fixed("hostname")}
}

// peersFile is what a server of Consul, Nomad or Vault takes for its cluster when it
// starts, as raft's own recovery wants it.
func peersFile(kind string, all []observer.Member) (file, text string) {
	type peer struct {
		ID       string `json:"id"`
		Address  string `json:"address"`
		NonVoter bool   `json:"non_voter"`
	}
	peers := []peer{}
	for _, m := range all {
		peers = append(peers, peer{m.ID, m.Address, false})
	}
	b, err := json.Marshal(peers)
	if err != nil {
		panic(err) // strings and booleans
	}
	dir := map[string]string{
		"consul": `"${CONSUL_DATA_DIR:?data_dir of its configuration}"/raft`,
		"nomad":  `"${NOMAD_DATA_DIR:?data_dir of its configuration}"/server/raft`,
		"vault":  `"${VAULT_RAFT_PATH:?path of its storage raft}"/raft`,
	}[kind]
	return dir + "/peers.json", string(b)
}
