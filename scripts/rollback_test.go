package scripts_test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const lowered = `{"height": "700", "round": 2147483647, "step": 3}` + "\n"

// newRollback is a backup of height 700, of a chain that was taken back once before.
func newRollback(t *testing.T) backup {
	b := newBackup(t, source)
	write(t, b.path("manifest.json"), `{
  "format": 1,
  "incarnation": "aa@300",
  "position": {
    "kind": "cometbft",
    "index": 700,
    "hash": "ab"
  }
}
`)
	return b
}

// A sign state goes down only where the variable, the backup, its height and the lost
// heights all say the same. Anything less is refused, and the home is as it was.
// The rest of the cases is for the tag lab.
func TestRestoreTakesAChainBackOnlyByType(t *testing.T) {
	testTakenBack(t, "all of it", "no variable", "too few")
}

// testTakenBack runs some cases, or all.
func testTakenBack(t *testing.T, only ...string) {
	const all = "EVERY_VALIDATOR_GOES_BACK_TO=700"
	for name, c := range map[string]struct {
		env  string
		args []string
		harm func(t *testing.T, home string)
		code int
		says string
	}{
		"all of it":          {all, []string{"--id", id, "--lost", "701-900"}, nil, 0, "THE WHOLE CHAIN GOES BACK to height 700"},
		"more than it knows": {all, []string{"--id", id, "--lost", "701-950"}, nil, 0, "not before"},
		"no variable":        {"", []string{"--id", id, "--lost", "701-900"}, nil, 16, "EVERY_VALIDATOR_GOES_BACK_TO"},
		"no lost heights":    {all, []string{"--id", id}, nil, 16, "the lost heights are 701-900"},
		"dry run":            {all, []string{"--id", id, "--dry-run"}, nil, 16, "the lost heights are 701-900"},
		"too few":            {all, []string{"--id", id, "--lost", "701-899"}, nil, 16, "and not 701-899"},
		"from elsewhere":     {all, []string{"--id", id, "--lost", "700-900"}, nil, 16, "the lost heights are 701-900"},
		"no numbers":         {all, []string{"--id", id, "--lost", "all"}, nil, 16, "the lost heights are 701-900"},
		"another height":     {"EVERY_VALIDATOR_GOES_BACK_TO=699", []string{"--id", id, "--lost", "700-900"}, nil, 16, "is of cometbft 700"},
		"no height":          {"EVERY_VALIDATOR_GOES_BACK_TO=yes", []string{"--id", id, "--lost", "701-900"}, nil, 2, "no height"},
		"the latest":         {all, []string{"--lost", "701-900"}, nil, 2, "no --id"},
		"a forgotten export": {all, nil, nil, 2, "unset it"},
		"a copy knows higher": {all, []string{"--id", id, "--lost", "701-900"}, func(t *testing.T, home string) {
			write(t, filepath.Join(home, ".eddy/before-x/data/priv_validator_state.json"), `{"height":"901","round":0,"step":1}`)
		}, 16, "701-901"},
		"a remote signer": {all, []string{"--id", id, "--lost", "701-900"}, func(t *testing.T, home string) {
			write(t, filepath.Join(home, "config/config.toml"), `priv_validator_laddr = "tcp://0.0.0.0:1234"`)
		}, 12, "somebody else signs"},
		"key and state in one": {all, []string{"--id", id, "--lost", "701-900"}, func(t *testing.T, home string) {
			write(t, filepath.Join(home, "chaindata/config/priv_validator.json"), `{"last_height":"800","last_round":"0","last_step":3}`)
		}, 12, "take eddy"},
	} {
		if len(only) > 0 && !slices.Contains(only, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, home := newRollback(t), live(t)
			if c.harm != nil {
				c.harm(t, home)
			}
			before := tree(t, home)
			got := restore(t, []string{c.env}, append([]string{"--store", "file://" + b.dir, "--cluster", cluster, "--home", home, "--yes"}, c.args...)...)
			if got.code != c.code || !strings.Contains(got.output, c.says) {
				t.Fatalf("exit code %d, want %d with %q\n%s", got.code, c.code, c.says, got.output)
			}
			if c.code != 0 {
				delete(before, ".eddy/restore.lock")
				wantTree(t, home, before)
				return
			}
			if s := read(t, filepath.Join(home, "data/priv_validator_state.json")); s != lowered {
				t.Errorf("the sign state is %s", s)
			}
			if s := read(t, filepath.Join(home, ".eddy/before-"+id+"/data/priv_validator_state.json")); !strings.Contains(s, `"900"`) {
				t.Errorf("the old one is %s", s)
			}
			if got := rollbacks(t, home); len(got) != 2 || got[0] != [2]int64{300, 0} || got[1][0] != 700 || got[1][1] < 900 {
				t.Errorf("the list of rollbacks: %v", got)
			}
		})
	}
}

// rollbacks are at and lost of each rollback in a home's list, which must be as eddy
// reads it.
func rollbacks(t *testing.T, home string) (list [][2]int64) {
	t.Helper()
	var r struct {
		Format    int
		MinReader int `json:"min_reader"`
		Rollbacks []struct{ At, Lost int64 }
	}
	err := json.Unmarshal([]byte(read(t, filepath.Join(home, ".eddy/rollbacks.json"))), &r)
	if err != nil || r.Format != 1 || r.MinReader != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, e := range r.Rollbacks {
		list = append(list, [2]int64{e.At, e.Lost})
	}
	return list
}
