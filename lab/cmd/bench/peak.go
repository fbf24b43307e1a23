package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// watched runs a program and returns the most memory that it has had resident, in
// bytes: itself, and not its children. The kernel keeps that number up to date, so it
// is read often, and the last answer counts.
func watched(ctx context.Context, env []string, argv ...string) (peak int64, out string, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return 0, "", err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				tail := stdout.String() + stderr.String()
				err = fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, tail[max(0, len(tail)-2000):])
			}
			return peak, stdout.String(), err
		case <-t.C:
			peak = max(peak, highWater(cmd.Process.Pid))
		}
	}
}

// highWater is VmHWM of a process; 0 of one that is no more.
func highWater(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b), "VmHWM:")
	fields := strings.Fields(rest)
	if !ok || len(fields) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}
