package cometbft

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/cosmos/gogoproto/proto"

	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"

	"github.com/eddy-backup/eddy/observer"
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
	ChainID    string
	Height     int64
	AppHash    []byte // after that block: stands in the header of the next
	BlockHash  []byte
	BlockTime  time.Time
	AppVersion uint64 // the block protocol's app version
	Engine     Engine
	Marks      map[string]string // see stateMarks
}

// Locate reads the position of a sealed stage from its state database. The stage
// is not changed by that: the engines are opened without a file or a lock.
func (l Layout) Locate(ctx context.Context, st *snapshot.Stage) (observer.Position, error) {
	g, err := readGenesisFile(l.bases[0].genesis)
	if err != nil {
		return observer.Position{}, err
	}
	tip, err := l.Tip(ctx, st)
	if err != nil {
		return observer.Position{}, err
	}
	if tip.ChainID != g.ChainID {
		return observer.Position{}, fmt.Errorf("the dump is of chain %q, the genesis file of chain %q", tip.ChainID, g.ChainID)
	}
	return observer.Position{
		Kind: "cometbft", Incarnation: g.Incarnation(), Index: uint64(tip.Height),
		Hash: tip.AppHash, HashKind: "app_hash", Time: tip.BlockTime, Consistency: "stopped", Marks: tip.Marks,
	}, nil
}

// Tip reads the last block from a sealed stage's state database.
func (l Layout) Tip(ctx context.Context, st *snapshot.Stage) (tip Tip, err error) {
	db, err := l.stateDB()
	if err != nil {
		return Tip{}, err
	}
	open := readerOf(db.Engine)
	if open == nil {
		return Tip{}, fmt.Errorf("%w: %s is %s, which this eddy cannot open", ErrNoPosition, db.Name, describe(db.Engine))
	}
	value, err := guarded(open, st.Place(db.Name), []byte("stateKey"))
	if err != nil {
		return Tip{}, fmt.Errorf("open %s of the dump: %w", db.Name, err)
	}
	tip, err = parseState(value)
	tip.Engine = db.Engine
	if err != nil {
		return Tip{}, fmt.Errorf("%s: %w", db.Name, err)
	}
	return tip, nil
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

// reader gets one key of a database that is opened read-only. A key that is not
// there is ErrNoPosition.
type reader func(dir string, key []byte) ([]byte, error)

// guarded turns a panic of an engine into an error: engines panic over files
// that are cut short.
func guarded(open reader, dir string, key []byte) (value []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the engine gave up: %v", p)
		}
	}()
	return open(dir, key)
}

// readerOf returns how a database of an engine is opened, nil where this build
// cannot.
func readerOf(e Engine) reader {
	if !engine.CanOpen(e) {
		return nil
	}
	return func(dir string, key []byte) (value []byte, err error) {
		db, err := engine.Open(e, dir)
		if errors.Is(err, engine.ErrNewer) {
			return nil, fmt.Errorf("%w: %w", ErrNoPosition, err)
		}
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		value, err = db.Get(key)
		if value == nil && err == nil {
			err = fmt.Errorf("%w: it has no %s: the node has made no block yet", ErrNoPosition, key)
		}
		return value, err
	}
}

// parseState reads the state that CometBFT and Tendermint since 0.34 store.
// Older generations wrote another encoding, some of which parses by accident:
// what does not make sense as a state is ErrNoPosition.
func parseState(b []byte) (Tip, error) {
	var s cmtstate.State
	if err := proto.Unmarshal(b, &s); err != nil {
		return Tip{}, fmt.Errorf("%w: its state is of another generation of Tendermint: %w", ErrNoPosition, err)
	}
	switch {
	case s.ChainID == "" || strings.ContainsFunc(s.ChainID, func(r rune) bool { return r < ' ' || r > '~' }),
		s.LastBlockHeight < 0,
		s.LastBlockHeight > 0 && len(s.LastBlockID.Hash) != 32,
		s.Validators == nil && s.NextValidators == nil:
		return Tip{}, fmt.Errorf("%w: its state is of another generation of Tendermint", ErrNoPosition)
	}
	return Tip{
		ChainID: s.ChainID, Height: s.LastBlockHeight, AppHash: s.AppHash, BlockHash: s.LastBlockID.Hash,
		BlockTime: s.LastBlockTime.UTC(), AppVersion: s.Version.Consensus.App, Marks: stateMarks(&s),
	}, nil
}
