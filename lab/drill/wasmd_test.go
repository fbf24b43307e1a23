//go:build e2e

package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// setUp makes a validator (1) and three observers of a real SDK chain on 127.0.0.9,
// whose contracts lie in HOME/wasm, outside data/. Number 3 keeps few blocks. $1 is
// wasmd, $2 a directory.
const setUp = `set -euo pipefail
cd "$2"
wasmd=$1
run() { "$wasmd" "$@" >>setup.log 2>&1; }
run init validator --chain-id wasm-1 --home 1
sed -i 's|"max_age_num_blocks": "[0-9]*"|"max_age_num_blocks": "5"|' 1/config/genesis.json
run keys add validator --keyring-backend test --home 1
run genesis add-genesis-account validator 1000000000000stake --keyring-backend test --home 1
run genesis gentx validator 500000000stake --chain-id wasm-1 --keyring-backend test --home 1
run genesis collect-gentxs --home 1
id=$("$wasmd" comet show-node-id --home 1)
for n in 1 2 3 4; do
  if [ $n != 1 ]; then
    run init observer --chain-id wasm-1 --home $n
    cp 1/config/genesis.json $n/config/genesis.json
    sed -i "s|^persistent_peers = .*|persistent_peers = \"$id@127.0.0.9:21656\"|" $n/config/config.toml
  fi
  sed -i -e "s|^laddr = \"tcp://127.0.0.1:26657\"|laddr = \"tcp://127.0.0.9:2${n}657\"|" \
    -e "s|^laddr = \"tcp://0.0.0.0:26656\"|laddr = \"tcp://127.0.0.9:2${n}656\"|" \
    -e 's|^external_address = .*|external_address = "0.0.0.0:26656"|' -e 's|^pex = .*|pex = false|' \
    -e 's|^pprof_laddr = .*|pprof_laddr = ""|' -e 's|^timeout_commit = .*|timeout_commit = "700ms"|' \
    -e 's|^addr_book_strict = .*|addr_book_strict = false|' -e 's|^allow_duplicate_ip = .*|allow_duplicate_ip = true|' $n/config/config.toml
  sed -i -e 's|^minimum-gas-prices = .*|minimum-gas-prices = "0stake"|' \
    -e "s|^address = \"localhost:9090\"|address = \"127.0.0.9:2${n}090\"|" $n/config/app.toml
done
sed -i 's|^min-retain-blocks = .*|min-retain-blocks = 15|' 3/config/app.toml
sed -i 's|^db_backend = .*|db_backend = "pebbledb"|' 3/config/config.toml 4/config/config.toml
sed -i 's|^app-db-backend = .*|app-db-backend = "goleveldb"|' 3/config/app.toml
`

// load stores a contract, $3, and lets it pay its funds back again and again while
// $2/go is there. Each call reads the contract's code from HOME/wasm.
const load = `set -u
cd "$2"
as="--yes --from validator --home 1 --keyring-backend test --chain-id wasm-1 --node tcp://127.0.0.9:21657 --gas 5000000 --output json"
ask="--node tcp://127.0.0.9:21657 --output json"
a=$("$1" keys show validator -a --keyring-backend test --home 1)
until "$1" query wasm list-code $ask | grep -q code_id; do "$1" tx wasm store "$3" $as; sleep 2; done
until c=$("$1" query wasm list-contract-by-code 1 $ask | grep -o 'wasm1[a-z0-9]*'); do
  "$1" tx wasm instantiate 1 "{\"verifier\":\"$a\",\"beneficiary\":\"$a\"}" --label lab --no-admin $as; sleep 2
done
echo "$c" >contract
while [ -e go ]; do "$1" tx wasm execute "$c" '{"release":{}}' --amount 1stake $as; sleep 0.5; done
`

// sdk is a real SDK chain under load.
type sdk struct {
	top              *testing.T // for whose time the nodes run
	eddy, wasmd, dir string
}

func newSDK(t *testing.T) sdk {
	t.Helper()
	eddy, err := filepath.Abs("../../bin/eddy")
	must(t, err)
	s := sdk{top: t, eddy: eddy, wasmd: filepath.Join(os.Getenv("EDDY_LAB_WASMD"), "wasmd"), dir: t.TempDir()}
	contract := os.Getenv("EDDY_LAB_CONTRACT")
	for _, file := range []string{s.wasmd, contract} {
		if _, err := os.Stat(file); err != nil {
			t.Fatal("EDDY_LAB_WASMD names a directory with wasmd, EDDY_LAB_CONTRACT a contract: `make e2e-drill` does", err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "bash", "-c", setUp, "sh", s.wasmd, s.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, s.log("setup.log"))
	}
	s.start(t, "validator", s.wasmd, "start", "--home", s.home(1))
	must(t, os.WriteFile(filepath.Join(s.dir, "go"), nil, 0o600))
	l, err := lab.StartProcess([]string{"bash", "-c", load, "sh", s.wasmd, s.dir, contract}, os.Environ(), filepath.Join(s.dir, "load.log"))
	must(t, err)
	t.Cleanup(func() {
		must(t, os.Remove(filepath.Join(s.dir, "go")))
		must(t, l.Stop(time.Minute))
	})
	return s
}

func (s sdk) home(n int) string { return filepath.Join(s.dir, strconv.Itoa(n)) }
func (s sdk) rpc(n int) string  { return fmt.Sprintf("http://127.0.0.9:2%d657", n) }

func (s sdk) log(name string) []byte {
	b, _ := os.ReadFile(filepath.Join(s.dir, name)) // for the message of a test that fails
	return b[max(0, len(b)-3000):]
}

func (s sdk) start(t *testing.T, name string, argv ...string) *lab.Process {
	t.Helper()
	p, err := lab.StartProcess(argv, os.Environ(), filepath.Join(s.dir, name+".log"))
	must(t, err)
	s.top.Cleanup(func() { must(t, p.Stop(time.Minute)) })
	return p
}

// observe starts an observer under supervise, with the flags, until it follows the
// chain.
func (s sdk) observe(t *testing.T, n int, flags ...string) *lab.Process {
	t.Helper()
	argv := append([]string{s.eddy, "supervise", "--home", s.home(n), "--socket", filepath.Join(s.dir, fmt.Sprintf("s%d", n))}, flags...)
	p := s.start(t, fmt.Sprintf("observer-%d", n), append(argv, "--", s.wasmd, "start", "--home", s.home(n))...)
	s.config(t, n, 1)
	until(t, 2*time.Minute, func() error {
		_, at, err := reach(s.rpc(n))
		_, tip, terr := reach(s.rpc(1))
		if err = errors.Join(err, terr); err == nil && at+1 < tip {
			err = fmt.Errorf("at %d of %d", at, tip)
		}
		return err
	})
	return p
}

func (s sdk) config(t *testing.T, n, witness int) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(s.dir, fmt.Sprintf("%d.yaml", n)), fmt.Appendf(nil, `cluster: wasm-%[1]d
replica:
  home: %[2]s/%[1]d
  rpc: %[3]s
  witnesses: [%[4]s]
  control: {supervise: %[2]s/s%[1]d, timeout: 90s, deadline: 5m}
store: {url: "file://%[2]s/bucket"}
workdir: %[2]s/work%[1]d
drill: {timeout: 4m, blocks: 8}
`, n, s.dir, s.rpc(n), s.rpc(witness)), 0o600))
}

// run runs eddy for an observer; it must exit with code. Arguments that begin with
// EDDY_ are variables.
func (s sdk) run(t *testing.T, n, code int, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	begun := time.Now()
	argv, env := []string{"-c", filepath.Join(s.dir, fmt.Sprintf("%d.yaml", n))}, os.Environ()
	for _, a := range args {
		if strings.HasPrefix(a, "EDDY_") {
			env = append(env, a)
		} else {
			argv = append(argv, a)
		}
	}
	cmd := exec.CommandContext(ctx, s.eddy, argv...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		t.Fatalf("eddy %v: %v, exit code %d is wanted\n%s\nthe observer: %s\nthe load: %s", args, err, code, out, s.log(fmt.Sprintf("observer-%d.log", n)), s.log("load.log"))
	}
	t.Logf("eddy %s: %s", strings.Join(args, " "), time.Since(begun).Round(100*time.Millisecond))
	return string(out)
}

// until waits for what must come true.
func until(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begun) > limit {
			t.Fatal(err)
		}
	}
}

// TestWholeWayOfAnSDKChain: backup, check, attest, verify, restore in both ways and
// drill, of wasmd with contracts at work, in the engines that it can have, and with
// blocks that are pruned.
func TestWholeWayOfAnSDKChain(t *testing.T) {
	s := newSDK(t)
	t.Run("engines", func(t *testing.T) {
		for name, n := range map[string]int{"goleveldb": 2, "pebble": 3, "pebble in the app": 4} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				switch n {
				case 4:
					s.stopsBadly(t, n)
					s.observe(t, n, "--clean-exit", "0,2")
				default:
					s.observe(t, n)
				}
				until(t, time.Minute, func() error {
					_, err := os.Stat(filepath.Join(s.dir, "contract"))
					return err
				})
				if n == 3 {
					until(t, time.Minute, func() error { return s.pruned(n, 2) })
				}
				s.wholeWay(t, n)
			})
		}
	})
	s.config(t, 2, 3) // a witness that prunes
	until(t, time.Minute, func() error { return s.pruned(3, s.latest(t, 2).Position.Index+2) })
	if said := s.run(t, 2, 3, "drill"); !strings.Contains(said, "not possible: no witness has block") {
		t.Error(said)
	}
}

// pruned is nil when the lowest block that a node has is that one, or higher.
func (s sdk) pruned(n, lowest int) error {
	base, tip, err := reach(s.rpc(n))
	if err == nil && base < lowest {
		err = fmt.Errorf("observer %d has blocks %d to %d", n, base, tip)
	}
	return err
}

func get(url string, into any) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// reach is which blocks a node has.
func reach(rpc string) (base, tip int, err error) {
	var s struct {
		Result struct {
			SyncInfo struct {
				Base int `json:"earliest_block_height,string"`
				Tip  int `json:"latest_block_height,string"`
			} `json:"sync_info"`
		}
	}
	err = get(rpc+"/status", &s)
	return s.Result.SyncInfo.Base, s.Result.SyncInfo.Tip, err
}

// stopsBadly: with its own database in pebble the app panics at the end of each stop
// (cosmos-sdk issue 26558). eddy takes it for what it looks like, says what to do,
// and the node runs again.
func (s sdk) stopsBadly(t *testing.T, n int) {
	t.Helper()
	p := s.observe(t, n)
	if said := s.run(t, n, 12, "backup"); !strings.Contains(said, "it ended: exit status 2") || !strings.Contains(said, "--clean-exit 2,0,130,143") {
		t.Errorf("a node that panics: %s", said)
	}
	until(t, time.Minute, func() error { _, _, err := reach(s.rpc(n)); return err })
	must(t, p.Stop(time.Minute))
	if log := s.log(fmt.Sprintf("observer-%d.log", n)); !bytes.Contains(log, []byte("panic: pebble: closed")) {
		t.Errorf("the node's log: %s", log)
	}
}

// calls counts the calls of contracts that went well in some blocks.
func (s sdk) calls(t *testing.T, from, to int) (n int) {
	t.Helper()
	for h := from; h <= to; h++ {
		var r struct {
			Result struct {
				Txs []struct {
					Code   int
					Events []struct{ Type string }
				} `json:"txs_results"`
			}
		}
		must(t, get(fmt.Sprintf("%s/block_results?height=%d", s.rpc(1), h), &r))
		for _, tx := range r.Result.Txs {
			for _, e := range tx.Events {
				if e.Type == "execute" && tx.Code == 0 {
					n++
				}
			}
		}
	}
	return n
}

// manifest is what is looked at of a backup.
type manifest struct {
	Opened, Attested string
	Engines          []string
	Position         struct{ Index int }
}

func (s sdk) latest(t *testing.T, n int) manifest {
	t.Helper()
	var m struct{ Manifest manifest }
	must(t, json.Unmarshal([]byte(s.run(t, n, 0, "--json", "-q", "show", "latest")), &m))
	return m.Manifest
}

func (s sdk) wholeWay(t *testing.T, n int) {
	t.Helper()
	s.run(t, n, 0, "backup")
	m := s.latest(t, n)
	if m.Opened != "all" || m.Attested != "1 of 1" {
		t.Errorf("opened: %s, attested: %s", m.Opened, m.Attested)
	}
	t.Logf("height %d, engines %v", m.Position.Index, m.Engines)
	t.Log(s.run(t, n, 0, "drill")) // at once: witnesses may prune
	if got := s.calls(t, m.Position.Index+1, m.Position.Index+8); got == 0 {
		t.Error("no contract was called in the blocks that were executed")
	}
	if n == 2 {
		t.Log(s.run(t, n, 0, "drill", "EDDY_DRILL_ISOLATED=false"))
	}
	s.run(t, n, 0, "verify", "latest", "--read-data")
	into := filepath.Join(s.dir, fmt.Sprintf("fresh%d", n))
	s.run(t, n, 0, "restore", "latest", "--into", into)
	if code, err := filepath.Glob(filepath.Join(into, "wasm", "wasm", "state", "wasm", "*")); err != nil || len(code) != 1 {
		t.Errorf("contracts: %v, %v", code, err)
	}
	_, before, err := reach(s.rpc(n))
	must(t, err)
	s.run(t, n, 0, "restore", "latest", "--yes")
	until(t, time.Minute, func() error {
		_, at, err := reach(s.rpc(n))
		if err == nil && at <= before {
			err = fmt.Errorf("at %d, was at %d", at, before)
		}
		return err
	})
	if found := left(t, filepath.Join(s.dir, fmt.Sprintf("work%d", n))); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
	if _, err := os.Lstat(filepath.Join(into, "config")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a restore brought a configuration: %v", err)
	}
}
