package bundle

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/hint"
)

var cosmos = []string{
	"home/config/app.toml: config", "home/config/client.toml: config", "home/config/config.toml: config",
	"home/config/genesis.json: config", "home/config/node_key.json: node key", "home/data/upgrade-info.json: config",
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return string(b)
}

// Whatever a validator key is called, and wherever it lies, it stays out unless it is
// asked for; and its sign state with it.
func TestWhatSignsStaysOut(t *testing.T) {
	dir, _ := home(t)
	key, state := filepath.Join(dir, "config", "priv_validator_key.json"), filepath.Join(dir, "data", "priv_validator_state.json")
	if diff := cmp.Diff(cosmos, names(find(t, Want{Home: dir}))); diff != "" {
		t.Error(diff)
	}
	// Copies under other names, one that holds both, a link.
	extra := filepath.Join(filepath.Dir(dir), "extra")
	write(t, filepath.Join(extra, "innocent.json"), read(t, key))
	write(t, filepath.Join(extra, "height.txt"), read(t, state))
	write(t, filepath.Join(extra, "priv_validator_key.json.bak"), "even empty")
	var k map[string]any
	must(t, json.Unmarshal([]byte(read(t, key)), &k))
	k["last_height"], k["last_round"], k["last_step"] = "7", "0", 3
	old, err := json.Marshal(k)
	must(t, err)
	write(t, filepath.Join(extra, "old.json"), string(old))
	must(t, os.Link(key, filepath.Join(extra, "linked")))
	must(t, os.Symlink(key, filepath.Join(extra, "symlinked")))
	write(t, filepath.Join(extra, "fine.conf"), "x = 1\n")
	w := Want{Home: dir, Include: []string{extra, "config/*.json", "data/*.json"}, Exclude: []string{"config/addrbook.json"}}
	got := names(find(t, w))
	fine := "root" + extra + "/fine.conf: extra"
	if diff := cmp.Diff(append(slices.Clone(cosmos), fine), got); diff != "" {
		t.Error(diff)
	}
	w.ValidatorKey = true
	f := find(t, w)
	signs := 0
	for _, s := range f.Files {
		if s.Class == ValidatorKey || s.Class == SignState {
			signs++
		}
	}
	if signs != 8 { // the two, and six copies
		t.Errorf("%d files that sign: %q", signs, names(f))
	}
	if last := f.Files[len(f.Files)-1]; last.Class != SignState {
		t.Errorf("what changes most is not read last, but %s", last.Name)
	}
	// Where somebody else signs there is a state and no key: neither goes along.
	must(t, os.Remove(key))
	must(t, os.RemoveAll(extra))
	if diff := cmp.Diff(cosmos, names(find(t, Want{Home: dir, ValidatorKey: true}))); diff != "" {
		t.Error(diff)
	}
}

// An identity in a bundle that it opens would be of use to nobody but a thief.
func TestIdentitiesStayOut(t *testing.T) {
	dir, _ := home(t)
	for _, pq := range []bool{false, true} {
		_, secret := recipient(t, pq)
		write(t, filepath.Join(dir, "config", "x.toml"), "a = 1\n# "+string(secret))
		f := find(t, Want{Home: dir})
		if diff := cmp.Diff(cosmos, names(f)); diff != "" {
			t.Error(diff)
		}
		if i := slices.IndexFunc(f.LeftOut, func(l LeftOut) bool { return !l.Expected && strings.HasSuffix(l.Path, "x.toml") }); i < 0 {
			t.Errorf("nothing is said of it: %+v", f.LeftOut)
		}
	}
}

// Files that the configuration names elsewhere are followed, in each spelling.
func TestTheConfigurationIsFollowed(t *testing.T) {
	dir, id := home(t)
	other := filepath.Join(filepath.Dir(dir), "other")
	must(t, os.MkdirAll(other, 0o755))
	for _, move := range [][2]string{{"config/node_key.json", "nk"}, {"config/priv_validator_key.json", "pk"}, {"data/priv_validator_state.json", "ps"}, {"config/genesis.json", "g"}} {
		must(t, os.Rename(filepath.Join(dir, move[0]), filepath.Join(other, move[1])))
	}
	write(t, filepath.Join(dir, "config", "tls.crt"), "cert")
	write(t, filepath.Join(other, "tls.key"), "key")
	for _, dash := range []string{"_", "-"} {
		text := strings.ReplaceAll(`node_key_file = "../other/nk"
priv_validator_key_file = "OTHER/pk"
priv_validator_state_file = "OTHER/ps"
genesis_file = "OTHER/g"
[rpc]
tls_cert_file = "tls.crt"
tls_key_file = "OTHER/tls.key"
`, "_", dash)
		write(t, filepath.Join(dir, "config", "config.toml"), strings.ReplaceAll(text, "OTHER", other))
		root := "root" + other
		f := find(t, Want{Home: dir, ValidatorKey: true})
		want := []string{
			"home/config/app.toml: config", "home/config/client.toml: config", "home/config/config.toml: config", "home/config/tls.crt: config", "home/data/upgrade-info.json: config",
			root + "/g: config", root + "/nk: node key", root + "/pk: validator key", root + "/ps: sign state", root + "/tls.key: config",
		}
		if diff := cmp.Diff(want, names(f)); diff != "" {
			t.Error(diff)
		}
		if f.NodeID != id {
			t.Errorf("node id %q", f.NodeID)
		}
		if there, file, err := NodeAt(dir); there != id || file != filepath.Join(other, "nk") || err != nil {
			t.Errorf("%s at %s, %v", there, file, err)
		}
	}
	write(t, filepath.Join(dir, "config", "config.toml"), "password = hunter2\n")
	if _, err := Find(t.Context(), Want{Home: dir}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a broken configuration: %v", err)
	}
	if there, file, err := NodeAt(dir); there != "" || file != "" || err != nil {
		t.Errorf("a broken configuration, and no key at the usual place: %s at %s, %v", there, file, err)
	}
}

func TestPresets(t *testing.T) {
	for _, c := range []struct {
		preset string
		tree   []string
		want   []string
	}{
		{
			"loom",
			[]string{"loom.yml", "genesis.json", "app.db/x", "chaindata/config/config.toml", "chaindata/config/genesis.json", "chaindata/config/addrbook.json", "chaindata/data/x"},
			[]string{"home/chaindata/config/config.toml: config", "home/chaindata/config/genesis.json: config", "home/genesis.json: config", "home/loom.yml: config"},
		},
		{
			"cosmos-sdk",
			[]string{"config/config.toml", "config/app.toml", "config/oracle.toml", "config/config.toml.before-eddy-1", "cosmovisor/config.toml", "cosmovisor/upgrades/v18/upgrade-info.json", "cosmovisor/genesis/bin/gaiad", "keyring-file/a", "data/application.db/CURRENT"},
			[]string{"home/config/app.toml: config", "home/config/config.toml: config", "home/config/oracle.toml: config", "home/cosmovisor/config.toml: config", "home/cosmovisor/upgrades/v18/upgrade-info.json: config"},
		},
		{"cometbft", []string{"config/config.toml", "config/other.toml", "data/x"}, []string{"home/config/config.toml: config"}},
		{"swarm", []string{"swarm/docker-state.json", "swarm/certificates/swarm-node.key", "swarm/raft/wal-v3/0.wal"}, []string{"home/swarm/certificates/swarm-node.key: node key", "home/swarm/docker-state.json: config"}},
		{"zookeeper", []string{"myid", "version-2/log.1"}, []string{"home/myid: node key"}},
		{"consul", []string{"node-id", "serf/local.keyring", "serf/remote.keyring", "serf/local.snapshot", "raft/raft.db"}, []string{"home/node-id: node key", "home/serf/local.keyring: config", "home/serf/remote.keyring: config"}},
	} {
		dir := t.TempDir()
		for _, f := range c.tree {
			write(t, filepath.Join(dir, f), "")
		}
		f := find(t, Want{Home: dir})
		got := slices.DeleteFunc(names(f), func(n string) bool { return strings.HasPrefix(n, "root/etc/") }) // of this machine
		if f.Preset != c.preset || !slices.Equal(got, c.want) {
			t.Errorf("%s: found %s with %q", c.preset, f.Preset, got)
		}
	}
	dir := t.TempDir()
	if _, err := Find(t.Context(), Want{Home: dir}); !errors.Is(err, ErrNoNode) || hint.Of(err) == "" {
		t.Errorf("nothing to be seen: %v", err)
	}
	write(t, filepath.Join(dir, "x"), "")
	if got := names(find(t, Want{Home: dir, Preset: "zookeeper", Include: []string{"x"}})); !slices.Contains(got, "home/x: extra") {
		t.Errorf("named: %q", got)
	}
}

func TestCosmovisorIsDescribed(t *testing.T) {
	dir, _ := home(t)
	self, err := os.Executable()
	must(t, err)
	write(t, filepath.Join(dir, "cosmovisor", "genesis", "bin", "gaiad"), "#!/bin/sh\n")
	must(t, os.Chmod(filepath.Join(dir, "cosmovisor", "genesis", "bin", "gaiad"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "cosmovisor", "upgrades", "v18", "bin"), 0o755))
	must(t, os.Symlink(self, filepath.Join(dir, "cosmovisor", "upgrades", "v18", "bin", "gaiad")))
	must(t, os.Symlink(filepath.Join(dir, "cosmovisor", "upgrades", "v18"), filepath.Join(dir, "cosmovisor", "current")))
	c := find(t, Want{Home: dir}).Cosmovisor
	if c == nil || c.Current != "upgrades/v18" || len(c.Programs) != 2 || c.Programs[0].Dir != "genesis" || c.Programs[1].Version == "" {
		t.Fatalf("%+v", c)
	}
}

func TestNamesAndPlaces(t *testing.T) {
	for _, c := range []struct{ home, file, name, into string }{
		{"/h", "/h/config/a", "home/config/a", "/new/config/a"},
		{"/h/", "/h/config/a", "home/config/a", "/new/config/a"},
		{"/h", "/hh/a", "root/hh/a", "/r/hh/a"},
		{"/h", "/etc/eddy/eddy.yaml", "root/etc/eddy/eddy.yaml", "/r/etc/eddy/eddy.yaml"},
	} {
		if name := Name(c.home, c.file); name != c.name || !validName(name) || Place(name, "/new", "/r") != c.into {
			t.Errorf("%s of %s: %s, %s", c.file, c.home, name, Place(name, "/new", "/r"))
		}
	}
}
