package detect

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// readProcesses lists the processes below dir, /proc on a live machine. What
// another user's process keeps to itself (variables, directory) stays empty; a
// process that ends meanwhile is none.
func readProcesses(dir string) ([]Process, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		at := filepath.Join(dir, e.Name())
		fi, err := os.Stat(at)
		if err != nil {
			continue
		}
		argv := nulWords(filepath.Join(at, "cmdline"))
		cgroup, err := os.ReadFile(filepath.Join(at, "cgroup"))
		if len(argv) == 0 || err != nil || contained.Match(cgroup) {
			continue
		}
		cwd, err := os.Readlink(filepath.Join(at, "cwd"))
		if err != nil {
			cwd = ""
		}
		out = append(out, Process{
			PID: pid, UID: statUID(fi), Argv: argv, Env: environ(nulWords(filepath.Join(at, "environ"))),
			Dir: cwd, Unit: unitOf(string(cgroup)),
		})
	}
	return out, nil
}

// contained recognises processes of containers by their cgroup: their paths are
// not this machine's, and the engine tells of them.
var contained = regexp.MustCompile(`(?m)(/docker/|/docker-[0-9a-f]+\.scope|/libpod|/crio-|/kubepods|:/lxc/|/lxc\.payload|cri-containerd|/machine\.slice/)`)

// nulWords reads the words of a file of /proc; nil where it may not be read.
func nulWords(file string) []string {
	b, err := os.ReadFile(file)
	text := strings.TrimRight(string(b), "\x00")
	if err != nil || text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}

// unitOf is the system's service that a process belongs to, by its cgroup; "" for
// none, and for a user's own services, which nobody else may stop.
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[1] != "" && parts[1] != "name=systemd" || strings.HasPrefix(parts[2], "/user.slice/") {
			continue
		}
		for c := range strings.SplitSeq(parts[2], "/") {
			if strings.HasSuffix(c, ".service") {
				return c
			}
		}
	}
	return ""
}

func statUID(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }
