//go:build e2e

package raft

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

const planted = "We are the Borg, Seven of Nine"

// consuls are three servers on loopback, with ACLs that deny.
type consuls struct {
	t     *testing.T
	bin   string
	dir   string
	token string // that the configuration gives to all rights
	http  [3]string
	port  [3][4]int // http, server, serf LAN, serf WAN
	procs [3]*lab.Process
}

func newConsuls(t *testing.T) *consuls {
	c := &consuls{t: t, bin: os.Getenv("EDDY_LAB_CONSUL"), dir: t.TempDir()}
	if c.bin == "" {
		t.Fatal("EDDY_LAB_CONSUL names no consul: make e2e-raft sets it")
	}
	for i := range c.port {
		for j := range c.port[i] {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer l.Close()
			c.port[i][j] = l.Addr().(*net.TCPAddr).Port
		}
		c.http[i] = fmt.Sprintf("http://127.0.0.1:%d", c.port[i][0])
	}
	t.Cleanup(func() {
		for i := range c.procs {
			c.kill(i)
		}
	})
	return c
}

// start starts a server; fresh ones have nothing. Its raft has patience: with a
// multiplier of 1 a busy machine elects a new leader.
func (c *consuls) start(i int) {
	data := filepath.Join(c.dir, fmt.Sprint("data", i))
	conf := map[string]any{
		"server": true, "bootstrap_expect": 3, "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "data_dir": data, "node_name": fmt.Sprint("server-", i),
		"ports":       map[string]int{"http": c.port[i][0], "server": c.port[i][1], "serf_lan": c.port[i][2], "serf_wan": c.port[i][3], "dns": -1, "grpc": -1, "grpc_tls": -1},
		"retry_join":  []string{fmt.Sprintf("127.0.0.1:%d", c.port[0][2]), fmt.Sprintf("127.0.0.1:%d", c.port[1][2])},
		"performance": map[string]int{"raft_multiplier": 3}, "connect": map[string]bool{"enabled": false}, "disable_update_check": true,
		"acl": map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]string{"initial_management": c.token, "agent": c.token}},
	}
	b, err := json.Marshal(conf)
	must(c.t, err)
	file := filepath.Join(c.dir, fmt.Sprint("server", i, ".json"))
	must(c.t, os.WriteFile(file, b, 0o600))
	c.procs[i], err = lab.StartProcess([]string{c.bin, "agent", "-config-file=" + file}, []string{"HOME=" + c.dir}, filepath.Join(c.dir, fmt.Sprint("log", i)))
	must(c.t, err)
}

func (c *consuls) kill(i int) {
	if c.procs[i] != nil {
		_ = c.procs[i].Stop(0) // it says that it was killed
		c.procs[i] = nil
	}
}

// fresh starts three servers with nothing, and another token.
func (c *consuls) fresh(token string) {
	for i := range c.procs {
		c.kill(i)
		must(c.t, os.RemoveAll(filepath.Join(c.dir, fmt.Sprint("data", i))))
	}
	c.token = token
	for i := range c.procs {
		c.start(i)
	}
	c.led()
}

// led waits until all servers know the same leader and take the token.
func (c *consuls) led() {
	c.t.Helper()
	until := time.Now().Add(90 * time.Second)
	for {
		last, ok := "", true
		for i := range c.http {
			leader := c.leader(i)
			_, code := c.call(i, http.MethodGet, "/v1/acl/token/self", nil)
			ok = ok && leader != "" && (last == "" || last == leader) && code == 200
			last = leader
		}
		if ok {
			return
		}
		if time.Now().After(until) {
			c.t.Fatalf("no leader: %q", last)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (c *consuls) call(i int, method, path string, body []byte) (string, int) {
	req, err := http.NewRequest(method, c.http[i]+path, bytes.NewReader(body))
	must(c.t, err)
	req.Header.Set("X-Consul-Token", c.token)
	resp, err := client.Do(req)
	if err != nil {
		return err.Error(), 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error(), 0
	}
	return string(b), resp.StatusCode
}

func (c *consuls) must(i int, method, path string, body []byte) string {
	c.t.Helper()
	out, code := c.call(i, method, path, body)
	if code != 200 {
		c.t.Fatalf("%s %s: %d %s", method, path, code, out)
	}
	return out
}

// leader is who leads by the word of one server; "": nobody.
func (c *consuls) leader(i int) string {
	out, code := c.call(i, http.MethodGet, "/v1/status/leader", nil)
	leader := ""
	if code == 200 {
		_ = json.Unmarshal([]byte(out), &leader)
	}
	return leader
}

// follower is a server that does not lead.
func (c *consuls) follower() int {
	leader := c.leader(0)
	for i := range c.port {
		if leader != fmt.Sprintf("127.0.0.1:%d", c.port[i][1]) {
			return i
		}
	}
	c.t.Fatal("all lead")
	return 0
}

// operator types eddy's commands.
type operator struct {
	t    *testing.T
	dir  string
	conf string
	all  bytes.Buffer // whatever it printed
}

func newOperator(t *testing.T, yaml string) *operator {
	o := &operator{t: t, dir: t.TempDir()}
	o.conf = filepath.Join(o.dir, "eddy.yaml")
	out := o.run(0, "keys", "init", "--out", filepath.Join(o.dir, "id"))
	to := ""
	for _, w := range strings.Fields(out) {
		if strings.HasPrefix(w, "age1") {
			to = w
		}
	}
	o.write(yaml + fmt.Sprintf("encryption: {recipients: [%s]}\nstore: {url: \"file://%s/bucket\"}\nworkdir: %s/state\n", to, o.dir, o.dir))
	return o
}

func (o *operator) write(yaml string) { must(o.t, os.WriteFile(o.conf, []byte(yaml), 0o600)) }

func (o *operator) point(from, to string) {
	b, err := os.ReadFile(o.conf)
	must(o.t, err)
	o.write(strings.ReplaceAll(string(b), from, to))
}

// run runs eddy, which must end with this code, and returns what it printed.
func (o *operator) run(want int, args ...string) string {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv("EDDY"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + o.dir, "EDDY_CONFIG=" + o.conf}
	out, err := cmd.CombinedOutput()
	o.all.Write(out)
	if got := cmd.ProcessState.ExitCode(); got != want {
		o.t.Fatalf("eddy %s: exit code %d, want %d (%v)\n%s", strings.Join(args, " "), got, want, err, out)
	}
	return string(out)
}

// hides asserts that no file of bucket and workdir holds a word, and that eddy has
// never printed one.
func (o *operator) hides(words ...string) {
	o.t.Helper()
	err := filepath.WalkDir(o.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Dir(path) == o.dir { // what the operator wrote
			return err
		}
		b, err := os.ReadFile(path)
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) {
				o.t.Errorf("%s holds %q", path, w)
			}
		}
		return err
	})
	must(o.t, err)
	for _, w := range words {
		if bytes.Contains(o.all.Bytes(), []byte(w)) {
			o.t.Errorf("eddy printed %q", w)
		}
	}
}

// show is what `eddy show` has of a backup.
func (o *operator) show(sel string) (m struct {
	ID          string
	Class       string
	Incarnation string
	Position    struct {
		Index, Epoch uint64
		Consistency  string
	}
	Check struct {
		Proven map[string]int64
	}
},
) {
	o.t.Helper()
	must(o.t, json.Unmarshal([]byte(o.run(0, "show", sel)), &m))
	return m
}

func TestConsul(t *testing.T) {
	const first, second = "aaaaaaaa-1111-4111-8111-000000000001", "bbbbbbbb-2222-4222-8222-000000000002"
	c := newConsuls(t)
	c.fresh(first)
	keys := map[string]string{"secret/drones": planted}
	for i := range 400 {
		keys[fmt.Sprintf("app/%03d", i)] = strings.Repeat(fmt.Sprint("value ", i, " "), 20)
	}
	for k, v := range keys {
		c.must(c.follower(), http.MethodPut, "/v1/kv/"+k, []byte(v))
	}
	c.must(0, http.MethodPut, "/v1/catalog/register", []byte(`{"Node":"outside","Address":"10.1.2.3","Service":{"Service":"unimatrix","Port":1}}`))
	var made struct{ SecretID string }
	must(t, json.Unmarshal([]byte(c.must(0, http.MethodPut, "/v1/acl/token", []byte(`{"Policies":[{"Name":"global-management"}]}`))), &made))
	time.Sleep(time.Second) // longer than a follower lags

	tokens := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(tokens, []byte(made.SecretID+"\n"), 0o600))
	at := c.http[c.follower()]
	o := newOperator(t, fmt.Sprintf("cluster: unimatrix\nreplica:\n  kind: consul\n  consul: {address: %q, token_file: %s}\n", at, tokens))
	words := []string{planted, first, second, made.SecretID}
	if out := o.run(0, "doctor"); !strings.Contains(out, "3 of 3 servers reachable") || !strings.Contains(out, ", 0 FAIL") {
		t.Errorf("doctor:\n%s", out)
	}

	// The backup, under load; nobody ever sees no leader, or another one.
	stop, ended, lead := make(chan struct{}), sync.WaitGroup{}, c.leader(0)
	var writes, polls atomic.Int64
	for i := range c.http {
		ended.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if got := c.leader(i); got != lead {
					t.Errorf("server %d says that %q leads, %q did", i, got, lead)
				}
				polls.Add(1)
				if _, code := c.call(i, http.MethodPut, fmt.Sprintf("/v1/kv/load/%d/%d", i, n), []byte("x")); code == 200 {
					writes.Add(1)
				}
			}
		})
	}
	time.Sleep(time.Second)
	begun := time.Now()
	o.run(0, "backup", "--label", "under-load")
	took := time.Since(begun)
	close(stop)
	ended.Wait()
	m := o.show("latest")
	if m.Position.Consistency != "bounded" || m.Position.Epoch == 0 || m.Check.Proven["keys"] < int64(len(keys)) || m.Check.Proven["ACL tokens"] < 2 {
		t.Errorf("the backup: %+v", m)
	}
	o.hides(words...)
	o.run(0, "verify", "latest", "--read-data")

	// It lives, in a server that nobody knows, and what is left of that is nothing.
	b, err := os.ReadFile(o.conf)
	must(t, err)
	o.write(string(b) + fmt.Sprintf("drill: {command: [%s, agent, \"-config-dir={home}\"], check: [%s, kv, get, secret/drones], timeout: 2m}\n", c.bin, c.bin))
	drilled := o.run(0, "drill", "-i", filepath.Join(o.dir, "id"))
	if !strings.Contains(drilled, "DRILLED") || !strings.Contains(drilled, "as many keys as the snapshot has; it takes writes; drill.check succeeded") {
		t.Errorf("drill:\n%s", drilled)
	}
	if got := c.leader(0); got != lead {
		t.Errorf("behind the drill %q leads, %q did", got, lead)
	}
	o.hides(words...)

	// Who answers, and who may ask.
	o.point("token_file", "mode: consistent, token_file")
	o.run(0, "backup", "--label", "strict")
	if got := o.show("label:strict"); got.Position.Consistency != "linearizable" {
		t.Errorf("mode consistent: %+v", got)
	}
	o.point("mode: consistent, token_file", "token_file")
	must(t, os.WriteFile(tokens, []byte("00000000-0000-4000-8000-000000000009"), 0o600))
	if out := o.run(12, "backup"); !strings.Contains(out, "acl:write") {
		t.Errorf("a wrong token: %s", out)
	}
	must(t, os.WriteFile(tokens, []byte(made.SecretID), 0o600))
	must(t, os.Chmod(tokens, 0o640))
	if out := o.run(12, "backup"); !strings.Contains(out, "chmod 600") {
		t.Errorf("a token that others may read: %s", out)
	}
	must(t, os.Chmod(tokens, 0o600))
	bits := flipped(t, c, o, at)
	standins := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "pebbledb lab", "-run", "^TestSuiteOnConsul$", "./observer/consul")
	standins.Dir, standins.Env = "../..", append(os.Environ(), "EDDY_LAB_CONSUL_ADDRESS="+at, "EDDY_LAB_CONSUL_TOKEN="+first)
	if out, err := standins.CombinedOutput(); err != nil {
		t.Errorf("the suite of the stand-ins, on the real one: %v\n%s", err, out)
	}
	newest := o.show("latest")

	// One server of three is left: no backup, but a salvage that never is the latest.
	left := c.follower()
	for i := range c.procs {
		if i != left {
			c.kill(i)
		}
	}
	o.point(at, c.http[left])
	for until := time.Now().Add(time.Minute); c.leader(left) != "" && time.Now().Before(until); {
		time.Sleep(100 * time.Millisecond)
	}
	if out := o.run(12, "backup"); !strings.Contains(out, "no server leads") {
		t.Errorf("without a quorum: %s", out)
	}
	lone := regexp.MustCompile(`\d{8}T\d{6}Z-alone-[0-9a-f]{6}`).FindString(o.run(0, "backup", "--salvage", "--label", "alone"))
	alone := o.show(lone)
	if alone.Class != "salvage" || alone.Position.Consistency != "stale-unbounded" || alone.Position.Index < newest.Position.Index {
		t.Errorf("the salvage: %+v", alone)
	}
	if got := o.show("latest"); got.ID != newest.ID {
		t.Errorf("latest is %s, it was %s", got.ID, newest.ID)
	}
	o.run(12, "restore", "latest", "-i", filepath.Join(o.dir, "id"), "--yes") // into what has no leader

	// All of it is destroyed.
	c.fresh(second)
	must(t, os.WriteFile(tokens, []byte(second), 0o600))
	o.run(16, "restore", "label:under-load", "-i", filepath.Join(o.dir, "id"))
	if out := c.must(0, http.MethodGet, "/v1/catalog/services", nil); strings.Contains(out, "unimatrix") {
		t.Error("it was restored without a confirmation")
	}
	back := time.Now()
	out := o.run(0, "restore", "label:under-load", "-i", filepath.Join(o.dir, "id"), "--yes")
	backIn := time.Since(back)
	if !strings.Contains(out, "tokens of the backup are valid again") {
		t.Errorf("restore:\n%s", out)
	}
	o.hides(words...)
	c.token = made.SecretID // one of the backup's
	prove := func() {
		t.Helper()
		for i := range c.http {
			for k, v := range keys {
				if got := c.must(i, http.MethodGet, "/v1/kv/"+k+"?raw", nil); got != v {
					t.Fatalf("server %d: %s is %q", i, k, got)
				}
			}
			c.must(i, http.MethodPut, fmt.Sprint("/v1/kv/after/", i), []byte("new"))
		}
		if out := c.must(0, http.MethodGet, "/v1/catalog/services", nil); !strings.Contains(out, "unimatrix") {
			t.Errorf("services: %s", out)
		}
	}
	prove()
	must(t, os.WriteFile(tokens, []byte(made.SecretID), 0o600))
	// Its index is below that of the newest backup: that this is right must be said.
	if out := o.run(12, "backup"); !strings.Contains(out, "--new-incarnation") {
		t.Errorf("a cluster that went back: %s", out)
	}
	o.run(0, "backup", "--label", "after", "--new-incarnation")
	c.must(0, http.MethodPut, "/v1/kv/after/all", nil)
	time.Sleep(time.Second)
	o.run(0, "backup", "--label", "onwards")
	if got := o.show("latest"); !strings.Contains(got.ID, "onwards") || got.Incarnation != "dc1+1" || got.Position.Index <= m.Position.Index {
		t.Errorf("after the restore: %+v", got)
	}

	// What lives is replaced only when that is said, and is kept.
	if out := o.run(12, "restore", "label:under-load", "-i", filepath.Join(o.dir, "id"), "--yes"); !strings.Contains(out, "not fresh") {
		t.Errorf("onto a cluster that lives: %s", out)
	}
	o.run(0, "restore", "label:under-load", "-i", filepath.Join(o.dir, "id"), "--yes", "--overwrite-live")
	if _, code := c.call(0, http.MethodGet, "/v1/kv/after/0", nil); code != 404 {
		t.Errorf("a key that was written after the backup is still there: %d", code)
	}
	kept, err := filepath.Glob(filepath.Join(o.dir, "state", "before-restore-*.snap.age"))
	if err != nil || len(kept) != 1 {
		t.Errorf("what was there was not kept: %v %v", kept, err)
	}
	prove()
	o.hides(words...)
	fmt.Printf("consul 1.21.5: stopped 0 s, index %d of term %d (%s) in %s, restored in %s; %d leader polls and %d writes meanwhile, same leader; %d keys, service and tokens proven on 3 servers, writes accepted; %d of %d flipped bits found; drilled\n",
		m.Position.Index, m.Position.Epoch, m.Position.Consistency, took.Round(10*time.Millisecond), backIn.Round(10*time.Millisecond), polls.Load(), writes.Load(), len(keys), bits, bits)
}

// flipped backs up through a proxy that flips one bit of each snapshot.
func flipped(t *testing.T, c *consuls, o *operator, at string) int {
	target, err := url.Parse(at)
	must(t, err)
	var offset atomic.Int64
	p := httputil.NewSingleHostReverseProxy(target)
	p.ModifyResponse = func(r *http.Response) error {
		if r.Request.URL.Path != "/v1/snapshot" {
			return nil
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		i := 10 + int(offset.Load())%(len(b)-10) // behind gzip's header, which says nothing of the content
		b[i] ^= 1 << rand.IntN(8)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := &http.Server{Handler: p}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	through := "http://" + l.Addr().String()
	o.point(at, through)
	defer o.point(through, at)
	const times = 12
	for i := range times {
		offset.Store(rand.Int64N(1 << 40))
		if i == 0 {
			offset.Store(-1 + 1<<40)
		}
		c.must(0, http.MethodPut, fmt.Sprint("/v1/kv/flip/", i), nil) // or nothing would have changed
		time.Sleep(time.Second)                                       // longer than a follower lags
		if out := o.run(15, "backup"); !strings.Contains(out, "not sound") {
			t.Errorf("offset %d: %s", offset.Load(), out)
		}
	}
	return times
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
