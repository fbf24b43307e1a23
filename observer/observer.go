package observer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/snapshot"
)

// ErrNotFit is in the chain of every error that means: this replica must not, or
// cannot, be backed up now. The live node was not touched.
var ErrNotFit = errors.New("the replica is not fit")

// ErrBehind is beside ErrNotFit where waiting may cure it: the replica has not
// caught up with its cluster.
var ErrBehind = errors.New("it has not caught up")

// ErrUnsound is in the chain of every error that means: the dump does not hold
// what it should, and must not be sent.
var ErrUnsound = errors.New("the dump is not sound")

// ErrDown is in the chain of what Hold and its release return while the replica
// stands still because of them: it could not be started again, and whoever guards
// the hold goes on trying.
var ErrDown = errors.New("the replica stands still")

// ErrStopping is in the chain of what Hold returns of a replica that was told to
// stop, has not, and may yet; whoever guards the hold starts it then.
var ErrStopping = errors.New("the replica may stop yet")

// ErrLost is in the chain of what Capture and release return of a hold that ended
// before its time: its guard has started the replica, and what was captured is
// worthless.
var ErrLost = errors.New("the hold was lost")

// Mark makes err one that errors.Is knows by as, too, with its text as it is.
func Mark(as, err error) error { return marked{err, as} }

type marked struct {
	error
	as error
}

func (m marked) Is(target error) bool { return target == m.as }
func (m marked) Unwrap() error        { return m.error }

// Position is a point of a replicated history.
type Position struct {
	Kind        string        `json:"kind"`        // "cometbft", ...
	Incarnation string        `json:"incarnation"` // of the history: hex, see the kind's package
	Epoch       uint64        `json:"epoch,omitempty"`
	Index       uint64        `json:"index"` // cometbft: block height
	Hash        []byte        `json:"hash,omitempty"`
	HashKind    string        `json:"hash_kind,omitempty"` // "app_hash", ...
	Time        time.Time     `json:"time"`                // of the block or entry at Index
	Consistency string        `json:"consistency"`         // "stopped": read from the dump of a stopped node; "live": asked before
	Lag         time.Duration `json:"lag_ns,omitempty"`    // behind the cluster when it was captured
	// Marks are what else the dump says of that point, by names of the kind: what
	// others are asked about. See the kind's package.
	Marks map[string]string `json:"marks,omitempty"`
}

// String is the position as an operator of that kind of system would say it.
func (p Position) String() string {
	switch {
	case p.Kind == "cometbft":
		return fmt.Sprintf("height %d", p.Index)
	case p.Kind == "etcd":
		return fmt.Sprintf("revision %d", p.Index)
	case p.Kind == "zookeeper":
		return fmt.Sprintf("zxid 0x%x", p.Index)
	case p.Kind == "command":
		return "what was there at " + p.Time.UTC().Format(time.RFC3339)
	case p.Index == 0:
		return "an index that is not known yet"
	case p.Epoch > 0:
		return fmt.Sprintf("index %d of term %d", p.Index, p.Epoch)
	default:
		return fmt.Sprintf("index %d", p.Index)
	}
}

// Node identifies the node that is backed up.
type Node struct {
	ID   string `json:"id"`             // cometbft: node id, 40 hex digits
	Name string `json:"name,omitempty"` // moniker
	Host string `json:"host,omitempty"`
	Role string `json:"role,omitempty"` // "observer", "validator", ...
}

// State is what a live replica says of itself.
type State struct {
	Cluster  string   `json:"cluster"` // cometbft: chain id
	Node     Node     `json:"node"`
	System   string   `json:"system"`  // "cometbft"
	Version  string   `json:"version"` // of the system
	App      string   `json:"app,omitempty"`
	Position Position `json:"position"`
	CatchUp  bool     `json:"catching_up"`
	Voting   int64    `json:"voting_power"` // > 0: it takes part in consensus
	// NextVoting > 0: it will take part in consensus a few positions from here.
	NextVoting int64     `json:"next_voting_power,omitempty"`
	Peers      int       `json:"peers"`
	Leader     *Position `json:"leader,omitempty"` // the furthest position that a witness reports
	Witness    []Witness `json:"witnesses,omitempty"`
	// Members are those that decide, and those that listen, where the system knows
	// them.
	Members []Member  `json:"members,omitempty"`
	Taken   time.Time `json:"taken"`
}

// Program says what executes the cluster's history, for people.
func (s State) Program() string {
	p := strings.TrimSpace(s.System + " " + s.Version)
	if s.App != "" {
		p += ", app " + s.App
	}
	return p
}

// Witness is what another member of the cluster said.
type Witness struct {
	URL      string   `json:"url"`     // without credentials
	Cluster  string   `json:"cluster"` // cometbft: chain id
	Position Position `json:"position"`
	Error    string   `json:"error,omitempty"`
	// Verdict is on its history beside the replica's, at the newest point that both
	// have: Agrees, Fork, Liar, OtherChain, or "" where they could not be compared.
	Verdict string `json:"verdict,omitempty"`
	Said    string `json:"said,omitempty"` // why it does not agree
}

// Rollback is the typed decision to take a whole cluster back, which is no restore:
// what came after At is given up on every node.
type Rollback struct {
	At   uint64 `json:"at"`   // the position that the cluster goes on from: the backup's
	Lost uint64 `json:"lost"` // the last position that is given up
}

// Replacing is what is to be done to the data of a live replica.
type Replacing struct {
	Comes     State     // the backup's; zero: what was there before, of an undo
	Kept      string    // of an undo: the directory in which that lies
	LeaveDown bool      // the replica is not started after
	Rollback  *Rollback // nil: it goes on with its cluster
}

// Replaced is what was done to them.
type Replaced struct {
	Incarnation string    `json:"incarnation,omitempty"` // of the backup; "": of an undo
	Rollback    *Rollback `json:"rollback,omitempty"`
	From        string    `json:"-"` // the directory that all of it came from
	Before      string    `json:"-"` // the directory in which lies what was there before
}

// Treated counts files, and the bytes of their sizes.
type Treated struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// RootSurvey is what a backup would take of one root, by treatment.
type RootSurvey struct {
	snapshot.Root
	Linked   Treated `json:"link"`
	Cloned   Treated `json:"clone"`
	Copied   Treated `json:"copy"`
	Free     int64   `json:"free_bytes"` // on the root's filesystem
	Writable bool    `json:"writable"`   // a stage can be made there
}

// Survey is what a backup would take, and leave.
type Survey struct {
	Roots   []RootSurvey
	LeftOut []snapshot.LeftOut // by name
}

// Surveyor is a replica that can be looked over without being touched.
type Surveyor interface {
	// Survey looks at every name that a backup would take now. It writes nothing
	// and needs no live replica; what changes meanwhile makes it a little wrong.
	Survey(ctx context.Context) (Survey, error)
}

// Replica is what every kind of system must do.
type Replica interface {
	// Describe asks the live replica and its witnesses. Read-only.
	Describe(ctx context.Context) (State, error)
	// Roots says where the replica's files are. Read-only, needs no live replica.
	Roots(ctx context.Context) ([]snapshot.Root, error)
	// Capture fills the stage: between Hold and release where the kind has a
	// Holder. It never fsyncs.
	Capture(ctx context.Context, st *snapshot.Stage) error
	// Locate reads the position of a sealed stage from the dump itself, without
	// changing the stage. A dump that cannot be asked has the position that the
	// node had before it was held, with Consistency "live".
	Locate(ctx context.Context, st *snapshot.Stage, before State) (Position, error)
}

// Auditor is a replica whose dump can be compared with what its databases say of
// themselves.
type Auditor interface {
	// Audit looks at a sealed stage without changing it: what a database names must
	// be there, or the error has ErrUnsound. unread says of which databases that
	// could not be told, and why.
	Audit(ctx context.Context, st *snapshot.Stage) (unread []string, err error)
}

// Checked is what an offline look into a dump has shown.
type Checked struct {
	// Opened is how much of the dump could be looked into: "all", "part", "none".
	Opened string `json:"opened"`
	// Grade is what it makes of the dump, in the kind's own words.
	Grade  string         `json:"grade,omitempty"`
	Layers []CheckedLayer `json:"layers,omitempty"`
	// Proven counts what was proven, by the kind's own words.
	Proven map[string]int64 `json:"proven,omitempty"`
	// Notes are what is not wrong and could not be proven, a line each.
	Notes   []string `json:"notes,omitempty"`
	Seconds float64  `json:"seconds"`
	Peak    int64    `json:"peak_bytes,omitempty"` // memory of the process that looked
	// Unfinished says why the look was given up, which is not the dump's fault.
	Unfinished string `json:"unfinished,omitempty"`
	// Findings are what is wrong with the dump, a line each, the first found first.
	Findings []string `json:"findings,omitempty"`
	Hint     string   `json:"-"` // to the first finding, or to Unfinished
	// At is where the dump is, as it says itself; nil: it does not.
	At *Position `json:"-"`
}

// CheckedLayer is one part of a dump that is looked into by itself.
type CheckedLayer struct {
	Name   string `json:"name"` // "blocks", "state", "app"
	Engine string `json:"engine,omitempty"`
	Opened bool   `json:"opened"`
	Said   string `json:"said,omitempty"` // what it is, or why it was not opened
}

// Checker is a replica whose dump can be looked into without a live node.
type Checker interface {
	// Check looks into a dump, which must be at a position unless that is the zero
	// one, in a process of its own, and changes nothing. trees are where its files lie: of a sealed stage, or of a copy. What
	// is wrong with the dump is in what it returns; an error means that nothing can
	// be said.
	Check(ctx context.Context, trees []snapshot.Tree, at Position) (Checked, error)
}

// Looker looks into dumps of its kind that lie anywhere. It needs no replica.
type Looker interface {
	Checker
	// Needs begins to find out what Check reads of one dump.
	Needs() Needs
}

// Needs tells how much of a dump's files is read. It is not for many goroutines.
type Needs interface {
	// See is told the name of each file, with slashes, before Head is asked.
	See(name string)
	// Head is how many bytes of a file's beginning are read; what is behind them may
	// be a hole. Where ok is false the file need not be there.
	Head(name string) (bytes int64, ok bool)
}

// Gater is a replica that knows when it is not fit for a backup.
type Gater interface {
	// Gate returns nil when it is safe to take the backup right now, and to stop the
	// replica for it where it is a Holder; an error with ErrNotFit otherwise. It is
	// asked again just before.
	Gate(ctx context.Context, s State) error
}

// Holder is a replica that must stand still to be captured.
type Holder interface {
	Gater
	// Prepare links what is immutable while the replica still runs.
	Prepare(ctx context.Context, st *snapshot.Stage) error
	// Hold stops the replica and proves that it is down. release starts it again;
	// it may be called more than once, is not stopped by a cancelled context, and
	// must be called on every path. After an error of either the replica runs, or
	// is none of the hold's business any more, but for ErrDown and ErrStopping. A
	// release that has said ErrDown tells, when it is called again, whether the
	// replica runs by now.
	Hold(ctx context.Context, st *snapshot.Stage) (release func(context.Context) error, err error)
	// Rejoined waits until the replica has caught up beyond before and counts again.
	Rejoined(ctx context.Context, before State) error
}

// Rester is a Holder that somebody else may have stopped.
type Rester interface {
	// Still returns nil when the replica was stopped by somebody else and is proven
	// to be down: it can be captured without Hold, and is not started after.
	Still(ctx context.Context) error
}
