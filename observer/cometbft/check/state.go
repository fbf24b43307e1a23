package check

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cosmos/gogoproto/proto"

	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// stateStore is an open state store, whose state could be read.
type stateStore struct {
	db   engine.DB
	name string
	sm.State
}

// openState reads the state, and sees that it is of the chain that was expected.
func (c *checker) openState(_ context.Context, db engine.DB) error {
	name := c.layer().Name
	value, err := db.Get([]byte("stateKey"))
	if err != nil {
		return err
	}
	if value == nil {
		c.said(true, "an empty state store")
		return nil
	}
	if c.blocks == nil && c.r.Store > 0 {
		c.oldState(name, value)
		return nil
	}
	s, err := parseState(value)
	if err != nil {
		c.said(false, "its state cannot be read")
		if c.blocks == nil {
			c.note("%s: %v", name, err)
			return nil
		}
		c.fail(StageState, StateDamaged, name, "%v", err)
		return nil
	}
	c.state = &stateStore{db: db, name: name, State: *s}
	c.r.ChainID, c.r.Height, c.r.AppHash = s.ChainID, s.LastBlockHeight, s.AppHash
	c.r.BlockHash, c.r.Time = s.LastBlockID.Hash, s.LastBlockTime.UTC()
	c.r.Located = true
	if s.LastBlockHeight > 0 && !s.LastValidators.IsNilOrEmpty() {
		parts := s.LastBlockID.PartSetHeader
		c.r.Parts, c.r.Validators = fmt.Sprintf("%d:%x", parts.Total, []byte(parts.Hash)), s.LastValidators.Hash()
	}
	c.said(true, "the state after block %d of %s", s.LastBlockHeight, s.ChainID)
	return c.expected()
}

// parseState reads a state as CometBFT would, whose own reader panics over some.
// Older generations wrote another encoding, some of which parses by accident.
func parseState(value []byte) (_ *sm.State, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its state makes no sense: %v", p)
		}
	}()
	var pb cmtstate.State
	if err := proto.Unmarshal(value, &pb); err != nil {
		return nil, fmt.Errorf("its state cannot be read: %w", err)
	}
	s, err := sm.FromProto(&pb)
	if err != nil {
		return nil, fmt.Errorf("its state makes no sense: %w", err)
	}
	switch {
	case s.ChainID == "" || strings.ContainsFunc(s.ChainID, func(r rune) bool { return r < ' ' || r > '~' }):
		return nil, fmt.Errorf("its state names no chain")
	case s.LastBlockHeight > 0 && len(s.LastBlockID.Hash) != sha256.Size:
		return nil, fmt.Errorf("its state names no block")
	case s.LastBlockHeight < 0:
		return nil, fmt.Errorf("its state is at height %d", s.LastBlockHeight)
	}
	return s, nil
}

// expected compares the state with what was expected.
func (c *checker) expected() error {
	s, o := c.state, c.o
	if o.ChainID != "" && s.ChainID != o.ChainID {
		c.fail(StageChain, ChainID, s.name, "it is of chain %q, not of %q", s.ChainID, o.ChainID)
	}
	if o.Height != 0 && s.LastBlockHeight != o.Height {
		c.fail(StageChain, Position, s.name, "its state is at height %d, not at %d", s.LastBlockHeight, o.Height)
	}
	if o.AppHash != nil && !bytes.Equal(s.AppHash, o.AppHash) {
		c.fail(StageChain, Position, s.name, "its state has app hash %X, not %X", s.AppHash, o.AppHash)
	}
	if o.Genesis == nil {
		return nil
	}
	value, err := s.db.Get([]byte("genesisDoc"))
	if err != nil {
		return err
	}
	if value == nil {
		c.note("%s keeps no genesis: the beginning of its history was not compared", s.name)
		return nil
	}
	g, err := parseGenesis(value)
	switch {
	case err != nil:
		c.fail(StageState, StateDamaged, s.name, "its genesis cannot be read: %v", err)
	case g.ChainID != o.Genesis.ChainID || !g.Time.Equal(o.Genesis.Time) || g.InitialHeight != o.Genesis.InitialHeight:
		c.fail(StageChain, Beginning, s.name, "its history began as %s, not as %s", g, *o.Genesis)
	}
	return nil
}

func (g Genesis) String() string {
	return fmt.Sprintf("%s at height %d on %s", g.ChainID, g.InitialHeight, g.Time.UTC().Format(time.RFC3339Nano))
}

func parseGenesis(value []byte) (Genesis, error) {
	var doc struct {
		ChainID       string    `json:"chain_id"`
		Time          time.Time `json:"genesis_time"`
		InitialHeight string    `json:"initial_height"`
	}
	if err := json.Unmarshal(value, &doc); err != nil {
		return Genesis{}, err
	}
	height, err := strconv.ParseInt(doc.InitialHeight, 10, 64)
	return Genesis{doc.ChainID, doc.Time, max(height, 1)}, err
}

// validators is the set of a height, as the node itself would load it; nil: it is
// not kept. Priorities are not those of the height: no hash has them.
func (s *stateStore) validators(height int64) (*types.ValidatorSet, error) {
	var info cmtstate.ValidatorsInfo
	key := func(h int64) string { return fmt.Sprintf("validatorsKey:%d", h) }
	ok, err := get(s.db, key(height), &info)
	if err != nil || !ok {
		return nil, err
	}
	if info.ValidatorSet == nil {
		const every = 100000 // heights: a whole set is kept where it changes, and here (state/store.go)
		changed := max(info.LastHeightChanged, height-height%every)
		info = cmtstate.ValidatorsInfo{}
		if ok, err := get(s.db, key(changed), &info); err != nil || !ok || info.ValidatorSet == nil {
			return nil, err
		}
	}
	return types.ValidatorSetFromProto(info.ValidatorSet)
}

// agree checks what block store and state store say of each other.
func (c *checker) agree(ctx context.Context) error {
	b, s := c.blocks, c.state
	switch {
	case b == nil && s == nil:
		return nil
	case c.home.blocks == nil && s != nil && s.LastBlockHeight > 0:
		c.fail(StageBlocks, BlocksMissing, "", "there is a state, and no block store")
		return nil
	case b == nil:
		return nil
	case s == nil:
		if c.home.state == nil || b.height > s.height() && c.opened(StageState) {
			c.fail(StageState, StateMissing, "", "there are blocks, and no state")
		}
	}
	return c.guard(StageBlocks, b.name, func() error {
		if b.height > 0 {
			from := b.height - c.o.Last + 1
			if c.o.Deep {
				from = b.base
			}
			if err := c.headers(ctx, from); err != nil {
				return err
			}
			err := c.sampled(func(h int64) error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return c.whole(h)
			})
			if err != nil {
				return err
			}
		}
		if s == nil {
			return nil
		}
		return c.heights(ctx)
	})
}

func (s *stateStore) height() int64 {
	if s == nil {
		return 0
	}
	return s.LastBlockHeight
}

// opened tells whether a layer was opened and read.
func (c *checker) opened(stage Stage) bool {
	for _, l := range c.r.Layers {
		if l.Stage == stage {
			return l.Opened
		}
	}
	return false
}

// heights compares the heights of blocks and state, and what each proves of the
// other. CometBFT starts where the store has the state's block or one more
// (consensus/replay.go).
func (c *checker) heights(ctx context.Context) error {
	b, s := c.blocks, c.state
	switch h := s.LastBlockHeight; {
	case b.height == 0 && h == 0:
		c.note("the node has made no block yet")
		return nil
	case b.height == 0:
		c.note("the state came by state sync, and no block after it: nothing proves it but the application")
		return nil
	case b.height > h+1:
		c.fail(StageState, StoreAhead, s.name, "the state is at height %d, the blocks go to %d", h, b.height)
		return nil
	case b.height < h:
		c.fail(StageState, StateAhead, s.name, "the state is at height %d, the blocks go to %d only", h, b.height)
		return nil
	case b.height == h+1:
		c.r.Grade = Replayable
	}
	if err := c.stateBlock(); err != nil {
		return err
	}
	if err := c.stored(); err != nil {
		return err
	}
	return c.signatures(ctx)
}

// stateBlock compares the state with the block that it is after, and with the
// next where that is there.
func (c *checker) stateBlock() error {
	s, h := c.state, c.state.LastBlockHeight
	bad := func(what What, format string, args ...any) { c.fail(StageState, what, s.name, format, args...) }
	if c.blocks.has(h) {
		m, err := c.meta(h)
		if err != nil || m == nil {
			return err
		}
		if !m.BlockID.Equals(s.LastBlockID) {
			bad(StateBlock, "it is after block %X of height %d, the store has %X", s.LastBlockID.Hash, h, m.BlockID.Hash)
		}
		if !m.Header.Time.Equal(s.LastBlockTime) {
			bad(StateBlock, "it is after a block of %s, the store's is of %s", s.LastBlockTime.UTC(), m.Header.Time.UTC())
		}
		if !bytes.Equal(s.LastValidators.Hash(), m.Header.ValidatorsHash) {
			bad(ValidatorsHash, "its validators of height %d are %X, the header says %X", h, s.LastValidators.Hash(), m.Header.ValidatorsHash)
		}
		if !bytes.Equal(s.Validators.Hash(), m.Header.NextValidatorsHash) {
			bad(ValidatorsHash, "its validators of height %d are %X, the header of %d announces %X", h+1, s.Validators.Hash(), h, m.Header.NextValidatorsHash)
		}
		if s.LastHeightConsensusParamsChanged <= h && !bytes.Equal(s.ConsensusParams.Hash(), m.Header.ConsensusHash) {
			bad(StateBlock, "its consensus parameters are %X, the header says %X", s.ConsensusParams.Hash(), m.Header.ConsensusHash)
		}
	}
	if !c.blocks.has(h + 1) {
		return nil
	}
	m, err := c.meta(h + 1)
	if err != nil || m == nil {
		return err
	}
	if !bytes.Equal(m.Header.AppHash, s.AppHash) {
		bad(AppHash, "it has app hash %X, the header of height %d says %X", s.AppHash, h+1, m.Header.AppHash)
	}
	if !bytes.Equal(m.Header.LastResultsHash, s.LastResultsHash) {
		bad(StateBlock, "its results have hash %X, the header of height %d says %X", s.LastResultsHash, h+1, m.Header.LastResultsHash)
	}
	if !bytes.Equal(m.Header.NextValidatorsHash, s.NextValidators.Hash()) {
		bad(ValidatorsHash, "its validators of height %d are %X, the header of %d announces %X", h+2, s.NextValidators.Hash(), h+1, m.Header.NextValidatorsHash)
	}
	return nil
}

// stored sees that the validator sets are there that the node will load for its
// next block (state/execution.go), and are those of the state.
func (c *checker) stored() error {
	s, h := c.state, c.state.LastBlockHeight
	for _, x := range []struct {
		height int64
		want   *types.ValidatorSet
	}{{h, s.LastValidators}, {h + 1, s.Validators}, {h + 2, s.NextValidators}} {
		if x.height < s.InitialHeight || x.want.IsNilOrEmpty() {
			continue
		}
		got, err := s.validators(x.height)
		switch {
		case err != nil:
			c.fail(StageState, ValidatorsStore, s.name, "its validators of height %d cannot be read: %v", x.height, err)
		case got == nil:
			c.fail(StageState, ValidatorsStore, s.name, "the validators of height %d are not there", x.height)
		case !bytes.Equal(got.Hash(), x.want.Hash()):
			c.fail(StageState, ValidatorsHash, s.name, "it keeps the validators %X for height %d, the state has %X", got.Hash(), x.height, x.want.Hash())
		}
	}
	return nil
}

// signatures verifies who signed the newest blocks, and some below: more than two
// thirds of the validators that the header names, which the state store must have.
func (c *checker) signatures(ctx context.Context) error {
	b := c.blocks
	// The node votes on its next block with the signatures that it has seen for the
	// newest.
	seen, err := c.commit("SC", b.height)
	switch {
	case err != nil:
		c.fail(StageBlocks, CommitInvalid, b.at(b.height), "the signatures for it cannot be read: %v", err)
	case seen == nil:
		c.fail(StageBlocks, CommitMissing, b.at(b.height), "there are no signatures for it")
	default:
		if err := c.verify(b.height, seen); err != nil {
			return err
		}
	}
	return c.sampled(func(h int64) error {
		if err := ctx.Err(); err != nil || h == b.height {
			return err
		}
		canonical, err := c.commit("C", h)
		if err != nil || canonical == nil {
			if h+1 < b.height-c.o.Last || err != nil { // else headers has said so
				c.fail(StageBlocks, CommitMissing, b.at(h), "there are no signatures for it that can be read")
			}
			return nil
		}
		return c.verify(h, canonical)
	})
}

// verify verifies the signatures for a block of the store.
func (c *checker) verify(height int64, commit *types.Commit) error {
	b, s := c.blocks, c.state
	m, err := c.meta(height)
	if err != nil || m == nil {
		return err
	}
	var set *types.ValidatorSet
	for _, known := range []*types.ValidatorSet{s.LastValidators, s.Validators} {
		if bytes.Equal(known.Hash(), m.Header.ValidatorsHash) {
			set = known
		}
	}
	if set == nil {
		if set, err = s.validators(height); err != nil {
			c.fail(StageState, ValidatorsStore, s.name, "its validators of height %d cannot be read: %v", height, err)
			return nil
		}
		if set == nil && height < s.LastBlockHeight {
			return nil // a node that prunes has them no more
		}
		if set == nil || !bytes.Equal(set.Hash(), m.Header.ValidatorsHash) {
			c.fail(StageBlocks, ValidatorsHash, b.at(height), "the state store has not the validators %X that its header names", m.Header.ValidatorsHash)
			return nil
		}
	}
	if err := types.VerifyCommit(m.Header.ChainID, set, m.BlockID, height, commit); err != nil {
		c.fail(StageBlocks, CommitInvalid, b.at(height), "it is not signed by two thirds of its validators: %v", err)
		return nil
	}
	c.r.Proven.Commits++
	return nil
}
