//go:build root

package control

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// These tests run beside a real engine: make e2e-docker. The node is this test
// binary on an empty image.

const nodeImage = "eddy-lab/node"

// engineTime is what a busy engine may take to start or to stop a container, on
// top of what eddy promises. A quiet one takes half a second.
const engineTime = 20 * time.Second

// dockerCLI runs the engine's own command line.
func dockerCLI(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func importImage(t *testing.T) {
	t.Helper()
	if os.Getenv("EDDY_LAB_DOCKER") == "" {
		t.Fatal("EDDY_LAB_DOCKER is not set: run this with make e2e-docker")
	}
	bin, err := os.ReadFile(self())
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "node", Mode: 0o755, Size: int64(len(bin)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bin); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker", "import", "--change", `ENTRYPOINT ["/node"]`, "-", nodeImage)
	cmd.Stdin = &image
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
}

// dockerNode is a node in a container, running.
func dockerNode(t *testing.T, policy string, args ...string) (home, DockerConfig) {
	t.Helper()
	h := newHome(t)
	name := "node-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	args = append([]string{"run", "--detach", "--name", name, "--network", "none", "--restart", policy, "--volume", string(h) + ":" + string(h)}, args...)
	dockerCLI(t, append(args, nodeImage, "play-node", string(h))...)
	t.Cleanup(func() { dockerCLI(t, "rm", "--force", "--volumes", name) })
	eventually(t, engineTime, "the node starts", func() bool { return h.starts() == 1 })
	dir := t.TempDir()
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, guardLogFile)) // there may be none
			t.Logf("the guard said:\n%s", log)
		}
	})
	return h, DockerConfig{
		Container: name, Host: os.Getenv("DOCKER_HOST"), Dir: dir, SwapFile: h.path("swap.json"),
		StartTimeout: 30 * time.Second, StatusTimeout: 10 * time.Second, Linger: 10 * time.Second,
	}
}

func containerRuns(t *testing.T, c DockerConfig) bool {
	t.Helper()
	out, err := exec.Command("docker", "inspect", "--format", "{{.State.Running}}", c.Container).Output()
	return err == nil && strings.TrimSpace(string(out)) == "true"
}

func TestDockerReal(t *testing.T) {
	importImage(t)
	t.Run("HoldAndRelease", testDockerHolds)
	t.Run("Faults", testDockerFaults)
	t.Run("SomebodyElse", testDockerSomebodyElse)
	t.Run("Stops", testDockerStops)
	t.Run("EddyInAContainer", testDockerEddyInAContainer)
	t.Run("Hints", testDockerHints)
	t.Run("EngineRestarts", testDockerEngineRestarts)
	t.Run("Halts", testDockerHalts)
}

// The container's own stop time-out, a second, is not eddy's: the node takes two.
func testDockerHolds(t *testing.T) {
	for _, policy := range []string{"no", "on-failure", "unless-stopped", "always"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			h, c := dockerNode(t, policy, "--stop-timeout", "1")
			h.write("mode", "slow 2s")
			d, ctx := mustDocker(t, c), ctxOf(t)
			began := time.Now()
			hold, err := d.Hold(ctx, Request{Down: AllDown([]string{string(h)}, nil)})
			if err != nil {
				t.Fatal(err)
			}
			held := time.Now()
			time.Sleep(2 * time.Second) // a policy that would start it has the time to
			if st, err := d.Status(ctx); err != nil || st.Running || !st.Held || isLost(hold) {
				t.Fatalf("in the hold: %+v, %v, lost %t", st, err, isLost(hold))
			}
			releasing := time.Now()
			if err := hold.Release(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("stopped within %s, started within %s", held.Sub(began), time.Since(releasing))
			eventually(t, engineTime, "the node runs", func() bool { return h.starts() == 2 })
			if got := h.read("signals"); isLost(hold) || got != "SIGTERM" || !containerRuns(t, c) {
				t.Fatalf("lost %t, signals %q", isLost(hold), got)
			}
			dockerClosed(t, c)
		})
	}
}

func testDockerFaults(t *testing.T) {
	const deadline = 15 * time.Second
	for name, tc := range map[string]struct {
		fault  func(eddy, guard int)
		within time.Duration // after the fault, and engineTime; 0: not without recover
		eddy   bool          // lives on
	}{
		"eddy killed":  {func(e, _ int) { _ = unix.Kill(e, unix.SIGKILL) }, time.Second, false},
		"eddy frozen":  {func(e, _ int) { _ = unix.Kill(e, unix.SIGSTOP) }, deadline, false},
		"guard killed": {func(_, g int) { _ = unix.Kill(g, unix.SIGKILL) }, deadline, true},
		"guard frozen": {func(_, g int) { _ = unix.Kill(g, unix.SIGSTOP) }, deadline + guardFirst, true},
		"both killed":  {func(e, g int) { _ = unix.Kill(g, unix.SIGKILL); _ = unix.Kill(e, unix.SIGKILL) }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := dockerNode(t, "always")
			began := time.Now()
			p := holder(t, holderArgs{Docker: &c, Timeout: 10 * time.Second, Deadline: deadline})
			p.expect(t, "held")
			guard := guardOf(t, p.Process.Pid)
			tc.fault(p.Process.Pid, guard)
			fault := time.Now()
			if tc.within == 0 {
				p.exit(t)
				eventually(t, time.Second, "the guard is gone", func() bool { return ended(guard) })
				fault = time.Now()
				if acted, err := mustDocker(t, c).Recover(ctxOf(t)); !acted || err != nil {
					t.Fatalf("recover: %v, %v", acted, err)
				}
			}
			eventually(t, tc.within+engineTime, "the node runs again", func() bool { return h.starts() == 2 })
			t.Logf("node runs %s after the fault, %s after the hold began (deadline %s)", time.Since(fault), time.Since(began), deadline)
			if tc.eddy {
				p.expect(t, "lost")
				_ = unix.Kill(guard, unix.SIGCONT)
				p.in("release")
				p.expect(t, "released")
			} else {
				p.exit(t)
			}
			dockerClosed(t, c)
			if !containerRuns(t, c) || h.starts() != 2 {
				t.Fatalf("%d starts", h.starts())
			}
		})
	}
}

func testDockerSomebodyElse(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(t *testing.T, h home, c DockerConfig)
		gone bool
	}{
		"starts it":  {func(t *testing.T, _ home, c DockerConfig) { dockerCLI(t, "start", c.Container) }, false},
		"removes it": {func(t *testing.T, _ home, c DockerConfig) { dockerCLI(t, "rm", c.Container) }, true},
		"replaces it": {func(t *testing.T, h home, c DockerConfig) { // as compose does
			dockerCLI(t, "rename", c.Container, c.Container+"-old")
			t.Cleanup(func() { dockerCLI(t, "rm", "--force", c.Container+"-old") })
			dockerCLI(t, "run", "--detach", "--name", c.Container, "--network", "none", "--volume", string(h)+":"+string(h), nodeImage, "play-node", string(h))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, c := dockerNode(t, "unless-stopped")
			hold, err := mustDocker(t, c).Hold(ctxOf(t), Request{})
			if err != nil {
				t.Fatal(err)
			}
			tc.do(t, h, c)
			began := time.Now()
			select {
			case <-hold.Lost():
				t.Logf("noticed after %s", time.Since(began))
			case <-time.After(engineTime):
				t.Fatal("nobody notices")
			}
			if err := hold.Release(ctxOf(t)); tc.gone != errors.Is(err, errGone) || !tc.gone && err != nil {
				t.Fatalf("release: %v", err)
			}
			dockerClosed(t, c)
			if h.starts() > 2 || h.read("double") != "" {
				t.Fatalf("%d starts", h.starts())
			}
		})
	}
}

func testDockerStops(t *testing.T) {
	t.Run("too slow", func(t *testing.T) {
		t.Parallel()
		h, c := dockerNode(t, "always", "--stop-timeout", "1")
		h.write("mode", "slow 5s")
		_, err := mustDocker(t, c).Hold(ctxOf(t), Request{Timeout: 2 * time.Second, Deadline: time.Minute})
		if !errors.Is(err, ErrStopTimeout) || hint.Of(err) == "" {
			t.Fatalf("hold: %v", err)
		}
		// It is not killed, and the guard starts it when it ends after all.
		eventually(t, engineTime, "the node runs again", func() bool { return h.starts() == 2 })
		if h.read("signals") != "SIGTERM" {
			t.Fatalf("signals %q", h.read("signals"))
		}
		dockerClosed(t, c)
	})
	t.Run("crashes", func(t *testing.T) {
		t.Parallel()
		h, c := dockerNode(t, "always")
		h.write("mode", "exit 2")
		_, err := mustDocker(t, c).Hold(ctxOf(t), Request{})
		if !errors.Is(err, ErrKilled) || !strings.Contains(err.Error(), "exit code 2") {
			t.Fatalf("hold: %v", err)
		}
		eventually(t, engineTime, "the node runs again", func() bool { return h.starts() == 2 })
		dockerClosed(t, c)
	})
	t.Run("--rm", func(t *testing.T) {
		t.Parallel()
		h, c := dockerNode(t, "no", "--rm")
		if _, err := mustDocker(t, c).Status(ctxOf(t)); err == nil || !strings.Contains(err.Error(), "removed when it stops") {
			t.Fatalf("status: %v", err)
		}
		if _, err := mustDocker(t, c).Hold(ctxOf(t), Request{}); err == nil || h.read("signals") != "" {
			t.Fatalf("hold: %v, signals %q", err, h.read("signals"))
		}
	})
	t.Run("paused", func(t *testing.T) {
		t.Parallel()
		_, c := dockerNode(t, "no")
		dockerCLI(t, "pause", c.Container)
		t.Cleanup(func() { dockerCLI(t, "unpause", c.Container) })
		if _, err := mustDocker(t, c).Hold(ctxOf(t), Request{}); err == nil || hint.Of(err) != hint.Command("docker", "unpause", c.Container) {
			t.Fatalf("hold: %v, hint %q", err, hint.Of(err))
		}
	})
}

// An eddy that could not be killed by its guard, or would stop itself, does not
// hold.
func testDockerEddyInAContainer(t *testing.T) {
	h, c := dockerNode(t, "always")
	sock := strings.TrimPrefix(c.Host, "unix://")
	play := func(name, container string, flags ...string) string {
		in := c
		in.Container, in.Dir = container, "/work"
		b, err := json.Marshal(holderArgs{Docker: &in})
		if err != nil {
			t.Fatal(err)
		}
		args := append([]string{"run", "--rm", "--name", name, "--network", "none", "--volume", sock + ":" + sock, "--volume", c.Dir + ":/work"}, flags...)
		out, _ := exec.Command("docker", append(args, nodeImage, "play-holder", string(b))...).CombinedOutput() // it says what it thinks
		return string(out)
	}
	if out := play("eddy-1", c.Container); !strings.Contains(out, "eddy is process 1 of its container") {
		t.Errorf("as process 1: %s", out)
	}
	// Not --rm, which would be refused first.
	b, err := json.Marshal(holderArgs{Docker: &DockerConfig{Container: "eddy-2", Host: c.Host, Dir: "/"}})
	if err != nil {
		t.Fatal(err)
	}
	dockerCLI(t, "create", "--name", "eddy-2", "--init", "--network", "none", "--volume", sock+":"+sock, nodeImage, "play-holder", string(b))
	t.Cleanup(func() { dockerCLI(t, "rm", "--force", "eddy-2") })
	out, _ := exec.Command("docker", "start", "--attach", "eddy-2").CombinedOutput()
	if !strings.Contains(string(out), "is the one that eddy itself runs in") {
		t.Errorf("its own container: %s", out)
	}
	if h.read("signals") != "" {
		t.Fatalf("the node saw %q", h.read("signals"))
	}
}

// endEngine sends the engine a signal and waits until its successor answers.
func endEngine(t *testing.T, sig unix.Signal) {
	t.Helper()
	root := []byte("\x00" + os.Getenv("EDDY_LAB_DOCKER") + "/data\x00")
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && bytes.HasPrefix(b, []byte("dockerd\x00")) && bytes.Contains(b, root) {
			pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(f)))
		}
	}
	if pid == 0 {
		t.Fatal("no engine")
	}
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the engine is gone", func() bool { return ended(pid) })
}

func engineAnswers() bool {
	e, err := newEngine(os.Getenv("DOCKER_HOST"))
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	resp, err := e.send(ctx, http.MethodGet, "/_ping", nil)
	if err == nil {
		resp.Body.Close()
	}
	return err == nil
}

// The engine is restarted in the hold. A container whose policy is always is
// started by it, the others stay as eddy left them.
func testDockerEngineRestarts(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			type held struct {
				h home
				c DockerConfig
				p *proc
			}
			nodes := map[string]held{}
			for _, policy := range []string{"always", "unless-stopped", "eddy-dies"} {
				p := policy
				if p == "eddy-dies" {
					p = "unless-stopped"
				}
				var n held
				n.h, n.c = dockerNode(t, p)
				n.p = holder(t, holderArgs{Docker: &n.c, Timeout: engineTime, Deadline: 2 * time.Minute})
				n.p.expect(t, "held")
				nodes[policy] = n
			}
			began := time.Now()
			endEngine(t, sig)
			dies := nodes["eddy-dies"]
			_ = dies.p.Process.Kill()
			eventually(t, 60*time.Second, "the engine is back", engineAnswers)
			t.Logf("the engine was gone for %s", time.Since(began))
			back := time.Now()

			eventually(t, 60*time.Second, "the guard starts the node of a dead eddy", func() bool { return dies.h.starts() == 2 })
			t.Logf("eddy died, too: node runs %s after the engine", time.Since(back))
			dockerClosed(t, dies.c)

			always := nodes["always"]
			always.p.expect(t, "lost")
			always.p.in("release")
			always.p.expect(t, "released")
			eventually(t, engineTime, "it runs", func() bool { return always.h.starts() == 2 })

			unless := nodes["unless-stopped"]
			if containerRuns(t, unless.c) || unless.h.starts() != 1 {
				t.Fatal("the engine started what was stopped")
			}
			unless.p.in("release")
			unless.p.expect(t, "released")
			eventually(t, engineTime, "it runs", func() bool { return unless.h.starts() == 2 })
			for policy, n := range nodes {
				dockerClosed(t, n.c)
				if !containerRuns(t, n.c) || n.h.read("double") != "" {
					t.Errorf("%s: %d starts", policy, n.h.starts())
				}
			}
		})
	}
}
