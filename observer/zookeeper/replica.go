package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/observer/held"
	"github.com/eddy-backup/eddy/snapshot"
)

// Kind is the kind of the positions, and the system of the manifests.
const Kind = "zookeeper"

// Options of a replica.
type Options struct {
	Cluster  string
	Conf     Conf
	DataDir  string // Conf's
	LogDir   string // Conf's, or DataDir
	Control  control.Control
	Timeout  time.Duration // of the server's own stop
	Deadline time.Duration // of the whole hold
	// Outage allows to stop the only server of an ensemble: its clients wait.
	Outage bool
	Drill  Driller
}

// Replica is one server of an ensemble.
type Replica struct {
	Checker
	o      Options
	node   held.Node
	before observer.State // the newest that Describe has found
}

var (
	_ observer.Replica  = (*Replica)(nil)
	_ observer.Holder   = (*Replica)(nil)
	_ observer.Checker  = (*Replica)(nil)
	_ observer.Attester = (*Replica)(nil)
	_ observer.Restorer = (*Replica)(nil)
	_ observer.Rester   = (*Replica)(nil)
	_ observer.Surveyor = (*Replica)(nil)
)

// New makes it; nobody is asked.
func New(o Options) (*Replica, error) {
	o.DataDir, o.LogDir = filepath.Clean(o.Conf.DataDir), o.Conf.LogDir
	if o.LogDir == "" {
		o.LogDir = o.DataDir
	}
	if o.Conf.Client == "" {
		return nil, hint.Add(errors.New("nothing says where the server listens for its clients"), "set `replica.zookeeper.client_address: 127.0.0.1:2181`; a port for TLS alone is not enough for the four-letter words")
	}
	return &Replica{o: o, node: held.Node{
		Control: o.Control, Timeout: o.Timeout, Deadline: o.Deadline,
		Down: control.AllDown(dirs(o), []string{o.Conf.Client}),
	}}, nil
}

// dirs are the directories in which a server has files open.
func dirs(o Options) []string {
	if o.LogDir == o.DataDir {
		return []string{o.DataDir}
	}
	return []string{o.DataDir, o.LogDir}
}

// Roots implements observer.Replica. Logs are copied, so that the one root is where
// the snapshots are, which are linked.
func (r *Replica) Roots(context.Context) ([]snapshot.Root, error) {
	dir, err := filepath.EvalSymlinks(r.o.DataDir)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %w", observer.ErrNotFit, err), "set replica.zookeeper.data_dir to the server's dataDir")
	}
	return []snapshot.Root{{Path: dir}}, nil
}

// position is that of a server that runs. ZooKeeper has no name for its history.
func position(s srvr, now time.Time) observer.Position {
	return observer.Position{Kind: Kind, Epoch: s.zxid >> 32, Index: s.zxid, Time: now, Consistency: "live"}
}

// Describe implements observer.Replica. With an error comes what is known all the
// same.
func (r *Replica) Describe(ctx context.Context) (observer.State, error) {
	now := time.Now().UTC()
	s := observer.State{Cluster: r.o.Cluster, System: Kind, Taken: now}
	id, err := readMyID(r.o.DataDir)
	if err != nil {
		return s, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	s.Node.ID = id
	if s.Node.Host, err = os.Hostname(); err != nil {
		return s, fmt.Errorf("host name: %w", err)
	}
	r.before = s
	own, err := askServer(ctx, r.o.Conf.Client)
	if err == nil {
		s.Version, s.Node.Role, s.Position = own.version, own.mode, position(own, now)
	}
	said := r.ensemble(ctx, &s, own, err == nil)
	r.before = s
	if err != nil {
		return s, hint.Add(fmt.Errorf("%w: server %s at %s: %w", observer.ErrNotFit, id, r.o.Conf.Client, err),
			"look whether it runs and serves; srvr must be in its 4lw.commands.whitelist, where it is by default"+said)
	}
	return s, nil
}

// ensemble asks all servers, and fills in who they are.
func (r *Replica) ensemble(ctx context.Context, s *observer.State, own srvr, serves bool) (lost string) {
	answers := make([]srvr, len(r.o.Conf.Servers))
	errs := make([]error, len(answers))
	var wg sync.WaitGroup
	for i, m := range r.o.Conf.Servers {
		wg.Go(func() {
			if answers[i], errs[i] = own, nil; r.isSelf(m, s.Node.ID) {
				if !serves {
					errs[i] = errIdle
				}
				return
			}
			answers[i], errs[i] = askServer(ctx, m.Client)
		})
	}
	wg.Wait()
	for i, m := range r.o.Conf.Servers {
		a := answers[i]
		member := observer.Member{
			ID: m.ID, Address: m.Client, Voter: !m.Observer, Reachable: errs[i] == nil, Self: r.isSelf(m, s.Node.ID),
			Leader: errs[i] == nil && a.mode == modeLeader,
		}
		if member.ID == "" {
			member.ID = m.Client
			member.Voter = errs[i] != nil || a.mode != modeObserver // only it can tell
		}
		if member.Leader {
			p := position(a, s.Taken)
			s.Leader = &p
		}
		s.Members = append(s.Members, member)
	}
	if q := observer.QuorumOf(s.Members); q.Voters > 0 && q.Bears() < 0 {
		return fmt.Sprintf("; %d of %d voters answer, %d must: to keep what this server has, `eddy backup --salvage`", q.Reachable, q.Voters, q.Needed)
	}
	return ""
}

func (r *Replica) isSelf(m Server, id string) bool {
	return m.ID != "" && m.ID == id || m.Client == r.o.Conf.Client
}

// maxBehind is how many transactions a server may be behind its leader, and still be
// said to have caught up: others write while it is asked.
const maxBehind = 1000

// Gate implements observer.Gater: an observer may always be stopped, a follower while
// the others keep the quorum without it, the leader never.
func (r *Replica) Gate(_ context.Context, s observer.State) error {
	q := observer.QuorumOf(s.Members)
	unfit := func(advice, format string, args ...any) error {
		return hint.Add(fmt.Errorf("%w: %s", observer.ErrNotFit, fmt.Sprintf(format, args...)), advice)
	}
	const better = "back an observer up instead, which costs the ensemble nothing: docs/zookeeper.md"
	self := s.Self()
	switch mode := s.Node.Role; {
	case mode == modeStandalone && len(s.Members) > 1:
		return unfit("look at the configuration that it was started with", "it runs alone, and its configuration names %d servers", len(s.Members))
	case mode == modeStandalone && !r.o.Outage:
		return unfit("if its clients may wait for so long, set `replica.zookeeper.allow_outage: true`", "it is the only server: while it is stopped nobody is served")
	case mode == modeStandalone:
		return nil
	case mode == modeLeader:
		return unfit(better+"; or run eddy beside a follower", "it is the leader: its stop would cost an election")
	case mode != modeObserver && mode != modeFollower:
		return unfit("wait until it has joined its ensemble", "its mode is %.40q", mode)
	case len(s.Members) == 0 && mode == modeFollower:
		return unfit("set `replica.zookeeper.servers`, or `config` to its zoo.cfg", "nobody knows the other servers, and so whether they keep the quorum")
	case len(s.Members) > 0 && self == nil:
		return unfit("set replica.zookeeper.servers to the addresses of all of them, this one's as in client_address", "server %s is not among those that are configured", s.Node.ID)
	case mode == modeFollower && r.o.Conf.Weighted:
		return unfit(better, "the votes of this ensemble have weights or groups: whether the others keep the quorum is not known here")
	case len(s.Members) > 0 && q.Leaders != 1:
		return unfit("wait for the end of the election; `eddy doctor` shows who says what", "%d of the servers that answer say that they lead", q.Leaders)
	case mode == modeFollower && !q.MayStop(*self):
		return unfit("bring the others back first; "+better, "%d of %d voters serve, and %d must without this one", q.Reachable, q.Voters, q.Needed)
	}
	if s.Leader != nil && behind(s.Position.Index, s.Leader.Index) {
		return hint.Add(fmt.Errorf("%w: %w: it is at %s, the leader at %s", observer.ErrNotFit, observer.ErrBehind, s.Position, s.Leader), "wait until it has caught up")
	}
	return nil
}

// behind tells whether a server has far to go. At the beginning of an epoch, before
// its first transaction, only the leader counts on.
func behind(at, leader uint64) bool {
	if at>>32 != leader>>32 {
		return at < leader && uint32(leader) > maxBehind
	}
	return leader > at+maxBehind
}

// Hold implements observer.Holder: that the server is down is proven by its port, and
// by nobody having a file open under its directories. It locks nothing itself.
func (r *Replica) Hold(ctx context.Context, st *snapshot.Stage) (func(context.Context) error, error) {
	return r.node.Hold(ctx, st)
}

// Still implements observer.Rester.
func (r *Replica) Still(ctx context.Context) error { return r.node.Still(ctx) }

// Recover starts the server where a dead eddy left it stopped.
func (r *Replica) Recover(ctx context.Context) (bool, error) { return r.node.Recover(ctx) }

// Rejoined implements observer.Holder: it serves, in the role that it had or in
// another one of a member, and has what it had.
func (r *Replica) Rejoined(ctx context.Context, before observer.State) error {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := askServer(ctx, r.o.Conf.Client)
		if err == nil && s.zxid >= before.Position.Index {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it is at zxid 0x%x", s.zxid)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: last seen: %w", ctx.Err(), err)
		case <-t.C:
		}
	}
}

// Locate implements observer.Replica.
func (r *Replica) Locate(_ context.Context, st *snapshot.Stage, _ observer.State) (observer.Position, error) {
	n, err := observer.ReadNote(st.Trees()[0].Dir)
	return n.Position, err
}

// Survey implements observer.Surveyor.
func (r *Replica) Survey(ctx context.Context) (observer.Survey, error) {
	roots, err := r.Roots(ctx)
	if err != nil {
		return observer.Survey{}, err
	}
	p, err := planOf(r.o.DataDir, r.o.LogDir)
	if err != nil {
		return observer.Survey{}, err
	}
	rs := observer.RootSurvey{Root: roots[0], Writable: unix.Access(roots[0].Path, unix.W_OK|unix.X_OK) == nil}
	if rs.Free, _, err = fsx.FreeBytes(roots[0].Path); err != nil {
		return observer.Survey{}, err
	}
	count := func(to *observer.Treated, file string) {
		if st, err := os.Stat(file); err == nil { // purged meanwhile
			to.Files++
			to.Bytes += min(st.Size(), st.Sys().(*syscall.Stat_t).Blocks*512) // without what is only set aside
		}
	}
	for _, s := range p.snapshots() {
		count(&rs.Linked, filepath.Join(r.o.DataDir, stateDir, s.name))
	}
	for _, l := range append(p.extra, p.logs...) {
		count(&rs.Copied, filepath.Join(r.o.LogDir, stateDir, l.name))
	}
	out := observer.Survey{Roots: []observer.RootSurvey{rs}}
	for _, l := range p.left {
		out.LeftOut = append(out.LeftOut, snapshot.LeftOut{Name: filepath.Join(stateDir, l.name), Reason: l.why})
	}
	return out, nil
}
