package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A verb ends in order when its terminal is closed, and outlives it where nohup
// says so.
func TestHangUp(t *testing.T) {
	t.Parallel()
	// A test that runs below nohup must not hand that on: what is handled here begins
	// anew in a program that is started, what is ignored does not.
	hears := make(chan os.Signal, 1)
	signal.Notify(hears, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hears) })
	for name, c := range map[string]struct {
		before []string
		ends   bool
	}{
		"a terminal is closed": {nil, true},
		"nohup":                {[]string{"nohup"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			socket := filepath.Join(dir, "app.sock")
			argv := append(c.before, "eddy", "node", "app", "--home", dir, "--listen", "unix://"+socket)
			log := filepath.Join(dir, "log")
			cmd, err := spawn(log, argv...)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			t.Cleanup(func() { _ = cmd.Process.Kill() }) // where it has not ended
			for wait := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				if all, _ := filepath.Glob(socket); len(all) > 0 {
					break
				}
				if time.Now().After(wait) {
					t.Fatalf("it does not listen:\n%s", tail(log))
				}
			}
			if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			if !c.ends {
				select {
				case err := <-ended:
					t.Fatalf("it ended: %v", err)
				case <-time.After(300 * time.Millisecond):
				}
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("%v, want an exit in order\n%s", err, tail(log))
				}
			case <-time.After(time.Minute):
				t.Error("it does not end")
			}
		})
	}
}
