package alarm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHookIsGivenTheMessage(t *testing.T) {
	t.Setenv("OWN", "own")
	var out bytes.Buffer
	h := Hook{"sh", "-c", `cat; printf '%s|%s|%s|%s' "$1" "$EDDY_HOOK_EVENT" "$EDDY_HOOK_TEXT" "$OWN"; echo >&2 err`, "sh", "a b; c"}
	err := h.Run(t.Context(), []string{"EDDY_HOOK_EVENT=failure", "EDDY_HOOK_TEXT=two\nlines\x00"}, "the letter\n", &out)
	if err != nil {
		t.Fatal(err)
	}
	if want := "the letter\na b; c|failure|two\nlines|ownerr\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestHookThatDoesNotReadItsInput(t *testing.T) {
	if err := (Hook{"true"}).Run(t.Context(), nil, strings.Repeat("x", 1<<20), &bytes.Buffer{}); err != nil {
		t.Error(err)
	}
}

func TestHookThatFails(t *testing.T) {
	err := Hook{"sh", "-c", "exit 7"}.Run(t.Context(), nil, "", &bytes.Buffer{})
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 7 || hint.Of(err) == "" {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
	err = Hook{"/nonexistent/hook"}.Run(t.Context(), nil, "", &bytes.Buffer{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A hook that hangs is killed, with what it has started.
func TestHookThatHangs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	h := Hook{"sh", "-c", "sleep 300 & echo $! >" + file + "; wait"}
	begun := time.Now()
	err := h.run(t.Context(), 300*time.Millisecond, nil, "", &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "not ended in time") || time.Since(begun) > 10*time.Second {
		t.Fatalf("after %s: %v", time.Since(begun), err)
	}
	gone(t, file)

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := h.Run(ctx, nil, "", &bytes.Buffer{}); err == nil {
		t.Error("a hook outlives who called it")
	}
	gone(t, file)
}

func gone(t *testing.T, file string) {
	t.Helper()
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// A zombie that nobody reaps yet has no command line.
		cmd, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/cmdline")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || len(cmd) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s lives: %q", pid, cmd)
		}
	}
}

// What a hook leaves in the background does not hold up the run.
func TestHookThatLeavesSomethingRunning(t *testing.T) {
	begun := time.Now()
	if err := (Hook{"sh", "-c", "sleep 20 &"}).Run(t.Context(), nil, "", &bytes.Buffer{}); err != nil {
		t.Error(err)
	}
	if d := time.Since(begun); d > hookDrain+8*time.Second {
		t.Errorf("it took %s", d)
	}
}
