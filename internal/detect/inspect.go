package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/eddy-backup/eddy/internal/nodeconfig"
	"github.com/eddy-backup/eddy/observer/cometbft"
)

// Found is what is known of one node. A Fact that is empty was not found.
type Found struct {
	Candidate
	// ConfigFile is the node's config.toml.
	ConfigFile string
	Loom       bool
	ChainID    Fact
	RPC        Fact // http://127.0.0.1:26657
	User       User // whom the files belong to: eddy runs as this user
	Witnesses  []Fact
	// Peers are nodes that can be dialled, id@host:port: those that config.toml or
	// the command names, else those that this node has dialled.
	Peers []string
	// PeersSaid tells that the node's command names its persistent peers.
	PeersSaid bool
	// Engines are the databases that were recognised; Backend is what config.toml
	// says, Pruning what app.toml or the command does.
	Engines          []string
	Backend, Pruning string
	// Cosmovisor is its directory, Current the version that it runs.
	Cosmovisor, Current string
	// Roots are the directories beyond the home that hold parts of it: "data is
	// /mnt/data".
	Roots []string
	// Signed tells that the node's key has signed: a validator's.
	Signed bool
	// Wins lists settings of the command or its variables that config.toml does not
	// change: "--p2p.pex of gaiad.service".
	Wins []string
}

// Inspect reads the home of a candidate and asks the node and its peers.
func (h Host) Inspect(ctx context.Context, c Candidate) Found {
	f := Found{Candidate: c}
	home := c.Home.Value
	f.ConfigFile = filepath.Join(home, "config", "config.toml")
	if base := filepath.Join(home, "chaindata"); !exists(f.ConfigFile) && exists(filepath.Join(base, "config")) {
		f.ConfigFile, f.Loom = filepath.Join(base, "config", "config.toml"), true
	}
	f.owner(h)
	if is, err := isHome(home); !is {
		why := "it has no config/config.toml"
		if err != nil {
			why = bareError(err).Error()
		}
		f.note("there is no node to be seen in %s: %s", home, why)
		return f
	}
	settings := f.settings()
	f.readHome()
	f.wins()
	f.RPC = f.rpc(settings)
	f.peers(settings)
	if h.Chain != nil {
		f.ask(ctx, h.Chain)
	}
	return f
}

func (f *Found) note(format string, a ...any) { f.Notes = append(f.Notes, fmt.Sprintf(format, a...)) }

func (f *Found) settings() (s nodeconfig.Settings) {
	text, err := os.ReadFile(f.ConfigFile)
	if err == nil {
		s, err = nodeconfig.Parse(string(text))
	}
	if err != nil {
		f.note("config.toml could not be read: %v", bareError(err))
	}
	if f.Loom {
		// loom.yml wins over Tendermint's own file.
		y := loomFile(f.Home.Value)
		s.RPC = cmp.Or(y["RPCListenAddress"], s.RPC, "tcp://0.0.0.0:46657")
		s.Peers = append(append(nodeconfig.Peers(y["PersistentPeers"]), nodeconfig.Peers(y["Peers"])...), s.Peers...)
	}
	return s
}

// loomFile reads the words at the top level of loom.yml.
func loomFile(home string) map[string]string {
	for _, name := range []string{"loom.yml", "loom.yaml", "config/loom.yml"} {
		if b, err := os.ReadFile(filepath.Join(home, name)); err == nil && len(b) < 1<<20 {
			return topLevel(string(b))
		}
	}
	return nil
}

func topLevel(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok || key == "" || strings.ContainsAny(key[:1], " \t#-\"'") {
			continue
		}
		value = strings.TrimSpace(value)
		if q := strings.IndexAny(value, `"'`); q == 0 {
			value, _, _ = strings.Cut(value[1:], value[:1])
		} else if head, _, ok := strings.Cut(value, " #"); ok {
			value = strings.TrimSpace(head)
		}
		m[key] = value
	}
	return m
}

// readHome asks the part of eddy that makes backups what it sees in the home.
func (f *Found) readHome() {
	home := f.Home.Value
	if g, err := cometbft.ReadGenesis(home); err == nil {
		f.ChainID = Fact{g.ChainID, "genesis.json"}
	} else {
		f.note("the chain id could not be read: %v", err)
	}
	if l, err := cometbft.ReadLayout(home, nil, nil); err == nil {
		f.Engines, f.Backend, f.Pruning = l.Engines(), l.Backend, l.Pruning
		for _, r := range l.Roots[1:] {
			f.Roots = append(f.Roots, fmt.Sprintf("%s is %s", r.Prefix, r.Path))
		}
	} else {
		f.note("its files could not be read: %v", err)
	}
	if s, err := cometbft.SignState(home); err == nil {
		f.Signed = !s.Zero() || s.Remote != ""
	}
	if f.Signed {
		f.note("the node's key has signed, or a remote signer may connect: eddy backs up observers, never validators")
	}
	if v, _ := f.said("pruning"); v != "" {
		f.Pruning = v
	}
	for _, dir := range append([]string{home}, f.env("DAEMON_HOME")...) {
		if link, err := os.Readlink(filepath.Join(dir, "cosmovisor", "current")); err == nil {
			f.Cosmovisor, f.Current = filepath.Join(dir, "cosmovisor"), filepath.Base(link)
			break
		}
	}
}

// owner is whom the files belong to: the user of the service or the process; a
// container's users are not this machine's, there the directory says it.
func (f *Found) owner(h Host) {
	uid := f.uid
	if uid < 0 || f.Container != nil && f.Unit == nil {
		uid = ownerOf(f.Home.Value)
	}
	if uid < 0 {
		return
	}
	who, err := h.User(fmt.Sprint(uid))
	if err != nil {
		who = User{Name: fmt.Sprint(uid), UID: uid, GID: uid}
	}
	f.User = who
}

// said reads a setting from the node's commands.
func (f *Found) said(key string) (value, from string) {
	for _, cmd := range f.cmds {
		if v, from := cmd.said(key); from != "" {
			return v, from
		}
	}
	return "", ""
}

func (f *Found) env(name string) (values []string) {
	for _, cmd := range f.cmds {
		if v := cmd.env[name]; v != "" {
			values = append(values, v)
		}
	}
	return values
}

// wins lists the settings that hide a node and that its command sets.
func (f *Found) wins() {
	for _, key := range []string{"p2p.pex", "p2p.seed_mode", "p2p.laddr", "p2p.external_address"} {
		if v, from := f.said(key); from != "" {
			f.Wins = append(f.Wins, fmt.Sprintf("%s says %s", from, v))
		}
	}
}

// rpc is where this machine reaches the node's RPC.
func (f *Found) rpc(s nodeconfig.Settings) Fact {
	laddr, from := f.said("rpc.laddr")
	if from == "" {
		laddr, from = cmp.Or(s.RPC, "tcp://127.0.0.1:26657"), "rpc.laddr in config.toml"
		if f.Loom {
			from = "RPCListenAddress in loom.yml, or its default"
		}
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(laddr, "tcp://"))
	if err != nil || strings.HasPrefix(laddr, "unix:") {
		f.note("the RPC listens at %s, which eddy cannot ask: it needs a TCP address", laddr)
		return Fact{}
	}
	ip, perr := netip.ParseAddr(host)
	open := host == "" || perr == nil && ip.IsUnspecified()
	if k := f.Container; k != nil && k.Addr != "" {
		switch published := k.Ports[port]; {
		case published != "":
			return Fact{"http://" + published, "the port that container " + k.Name + " publishes"}
		case open:
			f.note("container %s may have another address after its next start: publish its port %s on 127.0.0.1", k.Name, port)
			return Fact{"http://" + net.JoinHostPort(k.Addr, port), "the address of container " + k.Name}
		}
		f.note("the RPC of container %s listens inside it only: set rpc.laddr to tcp://0.0.0.0:%s and publish the port on 127.0.0.1", k.Name, port)
		return Fact{}
	}
	if open {
		host = "127.0.0.1"
	}
	return Fact{"http://" + net.JoinHostPort(host, port), from}
}

// peers collects the nodes that the configuration names.
func (f *Found) peers(s nodeconfig.Settings) {
	for _, key := range []string{"p2p.persistent_peers", "persistent-peers", "peers"} {
		if v, from := f.said(key); from != "" && strings.Contains(v, "@") {
			f.Peers = append(f.Peers, nodeconfig.Peers(v)...)
			f.PeersSaid = true
		}
	}
	f.Peers = append(f.Peers, s.Peers...)
}

// ask asks the node who it is, and looks for witnesses among its peers.
func (f *Found) ask(ctx context.Context, chain Chain) {
	var self Status
	var connected []Peer
	if f.RPC.Value != "" {
		var err error
		self, err = chain.Status(ctx, f.RPC.Value)
		switch {
		case err != nil:
			f.note("the node's RPC did not answer: %v", err)
		case f.ChainID.Value == "":
			f.ChainID = Fact{self.ChainID, "the node's RPC"}
		case self.ChainID != f.ChainID.Value:
			f.note("another node answers at %s, of chain %s: is it the right port?", f.RPC.Value, self.ChainID)
			self = Status{}
		}
		if err == nil && self.ID != "" {
			if connected, err = chain.Peers(ctx, f.RPC.Value); err != nil {
				f.note("the node did not say who its peers are: %v", err)
			}
		}
	}
	f.Witnesses = witnesses(ctx, chain, f.ChainID.Value, self.ID, rpcsOf(f.Peers, connected, f.Loom))
	if len(f.Peers) == 0 {
		for _, p := range connected {
			if p.Outbound && p.Port != "" && len(f.Peers) < mostPeers {
				f.Peers = append(f.Peers, p.ID+"@"+net.JoinHostPort(p.IP, p.Port))
			}
		}
	}
}

// mostPeers is how many persistent peers are taken over from a node that has
// none: enough to stay connected, few enough to keep an eye on.
const mostPeers = 8

// ownerOf is the uid of a directory's owner, -1 where it cannot be told.
func ownerOf(dir string) int {
	fi, err := os.Stat(dir)
	if err != nil {
		return -1
	}
	return statUID(fi)
}

func isDir(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.IsDir()
}

// ErrNotFound says that a source of facts does not exist here: no systemd, no
// engine. It is no trouble.
var ErrNotFound = errors.New("not there")
