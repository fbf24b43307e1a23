//go:build root

package swarm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// A drill of real dumps, with a real engine: it needs root and dockerd.
func TestDrillWithAnEngine(t *testing.T) {
	// An engine that finds another log than what was laid down.
	stripped := filepath.Join(t.TempDir(), "engine")
	must(t, os.WriteFile(stripped, []byte("#!/bin/sh\nrm -rf \"$1/swarm/raft\"\nroot=$1\nshift\nexec dockerd --data-root \"$root\" \"$@\"\n"), 0o700))
	broken := filepath.Join(t.TempDir(), "engine")
	must(t, os.WriteFile(broken, []byte("#!/bin/sh\nexit 3\n"), 0o700))
	held := heldKey(t)
	keys := func(context.Context) ([]UnlockKey, error) { return held, nil }
	for _, c := range []struct {
		name, dump string
		o          Options
		outcome    string
		says       string
	}{
		{"plain", "plain", Options{Drill: Drill{Check: []string{"/bin/sh", "-c", `test -S "${DOCKER_HOST#unix://}"`}}}, observer.DrillPassed, "it takes writes; drill.check succeeded"},
		{"locked", "locked", Options{Keys: keys}, observer.DrillPassed, "1 secrets"},
		{"no canary", "plain", Options{Drill: Drill{Canary: "yellow"}}, observer.DrillFailed, "no config and no secret has its name"},
		{"check", "plain", Options{Drill: Drill{Check: []string{"false"}}}, observer.DrillFailed, "drill.check"},
		{"another log", "plain", Options{Drill: Drill{Command: []string{stripped, "{home}"}}}, observer.DrillFailed, "form the swarm"},
		{"no engine", "plain", Options{Drill: Drill{Command: []string{broken, "{home}"}}}, observer.DrillNotPossible, "no engine runs apart here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, task := drilling(t, c.dump, c.o)
			must(t, d.Possible(t.Context(), observer.Position{}))
			must(t, d.Prepare(t.Context(), task))
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			must(t, err)
			rep, err := d.Drill(t.Context(), task)
			must(t, err)
			if rep.Outcome != c.outcome || !strings.Contains(rep.Proved+rep.Why, c.says) {
				t.Errorf("%+v\n%s", rep, strings.Join(rep.Log, "\n"))
			}
			t.Logf("%s in %.1f s: %s%s", rep.Version, rep.StartSeconds, rep.Proved, rep.Why)
			after, err := os.ReadFile("/proc/self/mountinfo")
			must(t, err)
			if string(after) != string(mounts) {
				t.Errorf("mounts are left:\n%s", after)
			}
			if left := of(t, "EDDY_DRILL_HOME="+task.Scratch); len(left) > 0 {
				t.Errorf("processes are left: %v", left)
			}
		})
	}
}

// of are the processes in whose environment a text is.
func of(t *testing.T, text string) (pids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), text) {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}

// What a drill has started dies with an eddy that is killed.
func TestDrillDiesWithAKilledEddy(t *testing.T) {
	dir := t.TempDir()
	eddy := exec.Command(os.Args[0], "-test.run", "TestDrillWithAnEngine/plain")
	eddy.Env = append(os.Environ(), "TMPDIR="+dir)
	must(t, eddy.Start())
	started := "EDDY_DRILL_HOME=" + dir
	await := func(what string, done func(n int) bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !done(len(of(t, started))); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %v", what, of(t, started))
			}
		}
	}
	await("the engine and its containerd run", func(n int) bool { return n > 1 })
	must(t, eddy.Process.Kill())
	_ = eddy.Wait() // killed
	await("all are gone", func(n int) bool { return n == 0 })
}
