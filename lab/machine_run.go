package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// init finds the machine's PID 1 as this machine numbers it; it is another one
// after each reboot.
func (m *Machine) init() (string, error) {
	m.mu.Lock()
	pid := m.proc.cmd.Process.Pid
	m.mu.Unlock()
	list := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	b, err := os.ReadFile(list)
	if err != nil {
		return "", fmt.Errorf("find the machine's init: %w", err)
	}
	for _, init := range strings.Fields(string(b)) {
		status, err := os.ReadFile("/proc/" + init + "/status")
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "NSpid:"); ok && strings.HasSuffix(strings.TrimSpace(ids), "\t1") {
				return init, nil
			}
		}
	}
	return "", errors.New("find the machine's init: it has none now")
}

// enter is a program in the machine's namespaces, --all or --net alone, with a
// root login's environment.
func (m *Machine) enter(ctx context.Context, which string, argv ...string) (*exec.Cmd, error) {
	init, err := m.init()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", init, which, "--"}, argv...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	return cmd, nil
}

// Run runs a program in the machine, as root, and returns what it printed to
// stdout. What it printed to stderr is in the error.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	return m.output(ctx, "--all", argv)
}

// RunNet runs a program of this machine in the network of that one.
func (m *Machine) RunNet(ctx context.Context, argv ...string) (string, error) {
	return m.output(ctx, "--net", argv)
}

func (m *Machine) output(ctx context.Context, which string, argv []string) (string, error) {
	cmd, err := m.enter(ctx, which, argv...)
	if err != nil {
		return "", err
	}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(argv, " "), err, out.String(), stderr.String())
	}
	return out.String(), nil
}

// Script runs a bash script in the machine as a service of its own, as a login at
// its console would, and hands every line that it prints to said.
func (m *Machine) Script(ctx context.Context, script, dir string, said func(line string)) error {
	name := filepath.Join("/root", filepath.Base(m.dir)+".sh")
	if err := os.WriteFile(filepath.Join(m.Root, name), []byte(script), 0o700); err != nil {
		return err
	}
	cmd, err := m.enter(ctx, "--all", "systemd-run", "--quiet", "--collect", "--wait", "--pipe", "--working-directory="+dir,
		"--setenv=HOME=/root", "bash", name)
	if err != nil {
		return err
	}
	w := &lines{said: said}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Run()
	w.flush()
	return err
}

// lines cuts what is written to it into lines.
type lines struct {
	said func(string)
	rest []byte
}

func (w *lines) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.said(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

func (w *lines) flush() {
	if len(w.rest) > 0 {
		w.said(string(w.rest))
	}
}
