package etcd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/alone"
	"github.com/eddy-backup/eddy/snapshot"
)

// Drill is how a backup is brought to life: as a cluster of one, on loopback.
type Drill struct {
	Canary  string // a key that must be there; "": none
	Timeout time.Duration
}

const (
	drillName  = "eddy-drill"
	readyEvery = 100 * time.Millisecond
)

// Possible implements observer.Driller.
func (e *Etcd) Possible(ctx context.Context, _ observer.Position) error {
	if _, err := exec.LookPath(e.o.Etcd); err != nil {
		return hint.Add(fmt.Errorf("%w: %w", observer.ErrNotPossible, err), "install etcd and etcdutl here, of the version that the members run, and name them in replica.etcd.etcd and replica.etcd.etcdutl where they are not in PATH")
	}
	if _, err := e.etcdutl(ctx); err != nil {
		return hint.Add(fmt.Errorf("%w: %w", observer.ErrNotPossible, err), hint.Of(err))
	}
	return nil
}

// Prepare implements observer.Driller: the copy needs nothing of the cluster.
func (e *Etcd) Prepare(context.Context, observer.DrillTask) error { return nil }

// Sweep implements observer.Driller: the server dies with the eddy that started it.
func (e *Etcd) Sweep(context.Context, string) error { return nil }

// Drill implements observer.Driller: a cluster of one is made of the dump as a restore
// makes it, but for the revision, so that its keys and its hash can be compared; it
// must take a write.
func (e *Etcd) Drill(ctx context.Context, t observer.DrillTask) (r observer.DrillReport, err error) {
	dir := filepath.Join(t.Scratch, observer.DrillHome)
	r = observer.DrillReport{Outcome: observer.DrillFailed, Isolated: true, Network: "host"}
	got, err := e.Check(ctx, []snapshot.Tree{{Dir: dir}}, observer.Position{})
	if err != nil {
		return r, err
	}
	if len(got.Findings) > 0 {
		r.Why = got.Findings[0]
		return r, nil
	}
	n, err := observer.ReadNote(dir)
	if err != nil {
		return r, err
	}
	utl, err := e.etcdutl(ctx)
	if err == nil {
		err = utl.fits(n.State.Version)
	}
	if err != nil {
		why := strings.TrimPrefix(err.Error(), observer.ErrNotFit.Error()+": ") // which is about backups
		r.Outcome, r.Why, r.Hint = observer.DrillNotPossible, why, hint.Of(err)
		return r, nil
	}
	begun := time.Now()
	tctx, cancel := context.WithTimeout(ctx, e.o.Drill.Timeout)
	defer cancel()
	m := &copied{e: e, dir: t.Scratch, say: t.Say}
	err = m.run(tctx, utl, filepath.Join(dir, observer.DumpName), got, &r)
	if m.srv != nil {
		err = errors.Join(err, m.srv.Stop())
	}
	r.StartSeconds = time.Since(begun).Seconds()
	switch {
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case errors.Is(err, observer.ErrNotPossible):
		r.Outcome, r.Why, r.Hint = observer.DrillNotPossible, err.Error(), hint.Of(err)
	case err != nil:
		r.Why, r.Hint, r.Late = err.Error(), hint.Of(err), tctx.Err() != nil
		if m.srv != nil {
			r.Log = m.srv.Tail()
		}
	default:
		r.Outcome = observer.DrillPassed
	}
	return r, nil
}

// copied is a cluster of one that lives on a dump.
type copied struct {
	e   *Etcd
	dir string
	say func(phase, text string)
	srv *alone.Server // nil before it was started
}

// run brings the dump to life and compares it with what it should be.
func (m *copied) run(ctx context.Context, utl etcdutl, dump string, want observer.Checked, r *observer.DrillReport) error {
	ports, err := alone.Ports(2)
	if err != nil {
		return err
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	data := filepath.Join(m.dir, "data")
	spec := []string{"--name", drillName, "--initial-cluster", drillName + "=" + peer, "--initial-cluster-token", drillName, "--initial-advertise-peer-urls", peer}
	if err := utl.restore(ctx, dump, data, spec, false); err != nil {
		return err
	}
	m.tell("starting a cluster of one on " + client)
	argv := append([]string{
		m.e.o.Etcd, "--data-dir", data, "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
	}, spec...)
	r.Command = argv
	if m.srv, err = alone.Start(alone.Command{Argv: argv, Env: alone.Bare(m.dir), Dir: m.dir, Log: filepath.Join(m.dir, "etcd.log")}); err != nil {
		return fmt.Errorf("start an etcd for the drill: %w", err)
	}
	o := m.e.o
	o.Endpoints, o.Any, o.TLS = []string{client}, false, TLS{}
	one := New(o)
	if r.Version, err = m.ready(ctx, one); err != nil {
		return err
	}
	m.tell("comparing it with the dump")
	if ctx, err = one.login(ctx); err != nil {
		return hint.Add(fmt.Errorf("%w: the copy wants a login: %w", observer.ErrNotPossible, err), "set replica.etcd.user and replica.etcd.password_file as they were when the backup was made")
	}
	return one.with(ctx, client, m.e.o.Timeout, func(ctx context.Context, c *conn) error {
		return prove(ctx, c, want, o.Drill.Canary, r)
	})
}

func prove(ctx context.Context, c *conn, want observer.Checked, canary string, r *observer.DrillReport) error {
	at, keys := int64(want.At.Index), want.Proven["keys"]
	h, err := c.c.HashKV(ctx, c.url, at)
	if err != nil {
		return fmt.Errorf("ask the copy for its hash: %w", err)
	}
	if got := fmt.Sprintf("%08x", h.Hash); got != hex.EncodeToString(want.At.Hash) {
		r.Mismatch = &observer.Mismatch{Height: want.At.Index, What: "hashkv", Want: hex.EncodeToString(want.At.Hash), Got: got}
		return fmt.Errorf("the copy's hashkv is %s, the dump's %x", got, want.At.Hash)
	}
	all, err := c.c.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly(), clientv3.WithRev(at))
	if err != nil {
		return fmt.Errorf("count the copy's keys: %w", err)
	}
	if all.Count != keys {
		return fmt.Errorf("the copy has %d keys, the dump %d", all.Count, keys)
	}
	r.Proved = fmt.Sprintf("%d keys, with the dump's hashkv, read from an etcd that lives on it", keys)
	if canary != "" {
		got, err := c.c.Get(ctx, canary, clientv3.WithCountOnly(), clientv3.WithRev(at))
		if err == nil && got.Count == 0 {
			err = errors.New("it is not there")
		}
		if err != nil {
			return fmt.Errorf("the canary %s: %w", canary, err)
		}
		r.Proved += "; the canary is there"
	}
	if _, err := c.c.Put(ctx, drillName, "alive"); err != nil {
		return fmt.Errorf("it takes no write: %w", err)
	}
	r.Proved += "; it takes writes"
	return nil
}

func (m *copied) tell(text string) {
	if m.say != nil {
		m.say("drill", text)
	}
}

// ready waits until the copy leads itself, and returns its version. A cluster with
// logins answers nobody else: that it refuses is an answer.
func (m *copied) ready(ctx context.Context, one *Etcd) (version string, err error) {
	for {
		if lctx, lerr := one.login(ctx); lerr == nil {
			if a := one.ask(lctx, one.o.Endpoints)[0]; a.err == nil && a.leads() {
				return "etcd " + a.status.Version, nil
			} else if a.err != nil && strings.Contains(a.err.Error(), "user name is empty") {
				return "", hint.Add(fmt.Errorf("%w: the copy wants a login", observer.ErrNotPossible), "set replica.etcd.user and replica.etcd.password_file")
			}
		} else if strings.Contains(lerr.Error(), "authentication failed") {
			return "", fmt.Errorf("%w: %w", observer.ErrNotPossible, lerr)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-m.srv.Done():
			return "", errors.New("the copy ended before it was ready")
		case <-time.After(readyEvery):
		}
	}
}
