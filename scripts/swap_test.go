package scripts_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// renames is how many a swap makes here: the marker, data aside and in, wasm aside
// and in.
const renames = 5

// A rename in the middle of the swap fails, is killed before and after it; all of
// them do with the tag lab.
func TestRestoreSwapInterrupted(t *testing.T) { testSwapInterrupted(t, 3) }

// testSwapInterrupted breaks a swap off at each of some renames. A failed one is
// taken back at once; after a kill the next run finishes, and the sign state is never
// lost.
func testSwapInterrupted(t *testing.T, at ...int) {
	for _, n := range at {
		for _, how := range []string{"fail", "kill before", "kill after"} {
			t.Run(fmt.Sprintf("%s %d", how, n), func(t *testing.T) {
				t.Parallel()
				b := newBackup(t, source)
				home := live(t)
				writeTree(t, home, map[string]string{"wasm/state/code": "old code"})
				before := tree(t, home)
				got := restore(t, faultyMv(t, n, how), "--store", "file://"+b.dir, "--cluster", cluster, "--home", home, "--yes")
				if got.code == 0 {
					t.Fatalf("exit code 0\n%s", got.output)
				}
				if how == "fail" {
					wantTree(t, home, before)
				}
				got = b.restore(t, home, "--yes")
				if how == "kill after" && n == renames {
					// The swap was over when it was killed: it stands.
					if got.code != 1 || !strings.Contains(got.output, "was restored here before") {
						t.Fatalf("second run: exit code %d\n%s", got.code, got.output)
					}
				} else if got.code != 0 {
					t.Fatalf("second run: exit code %d\n%s", got.code, got.output)
				}
				after := tree(t, home)
				for name, want := range source {
					if after[name] != want {
						t.Errorf("%s differs", name)
					}
				}
				for _, name := range []string{"data/old.db/CURRENT", "wasm/state/code", "data/priv_validator_state.json"} {
					if got := after[".eddy/before-"+id+"/"+name]; got != before[name] {
						t.Errorf("the old %s is %q, was %q", name, got, before[name])
					}
				}
				if got := after["data/priv_validator_state.json"]; got != before["data/priv_validator_state.json"] {
					t.Errorf("sign state %q", got)
				}
				if left, err := filepath.Glob(filepath.Join(home, ".eddy", "restore-*")); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			})
		}
	}
}

// faultyMv puts an mv into PATH whose nth call fails, or kills the script.
func faultyMv(t *testing.T, n int, how string) []string {
	t.Helper()
	dir := t.TempDir()
	real, err := exec.LookPath("mv")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "mv"), fmt.Sprintf(`#!/bin/sh
echo >>%[1]s/calls
if [ "$(wc -l <%[1]s/calls)" -eq %[2]d ]; then
  case "%[3]s" in
    fail) exit 1 ;;
    "kill before") kill -9 $PPID; exit 1 ;;
    "kill after") %[4]s "$@"; kill -9 $PPID; exit 1 ;;
  esac
fi
exec %[4]s "$@"
`, dir, n, how, real))
	if err := os.Chmod(filepath.Join(dir, "mv"), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
}
