package cometbft

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

func TestIsUpgrading(t *testing.T) {
	for name, tc := range map[string]struct {
		plan string // "": no file
		due  bool
	}{
		"no plan":           {"", false},
		"due":               {`{"name":"v2","height":101,"info":""}`, true},
		"due, quoted":       {`{"name":"v2","height":"101"}`, true},
		"carried out":       {`{"name":"v2","height":100}`, false},
		"planned":           {`{"name":"v2","height":102}`, false},
		"nothing in it":     {`{}`, false},
		"cut short":         {`{"name":"v2","hei`, false},
		"no height":         {`{"name":"v2","height":-1}`, false},
		"more than a chain": {`{"name":"v2","height":99999999999999999999}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			if err := os.Mkdir(filepath.Join(home, "data"), 0o700); err != nil {
				t.Fatal(err)
			}
			if tc.plan != "" {
				if err := os.WriteFile(filepath.Join(home, "data", "upgrade-info.json"), []byte(tc.plan), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := &Replica{o: Options{Home: home}}
			err := r.isUpgrading(observer.State{Position: observer.Position{Index: 100}})
			if !tc.due {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, observer.ErrBehind) || !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), `"v2"`) || hint.Of(err) == "" {
				t.Fatalf("%v, hint %q", err, hint.Of(err))
			}
		})
	}
}

// A program is told of, and refused only where it is known that it cannot go on
// from what comes.
func TestOtherProgram(t *testing.T) {
	state := func(height uint64, version, app string) observer.State {
		return observer.State{System: system, Version: version, App: app, Position: observer.Position{Index: height}}
	}
	upgrade := plan{name: "v2", height: 200}
	for name, tc := range map[string]struct {
		comes, now observer.State
		last       plan
		other, no  string // a part of what is said; "": nothing
	}{
		"the same":                        {state(100, "0.38.26", "gaia v1"), state(150, "0.38.26", "gaia v1"), plan{}, "", ""},
		"another app":                     {state(100, "0.38.26", "gaia v1"), state(150, "0.38.26", "gaia v2"), plan{}, "was made by cometbft 0.38.26, app gaia v1, here runs cometbft 0.38.26, app gaia v2", ""},
		"another cometbft":                {state(100, "0.37.9", "gaia v1"), state(150, "0.38.26", "gaia v1"), plan{}, "here runs cometbft 0.38.26", ""},
		"no app was told":                 {state(100, "0.38.26", ""), state(150, "0.38.26", "gaia v2"), plan{}, "", ""},
		"nobody answers":                  {state(100, "0.38.26", "gaia v1"), observer.State{}, plan{}, "", ""},
		"before an upgrade":               {state(100, "0.38.26", "gaia v1"), state(300, "0.38.26", "gaia v2"), upgrade, "", `which the upgrade "v2" at height 200 brought`},
		"before it, by the same program":  {state(100, "0.38.26", "gaia v2"), state(300, "0.38.26", "gaia v2"), upgrade, "", ""},
		"the last block of the old":       {state(199, "0.38.26", "gaia v1"), state(300, "0.38.26", "gaia v2"), upgrade, "here runs", ""},
		"one block sooner":                {state(198, "0.38.26", "gaia v1"), state(300, "0.38.26", "gaia v2"), upgrade, "", "cannot go on from there"},
		"after it":                        {state(250, "0.38.26", "gaia v2"), state(300, "0.38.26", "gaia v3"), upgrade, "here runs", ""},
		"an upgrade that is planned":      {state(100, "0.38.26", "gaia v1"), state(150, "0.38.26", "gaia v1.1"), upgrade, "here runs", ""},
		"before it, and nobody answers":   {state(100, "0.38.26", "gaia v1"), observer.State{}, upgrade, `is from before the upgrade "v2" at height 200`, ""},
		"at its end, and nobody answers":  {state(199, "0.38.26", "gaia v1"), observer.State{}, upgrade, "", ""},
		"a genesis and a first upgrade":   {state(0, "0.38.26", "gaia v1"), state(5, "0.38.26", "gaia v2"), plan{name: "v2", height: 1}, "here runs", ""},
		"a backup that tells no versions": {state(100, "", ""), state(300, "0.38.26", "gaia v2"), upgrade, "", ""},
	} {
		other, err := otherProgram(tc.comes, tc.now, tc.last)
		for _, said := range []struct {
			err  error
			want string
		}{{other, tc.other}, {err, tc.no}} {
			if (said.err == nil) != (said.want == "") || said.err != nil && (!strings.Contains(said.err.Error(), said.want) || hint.Of(said.err) == "") {
				t.Errorf("%s: %v (hint %q), want %q", name, said.err, hint.Of(said.err), said.want)
			}
		}
		if err != nil && !errors.Is(err, observer.ErrNotFit) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What cosmovisor would start is known by its link.
func TestMayStart(t *testing.T) {
	for name, tc := range map[string]struct {
		link   string
		height uint64
		last   plan
		no     bool
	}{
		"no cosmovisor":                {"", 100, plan{"v2", 200}, false},
		"the upgrade's":                {"upgrades/v2", 100, plan{"v2", 200}, true},
		"absolute, escaped":            {"/srv/gaia/cosmovisor/upgrades/v2%20a", 100, plan{"V2 a", 200}, true},
		"that of before":               {"genesis", 100, plan{"v2", 200}, false},
		"of an earlier upgrade":        {"upgrades/v1", 100, plan{"v2", 200}, false},
		"the last block of the old":    {"upgrades/v2", 199, plan{"v2", 200}, false},
		"after it":                     {"upgrades/v2", 250, plan{"v2", 200}, false},
		"nothing is known of upgrades": {"upgrades/v2", 100, plan{}, false},
	} {
		home := t.TempDir()
		if tc.link != "" {
			if err := errors.Join(os.Mkdir(filepath.Join(home, "cosmovisor"), 0o700), os.Symlink(tc.link, filepath.Join(home, "cosmovisor", "current"))); err != nil {
				t.Fatal(err)
			}
		}
		err := mayStart(home, observer.State{System: system, Version: "0.38.26", Position: observer.Position{Index: tc.height}}, tc.last)
		if (err != nil) != tc.no || tc.no && (!errors.Is(err, observer.ErrNotFit) || !strings.Contains(hint.Of(err), "--no-start")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
