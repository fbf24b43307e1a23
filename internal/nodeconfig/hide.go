package nodeconfig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// peerText is a peer as config.toml names it: id@host:port.
var peerText = regexp.MustCompile(`^(tcp://)?[0-9a-fA-F]{40}@[^@,\s]+:[0-9]{1,5}$`)

// Peers splits a list of peers as config.toml has it.
func Peers(list string) []string {
	var out []string
	for p := range strings.SplitSeq(list, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// ErrNoPeers: with peer exchange off a node that names no peers finds none.
var ErrNoPeers = errors.New("it names no persistent_peers, and with pex off it finds no others")

// Hide lists the changes that keep other nodes from putting this one into their
// address books, and from handing its address on. peers are added to the
// persistent ones, which stay. The error is ErrNoPeers where the node would be
// alone; the changes are given all the same, for people to see.
//
// pex=false alone does not hide a node: a peer books the address that an inbound
// node tells of itself, external_address or else laddr, whatever its own
// addr_book_strict says; an unspecified address is the one that every peer
// refuses (cometbft p2p/pex/pex_reactor.go AddPeer, p2p/netaddress.go).
func Hide(text string, peers []string) ([]Change, error) {
	for _, p := range peers {
		if !peerText.MatchString(p) {
			return nil, hint.Add(errors.New("a peer is not id@host:port"), "the id is 40 hex digits: `gaiad tendermint show-node-id` prints it")
		}
	}
	all, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotEdited, err)
	}
	p2p, ok := all["p2p"].(map[string]any)
	if !ok {
		return nil, hint.Add(fmt.Errorf("%w: it has no table p2p", ErrNotEdited), "is this a CometBFT node's config.toml?")
	}
	if mode, _ := all["mode"].(string); mode == "seed" || mode == "validator" {
		return nil, hint.Add(fmt.Errorf("%w: mode is %s", ErrNotEdited, mode), "an observer's mode is full: change it by hand, if this is to be one")
	}
	s := settings{p2p: p2p}
	for key := range p2p {
		s.dashes = s.dashes || strings.Contains(key, "-")
	}
	s.set("pex", false)
	if s.has("seed_mode") {
		s.set("seed_mode", false)
	}
	port, err := s.listen()
	if err != nil {
		return nil, err
	}
	if !unspecified(s.text("external_address")) {
		s.set("external_address", "0.0.0.0:"+port)
	}
	there := Peers(s.text("persistent_peers"))
	whole := slices.Clone(there)
	for _, p := range peers {
		if !slices.ContainsFunc(there, func(t string) bool { return peerID(t) == peerID(p) }) {
			whole = append(whole, p)
		}
	}
	if len(whole) > len(there) {
		s.set("persistent_peers", strings.Join(whole, ","))
	}
	if len(whole) == 0 {
		return s.changes, hint.Add(ErrNoPeers, "name nodes of the chain with --peer id@host:port")
	}
	return s.changes, nil
}

func peerID(p string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(p, "tcp://"), "@")
	return strings.ToLower(id)
}

// settings collects the changes of the table p2p that change something.
type settings struct {
	p2p     map[string]any
	dashes  bool // names as in sei-tendermint: external-address
	changes []Change
}

func (s *settings) name(key string) string {
	if s.dashes {
		return strings.ReplaceAll(key, "_", "-")
	}
	return key
}

func (s *settings) has(key string) bool { _, ok := s.p2p[s.name(key)]; return ok }

func (s *settings) text(key string) string { t, _ := s.p2p[s.name(key)].(string); return t }

func (s *settings) set(key string, v any) {
	if s.p2p[s.name(key)] != v {
		s.changes = append(s.changes, Change{"p2p." + s.name(key), v})
	}
}

// listen closes the port for peers to all but this machine, and returns it: an
// observer dials, nobody dials it.
func (s *settings) listen() (port string, err error) {
	addr := s.text("laddr")
	if addr == "" {
		addr = "tcp://0.0.0.0:26656" // CometBFT's default
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(addr, "tcp://"))
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		return "", hint.Add(fmt.Errorf("%w: p2p.laddr is no address with a port", ErrNotEdited), "write tcp://127.0.0.1:26656")
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		s.set("laddr", "tcp://"+net.JoinHostPort("127.0.0.1", port))
	}
	return port, nil
}

// unspecified tells an address that peers refuse to book.
func unspecified(addr string) bool {
	host, _, err := net.SplitHostPort(strings.TrimPrefix(addr, "tcp://"))
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsUnspecified()
}
