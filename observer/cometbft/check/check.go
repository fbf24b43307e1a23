// Package check tells offline whether the dump of a chain's node would come back
// to life, and of what it is a dump: it opens the databases, and lets block store,
// state store and application prove each other.
//
// It refuses to know any network and any live node: that the dump is of the chain
// that everybody else follows, only others can say. Its invariants: nothing that
// it looks at is changed, no file and no lock is made beside it, and what it could
// not look at it says.
package check

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// Options of a check. The zero value checks what a dump says of itself.
type Options struct {
	// ChainID is what the dump must be of; "": of anything.
	ChainID string `json:"chain_id,omitempty"`
	// Genesis is what the dump's history must have begun with, as the state store
	// keeps it; nil: anything. The store's copy is a whole genesis file, which is
	// read into memory: leave it nil where that is larger than a few dozen megabytes.
	Genesis *Genesis `json:"genesis,omitempty"`
	// Height and AppHash are what the state must be at; 0 and nil: anywhere.
	Height  int64  `json:"height,omitempty"`
	AppHash []byte `json:"app_hash,omitempty"`
	// Last is how many of the newest heights have their headers, commits and links
	// checked; 0: 100. Of some of them, and of a sample below, whole blocks are.
	Last int64 `json:"last,omitempty"`
	// Deep checks every block, every node of the application's trees and every
	// table of every database: all bytes are read.
	Deep bool `json:"deep,omitempty"`
	// Trees are directories of the dump that lie elsewhere than below its own.
	Trees []Tree `json:"trees,omitempty"`
	// TipOnly looks at nothing but what a state store says of its last block: the
	// directory is that database's own. What else is asked is passed over.
	TipOnly bool `json:"tip_only,omitempty"`
	// NoTables leaves out the comparison of each database's files with its own list
	// of tables, for a dump that has just been audited.
	NoTables bool `json:"no_tables,omitempty"`
}

// Tree is a directory of a dump: a root of its own, as a mount below a home is.
type Tree struct {
	Name string `json:"name"` // where it stands in the dump, slash-separated: "data"
	Dir  string `json:"dir"`
}

// Genesis is what identifies the beginning of a chain's history.
type Genesis struct {
	ChainID       string    `json:"chain_id"`
	Time          time.Time `json:"time"`
	InitialHeight int64     `json:"initial_height"`
}

// Run checks the databases below dir: a home as it was restored, a stage, or any
// copy that nobody writes. What is wrong with the dump is in the report's
// findings; an error means that it could not be looked at. It may be called from
// many goroutines. Its memory does not grow with the number of blocks; the engines'
// grows with the number of tables, some hundred bytes each, so a large dump is
// better checked by InChild.
func Run(ctx context.Context, dir string, o Options) (Report, error) {
	begun := time.Now()
	o.Last = cmp.Or(o.Last, 100)
	c := &checker{dir: dir, o: o}
	if err := c.run(ctx); err != nil {
		return c.r, fmt.Errorf("check %s: %w", dir, err)
	}
	if c.more > 0 {
		c.note("%d more findings are not listed", c.more)
	}
	c.r.end()
	c.r.Seconds = time.Since(begun).Seconds()
	return c.r, nil
}

// checker is one check under way.
type checker struct {
	dir  string
	o    Options
	r    Report
	home home
	more int // findings beyond maxFindings

	blocks *blockStore // nil: not opened
	state  *stateStore // nil: not opened
	codes  [][]byte    // hashes of the programs that the application knows
}

func (c *checker) run(ctx context.Context) error {
	if c.o.TipOnly {
		return c.tip(ctx)
	}
	dbs, blobs, err := find(ctx, append([]Tree{{Dir: c.dir}}, c.o.Trees...))
	if err != nil {
		return err
	}
	c.home = choose(dbs)
	if !c.o.NoTables {
		for _, d := range dbs {
			if err := c.tables(ctx, d); err != nil {
				return err
			}
		}
	}
	if c.o.Deep {
		for _, d := range dbs {
			if err := c.readAll(ctx, d); err != nil {
				return err
			}
		}
	}
	// The order matters: blocks are verified with the state's validators, and the
	// app by both.
	for _, layer := range []struct {
		stage Stage
		db    *database
		check func(context.Context, engine.DB) error
	}{
		{StageBlocks, c.home.blocks, c.openBlocks},
		{StageState, c.home.state, c.openState},
	} {
		close, err := c.with(ctx, layer.stage, layer.db, layer.check)
		defer close()
		if err != nil {
			return err
		}
	}
	if err := c.agree(ctx); err != nil {
		return err
	}
	close, err := c.with(ctx, StageApp, c.home.app, c.checkApp)
	defer close()
	if err != nil {
		return err
	}
	return c.programs(ctx, blobs)
}

// tip reads the state store alone.
func (c *checker) tip(ctx context.Context) error {
	kind, err := engine.Detect(c.dir)
	if err != nil {
		return err
	}
	c.o = Options{}
	close, err := c.with(ctx, StageState, &database{filepath.Base(c.dir), c.dir, kind}, c.openState)
	close()
	return err
}

// Stage is what was being looked at.
type Stage string

// The stages, in order.
const (
	StageDatabases Stage = "databases"
	StageBlocks    Stage = "blocks"
	StageState     Stage = "state"
	StageApp       Stage = "app"
	StageChain     Stage = "chain" // is it of the chain that was expected
	StageChild     Stage = "child" // the process that checked came to a bad end
)

// Finding is something wrong with a dump.
type Finding struct {
	Stage  Stage  `json:"stage"`
	What   What   `json:"what"`
	Where  string `json:"where,omitempty"` // a database below the dump, and what in it
	Detail string `json:"detail"`          // one line, lower case, no full stop
	Hint   string `json:"hint,omitempty"`  // what to do, where it is not plain
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s: %s", f.Stage, f.What, f.Where, f.Detail)
}

// Opened says how much of a dump could be looked into.
type Opened string

// All is all of block store, state store and application.
const (
	All  Opened = "all"
	Part Opened = "part"
	None Opened = "none"
)

// Grade is what the layers' heights make of a dump.
type Grade string

// The grades, best first.
const (
	Clean      Grade = "clean"      // all layers at one height
	Replayable Grade = "replayable" // the node will first execute its last block again, as it does after a crash
	Structure  Grade = "structure"  // not all layers could be read: their files are there
	Broken     Grade = "broken"     // there are findings
)

// Layer is what was seen of one layer of a dump.
type Layer struct {
	Stage  Stage  `json:"stage"`
	Name   string `json:"name,omitempty"`   // of the database, below the dump
	Engine string `json:"engine,omitempty"` // "goleveldb", ...
	Opened bool   `json:"opened"`
	Said   string `json:"said"` // what it is, or why it could not be opened
}

// Report is what a check has found.
type Report struct {
	Opened   Opened    `json:"opened"`
	Grade    Grade     `json:"grade"`
	Layers   []Layer   `json:"layers"`
	Findings []Finding `json:"findings,omitempty"`
	// Notes are what is not wrong and could not be proven, one line each.
	Notes []string `json:"notes,omitempty"`

	ChainID   string    `json:"chain_id,omitempty"`
	Base      int64     `json:"base,omitempty"`   // of the block store: the oldest block
	Store     int64     `json:"store,omitempty"`  // of the block store: the newest block
	Height    int64     `json:"height,omitempty"` // of the state
	App       int64     `json:"app,omitempty"`    // of the application
	Time      time.Time `json:"time,omitzero"`    // of the block at Height
	BlockHash []byte    `json:"block_hash,omitempty"`
	AppHash   []byte    `json:"app_hash,omitempty"` // after the block at Height
	// Located: Height, Time, BlockHash and AppHash are what the state store says, and
	// so are Parts, "number:hash" of that block's parts, and Validators, the hash of
	// the set that signed it.
	Located    bool   `json:"located,omitempty"`
	Parts      string `json:"parts,omitempty"`
	Validators []byte `json:"validators,omitempty"`

	Kind string `json:"app_kind,omitempty"` // "sdk", "kvstore"; "": not known

	Proven  Proven  `json:"proven"`
	Seconds float64 `json:"seconds"`
	Peak    int64   `json:"peak_bytes,omitempty"` // resident, of the child; InChild only
}

// Proven counts what was proven, so that a reader sees how deep a check went.
type Proven struct {
	Tables  int64 `json:"tables"`  // are there, with the size that their database says
	Pairs   int64 `json:"pairs"`   // Deep: of all databases, read with their checksums
	Headers int64 `json:"headers"` // have the hash that their block's id says, and link to the one below
	Commits int64 `json:"commits"` // signed by more than two thirds of the right validators
	Blocks  int64 `json:"blocks"`  // put together from parts that prove themselves
	Stores  int64 `json:"stores"`  // of the SDK's application: in the app hash
	Nodes   int64 `json:"nodes"`   // of its trees: have the hash that their parent says
	// Programs of wasm contracts have the hash that they are named by.
	Programs int64 `json:"programs"`
}

// Sound tells whether nothing was found.
func (r Report) Sound() bool { return len(r.Findings) == 0 }

const maxFindings = 100

func (c *checker) fail(stage Stage, what What, where, format string, args ...any) {
	if len(c.r.Findings) >= maxFindings {
		c.more++
		return
	}
	c.r.Findings = append(c.r.Findings, Finding{Stage: stage, What: what, Where: where, Detail: line(format, args...), Hint: what.hint()})
}

func (c *checker) note(format string, args ...any) {
	if note := line(format, args...); !slices.Contains(c.r.Notes, note) {
		c.r.Notes = append(c.r.Notes, note)
	}
}

// line is a text of one line: engines say more.
func line(format string, args ...any) string {
	return strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
}

// end draws the sum.
func (r *Report) end() {
	opened := 0
	for _, l := range r.Layers {
		if l.Opened {
			opened++
		}
	}
	switch opened {
	case 0:
		r.Opened = None
	case 3:
		r.Opened = All
	default:
		r.Opened = Part
	}
	switch {
	case len(r.Findings) > 0:
		r.Grade = Broken
	case r.Grade == "" && r.Opened == All:
		r.Grade = Clean
	case r.Opened != All:
		r.Grade = Structure
	}
}
