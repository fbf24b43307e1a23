package cometbft

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/check"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/snapshot"
)

// ErrNoPosition is in the chain of Locate's error when the dump cannot be asked:
// its state database is missing, empty, or of an engine or a generation that this
// program cannot read. It does not mean that the dump is bad; the position then
// comes from the node's RPC.
var ErrNoPosition = errors.New("the position cannot be read from the dump")

// Tip is what the state database of a dump says of the last block.
type Tip struct {
	ChainID   string
	Height    int64
	AppHash   []byte // after that block: stands in the header of the next
	BlockHash []byte
	BlockTime time.Time
	Engine    Engine
	Marks     map[string]string // see marksOf
}

// Locate reads the position of a sealed stage from its state database, in a process
// of its own where o has one. The stage is not changed by that: the engines are
// opened without a file or a lock.
func (l Layout) Locate(ctx context.Context, st *snapshot.Stage, o Offline) (observer.Position, error) {
	g, err := readGenesisFile(l.bases[0].genesis)
	if err != nil {
		return observer.Position{}, err
	}
	tip, err := l.Tip(ctx, st, o)
	if err != nil {
		return observer.Position{}, err
	}
	if tip.ChainID != g.ChainID {
		return observer.Position{}, fmt.Errorf("the dump is of chain %q, the genesis file of chain %q", tip.ChainID, g.ChainID)
	}
	p := tip.position()
	p.Incarnation, err = incarnationOf(l.Home, g)
	return p, err
}

// position is where a dump is, but for the incarnation, which the genesis tells.
func (t Tip) position() observer.Position {
	return observer.Position{
		Kind: "cometbft", Index: uint64(t.Height), Hash: t.AppHash, HashKind: "app_hash",
		Time: t.BlockTime, Consistency: "stopped", Marks: t.Marks,
	}
}

// Tip reads the last block from a sealed stage's state database.
func (l Layout) Tip(ctx context.Context, st *snapshot.Stage, o Offline) (tip Tip, err error) {
	db, err := l.stateDB()
	if err != nil {
		return Tip{}, err
	}
	if !engine.CanOpen(db.Engine) {
		return Tip{}, fmt.Errorf("%w: %s is %s, which this eddy cannot open", ErrNoPosition, db.Name, describe(db.Engine))
	}
	tip, err = o.tip(ctx, st.Place(db.Name))
	if err != nil {
		return Tip{}, fmt.Errorf("open %s of the dump: %w", db.Name, err)
	}
	return tip, nil
}

// tip reads the last block from a state database. ErrNoPosition: it does not tell,
// or this program, or a process of its own, cannot read it.
func (o Offline) tip(ctx context.Context, dir string) (Tip, error) {
	r, err := o.run(ctx, dir, check.Options{TipOnly: true})
	if errors.Is(err, errLong) {
		return Tip{}, fmt.Errorf("%w: %w", ErrNoPosition, err)
	}
	if err != nil {
		return Tip{}, err
	}
	switch {
	case r.Sound():
	case r.Findings[0].What == check.ChildMemory:
		return Tip{}, fmt.Errorf("%w: %s", ErrNoPosition, r.Findings[0].Detail)
	default:
		return Tip{}, errors.New(r.Findings[0].Detail)
	}
	if !r.Located {
		said := r.Notes
		for _, l := range r.Layers {
			said = append(said, l.Said)
		}
		return Tip{}, fmt.Errorf("%w: %s", ErrNoPosition, strings.Join(said, "; "))
	}
	return tipOf(r), nil
}

func tipOf(r check.Report) Tip {
	t := Tip{ChainID: r.ChainID, Height: r.Height, AppHash: r.AppHash, BlockHash: r.BlockHash, BlockTime: r.Time, Marks: marksOf(r)}
	for _, l := range r.Layers {
		if l.Stage == check.StageState {
			t.Engine = Engine(l.Engine)
		}
	}
	return t
}

// stateDB finds CometBFT's state database among the recognised ones. Badger names
// it without a suffix.
func (l Layout) stateDB() (Database, error) {
	data := resolved(l.bases[0].data)
	for _, name := range []string{"state.db", "state"} {
		p := resolved(filepath.Join(data, name))
		for _, d := range l.Databases {
			if d.Path == p {
				return d, nil
			}
		}
	}
	return Database{}, fmt.Errorf("%w: there is no state.db in %s", ErrNoPosition, data)
}

func describe(e Engine) string {
	if e == Unknown {
		return "of no known engine"
	}
	return "a " + string(e) + " database"
}
