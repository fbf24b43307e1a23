//go:build e2e

package drill

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// setUp makes a validator and an observer of a real SDK chain on 127.0.0.9, whose
// contracts lie in HOME/wasm, outside data/. $1 is wasmd, $2 a directory.
const setUp = `set -euo pipefail
cd "$2"
d=$2 wasmd=$1
run() { "$wasmd" "$@" >>setup.log 2>&1; }
run init validator --chain-id wasm-1 --home v
run keys add validator --keyring-backend test --home v
run genesis add-genesis-account validator 1000000000000stake --keyring-backend test --home v
run genesis gentx validator 500000000stake --chain-id wasm-1 --keyring-backend test --home v
run genesis collect-gentxs --home v
run init observer --chain-id wasm-1 --home o
cp v/config/genesis.json o/config/genesis.json
id=$("$wasmd" comet show-node-id --home v)
for h in v o; do
  [ $h = v ] && n=1 || n=2
  sed -i -e "s|^laddr = \"tcp://127.0.0.1:26657\"|laddr = \"tcp://127.0.0.9:2${n}657\"|" \
    -e "s|^laddr = \"tcp://0.0.0.0:26656\"|laddr = \"tcp://127.0.0.9:2${n}656\"|" \
    -e 's|^external_address = .*|external_address = "0.0.0.0:26656"|' -e 's|^pex = .*|pex = false|' \
    -e 's|^pprof_laddr = .*|pprof_laddr = ""|' -e 's|^timeout_commit = .*|timeout_commit = "700ms"|' \
    -e 's|^addr_book_strict = .*|addr_book_strict = false|' -e 's|^allow_duplicate_ip = .*|allow_duplicate_ip = true|' $h/config/config.toml
  sed -i -e 's|^minimum-gas-prices = .*|minimum-gas-prices = "0stake"|' \
    -e "s|^address = \"localhost:9090\"|address = \"127.0.0.9:2${n}090\"|" $h/config/app.toml
done
sed -i "s|^persistent_peers = .*|persistent_peers = \"$id@127.0.0.9:21656\"|" o/config/config.toml
`

// pay keeps accounts paying while $2/go is there.
const pay = `cd "$2"
a=$("$1" keys show validator -a --keyring-backend test --home v)
while [ -e go ]; do
  "$1" tx bank send "$a" "$a" 1stake --yes --home v --keyring-backend test --chain-id wasm-1 --node tcp://127.0.0.9:21657 --broadcast-mode sync >>pay.log 2>&1
  sleep 0.5
done
`

// TestDrillOfAnSDKChain: wasmd under load, with its contracts' directory outside
// data/ and its own app.toml; how it is run is found, not configured. The app's
// engine is goleveldb: with pebble the SDK (0.53.6) closes its database twice and
// panics at every stop, which no backup is made after.
func TestDrillOfAnSDKChain(t *testing.T) {
	eddy, err := filepath.Abs("../../bin/eddy")
	must(t, err)
	wasmd := filepath.Join(os.Getenv("EDDY_LAB_WASMD"), "wasmd")
	if _, err := os.Stat(wasmd); err != nil {
		t.Fatal("EDDY_LAB_WASMD names no directory with wasmd: `make e2e-drill` does", err)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "bash", "-c", setUp, "sh", wasmd, dir).CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "setup.log"))
		t.Fatalf("%v\n%s\n%s", err, out, log)
	}
	start := func(name string, argv ...string) {
		p, err := lab.StartProcess(argv, os.Environ(), filepath.Join(dir, name+".log"))
		must(t, err)
		t.Cleanup(func() { must(t, p.Stop(time.Minute)) })
	}
	sock := filepath.Join(dir, "s")
	start("validator", wasmd, "start", "--home", filepath.Join(dir, "v"))
	start("observer", eddy, "supervise", "--home", filepath.Join(dir, "o"), "--socket", sock, "--", wasmd, "start", "--home", filepath.Join(dir, "o"), "--rpc.laddr=tcp://127.0.0.9:22657")
	must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	payer := exec.CommandContext(t.Context(), "bash", "-c", pay, "sh", wasmd, dir)
	must(t, payer.Start())
	t.Cleanup(func() {
		must(t, os.Remove(filepath.Join(dir, "go")))
		_ = payer.Wait() // it is cut short by the test's end
	})
	config := filepath.Join(dir, "eddy.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `cluster: wasm
replica:
  home: %[1]s/o
  rpc: http://127.0.0.9:22657
  witnesses: [http://127.0.0.9:21657]
  control: {supervise: %[2]s, timeout: 90s, deadline: 5m}
store: {url: "file://%[1]s/bucket"}
workdir: %[1]s/work
drill: {timeout: 4m, blocks: 10}
`, dir, sock), 0o600))
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, eddy, append([]string{"-c", config}, args...)...).CombinedOutput()
		if err != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "observer.log"))
			t.Fatalf("eddy %v: %v\n%s\nthe observer: %s", args, err, out, log[max(0, len(log)-3000):])
		}
		return string(out)
	}
	time.Sleep(15 * time.Second)
	run("backup")
	t.Log(run("drill"))
	t.Setenv("EDDY_DRILL_ISOLATED", "false")
	t.Log(run("drill"))
	if found := left(t, filepath.Join(dir, "work")); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}
