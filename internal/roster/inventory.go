package roster

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
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

// Member is a node of the cluster.
type Member struct {
	Name string
	ID   string // 40 hex digits, lower case; "": not known
	Host string // an address or a name; "": not known
	Port string // for peers; "": that of the entry that it replaces, else the usual one
	// Observer tells a node that no other lists.
	Observer bool
}

// Members are the nodes of a cluster, in the order in which lists name them.
type Members []Member

// ErrInventory: what says who is where contradicts itself, or says too little.
var ErrInventory = errors.New("the inventory")

var nameRule = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// mostMembers bounds an inventory.
const mostMembers = 10_000

// ParseInventory reads one: a line for each node, `NAME ADDRESS` or, as YAML has it,
// `NAME: ADDRESS`, with the word `observer` behind it where nobody is to list the
// node. ADDRESS is host, host:port, or id@host:port. # begins a comment.
func ParseInventory(text string) (Members, error) {
	var all Members
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		words := strings.Fields(line)
		if len(words) == 0 || line == "---" {
			continue
		}
		m, err := parseMember(words)
		if err != nil {
			return nil, hint.Add(fmt.Errorf("%w: line %d: %w", ErrInventory, n, err), "a line is `NAME: host[:port]`, or `NAME: id@host:port`, with ` observer` behind it for one that nobody lists")
		}
		if all = append(all, m); len(all) > mostMembers {
			return nil, fmt.Errorf("%w: it has more than %d nodes", ErrInventory, mostMembers)
		}
	}
	return all, nil
}

func parseMember(words []string) (m Member, err error) {
	for i := range words {
		words[i] = strings.Trim(words[i], `"'`)
	}
	if m.Observer = len(words) == 3 && words[2] == "observer"; len(words) != 2 && !m.Observer {
		return m, errors.New("it is not a name and an address")
	}
	if m.Name = strings.TrimSuffix(words[0], ":"); !nameRule.MatchString(m.Name) {
		return m, errors.New("the name is none that a bundle can have")
	}
	addr := strings.TrimPrefix(words[1], "tcp://")
	if id, at, ok := strings.Cut(addr, "@"); ok {
		if m.ID, addr = strings.ToLower(id), at; !nodeconfig.ValidID(id) {
			return m, errors.New("an id is 40 hex digits")
		}
	}
	m.Host, m.Port, err = splitAddr(addr)
	return m, err
}

// hostRule is a DNS name or an IPv4 address.
var hostRule = regexp.MustCompile(`^[0-9A-Za-z]([0-9A-Za-z._-]*[0-9A-Za-z])?$`)

func splitAddr(addr string) (host, port string, err error) {
	if ip, err := netip.ParseAddr(addr); err == nil && ip.Zone() == "" {
		return ip.String(), "", nil
	}
	host = addr
	if strings.Contains(addr, ":") {
		if host, port, err = net.SplitHostPort(addr); err != nil {
			return "", "", errors.New("the address is not host or host:port")
		}
		if p, err := strconv.Atoi(port); err != nil || p < 1 || p > 65535 {
			return "", "", errors.New("the port is none")
		}
	}
	// A zone is of one machine's interfaces: others can do nothing with it.
	if ip, err := netip.ParseAddr(host); err != nil && !hostRule.MatchString(host) || err == nil && ip.Zone() != "" {
		return "", "", errors.New("the host is neither an address nor a name")
	}
	return host, port, nil
}

// addr is where a member is dialled, with the port of an entry that it replaces.
func (m Member) addr(port string) string {
	if m.Port != "" {
		port = m.Port
	}
	return net.JoinHostPort(m.Host, port)
}

// at tells whether a member is the one at an address.
func (m Member) at(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	return err == nil && m.Host != "" && strings.EqualFold(host, m.Host) && (m.Port == "" || m.Port == port)
}

// ByID returns the member with an id.
func (all Members) ByID(id string) (Member, bool) {
	i := slices.IndexFunc(all, func(m Member) bool { return m.ID != "" && m.ID == strings.ToLower(id) })
	if i < 0 {
		return Member{}, false
	}
	return all[i], true
}

// byAddr returns the only member at an address.
func (all Members) byAddr(addr string) (Member, bool) {
	var found []Member
	for _, m := range all {
		if m.at(addr) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return Member{}, false
	}
	return found[0], true
}

// Validate refuses two nodes that are one.
func (all Members) Validate() error {
	for i, m := range all {
		for _, o := range all[:i] {
			switch {
			case m.Name == o.Name:
				return fmt.Errorf("%w: %s is there twice", ErrInventory, m.Name)
			case m.ID != "" && m.ID == o.ID:
				return hint.Add(fmt.Errorf("%w: %s and %s have the same node id, %s", ErrInventory, o.Name, m.Name, m.ID), "peers let in only one of two nodes with one key: give one of them a key of its own")
			case m.Host != "" && strings.EqualFold(m.Host, o.Host) && m.Port == o.Port:
				return hint.Add(fmt.Errorf("%w: %s and %s have the same address, %s", ErrInventory, o.Name, m.Name, m.Host), "several nodes of one host need their ports: `NAME: host:port`")
			}
		}
	}
	return nil
}
