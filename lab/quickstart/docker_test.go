//go:build root

package quickstart

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// nodeUser is NODE_USER of the page.
const nodeUser = 1000

// dockerHost is a machine with an engine: the page's node image and bucket are
// there, and another chain that it can join.
type dockerHost struct {
	t      *testing.T
	engine *lab.Docker
	dir    string // of the page's reader; below it bin, etc and the bucket
}

func newDockerHost(t *testing.T) *dockerHost {
	t.Helper()
	eddy, servers := os.Getenv("EDDY"), os.Getenv("EDDY_LAB_BIN")
	if eddy == "" || servers == "" {
		t.Fatal("EDDY and EDDY_LAB_BIN must name what `make e2e-docker` has made")
	}
	engine, err := lab.StartDocker(t.Context(), "")
	must(t, err)
	t.Cleanup(func() { must(t, engine.Stop()) })
	h := &dockerHost{t, engine, t.TempDir()}
	for _, d := range []string{"bin", "etc", "etc.work", "lib", "lib.work", "home", "s3/backups", "tls"} {
		must(t, os.MkdirAll(h.at(d), 0o755))
	}
	must(t, os.Chmod(h.dir, 0o755))
	key, cert := certificate(t, store)
	must(t, os.WriteFile(h.at("tls/key.pem"), key, 0o600))
	must(t, os.WriteFile(h.at("tls/cert.pem"), cert, 0o644))
	must(t, os.Symlink(eddy, h.at("bin/eddy")))
	// Debian 12 has compose 1, which is a program of its own and does not look
	// whether there is a terminal. Root needs no sudo.
	h.program("docker", `
if [ "$1" = compose ] && ! /usr/bin/docker compose version >/dev/null 2>&1; then
  shift
  if [ "$1" = run ]; then shift; set -- run -T "$@"; fi
  exec docker-compose "$@"
fi
exec /usr/bin/docker "$@"`)
	h.program("sudo", `exec "$@"`)

	// What the reader's machine has of its own is written beside this one's.
	h.run(`
mount -t overlay overlay -o lowerdir=/etc,upperdir=$PWD/etc,workdir=$PWD/etc.work /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=$PWD/lib,workdir=$PWD/lib.work /var/lib
ln -s ` + h.engine.Dir + `/docker.sock /run/docker.sock
cat tls/cert.pem >>/etc/ssl/certs/ca-certificates.crt
printf '%s ` + store + `\n' ` + storeIP + ` >>/etc/hosts
for ip in ` + strings.Join(witnesses, " ") + ` ` + storeIP + `; do ip address add $ip/32 dev lo; done
`)
	h.image("eddy", `["/usr/local/bin/eddy"]`, map[string]string{"usr/local/bin/eddy": eddy, "etc/ssl/certs/ca-certificates.crt": h.at("tls/cert.pem")})
	self, err := os.Executable()
	must(t, err)
	h.image("gaia:v25", `[]`, map[string]string{"usr/local/bin/eddy": eddy, "usr/local/bin/gaiad": self})

	newChain(t, eddy, h.at("chain"), "gaia-lab-1", 2, 26657, 26656)
	give(t, h.at("chain"), nodeUser)
	h.run(`
docker run --detach --network host --volume ` + servers + `:/servers:ro --volume $PWD/tls:/tls:ro --volume $PWD/s3:/s3 \
  --env ROOT_ACCESS_KEY=` + keyID + ` --env ROOT_SECRET_KEY=` + keyValue + ` gaia:v25 \
  /servers/versitygw --quiet --port ` + storeIP + `:443 --cert /tls/cert.pem --key /tls/key.pem --region us-east-1 posix /s3
for v in 0 1; do
  docker run --detach --network host --user ` + fmt.Sprint(nodeUser) + ` --volume $PWD/chain/validator-$v:/home gaia:v25 gaiad start --home /home
done
`)
	return h
}

func (h *dockerHost) at(name string) string { return filepath.Join(h.dir, name) }

func (h *dockerHost) program(name, text string) {
	must(h.t, os.WriteFile(h.at("bin/"+name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
}

// command is bash on that machine, as its root.
func (h *dockerHost) command(ctx context.Context, dir, script string) *exec.Cmd {
	cmd := h.engine.Command(ctx, "env", "--chdir="+dir, "bash", "-c", "set -euo pipefail\n"+script)
	cmd.Env = []string{
		"PATH=" + h.at("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + h.at("home"), "LANG=C.UTF-8",
		"COMPOSE_FILE=compose.yaml:compose.test.yaml",
	}
	return cmd
}

func (h *dockerHost) run(script string) string {
	h.t.Helper()
	out, err := h.command(h.t.Context(), h.dir, script).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// image makes one of files alone.
func (h *dockerHost) image(name, entrypoint string, files map[string]string) {
	h.t.Helper()
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	must(h.t, w.WriteHeader(&tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}))
	for to, from := range files {
		b, err := os.ReadFile(from)
		must(h.t, err)
		must(h.t, w.WriteHeader(&tar.Header{Name: to, Mode: 0o755, Size: int64(len(b)), Typeflag: tar.TypeReg}))
		_, err = w.Write(b)
		must(h.t, err)
	}
	must(h.t, w.Close())
	cmd := h.command(h.t.Context(), h.dir, "docker import --change 'ENTRYPOINT "+entrypoint+"' --change 'ENV PATH=/usr/local/bin' - "+name)
	cmd.Stdin = &image
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("docker import: %v\n%s", err, out)
	}
}

// follows waits until a node is at the head of the chain.
func (h *dockerHost) follows(url string) {
	h.t.Helper()
	height := func(url string) (n int64) {
		out, err := h.command(h.t.Context(), h.dir, "curl --silent --fail --max-time 5 "+url+"/status").Output()
		var s struct {
			Result struct {
				SyncInfo struct {
					Height int64 `json:"latest_block_height,string"`
				} `json:"sync_info"`
			}
		}
		if err == nil {
			err = json.Unmarshal(out, &s)
		}
		if err != nil {
			return -1
		}
		return s.Result.SyncInfo.Height
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if own, chain := height(url), height("http://"+witnesses[0]+":26657"); own > 3 && own >= chain-1 {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("%s does not follow the chain:\n%s", url, h.run("docker ps --all; for c in $(docker ps --all --quiet); do docker logs --tail 20 $c 2>&1; done"))
		}
	}
}

// typeBlock types a block of the page and returns what it printed.
func (h *dockerHost) typeBlock(b block, dir string) string {
	h.t.Helper()
	var said strings.Builder
	cmd := h.command(h.t.Context(), dir, b.Text)
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	err := cmd.Run()
	h.t.Logf("%s%d: %s (%.1f s)\n%s", mark, b.Line, b.Heading, time.Since(began).Seconds(), said.String())
	if err != nil {
		h.t.Fatal(err)
	}
	return said.String()
}

// TestDocker types docs/quickstart-docker.md as it stands there, on a machine with
// a real engine. Between the blocks it does what the page tells in words.
func TestDocker(t *testing.T) {
	page := readPage(t, "quickstart-docker.md")
	if len(page) != 4 {
		t.Fatalf("%d blocks", len(page))
	}
	h := newDockerHost(t)

	// With supervise.
	compose := h.at("compose")
	must(t, os.CopyFS(compose, os.DirFS("../../deploy/compose")))
	must(t, os.WriteFile(filepath.Join(compose, "compose.test.yaml"), []byte("services: {eddy: {extra_hosts: [\""+store+":"+storeIP+"\"]}}\n"), 0o644))
	h.typeBlock(page[0], compose)
	must(t, os.Remove(filepath.Join(compose, "node")))
	must(t, os.Rename(h.at("chain/observer-0"), filepath.Join(compose, "node"))) // "move yours there"
	t.Cleanup(func() {
		if out, err := h.command(context.WithoutCancel(t.Context()), compose, "docker compose down --volumes --timeout 15").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	h.typeBlock(page[1], compose)
	node := strings.TrimSpace(h.run(`docker ps --filter label=com.docker.compose.service=node --format '{{.ID}}'`))
	address := strings.TrimSpace(h.run(`docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' ` + node))
	h.follows("http://" + address + ":26657") // "When the node follows its chain"
	said := h.typeBlock(page[2], compose)
	warned(t, said, "retention")
	isBack(t, newest(t, h.at("s3/"+bucket+"/eddy/gaia-main")), filepath.Join(compose, "state/restored"))
	if out := h.run(`docker ps --filter label=com.docker.compose.service=eddy --format '{{.Status}}'`); !strings.HasPrefix(out, "Up ") {
		t.Errorf("the daemon is %q", out)
	}

	// With the engine.
	h.run(`
install -D -m 600 /dev/stdin $HOME/.aws/credentials <<'END'
[default]
aws_access_key_id = ` + keyID + `
aws_secret_access_key = ` + keyValue + `
END
docker run --detach --name gaia --user ` + fmt.Sprint(nodeUser) + ` --restart unless-stopped --stop-timeout 180 \
  --publish 127.0.0.1:26657:26657 --volume $PWD/chain/observer-1:/home/gaia/.gaia gaia:v25 gaiad start --home /home/gaia/.gaia
`)
	h.follows("http://127.0.0.1:26657")
	said = h.typeBlock(page[3], h.dir)
	for _, want := range []string{
		"found  home        " + h.at("chain/observer-1") + "  (--home of container gaia, which is /home/gaia/.gaia there)",
		"found  rpc         http://127.0.0.1:26657  (the port that container gaia publishes)",
		"found  witness     http://" + witnesses[0] + ":26657", "found  witness     http://" + witnesses[1] + ":26657",
		"READY",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("config init did not print %q", want)
		}
	}
	warned(t, said, "retention")
	newest(t, h.at("s3/"+bucket+"/eddy/gaia-lab-1"))
	if out := h.run("docker inspect --format '{{.State.Running}} {{.RestartCount}}' gaia"); out != "true 0\n" {
		t.Errorf("afterwards the container is %s", out)
	}
	h.follows("http://127.0.0.1:26657")
}

// warned tells what doctor warned of: this, nothing else, and it failed nothing. That
// a node which was just started has not caught up is not what a page is about.
func warned(t *testing.T, said string, names ...string) {
	t.Helper()
	for line := range strings.Lines(said) {
		level, rest, _ := strings.Cut(strings.TrimRight(line, "\n"), "  ")
		name, _, _ := strings.Cut(rest, ":")
		switch {
		case level == "FAIL":
			t.Error(line)
		case level == "WARN" && name == "caught up":
		case level == "WARN" && (len(names) == 0 || names[0] != name):
			t.Errorf("doctor warns of %s, want %q", line, names)
		case level == "WARN":
			names = names[1:]
		}
	}
	if len(names) > 0 {
		t.Errorf("doctor does not warn of %q", names)
	}
}
