package job

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/p2p"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/uploader"
)

func (v *vault) check() *KeysCheck {
	return &KeysCheck{
		Catalog: v.keys.Catalog, Home: v.home, Keys: "latest", Data: "latest", Identities: v.ids, Events: v.said,
		Genesis: func() (string, string, error) { return "gaia-1", "abc", nil },
	}
}

// says runs a check, and wants what is not OK to begin so: "FAIL node key: ...".
func says(t *testing.T, k *KeysCheck, want ...string) {
	t.Helper()
	var got []string
	k.Run(t.Context(), func(f check.Finding) {
		if f.Level == check.OK {
			return
		}
		if f.Hint == "" {
			t.Errorf("no hint: %+v", f)
		}
		got = append(got, fmt.Sprintf("%s %s: %s", f.Level, f.Name, f.Said))
	})
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

const noDump = "WARN dump: "

func TestKeysCheckOfKeys(t *testing.T) {
	v := newVault(t)
	v.keys.Want.ValidatorKey = true
	v.backup(t)
	says(t, v.check(), noDump)
	k := v.check()
	k.Node = "val-1"
	says(t, k, noDump)

	// A copy under another name: the node key twice, and the validator key.
	twin := v.keys
	twin.Node = "val-2"
	_, err := twin.Run(t.Context())
	ok(t, err)
	says(t, v.check(), "FAIL duplicates: val-1 and val-2 have the same node id", noDump)
	file := filepath.Join(v.home, "config", "node_key.json")
	ok(t, os.Rename(file, file+".old"))
	_, err = p2p.LoadOrGenNodeKey(file)
	ok(t, err)
	twin.NewNodeKey = true
	v.now = v.now.Add(time.Hour)
	_, err = twin.Run(t.Context())
	ok(t, err)
	says(t, v.check(), "FAIL duplicates: val-1 and val-2 have the same validator key", noDump)
	k = v.check()
	k.Identities = nil
	says(t, k, "WARN duplicates: 2 nodes, no node id twice; 2 bundles hold validator keys", noDump)
	k = v.check()
	k.Node, k.Identities = "val-1", nil
	says(t, k, "FAIL node key: "+file+" is the key of node ", "WARN duplicates", noDump)

	// Who is in nobody's bundle; who may read the key; none at all.
	ok(t, os.Remove(file))
	_, err = p2p.LoadOrGenNodeKey(file)
	ok(t, err)
	ok(t, os.Chmod(file, 0o644))
	k = v.check()
	k.Identities = nil
	says(t, k, "WARN modes: "+file+" is 0644: chmod 600", "FAIL node key: no bundle is of node ", "WARN duplicates", noDump)
	ok(t, os.Remove(file))
	says(t, k, "FAIL node key: the home has none", "WARN duplicates", noDump)
}

func TestKeysCheckOfTheDump(t *testing.T) {
	v := newVault(t)
	saved := v.backup(t)
	k := v.check()
	all, err := k.newest(t.Context())
	ok(t, err)
	dump := func(change func(*uploader.Manifest)) *uploader.Manifest {
		m := &uploader.Manifest{ID: "dump", System: "cometbft", Incarnation: "abc", Created: saved.Made.Add(time.Hour), Position: uploader.Position{Index: 100}}
		change(m)
		return m
	}
	for _, c := range []struct {
		name   string
		level  check.Level
		said   string
		change func(*uploader.Manifest)
		look   func(context.Context, *uploader.Manifest) check.Finding
	}{
		{"same chain", check.OK, "gaia-1", func(*uploader.Manifest) {}, func(_ context.Context, m *uploader.Manifest) check.Finding { return k.chain(m) }},
		{"another", check.Fail, "is of history def", func(m *uploader.Manifest) { m.Incarnation = "def" }, func(_ context.Context, m *uploader.Manifest) check.Finding { return k.chain(m) }},
		{"data newer", check.OK, "newer than bundle", func(*uploader.Manifest) {}, func(ctx context.Context, m *uploader.Manifest) check.Finding { return k.order(ctx, v.id, all, m) }},
		{"data older", check.Warn, "the configuration is newer", func(m *uploader.Manifest) { m.Created = saved.Made.Add(-time.Hour) }, func(ctx context.Context, m *uploader.Manifest) check.Finding { return k.order(ctx, v.id, all, m) }},
	} {
		if f := c.look(t.Context(), dump(c.change)); f.Level != c.level || !strings.Contains(f.Said, c.said) || (f.Hint == "") != (c.level == check.OK) {
			t.Errorf("%s: %+v", c.name, f)
		}
	}

	self, err := os.Executable()
	ok(t, err)
	bin := filepath.Join(v.home, "cosmovisor", "upgrades", "v2", "bin")
	ok(t, os.MkdirAll(bin, 0o700))
	program := func(want check.Level, said string) {
		t.Helper()
		if f := k.program(dump(func(*uploader.Manifest) {})); f.Level != want || !strings.Contains(f.Said, said) || (f.Hint == "") != (want == check.OK) {
			t.Errorf("%+v", f)
		}
	}
	program(check.OK, "not looked at")
	ok(t, os.Symlink(filepath.Join(v.home, "cosmovisor", "upgrades", "v2"), filepath.Join(v.home, "cosmovisor", "current")))
	program(check.Fail, "leads to no program")
	ok(t, os.WriteFile(filepath.Join(bin, "gaiad"), []byte("#!/bin/sh\n"), 0o700))
	program(check.Warn, "does not say what it is")
	ok(t, os.Remove(filepath.Join(bin, "gaiad")))
	ok(t, os.Symlink(self, filepath.Join(bin, "gaiad")))
	program(check.OK, "nothing in")
	put(t, filepath.Join(v.home, "data", "upgrade-info.json"), `{"name":"v2","height":"200"}`)
	program(check.Fail, `that of the upgrade "v2" at height 200, backup dump is of height 100`)
	put(t, filepath.Join(v.home, "data", "upgrade-info.json"), `{"name":"v2","height":"101"}`)
	program(check.OK, "nothing in")
}

// What a program was built of is compared with what made the dump.
func TestBuilt(t *testing.T) {
	const comet = "github.com/cometbft/cometbft"
	for _, c := range []struct {
		dep, replaced, flags string
		want                 check.Level
	}{
		{"v0.38.26", "", "", check.OK},
		{"v0.38.25", "", "", check.Warn},
		{"v0.37.5", "", "", check.Fail},
		{"v0.38.25", "v0.38.26-fork-1", "", check.OK},
		{"v0.38.26", "v0.37.5-fork-1", "", check.Fail},
		{"(devel)", "", "", check.OK},
		{"v0.38.26", "", "-w -X github.com/cosmos/cosmos-sdk/version.Version=v18.1.0 -s", check.OK},
		{"v0.38.26", "", "-w -X github.com/cosmos/cosmos-sdk/version.Version=v19.0.0 -s", check.Fail},
	} {
		info := &debug.BuildInfo{Deps: []*debug.Module{{Path: "x", Version: "v1"}, {Path: comet, Version: c.dep}}, Settings: []debug.BuildSetting{{Key: "-ldflags", Value: c.flags}}}
		if c.replaced != "" {
			info.Deps[1].Replace = &debug.Module{Path: "github.com/x/cometbft", Version: c.replaced}
		}
		m := &uploader.Manifest{ID: "dump", System: "cometbft", Versions: uploader.Versions{System: "0.38.26", App: "GaiaApp v18.1.0"}}
		if f := built(info, "gaiad", m); f.Level != c.want || (f.Hint == "") != (c.want == check.OK) {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}
