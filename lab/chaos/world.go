package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/lab"
	"github.com/eddy-backup/eddy/lab/chain"
	"github.com/eddy-backup/eddy/lab/grow"
)

// Options of the chaos. All are required but Rounds, Only and Upgraded.
type Options struct {
	Eddy   string // the executable
	Dir    string // an empty directory; removed at the end
	First  int    // number of the first round, from 1: to replay one
	Rounds int    // how many; 0: each once
	Seed   uint64
	Only   string // a regular expression on the names of rounds; "": all
	Size   int64  // of the databases beside the chain's own, bytes
	Server string // lab.Versitygw or lab.Minio
	Volume string // eddy's backup.volume_size

	// Upgraded, for Resume, is the executable of the run after the kill; "": the same.
	Upgraded string

	one bool // only the second node is to have Size
	Out io.Writer
}

const (
	partSize = 8 << 20 // eddy's, for objects of this size
	inFlight = 4       // parts
	timeout  = 10 * time.Second
	deadline = 15 * time.Second // of a hold, the stop included
	workSize = 2 << 20          // of the filesystem below the workdir
	prefix   = "chaos"
)

// world is everything that runs.
type world struct {
	o      Options
	chain  *chain.Chain
	store  *lab.S3
	bucket *bucket
	liar   *liar
	wire   *wire
	into   *disk // where restores go
	disks  []*disk
	mounts []string // tmpfs
	setups []*setup
	env    []string
}

// setup is a replica and the eddy beside it.
type setup struct {
	name    string // of the cluster
	home    string
	real    string // the home's directory without the disk before it
	rpc     string
	workdir string
	config  string
	disk    *disk // nil: plain
	watch   *watcher
	control string

	stored     int64 // bytes of the last good backup
	sentBefore int64 // liar.stored when the round began
	latest     latestDoc
	sign       map[string]signState
	secrets    [][]byte
	judged     map[string]string  // ETags of the manifests that were found good, by id
	contents   map[string]content // of the backups
	doomed     string             // id of the one that may go
	past       history            // in rounds of retention
}

func newWorld(ctx context.Context, o Options) (w *world, err error) {
	w = &world{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
			w = nil
		}
	}()
	w.chain, err = chain.New(ctx, chain.Options{
		Eddy: o.Eddy, Dir: filepath.Join(o.Dir, "chain"), Engine: "goleveldb", Validators: 2, Others: 1, Every: 100 * time.Millisecond,
	})
	if err != nil {
		return w, err
	}
	other := w.chain.Others[0]
	for i, home := range []string{w.chain.Home, other.Home} {
		if o.one && i == supervised {
			continue
		}
		data := filepath.Join(home, "data")
		if err := os.MkdirAll(data, 0o700); err != nil {
			return w, err
		}
		if _, err := grow.Run(ctx, grow.Options{Dir: data, Engine: "goleveldb", Prefix: grown, Size: o.Size, Seed: o.Seed + uint64(i)}); err != nil {
			return w, err
		}
	}
	if w.store, err = lab.StartS3(ctx, lab.S3Options{Dir: o.Dir, Server: o.Server}); err != nil {
		return w, err
	}
	w.bucket = newBucket(w.store)
	if w.liar, err = newLiar(w.store.Endpoint); err != nil {
		return w, err
	}
	if w.wire, err = newWire(w.liar.addr()); err != nil {
		return w, err
	}
	w.env = environ(w.store.Environ(os.Environ()))
	into := filepath.Join(o.Dir, "into")
	if err := os.Mkdir(into, 0o700); err != nil {
		return w, err
	}
	home, err := w.mount(w.chain.Home)
	if err != nil {
		return w, err
	}
	if w.into, err = w.mount(into); err != nil {
		return w, err
	}
	supervised := &setup{
		name: "supervised", home: w.chain.Home, real: home.backing, rpc: w.chain.RPC, disk: home,
		control: fmt.Sprintf("{supervise: %q, timeout: %s, deadline: %s}", w.chain.Socket, timeout, deadline),
	}
	plain := &setup{name: "exec", home: other.Home, real: other.Home, rpc: other.RPC}
	if plain.control, err = w.commands(other.Home); err != nil {
		return w, err
	}
	for _, s := range []*setup{supervised, plain} {
		if err := w.configure(s); err != nil {
			return w, err
		}
	}
	if err := w.chain.Start(ctx); err != nil {
		return w, err
	}
	if out, err := exec.CommandContext(ctx, filepath.Join(o.Dir, "ctl", "start")).CombinedOutput(); err != nil {
		return w, fmt.Errorf("start the other node: %w: %s", err, out)
	}
	for _, s := range []*setup{supervised, plain} {
		if err := s.follows(ctx); err != nil {
			return w, err
		}
		s.watch = watch(ctx, s)
		w.setups = append(w.setups, s)
	}
	return w, nil
}

// mount puts a disk before a directory.
func (w *world) mount(dir string) (*disk, error) {
	d, err := mountDisk(dir)
	if err == nil {
		w.disks = append(w.disks, d)
	}
	return d, err
}

// commands writes the shell commands by which the second node is stopped and
// started, and returns the control of its eddy.
func (w *world) commands(home string) (string, error) {
	dir := filepath.Join(w.o.Dir, "ctl")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	for name, body := range map[string]string{
		"start": fmt.Sprintf("setsid %s node run --home %s </dev/null >>%s/log 2>&1 &\necho $! >%[3]s/pid", w.o.Eddy, home, dir),
		"stop":  fmt.Sprintf("kill -TERM $(cat %s/pid)", dir),
		// One look: a zombie that is reaped between two would seem to run again.
		"status": fmt.Sprintf("case $(sed -n 's/^State:.\\(.\\).*/\\1/p' /proc/$(cat %s/pid)/status 2>/dev/null) in ''|Z|X) exit 3;; esac", dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("{exec: {stop: [%[1]s/stop], start: [%[1]s/start], status: [%[1]s/status]}, timeout: %[2]s, deadline: %[3]s}", dir, timeout, deadline), nil
}

// configure makes a set-up's workdir, on a small filesystem of its own, and its
// eddy.yaml.
func (w *world) configure(s *setup) error {
	s.workdir = filepath.Join(w.o.Dir, "work-"+s.name)
	s.config = filepath.Join(w.o.Dir, s.name+".yaml")
	s.judged, s.contents = map[string]string{}, map[string]content{}
	var err error
	if s.secrets, err = privateKeys(s.real); err != nil {
		return err
	}
	if err := os.Mkdir(s.workdir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", s.workdir, "tmpfs", 0, "mode=0700,size="+strconv.Itoa(workSize)); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", s.workdir, err)
	}
	w.mounts = append(w.mounts, s.workdir)
	witnesses := []string{}
	for _, v := range w.chain.Validators {
		witnesses = append(witnesses, v.RPC)
	}
	return writeFile(s.config, `cluster: %s
replica:
  kind: cometbft
  home: %q
  rpc: %q
  witnesses: [%s]
  control: %s
store: {url: "s3://%s/%s", endpoint: %q, region: %q}
backup: {when_behind: wait 1m, volume_size: %s}
schedule: "@every %s"
retention: {by: eddy, last: %d}
workdir: %q
`, s.name, s.home, s.rpc, strings.Join(witnesses, ", "), s.control, w.store.Bucket, prefix, w.wire.endpoint(), w.store.Region, w.o.Volume, period, kept, s.workdir)
}

// heal ends all faults.
func (w *world) heal() error {
	w.liar.tell(nil)
	for _, d := range w.disks {
		d.heal()
	}
	var errs []error
	for _, s := range w.setups {
		errs = append(errs, ignoreAbsent(os.Remove(s.ballast())))
	}
	return errors.Join(append(errs, w.wire.heal())...)
}

func (s *setup) ballast() string { return filepath.Join(s.workdir, "ballast") }

// fill leaves no byte on the workdir's filesystem.
func (s *setup) fill() error {
	f, err := os.OpenFile(s.ballast(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 4096)
	for {
		if _, err := f.Write(b); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// height asks a node.
func height(ctx context.Context, rpc string) (h int64, catching bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rpc+"/status", nil)
	if err != nil {
		return 0, false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	var s struct {
		Result struct {
			SyncInfo struct {
				Height     int64 `json:"latest_block_height,string"`
				CatchingUp bool  `json:"catching_up"`
			} `json:"sync_info"`
		}
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s)
	return s.Result.SyncInfo.Height, s.Result.SyncInfo.CatchingUp, err
}

// follows returns when the node makes blocks with the others.
func (s *setup) follows(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	first := int64(-1)
	for {
		h, catching, err := height(ctx, s.rpc)
		switch {
		case err == nil && first < 0:
			first = h
		case err == nil && !catching && h > first:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the node of %s does not follow: height %d, catching up: %t (%w)", s.name, h, catching, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stop ends everything, whatever of it has begun. It may be called once.
func (w *world) stop() error {
	var errs []error
	if w.wire != nil {
		errs = append(errs, w.heal())
	}
	for _, s := range w.setups {
		s.watch.stop()
	}
	errs = append(errs, w.stopOther())
	if w.chain != nil {
		errs = append(errs, w.chain.Stop())
	}
	for _, d := range w.disks {
		errs = append(errs, d.unmount())
	}
	for _, m := range w.mounts {
		errs = append(errs, os.NewSyscallError("umount "+m, syscall.Unmount(m, 0)))
	}
	if w.wire != nil {
		w.wire.cut()
	}
	if w.liar != nil {
		errs = append(errs, w.liar.close())
	}
	if w.store != nil {
		errs = append(errs, w.store.Stop())
	}
	return errors.Join(errs...)
}

// stopOther ends the node that has no parent.
func (w *world) stopOther() error {
	if w.chain == nil {
		return nil
	}
	home := w.chain.Others[0].Home
	pid := nodeOf(home)
	if err := signal(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for range 300 {
		if nodeOf(home) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(fmt.Errorf("the node of %s did not stop", home), signal(pid, syscall.SIGKILL))
}
