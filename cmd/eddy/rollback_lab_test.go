//go:build lab

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// yard is a chain of real nodes, each with an eddy.yaml and commands to stop and
// start it, and one store.
type yard struct {
	t     *testing.T
	dir   string
	homes []node.Home // validators first, the observer last
}

func newYard(t *testing.T, validators int, commit time.Duration) *yard {
	y := &yard{t: t, dir: t.TempDir()}
	var err error
	y.homes, err = node.Testnet(filepath.Join(y.dir, "chain"), node.TestnetOptions{Validators: validators, Observers: 1, ChainID: "yard-1", Commit: commit})
	must(t, err)
	for i, h := range y.homes {
		var witnesses []string
		for _, o := range y.homes {
			if o.RPC != h.RPC {
				witnesses = append(witnesses, o.RPC)
			}
		}
		ctl := y.ctl(i)
		must(t, errors.Join(writeControl(ctl, h), os.WriteFile(y.at(i, "eddy.yaml"), fmt.Appendf(nil, `cluster: yard
replica:
  home: %s
  rpc: %s
  witnesses: [%s]
  control: {exec: {stop: [%[4]s/stop], start: [%[4]s/start], status: [%[4]s/status]}, timeout: 1m}
store: {url: "file://%[5]s/bucket"}
workdir: %[6]s
schedule: "@daily"
retention: {by: none}
`, h.Dir, h.RPC, strings.Join(witnesses, ", "), ctl, y.dir, y.at(i, "work")), 0o600)))
		t.Cleanup(func() { y.stop(i) })
	}
	for i := range y.homes {
		y.start(i)
	}
	return y
}

func (y *yard) at(i int, name string) string { return filepath.Join(y.ctl(i), name) }
func (y *yard) ctl(i int) string             { return filepath.Join(y.dir, fmt.Sprint("node-", i)) }
func (y *yard) observer() int                { return len(y.homes) - 1 }

func (y *yard) start(i int) {
	y.t.Helper()
	must(y.t, exec.Command("sh", y.at(i, "start")).Run())
}

// stop ends a node and waits until it has.
func (y *yard) stop(i int) {
	_ = exec.Command("sh", y.at(i, "stop")).Run() // one that does not run is fine
	for range 300 {
		if exec.Command("sh", y.at(i, "status")).Run() != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	y.t.Errorf("node %d does not stop", i)
}

// eddy runs a verb for a node; it must end with that code, and say that.
func (y *yard) eddy(i, code int, says string, args ...string) {
	y.t.Helper()
	cmd := exec.Command("eddy", append([]string{"-c", y.at(i, "eddy.yaml")}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		y.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), says) {
		log, _ := os.ReadFile(y.at(i, "log"))
		y.t.Fatalf("node %d: eddy %s: exit code %d, want %d and %q:\n%s\n%.2000s", i, strings.Join(args, " "), got, code, says, out, log)
	}
}

// reach waits until a node has a height.
func (y *yard) reach(i int, height int64) {
	y.t.Helper()
	var last int64
	var err error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if last, err = heightOf(y.homes[i].RPC); err == nil && last >= height {
			return
		}
	}
	log, _ := os.ReadFile(y.at(i, "log"))
	y.t.Fatalf("node %d does not reach height %d: %d, %v\n%.3000s", i, height, last, err, log)
}

func (y *yard) signFile(i int) string {
	return filepath.Join(y.homes[i].Dir, "data", "priv_validator_state.json")
}

func (y *yard) signs(i int) cometbft.SignStatus {
	y.t.Helper()
	s, err := cometbft.SignState(y.homes[i].Dir)
	must(y.t, err)
	return s
}

// backup makes the one backup, of the observer, and says at which height it is.
func (y *yard) backup() int64 {
	y.t.Helper()
	y.reach(y.observer(), 3)
	y.eddy(y.observer(), 0, "", "backup")
	b, err := os.ReadFile(filepath.Join(y.dir, "bucket/yard/latest.json"))
	must(y.t, err)
	var latest struct{ Position struct{ Index int64 } }
	must(y.t, json.Unmarshal(b, &latest))
	return latest.Position.Index
}

// wipe destroys a node's databases, and leaves its keys and its sign state.
func (y *yard) wipe(i int) {
	y.t.Helper()
	dbs, err := filepath.Glob(filepath.Join(y.homes[i].Dir, "data", "*"))
	must(y.t, err)
	for _, db := range dbs {
		if filepath.Base(db) != "priv_validator_state.json" {
			must(y.t, os.RemoveAll(db))
		}
	}
}

// A chain of four whose sign states stand 200 above the dump is not restored: that is
// refused before anything moves. By the steps of docs/runbooks/chain-rollback.md it
// goes on, as another incarnation.
func TestAChainIsTakenBackOnlyByType(t *testing.T) {
	y := newYard(t, 4, 10*time.Millisecond)
	to := y.backup()
	for i := range y.homes {
		y.reach(i, to+201)
	}
	for i := range y.homes {
		y.stop(i)
	}
	old := make([][]byte, len(y.homes))
	highest := int64(0)
	for i := range y.homes {
		var err error
		old[i], err = os.ReadFile(y.signFile(i))
		must(t, err)
		highest = max(highest, y.signs(i).Height)
		if s := y.signs(i); i != y.observer() && s.Height < to+200 {
			t.Fatalf("validator %d has signed at %d, the dump ends at %d", i, s.Height, to)
		}
	}
	y.wipe(0)
	y.wipe(1)
	untouched := func(i int) {
		t.Helper()
		now, err := os.ReadFile(y.signFile(i))
		must(t, err)
		if !bytes.Equal(now, old[i]) {
			t.Fatalf("node %d: the sign state was %s, is %s", i, old[i], now)
		}
		if left, err := os.ReadDir(filepath.Join(y.homes[i].Dir, ".eddy")); err == nil {
			for _, e := range left {
				if strings.HasPrefix(e.Name(), "restore-") || strings.HasPrefix(e.Name(), "before-") || e.Name() == "swap.json" {
					t.Fatalf("node %d: %s", i, e.Name())
				}
			}
		}
	}
	lost := fmt.Sprintf("%d-%d", to+1, highest+5)
	for i := range y.homes { // the observer is the last that holds the blocks for anybody who asks
		y.eddy(i, 12, "no restore but a rollback", "restore", "latest", "--yes")
		untouched(i)
	}
	// Step 1: a survivor that serves forbids it.
	y.start(3)
	y.reach(3, to+1)
	y.eddy(0, 12, "answers, and has the blocks up to", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to), "--lost", lost)
	y.stop(3)
	// Words that are not the right ones.
	y.eddy(0, 16, "--yes is not enough", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to))
	y.eddy(0, 16, "the lost heights are", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to), "--lost", fmt.Sprintf("%d-%d", to+1, to+9))
	y.eddy(0, 16, "the rollback is to be to", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to+1), "--lost", lost)
	for i := range y.homes {
		untouched(i)
	}
	// All nodes, none started before the last is done.
	for i := range y.homes {
		y.eddy(i, 0, "the node is down", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to), "--lost", lost)
		if s := y.signs(i); i != y.observer() && (s.Height != to || s.Step != 3) {
			t.Fatalf("validator %d: %+v after the rollback to %d", i, s, to)
		}
	}
	// The undo brings data and sign state back, and a second rollback is as good.
	y.eddy(2, 0, "brought back", "restore", "--undo", "--yes", "--no-start")
	if now, err := os.ReadFile(y.signFile(2)); err != nil || y.signs(2).Height < to+200 {
		t.Fatalf("after the undo: %s, %v", now, err)
	}
	y.eddy(2, 12, "it is or was a validator", "restore", "--undo", "--yes", "--no-start")
	y.eddy(2, 0, "the node is down", "restore", "latest", "--yes", "--rollback-chain", fmt.Sprint(to), "--lost", lost)
	for i := range y.homes {
		y.start(i)
	}
	for i := range y.homes {
		y.reach(i, to+20)
	}
	y.eddy(y.observer(), 1, "or was taken back, say --new-incarnation", "backup")
	y.eddy(y.observer(), 0, "", "backup", "--new-incarnation")
	b, err := os.ReadFile(filepath.Join(y.dir, "bucket/yard/latest.json"))
	must(t, err)
	if !strings.Contains(string(b), fmt.Sprintf("@%d", to)) {
		t.Errorf("latest is of another incarnation: %s", b)
	}
	y.eddy(y.observer(), 0, "it follows the chain", "restore", "latest", "--yes")
}

// A real validator: its data go back and somebody has reset its sign state. Restored
// by hand it signs blocks that it has signed already; restored by eddy, which finds
// the copy that lies beside, it does not.
func TestARealNodeDoesNotSignTwice(t *testing.T) {
	y := newYard(t, 1, 300*time.Millisecond)
	to := y.backup()
	y.reach(0, to+10)
	y.stop(0)
	y.stop(1)
	real, err := os.ReadFile(y.signFile(0))
	must(t, err)
	reset := []byte(`{"height": "0", "round": 0, "step": 0}`)

	// By hand.
	y.wipe(0)
	into := filepath.Join(y.dir, "by-hand")
	y.eddy(1, 0, "restored", "restore", "latest", "--into", into)
	must(t, os.CopyFS(filepath.Join(y.homes[0].Dir, "data"), os.DirFS(filepath.Join(into, "data"))))
	must(t, os.WriteFile(y.signFile(0), reset, 0o600))
	y.start(0)
	y.reach(0, to+3) // the only validator has signed them a second time
	y.stop(0)

	// By eddy.
	y.wipe(0)
	must(t, os.WriteFile(y.signFile(0), reset, 0o600))
	must(t, os.WriteFile(y.signFile(0)+".bak", real, 0o600))
	y.eddy(0, 0, "restored", "restore", "latest", "--yes", "--no-start")
	if s := y.signs(0); s.Height < to+10 {
		t.Fatalf("the sign state is %+v", s)
	}
	y.start(0)
	y.reach(0, to)
	time.Sleep(3 * time.Second)
	h, err := heightOf(y.homes[0].RPC)
	must(t, err)
	log, err := os.ReadFile(y.at(0, "log"))
	must(t, err)
	if h != to || !strings.Contains(string(log), "height regression") {
		t.Errorf("it came to height %d from %d:\n%.2000s", h, to, log)
	}
}
