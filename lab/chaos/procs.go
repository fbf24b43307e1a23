package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// proc is a process as /proc shows it.
type proc struct {
	pid, parent int
	argv        []string
}

// look reads one process; ok is false where it is gone or a zombie.
func look(pid int) (p proc, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, false
	}
	// The second field is a name in parentheses, with whatever in it.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 2 || f[0] == "Z" || f[0] == "X" {
		return p, false
	}
	cmdline, err := os.ReadFile(dir + "/cmdline")
	if err != nil || len(cmdline) == 0 {
		return p, false
	}
	p.pid = pid
	if p.parent, err = strconv.Atoi(f[1]); err != nil {
		return p, false
	}
	p.argv = strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	return p, true
}

// processes are all that live.
func processes() ([]proc, error) {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []proc
	for _, n := range names {
		pid, err := strconv.Atoi(filepath.Base(n))
		if err != nil {
			continue
		}
		if p, ok := look(pid); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// nodeOf is the process that runs the node of a home, 0 where there is none.
func nodeOf(home string) int {
	all, err := processes()
	if err != nil {
		return 0
	}
	for _, p := range all {
		if len(p.argv) > 2 && p.argv[1] == "node" && p.argv[2] == "run" && slices.Contains(p.argv, home) {
			return p.pid
		}
	}
	return 0
}

// guardOf is the guard process of an eddy, 0 where it has none.
func guardOf(eddy int) int {
	all, err := processes()
	if err != nil {
		return 0
	}
	for _, p := range all {
		if p.parent == eddy && len(p.argv) == 2 && p.argv[1] == "guard" {
			return p.pid
		}
	}
	return 0
}

// signal sends to a process that may be gone already; to a group of them where pid
// is negative.
func signal(pid int, s syscall.Signal) error {
	if -1 <= pid && pid <= 1 {
		return nil // nobody; not every process, either
	}
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// leftovers are processes and mounts of ours: those that name dir.
func leftovers(dir string) []string {
	var left []string
	all, err := processes()
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range all {
		if p.pid != os.Getpid() && p.pid != os.Getppid() && p.pid != 1 && strings.Contains(strings.Join(p.argv, " "), dir) {
			left = append(left, fmt.Sprintf("process %d (%s)", p.pid, strings.Join(p.argv, " ")))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(left, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			left = append(left, "mount "+f[4])
		}
	}
	return left
}
