package cometbft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cometbft/cometbft/p2p/pex"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

var _ check.Checker = (*Replica)(nil)

// Checks implements check.Checker: the gate's questions, each answered for itself,
// and what the gate does not ask.
func (r *Replica) Checks(ctx context.Context) []check.Finding {
	s, err := r.Describe(ctx)
	if err != nil {
		out := []check.Finding{failed("node", err), r.noValidator(s)}
		return append(out, r.hidden("", nil)...)
	}
	st, err := askStatus(ctx, r.o.RPC)
	if err != nil { // since it described itself
		return []check.Finding{failed("node", hint.Add(err, "look at the node's log: it may be crashing again and again"))}
	}
	out := []check.Finding{
		check.Good("node", fmt.Sprintf("%s (cometbft %s) at height %d, %d peers", s.Node.Name, s.Version, s.Position.Index, s.Peers)),
		verdict("chain", r.isOnChain(s), s.Cluster),
		r.noValidator(s),
		r.caughtUp(s),
	}
	if err := r.isUpgrading(s); err != nil {
		f := failed("upgrade", err)
		f.Level = check.Warn // a backup waits for it
		out = append(out, f)
	}
	out = append(out, r.witnesses(s)...)
	out = append(out, clock(s), r.slots(ctx, s))
	return append(out, r.hidden(st.listen, st.channels)...)
}

// failed is a finding of an error that stops a backup.
func failed(name string, err error) check.Finding {
	said := err.Error()
	for _, prefix := range []error{observer.ErrNotFit, observer.ErrBehind} {
		said = strings.TrimPrefix(said, prefix.Error()+": ")
	}
	return check.Finding{Name: name, Level: check.Fail, Said: said, Hint: hint.Or(err, "`eddy backup` would fail with this error; look at the node's files and its log")}
}

func verdict(name string, err error, good string) check.Finding {
	if err != nil {
		return failed(name, err)
	}
	return check.Good(name, good)
}

func warn(name, todo, format string, args ...any) check.Finding {
	return check.Finding{Name: name, Level: check.Warn, Said: fmt.Sprintf(format, args...), Hint: todo}
}

func (r *Replica) noValidator(s observer.State) check.Finding {
	return verdict("validator", r.isNoValidator(s), "no voting power, and its key has never signed")
}

// caughtUp: a node that follows its chain from behind is waited for, one without
// peers would be waited for in vain.
func (r *Replica) caughtUp(s observer.State) check.Finding {
	const name = "caught up"
	err := r.isBehind(s)
	f := verdict(name, err, "it follows the chain")
	if err != nil && s.Peers > 0 && (s.Leader != nil || len(s.Witness) == 0) {
		f.Level = check.Warn
	}
	return f
}

// witnesses judges each of them. Without any, a node that is cut off cannot be
// told from a chain that stands still.
func (r *Replica) witnesses(s observer.State) []check.Finding {
	const name = "witnesses"
	if len(s.Witness) == 0 {
		return []check.Finding{warn(name, "set `replica.witnesses: [URL1, URL2]` to the RPC addresses of two other nodes of the chain", "none are named: nobody tells whether the node has caught up")}
	}
	var out []check.Finding
	good := 0
	for _, w := range s.Witness {
		switch {
		case w.Error != "":
			out = append(out, warn(name, "is it running, and does a firewall let this machine reach its RPC? else "+otherWitness(w.URL), "%s does not answer: %s", w.URL, w.Error))
		case w.Cluster != s.Cluster:
			out = append(out, check.Finding{
				Name: name, Level: check.Fail, Said: fmt.Sprintf("%s is on chain %s, the node on %s", w.URL, w.Cluster, s.Cluster), Hint: otherWitness(w.URL),
			})
		case w.Verdict == observer.Fork:
			out = append(out, check.Finding{Name: name, Level: check.Fail, Said: w.URL + ": the chain has forked: " + w.Said, Hint: forked})
		case w.Verdict == observer.Liar, w.Verdict == observer.OtherChain:
			out = append(out, warn(name, otherWitness(w.URL), "%s does not share the node's history: %s", w.URL, w.Said))
		default:
			good++
		}
	}
	switch {
	case good == 0 && len(out) > 0:
		for i := range out {
			out[i].Level = check.Fail // a backup needs one of them
		}
	case good == 1 && len(s.Witness) == 1:
		out = append(out, warn(name, "set `replica.witnesses: [URL1, URL2]`: the one that is there, and the RPC address of another node of the chain", "only one is named: while it is down no backup is made"))
	default:
		out = append(out, check.Good(name, fmt.Sprintf("%d of %d answer, on the same chain", good, len(s.Witness))))
	}
	return out
}

// otherWitness is what to do about a witness that is of no use. Its address may
// be cut short here: the whole one can hold a token.
func otherWitness(url string) string {
	return "write the RPC address of another node of the chain in place of " + url + " in replica.witnesses"
}

// Bounds for this machine's clock beside the newest block that anybody has.
// Stores refuse requests that are 15 minutes off.
const (
	slowClock   = 30 * time.Second
	brokenClock = 10 * time.Minute
)

func clock(s observer.State) check.Finding {
	const name, todo = "clock", "set this machine's clock, as root: `timedatectl set-ntp true` (it needs chrony or systemd-timesyncd); `timedatectl` tells whether it is synchronized"
	newest := s.Position.Time
	for _, w := range s.Witness {
		if w.Error == "" && w.Cluster == s.Cluster && w.Position.Time.After(newest) {
			newest = w.Position.Time
		}
	}
	switch age := s.Taken.Sub(newest).Round(time.Second); {
	case age < -brokenClock:
		return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("this machine's clock is %s behind the chain's newest block: stores refuse requests that are 15 minutes off", -age), Hint: todo}
	case age < -slowClock:
		return warn(name, todo, "this machine's clock is %s behind the chain's newest block", -age)
	case age > brokenClock:
		return warn(name, "look whether the chain makes blocks; if it does: "+todo, "the newest block is %s old: the chain stands still, or this machine's clock is ahead", age)
	default:
		return check.Good(name, "it agrees with the chain's newest block")
	}
}

// inboundSlots is how many nodes a peer lets in by default (config.toml, [p2p]
// max_num_inbound_peers). What a peer's own limit is, its RPC does not tell.
const inboundSlots = 40

// slots looks whether the node has, or would find, a place among the inbound
// peers of its witnesses. A node that was stopped must get its place back.
func (r *Replica) slots(ctx context.Context, s observer.State) check.Finding {
	const name = "inbound slots"
	todo := "put `unconditional_peer_ids = \"" + s.Node.ID + "\"` under [p2p] in the config.toml of its peers, and restart them one by one: then its place is always free"
	type answer struct {
		inbound int
		has     bool
		err     error
	}
	answers := make([]answer, len(r.o.Witnesses))
	var wg sync.WaitGroup
	for i, raw := range r.o.Witnesses {
		wg.Go(func() {
			a := &answers[i]
			a.inbound, a.has, a.err = peersOf(ctx, raw, s.Node.ID)
		})
	}
	wg.Wait()
	told, full := 0, ""
	for i, a := range answers {
		if a.err != nil {
			continue
		}
		told++
		if a.inbound >= inboundSlots {
			full = fmt.Sprintf("%s has %d inbound peers, as many as a node lets in by default", s.Witness[i].URL, a.inbound)
		}
	}
	switch {
	case s.Peers == 0:
		return check.Finding{Name: name, Level: check.Fail, Said: strings.TrimSuffix("the node has no peers; "+full, "; "), Hint: "look at persistent_peers in its config.toml; if those nodes are full, " + todo}
	case full != "":
		return warn(name, todo, "%s: once stopped, this node may not be let in again", full)
	case told == 0:
		return check.Good(name, fmt.Sprintf("the node has %d peers; no witness tells of its own", s.Peers))
	default:
		return check.Good(name, fmt.Sprintf("the node has %d peers, and its witnesses have room", s.Peers))
	}
}

// p2pConfig are the keys of config.toml that make other nodes list this one. pex
// is on where nothing is said.
type p2pConfig struct {
	P2P struct {
		PEX  *bool `toml:"pex"`
		Seed bool  `toml:"seed_mode"`
	} `toml:"p2p"`
}

// hidden tells whether other nodes get to know this one's address. listen is
// what the node tells its peers, channels what it opens to them; "" and nil where it
// could not be asked. What it runs with counts beside what its file says.
func (r *Replica) hidden(listen string, channels []byte) []check.Finding {
	const name = "hidden"
	todo := hint.Command("eddy", "config", "init", "--node-config", "--write", r.layout.Home) + ", then restart the node"
	var out []check.Finding
	for _, b := range r.layout.bases {
		file := filepath.Join(b.dir, "config", "config.toml")
		var c p2pConfig
		if err := readTOML(file, &c); err != nil {
			out = append(out, failed(name, err))
			continue
		}
		if c.P2P.PEX == nil || *c.P2P.PEX {
			out = append(out, warn(name, todo+"; it sets pex = false in "+file, "pex is on: the node trades addresses with its peers"))
		}
		if c.P2P.Seed {
			out = append(out, warn(name, todo+"; it sets seed_mode = false in "+file, "seed_mode is on: the node hangs up on its peers and cannot follow the chain"))
		}
	}
	if len(out) == 0 && slices.Contains(channels, pex.PexChannel) {
		out = append(out, warn(name, "restart the node", "it has been running with pex on since before its file said otherwise"))
	}
	if host, port, ok := advertised(listen); ok {
		out = append(out, warn(name, todo+fmt.Sprintf("; it sets external_address = \"0.0.0.0:%s\" or the like: an unspecified address is not listed", port),
			"it tells its peers the address %s, and they list it", net.JoinHostPort(host, port)))
	}
	if len(out) == 0 {
		out = append(out, check.Good(name, "no other node lists it: pex is off, and the address that it tells is of no use"))
	}
	return out
}

// advertised takes the address apart that a node tells its peers. ok is false
// where no peer lists it: that is so of unspecified addresses only (p2p/netaddress.go,
// IsUnspecified). A loopback one is listed where addr_book_strict is off.
func advertised(listen string) (host, port string, ok bool) {
	_, after, found := strings.Cut(listen, "://")
	if !found {
		after = listen
	}
	host, port, err := net.SplitHostPort(after)
	if err != nil || host == "" {
		return "", "", false
	}
	ip := net.ParseIP(host)
	return host, port, ip == nil || !ip.IsUnspecified()
}

// Size is how many bytes the node's databases have. It looks, and opens nothing.
func (r *Replica) Size(ctx context.Context) (total int64, err error) {
	for _, d := range r.layout.Databases {
		err := filepath.WalkDir(d.Path, func(_ string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // compacted away
				return nil
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			st, err := e.Info()
			if err == nil {
				total += st.Size()
			} else if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return errors.Join(err, ctx.Err())
		})
		if err != nil {
			return 0, fmt.Errorf("size of the node's data: %w", err)
		}
	}
	return total, nil
}
