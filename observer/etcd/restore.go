package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// Target is the member whose data directory a restore makes.
type Target struct {
	Name    string // of the member
	DataDir string
	// InitialCluster is NAME=URL of every member to be; empty: the voters of the dump.
	InitialCluster []string
	// Advertise are the member's own peer URLs; empty: those of InitialCluster.
	Advertise []string
	// Token is the same for all members of the new cluster, and of no other; "": made
	// of the dump.
	Token string
	// Owner of the directory; nil: who owns the one that is there, or its parent.
	Owner *snapshot.Owner
}

// What a restore makes inside a data directory, which may be a mount of its own.
const (
	memberDir = "member"       // all of etcd's own
	freshDir  = ".eddy-new"    // what etcdutl makes; of no use until it is renamed
	asideDir  = ".eddy-before" // and a time: what was there
)

// bump is added to the revision, so that whoever has seen a later one than the
// dump's, a watcher or a Kubernetes controller, does not take old for new.
const bump = "1000000000"

const dialWithin = 2 * time.Second

// Target implements observer.Restorer.
func (e *Etcd) Target(ctx context.Context, t observer.RestoreTask) (string, error) {
	r := e.o.Restore
	if r.DataDir == "" || r.Name == "" {
		return "", hint.Add(fmt.Errorf("%w: it is not said which member this host is", observer.ErrNotFit),
			"set `replica.etcd.restore.name: NAME` and `replica.etcd.restore.data_dir: /var/lib/etcd`; or `eddy restore SEL --into DIR` and use etcdutl by hand on the file dump")
	}
	if _, err := e.etcdutl(ctx); err != nil {
		return "", err
	}
	peers, err := r.peers(nil)
	if err != nil {
		return "", err
	}
	if err := e.alive(ctx, peers); err != nil {
		return "", err
	}
	there, err := exists(filepath.Join(r.DataDir, memberDir))
	if err != nil {
		return "", err
	}
	switch {
	case !there:
		return fmt.Sprintf("%s for member %s, no data yet", r.DataDir, r.Name), nil
	case !t.Overwrite:
		return "", hint.Add(fmt.Errorf("%w: %s holds a member's data", observer.ErrNotFit, r.DataDir),
			"say --overwrite-live, and they are kept aside in "+filepath.Join(r.DataDir, asideDir+"-TIME"))
	}
	return fmt.Sprintf("%s for member %s, with data that are kept aside in it", r.DataDir, r.Name), nil
}

// peers are the peer URLs of the cluster to be, by member, in order.
func (r Target) peers(fromNote []string) ([][2]string, error) {
	list := r.InitialCluster
	if len(list) == 0 {
		list = fromNote
	}
	var out [][2]string
	own := false
	for _, m := range list {
		name, u, ok := strings.Cut(m, "=")
		if _, err := address(u); !ok || name == "" || err != nil {
			return nil, hint.Add(fmt.Errorf("%.200q is no member of a cluster", m), "set `replica.etcd.restore.initial_cluster: [NAME=https://HOST:2380, ...]`")
		}
		own = own || name == r.Name
		out = append(out, [2]string{name, u})
	}
	if len(out) > 0 && !own {
		return nil, hint.Add(fmt.Errorf("%w: %s is no member of the cluster to be: %s", observer.ErrNotFit, r.Name, strings.Join(list, ",")),
			"write its name as the list has it into replica.etcd.restore.name, or the list into replica.etcd.restore.initial_cluster")
	}
	return out, nil
}

// address is host and port of a URL, or of what an etcd client takes for one.
func address(rawURL string) (string, error) {
	if !strings.Contains(rawURL, "://") {
		rawURL = "http://" + rawURL
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	if u.Host == "" || u.Port() == "" {
		return "", fmt.Errorf("%.200q has no port", rawURL)
	}
	return u.Host, nil
}

// alive refuses while anybody listens where a member would: two clusters with the
// same addresses are one split in two, and what is restored must not meet the old.
func (e *Etcd) alive(ctx context.Context, peers [][2]string) error {
	var urls []string
	urls = append(urls, e.o.Endpoints...)
	for _, p := range peers {
		urls = append(urls, p[1])
	}
	slices.Sort(urls)
	urls = slices.Compact(urls)
	found := make(chan string, len(urls))
	for _, u := range urls {
		go func() {
			a, err := address(u)
			if err == nil {
				var c net.Conn
				if c, err = (&net.Dialer{Timeout: dialWithin}).DialContext(ctx, "tcp", a); err == nil {
					_ = c.Close()
					found <- u
					return
				}
			}
			found <- ""
		}()
	}
	var live []string
	for range urls {
		if u := <-found; u != "" {
			live = append(live, u)
		}
	}
	slices.Sort(live)
	if len(live) == 0 {
		return ctx.Err()
	}
	return hint.Add(fmt.Errorf("%w: somebody answers at %s", observer.ErrNotFit, strings.Join(live, ", ")),
		"stop etcd on all members first (a static pod: move its manifest away), and kube-apiserver with it; then restore on each, then start all")
}

// Restore implements observer.Restorer: it makes this member's data directory. It is
// started by nobody: all members must be restored first.
func (e *Etcd) Restore(ctx context.Context, t observer.RestoreTask) (next []string, err error) {
	r, fsys := e.o.Restore, e.o.FS
	n, err := observer.ReadNote(t.Dir)
	if err != nil {
		return nil, err
	}
	utl, err := e.etcdutl(ctx)
	if err != nil {
		return nil, err
	}
	if err := utl.fits(n.State.Version); err != nil {
		return nil, err
	}
	var noted []string
	if text := n.Facts[factInitial]; text != "" {
		noted = strings.Split(text, ",")
	}
	peers, err := r.peers(noted)
	if err != nil {
		return nil, err
	}
	if len(peers) == 0 {
		return nil, hint.Add(fmt.Errorf("%w: the dump does not say who the members are", observer.ErrNotFit), "set `replica.etcd.restore.initial_cluster: [NAME=https://HOST:2380, ...]`")
	}
	if err := e.alive(ctx, peers); err != nil {
		return nil, err
	}
	owner, err := r.owner()
	if err != nil {
		return nil, err
	}
	if err := fsys.MkdirAll(r.DataDir, 0o700); err != nil {
		return nil, err
	}
	fresh := filepath.Join(r.DataDir, freshDir)
	if err := fsys.RemoveAll(fresh); err != nil { // of a restore that died
		return nil, err
	}
	say(t, "etcdutl", "making the data directory of "+r.Name+" with etcdutl "+utl.version)
	spec := r.flags(peers, n)
	if err := utl.restore(ctx, filepath.Join(t.Dir, observer.DumpName), fresh, spec, true); err != nil {
		// A failed one looks like a directory of the old cluster: it must not stay.
		return nil, errors.Join(err, fsys.RemoveAll(fresh))
	}
	if err := e.place(fresh, owner); err != nil {
		return nil, err
	}
	return r.next(peers, spec, utl), nil
}

func say(t observer.RestoreTask, phase, text string) {
	if t.Say != nil {
		t.Say(phase, text)
	}
}

// place gives a directory that etcdutl has made its owner, keeps what was there
// aside, and puts it in its place.
func (e *Etcd) place(fresh string, owner snapshot.Owner) error {
	r, fsys := e.o.Restore, e.o.FS
	err := filepath.WalkDir(fresh, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = fsys.Chown(name, owner.UID, owner.GID)
		}
		return err
	})
	if err == nil {
		err = fsys.Chown(r.DataDir, owner.UID, owner.GID)
	}
	if err == nil {
		err = fsys.SyncFS(fresh)
	}
	if err != nil {
		return errors.Join(err, fsys.RemoveAll(fresh))
	}
	member := filepath.Join(r.DataDir, memberDir)
	there, err := exists(member)
	if err != nil {
		return err
	}
	if there {
		aside, err := fsys.MkdirTemp(r.DataDir, asideDir+"-"+e.now().UTC().Format("20060102T150405Z")+"-*")
		if err != nil {
			return err
		}
		if err := fsys.Rename(member, filepath.Join(aside, memberDir)); err != nil {
			return err
		}
	}
	if err := fsys.Rename(filepath.Join(fresh, memberDir), member); err != nil {
		return err
	}
	if err := fsys.RemoveAll(fresh); err != nil {
		return err
	}
	return fsys.SyncDir(r.DataDir)
}

func (r Target) owner() (o snapshot.Owner, err error) {
	if r.Owner != nil {
		return *r.Owner, nil
	}
	dir := r.DataDir
	for {
		st, err := os.Stat(dir)
		if err == nil {
			sys := st.Sys().(*syscall.Stat_t)
			return snapshot.Owner{UID: int(sys.Uid), GID: int(sys.Gid)}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return o, err
		}
		dir = filepath.Dir(dir)
	}
}

// flags are those of etcdutl that say who the member is.
func (r Target) flags(peers [][2]string, n observer.Note) []string {
	var all []string
	own := r.Advertise
	for _, p := range peers {
		all = append(all, p[0]+"="+p[1])
		if p[0] == r.Name && len(r.Advertise) == 0 {
			own = append(own, p[1])
		}
	}
	token := r.Token
	if sum := n.Facts[factSHA256]; token == "" && len(sum) >= 16 {
		token = "eddy-" + sum[:16]
	}
	return []string{
		"--name", r.Name, "--initial-cluster", strings.Join(all, ","), "--initial-cluster-token", token,
		"--initial-advertise-peer-urls", strings.Join(own, ","),
	}
}

// next is what is left to do.
func (r Target) next(peers [][2]string, spec []string, utl etcdutl) []string {
	var others []string
	for _, p := range peers {
		if p[0] != r.Name && !slices.Contains(others, p[0]) {
			others = append(others, p[0])
		}
	}
	var next []string
	if len(others) > 0 {
		next = append(next, fmt.Sprintf("restore the same backup on the hosts of %s, with their name in replica.etcd.restore.name; start none before all are done", strings.Join(others, ", ")))
	}
	next = append(next, fmt.Sprintf("start etcd %s on all members together; the data of this one were made with %s", utl.minor(), strings.Join(spec, " ")))
	if utl.bumps {
		next = append(next, "the revision goes on "+bump+" above the dump's, and what is older counts as compacted: watchers and controllers read anew")
	} else {
		next = append(next, "this etcdutl cannot raise the revision: restart whatever watches the cluster, of Kubernetes kube-apiserver, kube-controller-manager, kube-scheduler and every kubelet")
	}
	return append(next, "start kube-apiserver after it, where there is one; and back the new cluster up, with --new-incarnation once: it has another cluster id")
}

func exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
