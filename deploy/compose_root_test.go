//go:build root

package deploy_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The compose file as an operator runs it, beside a real engine: make e2e-docker.

// uid is NODE_USER.
const uid = 1000

type project struct {
	t   *testing.T
	dir string
	env []string
	cmd []string // compose
}

// newProject is deploy/compose, filled in, with the homes of a chain.
func newProject(t *testing.T) *project {
	t.Helper()
	eddy := os.Getenv("EDDY")
	if eddy == "" || os.Getenv("EDDY_LAB_DOCKER") == "" {
		t.Fatal("EDDY and EDDY_LAB_DOCKER are not set: run this with make e2e-docker")
	}
	dir, err := os.MkdirTemp("", "eddy-compose-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &project{t: t, dir: dir, cmd: []string{"docker-compose"}, env: append(os.Environ(),
		"EDDY_IMAGE=eddy-lab/eddy", "NODE_IMAGE=eddy-lab/eddy", fmt.Sprintf("NODE_USER=%d:%d", uid, uid))}
	if exec.Command("docker", "compose", "version").Run() == nil {
		p.cmd = []string{"docker", "compose"}
	}
	p.cmd = append(p.cmd, "--project-name", "e2e", "--file", "compose.yaml", "--file", "compose.test.yaml")
	importEddy(t, eddy)

	out, err := exec.Command(eddy, "node", "testnet", filepath.Join(dir, "net"), "--validators", "1", "--timeout-commit", "1s").Output()
	if err != nil {
		t.Fatal(err)
	}
	ports := regexp.MustCompile(`(\S+) http://127.0.0.1:(\d+) \w+@127.0.0.1:(\d+)`).FindAllStringSubmatch(string(out), -1)
	if len(ports) != 2 {
		t.Fatalf("testnet printed %q", out)
	}
	for i, name := range []string{"validator", "node"} {
		home, rpc, peer := ports[i][1], ports[i][2], ports[0][3]
		// In a container of its own each is reached by its service's name.
		p.edit(filepath.Join(home, "config/config.toml"),
			`tcp://127.0.0.1:`+rpc, "tcp://0.0.0.0:26657", `tcp://127.0.0.1:`+ports[i][3], "tcp://0.0.0.0:26656", "@127.0.0.1:"+peer, "@validator:26656")
		if err := os.Rename(home, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	// Not linked, so that it is copied in the hold: time enough to be hit in it.
	ballast := exec.Command("sh", "-c", "head -c 600M /dev/urandom >ballast")
	ballast.Dir = filepath.Join(dir, "node")
	if err := ballast.Run(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run", "state", "bucket"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"compose/compose.yaml": "compose.yaml", "compose/testdata/compose.test.yaml": "compose.test.yaml", "compose/eddy.yaml": "eddy.yaml"} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.edit(filepath.Join(dir, "eddy.yaml"), "cluster: CHANGE-ME", "cluster: e2e\ninclude: [ballast]", "http://CHANGE-ME", "http://validator",
		"s3://CHANGE-ME/eddy", "file:///bucket", `"@daily"`, `"@every 15s"`, "/node.sock}", "/node.sock, timeout: 5s, deadline: 10s}")
	err = os.WriteFile(filepath.Join(dir, "credentials.env"), nil, 0o600)
	err = errors.Join(err, filepath.Walk(dir, func(path string, _ os.FileInfo, werr error) error {
		return errors.Join(werr, os.Lchown(path, uid, uid))
	}))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *project) edit(file string, pairs ...string) {
	p.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(pairs); i += 2 {
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// importEddy makes an image of the binary alone, as the Dockerfile's last stage
// has it.
func importEddy(t *testing.T, eddy string) {
	t.Helper()
	bin, err := os.ReadFile(eddy)
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}),
		w.WriteHeader(&tar.Header{Name: "usr/local/bin/eddy", Mode: 0o755, Size: int64(len(bin)), Typeflag: tar.TypeReg}),
	)
	if err == nil {
		_, err = w.Write(bin)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker", "import", "--change", `ENTRYPOINT ["/usr/local/bin/eddy"]`, "--change", "USER 65532:65532", "-", "eddy-lab/eddy")
	cmd.Stdin = &image
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
}

func (p *project) compose(args ...string) (string, error) {
	argv := append(p.cmd[:len(p.cmd):len(p.cmd)], args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = p.dir, p.env
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("compose %s: %w: %s", args[0], err, errs.String())
	}
	return string(out), err
}

// eddy runs a verb in eddy's container.
func (p *project) eddy(args ...string) (string, error) {
	return p.compose(append([]string{"exec", "-T", "eddy", "/usr/local/bin/eddy", "--config", "/etc/eddy/eddy.yaml"}, args...)...)
}

// ready counts the READY backups.
func (p *project) ready() int {
	out, err := p.eddy("list", "--json")
	if err != nil {
		return 0
	}
	return strings.Count(out, `"status":"READY"`)
}

func (p *project) inspect(service, format string) string {
	out, err := exec.Command("docker", "inspect", "--format", format, "e2e_"+service+"_1").Output()
	if err != nil { // compose 2 writes it with dashes
		out, _ = exec.Command("docker", "inspect", "--format", format, "e2e-"+service+"-1").Output()
	}
	return strings.TrimSpace(string(out))
}

// supervised is what supervise says of the node.
type supervised struct {
	State string `json:"state"`
	Since string `json:"since"`
	Guard string `json:"guard"`
}

func (p *project) supervised() (supervised, error) {
	var answer struct{ Status supervised }
	conn, err := net.Dial("unix", filepath.Join(p.dir, "run/node.sock"))
	if err != nil {
		return answer.Status, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"format":1,"op":"status"}`+"\n"); err != nil {
		return answer.Status, err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return answer.Status, err
	}
	return answer.Status, json.Unmarshal(line, &answer)
}

func (p *project) eventually(within time.Duration, what string, ok func() bool) time.Duration {
	p.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > within {
			p.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

// processes are the machine's process ids of those whose command line holds all
// words.
func processes(words ...string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
next:
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, w := range words {
			if !bytes.Contains(b, []byte(w)) {
				continue next
			}
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestCompose(t *testing.T) {
	p := newProject(t)
	if out, err := p.compose("config", "--quiet"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	began := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := p.compose("logs", "--no-color", "--tail", "60")
			t.Logf("%s %v", logs, err)
		}
		if out, err := p.compose("down", "--volumes", "--timeout", "15"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	if out, err := p.compose("up", "--detach"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.eventually(2*time.Minute, "a READY backup", func() bool { return p.ready() > 0 })
	t.Logf("READY %s after compose up", time.Since(began))
	p.eventually(30*time.Second, "the node is healthy", func() bool { return p.inspect("node", "{{.State.Health.Status}}") == "healthy" })

	if out, err := p.eddy("restore", "latest", "--into", "/bucket/restored"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("cmp", filepath.Join(p.dir, "node/ballast"), filepath.Join(p.dir, "bucket/restored/ballast")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.freezeInHold()
	p.restartEngine()
}

// freezeInHold: an eddy that is frozen in the hold is killed by supervise, which
// sees it, and comes back.
func (p *project) freezeInHold() {
	t := p.t
	t.Helper()
	var before supervised
	p.eventually(time.Minute, "a hold", func() bool {
		s, err := p.supervised()
		if err == nil && s.State == "running" {
			before = s
		}
		return err == nil && s.State == "held"
	})
	pids := processes("eddy\x00run\x00--config")
	if len(pids) != 1 {
		t.Fatalf("eddy is %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s, err := p.supervised()
	if err != nil || s.State != "held" || s.Guard != "kill" {
		t.Fatalf("the hold was too short to be hit, or its holder is out of reach: %+v, %v", s, err)
	}
	took := p.eventually(13*time.Second, "the node runs again", func() bool {
		s, err := p.supervised()
		return err == nil && s.State == "running" && s.Since != before.Since
	})
	t.Logf("node runs %s after eddy froze (deadline 10s)", took)
	back := p.eventually(20*time.Second, "eddy is back", func() bool { return len(processes("eddy\x00run\x00--config")) == 1 })
	t.Logf("eddy is back %s after that", back)
}

// restartEngine: after it everything is there again, and works.
func (p *project) restartEngine() {
	t := p.t
	t.Helper()
	pids := processes("dockerd\x00", os.Getenv("EDDY_LAB_DOCKER")+"/data\x00")
	if len(pids) != 1 {
		t.Fatalf("the engine is %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.eventually(time.Minute, "the engine ends", func() bool {
		return errors.Is(syscall.Kill(pids[0], 0), syscall.ESRCH)
	})
	began := time.Now()
	p.eventually(time.Minute, "the node runs", func() bool {
		s, err := p.supervised()
		return err == nil && s.State == "running"
	})
	t.Logf("node runs %s after the engine ended", time.Since(began))
	p.eventually(time.Minute, "eddy runs", func() bool { return p.inspect("eddy", "{{.State.Running}}") == "true" })
	was := p.ready()
	p.eventually(2*time.Minute, "another READY backup", func() bool { return p.ready() > was })
	t.Logf("READY %s after the engine ended", time.Since(began))
}
