package detect

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
)

const (
	// mostAsked bounds the nodes that are asked whether they would do as witnesses.
	mostAsked = 16
	// mostWitnesses is how many are taken: one may be down, one may lie.
	mostWitnesses = 3
)

// rpcsOf lists where the RPC of other nodes may answer: of the peers that were
// configured first, then of those that the node is connected to and that say that
// their RPC is open. No other port of anybody is tried.
func rpcsOf(configured []string, connected []Peer, loom bool) (urls []Fact) {
	port := "26657"
	if loom {
		port = "46657"
	}
	seen := map[string]bool{}
	add := func(at, from string) {
		if !seen[at] && len(urls) < mostAsked {
			seen[at] = true
			urls = append(urls, Fact{"http://" + at, from})
		}
	}
	told := map[string]Peer{} // by id
	for _, p := range connected {
		told[strings.ToLower(p.ID)] = p
	}
	for _, text := range configured {
		id, addr, ok := strings.Cut(strings.TrimPrefix(text, "tcp://"), "@")
		host, _, err := net.SplitHostPort(addr)
		if !ok || err != nil {
			continue
		}
		p, isTold := told[strings.ToLower(id)]
		if isTold && p.RPC != "" {
			if at, open := p.rpc(); open {
				add(at, "a persistent peer")
			}
			continue
		}
		add(net.JoinHostPort(host, port), "a persistent peer")
	}
	for _, p := range connected {
		if at, open := p.rpc(); open {
			add(at, "a peer in /net_info")
		}
	}
	return urls
}

// rpc is where a peer's RPC can be reached from here, if it may be reached at
// all: a listener on the peer's own machine is open to that machine alone.
func (p Peer) rpc() (at string, open bool) {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(p.RPC, "tcp://"))
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || p.IP == "" {
		return "", false
	}
	own, err := netip.ParseAddr(host)
	if host == "localhost" || err == nil && own.IsLoopback() {
		ip, err := netip.ParseAddr(p.IP)
		return net.JoinHostPort(host, port), err == nil && ip.IsLoopback()
	}
	return net.JoinHostPort(p.IP, port), true
}

// witnesses asks all at once and takes the first ones of the right chain, in the
// order of the list.
func witnesses(ctx context.Context, chain Chain, chainID, self string, urls []Fact) (out []Fact) {
	if chainID == "" {
		return nil
	}
	answers := make([]Status, len(urls))
	var wg sync.WaitGroup
	for i, u := range urls {
		wg.Go(func() {
			if s, err := chain.Status(ctx, u.Value); err == nil {
				answers[i] = s
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{strings.ToLower(self): true, "": true}
	for i, s := range answers {
		id := strings.ToLower(s.ID)
		if s.ChainID == chainID && !seen[id] && len(out) < mostWitnesses {
			seen[id] = true
			out = append(out, urls[i])
		}
	}
	return out
}
