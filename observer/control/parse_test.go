package control

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

func FuzzParseRecord(f *testing.F) {
	good, err := json.Marshal(Record{Format: 1, Kind: "hold", Argv: Argv{Stop: []string{"a"}, Start: []string{"b"}, Status: []string{"c"}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(good), string(good[:len(good)/2]), "", "null", "[]", `{}`, `{"argv":{"start":[""]}}`, `{"argv":[],"started":"x","format":"1"}`, `{"unit":{"name":"gaiad.service","rights":"sudo"}}`, `{"unit":{"name":"--x.service","rights":"sudo"}}`, "\x00\x00", `{"container":{"name":"n","id":"0123456789ab","host":"unix:///s"}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			if !errors.Is(err, ErrTorn) {
				t.Fatalf("error without ErrTorn: %v", err)
			}
			return
		}
		if c := r.Container; c != (ContainerRef{}) {
			if _, err := newEngine(c.Host); err != nil || !hexID(c.ID) || c.Name == "" || strings.ContainsAny(c.Name, "\n\x1b") {
				t.Fatalf("a container that cannot be asked for: %+v, %v", c, err)
			}
		}
		for _, argv := range [][]string{r.Argv.Stop, r.Argv.Start, r.Argv.Status} {
			if argv != nil && checkArgv(argv) != nil {
				t.Fatalf("a command that cannot be run: %q", argv)
			}
		}
		if r.Unit.Name != "" && checkUnit(r.Unit) != nil {
			t.Fatalf("a unit that cannot be asked for: %+v", r.Unit)
		}
		_ = r.String()
	})
}

func FuzzParseContainer(f *testing.F) {
	for _, s := range []string{
		`{"Id":"0123456789ab","Name":"/gaia","State":{"Status":"running","StartedAt":"2026-11-20T23:55:00.1Z"},"HostConfig":{"RestartPolicy":{"Name":"always"}},"Config":{"StopSignal":"SIGINT","StopTimeout":30,"Labels":{"a":"b"}}}`,
		`{"Id":"0123456789ab","State":{"Status":"exited","ExitCode":137,"OOMKilled":true,"StartedAt":"0001-01-01T00:00:00Z"},"Config":{"StopTimeout":-9223372036854775808}}`,
		`{"Id":"0123456789ab","State":{"Status":"\u001b[0m"}}`, `{}`, "null", "[]", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := parseContainer(b)
		if err != nil {
			return
		}
		st, serr := i.state()
		if (st == unknown) != (serr != nil) || !hexID(i.id) || i.stopTimeout < -time.Second || i.restart == "" || i.stopSignal == "" {
			t.Fatalf("%+v: %v, %v", i, st, serr)
		}
		for _, err := range []error{serr, i.ending(), i.refusal()} {
			if err != nil && strings.ContainsAny(err.Error()+hint.Of(err), "\n\x1b") {
				t.Fatalf("%+v: %q", i, err)
			}
		}
		_ = i.run()
	})
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{`{"format":1,"op":"status"}`, `{"format":1,"op":"hold","deadline_ms":5,"purpose":"backup","stage":"a\nb"}`, `{"format":2}`, "x", `{"format":1,"op":"hold","deadline_ms":-1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		if r.Op == opHold && (r.DeadlineMS <= 0 || r.DeadlineMS > maxMillis || r.StopTimeoutMS < 0 || r.StopTimeoutMS > maxMillis || r.Purpose != purposeBackup && r.Purpose != purposeRestore) {
			t.Fatalf("out of bounds: %+v", r)
		}
		if len(r.Stage) > maxWord || !utf8.ValidString(r.Stage) || strings.ContainsAny(r.Stage, "\n\r\x1b") {
			t.Fatalf("stage %q", r.Stage)
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	f.Add([]byte(`{"format":1,"ok":true,"status":{"state":"running"}}`))
	f.Add([]byte(`{"format":1,"code":"killed","error":"x","hint":"y"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseResponse(b)
		if err != nil {
			return
		}
		if e := r.err(); (e == nil) != r.OK || e != nil && strings.ContainsAny(e.Error()+hint.Of(e), "\n\x1b") {
			t.Fatalf("%+v: %v", r, e)
		}
	})
}

func FuzzMappedFile(f *testing.F) {
	f.Add([]byte("7f5e4c000000-7f5e4c021000 r--p 00000000 08:01 1835019                    /usr/lib/a b.so"))
	f.Add([]byte("7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := mappedFile(b); s != "" && s[0] != '/' {
			t.Fatalf("%q", s)
		}
	})
}

func TestMappedFile(t *testing.T) {
	if got := mappedFile([]byte("7f5e4c000000-7f5e4c021000 r--p 00000000 08:01 1835019                    /usr/lib/a b.so")); got != "/usr/lib/a b.so" {
		t.Fatalf("%q", got)
	}
}

func TestPortRefuses(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := PortRefuses(context.Background(), addr); !errors.Is(err, ErrNotDown) {
		t.Fatalf("a port that answers: %v", err)
	}
	ln.Close()
	if err := PortRefuses(context.Background(), addr); err != nil {
		t.Fatalf("a port that refuses: %v", err)
	}
	if err := PortRefuses(context.Background(), "no such address"); !errors.Is(err, ErrNotDown) {
		t.Fatalf("no address: %v", err)
	}
}

func TestNoOpenFiles(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"data/app.db", ".eddy/s1", "link"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(root, "data/app.db/LOCK")
	own := filepath.Join(root, ".eddy/s1/x")
	for _, f := range []string{file, own} {
		if err := os.WriteFile(f, []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// cat waits for more of its stdin, with the file as descriptor 3.
	open := func(t *testing.T, path string) *exec.Cmd {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.Command("cat")
		cmd.ExtraFiles = []*os.File{f}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		return cmd
	}
	if err := NoOpenFiles([]string{root, filepath.Join(root, "none")}); err != nil {
		t.Fatalf("nobody has anything open: %v", err)
	}
	t.Run("our own stage", func(t *testing.T) {
		open(t, own)
		if err := NoOpenFiles([]string{root}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("open", func(t *testing.T) {
		cmd := open(t, file)
		err := NoOpenFiles([]string{root})
		if !errors.Is(err, ErrNotDown) || !strings.Contains(err.Error(), "cat (pid") || !strings.Contains(err.Error(), "app.db/LOCK open") || hint.Of(err) == "" {
			t.Fatalf("%v", err)
		}
		if err := NoOpenFiles([]string{root}, cmd.Process.Pid); err != nil {
			t.Fatalf("excepted: %v", err)
		}
		if err := NoOpenFiles([]string{filepath.Join(root, "link")}); err != nil {
			t.Fatalf("another root: %v", err)
		}
	})
	t.Run("deleted but open", func(t *testing.T) {
		gone := filepath.Join(root, "data/app.db/gone")
		if err := os.WriteFile(gone, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		open(t, gone)
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
		if err := NoOpenFiles([]string{root}); !errors.Is(err, ErrNotDown) {
			t.Fatalf("%v", err)
		}
	})
	t.Run("the root by a symlink", func(t *testing.T) {
		open(t, file)
		alias := filepath.Join(t.TempDir(), "alias")
		if err := os.Symlink(root, alias); err != nil {
			t.Fatal(err)
		}
		if err := NoOpenFiles([]string{alias}); !errors.Is(err, ErrNotDown) {
			t.Fatalf("%v", err)
		}
	})
	t.Run("through a bind mount", func(t *testing.T) {
		other := t.TempDir()
		if err := unix.Mount(filepath.Join(root, "data/app.db"), other, "", unix.MS_BIND, ""); err != nil {
			t.Logf("bind mounts are not ours to make (%v)", err)
			return
		}
		t.Cleanup(func() {
			if err := unix.Unmount(other, 0); err != nil {
				t.Error(err)
			}
		})
		t.Run("open", func(t *testing.T) {
			open(t, filepath.Join(other, "LOCK"))
			if err := NoOpenFiles([]string{root}); !errors.Is(err, ErrNotDown) {
				t.Fatalf("%v", err)
			}
		})
	})
}

// A mapping keeps a file in use without any descriptor.
func TestNoOpenFilesMapped(t *testing.T) {
	root := t.TempDir()
	bin := filepath.Join(root, "prog")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, b, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "30")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := NoOpenFiles([]string{root}); !errors.Is(err, ErrNotDown) || !strings.Contains(err.Error(), "prog") {
		t.Fatalf("%v", err)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{" a\nb\x1b[0m ": "a b [0m", "\xff": "?", strings.Repeat("é", 10): "ééé"} {
		if got := printable(in, 7); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
