//go:build lab

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// nodeID asks a node who it is, and how many peers it has.
func nodeID(t *testing.T, rpc string) (id string, peers int) {
	t.Helper()
	ask := func(path string, into any) {
		resp, err := http.Get(rpc + path)
		must(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, json.Unmarshal(b, into))
	}
	var s struct {
		Result struct {
			NodeInfo struct{ ID string } `json:"node_info"`
		}
	}
	var n struct {
		Result struct {
			Peers int `json:"n_peers,string"`
		}
	}
	ask("/status", &s)
	ask("/net_info", &n)
	return s.Result.NodeInfo.ID, n.Result.Peers
}

// A whole cluster is destroyed, the observer with it, and comes back on machines with
// other addresses, by the steps of docs/runbooks/whole-cluster.md: one archive of the
// data on every node, each with its own bundle.
func TestAWholeClusterComesBackElsewhere(t *testing.T) {
	y := newYard(t, 4, 300*time.Millisecond)
	validators := y.homes[:4]
	identity, recipients := filepath.Join(y.dir, "id"), filepath.Join(y.dir, "to")
	out, err := exec.Command("eddy", "keys", "init", "--out", identity).Output()
	must(t, err)
	must(t, os.WriteFile(recipients, regexp.MustCompile(`age1[0-9a-z]+`).Find(out), 0o600))
	t.Setenv("EDDY_IDENTITY_FILE", identity)
	t.Setenv("EDDY_ENCRYPTION_RECIPIENTS_FILE", recipients)
	name := func(i int) string { return fmt.Sprint("val-", i) }

	// Bundles first, then the data: these are to be the newer ones.
	t.Setenv("EDDY_KEYS_VALIDATOR_KEY", "true")
	t.Setenv("EDDY_REPLICA_CHAIN_ID", "yard-1") // a home without a genesis file does not say it
	for i := range validators {
		y.eddy(i, 0, "and opened", "keys", "backup", "--node", name(i))
	}
	to := y.backup()
	lost := to
	for i := range validators {
		y.reach(i, to+5)
	}
	for i := range y.homes {
		y.stop(i)
		lost = max(lost, y.signs(i).Height)
	}

	// All homes are gone. New ones, each on an address of its own.
	host := func(i int) string { return fmt.Sprintf("127.77.%d.%d", 1+i, 2+rand.IntN(250)) }
	var hosts, ids, inventory []string
	addresses := map[int]string{}
	for i, h := range validators {
		hosts = append(hosts, host(i))
		id, at, _ := strings.Cut(h.P2P, "@")
		_, port, _ := strings.Cut(at, ":")
		ids = append(ids, id)
		inventory = append(inventory, fmt.Sprintf("%s: %s:%s", name(i), hosts[i], port))
		b, err := os.ReadFile(filepath.Join(h.Dir, "config", "priv_validator_key.json"))
		must(t, err)
		var key struct{ Address string }
		must(t, json.Unmarshal(b, &key))
		addresses[i] = key.Address
	}
	must(t, os.RemoveAll(filepath.Join(y.dir, "chain")))
	nodes := filepath.Join(y.dir, "nodes.yaml")
	must(t, os.WriteFile(nodes, []byte(strings.Join(inventory, "\n")+"\n"), 0o600))
	olds := append([]node.Home{}, validators...)
	for i, h := range olds {
		y.homes[i] = node.Home{Dir: filepath.Join(y.dir, "machine", name(i)), RPC: strings.Replace(h.RPC, "127.0.0.1", hosts[i], 1)}
		must(t, writeControl(y.ctl(i), y.homes[i]))
	}
	y.homes = y.homes[:4]
	configure := func(i int) { // eddy's own file, as an operator would
		b, err := os.ReadFile(y.at(i, "eddy.yaml"))
		must(t, err)
		yaml := strings.Replace(string(b), olds[i].Dir, y.homes[i].Dir, 1)
		for j, h := range olds {
			yaml = strings.Replace(yaml, h.RPC, y.homes[j].RPC, 1)
		}
		must(t, os.WriteFile(y.at(i, "eddy.yaml"), []byte(yaml), 0o600))
	}

	// Data, keys and configuration, addresses.
	for i := range validators {
		home := y.homes[i].Dir
		configure(i)
		y.eddy(i, 0, "restored", "restore", "latest", "--into", home)
		y.eddy(i, 12, "no witness", "keys", "restore", "latest", "--node", name(i), "--home", home, "--yes", "--with-validator-key")
		y.eddy(i, 0, "", "keys", "restore", "latest", "--node", name(i), "--home", home, "--yes", "--with-validator-key", "--no-witness", "--consensus-address", addresses[i])
		configure(i) // the bundle has brought the old one back
		if s := y.signs(i); s.Height <= to {
			t.Fatalf("%s may sign again at %d, the data end at %d", name(i), s.Height, to)
		}
		lost = max(lost, y.signs(i).Height)
		y.eddy(i, 1, "FAIL  peers: config.toml", "keys", "check", "--node", name(i), "--inventory", nodes)
		y.eddy(i, 0, "1 files changed", "keys", "peers", "--inventory", nodes, "--replace", "127.0.0.1="+hosts[i], "--write")
		y.eddy(i, 0, "0 FAIL", "keys", "check", "--node", name(i), "--inventory", nodes)
	}
	for i := range validators {
		y.eddy(i, 0, "the node is down", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to), "--lost", fmt.Sprintf("%d-%d", to+1, lost))
	}
	for i := range validators {
		y.start(i)
	}
	for i := range validators {
		y.reach(i, to+10)
		if id, peers := nodeID(t, y.homes[i].RPC); id != ids[i] || peers != 3 {
			t.Errorf("%s is %s with %d peers, was %s", name(i), id, peers, ids[i])
		}
	}
}
