package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// notYet is an error of a target that must not be restored onto now.
func notYet(advice, format string, args ...any) error {
	return hint.Add(fmt.Errorf("%w: %s", observer.ErrNotFit, fmt.Sprintf(format, args...)), advice)
}

// Target implements observer.Restorer. The whole ensemble must be down: a server that
// comes back with an old state beside others that have a newer one takes theirs, or
// splits the history.
func (r *Replica) Target(ctx context.Context, t observer.RestoreTask) (string, error) {
	id, err := readMyID(r.o.DataDir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	if id == "" && len(r.o.Conf.Servers) > 1 {
		return "", notYet("write its number there, the N of its server.N in zoo.cfg; a backup has none", "%s is missing: nothing says which server this is", filepath.Join(r.o.DataDir, myID))
	}
	if err := r.allDown(ctx); err != nil {
		return "", err
	}
	there, err := r.there()
	if err != nil {
		return "", err
	}
	name := "server " + id
	if id == "" {
		name = "the server"
	}
	if there == "" {
		return name + " in " + r.o.DataDir + ", empty", nil
	}
	if !t.Overwrite {
		return "", notYet("say --overwrite-live to replace it; it is kept in "+filepath.Join(r.o.DataDir, snapshot.StageDir), "%s in %s is not fresh: it has %s", name, r.o.DataDir, there)
	}
	return name + " in " + r.o.DataDir + ": " + there, nil
}

// allDown proves that this server is down, and that nobody answers at the addresses
// of the others.
func (r *Replica) allDown(ctx context.Context) error {
	const stop = "stop ZooKeeper on every server of the ensemble, observers too, then restore on each, then start them together"
	if err := control.AllDown(dirs(r.o), []string{r.o.Conf.Client})(ctx); err != nil {
		return hint.Add(fmt.Errorf("%w: %w", observer.ErrNotFit, err), stop)
	}
	errs := make([]error, 2*len(r.o.Conf.Servers))
	var wg sync.WaitGroup
	for i, s := range r.o.Conf.Servers {
		for j, addr := range []string{s.Client, s.Election} {
			if addr == "" {
				continue
			}
			wg.Go(func() {
				conn, err := (&net.Dialer{Timeout: askWithin}).DialContext(ctx, "tcp", addr)
				if err == nil {
					conn.Close()
					errs[2*i+j] = notYet(stop, "server %s still answers at %s", s.ID, addr)
				}
			})
		}
	}
	wg.Wait()
	for _, err := range errs { // one at a time is enough
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// there says what a server has; "": nothing.
func (r *Replica) there() (string, error) {
	snaps, err := named(filepath.Join(r.o.DataDir, stateDir), snapPrefix)
	if err != nil {
		return "", err
	}
	logs, err := named(filepath.Join(r.o.LogDir, stateDir), logPrefix)
	if err != nil || len(snaps)+len(logs) == 0 {
		return "", err
	}
	last := uint64(0)
	for _, f := range append(snaps, logs...) {
		last = max(last, f.zxid)
	}
	return fmt.Sprintf("%d snapshots and %d logs, of zxid 0x%x and on", len(snaps), len(logs), last), nil
}

// newDir below a directory's .eddy is where a state is made ready.
const newDir = "zookeeper-new"

// Restore implements observer.Restorer: the state is made ready beside the one that
// is there, which is then moved aside. What a call that was killed has left is made
// anew by the next one, and what was moved aside stays there.
func (r *Replica) Restore(ctx context.Context, t observer.RestoreTask) ([]string, error) {
	if err := r.allDown(ctx); err != nil {
		return nil, err
	}
	say := func(format string, args ...any) {
		if t.Say != nil {
			t.Say("restore", fmt.Sprintf(format, args...))
		}
	}
	fsys := fsx.FS{}
	places := dirs(r.o)
	for _, dir := range places {
		if err := r.ready(ctx, fsys, t.Dir, dir); err != nil {
			return nil, fmt.Errorf("make the state ready in %s: %w", dir, err)
		}
	}
	// Others may have been started meanwhile.
	if err := r.allDown(ctx); err != nil {
		return nil, err
	}
	word := time.Now().UTC().Format("20060102T150405.000Z")
	var kept []string
	for _, dir := range places {
		old, err := putInPlace(fsys, dir, word)
		if err != nil {
			return nil, fmt.Errorf("move the state into place in %s: %w", dir, err)
		}
		if old != "" {
			kept = append(kept, old)
			say("what was there is kept in %s", old)
		}
	}
	return r.next(kept), nil
}

// ready makes the state of one of the server's directories: its logs, its snapshots
// and epochs, or both.
func (r *Replica) ready(ctx context.Context, fsys fsx.FS, from, dir string) (err error) {
	own, err := os.Stat(dir)
	if err != nil {
		return hint.Add(err, "make the directory, owned by ZooKeeper's user")
	}
	st := own.Sys().(*syscall.Stat_t)
	owned := func(p string) error {
		if os.Geteuid() != 0 {
			return nil
		}
		return fsys.Chown(p, int(st.Uid), int(st.Gid))
	}
	top := filepath.Join(dir, snapshot.StageDir)
	work := filepath.Join(top, newDir)
	if err := fsys.RemoveAll(work); err != nil {
		return err
	}
	to := filepath.Join(work, stateDir)
	if err := fsys.MkdirAll(to, 0o750); err != nil {
		return err
	}
	if err := errors.Join(owned(top), owned(to)); err != nil {
		return err
	}
	names, err := os.ReadDir(filepath.Join(from, stateDir))
	if err != nil {
		return err
	}
	for _, n := range names {
		isLog := strings.HasPrefix(n.Name(), logPrefix)
		if isLog && dir != r.o.LogDir || !isLog && dir != r.o.DataDir {
			continue
		}
		dst := filepath.Join(to, n.Name())
		if err := copyFile(ctx, fsys, filepath.Join(from, stateDir, n.Name()), dst); err != nil {
			return err
		}
		if err := owned(dst); err != nil {
			return err
		}
	}
	return fsys.SyncDir(to)
}

func copyFile(ctx context.Context, fsys fsx.FS, src, dst string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := fsys.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, reader{ctx, in})
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// putInPlace moves what is in a directory aside, and what was made ready in.
func putInPlace(fsys fsx.FS, dir, word string) (old string, err error) {
	top := filepath.Join(dir, snapshot.StageDir)
	live := filepath.Join(dir, stateDir)
	if _, err := os.Lstat(live); err == nil {
		old = filepath.Join(top, "before-"+word)
		if err := fsys.Mkdir(old, 0o700); err != nil {
			return "", err
		}
		if err := fsys.Rename(live, filepath.Join(old, stateDir)); err != nil {
			return "", err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := fsys.Rename(filepath.Join(top, newDir, stateDir), live); err != nil {
		return old, err
	}
	return old, errors.Join(fsys.Remove(filepath.Join(top, newDir)), fsys.SyncDir(dir), fsys.SyncDir(top))
}

// next is what is left to do.
func (r *Replica) next(kept []string) []string {
	var others []string
	own, _ := readMyID(r.o.DataDir) // it was read a moment ago
	for _, s := range r.o.Conf.Servers {
		if !r.isSelf(s, own) {
			others = append(others, strings.TrimSpace(s.ID+" ("+s.Client+")"))
		}
	}
	var next []string
	if len(others) > 0 {
		next = append(next, "restore the same backup on each other server, before any is started: "+strings.Join(others, ", "))
	}
	next = append(next,
		"start all of them together; `eddy doctor` says when they serve with one leader",
		"then, once: `eddy backup --new-incarnation`, since zxids may be lower than before")
	for _, k := range kept {
		next = append(next, "when all is well: "+hint.Command("rm", "-r", k))
	}
	return next
}
