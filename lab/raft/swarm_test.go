//go:build e2e && root

package raft

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

const (
	swarmSecret  = "Seven of Nine"
	swarmNetwork = "Unimatrix-01"
	swarmConfigs = 20
)

// collective is a swarm of three managers, and an eddy on each machine.
type collective struct {
	t    *testing.T
	eddy string
	dir  string
	*lab.Swarm
	image []byte // a tar: show, which prints the secret
	env   []string
}

func newCollective(t *testing.T) *collective {
	t.Helper()
	c := &collective{t: t, eddy: os.Getenv("EDDY"), dir: t.TempDir()}
	if c.eddy == "" {
		t.Fatal("EDDY is not set: `make e2e-raft` does it")
	}
	var err error
	c.Swarm, err = lab.StartSwarm(t.Context(), "", 3)
	c.must(err)
	t.Cleanup(func() { c.must(c.Stop()) })
	c.image = c.showImage()
	c.must(os.Mkdir(filepath.Join(c.dir, "bucket"), 0o700))
	out := c.run(0, 0, "keys", "init", "--out", filepath.Join(c.dir, "id"))
	recipient := regexp.MustCompile(`age1[0-9a-z]+`).FindString(out)
	for i, h := range c.Hosts {
		argv := func(words []string) string { return `["` + strings.Join(words, `", "`) + `"]` }
		c.must(os.WriteFile(c.config(i), fmt.Appendf(nil, `cluster: unimatrix
replica:
  kind: swarm
  swarm: {data_root: %s/data, socket: %s/docker.sock}
  control: {exec: {stop: %s, start: %s, status: %s}, timeout: 60s, deadline: 5m}
store: {url: "file://%s/bucket"}
workdir: %s/state%d
encryption: {recipients: [%s]}
keys: {node: %s}
`, h.Dir, h.Dir, argv(h.Stop), argv(h.Start), argv(h.Status), c.dir, c.dir, i, recipient, h.Name), 0o600))
	}
	return c
}

func (c *collective) config(host int) string {
	return filepath.Join(c.dir, fmt.Sprintf("eddy%d.yaml", host))
}

func (c *collective) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// run runs eddy on a machine; it must end with the exit code.
func (c *collective) run(host, code int, args ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), 4*time.Minute)
	defer cancel()
	cmd := c.Hosts[host].Command(ctx, append([]string{c.eddy, "-c", c.config(host)}, args...)...)
	cmd.Env = append(os.Environ(), c.env...)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	c.t.Logf("eddy %v on %s: %.1f s", args, c.Hosts[host].Name, time.Since(began).Seconds())
	if got := cmd.ProcessState.ExitCode(); got != code {
		c.t.Fatalf("eddy %v on %s ended with %d (%v), not %d:\n%s", args, c.Hosts[host].Name, got, err, code, out)
	}
	return string(out)
}

func (c *collective) docker(host int, args ...string) string {
	c.t.Helper()
	out, err := c.Hosts[host].Docker(c.t.Context(), args...)
	c.must(err)
	return out
}

// fed is docker with something on stdin.
func (c *collective) fed(host int, in []byte, args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), "docker", append([]string{"--host", c.Hosts[host].Host()}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("docker %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (c *collective) await(what string, done func() bool) {
	c.t.Helper()
	c.t.Log("until " + what)
	for end := time.Now().Add(90 * time.Second); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("waited too long until %s", what)
		}
	}
}

// showImage is a program alone, for an engine without a registry.
func (c *collective) showImage() []byte {
	src := filepath.Join(c.dir, "show.go")
	c.must(os.WriteFile(src, []byte(`package main

import ("fmt"; "os"; "time")

func main() {
	b, err := os.ReadFile("/run/secrets/missing_drones")
	fmt.Printf("secret: %s %v\n", b, err)
	time.Sleep(time.Hour)
}
`), 0o600))
	cmd := exec.CommandContext(c.t.Context(), "go", "build", "-o", filepath.Join(c.dir, "show"), src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "show"))
	c.must(err)
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	c.must(w.WriteHeader(&tar.Header{Name: "show", Mode: 0o755, Size: int64(len(b))}))
	_, err = w.Write(b)
	c.must(err)
	c.must(w.Close())
	return image.Bytes()
}

// form makes the swarm and what is in it.
func (c *collective) form(autolock bool) {
	c.t.Helper()
	c.docker(0, "swarm", "init", "--advertise-addr", c.Hosts[0].Addr)
	token := c.docker(0, "swarm", "join-token", "-q", "manager")
	for i := 1; i < 3; i++ {
		c.docker(i, "swarm", "join", "--advertise-addr", c.Hosts[i].Addr, "--token", token, c.Hosts[0].Addr+":2377")
	}
	c.docker(0, "network", "create", "--driver", "overlay", swarmNetwork)
	c.fed(0, []byte(swarmSecret), "secret", "create", "missing_drones", "-")
	for i := range swarmConfigs {
		c.fed(0, fmt.Appendf(nil, "drone %d", i), "config", "create", fmt.Sprintf("drone%d", i), "-")
	}
	c.fed(2, c.image, "import", "-", "show:1")
	c.docker(0, "service", "create", "--detach", "--name", "first", "--constraint", "node.hostname==sw3", "--secret", "missing_drones", "show:1", "/show")
	if autolock {
		c.docker(0, "swarm", "update", "--autolock=true")
	}
	c.await("all managers are reachable", func() bool { return c.reachable(0) == 3 })
	c.await("the secret is printed", func() bool { return c.printed(0, "first") })
}

func (c *collective) printed(host int, service string) bool {
	out, err := c.Hosts[host].Docker(c.t.Context(), "service", "logs", "--raw", service)
	return err == nil && strings.Contains(out, "secret: "+swarmSecret+" <nil>")
}

// swarmNode is what is looked at of one.
type swarmNode struct {
	ID            string
	ManagerStatus *struct {
		Leader       bool
		Reachability string
	}
}

// nodes asks an engine itself, not by a program for each question.
func (c *collective) nodes(ctx context.Context, host int) (all []swarmNode, err error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.Hosts[host].Dir, "docker.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/nodes", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", resp.Status)
	}
	return all, json.NewDecoder(resp.Body).Decode(&all)
}

func (c *collective) reachable(host int) (n int) {
	all, _ := c.nodes(c.t.Context(), host)
	for _, m := range all {
		if m.ManagerStatus != nil && m.ManagerStatus.Reachability == "reachable" {
			n++
		}
	}
	return n
}

// load writes to the swarm, watches its leader, and asks the engine that is backed up
// for its containers, until stop is called.
func (c *collective) load() (stop func() (writes, looks, asked int)) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	var writes, looks, asked atomic.Int64
	wg.Go(func() {
		leader := ""
		for ctx.Err() == nil {
			all, err := c.nodes(ctx, 0)
			now := ""
			for _, m := range all {
				if m.ManagerStatus != nil && m.ManagerStatus.Leader {
					now += m.ID
				}
			}
			switch {
			case ctx.Err() != nil:
			case err != nil || now == "" || leader != "" && now != leader:
				c.t.Errorf("the leader was lost: %q after %q, %v", now, leader, err)
			default:
				leader = now
				looks.Add(1)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := c.Hosts[0].Docker(ctx, "node", "update", "--label-add", fmt.Sprintf("n=%d", i), "sw3"); err == nil {
				writes.Add(1)
			} else if ctx.Err() == nil {
				c.t.Errorf("a write was refused: %v", err)
			}
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			_, _ = c.Hosts[1].Docker(ctx, "ps", "-q") // it fails while the engine stands still
			asked.Add(1)
			time.Sleep(100 * time.Millisecond)
		}
	})
	return func() (int, int, int) {
		cancel()
		wg.Wait()
		return int(writes.Load()), int(looks.Load()), int(asked.Load())
	}
}

// hidden proves that nothing of the needles lies in the plain in bucket and workdirs.
func (c *collective) hidden(needles ...string) {
	c.t.Helper()
	c.must(filepath.WalkDir(c.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(path, "/bucket/") && !strings.Contains(path, "/state") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, n := range needles {
			if bytes.Contains(b, []byte(n)) {
				c.t.Errorf("%s lies in the plain in %s", n[:6]+"...", path)
			}
		}
		return err
	}))
}

var (
	stillFor = regexp.MustCompile(`node runs again after ([0-9.]+) s`)
	dumpIsAt = regexp.MustCompile(`the dump is at (index [0-9]+ of term [0-9]+)`)
)

func (c *collective) destroy() {
	c.t.Helper()
	for _, h := range c.Hosts {
		c.must(h.PowerOff(c.t.Context()))
	}
	for _, h := range c.Hosts {
		c.await("the data of "+h.Name+" are gone", func() bool { return os.RemoveAll(filepath.Join(h.Dir, "data")) == nil })
	}
}

// proven proves every object, and that the swarm goes on.
func (c *collective) proven(ids map[string]string) {
	c.t.Helper()
	for _, what := range []string{"secret", "network"} {
		name := map[string]string{"secret": "missing_drones", "network": swarmNetwork}[what]
		if got := c.docker(1, what, "inspect", "--format", "{{.ID}}", name); got != ids[what] {
			c.t.Errorf("%s %s is %s, it was %s", what, name, got, ids[what])
		}
	}
	for i := range swarmConfigs {
		if got := c.docker(1, "config", "inspect", "--format", "{{printf \"%s\" .Spec.Data}}", fmt.Sprintf("drone%d", i)); got != fmt.Sprintf("drone %d", i) {
			c.t.Errorf("config drone%d is %q", i, got)
		}
	}
	c.fed(1, c.image, "import", "-", "show:1")
	c.docker(1, "service", "create", "--detach", "--name", "again", "--secret", "missing_drones", "show:1", "/show")
	c.await("a task prints the secret", func() bool { return c.printed(1, "again") })
	c.fed(1, []byte("resistance is futile"), "config", "create", "after", "-")
	// A manager joins at the address that the log has, and the quorum stands.
	c.must(c.Hosts[0].PowerOn(c.t.Context()))
	c.docker(0, "swarm", "join", "--advertise-addr", c.Hosts[0].Addr, "--token", c.docker(1, "swarm", "join-token", "-q", "manager"), c.Hosts[1].Addr+":2377")
	c.await("a new manager is reachable", func() bool { return c.reachable(1) == 2 })
}

// drills proves that the backup lives apart from the swarm that lives.
func (c *collective) drills(id string) (seconds string) {
	c.t.Helper()
	c.env = append(c.env, "EDDY_REPLICA_SWARM_CANARY=drone7")
	began := time.Now()
	out := c.run(1, 0, "drill", "-i", id)
	seconds = fmt.Sprintf("%.1f", time.Since(began).Seconds())
	if want := fmt.Sprintf("%d configs, 1 secrets, 3 nodes", swarmConfigs); !strings.Contains(out, "DRILLED") || !strings.Contains(out, want) || !strings.Contains(out, "the canary is there; it takes writes") {
		c.t.Errorf("not %q:\n%s", want, out)
	}
	// Nothing of it is left, and the swarm has not noticed.
	c.await("all managers are reachable", func() bool { return c.reachable(0) == 3 })
	if _, err := os.Stat(filepath.Join(c.dir, "state1", "drill")); err == nil {
		c.t.Error("the copy is left")
	}
	return seconds
}

// drillsWrong proves that a copy that is not the dump fails.
func (c *collective) drillsWrong(id string) {
	c.t.Helper()
	engine := filepath.Join(c.dir, "engine")
	c.must(os.WriteFile(engine, []byte("#!/bin/sh\nrm -rf \"$1/swarm/raft\"\nroot=$1\nshift\nexec dockerd --data-root \"$root\" \"$@\"\n"), 0o700))
	c.env = append(c.env, "EDDY_DRILL_COMMAND="+engine+",{home}")
	if out := c.run(1, 15, "drill", "-i", id); !strings.Contains(out, "FAILED") {
		c.t.Error(out)
	}
}

func TestSwarmComesBack(t *testing.T) {
	for _, autolock := range []bool{false, true} {
		t.Run(fmt.Sprintf("autolock=%t", autolock), func(t *testing.T) {
			c := newCollective(t)
			c.form(autolock)
			ids := map[string]string{
				"secret":  c.docker(0, "secret", "inspect", "--format", "{{.ID}}", "missing_drones"),
				"network": c.docker(0, "network", "inspect", "--format", "{{.ID}}", swarmNetwork),
			}
			stop := c.load()
			said := c.run(1, 0, "backup")
			writes, looks, asked := stop()
			still, at := stillFor.FindStringSubmatch(said), dumpIsAt.FindStringSubmatch(said)
			if still == nil || at == nil || writes == 0 || looks == 0 || asked == 0 {
				t.Fatalf("%d writes, %d looks, %d asked:\n%s", writes, looks, asked, said)
			}
			if t.Failed() {
				t.Fatal(said)
			}
			needles := []string{swarmSecret}
			if autolock {
				needles = append(needles, c.docker(0, "swarm", "unlock-key", "-q"))
			}
			c.hidden(needles...)
			id := filepath.Join(c.dir, "id")
			if autolock {
				if out := c.run(1, 3, "drill", "-i", id); !strings.Contains(out, "not possible") {
					t.Errorf("a locked dump without its key:\n%s", out)
				}
				into := filepath.Join(c.dir, "keys")
				c.run(1, 0, "keys", "restore", "latest", "--into", into, "-i", id)
				c.env = []string{"EDDY_REPLICA_SWARM_UNLOCK_KEY_FILE=" + filepath.Join(into, "root/etc/eddy/swarm-unlock-key")}
			}
			drilled := c.drills(id)
			c.hidden(needles...)
			began := time.Now()
			c.destroy()
			out := c.run(1, 0, "restore", "latest", "-i", id, "--yes")
			back := time.Since(began)
			if autolock && !strings.Contains(out, "docker swarm update --autolock=true") {
				t.Errorf("nobody says that the swarm locks its managers no more:\n%s", out)
			}
			c.proven(ids)
			c.drillsWrong(id)
			c.hidden(needles...)
			kind := "swarm"
			if autolock {
				kind = "swarm with autolock"
			}
			fmt.Printf("e2e %s: stopped %s s, %s; %d writes and one leader meanwhile; all destroyed, back after %.1f s: %s, %d configs, a task prints missing_drones, writes accepted, a manager joins; drilled in %s s\n",
				kind, still[1], at[1], writes, back.Seconds(), swarmNetwork, swarmConfigs, drilled)
		})
	}
}

func TestSwarmGate(t *testing.T) {
	c := newCollective(t)
	c.form(false)
	refused := func(host int, want string) {
		t.Helper()
		if out := c.run(host, 12, "backup"); !strings.Contains(out, want) {
			t.Errorf("not %q:\n%s", want, out)
		}
	}
	refused(0, "the manager leads the swarm")
	refused(2, "stopping Docker stops these 1 containers, 1 of them tasks of the swarm: first.1.")

	c.docker(0, "node", "demote", "sw3")
	c.await("there are two managers", func() bool { return c.reachable(0) == 2 })
	refused(1, "a swarm with 2 managers stands still")
	c.docker(0, "node", "promote", "sw3")
	c.await("there are three managers", func() bool { return c.reachable(0) == 3 })

	c.must(c.Hosts[2].PowerOff(t.Context()))
	c.await("one is not reachable", func() bool { return c.reachable(0) == 2 })
	refused(1, "2 of 3 managers are reachable")
	c.must(c.Hosts[2].PowerOn(t.Context()))
	c.await("all are reachable", func() bool { return c.reachable(0) == 3 })

	// A locked manager is refused without its key, and unlocked with it.
	c.docker(0, "swarm", "update", "--autolock=true")
	key := c.docker(0, "swarm", "unlock-key", "-q")
	c.must(c.Hosts[1].PowerOff(t.Context()))
	c.must(c.Hosts[1].PowerOn(t.Context()))
	refused(1, "the manager is locked")
	file := filepath.Join(c.dir, "unlock")
	c.must(os.WriteFile(file, []byte(key), 0o600))
	c.env = []string{"EDDY_REPLICA_SWARM_UNLOCK_KEY_FILE=" + file}
	if out := c.run(1, 3, "backup"); !strings.Contains(out, "READY") {
		t.Error(out)
	}
	// Onto what lives nothing is restored.
	if out := c.run(1, 12, "restore", "latest", "-i", filepath.Join(c.dir, "id"), "--yes"); !strings.Contains(out, "the engine must stand still") {
		t.Error(out)
	}
	c.env = nil
	// Of a cluster that has lost its quorum what one member has is saved.
	c.must(c.Hosts[0].PowerOff(t.Context()))
	c.must(c.Hosts[2].PowerOff(t.Context()))
	refused(1, "")
	c.env = []string{"EDDY_REPLICA_SWARM_UNLOCK_KEY_FILE=" + file}
	out := c.run(1, 3, "backup", "--salvage", "--label", "lone")
	if !strings.Contains(out, "SALVAGED") || !dumpIsAt.MatchString(out) {
		t.Error(out)
	}
	fmt.Println("e2e swarm gate: leader, tasks, two managers, lost quorum, locked without its key are refused; a locked one is unlocked; a lone one salvaged")
}

// An eddy that is killed while the engine of a locked swarm stops, or stands still,
// leaves a guard that starts it, and has the key.
func TestSwarmGuardUnlocks(t *testing.T) {
	c := newCollective(t)
	c.form(true)
	cmd := c.Hosts[1].Command(t.Context(), c.eddy, "-c", c.config(1), "backup")
	c.must(cmd.Start())
	c.await("the engine is told to stop", func() bool {
		_, err := os.Stat(filepath.Join(c.Hosts[1].Dir, "up"))
		return err != nil
	})
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	c.must(err)
	killed := 0
	for _, name := range names {
		b, err := os.ReadFile(name)
		if argv := strings.Split(string(b), "\x00"); err == nil && argv[0] == c.eddy && strings.Contains(string(b), c.config(1)) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			c.must(err)
			c.must(syscall.Kill(pid, syscall.SIGKILL))
			killed++
		}
	}
	if killed != 1 {
		t.Fatalf("%d eddys were killed", killed)
	}
	_ = cmd.Wait()
	began := time.Now()
	c.await("the leader does not reach it", func() bool { return c.reachable(0) == 2 })
	c.await("the manager is back and unlocked", func() bool { return c.reachable(0) == 3 && c.reachable(1) == 3 })
	c.hidden(swarmSecret, c.docker(0, "swarm", "unlock-key", "-q"))
	fmt.Printf("e2e swarm guard: eddy killed as the engine stopped, manager back and unlocked after %.1f s\n", time.Since(began).Seconds())
	c.run(1, 3, "backup") // it says that an earlier one died
}
