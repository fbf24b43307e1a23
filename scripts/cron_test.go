package scripts_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeEddy is a program in eddy's place: it notes its arguments, says something and
// ends as it is told.
func fakeEddy(t *testing.T, body string) (env, calls string) {
	t.Helper()
	dir := t.TempDir()
	path, calls := filepath.Join(dir, "eddy"), filepath.Join(dir, "calls")
	write(t, path, "#!/bin/sh\necho \"$*\" >>"+calls+"\n"+body+"\n")
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return "EDDY=" + path, calls
}

func script(t *testing.T, name string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{name}, args...)...)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+t.TempDir()), env...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestBackupOnce(t *testing.T) {
	var mu sync.Mutex
	var pinged []string
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		pinged = append(pinged, r.URL.Path)
	}))
	t.Cleanup(web.Close)
	for name, c := range map[string]struct {
		body         string
		args         []string
		code         int
		line, called string
		pings        string
		silent       bool
	}{
		"done":     {"echo READY it", nil, 0, "ok exit=0 ", "backup", "/start /", true},
		"warnings": {"echo READY; exit 3", nil, 3, "warnings exit=3 ", "backup", "/start /", false},
		"not fit":  {"echo error: behind; echo hint: wait; exit 12", nil, 12, " error: behind", "backup", "/start /fail", false},
		"busy":     {"exit 11", nil, 11, "busy exit=11 ", "backup", "/start", false},
		"too long": {"exec sleep 60", []string{"--max-time", "1s"}, 124, "too-long exit=124 ", "backup", "/start /fail", false},
		"keys":     {"echo READY", []string{"--", "-c", "a b", "keys", "backup"}, 0, "ok exit=0 ", "-c a b keys backup", "/start /", true},
	} {
		t.Run(name, func(t *testing.T) {
			env, calls := fakeEddy(t, c.body)
			dir := t.TempDir()
			write(t, filepath.Join(dir, "url"), web.URL+"/"+strings.ReplaceAll(name, " ", "-")+"\n")
			mu.Lock()
			pinged = nil
			mu.Unlock()
			log := filepath.Join(dir, "log")
			code, stdout, stderr := script(t, "backup-once.sh", []string{env}, append([]string{"--log", log, "--ping-file", filepath.Join(dir, "url")}, c.args...)...)
			if code != c.code || (stdout == "") != c.silent || stderr != "" {
				t.Fatalf("exit code %d, want %d\n%s%s", code, c.code, stdout, stderr)
			}
			if line := read(t, log); !strings.Contains(line, c.line) || strings.Count(line, "\n") != 1 {
				t.Errorf("log: %q, want %q", line, c.line)
			}
			if got := read(t, calls); got != c.called+"\n" {
				t.Errorf("called as %q", got)
			}
			mu.Lock()
			defer mu.Unlock()
			if got := strings.ReplaceAll(strings.Join(pinged, " "), "/"+strings.ReplaceAll(name, " ", "-"), "/"); strings.ReplaceAll(got, "//", "/") != c.pings {
				t.Errorf("pinged %q, want %q", got, c.pings)
			}
		})
	}
}

// Two at once: the second does nothing, and says so.
func TestBackupOnceIsAlone(t *testing.T) {
	env, calls := fakeEddy(t, "sleep 2")
	tmp := "TMPDIR=" + t.TempDir()
	first := exec.Command("bash", "backup-once.sh")
	first.Env = append(os.Environ(), env, tmp)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(calls); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	code, stdout, _ := script(t, "backup-once.sh", []string{env, tmp})
	if code != 11 || !strings.Contains(stdout, "busy exit=11") {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	if err := first.Wait(); err != nil {
		t.Error(err)
	}
	if got := read(t, calls); got != "backup\n" {
		t.Errorf("called as %q", got)
	}
}

func TestPreupgrade(t *testing.T) {
	pin := func(at time.Time) string {
		return fmt.Sprintf(`case "$*" in *pin*) echo '{"message_type":"pin","pinned":true,"id":"%s-auto-0a1b2c"}';; esac`, at.UTC().Format("20060102T150405Z"))
	}
	young, old := pin(time.Now().Add(-time.Hour)), pin(time.Now().Add(-30*time.Hour))
	for name, c := range map[string]struct {
		body   string
		env    []string
		args   []string
		code   int
		said   string
		called string
	}{
		"hook":           {young, nil, []string{"v2", "100"}, 0, "1 h old", "keys backup\n--json pin height:100 --as upgrade-v2\n"},
		"without keys":   {young, []string{"EDDY_PREUPGRADE_KEYS=no"}, []string{"v2", "100"}, 0, "is pinned", "--json pin height:100 --as upgrade-v2\n"},
		"ahead":          {young, nil, []string{"--ahead", "a very long/name of an upgrade", "100"}, 0, "is pinned", "backup --label pre-ng-name-of-an-upgrade\n--json pin height:100 --as upgrade-a-very-long-name-of-an-upgrade\n"},
		"old":            {old, nil, []string{"v2", "100"}, 0, "older than 26 h", ""},
		"old, required":  {old, []string{"EDDY_PREUPGRADE_REQUIRED=yes"}, []string{"v2", "100"}, 1, "held up", ""},
		"none":           {"exit 10", nil, []string{"v2", "100"}, 0, "goes on without", ""},
		"none, required": {"exit 10", []string{"EDDY_PREUPGRADE_REQUIRED=yes"}, []string{"v2", "100"}, 1, "held up", ""},
		"hangs":          {"exec sleep 60", []string{"EDDY_PREUPGRADE_TIMEOUT=1s"}, []string{"v2", "100"}, 0, "no time is left", "keys backup\n"},
		"no height":      {young, nil, []string{"v2", "x"}, 0, "is no height", ""},
		"no words":       {young, nil, nil, 0, "want NAME and HEIGHT", ""},
		"bad time":       {young, []string{"EDDY_PREUPGRADE_TIMEOUT=soon"}, []string{"v2", "100"}, 0, "want 300s", ""},
		"no eddy":        {young, []string{"EDDY=/nonexistent"}, []string{"v2", "100"}, 0, "not installed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env, calls := fakeEddy(t, c.body)
			code, stdout, stderr := script(t, "cosmovisor-preupgrade.sh", append([]string{env}, c.env...), c.args...)
			if code != c.code || !strings.Contains(stdout, c.said) {
				t.Errorf("exit code %d, want %d with %q\n%s%s", code, c.code, c.said, stdout, stderr)
			}
			if c.called != "" && read(t, calls) != c.called {
				t.Errorf("called as %q", read(t, calls))
			}
		})
	}
}

// Each script stands alone, and what two of them share is the same.
func TestSharedPart(t *testing.T) {
	part := func(name string) string {
		_, rest, _ := strings.Cut(read(t, name), "# ---- shared:")
		shared, _, ok := strings.Cut(rest, "# ---- end of the shared part")
		if !ok {
			t.Fatalf("%s has no shared part", name)
		}
		return shared
	}
	if part("restore-latest.sh") != part("restore-keys.sh") {
		t.Error("restore-latest.sh and restore-keys.sh differ in what they share")
	}
}
