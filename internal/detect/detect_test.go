package detect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cfg "github.com/cometbft/cometbft/config"
	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
)

const (
	idSelf = "0000000000000000000000000000000000000000"
	idA    = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB    = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	idC    = "cccccccccccccccccccccccccccccccccccccccc"
)

// fakeChain answers for the nodes that it knows.
type fakeChain struct {
	status map[string]Status // by URL
	peers  []Peer
	asked  chan string
}

func (c fakeChain) Status(_ context.Context, url string) (Status, error) {
	if c.asked != nil {
		c.asked <- url
	}
	if s, ok := c.status[url]; ok {
		return s, nil
	}
	return Status{}, errors.New("connection refused")
}

func (c fakeChain) Peers(context.Context, string) ([]Peer, error) { return c.peers, nil }

// machine is a set-up below a temporary directory.
type machine struct {
	t   *testing.T
	dir string
}

func (m machine) write(name, text string) string {
	m.t.Helper()
	file := filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		m.t.Fatal(err)
	}
	return file
}

// home writes a node's home as CometBFT and the SDK do, with the marks of a
// goleveldb. edit changes the configuration.
func (m machine) home(name, chain string, edit func(*cfg.Config)) string {
	m.t.Helper()
	c := cfg.DefaultConfig()
	if edit != nil {
		edit(c)
	}
	cfg.WriteConfigFile(m.write(name+"/config/config.toml", ""), c)
	m.write(name+"/config/genesis.json", fmt.Sprintf(`{"genesis_time":"2026-01-01T00:00:00Z","chain_id":%q,"initial_height":"1"}`, chain))
	m.write(name+"/config/app.toml", "pruning = \"custom\"\n")
	for _, db := range []string{"application.db", "state.db", "blockstore.db"} {
		m.database(name + "/data/" + db)
	}
	m.write(name+"/data/priv_validator_state.json", `{"height":"0","round":0,"step":0}`)
	return filepath.Join(m.dir, name)
}

func (m machine) database(name string) {
	m.write(name+"/CURRENT", "MANIFEST-000001\n")
	m.write(name+"/MANIFEST-000001", "x")
	m.write(name+"/000002.ldb", "x")
}

func (m machine) link(to, name string) {
	m.t.Helper()
	at := filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(to, at)); err != nil {
		m.t.Fatal(err)
	}
}

// users are gaia, whose home is in the tree, and root.
func (m machine) users(name string) (User, error) {
	switch name {
	case "gaia", "1000":
		return User{Name: "gaia", Home: filepath.Join(m.dir, "home/gaia"), UID: 1000, GID: 1000}, nil
	case "root", "0":
		return User{Name: "root", Home: filepath.Join(m.dir, "root")}, nil
	}
	return User{}, errors.New("no such user")
}

func service(name, user string, argv string, env ...string) Unit {
	return Unit{Name: name, Load: "loaded", Active: "active", File: "enabled", User: user, PID: 10, Argv: strings.Fields(argv), Env: environ(env)}
}

// setup is one machine with what must be found on it.
type setup struct {
	name  string
	build func(m machine) Host
	want  Choice
	// expected; $D is the machine's directory
	home, homeFrom                string
	unit, container, supervise    string
	chainID, rpc, pruning         string
	user, current                 string
	witnesses, roots, wins, notes []string
	several                       []string
	err, hint                     string
}

func setups() []setup {
	return []setup{
		{
			name: "systemd with cosmovisor",
			build: func(m machine) Host {
				m.home("home/gaia/.gaia", "cosmoshub-4", func(c *cfg.Config) {
					c.P2P.PersistentPeers = idA + "@10.0.0.11:26656," + idB + "@10.0.0.12:26656"
				})
				m.write("home/gaia/.gaia/cosmovisor/upgrades/v17/bin/gaiad", "")
				m.link("upgrades/v17", "home/gaia/.gaia/cosmovisor/current")
				return Host{
					Units: []Unit{
						service("gaiad.service", "gaia", "/usr/bin/cosmovisor run start", "DAEMON_NAME=gaiad", "DAEMON_HOME="+m.dir+"/home/gaia/.gaia", "SECRET=hunter2"),
						service("sshd.service", "", "/usr/sbin/sshd -D"),
						service("nginx.service", "", "/usr/sbin/nginx"),
					},
					Processes: []Process{
						{PID: 10, UID: 1000, Argv: []string{"/usr/bin/cosmovisor", "run", "start"}, Unit: "gaiad.service", Dir: "/"},
						{PID: 11, UID: 1000, Argv: []string{m.dir + "/home/gaia/.gaia/cosmovisor/current/bin/gaiad", "start"}, Unit: "gaiad.service", Dir: "/"},
						{PID: 12, UID: 1000, Argv: []string{"gaiad", "keys", "list", "--home", m.dir + "/home/gaia/.gaia"}},
					},
					Chain: fakeChain{
						status: map[string]Status{
							"http://127.0.0.1:26657": {idSelf, "cosmoshub-4"},
							"http://10.0.0.11:26657": {idA, "cosmoshub-4"},
							"http://10.0.0.12:36657": {idB, "cosmoshub-4"},
							"http://10.0.0.13:26657": {idC, "cosmoshub-4"},
						},
						peers: []Peer{
							{ID: strings.ToUpper(idB), IP: "10.0.0.12", RPC: "tcp://0.0.0.0:36657"},
							{ID: idC, IP: "10.0.0.13", RPC: "tcp://127.0.0.1:26657"},
						},
					},
				}
			},
			home: "$D/home/gaia/.gaia", homeFrom: "where gaiad of gaiad.service keeps it by itself",
			unit: "gaiad.service", chainID: "cosmoshub-4", rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia", current: "v17",
			witnesses: []string{"http://10.0.0.11:26657", "http://10.0.0.12:36657"},
		},
		{
			name: "plain systemd, stopped, its settings in the command",
			build: func(m machine) Host {
				m.home("srv/osmo", "osmosis-1", nil)
				u := service("osmosisd.service", "gaia", "/usr/local/bin/osmosisd start --home $D/srv/osmo --rpc.laddr=tcp://0.0.0.0:36657 --p2p.pex=true --pruning nothing")
				u.Argv[3], u.PID = m.dir+"/srv/osmo", 0
				return Host{Units: []Unit{u}}
			},
			home: "$D/srv/osmo", homeFrom: "--home of osmosisd.service", unit: "osmosisd.service", chainID: "osmosis-1",
			rpc: "http://127.0.0.1:36657", pruning: "nothing", user: "gaia", wins: []string{"--p2p.pex of osmosisd.service says true"},
		},
		{
			name: "a unit that runs a script: its process tells",
			build: func(m machine) Host {
				m.home("data/juno", "juno-1", nil)
				return Host{
					Units:     []Unit{service("juno.service", "gaia", "/opt/start-juno.sh")},
					Processes: []Process{{PID: 14, UID: 1000, Argv: []string{"junod", "start", "--home=" + m.dir + "/data/juno"}, Unit: "juno.service"}},
				}
			},
			home: "$D/data/juno", homeFrom: "--home of juno.service", unit: "juno.service", chainID: "juno-1",
			rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia",
		},
		{
			name: "under eddy supervise",
			build: func(m machine) Host {
				m.home("srv/gaia", "gaia-1", nil)
				u := service("node.service", "gaia", "/usr/local/bin/eddy supervise --socket /run/eddy/node.sock -- /usr/local/bin/gaiad start --home $D/srv/gaia")
				u.Argv[8] = m.dir + "/srv/gaia"
				return Host{Units: []Unit{u, service("eddy.service", "gaia", "/usr/local/bin/eddy run --home "+m.dir+"/srv/gaia")}}
			},
			home: "$D/srv/gaia", homeFrom: "--home of node.service", unit: "node.service", supervise: "/run/eddy/node.sock",
			chainID: "gaia-1", rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia",
		},
		{
			name: "a container with its home in a volume",
			build: func(m machine) Host {
				m.home("volumes/osmo", "osmosis-1", func(c *cfg.Config) { c.RPC.ListenAddress = "tcp://0.0.0.0:26657" })
				return Host{Containers: []Container{
					{Name: "osmo", Argv: []string{"osmosisd", "start"}, Running: true, Addr: "172.17.0.2", Ports: map[string]string{"26657": "127.0.0.1:16657"}, Mounts: []Mount{{m.dir + "/volumes/osmo", "/root/.osmosisd"}}},
					{Name: "db", Argv: []string{"postgres"}, Running: true, Mounts: []Mount{{m.dir + "/volumes", "/var/lib/postgresql"}}},
				}}
			},
			home: "$D/volumes/osmo", homeFrom: "where osmosisd of container osmo keeps it by itself, which is /root/.osmosisd there", container: "osmo",
			chainID: "osmosis-1", rpc: "http://127.0.0.1:16657", pruning: "custom",
		},
		{
			name: "a container whose command says nothing, RPC closed",
			build: func(m machine) Host {
				m.home("vol/x", "x-1", nil)
				return Host{Containers: []Container{{Name: "x", Argv: []string{"/entrypoint.sh"}, Addr: "172.17.0.3", Mounts: []Mount{{m.dir + "/vol/x", "/chain"}}}}}
			},
			home: "$D/vol/x", homeFrom: "the mount /chain of container x", container: "x", chainID: "x-1", pruning: "custom",
			notes: []string{"the RPC of container x listens inside it only: set rpc.laddr to tcp://0.0.0.0:26657 and publish the port on 127.0.0.1"},
		},
		{
			name: "a container whose RPC is open and not published",
			build: func(m machine) Host {
				m.home("vol/x", "x-1", func(c *cfg.Config) { c.RPC.ListenAddress = "tcp://0.0.0.0:26657" })
				return Host{Containers: []Container{{Name: "x", Argv: []string{"xd", "start", "--home", "/x"}, Running: true, Addr: "172.17.0.3", Mounts: []Mount{{m.dir + "/vol/x", "/x"}}}}}
			},
			home: "$D/vol/x", homeFrom: "--home of container x, which is /x there", container: "x", chainID: "x-1", rpc: "http://172.17.0.3:26657", pruning: "custom",
			notes: []string{"container x may have another address after its next start: publish its port 26657 on 127.0.0.1"},
		},
		{
			name: "a unit that runs a container",
			build: func(m machine) Host {
				m.home("vol/x", "x-1", nil)
				return Host{
					Units:      []Unit{service("x.service", "", "/usr/bin/docker run --rm --name x -v /vol/x:/home/x img xd start --home /home/x")},
					Containers: []Container{{Name: "x", Argv: []string{"xd", "start", "--home", "/home/x"}, Mounts: []Mount{{m.dir + "/vol/x", "/home/x"}}}},
				}
			},
			home: "$D/vol/x", homeFrom: "--home of container x, which is /home/x there", container: "x", unit: "x.service", chainID: "x-1",
			rpc: "http://127.0.0.1:26657", pruning: "custom",
			notes: []string{"x.service runs container x: it is the unit that is stopped and started"},
		},
		{
			name: "a container with its home spread over mounts",
			build: func(m machine) Host {
				m.home("vol/x", "x-1", nil)
				return Host{Containers: []Container{{Name: "x", Argv: []string{"xd", "start", "--home", "/x"}, Mounts: []Mount{{m.dir + "/vol/x/config", "/x/config"}, {m.dir + "/vol/x/data", "/x/data"}}}}}
			},
			err: "no node was found: the home of container x, /x, is spread over mounts (/x/config, /x/data): mount the whole home as one directory", hint: "name its home with --home",
		},
		{
			name: "a container without a volume",
			build: func(machine) Host {
				return Host{Containers: []Container{{Name: "x", Argv: []string{"xd", "start", "--home", "/x"}}}, Blind: []string{"systemd: no"}}
			},
			err: "is in the container itself and not on a volume", hint: "not all could be looked at (systemd: no): run it as root",
		},
		{
			name: "Loom",
			build: func(m machine) Host {
				m.home("home/ubuntu/chaindata", "default", func(c *cfg.Config) { c.RPC.ListenAddress = "tcp://0.0.0.0:46657" })
				m.database("home/ubuntu/app.db")
				m.write("home/ubuntu/loom.yml", "ChainID: \"default\"\nRPCListenAddress: \"tcp://0.0.0.0:46667\" # ours\nMetrics:\n  RPCListenAddress: no\n")
				u := service("loom.service", "gaia", "/usr/bin/loom run --peers tcp://"+idA+"@10.0.0.1:46656,tcp://"+idB+"@10.0.0.2:46656")
				u.Dir = m.dir + "/home/ubuntu"
				return Host{Units: []Unit{u}, Chain: fakeChain{status: map[string]Status{
					"http://10.0.0.1:46657": {idA, "default"}, "http://10.0.0.2:46657": {idB, "another"},
				}}}
			},
			home: "$D/home/ubuntu", homeFrom: "the working directory of loom.service", unit: "loom.service", chainID: "default",
			rpc: "http://127.0.0.1:46667", user: "gaia", witnesses: []string{"http://10.0.0.1:46657"},
			notes: []string{"the node's RPC did not answer: connection refused"},
		},
		{
			name: "two chains on one host",
			build: func(m machine) Host {
				m.home("home/gaia/.gaia", "cosmoshub-4", nil)
				m.home("home/gaia/.juno", "juno-1", nil)
				return Host{
					Units:      []Unit{service("junod.service", "gaia", "junod start")},
					Containers: []Container{{Name: "hub", Argv: []string{"gaiad", "start", "--home", "/h"}, Mounts: []Mount{{m.dir + "/home/gaia/.gaia", "/h"}}}},
				}
			},
			err: "several nodes were found: 2", hint: "--unit, --container or --home",
			several: []string{"$D/home/gaia/.gaia hub", "$D/home/gaia/.juno junod.service"},
		},
		{
			name: "two chains, one named by its unit",
			build: func(m machine) Host {
				m.home("home/gaia/.gaia", "cosmoshub-4", nil)
				m.home("home/gaia/.juno", "juno-1", nil)
				return Host{Units: []Unit{service("junod.service", "gaia", "junod start"), service("gaiad.service", "gaia", "gaiad start")}}
			},
			want: Choice{Unit: "junod"}, home: "$D/home/gaia/.juno", homeFrom: "where junod of junod.service keeps it by itself",
			unit: "junod.service", chainID: "juno-1", rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia",
		},
		{
			name: "two chains, one named by its home through a symlink",
			build: func(m machine) Host {
				m.home("home/gaia/.gaia", "cosmoshub-4", nil)
				m.home("home/gaia/.juno", "juno-1", nil)
				m.link(m.dir+"/home/gaia/.juno", "srv/juno")
				return Host{Units: []Unit{service("junod.service", "gaia", "junod start"), service("gaiad.service", "gaia", "gaiad start")}}
			},
			want: Choice{Home: Fact{"$D/srv/juno", "--home"}}, home: "$D/srv/juno", homeFrom: "--home",
			unit: "junod.service", chainID: "juno-1", rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia",
		},
		{
			name: "two units name one home, one of them runs",
			build: func(m machine) Host {
				m.home("home/gaia/.gaia", "g-1", nil)
				old := service("a-old.service", "gaia", "gaiad start")
				old.PID = 0
				return Host{Units: []Unit{old, service("gaiad.service", "gaia", "gaiad start")}}
			},
			home: "$D/home/gaia/.gaia", homeFrom: "where gaiad of gaiad.service keeps it by itself", unit: "gaiad.service",
			chainID: "g-1", rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia",
		},
		{
			name: "two units run one home",
			build: func(m machine) Host {
				h := m.home("home/gaia/.gaia", "g-1", nil)
				return Host{Units: []Unit{service("feeder.service", "gaia", "feeder start --home "+h), service("gaiad.service", "gaia", "gaiad start")}}
			},
			err: "several nodes were found: 2", hint: "--unit", several: []string{"$D/home/gaia/.gaia feeder.service", "$D/home/gaia/.gaia gaiad.service"},
		},
		{
			name: "data on a disk of its own, wasm elsewhere too, no unit",
			build: func(m machine) Host {
				m.home("home/gaia/.gaia", "g-1", func(c *cfg.Config) { c.P2P.PersistentPeers = "" })
				must := func(err error) {
					if err != nil {
						m.t.Fatal(err)
					}
				}
				must(os.MkdirAll(m.dir+"/mnt", 0o755))
				must(os.Rename(m.dir+"/home/gaia/.gaia/data", m.dir+"/mnt/data"))
				m.link(m.dir+"/mnt/data", "home/gaia/.gaia/data")
				m.database("mnt/wasm/state")
				m.link(m.dir+"/mnt/wasm", "home/gaia/.gaia/wasm")
				return Host{
					Processes: []Process{{PID: 9, UID: 1000, Argv: []string{"gaiad", "start"}, Dir: "/"}},
					Chain: fakeChain{
						status: map[string]Status{"http://127.0.0.1:26657": {idSelf, "g-1"}, "http://127.0.0.1:36657": {idA, "g-1"}},
						peers:  []Peer{{ID: idA, IP: "127.0.0.1", Port: "36656", RPC: "tcp://127.0.0.1:36657", Outbound: true}, {ID: idB, IP: "10.0.0.2", Port: "26656"}},
					},
				}
			},
			home: "$D/home/gaia/.gaia", homeFrom: "where gaiad of process 9 keeps it by itself", chainID: "g-1",
			rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia", witnesses: []string{"http://127.0.0.1:36657"},
			roots: []string{"data is $D/mnt/data", "wasm is $D/mnt/wasm"},
		},
		{
			name: "another node answers at the port; a validator",
			build: func(m machine) Host {
				h := m.home("home/gaia/.gaia", "g-1", nil)
				m.write("home/gaia/.gaia/data/priv_validator_state.json", `{"height":"7","round":0,"step":3}`)
				return Host{
					Units: []Unit{service("g.service", "gaia", "/bin/sh -c 'exec gaiad start --home "+h+"'")},
					Chain: fakeChain{status: map[string]Status{"http://127.0.0.1:26657": {idSelf, "other-1"}}},
				}
			},
			home: "$D/home/gaia/.gaia", homeFrom: "--home of g.service", unit: "g.service", chainID: "g-1",
			rpc: "http://127.0.0.1:26657", pruning: "custom", user: "gaia",
			notes: []string{"the node's key has signed, or a remote signer may connect: eddy backs up observers, never validators", "another node answers at http://127.0.0.1:26657, of chain other-1: is it the right port?"},
		},
		{
			name: "a unit whose home is gone",
			build: func(machine) Host {
				return Host{Units: []Unit{service("g.service", "gaia", "gaiad start --home /nonexistent/gaia")}}
			},
			want: Choice{Unit: "g.service"}, err: "no node was found: nothing says where the home of g.service is", hint: "--home",
		},
		{
			name:  "no such unit",
			build: func(machine) Host { return Host{} },
			want:  Choice{Unit: "g"}, err: "systemd has no g.service", hint: "systemctl list-unit-files",
		},
		{
			name:  "no such container",
			build: func(machine) Host { return Host{Blind: []string{"docker: permission denied"}} },
			want:  Choice{Container: "g"}, err: "the engine has no container g", hint: "(docker: permission denied)",
		},
		{
			name:  "unit and container",
			build: func(machine) Host { return Host{} },
			want:  Choice{Unit: "g", Container: "g"}, err: "a node is run by one", hint: "leave out one",
		},
		{
			name:  "nothing at all",
			build: func(machine) Host { return Host{} },
			err:   "no node was found", hint: "run this on the observer's machine",
		},
		{
			name:  "a home that is none",
			build: func(machine) Host { return Host{} },
			want:  Choice{Home: Fact{"$D/none", "--home"}}, home: "$D/none", homeFrom: "--home",
			notes: []string{"there is no node to be seen in $D/none: it has no config/config.toml"},
		},
	}
}

func TestSetups(t *testing.T) {
	for _, x := range setups() {
		t.Run(x.name, func(t *testing.T) {
			m := machine{t, t.TempDir()}
			at := func(s string) string { return strings.ReplaceAll(s, "$D", m.dir) }
			all := func(list []string) (out []string) {
				for _, s := range list {
					out = append(out, at(s))
				}
				return out
			}
			h := x.build(m)
			h.User = m.users
			x.want.Home.Value = at(x.want.Home.Value)
			c, several, err := h.Choose(x.want)
			if x.err != "" {
				if err == nil || !strings.Contains(err.Error(), x.err) || !strings.Contains(hint.Of(err), x.hint) {
					t.Fatalf("%v\nhint: %s", err, hint.Of(err))
				}
				var got []string
				for _, s := range several {
					name := ""
					if s.Unit != nil {
						name = s.Unit.Name
					} else if s.Container != nil {
						name = s.Container.Name
					}
					got = append(got, s.Home.Value+" "+name)
				}
				if diff := cmp.Diff(all(x.several), got); diff != "" {
					t.Error(diff)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\nhint: %s", err, hint.Of(err))
			}
			f := h.Inspect(t.Context(), c)
			unit, container := "", ""
			if f.Unit != nil {
				unit = f.Unit.Name
			}
			if f.Container != nil {
				container = f.Container.Name
			}
			var witnesses []string
			for _, w := range f.Witnesses {
				witnesses = append(witnesses, w.Value)
			}
			user := f.User.Name
			if x.user == "" { // whoever runs the test
				user = ""
			}
			got := setup{
				home: f.Home.Value, homeFrom: f.Home.From, unit: unit, container: container, supervise: f.Supervise.Value,
				chainID: f.ChainID.Value, rpc: f.RPC.Value, pruning: f.Pruning, user: user, current: f.Current,
				witnesses: witnesses, roots: f.Roots, wins: f.Wins, notes: f.Notes,
			}
			want := setup{
				home: at(x.home), homeFrom: x.homeFrom, unit: x.unit, container: x.container, supervise: x.supervise,
				chainID: x.chainID, rpc: x.rpc, pruning: x.pruning, user: x.user, current: x.current,
				witnesses: x.witnesses, roots: all(x.roots), wins: x.wins, notes: all(x.notes),
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(setup{}), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".build" }, cmp.Ignore())); diff != "" {
				t.Error(diff)
			}
			if x.chainID != "" {
				if diff := cmp.Diff([]string{"goleveldb"}, f.Engines); diff != "" {
					t.Error(diff)
				}
			}
			checkConfig(t, m, f)
		})
	}
}

// checkConfig writes the eddy.yaml of a set-up: it passes config check, and what
// was not found is a line that config check names.
func checkConfig(t *testing.T, m machine, f Found) {
	t.Helper()
	v := config.TemplateValues{Store: "s3://backups/eddy"}
	f.Fill(&v)
	text, err := config.Template(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := config.CheckTemplate("eddy.yaml", text); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	c, err := config.Load(m.write("eddy.yaml", string(text)), nil, config.Overrides{}, config.NeedRun)
	var missing []string
	var problems *config.Error
	if errors.As(err, &problems) {
		for _, p := range problems.Problems {
			if p.Line == 0 {
				t.Errorf("no line: %v", p)
			}
			missing = append(missing, p.Key)
		}
	}
	var want []string
	if f.ChainID.Value == "" {
		want = append(want, "cluster")
	}
	if f.RPC.Value == "" {
		want = append(want, "replica.rpc")
	}
	if len(f.Witnesses) == 0 {
		want = append(want, "replica.witnesses[0]")
	}
	if diff := cmp.Diff(want, missing); diff != "" {
		t.Errorf("%s\n%s", diff, text)
	}
	if strings.Contains(string(text), "hunter2") {
		t.Error("a secret of the environment is in the file")
	}
	if err != nil {
		return
	}
	for _, s := range c.Settings() {
		got := map[string]string{"replica.home": f.Home.Value, "replica.chain_id": f.ChainID.Value, "cluster": f.ChainID.Value}[s.Key]
		if got != "" && strings.Trim(s.Value, `"`) != got {
			t.Errorf("%s is %s, found was %s", s.Key, s.Value, got)
		}
	}
	k := c.Replica.Control
	switch {
	case f.Supervise.Value != "":
		if k.Supervise != f.Supervise.Value {
			t.Errorf("control: %+v", k)
		}
	case f.Unit != nil:
		if k.Systemd.Unit != f.Unit.Name || k.Supervise != "" {
			t.Errorf("control: %+v", k)
		}
	case f.Container != nil:
		if k.Docker.Container != f.Container.Name || k.Supervise != "" {
			t.Errorf("control: %+v", k)
		}
	default:
		if k.Supervise == "" {
			t.Errorf("control: %+v", k)
		}
	}
}
