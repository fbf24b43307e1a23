package observer

import (
	"context"
	"errors"

	"github.com/eddy-backup/eddy/snapshot"
)

// How a drill ended.
const (
	DrillPassed      = "passed"
	DrillFailed      = "failed"
	DrillNotPossible = "not possible" // nothing is proven, neither way
)

// ErrNotPossible is in the chain of errors that say why a drill cannot be.
var ErrNotPossible = errors.New("not possible")

// DrillTask is what a Driller is given.
type DrillTask struct {
	// Scratch is a directory for the drill alone. What was restored lies in its
	// Home; the rest is the Driller's. Whoever gives it removes it.
	Scratch  string
	Position Position        // of what was restored
	Roots    []snapshot.Root // where it lay when it was backed up
	// Say tells a person how far the drill is. It may be nil.
	Say func(phase, text string)
}

// DrillHome is the restored copy in a drill's scratch directory.
const DrillHome = "home"

// Driller brings a restored copy to life, apart from everything that matters, and
// proves that it goes on as its cluster did.
type Driller interface {
	// Possible says, before anything is fetched, why a drill cannot be (an error with
	// ErrNotPossible in its chain); nil where it may. The error's hint says what to do.
	Possible(ctx context.Context, p Position) error
	// Prepare takes from the living cluster into the scratch directory what the copy
	// will need, before that is restored: it may be gone afterwards. Its errors are
	// like those of Possible. It is called once, before Drill.
	Prepare(ctx context.Context, t DrillTask) error
	// Drill runs the copy until enough is proven, or it fails. An error means that
	// nothing is known; how the drill ended is in the report. All that it started
	// has ended when it returns.
	Drill(ctx context.Context, t DrillTask) (DrillReport, error)
	// Sweep ends what a drill in that scratch directory left running whose eddy was
	// killed. It may be called where there is nothing.
	Sweep(ctx context.Context, scratch string) error
}

// DrillReport is what a drill has found. Times in seconds.
type DrillReport struct {
	Outcome string `json:"outcome"` // DrillPassed, ...
	Why     string `json:"why,omitempty"`
	Hint    string `json:"hint,omitempty"`
	// Late: it failed because its time was over. The copy need not be to blame.
	Late bool `json:"late,omitempty"`

	Cluster  string          `json:"chain,omitempty"`
	Isolated bool            `json:"isolated"` // the copy had no peer but eddy
	Network  string          `json:"network"`  // "own": a network namespace, "host": loopback of this machine
	Command  []string        `json:"command,omitempty"`
	Version  string          `json:"version,omitempty"` // of the system that ran the copy, and its app
	Wanted   int             `json:"blocks_wanted"`
	Executed []ExecutedBlock `json:"executed"`
	Proved   string          `json:"proved,omitempty"`        // of a system without blocks: what the copy has shown, in a line
	Against  []string        `json:"compared_with,omitempty"` // URLs without what may be secret in them
	Mismatch *Mismatch       `json:"mismatch,omitempty"`
	Log      []string        `json:"log,omitempty"` // the node's last lines, of a drill that did not pass
	Warnings []string        `json:"warnings,omitempty"`

	StartSeconds  float64 `json:"start_seconds,omitempty"`       // until the copy answered
	FirstSeconds  float64 `json:"first_block_seconds,omitempty"` // until it had executed a block, from its start
	BlocksSeconds float64 `json:"blocks_seconds,omitempty"`      // until it had executed all, from its start
}

// ExecutedBlock is a block that the copy has executed with the cluster's result.
type ExecutedBlock struct {
	Height    uint64 `json:"height"`
	BlockHash string `json:"block_hash"` // hex
	AppHash   string `json:"app_hash"`   // hex, after the block
	// By says how the copy's app hash is known: "results" of the block, "info" of
	// the app at that height, "next": it has accepted the next block, whose header
	// has it.
	By string `json:"by"`
}

// Mismatch is where the copy differs from its cluster.
type Mismatch struct {
	Height uint64 `json:"height"`
	What   string `json:"what"` // "app hash", "block hash"
	Want   string `json:"want"` // hex, of the cluster
	Got    string `json:"got"`  // hex, of the copy
}
