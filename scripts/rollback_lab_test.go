//go:build lab

package scripts_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRestoreTakesAChainBackOnlyByEveryWord(t *testing.T) { testTakenBack(t) }

// A key without a sign state gets one, a state that is lower stays, a home without a
// key gets none; and a list of rollbacks, as eddy writes it, is gone on with.
func TestTakenBackHomesOfAllKinds(t *testing.T) {
	const listed = "{\n  \"format\": 1,\n  \"min_reader\": 1,\n  \"rollbacks\": [\n    {\n      \"at\": 250,\n      \"lost\": 300,\n      \"time\": \"2026-11-21T10:00:00Z\",\n      \"before\": \"before-x\"\n    }\n  ]\n}\n"
	const low = `{"height":"650","round":0,"step":3}`
	for name, c := range map[string]struct {
		home  map[string]string
		state string
		list  [][2]int64
	}{
		"a key alone":     {map[string]string{"config/priv_validator_key.json": "{}"}, lowered, [][2]int64{{300, 0}, {700, 710}}},
		"a lower one":     {map[string]string{"data/priv_validator_state.json": low}, low, [][2]int64{{300, 0}, {700, 710}}},
		"no key":          {map[string]string{"config/config.toml": `priv_validator_laddr = ""`}, "", [][2]int64{{300, 0}, {700, 710}}},
		"a list of eddy":  {map[string]string{".eddy/rollbacks.json": listed}, "", [][2]int64{{250, 300}, {700, 710}}},
		"an emptied list": {map[string]string{".eddy/rollbacks.json": "{\n  \"format\": 1,\n  \"min_reader\": 1,\n  \"rollbacks\": []\n}\n"}, "", [][2]int64{{300, 0}, {700, 710}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, home := newRollback(t), t.TempDir()
			writeTree(t, home, c.home)
			got := restore(t, []string{"EVERY_VALIDATOR_GOES_BACK_TO=700"}, "--store", "file://"+b.dir, "--cluster", cluster, "--home", home, "--yes", "--id", id, "--lost", "701-710")
			if got.code != 0 {
				t.Fatalf("exit code %d\n%s", got.code, got.output)
			}
			s, err := os.ReadFile(filepath.Join(home, "data/priv_validator_state.json"))
			if string(s) != c.state || (err == nil) != (c.state != "") {
				t.Errorf("the sign state is %q, want %q, %v", s, c.state, err)
			}
			if list := rollbacks(t, home); len(list) != 2 || list[0] != c.list[0] || list[1] != c.list[1] {
				t.Errorf("the list of rollbacks is %v, want %v", list, c.list)
			}
		})
	}
}

// A rollback that is killed before its data are in place is none: who then restores
// without the words has the old sign state. One that is killed after is one.
func TestATakingBackIsKilled(t *testing.T) {
	for n, state := range map[int]string{3: `"900"`, 5: `"700"`} { // marker, data aside, data in, wasm in, list
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b, home := newRollback(t), live(t)
			args := []string{"--store", "file://" + b.dir, "--cluster", cluster, "--home", home, "--yes", "--id", id}
			if got := restore(t, append(faultyMv(t, n, "kill before"), "EVERY_VALIDATOR_GOES_BACK_TO=700"), append(args, "--lost", "701-900")...); got.code == 0 {
				t.Fatalf("it was not killed\n%s", got.output)
			}
			got := restore(t, nil, args...)
			if (got.code == 0) != (n == 3) || !strings.Contains(read(t, filepath.Join(home, "data/priv_validator_state.json")), state) {
				t.Errorf("exit code %d\n%s", got.code, got.output)
			}
			if _, err := os.Stat(filepath.Join(home, ".eddy/rollbacks.json")); (err == nil) != (n == 5) {
				t.Errorf("the list of rollbacks: %v", err)
			}
			if left, err := filepath.Glob(filepath.Join(home, ".eddy", "restore-*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
