//go:build root

package quickstart

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// backup is what a bucket says of one.
type backup struct {
	dir      string // of its objects, on this machine
	Position struct {
		Index uint64 `json:"index"`
	} `json:"position"`
}

// newest finds the newest backup in the directory of a cluster.
func newest(t *testing.T, cluster string) backup {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cluster, "data/*/manifest.json"))
	must(t, err)
	if len(found) == 0 {
		t.Fatal("there is no manifest in the bucket")
	}
	file := found[len(found)-1] // ids begin with the time
	b := backup{dir: filepath.Dir(file)}
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(text, &b))
	if b.Position.Index == 0 {
		t.Fatalf("%s tells no height", file)
	}
	return b
}

// isBack compares what was restored into a directory with the archive's own list:
// the same files, the same bytes, no key and no sign state.
func isBack(t *testing.T, b backup, dir string) {
	t.Helper()
	sums, err := os.Open(filepath.Join(b.dir, "SHA256SUMS.zst"))
	must(t, err)
	defer sums.Close()
	check := exec.CommandContext(t.Context(), "bash", "-c", `set -euo pipefail
zstd -dc >"$1"; sha256sum --strict --quiet --check "$1"; wc --lines <"$1"; find . -type f | wc --lines`, "bash", filepath.Join(t.TempDir(), "sums"))
	check.Dir, check.Stdin = dir, sums
	out, err := check.CombinedOutput()
	if err != nil {
		t.Fatalf("the restored files are not those of the archive: %v\n%s", err, out)
	}
	if n := strings.Fields(string(out)); len(n) != 2 || n[0] != n[1] || n[0] == "0" {
		t.Errorf("listed and restored files: %v", n)
	}
	secret, err := exec.CommandContext(t.Context(), "find", dir, "-name", "*_key*", "-o", "-name", "priv_validator*").Output()
	if err != nil || len(secret) != 0 {
		t.Errorf("keys or sign states were restored: %s(%v)", secret, err)
	}
}
