package consul

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// The modes of asking for a snapshot.
const (
	Auto       = "auto"       // any server that is close enough to the leader; else the leader
	Consistent = "consistent" // the leader, which makes sure that it still leads
	Stale      = "stale"      // any server that is close enough to the leader
)

// The labels of a position's consistency.
const (
	Linearizable = "linearizable"    // all that was written before it was asked for
	Bounded      = "bounded"         // what was written before Lag, counted back
	Unbounded    = "stale-unbounded" // what one server had: nobody knows how old it is
)

// Options describe the server that is asked.
type Options struct {
	Kind    string // Consul, Nomad, Vault
	Cluster string
	// Address is http://, https:// or unix://, or host:port; "": the system's own port
	// of this machine.
	Address string
	// Named: the address was written down for this eddy. One that a shell had set for
	// other tools is good enough for a backup, and not for a restore.
	Named bool
	// Scope is the datacenter or the region that is asked; "": the server's own.
	Scope string
	Mode  string
	// MaxLag is how long ago the leader may have been heard by who answers for it.
	MaxLag time.Duration
	// TokenFile holds the token; Token stands where there is no file.
	TokenFile, Token string
	Namespace        string // of Vault's token
	TLS              TLS
	Drill            Drill
	// Save begins an encrypted file for what a restore replaces.
	Save func(name string) (Kept, error)
}

// Kept is an encrypted file that is being written. It ends with one of Commit, after
// which it lies durably at path, and Abort, after which nothing of it is left.
type Kept interface {
	io.Writer
	Commit() (path string, err error)
	Abort() error
}

func (o *Options) query(s system) map[string]string {
	if o.Scope == "" || s.scope == "" {
		return nil
	}
	return map[string]string{s.scope: o.Scope}
}

// Source is a system as a replica.
type Source struct {
	o   Options
	sys system
	api *api
	now func() time.Time
}

// New makes it; nobody is asked.
func New(o Options) (*Source, error) {
	sys, ok := systemOf(o.Kind)
	if !ok {
		return nil, fmt.Errorf("%q is none of %s, %s, %s", o.Kind, Consul, Nomad, Vault)
	}
	if o.Address == "" {
		o.Address = sys.address
	}
	s := &Source{o: o, sys: sys, now: time.Now}
	var err error
	s.api, err = newAPI(&s.o, sys, defaultLimits())
	return s, err
}

// Describe implements observer.Replica.
func (s *Source) Describe(ctx context.Context) (observer.State, error) {
	a, err := s.leading(ctx)
	if err != nil {
		return observer.State{}, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	st, err := s.sys.describe(ctx, a)
	st.Cluster, st.System, st.Taken = s.o.Cluster, s.sys.kind, s.now().UTC()
	st.Position.Kind, st.Position.Time, st.Position.Consistency = s.sys.kind, st.Taken, "live"
	st.Peers = max(0, len(st.Members)-1)
	if err != nil {
		return st, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	return st, nil
}

// Gate implements observer.Gater: somebody leads, and enough servers are there.
func (s *Source) Gate(_ context.Context, st observer.State) error {
	q := observer.QuorumOf(st.Members)
	said := ""
	switch {
	case q.Leaders == 0:
		said = fmt.Sprintf("no server leads, %d of %d are reachable", q.Reachable, q.Voters)
	case q.Leaders > 1:
		said = fmt.Sprintf("%d servers lead: the cluster is split", q.Leaders)
	case q.Bears() < 0:
		said = fmt.Sprintf("%d of %d servers are reachable, %d are needed", q.Reachable, q.Voters, q.Needed)
	default:
		return nil
	}
	return hint.Add(fmt.Errorf("%w: %s", observer.ErrNotFit, said), salvageAdvice)
}

const salvageAdvice = "bring the servers back; before you give any of them up, `eddy backup --salvage` keeps what this one has"

// Capture implements observer.Replica: it takes the snapshot.
func (s *Source) Capture(ctx context.Context, st *snapshot.Stage) error {
	return s.take(ctx, st, false)
}

// Salvage implements observer.Salvager: it takes what the server has, whoever leads.
func (s *Source) Salvage(ctx context.Context, st *snapshot.Stage) error { return s.take(ctx, st, true) }

func (s *Source) take(ctx context.Context, stage *snapshot.Stage, salvage bool) error {
	state, err := s.Describe(ctx)
	if err == nil {
		err = s.Gate(ctx, state)
	}
	if err != nil && !salvage {
		return err
	}
	f, at, err := s.answer(ctx, salvage)
	if err != nil {
		return err
	}
	sum := sha256.New()
	err = stage.Stream(ctx, "", observer.DumpName, func(_ context.Context, w io.Writer) error {
		n, err := io.Copy(io.MultiWriter(w, sum), f)
		if err == nil && n == 0 {
			err = errors.New("the server answered with an empty snapshot")
		}
		return err
	})
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	at.Kind, at.Incarnation, at.Time = s.sys.kind, state.Position.Incarnation, s.now().UTC()
	return observer.Note{State: state, Position: at, Facts: map[string]string{factSum: hex.EncodeToString(sum.Sum(nil))}}.Put(ctx, stage)
}

// factSum is the sha256 of the dump as it came from the server.
const factSum = "sha256"

// answer asks for a snapshot until one is good enough by its headers.
func (s *Source) answer(ctx context.Context, salvage bool) (*flow, observer.Position, error) {
	a, err := s.leading(ctx)
	if err != nil {
		if !salvage {
			return nil, observer.Position{}, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
		}
		a = s.api
	}
	if s.sys.meta == "" { // only the leader answers
		f, err := a.open(ctx, nil)
		return f, observer.Position{Consistency: Bounded}, err
	}
	if salvage || s.o.Mode != Consistent {
		f, err := a.open(ctx, url.Values{"stale": {""}})
		if err != nil {
			return nil, observer.Position{}, err
		}
		at, err := s.age(f.Header, true)
		if err == nil || salvage {
			return f, at, nil
		}
		if cerr := f.Close(); s.o.Mode == Stale {
			return nil, at, errors.Join(err, cerr)
		}
	}
	f, err := a.open(ctx, nil)
	if err != nil {
		if code(err) == http.StatusInternalServerError {
			err = hint.Add(fmt.Errorf("%w: %w", observer.ErrNotFit, err), hint.Or(err, salvageAdvice))
		}
		return nil, observer.Position{}, err
	}
	at, err := s.age(f.Header, false)
	if err != nil {
		return nil, at, errors.Join(err, f.Close())
	}
	return f, at, nil
}

// age reads from the headers of an answer how old it may be. The position is right
// with an error, too: then it is nothing that a backup may be.
func (s *Source) age(h http.Header, stale bool) (observer.Position, error) {
	at := observer.Position{Consistency: Unbounded}
	at.Index, _ = strconv.ParseUint(h.Get(s.sys.meta+"Index"), 10, 64) // 0: meta.json has it
	ms, err := strconv.ParseUint(h.Get(s.sys.meta+"LastContact"), 10, 42)
	if err == nil {
		at.Lag = time.Duration(ms) * time.Millisecond
	}
	known := h.Get(s.sys.meta+"KnownLeader") == "true"
	switch {
	case err != nil || !known:
		return at, hint.Add(fmt.Errorf("%w: the server knows of no leader, and nobody knows how old its state is", observer.ErrNotFit), salvageAdvice)
	case !stale:
		at.Consistency = Linearizable
	case at.Lag > s.o.MaxLag:
		return at, hint.Add(fmt.Errorf("%w: %w: the server has not heard its leader for %s, max_lag is %s", observer.ErrNotFit, observer.ErrBehind, at.Lag, s.o.MaxLag),
			"look at the network between the servers; "+s.sys.set("mode", Auto)+" asks the leader where the server is behind")
	default:
		at.Consistency = Bounded
	}
	return at, nil
}

// Locate implements observer.Replica.
func (s *Source) Locate(_ context.Context, st *snapshot.Stage, _ observer.State) (observer.Position, error) {
	n, err := observer.ReadNote(st.Trees()[0].Dir)
	return n.Position, err
}

// leading is the api of who must be asked: of Vault the leader, of others anybody.
func (s *Source) leading(ctx context.Context) (*api, error) {
	if s.sys.kind != Vault {
		return s.api, nil
	}
	return leadingVault(ctx, s.api)
}
