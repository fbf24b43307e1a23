package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// Kind is the kind of the positions, and the system of the manifests.
//
// Position.Incarnation is the cluster's id, Epoch the raft term, Index the revision,
// Hash what HashKV says at it, in four bytes.
const Kind = "etcd"

// The marks of a position.
const (
	markRaft    = "raft_index"       // of the newest entry that is in it
	markCompact = "compact_revision" // below which history is gone; the hash depends on it
	markMember  = "member"           // of whom it was taken; of a dump only
)

// Options describe the cluster.
type Options struct {
	Cluster string
	// Endpoints are client URLs; the first is the member that is backed up.
	Endpoints []string
	// Any takes, of those that Endpoints name, a learner, else the follower that is
	// furthest, in place of the first.
	Any bool
	TLS TLS
	// User and Password log in where the cluster wants that. Password is called when
	// it is needed.
	User     string
	Password func() (string, error)
	// MaxLag is how many entries the member may be behind the leader.
	MaxLag  int
	Timeout time.Duration // of a snapshot, from its first byte to its last
	// Etcdutl and Etcd are programs of etcd's, by path or name: what makes data
	// directories, and what a drill runs.
	Etcdutl, Etcd string
	Restore       Target
	Drill         Drill
	FS            fsx.FS
}

// Etcd is a cluster as a replica.
type Etcd struct {
	o   Options
	now func() time.Time

	from string // the endpoint that is backed up, once it is known
}

// New makes it; nothing is asked.
func New(o Options) *Etcd { return &Etcd{o: o, now: time.Now, from: first(o.Endpoints)} }

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// askWithin bounds a question to one member.
const askWithin = 5 * time.Second

// answer is what one member said of itself.
type answer struct {
	url    string
	status *pb.StatusResponse
	err    error
}

func (a answer) learner() bool { return a.status != nil && a.status.IsLearner }
func (a answer) leads() bool   { return a.status != nil && a.status.Leader == a.status.Header.MemberId }

// ask asks each of urls for its status, all at once.
func (e *Etcd) ask(ctx context.Context, urls []string) []answer {
	out := make([]answer, len(urls))
	done := make(chan struct{})
	for i, u := range urls {
		go func() {
			defer func() { done <- struct{}{} }()
			out[i] = answer{url: u}
			out[i].err = e.with(ctx, u, askWithin, func(ctx context.Context, c *conn) (err error) {
				out[i].status, err = c.Status(ctx)
				return err
			})
		}()
	}
	for range urls {
		<-done
	}
	return out
}

// cluster is what the members say, each by itself.
type cluster struct {
	members []*pb.Member
	answers map[uint64]answer // by member
	self    answer
}

// survey asks all members. Whoever is backed up must answer; members are unknown
// where no voter does.
func (e *Etcd) survey(ctx context.Context) (c cluster, err error) {
	if len(e.o.Endpoints) == 0 {
		return c, hint.Add(errors.New("no endpoint is named"), "set `replica.etcd.endpoints: [URL, ...]`, or ETCDCTL_ENDPOINTS")
	}
	c.answers = map[uint64]answer{}
	ctx, lerr := e.login(ctx)
	named := e.ask(ctx, e.o.Endpoints)
	var lists []answer
	for _, a := range named {
		if a.err == nil {
			if _, twice := c.answers[a.status.Header.MemberId]; !twice {
				c.answers[a.status.Header.MemberId] = a
			}
			if !a.learner() { // a learner does not tell
				lists = append(lists, a)
			}
		}
	}
	c.self = e.choose(named)
	e.from = c.self.url
	for _, a := range lists {
		err := e.with(ctx, a.url, askWithin, func(ctx context.Context, n *conn) (err error) {
			c.members, err = n.Members(ctx)
			return err
		})
		if err == nil {
			break
		}
	}
	var more []string
	for _, m := range c.members {
		if _, ok := c.answers[m.ID]; !ok {
			more = append(more, m.ClientURLs...)
		}
	}
	for _, a := range e.ask(ctx, more) {
		if a.err == nil {
			c.answers[a.status.Header.MemberId] = a
		}
	}
	if c.self.err != nil && lerr != nil {
		return c, fmt.Errorf("%w: %w", observer.ErrNotFit, lerr)
	}
	if c.self.err != nil {
		return c, hint.Add(fmt.Errorf("%w: %s does not answer: %w", observer.ErrNotFit, c.self.url, c.self.err), advice(c.self.err))
	}
	return c, nil
}

// choose picks the member that is backed up.
func (e *Etcd) choose(named []answer) answer {
	if !e.o.Any {
		return named[0]
	}
	rank := func(a answer) int {
		switch {
		case a.err != nil:
			return 3
		case a.leads():
			return 2
		case a.learner():
			return 0
		}
		return 1
	}
	return slices.MinFunc(named, func(a, b answer) int {
		if c := cmp.Compare(rank(a), rank(b)); c != 0 || a.err != nil {
			return c
		}
		return -cmp.Compare(a.status.RaftAppliedIndex, b.status.RaftAppliedIndex)
	})
}

func position(s *pb.StatusResponse, taken time.Time) observer.Position {
	return observer.Position{
		Kind: Kind, Incarnation: hexID(s.Header.ClusterId), Epoch: s.RaftTerm, Index: uint64(s.Header.Revision),
		Time: taken, Consistency: "live", Marks: map[string]string{markRaft: strconv.FormatUint(s.RaftAppliedIndex, 10)},
	}
}

func hexID(id uint64) string { return strconv.FormatUint(id, 16) }

// Describe implements observer.Replica.
func (e *Etcd) Describe(ctx context.Context) (observer.State, error) {
	s, _, err := e.describe(ctx)
	return s, err
}

func (e *Etcd) describe(ctx context.Context) (s observer.State, c cluster, err error) {
	s = observer.State{Cluster: e.o.Cluster, System: Kind, Taken: e.now().UTC()}
	if c, err = e.survey(ctx); err != nil {
		return s, c, err
	}
	me := c.self.status
	s.Version, s.Position = me.Version, position(me, s.Taken)
	s.Node = observer.Node{ID: hexID(me.Header.MemberId), Role: "follower"}
	for _, m := range c.members {
		a, ok := c.answers[m.ID]
		s.Members = append(s.Members, observer.Member{
			ID: hexID(m.ID), Name: m.Name, Address: strings.Join(m.PeerURLs, ","), Voter: !m.IsLearner,
			Leader: ok && a.leads(), Reachable: ok, Self: m.ID == me.Header.MemberId,
		})
		if ok && a.leads() {
			p := position(a.status, s.Taken)
			s.Leader = &p
		}
		if m.ID == me.Header.MemberId {
			s.Node.Name, s.Node.Host = m.Name, strings.Join(m.ClientURLs, ",")
		}
	}
	s.Peers = max(0, len(s.Members)-1)
	switch {
	case me.IsLearner:
		s.Node.Role = "learner"
	case len(s.Members) == 1:
		s.Node.Role = "standalone"
	case c.self.leads():
		s.Node.Role = "leader"
	}
	for _, text := range me.Errors {
		if strings.Contains(text, "CORRUPT") {
			return s, c, hint.Add(fmt.Errorf("%w: etcd itself says that a member's data are corrupt: %s", observer.ErrNotFit, text),
				"`etcdctl alarm list` names the member; back up another one, and replace that one")
		}
	}
	return s, c, nil
}

// Gate implements observer.Gater. Nothing will be stopped: what it asks is whether
// the member has what the cluster has, and is not the one that all others wait for.
func (e *Etcd) Gate(_ context.Context, s observer.State) error {
	self, q := s.Self(), observer.QuorumOf(s.Members)
	no := func(advice, format string, args ...any) error {
		return hint.Add(fmt.Errorf("%w: "+format, append([]any{observer.ErrNotFit}, args...)...), advice)
	}
	salvage := "bring members back first; if that cannot be, `eddy backup --salvage` keeps what this member has"
	switch {
	case len(s.Members) == 0:
		return no("name the voters, too: `replica.etcd.endpoints: [THIS, VOTER, ...]`; "+salvage, "no voter answers, and a learner does not tell who the members are")
	case self == nil:
		return no("it was removed from the cluster: look at `etcdctl member list`", "%s is no member of the cluster any more", e.from)
	case q.Bears() < 0: // a leader that has just lost it may not know yet
		return no(salvage, "the quorum is lost: %d of %d voters answer, %d must", q.Reachable, q.Voters, q.Needed)
	case self.Leader && len(s.Members) > 1:
		return no("name a learner or a follower first in replica.etcd.endpoints, or set `replica.etcd.member: any`", "%s leads the cluster, and all others wait for it", e.from)
	case s.Leader == nil:
		return no("wait until one is elected; "+salvage, "nobody leads the cluster")
	}
	mine, theirs := mark(s.Position, markRaft), mark(*s.Leader, markRaft)
	if behind := theirs - mine; theirs > mine && behind > uint64(e.o.MaxLag) {
		return no("look at the member's log and disk; replica.etcd.max_lag says how many entries may be missing",
			"%w: it is %d entries behind the leader, %d may be", observer.ErrBehind, behind, e.o.MaxLag)
	}
	return nil
}

func mark(p observer.Position, name string) uint64 {
	n, err := strconv.ParseUint(p.Marks[name], 10, 64)
	if err != nil {
		return 0 // not known
	}
	return n
}
