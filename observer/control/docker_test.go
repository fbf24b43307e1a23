package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// engineOf is an engine with one container, in memory. What a real one does is
// the business of docker_root_test.go; here it does what a real one seldom does.
type engineOf struct {
	socket string

	mu     sync.Mutex
	c      map[string]any // as inspect tells it; nil: removed
	other  string         // id of a container that has taken its name
	code   int            // the node's exit code
	deny   string         // calls that are refused: a regular expression
	calls  []string
	starts int
}

const containerID = "4f1a9c7e5d3b4f1a9c7e5d3b4f1a9c7e5d3b4f1a9c7e5d3b4f1a9c7e5d3b0001"

func newEngineOf(t *testing.T) (*engineOf, DockerConfig) {
	t.Helper()
	dir, err := os.MkdirTemp("", "eddy") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	e := &engineOf{socket: filepath.Join(dir, "s"), c: map[string]any{
		"Id": containerID, "Name": "/gaia", "State": map[string]any{},
		"HostConfig": map[string]any{}, "Config": map[string]any{},
	}}
	e.start()
	ln, err := net.Listen("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		_ = srv.Close()
		wg.Wait()
		os.RemoveAll(dir)
	})
	return e, DockerConfig{
		Container: "gaia", Host: "unix://" + e.socket, Dir: t.TempDir(),
		StartTimeout: 2 * slower * time.Second, StatusTimeout: 5 * slower * time.Second, Linger: slower * time.Second,
	}
}

func (e *engineOf) set(section, key string, value any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.c[section].(map[string]any)[key] = value
}

func (e *engineOf) start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.starts++
	e.c["State"] = map[string]any{"Status": "running", "StartedAt": fmt.Sprintf("2026-11-20T23:55:%02d.5Z", e.starts)}
}

func (e *engineOf) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.c["State"].(map[string]any)
	s["Status"], s["ExitCode"] = "exited", e.code
}

func (e *engineOf) status() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.c == nil {
		return "gone"
	}
	return e.c["State"].(map[string]any)["Status"].(string)
}

func (e *engineOf) did(call string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.calls, call)
}

func (e *engineOf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := r.Method + " " + strings.ReplaceAll(r.URL.RequestURI(), containerID, "ID")
	e.mu.Lock()
	e.calls = append(e.calls, call)
	c, deny, other := e.c, e.deny, e.other
	e.mu.Unlock()
	fail := func(code int, text string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": text})
	}
	path, versioned := strings.CutPrefix(r.URL.Path, "/v1.41")
	name, verb, _ := strings.Cut(strings.TrimPrefix(path, "/containers/"), "/")
	switch {
	case deny != "" && regexp.MustCompile(deny).MatchString(call):
		fail(http.StatusForbidden, "the proxy says no\nhunter2")
	case path == "/_ping":
		w.Header().Set("Api-Version", "1.41")
	case !versioned:
		fail(http.StatusBadRequest, "no version in the path")
	case name == "gaia" && other != "":
		_ = json.NewEncoder(w).Encode(map[string]any{"Id": other, "Name": "/gaia", "State": map[string]any{"Status": "running"}})
	case c == nil || name != "gaia" && name != containerID:
		fail(http.StatusNotFound, "No such container: "+name)
	case verb == "json":
		e.mu.Lock()
		defer e.mu.Unlock()
		_ = json.NewEncoder(w).Encode(c)
	case verb == "start" && e.status() == "running":
		w.WriteHeader(http.StatusNotModified)
	case verb == "start":
		e.start()
		w.WriteHeader(http.StatusNoContent)
	case verb == "stop":
		e.stop()
		w.WriteHeader(http.StatusNoContent)
	}
}

func mustDocker(t *testing.T, c DockerConfig) Control {
	t.Helper()
	d, err := NewDocker(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDockerHoldAndRelease(t *testing.T) {
	t.Parallel()
	e, c := newEngineOf(t)
	d, ctx := mustDocker(t, c), ctxOf(t)
	hold, err := d.Hold(ctx, Request{Stage: "s1", Down: func(context.Context) error {
		return fmt.Errorf("%w: %w", ErrNotDown, errNoAnswer) // its address went with it
	}})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := ReadHold(c.Dir)
	want := ContainerRef{Name: "gaia", ID: containerID, Host: c.Host}
	if err != nil || rec.Control != "docker" || rec.Container != want || rec.Identity != containerID+"@2026-11-20T23:55:01.5Z" || rec.Argv.Start != nil {
		t.Fatalf("journal: %+v, %v", rec, err)
	}
	if st, err := d.Status(ctx); err != nil || st.Running || !st.Held {
		t.Fatalf("in the hold: %+v, %v", st, err)
	}
	if !e.did("POST /v1.41/containers/ID/stop?t=-1") {
		t.Fatalf("no stop without end: %q", e.calls)
	}
	if err := hold.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if isLost(hold) || e.status() != "running" || e.starts != 2 {
		t.Fatalf("lost %t, %s, %d starts", isLost(hold), e.status(), e.starts)
	}
	dockerClosed(t, c)
}

func isLost(h Hold) bool {
	select {
	case <-h.Lost():
		return true
	default:
		return false
	}
}

// dockerClosed waits until the journal is closed and the lock free.
func dockerClosed(t *testing.T, c DockerConfig) {
	t.Helper()
	closed(t, ExecConfig{Dir: c.Dir})
}

// Whatever somebody else does to a held container, it is noticed, and only what
// eddy stopped is started.
func TestDockerHoldLost(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do    func(e *engineOf)
		ends  string // what Release says
		after string
	}{
		"started":             {func(e *engineOf) { e.start() }, "", "running"},
		"started and stopped": {func(e *engineOf) { e.start(); e.stop() }, "", "running"},
		"removed":             {func(e *engineOf) { e.mu.Lock(); e.c = nil; e.mu.Unlock() }, "was removed", "gone"},
		"replaced": {func(e *engineOf) {
			e.mu.Lock()
			e.c["Name"], e.other = "/old_gaia", strings.Repeat("ab", 32)
			e.mu.Unlock()
		}, "was replaced", "exited"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, c := newEngineOf(t)
			hold, err := mustDocker(t, c).Hold(ctxOf(t), Request{})
			if err != nil {
				t.Fatal(err)
			}
			tc.do(e)
			eventually(t, 3*time.Second, "the hold is lost", func() bool { return isLost(hold) })
			err = hold.Release(ctxOf(t))
			if tc.ends == "" && err != nil || tc.ends != "" && (!errors.Is(err, errGone) || !strings.Contains(err.Error(), tc.ends) || hint.Of(err) == "") {
				t.Fatalf("release: %v", err)
			}
			if e.status() != tc.after {
				t.Fatalf("the container is %s", e.status())
			}
			dockerClosed(t, c)
		})
	}
}

func TestDockerRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do   func(e *engineOf)
		want string
	}{
		"paused":       {func(e *engineOf) { e.set("State", "Status", "paused") }, "is paused"},
		"never begun":  {func(e *engineOf) { e.set("State", "Status", "created") }, "already stopped"},
		"stopped":      {func(e *engineOf) { e.stop() }, "already stopped"},
		"crash loop":   {func(e *engineOf) { e.set("State", "Status", "restarting") }, "again and again"},
		"--rm":         {func(e *engineOf) { e.set("HostConfig", "AutoRemove", true) }, "is removed when it stops"},
		"swarm task":   {func(e *engineOf) { e.set("Config", "Labels", map[string]string{"com.docker.swarm.task.id": "x"}) }, "orchestrator"},
		"SIGKILL":      {func(e *engineOf) { e.set("Config", "StopSignal", "SIGKILL") }, "stopped by SIGKILL"},
		"no container": {func(e *engineOf) { e.c = nil }, "there is no container gaia"},
		"no start":     {func(e *engineOf) { e.deny = "/start" }, "could not be started again: refused: the engine says 403 Forbidden: the proxy says no hunter2"},
		"no stop":      {func(e *engineOf) { e.deny = "/stop" }, "stop: refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, c := newEngineOf(t)
			tc.do(e)
			before := e.status()
			_, err := mustDocker(t, c).Hold(ctxOf(t), Request{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || hint.Of(err) == "" || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%v, hint %q", err, hint.Of(err))
			}
			if e.status() != before || e.did("POST /v1.41/containers/ID/stop?t=-1") != (name == "no stop") {
				t.Fatalf("it was stopped: %q", e.calls)
			}
			dockerClosed(t, c)
		})
	}
}

// A proxy that hides /_ping and the version is asked without one.
func TestDockerProxyWithoutPing(t *testing.T) {
	t.Parallel()
	e, c := newEngineOf(t)
	e.deny = "/_ping"
	_, err := mustDocker(t, c).Status(ctxOf(t))
	if err == nil || !strings.Contains(err.Error(), "400 Bad Request: no version in the path") || !e.did("GET /containers/gaia/json") {
		t.Fatalf("%v, %q", err, e.calls)
	}
}

func TestDockerKilled(t *testing.T) {
	t.Parallel()
	e, c := newEngineOf(t)
	e.code = 137
	_, err := mustDocker(t, c).Hold(ctxOf(t), Request{})
	if !errors.Is(err, ErrKilled) || !strings.Contains(err.Error(), "SIGKILL") {
		t.Fatalf("%v", err)
	}
	if e.status() != "running" || e.starts != 2 {
		t.Fatalf("%s, %d starts", e.status(), e.starts)
	}
	dockerClosed(t, c)
}

// What an open journal means to the next eddy.
func TestDockerRecover(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do    func(e *engineOf, r *Record)
		ends  string // what Recover says; then it did nothing
		after string
	}{
		"stopped by us":    {func(e *engineOf, _ *Record) { e.stop() }, "", "running"},
		"engine rebooted":  {func(e *engineOf, r *Record) { e.stop(); r.BootID = "another" }, "", "running"},
		"runs":             {func(e *engineOf, _ *Record) {}, "", "running"},
		"stopped by them":  {func(e *engineOf, _ *Record) { e.stop(); e.start(); e.stop() }, "", "exited"},
		"removed":          {func(e *engineOf, _ *Record) { e.c = nil }, "", "gone"},
		"by another way":   {func(e *engineOf, r *Record) { e.stop(); r.Control = "exec" }, "of another control", "exited"},
		"held for restore": {func(e *engineOf, r *Record) { e.stop(); r.Purpose = "restore" }, "held for a restore", "exited"},
		"swapping":         {func(e *engineOf, r *Record) { e.stop(); r.Stage = "swap" }, "a restore is under way", "exited"},
		"a validator now":  {func(e *engineOf, r *Record) { e.stop(); r.Stage = "key" }, "left down", "exited"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, c := newEngineOf(t)
			boot, err := fsx.BootID()
			if err != nil {
				t.Fatal(err)
			}
			r := Record{
				Format: 1, Kind: kindHold, Control: controlDocker, Container: ContainerRef{Name: "gaia", ID: containerID, Host: c.Host},
				BootID: boot, Started: time.Now(), StopMS: 300, Purpose: "backup", Identity: containerID + "@2026-11-20T23:55:01.5Z",
			}
			tc.do(e, &r)
			switch c.SwapFile = filepath.Join(c.Dir, "swap.json"); r.Stage {
			case "swap":
				err = os.WriteFile(c.SwapFile, nil, 0o600)
			case "key":
				c.MayStart = func(context.Context) error { return errors.New("no") }
			}
			if err := errors.Join(err, r.write(c.Dir)); err != nil {
				t.Fatal(err)
			}
			c.Container = "renamed-in-the-configuration"
			acted, err := mustDocker(t, c).Recover(ctxOf(t))
			if tc.ends == "" && (err != nil || !acted) || tc.ends != "" && (err == nil || acted || !strings.Contains(err.Error(), tc.ends)) {
				t.Fatalf("%t, %v", acted, err)
			}
			if e.status() != tc.after {
				t.Fatalf("the container is %s", e.status())
			}
			if rec, err := ReadHold(c.Dir); err != nil || (rec == nil) != (tc.ends == "") {
				t.Fatalf("journal: %v, %v", rec, err)
			}
		})
	}
}

func TestDockerUnreachable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for host, want := range map[string]string{
		"unix://" + dir + "/none":    "control.docker.socket",
		"tcp://127.0.0.1:1":          "start what is to listen there",
		"unix://" + dir + "/no\nway": "",
	} {
		_, err := mustDocker(t, DockerConfig{Container: "gaia", Host: host, Dir: dir}).Status(ctxOf(t))
		if err == nil || !strings.Contains(hint.Of(err), want) || !errors.Is(err, errUnreachable) {
			t.Errorf("%s: %v, hint %q", host, err, hint.Of(err))
		}
	}
	for _, host := range []string{"ssh://me:hunter2@h", "tcp://me:hunter2@h:1", "/run/docker.sock", "unix://rel"} {
		_, err := NewDocker(DockerConfig{Container: "gaia", Host: host, Dir: dir})
		if err == nil || strings.Contains(err.Error(), "hunter2") || hint.Of(err) == "" {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := NewDocker(DockerConfig{Dir: dir}); err == nil {
		t.Error("no container, and no error")
	}
	if _, err := os.Stat(filepath.Join(dir, recordFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a journal was written")
	}
}

// What is not as it should be comes with what to do.
func TestDockerChecks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do   func(e *engineOf)
		want string // name of the finding and its level; "": all OK
		said string
	}{
		"as it should be": {func(e *engineOf) {}, "", ""},
		"ten seconds":     {func(e *engineOf) { e.set("Config", "StopTimeout", 10) }, "stop time-out WARN", "after 10s"},
		"for ever":        {func(e *engineOf) { e.set("Config", "StopTimeout", -1) }, "", ""},
		"no policy":       {func(e *engineOf) { e.set("HostConfig", "RestartPolicy", map[string]string{"Name": "no"}) }, "node's manager WARN", "policy is no"},
		"paused":          {func(e *engineOf) { e.set("State", "Status", "paused") }, "node's manager FAIL, restore in place WARN", "is paused"},
		"no container":    {func(e *engineOf) { e.c = nil }, "right to stop FAIL", "no container gaia"},
		"no right":        {func(e *engineOf) { e.deny = "/json" }, "right to stop FAIL", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, c := newEngineOf(t)
			e.set("Config", "StopTimeout", 180)
			e.set("HostConfig", "RestartPolicy", map[string]string{"Name": "unless-stopped"})
			tc.do(e)
			var got []string
			for _, f := range mustDocker(t, c).(check.Checker).Checks(ctxOf(t)) {
				if (f.Hint == "") != (f.Level == check.OK) || f.Said == "" || strings.Contains(f.Said+f.Hint, "\n") {
					t.Errorf("%+v", f)
				}
				if f.Level != check.OK {
					got = append(got, f.Name+" "+string(f.Level))
					if !strings.Contains(f.Said, tc.said) {
						t.Errorf("%+v, want %q", f, tc.said)
					}
				}
			}
			if strings.Join(got, ", ") != tc.want {
				t.Errorf("found %q, want %q", got, tc.want)
			}
			for _, call := range e.calls {
				if !strings.HasPrefix(call, "GET ") {
					t.Errorf("doctor asks for %s", call)
				}
			}
		})
	}
	if f := bad("guard", notProcessOne(1)); f.Level != check.Fail || !strings.Contains(f.Hint, "--init") {
		t.Errorf("%+v", f)
	}
}

// Whether and how a restore in place can be done; the policy that it has to go
// without is given back whole.
func TestDockerInPlace(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		policy map[string]any
		said   string
		hint   string // of the refusal
	}{
		"always": {
			map[string]any{"Name": "always"},
			"before it, `docker update --restart always gaia` after it",
			"`docker update --restart no gaia`; after the restore: `docker update --restart always gaia`",
		},
		"five times": {
			map[string]any{"Name": "on-failure", "MaximumRetryCount": 5},
			"before it, `docker update --restart on-failure:5 gaia` after it",
			"`docker update --restart no gaia`; after the restore: `docker update --restart on-failure:5 gaia`",
		},
		"as often as it takes": {
			map[string]any{"Name": "on-failure", "MaximumRetryCount": 0},
			"`docker update --restart on-failure gaia` after it",
			"`docker update --restart no gaia`; after the restore: `docker update --restart on-failure gaia`",
		},
		"no": {map[string]any{"Name": "no"}, "has no restart policy", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, c := newEngineOf(t)
			e.set("HostConfig", "RestartPolicy", tc.policy)
			c.SwapFile = filepath.Join(c.Dir, "swap.json")
			d := mustDocker(t, c)
			all := d.(check.Checker).Checks(ctxOf(t))
			i := slices.IndexFunc(all, func(f check.Finding) bool { return f.Name == "restore in place" })
			if i < 0 || all[i].Level != check.OK {
				t.Fatalf("%+v", all)
			}
			said := strings.ReplaceAll(all[i].Said, " --host "+c.Host, "")
			if !strings.Contains(said, tc.said) {
				t.Errorf("doctor says %q, want %q", said, tc.said)
			}
			err := d.MayHalt(ctxOf(t), false)
			if got := strings.ReplaceAll(hint.Of(err), " --host "+c.Host, ""); errors.Is(err, ErrUnguarded) != (tc.hint != "") || got != tc.hint {
				t.Errorf("%v, hint %q, want %q", err, got, tc.hint)
			}
		})
	}
}
