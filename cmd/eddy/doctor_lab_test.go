//go:build lab

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/s3fake"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// clinic is a real node with all that belongs to it, healthy to begin with.
type clinic struct {
	t     *testing.T
	dir   string
	chain *chain
	home  node.Home // the replica's
	other node.Home // another observer, the second witness
	yaml  string    // eddy.yaml of a healthy set-up
	now   string    // eddy.yaml as a case has it
	env   []string
	uid   uint32 // eddy runs as this user; 0: as the one who tests
}

func newClinic(t *testing.T) *clinic {
	c := &clinic{t: t, dir: t.TempDir(), chain: &chain{dir: filepath.Join(t.TempDir(), "chain")}}
	t.Cleanup(c.chain.stop)
	must(t, c.chain.start())
	c.home, c.other = c.chain.take(), c.chain.take()
	sock := filepath.Join(c.dir, "node.sock")
	for _, argv := range [][]string{
		{"eddy", "supervise", "--socket", sock, "--", "eddy", "node", "run", "--home", c.home.Dir},
		{"eddy", "node", "run", "--home", c.other.Dir},
	} {
		cmd, err := spawn(filepath.Join(c.dir, "node.log"), argv...)
		must(t, err)
		t.Cleanup(func() { kill(cmd) })
	}
	for _, h := range []node.Home{c.home, c.other} {
		must(t, caughtUp(h.RPC, c.chain.validator().RPC))
	}
	c.yaml = fmt.Sprintf(`cluster: clinic
replica:
  home: %s
  rpc: %s
  witnesses: [%s, %s]
  control: {supervise: %s, timeout: 2m}
store: {url: "file://%s"}
workdir: %s
schedule: "@daily"
retention: {by: eddy, last: 3}
`, c.home.Dir, c.home.RPC, c.chain.validator().RPC, c.other.RPC, sock, filepath.Join(c.dir, "bucket"), filepath.Join(c.dir, "state"))
	must(t, os.Mkdir(filepath.Join(c.dir, "state"), 0o700))
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// set replaces in eddy.yaml.
func (c *clinic) set(old, new string) {
	c.t.Helper()
	if !strings.Contains(c.now, old) {
		c.t.Fatalf("eddy.yaml does not hold %q:\n%s", old, c.now)
	}
	c.now = strings.Replace(c.now, old, new, 1)
}

// eddy runs the real program.
func (c *clinic) eddy(args ...string) (code int, out, errs string) {
	c.t.Helper()
	file := filepath.Join(c.dir, "eddy.yaml")
	must(c.t, os.WriteFile(file, []byte(c.now), 0o644))
	cmd := exec.Command("eddy", append([]string{"-c", file}, args...)...)
	cmd.Env = append(append(os.Environ(), "GORACE=exitcode=0"), c.env...)
	if c.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
	}
	var o, e strings.Builder
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if ee := new(exec.ExitError); errors.As(err, &ee) {
		code = ee.ExitCode()
	} else {
		must(c.t, err)
	}
	return code, o.String(), e.String()
}

// doctor asks again while the node is a few blocks behind: on a busy machine it is
// at times, and no case is about that.
func (c *clinic) doctor() (code int, all []check.Finding) {
	c.t.Helper()
	for range 20 {
		code, all = c.ask()
		if !slices.ContainsFunc(all, func(f check.Finding) bool { return f.Name == "caught up" && f.Level == check.Warn }) {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	return code, all
}

func (c *clinic) ask() (code int, all []check.Finding) {
	c.t.Helper()
	code, out, errs := c.eddy("--json", "doctor")
	for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
		var f struct {
			Type string `json:"message_type"`
			check.Finding
		}
		must(c.t, json.Unmarshal(sc.Bytes(), &f))
		if f.Type == "check" {
			all = append(all, f.Finding)
		}
		if f.Type == "error" && code == exitUsage {
			c.t.Fatalf("%s", sc.Bytes())
		}
	}
	if len(all) == 0 {
		c.t.Fatalf("no checks, exit code %d: %s", code, errs)
	}
	return code, all
}

// bucket makes the store a bucket with quirks.
func (c *clinic) bucket(q s3fake.Quirks) {
	web := httptest.NewServer(s3fake.New("bucket", q))
	c.t.Cleanup(web.Close)
	c.set(`store: {url: "file://`+filepath.Join(c.dir, "bucket")+`"}`, "store: {url: s3://bucket/eddy, region: us-east-1, endpoint: "+web.URL+"}")
	c.env = []string{"AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=canary-secret"}
}

// lyingWitness passes the validator's answers on with one thing changed.
func (c *clinic) lyingWitness(change func([]byte) []byte) {
	upstream, err := url.Parse(c.chain.validator().RPC)
	must(c.t, err)
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.ModifyResponse = func(r *http.Response) error {
		b, err := io.ReadAll(r.Body)
		b = change(b)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		r.Header.Set("Content-Length", fmt.Sprint(len(b)))
		return err
	}
	web := httptest.NewServer(proxy)
	c.t.Cleanup(web.Close)
	c.set(c.chain.validator().RPC, web.URL)
}

// comet replaces in the replica's config.toml until the case is over.
func (c *clinic) comet(old, new string) (undo func()) {
	file := filepath.Join(c.home.Dir, "config", "config.toml")
	b, err := os.ReadFile(file)
	must(c.t, err)
	if !bytes.Contains(b, []byte(old)) {
		c.t.Fatalf("config.toml does not hold %q", old)
	}
	must(c.t, os.WriteFile(file, bytes.Replace(b, []byte(old), []byte(new), 1), 0o600))
	return func() { must(c.t, os.WriteFile(file, b, 0o600)) }
}

// broken is a set-up with one thing wrong: how it is made, what doctor says of it,
// and doing what the hint says.
type broken struct {
	name  string
	harm  func(*clinic) (follow func())
	level check.Level
	check string
	said  string // a pattern
	hint  string // a pattern
}

// yaml is a case whose hint is about eddy.yaml: following it undoes the change.
func yaml(old, new string) func(*clinic) func() {
	return func(c *clinic) func() {
		expand := strings.NewReplacer("$RPC", c.home.RPC, "$HOME", c.home.Dir, "$VALIDATOR", c.chain.validator().RPC, "$VHOME", c.chain.validator().Dir, "$OTHER", c.other.RPC, "$DIR", c.dir).Replace
		before := c.now
		c.set(expand(old), expand(new))
		return func() { c.now = before }
	}
}

func store(q s3fake.Quirks, fixed func(*s3fake.Quirks)) func(*clinic) func() {
	return func(c *clinic) func() {
		before := c.now
		c.bucket(q)
		return func() {
			fixed(&q)
			c.now = before
			c.bucket(q)
		}
	}
}

const abortRule = `<Rule><ID>a</ID><Filter><Prefix>eddy/</Prefix></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>`

func brokenSetups() []broken {
	denied := s3fake.Reply{Status: http.StatusForbidden, Code: "AccessDenied"}
	return []broken{
		{"wrong chain", yaml("  rpc:", "  chain_id: other-1\n  rpc:"), check.Fail, "chain", "on chain script-1, the configuration says other-1", "replica.chain_id"},
		{"home of another node", func(c *clinic) func() {
			h, err := node.Init(node.Options{Home: filepath.Join(c.dir, "stranger"), ChainID: "stranger-1"})
			must(c.t, err)
			return yaml("home: $HOME", "home: "+h.Dir)(c)
		}, check.Fail, "chain", "the genesis in .* is of chain stranger-1", "must be of one node"},
		{"node that does not answer", yaml("rpc: $RPC", "rpc: http://127.0.0.1:1"), check.Fail, "node", "RPC http://127.0.0.1:1 does not answer", "replica.rpc"},
		{"validator", func(c *clinic) func() {
			undo := yaml("witnesses: [$VALIDATOR", "witnesses: [$RPC")(c)
			yaml("home: $HOME\n  rpc: $RPC", "home: $VHOME\n  rpc: $VALIDATOR")(c)
			return undo
		}, check.Fail, "validator", "is a validator .voting power", "observer beside it"},
		{"no witnesses", yaml("[$VALIDATOR, $OTHER]", "[]"), check.Warn, "witnesses", "none are named", "replica.witnesses"},
		{"a dead witness", yaml("$OTHER", "http://127.0.0.1:1"), check.Warn, "witnesses", "http://127.0.0.1:1 does not answer", "replica.witnesses"},
		{"dead witnesses only", yaml("[$VALIDATOR, $OTHER]", "[http://127.0.0.1:1, http://127.0.0.1:2]"), check.Fail, "witnesses", "does not answer", "replica.witnesses"},
		{"witness of another chain", func(c *clinic) func() {
			before := c.now
			c.lyingWitness(func(b []byte) []byte {
				return bytes.ReplaceAll(b, []byte(`"network":"script-1"`), []byte(`"network":"other-1"`))
			})
			return func() { c.now = before }
		}, check.Fail, "witnesses", "is on chain other-1, the node on script-1", "replica.witnesses"},
		{"clock that is slow", func(c *clinic) func() {
			before := c.now
			hour := time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano)
			blockTime := regexp.MustCompile(`"latest_block_time":"[^"]*"`)
			c.lyingWitness(func(b []byte) []byte { return blockTime.ReplaceAll(b, []byte(`"latest_block_time":"`+hour+`"`)) })
			return func() { c.now = before }
		}, check.Fail, "clock", "behind the chain's newest block", "NTP"},
		{"stop time-out", yaml("timeout: 2m", "timeout: 30s"), check.Warn, "stop time-out", "30s to stop", "timeout: 2m"},
		{"supervise that is not there", yaml("node.sock", "nobody.sock"), check.Fail, "control", "nobody.sock", "supervise"},
		{"node that somebody stopped", yaml("control: {supervise: $DIR/node.sock,", `control: {exec: {stop: ["true"], start: ["true"], status: [sh, -c, exit 3]},`), check.Fail, "control", "the node is stopped", "start it"},
		{"home that is none", func(c *clinic) func() {
			must(c.t, os.MkdirAll(filepath.Join(c.dir, "empty"), 0o700))
			return yaml("home: $HOME", "home: $DIR/empty")(c)
		}, check.Fail, "home", "neither data nor", "replica.home"},
		{"pex", func(c *clinic) func() { return c.comet("pex = false", "pex = true") }, check.Warn, "hidden", "pex is on", "pex = false .*config.toml"},
		{"stage on another mount", func(c *clinic) func() {
			shm, err := os.MkdirTemp("/dev/shm", "eddy-doctor-")
			must(c.t, err)
			c.t.Cleanup(func() { os.RemoveAll(shm) })
			link := filepath.Join(c.home.Dir, ".eddy")
			must(c.t, os.Symlink(shm, link))
			return func() { must(c.t, os.Remove(link)) }
		}, check.Fail, "links", "on another mount", "plain directory on the data's own mount"},
		{"open hold", func(c *clinic) func() {
			file := filepath.Join(c.dir, "state", "hold.json")
			must(c.t, os.WriteFile(file, []byte(`{"format":1,"min_reader":1,"kind":"hold","control":"exec","purpose":"backup","pid":1}`+"\n"), 0o600))
			return func() { must(c.t, os.Remove(file)) }
		}, check.Warn, "open hold", "for a backup", "eddy backup"},
		{"workdir that is a file", func(c *clinic) func() {
			must(c.t, os.WriteFile(filepath.Join(c.dir, "file"), nil, 0o600))
			return yaml("workdir: $DIR/state", "workdir: $DIR/file")(c)
		}, check.Fail, "workdir", "no directory", "workdir must be a directory"},
		{"nobody deletes", yaml("{by: eddy, last: 3}", "{by: none}"), check.Warn, "retention", "nobody deletes old ones", "by: eddy"},
		{"store that cannot be written", func(c *clinic) func() {
			must(c.t, os.WriteFile(filepath.Join(c.dir, "file"), nil, 0o600))
			return yaml("file://$DIR/bucket", "file://$DIR/file/bucket")(c)
		}, check.Fail, "store", "store refuses", "file/bucket"},
		{"no such bucket", func(c *clinic) func() {
			c.bucket(s3fake.Quirks{Lifecycle: abortRule})
			before := c.now
			c.set("s3://bucket/", "s3://bucke/")
			return func() { c.now = before }
		}, check.Fail, "store", "NoSuchBucket", "create the bucket"},
		{"archive class", store(s3fake.Quirks{Class: "GLACIER", Lifecycle: abortRule}, func(q *s3fake.Quirks) { q.Class = "GLACIER_IR" }), check.Fail, "store", "at once, and must be thawed", "GLACIER_IR"},
		{"no conditional writes", store(s3fake.Quirks{Conditions: s3fake.CondIgnored, Lifecycle: abortRule}, func(q *s3fake.Quirks) { q.Conditions = s3fake.CondKept }), check.Warn, "conditional writes", "ignores the conditions", "one eddy at a time"},
		{"no right to write", store(s3fake.Quirks{Refuses: map[string]s3fake.Reply{"PutObject": denied}, Lifecycle: abortRule}, func(q *s3fake.Quirks) { q.Refuses = nil }), check.Fail, "store", "AccessDenied", "policy-writer.json"},
		{"no right to delete", store(s3fake.Quirks{Refuses: map[string]s3fake.Reply{"DeleteObjects": denied}, Lifecycle: abortRule}, func(q *s3fake.Quirks) { q.Refuses = nil }), check.Fail, "deletion", "may not delete", "policy-retention.json"},
		{"rule that deletes backups", store(s3fake.Quirks{Lifecycle: strings.Replace(abortRule, "<Abort", "<Expiration><Days>30</Days></Expiration><Abort", 1)}, func(q *s3fake.Quirks) { q.Lifecycle = abortRule }), check.Fail, "lifecycle", "deletes backups, and latest, after 30 days", "end this rule"},
		{"no abort rule", store(s3fake.Quirks{}, func(q *s3fake.Quirks) { q.Lifecycle = abortRule }), check.Warn, "lifecycle", "no rule ends uploads", "lifecycle.json"},
	}
}

// Set-ups that only root can break.
func brokenByRoot() []broken {
	return []broken{
		{"another user", func(c *clinic) func() {
			exe, err := exec.LookPath("eddy")
			must(c.t, err)
			real, err := filepath.EvalSymlinks(exe)
			must(c.t, err)
			must(c.t, exec.Command("sh", "-c", `chmod -R a+rX "$0"; mkdir -p "$0/.eddy" "$1/bucket"; chown -R 65534 "$0/.eddy" "$1/bucket" "$1/state"
				for p; do while [ "$p" != / ]; do chmod a+x "$p"; p=$(dirname "$p"); done; done`, c.home.Dir, c.dir, c.home.Dir, exe, real).Run())
			c.uid = 65534
			return func() { c.uid = 0; must(c.t, os.Remove(filepath.Join(c.home.Dir, ".eddy"))) }
		}, check.Fail, "links", "cannot be linked", "user who owns the files"},
		{"full disk", func(c *clinic) func() {
			dir := filepath.Join(c.dir, "small")
			must(c.t, os.Mkdir(dir, 0o755))
			must(c.t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
			c.t.Cleanup(func() { must(c.t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
			return yaml("retention:", "roots: {small: $DIR/small}\nretention:")(c)
		}, check.Fail, "disk space", "only .* free on the filesystem of .*/small", "make room"},
		{"full workdir", func(c *clinic) func() {
			dir := filepath.Join(c.dir, "smallwork")
			must(c.t, os.Mkdir(dir, 0o755))
			must(c.t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
			c.t.Cleanup(func() { must(c.t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
			return yaml("workdir: $DIR/state", "workdir: $DIR/smallwork")(c)
		}, check.Fail, "workdir", "only .* free", "make room"},
	}
}

// Each broken set-up is named, with a hint; who follows the hint has no such
// finding any more. The node runs all the time.
func TestDoctorNamesBrokenSetups(t *testing.T) {
	c := newClinic(t)
	c.now = c.yaml
	code, all := c.doctor()
	if code != exitDone || check.Worst(all) != check.OK {
		t.Fatalf("the healthy set-up: exit code %d, %+v", code, all)
	}
	cases := brokenSetups()
	if os.Geteuid() == 0 {
		cases = append(cases, brokenByRoot()...)
	}
	for _, b := range cases {
		t.Run(b.name, func(t *testing.T) {
			c.t, c.now, c.env = t, c.yaml, nil
			follow := b.harm(c)
			code, all := c.doctor()
			i := b.find(all)
			if i < 0 {
				follow()
				t.Fatalf("exit code %d, want a %s of %s: %s; got %+v", code, b.level, b.check, b.said, bad(all))
			}
			f := all[i]
			if !match(b.hint, f.Hint) {
				t.Errorf("the hint is %q, want %s", f.Hint, b.hint)
			}
			if want := map[check.Level]int{check.Warn: exitWarnings, check.Fail: exitFailed}[check.Worst(all)]; code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			follow()
			if _, after := c.doctor(); len(bad(after)) > 0 {
				t.Errorf("after the hint was followed: %+v", bad(after))
			}
		})
	}
	if _, err := os.Lstat(filepath.Join(c.home.Dir, ".eddy")); err == nil {
		t.Error("doctor leaves a directory in the home")
	}
	before, err := heightOf(c.home.RPC)
	must(t, err)
	must(t, waitFor(c.home.RPC, before+1))
}

func match(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

func (b broken) find(all []check.Finding) int {
	for i, f := range all {
		if f.Level == b.level && match("^("+b.check+")$", f.Name) && match(b.said, f.Said) {
			return i
		}
	}
	return -1
}

func bad(all []check.Finding) []check.Finding {
	var out []check.Finding
	for _, f := range all {
		if f.Level != check.OK {
			out = append(out, f)
		}
	}
	return out
}
