//go:build e2e

package drill

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// size is how large the observer's data is to be, in bytes: SIZE in MB, or 1 GB.
func size(t *testing.T) int64 {
	n, err := strconv.ParseInt(os.Getenv("SIZE"), 10, 64)
	if os.Getenv("SIZE") == "" {
		n, err = 1000, nil
	}
	must(t, err)
	return n * 1_000_000
}

// TestDrillOfALargeChain: its time is printed, and no process and no file is left. A
// port is open for as long as a process has it.
func TestDrillOfALargeChain(t *testing.T) {
	eddy, err := filepath.Abs("../../bin/eddy")
	must(t, err)
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), eddy, "node", "testnet", filepath.Join(dir, "chain"), "--validators", "1", "--observers", "1", "--load").Output()
	must(t, err)
	var homes, rpcs []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		homes, rpcs = append(homes, f[0]), append(rpcs, f[1])
	}
	start := func(name string, argv ...string) {
		p, err := lab.StartProcess(append([]string{eddy}, argv...), os.Environ(), filepath.Join(dir, name+".log"))
		must(t, err)
		t.Cleanup(func() { must(t, p.Stop(time.Minute)) })
	}
	sock := filepath.Join(dir, "s")
	start("validator", "node", "run", "--home", homes[0])
	start("observer", "supervise", "--home", homes[1], "--socket", sock, "--", eddy, "node", "run", "--home", homes[1])
	data := filepath.Join(homes[1], "data")
	fill(t, rpcs[0], data, size(t))
	config := filepath.Join(dir, "eddy.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `cluster: large
replica:
  home: %s
  rpc: %s
  witnesses: [%s]
  control: {supervise: %s, timeout: 90s, deadline: 5m}
store: {url: "file://%s/bucket"}
workdir: %s/work
drill: {command: [%s, node, run, --home, "{home}"], timeout: 10m}
`, homes[1], rpcs[1], rpcs[0], sock, dir, dir, eddy), 0o600))
	b, err := exec.CommandContext(t.Context(), eddy, "-c", config, "backup").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go trickle(ctx, rpcs[0])
	cmd := exec.CommandContext(t.Context(), eddy, "-c", config, "drill")
	var report, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &report, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, report.String(), said.String())
	}
	t.Log(report.String())
	if found := left(t, filepath.Join(dir, "work")); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}

// fill sends transactions of half a megabyte until the data has that size.
func fill(t *testing.T, rpc, data string, size int64) {
	t.Helper()
	begun := time.Now()
	for n := 0; du(t, data) < size; n++ {
		if time.Since(begun) > 15*time.Minute {
			t.Fatalf("the data has %d bytes after %s", du(t, data), time.Since(begun))
		}
		if err := send(t.Context(), rpc, n, 500_000); err != nil { // a full mempool, a node that starts
			time.Sleep(500 * time.Millisecond)
		}
	}
	t.Logf("grown within %s", time.Since(begun).Round(time.Second))
}

// trickle keeps the chain busy while it is drilled.
func trickle(ctx context.Context, rpc string) {
	for n := 0; ctx.Err() == nil; n++ {
		_ = send(ctx, rpc, n, 1000) // one that is lost is no harm
		time.Sleep(100 * time.Millisecond)
	}
}

func send(ctx context.Context, rpc string, n, size int) error {
	value := make([]byte, size/2)
	rand.Read(value) // never fails since Go 1.24
	tx := fmt.Appendf(nil, "key-%d-%d=%x", size, n, value)
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": map[string]string{"tx": base64.StdEncoding.EncodeToString(tx)}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, rpc, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && bytes.Contains(b, []byte(`"error"`)) {
		err = fmt.Errorf("%.200s", b)
	}
	return err
}

// du is the size of all files below a directory that may change meanwhile.
func du(t *testing.T, dir string) (n int64) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if fi, err := e.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	}))
	return n
}

// left is what a drill has left: files, its note, and processes, known by their
// environment.
func left(t *testing.T, work string) (found []string) {
	t.Helper()
	for _, name := range []string{"drill", "drill.json"} {
		if _, err := os.Lstat(filepath.Join(work, name)); err == nil {
			found = append(found, name)
		}
	}
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, file := range all {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte("EDDY_DRILL_HOME="+work)) {
			found = append(found, file)
		}
	}
	return found
}
