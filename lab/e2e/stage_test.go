//go:build e2e

package e2e

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
	"github.com/eddy-backup/eddy/lab/chain"
	"github.com/eddy-backup/eddy/lab/grow"
)

const (
	grown      = 400_000_000 // bytes of databases before the backup
	grownAgain = 400_000_000 // bytes written to them while eddy is frozen
	loadTime   = 2 * time.Minute
	volumeMiB  = 64
)

// TestStageUnderLoad freezes eddy when the node runs again and the stage is
// sealed, lets node and databases be written for minutes, and finds every bit of
// the stage as it was. Then eddy goes on, and stock tools restore its volumes.
func TestStageUnderLoad(t *testing.T) {
	eddy, err := filepath.Abs("../../bin/eddy")
	if err != nil {
		t.Fatal(err)
	}
	for _, engine := range []string{"goleveldb", "pebbledb"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			stageUnderLoad(t, eddy, engine)
		})
	}
}

func stageUnderLoad(t *testing.T, eddy, engine string) {
	dir := t.TempDir()
	c, err := chain.New(t.Context(), chain.Options{Eddy: eddy, Dir: filepath.Join(dir, "chain"), Engine: engine, Every: 5 * time.Millisecond})
	must(t, err)
	more := grow.Options{Dir: filepath.Join(c.Home, "data"), Engine: engine, Prefix: "grown-", Size: grown, Seed: 1}
	must(t, os.MkdirAll(more.Dir, 0o700))
	_, err = grow.Run(t.Context(), more)
	must(t, err)
	store, err := lab.StartS3(t.Context(), lab.S3Options{Dir: dir})
	must(t, err)
	t.Cleanup(func() { must(t, store.Stop()) })
	t.Cleanup(func() { must(t, c.Stop()) })
	must(t, c.Start(t.Context()))

	b := startBackup(t, eddy, dir, c, store)
	id := b.until("sealed")
	must(t, b.cmd.Process.Signal(syscall.SIGSTOP))
	stage := filepath.Join(c.Home, ".eddy", id)
	before, linked := hashes(t, stage), links(t, stage)
	if len(before) < 50 || linked == 0 {
		t.Fatalf("%d files in the stage, %d of them the node's own still: the data is too small for this test", len(before), linked)
	}
	height, err := c.Height(t.Context())
	must(t, err)
	began := time.Now()
	more.More, more.Size, more.Seed = true, grownAgain, 2
	_, err = grow.Run(t.Context(), more)
	must(t, err)
	time.Sleep(loadTime - time.Since(began))
	later, err := c.Height(t.Context())
	must(t, err)
	still := links(t, stage)
	if later < height+30 || still >= linked {
		t.Fatalf("height %d to %d, %d of %d linked files are still the node's: too little happened", height, later, still, linked)
	}
	same(t, "the stage", before, hashes(t, stage))
	t.Logf("%d blocks later: %d of %d linked files were removed by the node, all %d files of the stage are as they were", later-height, linked-still, linked, len(before))

	must(t, b.cmd.Process.Signal(syscall.SIGCONT))
	b.until("summary")
	must(t, b.cmd.Wait())
	volumes := filepath.Join(store.Data, store.Bucket, "e2e", "data", id)
	if names, err := filepath.Glob(filepath.Join(volumes, "vol-*.tar.zst")); err != nil || len(names) < grown/2/(volumeMiB<<20) {
		t.Fatalf("%d volumes (%v)", len(names), err)
	}
	back := filepath.Join(dir, "back")
	must(t, os.Mkdir(back, 0o700))
	run(t, volumes, `for v in vol-*; do zstd -tq "$v"; zstd -l "$v" >/dev/null; done`)
	run(t, volumes, `cat vol-* | zstd -dc | tar -x -C "$1"`, back)
	run(t, back, `zstd -dc "$1/SHA256SUMS.zst" | sha256sum --strict --quiet -c`, volumes)
	same(t, "what stock tools restored", before, hashes(t, back))
}

// backup is an `eddy backup --json` under way.
type backup struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startBackup(t *testing.T, eddy, dir string, c *chain.Chain, store *lab.S3) *backup {
	config := filepath.Join(dir, "eddy.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `cluster: e2e
replica:
  kind: cometbft
  home: %q
  rpc: %q
  witnesses: [%q]
  control: {supervise: %q, timeout: 120s, deadline: 10m}
store: {url: "s3://%s", endpoint: %q, region: %q}
backup: {volume_size: %dMiB}
workdir: %q
`, c.Home, c.RPC, c.ValidatorRPC, c.Socket, store.Bucket, store.Endpoint, store.Region, volumeMiB, filepath.Join(dir, "work")), 0o600))
	cmd := exec.Command(eddy, "backup", "--config", config, "--json")
	cmd.Env, cmd.Stderr = store.Environ(os.Environ()), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &backup{t: t, cmd: cmd, lines: bufio.NewScanner(out)}
}

// until reads events up to a phase, or a message of that type, and returns the
// backup's id.
func (b *backup) until(what string) (id string) {
	said := ""
	for b.lines.Scan() {
		said += b.lines.Text() + "\n"
		var e struct {
			MessageType string `json:"message_type"`
			Phase       string
			ID          string
		}
		must(b.t, json.Unmarshal(b.lines.Bytes(), &e))
		if e.Phase == what || e.MessageType == what {
			return e.ID
		}
	}
	b.t.Fatalf("eddy ended before %q (%v):\n%s", what, b.lines.Err(), said)
	return ""
}

// hashes are the sha256 of all files below a directory, without eddy's own.
func hashes(t *testing.T, dir string) map[string]string {
	out := map[string]string{}
	walk(t, dir, func(path string, fi fs.FileInfo) {
		f, err := os.Open(path)
		must(t, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		must(t, err)
		must(t, f.Close())
		out[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%x", h.Sum(nil))
	})
	return out
}

// links counts the files that have another name yet: the node's.
func links(t *testing.T, dir string) (n int) {
	walk(t, dir, func(_ string, fi fs.FileInfo) {
		if fi.Sys().(*syscall.Stat_t).Nlink > 1 {
			n++
		}
	})
	return n
}

func walk(t *testing.T, dir string, file func(path string, fi fs.FileInfo)) {
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == ".eddy":
			return fs.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		fi, err := e.Info()
		if err == nil {
			file(path, fi)
		}
		return err
	}))
}

func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for name, sum := range want {
		if got[name] != sum {
			t.Errorf("%s: %s is not as it was", what, name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d files, want %d", what, len(got), len(want))
	}
}

func run(t *testing.T, dir, script string, args ...string) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-c", "set -euo pipefail; " + script, "bash"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
