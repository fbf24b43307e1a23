package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

const (
	// dialTime is what a listed manager gets to show that it lives.
	dialTime = 2 * time.Second
	// formTime bounds the forming of the new swarm; it takes a second or two.
	formTime = 2 * time.Minute
	// freshDir is the state that is being laid down, beside the one that it replaces.
	freshDir = "swarm.eddy-new"
)

// Target implements observer.Restorer: the engine must stand still, for it writes to
// what is replaced.
func (r *Replica) Target(ctx context.Context, t observer.RestoreTask) (string, error) {
	if err := r.node.Still(ctx); err != nil {
		if !errors.Is(err, control.ErrNotDown) {
			return "", err
		}
		return "", hint.Add(fmt.Errorf("%w: the engine must stand still: %w", observer.ErrNotFit, err), "as root: `systemctl stop docker.socket docker.service`; see docs/swarm.md")
	}
	there, err := r.there(ctx)
	switch {
	case err != nil:
		return "", err
	case there == "":
		return "no swarm, in " + r.dir(), nil
	case !t.Overwrite:
		return "", hint.Add(fmt.Errorf("%w: there is %s", observer.ErrNotFit, there), "say --overwrite-live to put it aside")
	}
	return there, nil
}

// there says what lies where the state will; "" of nothing that a manager has written.
func (r *Replica) there(ctx context.Context) (string, error) {
	_, err := os.Lstat(filepath.Join(r.dir(), certFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	d := &dump{}
	if err := d.readState(ctx, r.dir(), nil); err != nil && !errors.Is(err, errKey) {
		return "what is left of a member of a swarm, in " + r.dir(), nil
	}
	return fmt.Sprintf("%s %s of swarm %s at %s, in %s", d.role(), d.nodeID(), d.cluster(), d.position(), r.dir()), nil
}

// Restore implements observer.Restorer. A dump of a locked swarm is laid down unlocked:
// else the manager would wait for a quorum that cannot come.
func (r *Replica) Restore(ctx context.Context, t observer.RestoreTask) ([]string, error) {
	say := t.Say
	if say == nil {
		say = func(string, string) {}
	}
	keys, err := r.keys(ctx)
	if err != nil {
		return nil, err
	}
	d, err := readDump(ctx, t.Dir, keys)
	if errors.Is(err, errKey) {
		err = hint.Add(fmt.Errorf("%w: %w", observer.ErrNotFit, err), "the key lies in the bundle that was made with the backup: `eddy keys restore latest`; then set `replica.swarm.unlock_key: {file: FILE}`")
	}
	if err == nil {
		err = r.owns(d.advertised())
	}
	if err == nil {
		err = nobodyLives(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	aside, err := r.lay(ctx, t.Dir, d)
	if err != nil {
		return nil, err
	}
	if aside != "" {
		say("aside", "what was there is in "+aside)
	}
	say("laid", fmt.Sprintf("%s of swarm %s at %s is in place", d.nodeID(), d.cluster(), d.position()))
	if t.NoStart {
		return r.byHand(d), nil
	}
	if err := r.o.Control.Start(ctx); err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, formTime, fmt.Errorf("it took longer than %s", formTime))
	defer cancel()
	if err := r.form(ctx, d, say); err != nil {
		return nil, hint.Add(err, hint.Or(err, "the state is in place: go on by hand, "+strings.Join(r.byHand(d), "; ")))
	}
	return r.after(d), nil
}

// owns refuses an address that this host does not have: the raft log has the node at
// that one for good, and the first manager that joins would look for it there and take
// the quorum away (docker/for-linux#523).
func (r *Replica) owns(addr string) error {
	want := net.ParseIP(addr)
	if want == nil {
		return fmt.Errorf("%w: the raft log has the node at %q, which is no address", observer.ErrNotFit, addr)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(want) {
			return nil
		}
	}
	bits := 24
	if want.To4() == nil {
		bits = 64
	}
	return hint.Add(fmt.Errorf("%w: the raft log has the node at %s, which no interface of this host has", observer.ErrNotFit, addr),
		fmt.Sprintf("as root: `ip addr add %s/%d dev eth0`, with your interface, and keep it: the first manager that joins looks for it there", addr, bits))
}

// nobodyLives refuses while a manager that the dump knows answers: the restored node
// would speak to it at once, under the id of its twin.
func nobodyLives(ctx context.Context, d *dump) error {
	addrs := map[string]string{}
	for _, p := range d.Peers {
		addrs[p.Addr] = p.NodeID
	}
	if d.Log.Store != nil {
		for _, m := range d.Log.Store.managers("") {
			addrs[m.Addr] = m.NodeID
		}
	}
	delete(addrs, d.Log.Self.Addr)
	var alive []string
	for addr, id := range addrs {
		c, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		_ = c.Close()
		if id != d.nodeID() {
			alive = append(alive, id+" at "+addr)
		}
	}
	if len(alive) == 0 {
		return ctx.Err()
	}
	slices.Sort(alive)
	return hint.Add(fmt.Errorf("%w: a manager of that swarm answers: %s", observer.ErrNotFit, fewNames(alive)),
		"where the swarm lives, none of it has to be restored: `docker swarm join-token manager`; else stop those engines first, or cut them off")
}

// lay puts the state into place: all of it is written beside, then two names are
// changed. aside is where the old state is. A kill leaves either, or, between the two
// names, neither, which the next call mends.
func (r *Replica) lay(ctx context.Context, from string, d *dump) (aside string, err error) {
	fsys := fsx.FS{}
	fresh := filepath.Join(r.o.DataRoot, freshDir)
	if err := errors.Join(fsys.MkdirAll(r.o.DataRoot, 0o711), fsys.RemoveAll(fresh)); err != nil {
		return "", err
	}
	src := filepath.Join(from, stateDir)
	names, err := stateFiles(src)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		dst := filepath.Join(fresh, filepath.FromSlash(name))
		if err := fsys.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
			return "", err
		}
		if name == nodeFile && d.Key.Locked {
			err = fsys.WriteFileAtomic(dst, d.Key.plain(d.Opened), 0o600)
		} else {
			err = copyDurably(ctx, fsys, filepath.Join(src, filepath.FromSlash(name)), dst)
		}
		if err != nil {
			return "", err
		}
	}
	// An engine reads these as any user; its directory keeps others out.
	for _, dir := range []string{snapDir, walDir, "worker"} {
		if err := fsys.MkdirAll(filepath.Join(fresh, filepath.FromSlash(dir)), 0o700); err != nil {
			return "", err
		}
	}
	if err := fsys.SyncFS(fresh); err != nil {
		return "", err
	}
	_, err = os.Lstat(r.dir())
	switch {
	case err == nil:
		aside = filepath.Join(r.o.DataRoot, "swarm.before-"+time.Now().UTC().Format("20060102T150405.000Z"))
		err = fsys.Rename(r.dir(), aside)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err == nil {
		err = fsys.Rename(fresh, r.dir())
	}
	if err == nil {
		err = fsys.SyncDir(r.o.DataRoot)
	}
	if err != nil {
		return aside, fmt.Errorf("put the state into place: %w", err)
	}
	return aside, nil
}

func copyDurably(ctx context.Context, fsys fsx.FS, src, dst string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := fsys.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, &patient{ctx, in})
	return errors.Join(err, out.Close())
}

// form makes a swarm of the one manager, proves that it is the one of the dump, and
// removes the managers that are no more.
func (r *Replica) form(ctx context.Context, d *dump, say func(phase, text string)) error {
	if err := r.begin(ctx, d, say); err != nil {
		return err
	}
	var last error
	for {
		last = r.formed(ctx, d)
		if last == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the swarm is not what the dump was: %w: %w", context.Cause(ctx), last)
		case <-time.After(100 * time.Millisecond):
		}
	}
	say("formed", fmt.Sprintf("swarm %s lives, manager %s leads it", d.cluster(), d.nodeID()))
	nodes, err := r.engine.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Spec.Role != "manager" || n.ID == d.nodeID() {
			continue
		}
		// Workers stay: they find the manager again.
		if err := r.engine.Call(ctx, http.MethodDelete, "/nodes/"+n.ID+"?force=1", nil, nil); err != nil {
			return fmt.Errorf("remove the manager %s, which is no more: %w", n.ID, err)
		}
		say("removed", "manager "+n.ID+" ("+n.Description.Hostname+"), which is no more")
	}
	return nil
}

// leads tells whether the manager of the dump leads the dump's swarm.
func (r *Replica) leads(ctx context.Context, d *dump) error {
	i, err := r.engine.info(ctx)
	if err != nil {
		return err
	}
	if i.Swarm.Cluster == nil || i.Swarm.Cluster.ID != d.cluster() || i.Swarm.NodeID != d.nodeID() {
		return fmt.Errorf("the engine is %q, node %q", i.Swarm.LocalNodeState, i.Swarm.NodeID)
	}
	nodes, err := r.engine.nodes(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(members(d.nodeID(), nodes), func(m observer.Member) bool { return m.Self && m.Leader }) {
		return errors.New("the manager does not lead it")
	}
	return nil
}

// begin waits for the engine, and tells it to make a swarm of its state alone.
func (r *Replica) begin(ctx context.Context, d *dump, say func(phase, text string)) error {
	for {
		i, err := r.engine.info(ctx)
		if err == nil && i.Swarm.LocalNodeState == "locked" {
			return errors.New("the manager is locked, though its key file is not: another one was there")
		}
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the engine does not answer: %w: %w", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	listen := d.Local.ListenAddr
	if listen == "" {
		listen = "0.0.0.0:2377"
	}
	say("form", "making a swarm of this manager alone: docker swarm init --force-new-cluster")
	init := map[string]any{"ListenAddr": listen, "AdvertiseAddr": d.advertised(), "ForceNewCluster": true}
	if err := r.engine.Call(ctx, http.MethodPost, "/swarm/init", init, nil); err != nil {
		return fmt.Errorf("form the swarm: %w", err)
	}
	return nil
}

// formed tells whether the living swarm is the dump's.
func (r *Replica) formed(ctx context.Context, d *dump) error {
	if err := r.leads(ctx, d); err != nil {
		return err
	}
	for _, kind := range []string{"secrets", "configs", "services"} {
		var all []struct{ ID string }
		if err := r.engine.get(ctx, "/"+kind, &all); err != nil {
			return err
		}
		have := map[string]bool{}
		for _, o := range all {
			have[o.ID] = true
		}
		for id, name := range d.Log.Store.objects[kind] {
			if !have[id] {
				return fmt.Errorf("%s is not among its %s", name, kind)
			}
		}
	}
	return nil
}

// byHand are the steps from the laid down state to a swarm.
func (r *Replica) byHand(d *dump) []string {
	docker := []string{"docker"}
	if r.o.Host != "" && r.o.Host != control.DefaultDockerHost {
		docker = append(docker, "--host", r.o.Host)
	}
	command := func(args ...string) string { return hint.Command(append(slices.Clone(docker), args...)...) }
	next := []string{
		control.HowToStart(r.o.Control),
		command("swarm", "init", "--force-new-cluster", "--advertise-addr", d.advertised()),
	}
	for _, m := range d.Log.Store.managers(d.nodeID()) {
		next = append(next, command("node", "rm", "--force", m.NodeID))
	}
	return append(next, r.after(d)...)
}

// after is what is left to do once the swarm lives.
func (r *Replica) after(d *dump) (next []string) {
	if d.Key.Locked {
		next = append(next, "the swarm locks its managers no more: `docker swarm update --autolock=true`, and keep the key that it shows")
	}
	return append(next, "`docker swarm join-token manager` tells how new managers join: make them three or five", "`eddy backup`, on one that does not lead")
}
