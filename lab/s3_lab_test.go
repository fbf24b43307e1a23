//go:build lab

package lab_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

func TestS3(t *testing.T) {
	for _, server := range []string{lab.Versitygw, lab.Minio} {
		t.Run(server, func(t *testing.T) {
			dir := t.TempDir()
			s, err := lab.StartS3(t.Context(), lab.S3Options{Server: server, Dir: dir, Bucket: "one"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(s.Data, "one")); err != nil {
				t.Errorf("the bucket: %v", err)
			}
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := s.Stop(); err != nil {
				t.Errorf("second Stop: %v", err)
			}
			if !dead(s.Endpoint) {
				t.Errorf("%s still answers", s.Endpoint)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	if _, err := lab.StartS3(t.Context(), lab.S3Options{Server: "ceph"}); err == nil {
		t.Error("a server that the lab has not was started")
	}
}

// The lab command gives the program its environment, its exit code, its signals,
// and leaves nothing behind in any case.
func TestCommand(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", bin, "./cmd/lab").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		name, script string
		signal       os.Signal
		code         int
		stdout       string
	}{
		{name: "code", script: "exit 7", code: 7},
		{name: "environment", script: `test "$1" = "$EDDY_LAB_S3_ENDPOINT" && test "$AWS_ENDPOINT_URL" = "$1" && echo same`, stdout: "same\n"},
		{name: "interrupt", script: "trap 'echo int; exit 130' INT; echo up; while :; do sleep 0.05; done", signal: syscall.SIGINT, code: 130, stdout: "up\nint\n"},
		{name: "killed by TERM", script: "echo up; while :; do sleep 0.05; done", signal: syscall.SIGTERM, code: 143, stdout: "up\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var stderr bytes.Buffer
			out := filepath.Join(t.TempDir(), "out")
			f, err := os.Create(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd := exec.Command(bin, "s3", "--dir", dir, "--", "/bin/sh", "-c", c.script, "sh", "{endpoint}")
			cmd.Stdout, cmd.Stderr = f, &stderr
			// A session of its own: no terminal whose ctrl-C the program would get too.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if c.signal != nil {
				waitFor(t, func() bool { b, err := os.ReadFile(out); return err == nil && strings.Contains(string(b), "up") })
				if err := cmd.Process.Signal(c.signal); err != nil {
					t.Fatal(err)
				}
			}
			timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			_ = cmd.Wait() // its code is what is compared
			stdout, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d; stderr: %s", got, c.code, stderr.String())
			}
			if string(stdout) != c.stdout {
				t.Errorf("stdout %q, want %q", stdout, c.stdout)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
