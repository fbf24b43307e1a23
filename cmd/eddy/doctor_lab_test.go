//go:build lab

package main

import (
	"bytes"
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
	spare node.Home // an observer that does not run
	yaml  string    // eddy.yaml of a healthy set-up
	now   string    // eddy.yaml as a case has it
	env   []string
	uid   uint32 // eddy runs as this user; 0: as the one who tests
	quirk s3fake.Quirks
}

func newClinic(t *testing.T) *clinic {
	c := &clinic{t: t, dir: t.TempDir(), chain: &chain{dir: filepath.Join(t.TempDir(), "chain")}}
	t.Cleanup(c.chain.stop)
	must(t, c.chain.start())
	c.home, c.other, c.spare = c.chain.take(), c.chain.take(), c.chain.take()
	sock := filepath.Join(c.dir, "node.sock")
	for _, argv := range [][]string{
		{"eddy", "supervise", "--home", c.home.Dir, "--socket", sock, "--", "eddy", "node", "run", "--home", c.home.Dir},
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

// with fills in where things are.
func (c *clinic) with(text string) string {
	v := c.chain.validator()
	return strings.NewReplacer("$RPC", c.home.RPC, "$HOME", c.home.Dir, "$VALIDATOR", v.RPC, "$VHOME", v.Dir, "$OTHER", c.other.RPC,
		"$SPARE", c.spare.Dir, "$SRPC", c.spare.RPC, "$DIR", c.dir).Replace(text)
}

// put sets keys of eddy.yaml.
func (c *clinic) put(settings ...string) {
	for _, s := range settings {
		c.now = setKey(c.now, c.with(s))
	}
}

func (c *clinic) write(name, text string) {
	must(c.t, os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o700))
}

// config is where eddy.yaml lies, as it is now.
func (c *clinic) config() string {
	c.write("eddy.yaml", c.now)
	file := filepath.Join(c.dir, "eddy.yaml")
	must(c.t, os.Chmod(file, 0o644))
	return file
}

// eddy runs the real program.
func (c *clinic) eddy(args ...string) (code int, out, errs string) {
	c.t.Helper()
	cmd := exec.Command("eddy", append([]string{"-c", c.config()}, args...)...)
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

// shell types a command, as root where the test runs as root, with eddy.yaml and
// the programs that a case has put into bin/. eddy may be done with warnings.
func (c *clinic) shell(command string) {
	c.t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(append(os.Environ(), "GORACE=exitcode=0", "EDDY_CONFIG="+c.config()), c.env...)
	cmd.Env = append(cmd.Env, "PATH="+filepath.Join(c.dir, "bin")+":"+os.Getenv("PATH"))
	out, err := os.Create(filepath.Join(c.dir, "typed.log"))
	must(c.t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out // a file: what it starts may keep it open
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != exitWarnings {
		said, _ := os.ReadFile(out.Name())
		c.t.Errorf("%s: %v\n%s", command, err, said)
	}
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
	all, err := findings(out)
	must(c.t, err)
	if len(all) == 0 {
		c.t.Fatalf("no checks, exit code %d: %s%s\n%s", code, out, errs, c.now)
	}
	return code, all
}

// bucket makes the store a bucket with quirks, or changes them. Beside it is
// another bucket, good, which has none.
func (c *clinic) bucket(q s3fake.Quirks) {
	c.quirk = q
	odd, good := s3fake.New("bucket", q), s3fake.New("good", s3fake.Quirks{Lifecycle: abortRule})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/good") {
			good.ServeHTTP(w, r)
			return
		}
		odd.ServeHTTP(w, r)
	}))
	c.t.Cleanup(web.Close)
	if strings.Contains(c.now, "s3:") {
		c.put("store.endpoint: " + web.URL)
		return
	}
	c.put("store: {url: s3://bucket/eddy, region: us-east-1, endpoint: " + web.URL + "}")
	c.env = []string{"AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=canary-secret"}
}

// witness passes the validator's answers on, changed, and takes its place.
func (c *clinic) witness(change func([]byte) []byte) {
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
	c.put("replica.witnesses: [" + web.URL + ", $OTHER]")
}

// byCommands makes the spare observer the replica, started and stopped by
// commands, and leaves it down.
func (c *clinic) byCommands() {
	dir := filepath.Join(c.dir, "ctl")
	must(c.t, writeControl(dir, c.spare))
	c.t.Cleanup(func() { exec.Command("sh", "-c", "kill -KILL $(cat "+dir+"/pid)").Run() }) // gone already is fine
	c.put("replica.home: $SPARE", "replica.rpc: $SRPC",
		"replica.control: {exec: {stop: [$DIR/ctl/stop], start: [$DIR/ctl/start], status: [$DIR/ctl/status]}, timeout: 2m}")
}

// broken is a set-up with one thing wrong: how it is made, what doctor says of it,
// and how its hint is followed.
type broken struct {
	name  string
	harm  func(*clinic)
	level check.Level
	check string // the finding's name
	said  string // a pattern
	// hint is a pattern of that part of the hint that is followed: what stands there
	// between backticks is typed. by, if it is set, does what prose says, and is given
	// the match.
	hint string
	fill []string // pairs: a word in capitals, and what a reader writes there
	by   func(c *clinic, m []string)
	only bool // other findings of the case stay
}

// follow does what the hint of a finding says, to the letter.
func (c *clinic) follow(b broken, f check.Finding) {
	c.t.Helper()
	m := regexp.MustCompile(b.hint).FindStringSubmatch(f.Hint)
	if m == nil {
		c.t.Fatalf("%s: %s: the hint is %q, want %s", f.Name, f.Said, f.Hint, b.hint)
	}
	if b.by != nil {
		b.by(c, m)
		return
	}
	spans := typed.FindAllStringSubmatch(m[0], -1)
	if len(spans) == 0 {
		c.t.Fatalf("nothing is to be typed in %q", m[0])
	}
	for _, span := range spans {
		text := span[1]
		for i := 0; i < len(b.fill); i += 2 {
			text = strings.ReplaceAll(text, b.fill[i], c.with(b.fill[i+1]))
		}
		if keyValue.MatchString(text) {
			c.put(text)
		} else {
			c.shell(text)
		}
	}
}

// sick are the findings that a case is about.
func (b broken) sick(all []check.Finding) []check.Finding {
	return slices.DeleteFunc(bad(all), func(f check.Finding) bool { return f.Name != b.check })
}

func bad(all []check.Finding) []check.Finding {
	return slices.DeleteFunc(slices.Clone(all), func(f check.Finding) bool { return f.Level == check.OK })
}

// Each broken set-up is named, with a hint; who does what the hint says has no
// such finding any more. The replica runs all the time.
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
			c.t, c.now, c.env, c.uid = t, c.yaml, nil, 0
			b.harm(c)
			code, all := c.doctor()
			sick := b.sick(all)
			if !slices.ContainsFunc(sick, func(f check.Finding) bool {
				return f.Level == b.level && regexp.MustCompile(b.said).MatchString(f.Said)
			}) {
				t.Fatalf("exit code %d, want a %s of %s: %s; got %+v", code, b.level, b.check, b.said, bad(all))
			}
			if want := map[check.Level]int{check.Warn: exitWarnings, check.Fail: exitFailed}[check.Worst(all)]; code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			t.Logf("%s: %s\n hint: %s", sick[0].Level, sick[0].Said, sick[0].Hint)
			for step := 0; len(sick) > 0 && step < 3 && !t.Failed(); step++ {
				c.follow(b, sick[0])
				// What was started takes a moment to come up.
				for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
					_, all = c.doctor()
					again := b.sick(all)
					if len(again) > 0 && again[0] != sick[0] || time.Now().After(deadline) || len(again) == 0 && (b.only || len(bad(all)) == 0) {
						sick = again
						break
					}
				}
			}
			if left := bad(all); len(sick) > 0 || len(left) > 0 && !b.only {
				t.Errorf("after the hint was followed: %+v", left)
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
