package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/lab"
	"github.com/eddy-backup/eddy/lab/chain"
	"github.com/eddy-backup/eddy/lab/grow"
)

// These are Debian's own; another aws in PATH would be another comparison.
const (
	awsCLI  = "/usr/bin/aws"
	gnuTime = "/usr/bin/time"
)

// summary is what `eddy backup --json` says at the end of a backup.
type summary struct {
	MessageType string  `json:"message_type"`
	Outcome     string  `json:"outcome"`
	ID          string  `json:"id"`
	SourceBytes int64   `json:"source_bytes"`
	StoredBytes int64   `json:"stored_bytes"`
	Held        float64 `json:"held_seconds"`
	Stop        float64 `json:"stop_seconds"`
	Stage       float64 `json:"stage_seconds"`
	Start       float64 `json:"start_seconds"`
}

// usage is what one run of a program and all its children took.
type usage struct {
	wall   float64 // seconds
	cpu    float64 // user and system seconds
	rss    int64   // bytes, of the largest process
	stored int64   // bytes in the bucket
}

// measure grows one node's databases and runs all three contests on them, in
// turns, so that whatever else the machine does falls on all alike.
func measure(ctx context.Context, o options, engine string, store *lab.S3, progress io.Writer) (r result, err error) {
	r.engine = engine
	dir := filepath.Join(o.dir, engine)
	say := func(format string, args ...any) { fmt.Fprintf(progress, "bench: "+engine+": "+format+"\n", args...) }
	c, err := chain.New(ctx, chain.Options{Eddy: o.eddy, Dir: dir, Engine: engine})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Stop(), os.RemoveAll(dir)) }()

	say("growing %d MB of databases", o.size/1e6)
	data := filepath.Join(c.Home, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return r, err
	}
	// They are the node's own, which it goes on with: the check of a backup opens them.
	if _, err := grow.Run(ctx, grow.Options{Dir: data, Engine: engine, Size: o.size, Seed: 1}); err != nil {
		return r, err
	}
	// cp and tar read a copy that nobody writes to: on the living directory tar
	// would stumble over files that change and vanish.
	still := filepath.Join(o.dir, engine+"-still")
	defer func() { err = errors.Join(err, os.RemoveAll(still)) }()
	if _, err := output(ctx, nil, "cp", "-a", data, still); err != nil {
		return r, err
	}
	if r.bytes, r.files, err = sizeOf(still); err != nil {
		return r, err
	}
	if err := c.Start(ctx); err != nil {
		return r, err
	}
	for i := range o.runs {
		say("run %d of %d", i+1, o.runs)
		if err := r.cpA(ctx, o, still); err != nil {
			return r, err
		}
		ours := func() error { return r.backup(ctx, o, c, dir, store, i) }
		theirs := func() error { return r.pipeline(ctx, o, store, still) }
		if i%2 == 1 { // who goes first changes, too
			ours, theirs = theirs, ours
		}
		if err := ours(); err != nil {
			return r, err
		}
		if err := theirs(); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *result) cpA(ctx context.Context, o options, src string) error {
	dst := filepath.Join(o.dir, "cp")
	if err := settle(o.dir); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := output(ctx, nil, "cp", "-a", src, dst); err != nil {
		return err
	}
	r.cp = append(r.cp, time.Since(begin).Seconds())
	return os.RemoveAll(dst)
}

// backup runs eddy with a configuration and a place in the bucket of its own, so
// that each run is a first one: nothing is known, nothing can be left out.
func (r *result) backup(ctx context.Context, o options, c *chain.Chain, dir string, store *lab.S3, i int) error {
	if err := c.Wait(ctx, 2); err != nil {
		return err
	}
	if err := settle(o.dir); err != nil {
		return err
	}
	prefix := fmt.Sprintf("eddy-%s-%d", r.engine, i)
	work := filepath.Join(dir, fmt.Sprintf("work-%d", i))
	config := work + ".yaml"
	text := fmt.Sprintf(`cluster: bench
replica:
  kind: cometbft
  home: %q
  rpc: %q
  witnesses: [%q]
  control: {supervise: %q, timeout: 120s, deadline: 10m}
store: {url: %q, endpoint: %q, region: %q}
workdir: %q
schedule: "@daily"
`, c.Home, c.RPC, c.ValidatorRPC, c.Socket, "s3://"+store.Bucket+"/"+prefix, store.Endpoint, store.Region, work)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	u, out, err := timed(ctx, o.dir, store.Environ(os.Environ()), o.eddy, "backup", "--config", config, "--json")
	if err != nil {
		return err
	}
	s, err := lastSummary(out)
	if err != nil {
		return err
	}
	u.stored = s.StoredBytes
	r.eddy, r.sums = append(r.eddy, u), append(r.sums, s)
	r.held = append(r.held, s.Held-s.Stop-s.Start)
	checked, _, err := checkOf(ctx, o.eddy, store.Environ(os.Environ()), config, s.ID)
	if err != nil {
		return err
	}
	r.check = append(r.check, checked)
	if i == o.runs-1 {
		if r.verify, _, err = watched(ctx, store.Environ(os.Environ()), o.eddy, "verify", s.ID, "--read-data", "--config", config); err != nil {
			return err
		}
	}
	// The server keeps objects as files; this spares the disk, not the contest.
	return os.RemoveAll(filepath.Join(store.Data, store.Bucket, prefix))
}

func (r *result) pipeline(ctx context.Context, o options, store *lab.S3, src string) error {
	if err := settle(o.dir); err != nil {
		return err
	}
	script := `set -euo pipefail; tar -C "$1" -c . | zstd -q -1 -T2 -c | ` + awsCLI + ` --endpoint-url "$2" s3 cp --only-show-errors - "$3"`
	u, _, err := timed(ctx, o.dir, store.Environ(os.Environ()), "bash", "-c", script, "bash", src, store.Endpoint, "s3://"+store.Bucket+"/pipe/all.tar.zst")
	if err != nil {
		return err
	}
	dir := filepath.Join(store.Data, store.Bucket, "pipe")
	if u.stored, _, err = sizeOf(dir); err != nil {
		return err
	}
	if u.stored == 0 {
		return errors.New("tar | zstd | aws stored nothing")
	}
	r.pipe = append(r.pipe, u)
	return os.RemoveAll(dir)
}

// timed runs argv under GNU time, whose figures include every child that was
// waited for. (A wait4 from here would not do: the kernel counts the memory of
// the process that starts a program as the program's own peak.)
func timed(ctx context.Context, dir string, env []string, argv ...string) (usage, string, error) {
	f, err := os.CreateTemp(dir, "time-")
	if err != nil {
		return usage{}, "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	begin := time.Now()
	out, err := output(ctx, env, gnuTime, append([]string{"-v", "-o", f.Name(), "--"}, argv...)...)
	u := usage{wall: time.Since(begin).Seconds()}
	if err != nil {
		return u, out, err
	}
	report, err := io.ReadAll(f)
	if err != nil {
		return u, out, err
	}
	err = u.read(string(report))
	return u, out, err
}

// read takes CPU and memory from what `time -v` writes.
func (u *usage) read(report string) error {
	field := func(name string) (float64, error) {
		m := regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(name) + `: ([0-9.]+)$`).FindStringSubmatch(report)
		if m == nil {
			return 0, fmt.Errorf("%s -v reports no %q", gnuTime, name)
		}
		return strconv.ParseFloat(m[1], 64)
	}
	user, err1 := field("User time (seconds)")
	system, err2 := field("System time (seconds)")
	rss, err3 := field("Maximum resident set size (kbytes)")
	u.cpu, u.rss = user+system, int64(rss)<<10
	return errors.Join(err1, err2, err3)
}

func lastSummary(out string) (summary, error) {
	var found summary
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s summary
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return found, fmt.Errorf("eddy backup --json printed %q: %w", lines.Text(), err)
		}
		if s.MessageType == "summary" {
			found = s
		}
	}
	if err := lines.Err(); err != nil {
		return found, err
	}
	if found.Outcome != "ready" {
		return found, fmt.Errorf("eddy backup ended %q, want ready", found.Outcome)
	}
	return found, nil
}

// output runs a program to its end and returns its standard output. An error
// carries the end of what it wrote to the other.
func output(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	// A group of its own, signalled as a whole: time(1) does not pass a signal on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tail := stderr.String()
		return stdout.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail[max(0, len(tail)-2000):])
	}
	return stdout.String(), nil
}

// settle writes out what earlier measurements left dirty, so that the next one
// does not pay for it.
func settle(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func sizeOf(dir string) (bytes int64, files int, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Size()
			files++
		}
		return err
	})
	return bytes, files, err
}

// versions names everything that takes part.
func versions(ctx context.Context, eddy string) (string, error) {
	var parts []string
	for _, argv := range [][]string{{eddy, "version"}, {awsCLI, "--version"}, {"zstd", "--version"}, {"tar", "--version"}, {"cp", "--version"}} {
		out, err := output(ctx, nil, argv[0], argv[1:]...)
		if err != nil {
			return "", err
		}
		first, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
		parts = append(parts, first)
	}
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return "", err
	}
	server, err := lab.Binary("versitygw")
	if err != nil {
		return "", err
	}
	info, err := buildinfo.ReadFile(server)
	if err != nil {
		return "", err
	}
	parts = append(parts, "versitygw "+info.Main.Version, runtime.Version(),
		"Linux "+unix.ByteSliceToString(un.Release[:]), fmt.Sprintf("%d CPUs", runtime.NumCPU()))
	return strings.Join(parts, "; "), nil
}
