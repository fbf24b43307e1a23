//go:build e2e

package drill

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// TestChainAtRest: a chain that makes blocks only for transactions, and has none, is
// backed up without waiting for it; it can be drilled when there are blocks.
func TestChainAtRest(t *testing.T) {
	eddy, err := filepath.Abs("../../bin/eddy")
	must(t, err)
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), eddy, "node", "testnet", filepath.Join(dir, "chain"), "--validators", "1", "--observers", "1").Output()
	must(t, err)
	var homes, rpcs []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		homes, rpcs = append(homes, f[0]), append(rpcs, f[1])
		file := filepath.Join(f[0], "config", "config.toml")
		b, err := os.ReadFile(file)
		must(t, err)
		none := bytes.Replace(b, []byte("create_empty_blocks = true"), []byte("create_empty_blocks = false"), 1)
		if bytes.Equal(b, none) {
			t.Fatal("create_empty_blocks is not in config.toml")
		}
		must(t, os.WriteFile(file, none, 0o600))
	}
	start := func(name string, argv ...string) {
		p, err := lab.StartProcess(append([]string{eddy}, argv...), os.Environ(), filepath.Join(dir, name+".log"))
		must(t, err)
		t.Cleanup(func() { must(t, p.Stop(time.Minute)) })
	}
	sock := filepath.Join(dir, "s")
	start("validator", "node", "run", "--app", "ledger", "--home", homes[0])
	start("observer", "supervise", "--home", homes[1], "--socket", sock, "--", eddy, "node", "run", "--app", "ledger", "--home", homes[1])
	config := filepath.Join(dir, "eddy.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `cluster: rest
replica:
  home: %s
  rpc: %s
  witnesses: [%s]
  control: {supervise: %s, timeout: 90s, deadline: 5m}
store: {url: "file://%s/bucket"}
workdir: %s/work
drill: {command: [%s, node, run, --app, ledger, --home, "{home}"], blocks: 5, timeout: 1m}
`, homes[1], rpcs[1], rpcs[0], sock, dir, dir, eddy), 0o600))
	run := func(code int, args ...string) string {
		begun := time.Now()
		cmd := exec.CommandContext(t.Context(), eddy, append([]string{"-c", config}, args...)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
			t.Fatalf("eddy %v: %v, exit code %d is wanted\n%s", args, err, code, out)
		}
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("eddy %v took %s", args, took)
		}
		return string(out)
	}
	key := 0
	some := func(blocks int) {
		_, from, err := reach(rpcs[0])
		must(t, err)
		until(t, time.Minute, func() error {
			key++
			_ = send(t.Context(), rpcs[0], key, 100) // one that is lost is no harm
			_, at, err := reach(rpcs[1])
			if err == nil && at < from+blocks {
				err = fmt.Errorf("at %d, was at %d", at, from)
			}
			return err
		})
	}
	until(t, time.Minute, func() error { _, _, err := reach(rpcs[0]); return err })
	some(3)
	if said := run(0, "backup"); !strings.Contains(said, "attested: 1 of 1") {
		t.Error(said)
	}
	if said := run(3, "drill"); !strings.Contains(said, "not possible: not enough blocks: the chain has been at") {
		t.Error(said)
	}
	some(8)
	t.Log(run(0, "drill"))
}
