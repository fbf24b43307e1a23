package etcd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/secret"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/alone"
)

// etcdutl is etcd's own offline tool. It makes data directories, which depend on the
// version of the server that will run on them.
type etcdutl struct {
	path, version string
	bumps         bool // it can raise the revision
}

const (
	toolShort = 20 * time.Second
	toolLong  = 30 * time.Minute
)

var (
	versionLine = regexp.MustCompile(`(?m)^etcdutl version: (\d+\.\d+\.\d+\S*)$`)
	versionText = regexp.MustCompile(`^(\d+)\.(\d+)\.`)
)

// etcdutl finds the program and asks what it can do.
func (e *Etcd) etcdutl(ctx context.Context) (etcdutl, error) {
	where := "install etcd's tools of the version that will run, and set `replica.etcd.etcdutl: /path/of/etcdutl` where it is not in PATH"
	path, err := exec.LookPath(e.o.Etcdutl)
	if err != nil {
		return etcdutl{}, hint.Add(fmt.Errorf("%w: a data directory is made by etcdutl: %w", observer.ErrNotFit, err), where)
	}
	said, err := tool(ctx, toolShort, path, "version")
	m := versionLine.FindStringSubmatch(said)
	if err != nil || m == nil {
		return etcdutl{}, hint.Add(fmt.Errorf("%w: %s does not tell its version: %w", observer.ErrNotFit, path, errors.Join(err, errors.New(firstLine(said)))), where)
	}
	help, err := tool(ctx, toolShort, path, "snapshot", "restore", "--help")
	if err != nil {
		return etcdutl{}, fmt.Errorf("%w: %s: %w", observer.ErrNotFit, path, err)
	}
	return etcdutl{path: path, version: m[1], bumps: strings.Contains(help, "--bump-revision") && strings.Contains(help, "--mark-compacted")}, nil
}

// minor is the version as far as data directories depend on it.
func (u etcdutl) minor() string {
	major, minor := split(u.version)
	return fmt.Sprintf("%d.%d", major, minor)
}

func split(version string) (major, minor int) {
	if m := versionText.FindStringSubmatch(version); m != nil {
		major, _ = strconv.Atoi(m[1])
		minor, _ = strconv.Atoi(m[2])
	}
	return major, minor
}

// fits refuses a tool that is older than the server that made the dump, or more than
// one minor version newer: etcd is upgraded in steps of one.
func (u etcdutl) fits(dump string) error {
	major, minor := split(u.version)
	dmajor, dminor := split(dump)
	if dmajor == 0 || major == dmajor && (minor == dminor || minor == dminor+1) {
		return nil
	}
	return hint.Add(fmt.Errorf("%w: the dump is of etcd %s, %s is of %s", observer.ErrNotFit, dump, u.path, u.version),
		fmt.Sprintf("install etcd and etcdutl %d.%d, and name it in replica.etcd.etcdutl", dmajor, dminor))
}

// restore makes a data directory.
func (u etcdutl) restore(ctx context.Context, dump, dir string, spec []string, raise bool) error {
	args := append([]string{"snapshot", "restore", dump, "--data-dir", dir}, spec...)
	if raise && u.bumps {
		args = append(args, "--bump-revision", bump, "--mark-compacted")
	}
	said, err := tool(ctx, toolLong, append([]string{u.path}, args...)...)
	if err != nil {
		return fmt.Errorf("%s snapshot restore: %w: %s", u.path, err, lastLine(said))
	}
	return nil
}

// tool runs a program to its end and returns what it said.
func tool(ctx context.Context, within time.Duration, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	said, err := alone.Run(ctx, "", secret.Environ(), argv...)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return string(said), err
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s[:min(len(s), 300)]
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[:min(len(s), 600)]
}
