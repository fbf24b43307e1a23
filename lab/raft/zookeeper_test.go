//go:build e2e

package raft

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/eddy-backup/eddy/lab"
)

const (
	zkSecret = "Seven of Nine, tertiary adjunct of Unimatrix 01"
	zkNodes  = 400
	zkVoters = 3 // servers 1 to 3; 4 is an observer
)

// zks are the servers of one ensemble on loopback, each a child of the test, which
// eddy stops and starts by commands.
type zks struct {
	t      *testing.T
	eddy   string
	dir    string
	client [zkVoters + 2]int // ports, by number
	recip  string

	mu    sync.Mutex
	procs map[int]*lab.Process
}

func (c *zks) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *zks) home(n int) string { return filepath.Join(c.dir, fmt.Sprintf("zk%d", n)) }

const zkClasses = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar:/usr/share/java/jetty9-server.jar:/usr/share/java/jetty9-servlet.jar"

func newZks(t *testing.T) *zks {
	c := &zks{t: t, eddy: os.Getenv("EDDY"), dir: t.TempDir(), procs: map[int]*lab.Process{}}
	if _, err := os.Stat("/usr/share/java/zookeeper.jar"); err != nil || c.eddy == "" {
		t.Fatalf("ZooKeeper is not installed, or EDDY is not set: `make e2e-raft-short` sees to both (%v)", err)
	}
	var ports []int
	for range 3 * (zkVoters + 1) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		c.must(err)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		defer l.Close()
	}
	servers := ""
	for n := 1; n <= zkVoters+1; n++ {
		p := ports[3*(n-1):]
		c.client[n] = p[0]
		role := "participant"
		if n > zkVoters {
			role = "observer"
		}
		servers += fmt.Sprintf("server.%d=127.0.0.1:%d:%d:%s;127.0.0.1:%d\n", n, p[1], p[2], role, p[0])
	}
	out := c.run("keys", "init", "--out", filepath.Join(c.dir, "id"))
	c.recip = regexp.MustCompile(`age1[a-z0-9]+`).FindString(out)
	for n := 1; n <= zkVoters+1; n++ {
		home := c.home(n)
		for _, d := range []string{"data", "log", "work"} {
			c.must(os.MkdirAll(filepath.Join(home, d), 0o700))
		}
		c.must(os.WriteFile(filepath.Join(home, "data", "myid"), fmt.Appendf(nil, "%d\n", n), 0o600))
		conf := fmt.Sprintf("tickTime=500\ninitLimit=20\nsyncLimit=10\nsnapCount=100\nadmin.enableServer=false\ndataDir=%[1]s/data\ndataLogDir=%[1]s/log\n", home)
		if n > zkVoters {
			conf += "peerType=observer\n"
		}
		c.must(os.WriteFile(filepath.Join(home, "zoo.cfg"), []byte(conf+servers), 0o600))
		for name, body := range map[string]string{
			"start":  "touch want; for i in $(seq 200); do [ -e want ] || exit 0; sleep 0.05; done; exit 1",
			"stop":   "kill -TERM $(cat pid)",
			"status": "case $(sed -n 's/^State:.\\(.\\).*/\\1/p' /proc/$(cat pid)/status 2>/dev/null) in ''|Z|X) exit 3;; esac",
		} {
			c.must(os.WriteFile(filepath.Join(home, name), []byte("#!/bin/sh\ncd "+home+"\n"+body+"\n"), 0o700))
		}
		c.must(os.WriteFile(filepath.Join(home, "eddy.yaml"), fmt.Appendf(nil, `cluster: lab
replica:
  kind: zookeeper
  zookeeper: {config: %[1]s/zoo.cfg}
  control: {exec: {stop: [%[1]s/stop], start: [%[1]s/start], status: [%[1]s/status]}}
encryption: {recipients: [%[2]s]}
store: {url: "file://%[3]s/bucket"}
workdir: %[1]s/work
`, home, c.recip, c.dir), 0o600))
	}
	c.must(os.MkdirAll(filepath.Join(c.dir, "bucket"), 0o700))
	done, kept := make(chan struct{}), make(chan struct{})
	go c.keep(done, kept)
	t.Cleanup(func() {
		close(done)
		<-kept
		for n := 1; n <= zkVoters+1; n++ {
			c.kill(n)
		}
	})
	return c
}

// keep starts the servers that eddy wants started: so they end with the test.
func (c *zks) keep(done, kept chan struct{}) {
	defer close(kept)
	for {
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
		}
		for n := 1; n <= zkVoters+1; n++ {
			want := filepath.Join(c.home(n), "want")
			if _, err := os.Stat(want); err == nil {
				if err := c.start(n); err != nil {
					c.t.Error(err)
				}
				os.Remove(want)
			}
		}
	}
}

func (c *zks) start(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	white := "-Dzookeeper.4lw.commands.whitelist=srvr,hash"
	if n > zkVoters {
		white = "-Dunused=1" // the backup node does with what it has
	}
	p, err := lab.StartProcess(
		[]string{"nice", "java", "-Xmx96m", white, "-cp", zkClasses, "org.apache.zookeeper.server.quorum.QuorumPeerMain", filepath.Join(c.home(n), "zoo.cfg")},
		os.Environ(), filepath.Join(c.home(n), "server.log"))
	if err != nil {
		return err
	}
	c.procs[n] = p
	return os.WriteFile(filepath.Join(c.home(n), "pid"), strconv.AppendInt(nil, int64(p.Pid()), 10), 0o600)
}

func (c *zks) kill(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.procs[n] != nil {
		_ = c.procs[n].Stop(0) // it says that it was killed
		delete(c.procs, n)
	}
}

// run runs eddy, which must succeed, and returns what it printed, stderr last.
func (c *zks) run(args ...string) string {
	c.t.Helper()
	out, code := c.exits(args...)
	if code != 0 {
		c.t.Fatalf("eddy %q: exit code %d\n%s", args, code, out)
	}
	return out
}

func (c *zks) exits(args ...string) (string, int) {
	cmd := exec.Command(c.eddy, args...)
	var out, say bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &say
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return out.String() + say.String(), cmd.ProcessState.ExitCode()
}

// on runs eddy as it is configured beside a server.
func (c *zks) on(n int, args ...string) []string {
	return append([]string{"-c", filepath.Join(c.home(n), "eddy.yaml")}, args...)
}

func (c *zks) addr(n int) string { return fmt.Sprintf("127.0.0.1:%d", c.client[n]) }

// mode is what a server says it is; "" where it serves nobody.
func (c *zks) mode(n int) string {
	conn, err := net.DialTimeout("tcp", c.addr(n), 2*time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(conn, "srvr")
	b, _ := io.ReadAll(conn)
	_, mode, _ := strings.Cut(string(b), "Mode: ")
	mode, _, _ = strings.Cut(mode, "\n")
	return mode
}

// leader waits until so many servers serve, with one leader.
func (c *zks) leader(serve int) int {
	c.t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		leader, leaders, n := 0, 0, 0
		for i := 1; i <= zkVoters+1; i++ {
			switch c.mode(i) {
			case "":
				continue
			case "leader":
				leader = i
				leaders++
			}
			n++
		}
		if n == serve && leaders == 1 {
			return leader
		}
		if time.Now().After(end) {
			c.t.Fatalf("%d servers serve, %d lead", n, leaders)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}

func (c *zks) connect(n int) *zk.Conn {
	c.t.Helper()
	conn, _, err := zk.Connect([]string{c.addr(n)}, 10*time.Second, zk.WithLogger(quiet{}))
	c.must(err)
	return conn
}

func zkValue(path string) []byte { return []byte(path + ": " + zkSecret) }

// load writes until it is told to end, and counts what was acknowledged.
func (c *zks) load(n int, stop chan struct{}, acked *atomic.Int64) error {
	conn := c.connect(n)
	defer conn.Close()
	for i := int64(0); ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		path := fmt.Sprintf("/load/%06d", i)
		if _, err := conn.Create(path, zkValue(path), 0, zk.WorldACL(zk.PermAll)); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		acked.Store(i + 1)
	}
}

// proven compares every node on a server with what was written, and returns how many
// there are. At least so many of the load must be there, without a gap.
func (c *zks) proven(n int, load int64) int64 {
	c.t.Helper()
	conn := c.connect(n)
	defer conn.Close()
	_, err := conn.Sync("/")
	c.must(err)
	same := func(path string) {
		b, _, err := conn.Get(path)
		if err != nil || !bytes.Equal(b, zkValue(path)) {
			c.t.Fatalf("server %d: %s is %q, %v", n, path, b, err)
		}
	}
	for i := range zkNodes {
		same(fmt.Sprintf("/base/%06d", i))
	}
	names, _, err := conn.Children("/load")
	c.must(err)
	if int64(len(names)) < load {
		c.t.Fatalf("server %d: %d nodes of the load, %d were there before the backup", n, len(names), load)
	}
	for i := range names {
		same(fmt.Sprintf("/load/%06d", i))
	}
	path := fmt.Sprintf("/after-%d", n)
	if _, err := conn.Create(path, zkValue(path), 0, zk.WorldACL(zk.PermAll)); err != nil {
		c.t.Fatalf("server %d takes no writes: %v", n, err)
	}
	same(path)
	return int64(zkNodes + len(names))
}

// watch counts the looks at the ensemble, and those without its one leader.
func (c *zks) watch(leader int, stop chan struct{}, looks, without *atomic.Int64) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		looks.Add(1)
		if c.mode(leader) != "leader" {
			without.Add(1)
		}
	}
}

func (c *zks) wipe() {
	for n := 1; n <= zkVoters+1; n++ {
		c.kill(n)
		for _, d := range []string{"data", "log"} {
			for _, sub := range []string{"version-2", ".eddy"} {
				c.must(os.RemoveAll(filepath.Join(c.home(n), d, sub)))
			}
		}
	}
}

// begin starts the servers and writes the nodes under /base.
func (c *zks) begin() (leader, follower, third int) {
	c.t.Helper()
	for n := 1; n <= zkVoters+1; n++ {
		c.must(c.start(n))
	}
	leader = c.leader(zkVoters + 1)
	follower, third = leader%zkVoters+1, (leader+1)%zkVoters+1
	conn := c.connect(follower)
	for _, dir := range []string{"/base", "/load"} {
		_, err := conn.Create(dir, nil, 0, zk.WorldACL(zk.PermAll))
		c.must(err)
	}
	for i := range zkNodes {
		path := fmt.Sprintf("/base/%06d", i)
		_, err := conn.Create(path, zkValue(path), 0, zk.WorldACL(zk.PermAll))
		c.must(err)
	}
	conn.Close()
	return leader, follower, third
}

func TestZookeeper(t *testing.T) {
	c := newZks(t)
	begun := time.Now()
	leader, follower, third := c.begin()

	// A backup of the observer, under load; nobody loses the leader.
	out := c.run(c.on(4, "doctor")...)
	if !strings.Contains(out, "3 of 3 other servers can be asked") {
		t.Error(out)
	}
	var acked, looks, without atomic.Int64
	stop := make(chan struct{})
	var busy sync.WaitGroup
	var wrote error
	busy.Go(func() { wrote = c.load(follower, stop, &acked) })
	busy.Go(func() { c.watch(leader, stop, &looks, &without) })
	time.Sleep(2 * time.Second)
	before := acked.Load()
	out = c.run(c.on(4, "backup")...)
	ready := regexp.MustCompile(`READY (\S+): lab at (zxid 0x[0-9a-f]+), .*node held ([0-9.]+) s`).FindStringSubmatch(out)
	if ready == nil {
		t.Fatal(out)
	}
	time.Sleep(time.Second)
	close(stop)
	busy.Wait()
	if wrote != nil || without.Load() > 0 || looks.Load() < 20 || acked.Load() <= before {
		t.Fatalf("%v; %d of %d looks without the leader; %d nodes before, %d after", wrote, without.Load(), looks.Load(), before, acked.Load())
	}
	c.leader(zkVoters + 1)
	var one struct {
		Manifest struct{ Attested, Opened string }
	}
	shown, _ := c.exits(c.on(4, "show", "--json", "latest")...)
	err := json.NewDecoder(strings.NewReader(shown)).Decode(&one)
	m := one.Manifest
	if err != nil || m.Attested != "3 of 3" || m.Opened != "all" {
		t.Errorf("%+v, %v\n%s", m, err, shown)
	}
	c.noPlain()

	// The gate, on the living ensemble.
	refused := func(n int, want string) {
		t.Helper()
		if out, code := c.exits(c.on(n, "backup")...); code != 12 || !strings.Contains(out, want) {
			t.Fatalf("server %d: exit code %d\n%s", n, code, out)
		}
	}
	refused(leader, "it is the leader")
	c.run(c.on(follower, "backup", "--label", "follower")...)
	c.leader(zkVoters + 1)
	c.kill(third)
	refused(follower, "2 of 3 voters serve")
	c.run(c.on(4, "backup", "--dry-run")...) // an observer costs nothing, even then
	c.kill(leader)
	for end := time.Now().Add(time.Minute); c.mode(follower) != "" && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	refused(follower, "--salvage")
	out, code := c.exits(c.on(follower, "backup", "--salvage", "--label", "last-one")...)
	if code != 3 || !strings.Contains(out, "SALVAGED ") {
		t.Fatalf("salvage: exit code %d\n%s", code, out)
	}
	// One that is down stays down.
	out, code = c.exits(c.on(third, "backup", "--salvage", "--label", "dead-one")...)
	if code != 3 || !strings.Contains(out, "SALVAGED ") || c.mode(third) != "" {
		t.Fatalf("salvage of a server that is down: exit code %d\n%s", code, out)
	}

	// All is lost, and comes back from the backup that was made under load.
	c.wipe()
	restore := func(n int, more ...string) []string {
		return c.on(n, append([]string{"restore", ready[1], "-i", filepath.Join(c.dir, "id"), "--yes"}, more...)...)
	}
	c.must(c.start(3))
	c.lives(3)
	if out, code := c.exits(restore(1)...); code != 12 || !strings.Contains(out, "server 3 still answers") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	c.wipe()
	for n := 1; n <= zkVoters; n++ {
		if out := c.run(restore(n)...); !strings.Contains(out, "start all of them together") {
			t.Fatal(out)
		}
	}
	if out, code := c.exits(restore(2)...); code != 12 || !strings.Contains(out, "--overwrite-live") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	c.run(restore(2, "--overwrite-live")...)
	for n := 1; n <= zkVoters+1; n++ { // the observer, empty, fetches all from the leader
		c.must(c.start(n))
	}
	c.leader(zkVoters + 1)
	var nodes int64
	for n := 1; n <= zkVoters+1; n++ {
		nodes = c.proven(n, before)
	}
	c.noPlain()
	c.run(c.on(4, "backup", "--new-incarnation")...)
	canary := filepath.Join(c.dir, "canary")
	c.must(os.WriteFile(canary, []byte("#!/bin/sh\n"+`exec 2>&1; /bin/bash -c 'exec 3<>/dev/tcp/127.0.0.1/${EDDY_DRILL_ADDRESS#*:}; printf srvr >&3; cat <&3' | grep -q standalone`+"\n"), 0o700))
	t.Setenv("EDDY_DRILL_CHECK", canary)
	drilled := c.run(c.on(4, "drill", ready[1], "-i", filepath.Join(c.dir, "id"))...)
	if !strings.Contains(drilled, "no digest that differs from the leader's; drill.check agrees") {
		t.Error(drilled)
	}
	c.noPlain()
	fmt.Printf("e2e zookeeper: observer stopped %s s under load at %s, leader seen in %d of %d looks; %d nodes proven on each of 4 servers, writes taken by each; attested %s, drilled; %s in all\n",
		ready[3], ready[2], looks.Load()-without.Load(), looks.Load(), nodes, m.Attested, time.Since(begun).Round(time.Second))
}

// lives waits until a server listens at all.
func (c *zks) lives(n int) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if conn, err := net.Dial("tcp", c.addr(n)); err == nil {
			conn.Close()
			return
		}
	}
	c.t.Fatalf("server %d does not come up", n)
}

// noPlain looks for what was written where it must not lie in the plain: bucket,
// workdirs and stages.
func (c *zks) noPlain() {
	c.t.Helper()
	places := []string{filepath.Join(c.dir, "bucket")}
	for n := 1; n <= zkVoters+1; n++ {
		places = append(places, filepath.Join(c.home(n), "work"), filepath.Join(c.home(n), "data", ".eddy"))
	}
	for _, dir := range places {
		err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !e.Type().IsRegular() || strings.Contains(p, "/before-") {
				return err
			}
			b, err := os.ReadFile(p)
			if bytes.Contains(b, []byte("Unimatrix")) {
				c.t.Errorf("%s holds it in the plain", p)
			}
			return err
		})
		c.must(err)
	}
}
