//go:build e2e

package raft

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// etcds are members of one cluster on loopback.
type etcds struct {
	t     *testing.T
	eddy  string
	bin   string // directory of etcd, etcdutl, etcdctl
	dir   string
	names []string
	ports map[string][2]int // client, peer
	procs map[string]*lab.Process
	more  []string // flags of etcd
	tls   bool     // client URLs are https
}

const (
	etcdSecret = "Seven of Nine, tertiary adjunct of Unimatrix 01"
	etcdKeys   = 400
)

func newEtcds(t *testing.T, names ...string) *etcds {
	c := &etcds{t: t, eddy: os.Getenv("EDDY"), bin: os.Getenv("EDDY_LAB_ETCD"), dir: t.TempDir(), names: names, ports: map[string][2]int{}, procs: map[string]*lab.Process{}}
	if c.bin == "" || c.eddy == "" {
		t.Fatal("EDDY or EDDY_LAB_ETCD are not set: `make e2e-raft` does it")
	}
	for _, n := range names {
		var p [2]int
		for i := range p {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			c.must(err)
			p[i] = l.Addr().(*net.TCPAddr).Port
			defer l.Close()
		}
		c.ports[n] = p
	}
	t.Cleanup(c.killAll)
	return c
}

func (c *etcds) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *etcds) client(name string) string {
	if c.tls {
		return fmt.Sprintf("https://127.0.0.1:%d", c.ports[name][0])
	}
	return fmt.Sprintf("http://127.0.0.1:%d", c.ports[name][0])
}

func (c *etcds) peer(name string) string {
	return fmt.Sprintf("http://127.0.0.1:%d", c.ports[name][1])
}

func (c *etcds) data(name string) string { return filepath.Join(c.dir, name) }

func (c *etcds) initial(names ...string) string {
	var all []string
	for _, n := range names {
		all = append(all, n+"="+c.peer(n))
	}
	return strings.Join(all, ",")
}

func (c *etcds) start(name, state string, members ...string) {
	c.t.Helper()
	argv := []string{
		filepath.Join(c.bin, "etcd"), "--name", name, "--data-dir", c.data(name),
		"--listen-client-urls", c.client(name), "--advertise-client-urls", c.client(name),
		"--listen-peer-urls", c.peer(name), "--initial-advertise-peer-urls", c.peer(name),
		"--initial-cluster", c.initial(members...), "--initial-cluster-state", state, "--initial-cluster-token", "one",
	}
	p, err := lab.StartProcess(append(argv, c.more...), os.Environ(), filepath.Join(c.dir, name+".log"))
	c.must(err)
	c.procs[name] = p
}

func (c *etcds) kill(names ...string) {
	for _, n := range names {
		if p := c.procs[n]; p != nil {
			_ = p.Stop(0) // it is killed, which is an error to it
			delete(c.procs, n)
		}
	}
}

func (c *etcds) killAll() { c.kill(c.names...) }

// call asks a member by its JSON gateway.
func (c *etcds) call(ctx context.Context, name, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.client(name)+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if b, err = io.ReadAll(res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, b)
	}
	return json.Unmarshal(b, out)
}

type etcdHeader struct {
	Header struct {
		ClusterID string `json:"cluster_id"`
		MemberID  string `json:"member_id"`
		Revision  string `json:"revision"`
	} `json:"header"`
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func (c *etcds) put(ctx context.Context, name, key, value string) (revision int64, err error) {
	var out etcdHeader
	if err = c.call(ctx, name, "/v3/kv/put", map[string]string{"key": b64(key), "value": b64(value)}, &out); err != nil {
		return 0, err
	}
	return strconv.ParseInt(out.Header.Revision, 10, 64)
}

type etcdStatus struct {
	etcdHeader
	Leader           string `json:"leader"`
	RaftAppliedIndex string `json:"raftAppliedIndex"`
}

func (c *etcds) status(ctx context.Context, name string) (s etcdStatus, err error) {
	err = c.call(ctx, name, "/v3/maintenance/status", struct{}{}, &s)
	return s, err
}

// leader waits until all of names follow the same one, and says who.
func (c *etcds) leader(names ...string) string {
	c.t.Helper()
	var last error
	for range 150 {
		ids, leaders := map[string]string{}, map[string]bool{}
		last = nil
		for _, n := range names {
			s, err := c.status(c.t.Context(), n)
			if err != nil {
				last = err
				break
			}
			ids[s.Header.MemberID] = n
			leaders[s.Leader] = true
		}
		if last == nil && len(leaders) == 1 {
			for l := range leaders {
				if ids[l] != "" {
					return ids[l]
				}
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	c.t.Fatalf("no leader: %v", last)
	return ""
}

// learner adds one and waits until it has what the others have.
func (c *etcds) learner(name string, voters ...string) {
	c.t.Helper()
	for i := 0; ; i++ { // a cluster takes nobody in before it is five seconds old
		out, err := exec.Command(filepath.Join(c.bin, "etcdctl"), "--endpoints", c.client(voters[0]), "member", "add", name, "--learner", "--peer-urls", c.peer(name)).CombinedOutput()
		if err == nil {
			break
		}
		if i == 30 {
			c.t.Fatalf("%v\n%s", err, out)
		}
		time.Sleep(time.Second)
	}
	c.start(name, "existing", append(voters, name)...)
	for range 150 {
		a, err := c.status(c.t.Context(), name)
		b, berr := c.status(c.t.Context(), voters[0])
		if err == nil && berr == nil && a.Header.Revision == b.Header.Revision {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("the learner does not catch up")
}

// config writes a configuration and returns its name.
func (c *etcds) config(name, etcd string) string {
	c.t.Helper()
	file := filepath.Join(c.dir, name+".yaml")
	recipient, err := os.ReadFile(c.identity() + ".pub")
	c.must(err)
	c.must(os.WriteFile(file, fmt.Appendf(nil, `cluster: unimatrix
replica:
  kind: etcd
  etcd:
%s
    etcdutl: %s/etcdutl
    etcd: %s/etcd
encryption: {recipients: [%s]}
store: {url: "file://%s/bucket"}
workdir: %s/work-%s
attest: {wait: 5s}
`, etcd, c.bin, c.bin, recipient, c.dir, c.dir, name), 0o600))
	return file
}

// identity makes a key once.
func (c *etcds) identity() string {
	id := filepath.Join(c.dir, "id")
	if _, err := os.Stat(id); err == nil {
		return id
	}
	out, err := exec.Command(c.eddy, "keys", "init", "--out", id).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(id)
	c.must(err)
	m := regexp.MustCompile(`(?m)^# public key: (\S+)$`).FindSubmatch(text)
	c.must(os.WriteFile(id+".pub", m[1], 0o600))
	return id
}

// run runs eddy, which must end with that code.
func (c *etcds) run(code int, args ...string) string {
	c.t.Helper()
	out, err := exec.Command(c.eddy, args...).CombinedOutput()
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		c.must(err)
	}
	if got != code {
		c.t.Fatalf("eddy %v: exit code %d, not %d\n%s", args, got, code, out)
	}
	return string(out)
}

func (c *etcds) contains(text string, parts ...string) {
	c.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			c.t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

func (c *etcds) endpoints(names ...string) string {
	var all []string
	for _, n := range names {
		all = append(all, c.client(n))
	}
	return "    endpoints: [" + strings.Join(all, ", ") + "]"
}

// nowhere searches what eddy wrote for the secret.
func (c *etcds) nowhere(dirs ...string) {
	c.t.Helper()
	files := 0
	for _, d := range dirs {
		c.must(filepath.WalkDir(d, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			files++
			b, err := os.ReadFile(name)
			if bytes.Contains(b, []byte(etcdSecret)) || bytes.Contains(b, []byte("/registry/secrets/")) {
				c.t.Errorf("%s holds what is secret", name)
			}
			return err
		}))
	}
	if files < 5 {
		c.t.Errorf("only %d files were searched", files)
	}
}

// load writes until it is stopped, and remembers each write by its revision.
type etcdLoad struct {
	c     *etcds
	mu    sync.Mutex
	acked map[int64]string // revision: key
	stop  context.CancelFunc
	wait  sync.WaitGroup
}

func (c *etcds) load(names ...string) *etcdLoad {
	ctx, stop := context.WithCancel(c.t.Context())
	l := &etcdLoad{c: c, acked: map[int64]string{}, stop: stop}
	for w, n := range names {
		l.wait.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("load/%d/%06d", w, i)
				if rev, err := c.put(ctx, n, key, "v"+key); err == nil {
					l.mu.Lock()
					l.acked[rev] = key
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

func (l *etcdLoad) end() {
	l.stop()
	l.wait.Wait()
}

// steady asks all voters for their leader until it is stopped: it must be one, and
// the same.
func (c *etcds) steady(leader string, voters ...string) (stop func() (asked int64)) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var wait sync.WaitGroup
	var asked atomic.Int64
	s, err := c.status(ctx, leader)
	c.must(err)
	for _, n := range voters {
		wait.Go(func() {
			for ctx.Err() == nil {
				got, err := c.status(ctx, n)
				if ctx.Err() != nil {
					return
				}
				if err != nil || got.Leader != s.Leader {
					c.t.Errorf("%s: leader %q, not %q (%v)", n, got.Leader, s.Leader, err)
				}
				asked.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() int64 {
		cancel()
		wait.Wait()
		return asked.Load()
	}
}

// all reads every key of a member.
func (c *etcds) all(name string) map[string]string {
	c.t.Helper()
	var out struct {
		KVs []struct{ Key, Value []byte } `json:"kvs"`
	}
	c.must(c.call(c.t.Context(), name, "/v3/kv/range", map[string]string{"key": b64("\x00"), "range_end": b64("\x00")}, &out))
	m := map[string]string{}
	for _, kv := range out.KVs {
		m[string(kv.Key)] = string(kv.Value)
	}
	return m
}
