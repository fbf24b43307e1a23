//go:build root

package quickstart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// limit is what the project promises: from the release to a backup that was
// restored and compared.
const limit = 10 * time.Minute

// TestSystemd types docs/quickstart-systemd.md on a machine with a real chain, as
// it stands there. Then it looks at what the reader has: a restored copy whose
// files are those of the archive's list, and on which a node goes on with the
// chain; an observer that runs; a daemon.
func TestSystemd(t *testing.T) {
	m := newHost(t)
	release(t, m, "/root/release")
	began := time.Now()
	said := typeBlocks(t, m, readPage(t, "quickstart-systemd.md"), "/root/release")
	if took := time.Since(began); took > limit {
		t.Errorf("the page took %s, more than %s", took, limit)
	} else {
		t.Logf("the page took %s", took.Round(time.Second))
	}
	warned(t, lastDoctor(said), "witnesses", "retention") // the machine has one validator

	const restored = "/home/wasm/restored"
	b := newest(t, filepath.Join(m.Root, "srv/s3", bucket, "eddy", chainID))
	isBack(t, b, filepath.Join(m.Root, restored))
	goesOn(t, m, restored, b)

	isWell(t, m, home, "wasmd.service", "eddy.service")
}

// lastDoctor is what a page's doctor said last: it is asked until it is content.
func lastDoctor(said string) string {
	return said[max(0, strings.LastIndex(said, "configuration: no mistakes")):]
}

// isWell looks whether units run, none has failed, and no stage is left in a home.
func isWell(t *testing.T, m *lab.Machine, home string, units ...string) {
	t.Helper()
	for _, unit := range units {
		if out, err := m.Run(t.Context(), "systemctl", "is-active", unit); err != nil {
			t.Errorf("%s is %s", unit, strings.TrimSpace(out))
		}
	}
	if out, err := m.Run(t.Context(), "systemctl", "list-units", "--failed", "--plain", "--no-legend"); err != nil || out != "" {
		t.Errorf("failed units: %s(%v)", out, err)
	}
	if stages, err := filepath.Glob(filepath.Join(m.Root, home, ".eddy", "2*")); err != nil || len(stages) != 0 {
		t.Errorf("stages left: %v (%v)", stages, err)
	}
}

// release puts what `make dist` made where the reader has downloaded it.
func release(t *testing.T, m *lab.Machine, at string) {
	t.Helper()
	files, err := filepath.Glob("../../dist/*")
	must(t, err)
	if len(files) < 3 {
		t.Fatalf("no release: %v (`make dist` makes it)", files)
	}
	must(t, os.MkdirAll(filepath.Join(m.Root, at), 0o755))
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(m.Root, at, filepath.Base(f)), b, 0o644))
	}
}

// readPage takes the blocks out of a page of docs.
func readPage(t *testing.T, name string) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", name))
	must(t, err)
	all, err := blocks(string(text))
	must(t, err)
	return all
}

// typeBlocks types blocks, prints how long each took, and returns what they printed.
func typeBlocks(t *testing.T, m *lab.Machine, all []block, dir string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began, at := time.Now(), "nothing typed yet"
	var said strings.Builder
	err := m.Script(ctx, script(all), dir, func(line string) {
		said.WriteString(line + "\n")
		if strings.HasPrefix(line, mark) {
			at = line
			line = fmt.Sprintf("%s (after %.1f s)", line, time.Since(began).Seconds())
		}
		t.Log(line)
	})
	if err != nil {
		t.Fatalf("%s: %v", strings.TrimPrefix(at, mark), err)
	}
	return said.String()
}

// goesOn starts a node on the restored files, with new keys and ports of its own,
// and waits until it has replayed blocks beyond the backup's height: a state that
// is not the chain's would stop it there.
func goesOn(t *testing.T, m *lab.Machine, dir string, b backup) {
	t.Helper()
	ctx := t.Context()
	must(t, m.Script(ctx, `set -euo pipefail
cp -a `+home+`/config `+dir+`/
rm `+dir+`/config/{priv_validator_key,node_key,addrbook}.json
echo '{"height":"0","round":0,"step":0}' >`+dir+`/data/priv_validator_state.json
sed -i 's|^pprof_laddr = .*|pprof_laddr = ""|' `+dir+`/config/config.toml
chown -R wasm: `+dir+`
systemd-run --quiet --unit=restored --property=User=wasm `+programs+`/wasmd start --home `+dir+` \
  --rpc.laddr tcp://127.0.0.1:36657 --p2p.laddr tcp://127.0.0.1:36656 --grpc.enable=false --api.enable=false
`, "/root", func(line string) { t.Log(line) }))
	const rpc = "127.0.0.1:36657"
	goal := int64(b.Position.Index) + 5
	for end := time.Now().Add(time.Minute); height(t, m, rpc) < goal; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			said, err := m.Run(ctx, "journalctl", "--unit=restored", "--lines=30", "--no-pager")
			t.Fatalf("a node on the restored files does not come to height %d (%v):\n%s", goal, err, said)
		}
	}
	// A block's header says what state of the application the one before it left.
	var own, chain struct {
		Block struct {
			Header struct {
				AppHash string `json:"app_hash"`
			} `json:"header"`
		} `json:"block"`
	}
	at := fmt.Sprintf("block?height=%d", goal)
	must(t, ask(ctx, m, rpc, at, &own))
	must(t, ask(ctx, m, validIP+":26657", at, &chain))
	if own.Block.Header != chain.Block.Header || own.Block.Header.AppHash == "" {
		t.Errorf("at height %d the restored node has app hash %q, the chain %q", goal, own.Block.Header.AppHash, chain.Block.Header.AppHash)
	}
	_, err := m.Run(ctx, "systemctl", "stop", "restored")
	must(t, err)
}
