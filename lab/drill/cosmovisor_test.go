//go:build e2e

package drill

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The programs of a chain that upgrades itself after a second, as cosmovisor runs
// them.
const (
	before = `#!/bin/sh
if [ "$1" = status ]; then
  echo '{"SyncInfo":{"latest_block_height":"100"}}'
  exit
fi
sleep 1
echo '{"name":"v2","time":"0001-01-01T00:00:00Z","height":100,"info":""}' >"$DAEMON_HOME/data/upgrade-info.json"
exec sleep 60
`
	after = "#!/bin/sh\necho this is v2\n"
)

// A real cosmovisor calls the hook as the hook wants to be called. Without a backup to
// pin the upgrade goes on, unless one is required; either way it can be read why.
func TestCosmovisorCallsTheHook(t *testing.T) {
	cosmovisor := filepath.Join(os.Getenv("EDDY_LAB_WASMD"), "cosmovisor")
	for name, c := range map[string]struct {
		eddy, required, runs, said string
	}{
		"a backup is there":      {"#!/bin/sh\necho \"$@\" >>\"$DAEMON_HOME/calls\"\necho '{\"id\":\"'$(date -u +%Y%m%dT%H%M%SZ)'-auto-000000\"}'\n", "yes", "v2", "is pinned as upgrade-v2, 0 h old"},
		"none is":                {"#!/bin/sh\nexit 10\n", "no", "v2", "the upgrade goes on without"},
		"none is, one has to be": {"#!/bin/sh\nexit 10\n", "yes", "genesis", "the upgrade is held up"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			write := func(name, text string) {
				t.Helper()
				file := filepath.Join(home, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			hook, err := os.ReadFile("../../scripts/cosmovisor-preupgrade.sh")
			if err != nil {
				t.Fatal(err)
			}
			write("cosmovisor/cosmovisor-preupgrade.sh", string(hook))
			write("cosmovisor/genesis/bin/chaind", before)
			write("cosmovisor/upgrades/v2/bin/chaind", after)
			write("data/keep", "")
			write("eddy", c.eddy)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, cosmovisor, "run", "start")
			cmd.Env = append(os.Environ(), "DAEMON_HOME="+home, "DAEMON_NAME=chaind", "UNSAFE_SKIP_BACKUP=true", "DAEMON_POLL_INTERVAL=100ms", "NO_COLOR=1",
				"COSMOVISOR_CUSTOM_PREUPGRADE=cosmovisor-preupgrade.sh", "EDDY="+filepath.Join(home, "eddy"), "EDDY_PREUPGRADE_REQUIRED="+c.required)
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil || (err == nil) != (c.runs == "v2") {
				t.Fatalf("%v\n%s", err, out)
			}
			if current, err := os.Readlink(filepath.Join(home, "cosmovisor/current")); err != nil || filepath.Base(current) != c.runs {
				t.Errorf("it runs %s, %v\n%s", current, err, out)
			}
			if log, err := os.ReadFile(filepath.Join(home, "cosmovisor/preupgrade.log")); err != nil || !strings.Contains(string(log), c.said) {
				t.Errorf("the log: %s, %v", log, err)
			}
			if c.runs == "v2" && !strings.Contains(string(out), c.said) {
				t.Errorf("cosmovisor does not show %q:\n%s", c.said, out)
			}
			calls, err := os.ReadFile(filepath.Join(home, "calls"))
			if strings.Contains(c.eddy, "calls") && (err != nil || string(calls) != "keys backup\n--json pin height:100 --as upgrade-v2\n") {
				t.Errorf("eddy was called as %q, %v", calls, err)
			}
		})
	}
}
