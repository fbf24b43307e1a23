package cometbft

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cometbft/cometbft/p2p"
	ctypes "github.com/cometbft/cometbft/rpc/core/types"

	"github.com/eddy-backup/eddy/internal/check"
)

// maxCrawled bounds how many nodes are asked for addresses.
const maxCrawled = 64

// Unlisted proves, as far as that can be done from here, that no other node knows
// the replica's address: nobody who can be asked has dialled it, and nobody tells
// its address to a node that asks. It takes at most within, has one connection at a
// time to each node, and changes nothing there.
func (r *Replica) Unlisted(ctx context.Context, within time.Duration) []check.Finding {
	const name = "unlisted"
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	own, err := askNodeInfo(ctx, r.o.RPC)
	if err != nil {
		return nil // the finding of the node says so
	}
	n := neighbours{own: own.NodeInfo.ID(), peers: map[p2p.ID]string{}, rpcs: map[string]bool{}}
	n.look(ctx, r.o.RPC, false)
	for _, b := range r.layout.bases {
		n.configured(filepath.Join(b.dir, "config", "config.toml"))
	}
	var wg sync.WaitGroup
	for _, raw := range r.o.Witnesses {
		if u, err := url.Parse(raw); err == nil {
			delete(n.rpcs, (&url.URL{Scheme: "http", Host: u.Host}).String()) // not twice
		}
	}
	for _, raw := range r.o.Witnesses {
		wg.Go(func() { n.witness(ctx, raw) })
	}
	wg.Wait()
	for raw := range n.rpcs {
		wg.Go(func() { n.look(ctx, raw, true) })
	}
	wg.Wait()

	todo := "let nobody learn the address first (see hidden); then, if that node has it from earlier days, stop it, take the entry out of its config/addrbook.json and start it again; or give this node another key and port: stop it, move its config/node_key.json away, change laddr under [p2p], and start it"
	var out []check.Finding
	for _, raw := range slices.Sorted(slices.Values(n.dialled)) {
		out = append(out, check.Finding{Name: name, Level: check.Fail, Said: raw + " has dialled this node: it has its address", Hint: "take it out of persistent_peers and seeds of that node's config.toml; " + todo})
	}
	c := crawl{network: own.NodeInfo.Network, version: own.NodeInfo.ProtocolVersion, id: n.own, addrs: addressesOf(own.NodeInfo.ListenAddr)}
	peers := slices.Sorted(maps.Values(n.peers))
	all := c.run(ctx, peers[:min(len(peers), maxCrawled)])
	whole, part, silent, why := 0, 0, 0, ""
	for _, h := range all {
		switch {
		case h.listed != "":
			out = append(out, check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("%s has this node in its address book, and tells others: %s", h.peer, h.listed), Hint: todo})
		case h.whole, h.noPEX:
			whole++
		case h.answers > 0:
			part++
		default:
			silent++
			if h.err != nil {
				why = fmt.Sprintf(" (%s: %s)", h.peer, oneLine(h.err))
			}
		}
	}
	if len(out) > 0 {
		return out
	}
	if n.asked == 0 && whole+part == 0 {
		said := "no other node could be asked for its connections or for addresses: whether one has this node's is not known"
		if silent > 0 {
			said += fmt.Sprintf("; %d did not answer%s", silent, why)
		}
		return []check.Finding{{Name: name, Level: check.Warn, Said: said, Hint: "set `replica.witnesses: [URL1, URL2]` to nodes of the chain whose RPC can be reached from here, and run `eddy doctor` again"}}
	}
	said := fmt.Sprintf("none of %d nodes tells its address", whole+part)
	if part > 0 {
		said += fmt.Sprintf("; %d of them told only a part of what they know", part)
	}
	if whole+part == 0 {
		said = "nobody could be asked for addresses: that nobody has it is not proven"
	}
	if silent > 0 {
		said += fmt.Sprintf("; %d did not answer%s; a node hangs up on a second connection from one address unless allow_duplicate_ip is set", silent, why)
	}
	return []check.Finding{check.Good(name, fmt.Sprintf("none of %d nodes has dialled it, %s", n.asked, said))}
}

// neighbours collects who there is to be asked.
type neighbours struct {
	own p2p.ID

	mu      sync.Mutex
	peers   map[p2p.ID]string // ID@HOST:PORT
	rpcs    map[string]bool   // URLs
	dialled []string          // whose connection to our node is an outgoing one
	asked   int               // for their connections
}

// add takes down a node that might be asked for addresses.
func (n *neighbours) add(id p2p.ID, host, port string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id != n.own && n.peers[id] == "" {
		n.peers[id] = string(id) + "@" + net.JoinHostPort(host, port)
	}
}

// configured takes down the peers that the node's own file names.
func (n *neighbours) configured(file string) {
	var c struct {
		P2P struct {
			Peers string `toml:"persistent_peers"`
			Seeds string `toml:"seeds"`
		} `toml:"p2p"`
	}
	if readTOML(file, &c) != nil {
		return // hidden says so
	}
	for _, p := range strings.Split(c.P2P.Peers+","+c.P2P.Seeds, ",") {
		id, at, ok := strings.Cut(strings.TrimSpace(p), "@")
		if host, port, err := net.SplitHostPort(at); ok && err == nil {
			n.add(p2p.ID(strings.ToLower(id)), host, port)
		}
	}
}

// witness takes down a witness itself, and asks it for its connections.
func (n *neighbours) witness(ctx context.Context, raw string) {
	s, err := askNodeInfo(ctx, raw)
	u, uerr := url.Parse(raw)
	if err != nil || uerr != nil {
		return // its own row says so
	}
	host, port, ok := reachableAt(s.NodeInfo.ListenAddr, u.Hostname())
	if ok {
		n.add(s.NodeInfo.ID(), host, port)
	}
	n.look(ctx, raw, true)
}

// look asks a node for its connections: who else is there, and whether one of them
// goes out to our node. of: it is not our node.
func (n *neighbours) look(ctx context.Context, raw string, of bool) {
	c, err := dial(raw)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := c.NetInfo(ctx)
	if err != nil {
		return
	}
	n.mu.Lock()
	if of {
		n.asked++
	}
	n.mu.Unlock()
	for _, p := range info.Peers {
		id := p.NodeInfo.ID()
		if id == n.own {
			n.mu.Lock()
			if p.IsOutbound && of && !slices.Contains(n.dialled, bare(raw)) {
				n.dialled = append(n.dialled, bare(raw))
			}
			n.mu.Unlock()
			continue
		}
		if host, port, ok := reachableAt(p.NodeInfo.ListenAddr, p.RemoteIP); ok {
			n.add(id, host, port)
		}
		if host, port, ok := reachableAt(p.NodeInfo.Other.RPCAddress, p.RemoteIP); ok && !of {
			n.mu.Lock()
			n.rpcs[(&url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}).String()] = true
			n.mu.Unlock()
		}
	}
}

// reachableAt makes an address of what a node says that it listens on. Where that
// is all of its addresses, it is the one that it was seen at.
func reachableAt(listen, seen string) (host, port string, ok bool) {
	if _, after, found := strings.Cut(listen, "://"); found {
		listen = after
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil || port == "" || port == "0" {
		return "", "", false
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = seen
	}
	return host, port, host != ""
}

// addressesOf are the addresses by which a node might be known that tells its peers
// listen: that one, and those of this machine with its port.
func addressesOf(listen string) map[string]bool {
	host, port, ok := reachableAt(listen, "")
	_, after, _ := strings.Cut(listen, "://")
	if !ok {
		_, port, _ = net.SplitHostPort(after)
	}
	out := map[string]bool{}
	if ok {
		out[net.JoinHostPort(host, port)] = true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil || port == "" {
		return out
	}
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			out[net.JoinHostPort(ip.String(), port)] = true
		}
	}
	return out
}

func askNodeInfo(ctx context.Context, raw string) (*ctypes.ResultStatus, error) {
	c, err := dial(raw)
	if err != nil {
		return nil, redact(err, raw)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.Status(ctx)
	return s, redact(err, raw)
}
