//go:build root

package quickstart

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// newChain writes the homes of a chain into a directory: validator-0 and
// validator-1, which are reached at the addresses of the pages' witnesses, and
// observers, hidden as the pages have it. Nothing runs yet.
func newChain(t *testing.T, eddy, dir, id string, observers, rpcPort, peerPort int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), eddy, "node", "testnet", dir, "--validators", "2", "--observers", fmt.Sprint(observers), "--chain-id", id, "--timeout-commit", "1s")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(t, err)
	homes := regexp.MustCompile(`(\S+) http://(\S+) \w+@(\S+)\n`).FindAllStringSubmatch(string(out), -1)
	if len(homes) != 2+observers {
		t.Fatalf("testnet printed %q", out)
	}
	var everywhere []string
	for i, h := range homes[:2] {
		everywhere = append(everywhere, h[2], fmt.Sprintf("%s:%d", witnesses[i], rpcPort), h[3], fmt.Sprintf("%s:%d", witnesses[i], peerPort))
	}
	for _, h := range homes {
		port := strings.TrimPrefix(h[3], "127.0.0.1:")
		edit(t, filepath.Join(h[1], "config/config.toml"), append(everywhere,
			h[2], fmt.Sprintf("0.0.0.0:%d", rpcPort), h[3], fmt.Sprintf("127.0.0.1:%d", peerPort), "0.0.0.0:"+port, fmt.Sprintf("0.0.0.0:%d", peerPort))...)
	}
}

// edit replaces in a file: old, new, old, new.
func edit(t *testing.T, file string, pairs ...string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte(strings.NewReplacer(pairs...).Replace(string(b))), 0o600))
}

// give makes a tree somebody's.
func give(t *testing.T, dir string, uid int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	}))
}
