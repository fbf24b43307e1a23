package lab_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

func TestStartS3WithoutBinary(t *testing.T) {
	t.Setenv("EDDY_LAB_BIN", t.TempDir())
	_, err := lab.StartS3(t.Context(), lab.S3Options{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make lab") {
		t.Errorf("err = %v, want one that says how to build the server", err)
	}
}

// A server that ends at once must be reported with what it printed, not waited
// for, and its directory must be gone.
func TestStartS3ServerEnds(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho cannot listen >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err := lab.StartS3(t.Context(), lab.S3Options{Binary: bin, Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "cannot listen") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("err = %v, want the server's words and exit status", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestProcessStop(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	for _, c := range []struct {
		name, script string
		grace        time.Duration
		killed       bool
	}{
		{"ends when asked", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done", 5 * time.Second, false},
		{"is killed when deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done", 300 * time.Millisecond, true},
		{"has ended already", "echo up", 5 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.RemoveAll(log); err != nil {
				t.Fatal(err)
			}
			p, err := lab.StartProcess([]string{"/bin/sh", "-c", c.script}, []string{"PATH=" + os.Getenv("PATH")}, log)
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { b, err := os.ReadFile(log); return err == nil && len(b) > 0 })
			err = p.Stop(c.grace)
			if got := err != nil; got != c.killed {
				t.Errorf("Stop: %v, want an error: %t", err, c.killed)
			}
			select {
			case <-p.Done():
			default:
				t.Error("still running after Stop")
			}
			if err := p.Stop(c.grace); err != nil {
				t.Errorf("second Stop: %v", err)
			}
		})
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"3GB": 3e9, "64MiB": 64 << 20, "1.5 kB": 1500, "17": 17, "2B": 2, "1GiB": 1 << 30,
	} {
		var s lab.Size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("Set(%q) = %d, %v, want %d", text, int64(s), err, want)
		}
	}
	for _, text := range []string{"", "GB", "-1", "0", "1TB", "NaN", "Inf", "1e300", "3 G B"} {
		var s lab.Size
		if err := s.Set(text); err == nil {
			t.Errorf("Set(%q) = %d, want an error", text, int64(s))
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("3GB")
	f.Add("1e9")
	f.Add("0x1p3MiB")
	f.Fuzz(func(t *testing.T, text string) {
		var s lab.Size
		if err := s.Set(text); err == nil && s < 0 {
			t.Errorf("Set(%q) = %d", text, int64(s))
		}
	})
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("waited 10 s in vain")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// dead tells whether nobody listens at a http://host:port.
func dead(endpoint string) bool {
	c, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
	if err != nil {
		return true
	}
	c.Close()
	return false
}
