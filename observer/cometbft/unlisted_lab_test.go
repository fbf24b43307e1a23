//go:build lab

package cometbft

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cfg "github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/p2p/pex"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// listing is a way in which an observer might be known to others, or not.
type listing struct {
	name     string
	change   func(c *cfg.Config)
	book     bool        // the validator has it in its address book from earlier days
	unlisted check.Level // what is proven
	hidden   check.Level // what its settings say
	said     string      // of the worst finding
}

func listings() []listing {
	return []listing{
		{name: "the default", change: func(*cfg.Config) {}, unlisted: check.OK, hidden: check.OK},
		{name: "pex off, laddr on every address", change: func(c *cfg.Config) {
			// A port that is free at one address may be another chain's at the next.
			l, err := net.Listen("tcp", "0.0.0.0:0")
			if err != nil {
				panic(err)
			}
			defer l.Close()
			c.P2P.ListenAddress, c.P2P.ExternalAddress = "tcp://"+l.Addr().String(), ""
		}, unlisted: check.OK, hidden: check.OK},
		{name: "pex off, laddr with an address", change: func(c *cfg.Config) { c.P2P.ExternalAddress = "" }, unlisted: check.Fail, hidden: check.Warn, said: "has this node in its address book"},
		{name: "pex off, external_address", change: func(c *cfg.Config) { c.P2P.ExternalAddress = "127.77.0.9:26656" }, unlisted: check.Fail, hidden: check.Warn, said: "127.77.0.9:26656"},
		{name: "pex on, external_address", change: func(c *cfg.Config) {
			c.P2P.PexReactor, c.P2P.ExternalAddress = true, "127.77.0.10:26656"
		}, unlisted: check.Fail, hidden: check.Warn, said: "127.77.0.10:26656"},
		{name: "pex on, no address told", change: func(c *cfg.Config) { c.P2P.PexReactor = true }, unlisted: check.OK, hidden: check.Warn, said: "pex is on"},
		{name: "seed_mode", change: func(c *cfg.Config) {
			c.P2P.PexReactor, c.P2P.SeedMode, c.P2P.ExternalAddress = true, true, "127.77.0.11:26656"
		}, unlisted: check.Fail, hidden: check.Warn, said: "127.77.0.11:26656"},
		{name: "listed from earlier days", change: func(*cfg.Config) {}, book: true, unlisted: check.Fail, hidden: check.OK, said: "127.77.0.12:26656"},
		{name: "a private peer of the validator", change: func(c *cfg.Config) { c.P2P.ExternalAddress = "127.77.0.13:26656" }, unlisted: check.OK, hidden: check.Warn, said: "it tells its peers the address"},
	}
}

// strictListings are ways in which an observer might be known to nodes that book
// only addresses that can be routed to, the default.
func strictListings() []listing {
	return []listing{
		{name: "the default", change: func(*cfg.Config) {}, unlisted: check.OK, hidden: check.OK},
		{name: "pex off, laddr with an address of this host", change: func(c *cfg.Config) { c.P2P.ExternalAddress = "" }, unlisted: check.OK, hidden: check.Warn},
		{name: "pex off, external_address", change: func(c *cfg.Config) { c.P2P.ExternalAddress = "198.51.100.9:26656" }, unlisted: check.Fail, hidden: check.Warn, said: "198.51.100.9:26656"},
		{name: "pex on, external_address", change: func(c *cfg.Config) {
			c.P2P.PexReactor, c.P2P.ExternalAddress = true, "198.51.100.10:26656"
		}, unlisted: check.Fail, hidden: check.Warn, said: "198.51.100.10:26656"},
		{name: "a private peer of the validator", change: func(c *cfg.Config) { c.P2P.ExternalAddress = "198.51.100.11:26656" }, unlisted: check.OK, hidden: check.Warn, said: "it tells its peers the address"},
	}
}

// Each way of being listed is found, on real nodes: one validator that trades
// addresses and takes private ones, and an observer for each way.
func TestUnlistedFindsEachListing(t *testing.T) {
	t.Run("any address is booked", func(t *testing.T) { testListings(t, false, listings()) })
	t.Run("those that can be routed to", func(t *testing.T) { testListings(t, true, strictListings()) })
}

func testListings(t *testing.T, strict bool, cases []listing) {
	t.Parallel()
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: len(cases) + 1, ChainID: "listed-1", Commit: time.Second})
	must(t, err)
	validator, observers, dialled := homes[0], homes[1:len(cases)+1], homes[len(cases)+1]
	configure(t, validator.Dir, func(conf *cfg.Config) { conf.P2P.AddrBookStrict = strict })
	book := pex.NewAddrBook(filepath.Join(validator.Dir, "config", "addrbook.json"), strict)
	for i, c := range cases {
		id, _, _ := strings.Cut(observers[i].P2P, "@")
		configure(t, observers[i].Dir, func(conf *cfg.Config) { c.change(conf) })
		if c.book {
			addr, err := p2p.NewNetAddressString(id + "@127.77.0.12:26656")
			must(t, err)
			must(t, book.AddAddress(addr, addr))
		}
		if strings.HasPrefix(c.name, "a private peer") {
			configure(t, validator.Dir, func(conf *cfg.Config) { conf.P2P.PrivatePeerIDs = id })
		}
	}
	book.Save()
	// One is an ordinary observer that the validator itself calls.
	configure(t, validator.Dir, func(conf *cfg.Config) { conf.P2P.PersistentPeers = dialled.P2P })
	configure(t, dialled.Dir, func(conf *cfg.Config) { conf.P2P.PersistentPeers = "" })
	v := run(t, validator)
	for _, h := range append(observers, dialled) {
		run(t, h)
	}
	v.reach(2)
	replica := func(h node.Home) *Replica {
		r, err := New(Options{Home: h.Dir, RPC: h.RPC, Witnesses: []string{validator.RPC}})
		must(t, err)
		return r
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			id, _, _ := strings.Cut(observers[i].P2P, "@")
			if c.name != "seed_mode" { // such a node hangs up as soon as it has come
				connected(t, v, id)
			}
			r := replica(observers[i])
			begun := time.Now()
			got := r.Unlisted(t.Context(), 10*time.Second)
			took := time.Since(begun)
			// Booked a moment after it is seen.
			for range 40 {
				if check.Worst(got) == c.unlisted {
					break
				}
				time.Sleep(250 * time.Millisecond)
				got = r.Unlisted(t.Context(), 10*time.Second)
			}
			s, err := askStatus(t.Context(), r.o.RPC)
			must(t, err)
			hidden := r.hidden(s.listen, s.channels)
			all := append(hidden, got...)
			said := fmt.Sprint(all)
			t.Logf("%s: %s", took.Round(time.Millisecond), said)
			if check.Worst(got) != c.unlisted || check.Worst(hidden) != c.hidden || !strings.Contains(said, c.said) {
				t.Errorf("unlisted %s, hidden %s, want %s and %s with %q: %+v", check.Worst(got), check.Worst(hidden), c.unlisted, c.hidden, c.said, all)
			}
			for _, f := range all {
				if f.Level != check.OK && f.Hint == "" {
					t.Errorf("no hint: %+v", f)
				}
			}
			if took > 9*time.Second {
				t.Errorf("it took %s: a book of a few entries is told at once", took)
			}
		})
	}
	t.Run("dialled by the validator", func(t *testing.T) {
		id, _, _ := strings.Cut(dialled.P2P, "@")
		connected(t, v, id)
		if got := replica(dialled).Unlisted(t.Context(), 10*time.Second); check.Worst(got) != check.Fail || !strings.Contains(fmt.Sprint(got), "has dialled this node") {
			t.Errorf("%+v", got)
		}
	})
}

// A node tells a part of a long address book each time that it is asked: what is in
// the rest is found all the same, and that nothing is there is not said too early.
func TestUnlistedInALongBook(t *testing.T) {
	t.Parallel()
	homes, err := node.Testnet(filepath.Join(t.TempDir(), "chain"), node.TestnetOptions{Validators: 1, Observers: 2, ChainID: "listed-2", Commit: time.Second})
	must(t, err)
	validator, listed, hidden := homes[0], homes[1], homes[2]
	book := pex.NewAddrBook(filepath.Join(validator.Dir, "config", "addrbook.json"), false)
	add := func(id, at string) {
		addr, err := p2p.NewNetAddressString(id + "@" + at)
		must(t, err)
		must(t, book.AddAddress(addr, addr))
	}
	for i := range 500 {
		add(fmt.Sprintf("%040x", i+1), fmt.Sprintf("127.78.%d.%d:26656", i/200, i%200+1))
	}
	id, _, _ := strings.Cut(listed.P2P, "@")
	add(id, "127.77.1.1:26656")
	book.Save()
	v := run(t, validator)
	run(t, listed)
	run(t, hidden)
	v.reach(2)
	unlisted := func(h node.Home) (check.Level, string) {
		id, _, _ := strings.Cut(h.P2P, "@")
		connected(t, v, id)
		r, err := New(Options{Home: h.Dir, RPC: h.RPC, Witnesses: []string{validator.RPC}})
		must(t, err)
		begun := time.Now()
		got := r.Unlisted(t.Context(), time.Minute)
		t.Logf("%s: %+v", time.Since(begun).Round(time.Millisecond), got)
		return check.Worst(got), fmt.Sprint(got)
	}
	// One in a hundred times an entry is in none of the answers.
	level, said := unlisted(listed)
	if level != check.Fail {
		level, said = unlisted(listed)
	}
	if level != check.Fail || !strings.Contains(said, "127.77.1.1:26656") {
		t.Errorf("%s: %s, want the entry in the rest of the book", level, said)
	}
	if level, said := unlisted(hidden); level != check.OK || !strings.Contains(said, "nodes tells its address") || strings.Contains(said, "only a part") {
		t.Errorf("%s: %s, want the whole book", level, said)
	}
}

// connected waits until a node has another among its peers.
func connected(t *testing.T, r *running, id string) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, has, err := peersOf(t.Context(), r.RPC, id); err == nil && has {
			return
		}
	}
	t.Fatalf("%s has no connection to %s: nothing is proven", r.Name, id)
}
