//go:build lab

package main

import (
	"encoding/json"
	"errors"
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

// ruin is a yard of which nothing is left but the store and an identity. Its homes are
// those of the four validators to come, each on an address of its own, and empty.
type ruin struct {
	*yard
	identity                            string
	to, lost                            int64 // where the data end, the highest that any key has signed
	olds                                []node.Home
	names, hosts, ports, ids, addresses []string
}

func newRuin(t *testing.T) *ruin {
	y := newYard(t, 4, 300*time.Millisecond)
	r := &ruin{yard: y, identity: filepath.Join(y.dir, "id"), olds: append([]node.Home{}, y.homes...)}
	recipients := filepath.Join(y.dir, "to")
	out, err := exec.Command("eddy", "keys", "init", "--out", r.identity).Output()
	must(t, err)
	must(t, os.WriteFile(recipients, regexp.MustCompile(`age1[0-9a-z]+`).Find(out), 0o600))
	t.Setenv("EDDY_IDENTITY_FILE", r.identity)
	t.Setenv("EDDY_ENCRYPTION_RECIPIENTS_FILE", recipients)

	// Bundles first, then the data: these are to be the newer ones.
	t.Setenv("EDDY_KEYS_VALIDATOR_KEY", "true")
	t.Setenv("EDDY_REPLICA_CHAIN_ID", "yard-1") // a home without a genesis file does not say it
	for i := range 4 {
		r.names = append(r.names, fmt.Sprint("val-", i))
		y.eddy(i, 0, "and opened", "keys", "backup", "--node", r.names[i])
	}
	r.to = y.backup()
	r.lost = r.to
	for i := range 4 {
		y.reach(i, r.to+5)
	}
	for i := range y.homes {
		y.stop(i)
		r.lost = max(r.lost, y.signs(i).Height)
	}
	for i, h := range y.homes[:4] {
		id, at, _ := strings.Cut(h.P2P, "@")
		_, port, _ := strings.Cut(at, ":")
		b, err := os.ReadFile(filepath.Join(h.Dir, "config", "priv_validator_key.json"))
		must(t, err)
		var key struct{ Address string }
		must(t, json.Unmarshal(b, &key))
		r.hosts = append(r.hosts, fmt.Sprintf("127.77.%d.%d", 1+i, 2+rand.IntN(250)))
		r.ports, r.ids, r.addresses = append(r.ports, port), append(r.ids, id), append(r.addresses, key.Address)
		y.homes[i] = node.Home{Dir: filepath.Join(y.dir, "machine", r.names[i]), RPC: strings.Replace(h.RPC, "127.0.0.1", r.hosts[i], 1)}
		must(t, writeControl(y.ctl(i), y.homes[i]))
	}
	must(t, os.RemoveAll(filepath.Join(y.dir, "chain")))
	y.homes = y.homes[:4]
	return r
}

// lives starts all nodes: they make blocks, each under its old id.
func (r *ruin) lives() {
	r.t.Helper()
	for i := range r.homes {
		r.start(i)
	}
	for i := range r.homes {
		r.reach(i, r.to+10)
		if id, peers := nodeID(r.t, r.homes[i].RPC); id != r.ids[i] || peers != 3 {
			r.t.Errorf("%s is %s with %d peers, was %s", r.names[i], id, peers, r.ids[i])
		}
	}
}

// A whole cluster is destroyed, the observer with it, and comes back on machines with
// other addresses, by the steps of docs/runbooks/whole-cluster.md: one archive of the
// data on every node, each with its own bundle.
func TestAWholeClusterComesBackElsewhere(t *testing.T) {
	r := newRuin(t)
	var inventory strings.Builder
	for i, name := range r.names {
		fmt.Fprintf(&inventory, "%s: %s:%s\n", name, r.hosts[i], r.ports[i])
	}
	nodes := filepath.Join(r.dir, "nodes.yaml")
	must(t, os.WriteFile(nodes, []byte(inventory.String()), 0o600))
	configure := func(i int) { // eddy's own file, as an operator would
		b, err := os.ReadFile(r.at(i, "eddy.yaml"))
		must(t, err)
		yaml := strings.Replace(string(b), r.olds[i].Dir, r.homes[i].Dir, 1)
		for j, h := range r.homes {
			yaml = strings.Replace(yaml, r.olds[j].RPC, h.RPC, 1)
		}
		must(t, os.WriteFile(r.at(i, "eddy.yaml"), []byte(yaml), 0o600))
	}

	// Data, keys and configuration, addresses.
	for i, name := range r.names {
		home := r.homes[i].Dir
		configure(i)
		r.eddy(i, 0, "restored", "restore", "latest", "--into", home, "--keys", "latest", "--node", name, "--yes")
		r.eddy(i, 12, "no witness", "keys", "restore", "latest", "--node", name, "--home", home, "--yes", "--with-validator-key")
		r.eddy(i, 0, "", "keys", "restore", "latest", "--node", name, "--home", home, "--yes", "--with-validator-key", "--no-witness", "--consensus-address", r.addresses[i])
		configure(i) // the bundle has brought the old one back
		if s := r.signs(i); s.Height <= r.to {
			t.Fatalf("%s may sign again at %d, the data end at %d", name, s.Height, r.to)
		}
		r.lost = max(r.lost, r.signs(i).Height)
		r.eddy(i, 1, "FAIL  peers: config.toml", "keys", "check", "--node", name, "--inventory", nodes)
		r.eddy(i, 0, "1 files changed", "keys", "peers", "--inventory", nodes, "--replace", "127.0.0.1="+r.hosts[i], "--write")
		r.eddy(i, 0, "0 FAIL", "keys", "check", "--node", name, "--inventory", nodes)
	}
	for i := range r.homes {
		r.eddy(i, 0, "the node is down", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(r.to), "--lost", fmt.Sprintf("%d-%d", r.to+1, r.lost))
	}
	r.lives()
}

// withoutEddy are the commands of docs/runbooks/whole-cluster.md for a machine that has
// no eddy: those for all nodes, the settings of one, what brings its keys, and what
// takes it back.
func withoutEddy(t *testing.T) (once, settings, keys, back string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/runbooks/whole-cluster.md")
	must(t, err)
	_, section, _ := strings.Cut(string(page), "\n## Without eddy\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := pageBlock.FindAllStringSubmatch(section, -1)
	if len(blocks) != 3 {
		t.Fatalf("%d blocks", len(blocks))
	}
	settings, keys, _ = strings.Cut(blocks[1][1], "\n\n")
	return blocks[0][1], settings + "\n", keys, blocks[2][1]
}

// The same with bash, age, zstd, tar and sed, by the page's own words: no eddy is in
// PATH after the disaster.
func TestAWholeClusterComesBackByScriptsAlone(t *testing.T) {
	r := newRuin(t)
	once, settings, keys, back := withoutEddy(t)
	scripts, err := filepath.Abs("../../scripts")
	must(t, err)
	ids, err := filepath.Glob(filepath.Join(r.dir, "bucket/yard/data/*"))
	if err != nil || len(ids) != 1 {
		t.Fatal(ids, err)
	}
	// sh runs words of the page with what is here in place of its examples.
	sh := func(i, code int, says, words string) {
		t.Helper()
		for _, with := range [][2]string{
			{"--store s3://backups/eddy --cluster gaia-main", "--store file://" + r.dir + "/bucket --cluster yard --yes"},
			{"node=val-1 home=/var/lib/gaia", "node=" + r.names[i] + " home=" + r.homes[i].Dir},
			{"old=10.0.0.1 new=10.1.0.1", "old=127.0.0.1 new=" + r.hosts[i]},
			{"-i IDENTITY", "-i " + r.identity},
			{"4B1D...", r.addresses[i]},
			{"20261120T235500Z-auto-0a1b2c", filepath.Base(ids[0])},
			{"GOES_BACK_TO=1200", fmt.Sprint("GOES_BACK_TO=", r.to)},
			{"1201-1400", fmt.Sprintf("%d-%d", r.to+1, r.lost)},
		} {
			words = strings.ReplaceAll(words, with[0], with[1])
		}
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", words)
		cmd.Dir = r.dir
		cmd.Env = []string{"PATH=" + scripts + ":/usr/bin:/bin", "TMPDIR=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), says) {
			t.Fatalf("%s: exit code %d, want %d with %q: %s\n%s", r.names[i], got, code, says, words, out)
		}
	}

	var moved strings.Builder
	for i, name := range r.names {
		fmt.Fprintf(&moved, "%s %s:%s\n", name, r.hosts[i], r.ports[i])
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "nodes"), []byte(moved.String()), 0o600))
	sh(0, 0, "", once)
	for i := range r.homes {
		sh(i, 0, "THE VALIDATOR KEY is here", settings+keys)
		s := r.signs(i)
		if s.Height < r.to+10 {
			t.Fatalf("%s may sign again at %d, the data end at %d", r.names[i], s.Height, r.to)
		}
		r.lost = max(r.lost, s.Height)
	}

	// Nobody takes it back by accident: without the variable, the heights, or all of them.
	variable := "EVERY_VALIDATOR_GOES_BACK_TO=1200 "
	if !strings.HasPrefix(back, variable) {
		t.Fatal(back)
	}
	sh(0, 16, "EVERY_VALIDATOR_GOES_BACK_TO=HEIGHT", settings+strings.TrimPrefix(back, variable))
	sh(0, 16, "the lost heights are", settings+strings.Replace(back, " --lost 1201-1400", "", 1))
	sh(0, 16, "the chain is to go back to", settings+strings.Replace(back, variable, fmt.Sprint("EVERY_VALIDATOR_GOES_BACK_TO=", r.to+1, " "), 1))
	if s := r.signs(0); s.Height < r.to+10 {
		t.Fatalf("the sign state is %+v", s)
	}
	for i := range r.homes {
		sh(i, 0, "THE WHOLE CHAIN GOES BACK", settings+back)
		if s := r.signs(i); s.Height != r.to || s.Step != 3 {
			t.Fatalf("%s: %+v after the rollback to %d", r.names[i], s, r.to)
		}
	}
	r.lives()
}
