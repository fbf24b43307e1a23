package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/cosmos/gogoproto/proto"

	cmtstore "github.com/cometbft/cometbft/proto/tendermint/store"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// blockStore is an open block store. Its keys are the same from Tendermint 0.34 to
// CometBFT 0.40 (store/store.go).
type blockStore struct {
	db           engine.DB
	name         string
	base, height int64
	metas        map[int64]*types.BlockMeta // of the newest that were asked for
}

// openBlocks reads what a block store says of itself.
func (c *checker) openBlocks(_ context.Context, db engine.DB) error {
	name := c.layer().Name
	value, err := db.Get([]byte("blockStore"))
	if err != nil {
		return err
	}
	if value == nil {
		c.said(true, "an empty block store")
		c.blocks = &blockStore{db: db, name: name}
		// After a state sync there may be signatures already, and no block.
		err := db.Each([]byte("H:"), []byte("H;"), func(key, _ []byte) error {
			c.fail(StageBlocks, BlocksMissing, name, "it has %s, and does not say which blocks it has", key)
			return errStop
		})
		if errors.Is(err, errStop) {
			return nil
		}
		return err
	}
	version, err := db.Get([]byte("version"))
	if err != nil {
		return err
	}
	if string(version) == "v2" {
		c.said(false, "a block store in the second layout of CometBFT 1, which this eddy cannot read")
		return nil
	}
	if bytes.HasPrefix(value, []byte("{")) {
		return c.oldBlocks(db, name, value)
	}
	var s cmtstore.BlockStoreState
	if err := proto.Unmarshal(value, &s); err != nil {
		return fmt.Errorf("what it says of its heights: %w", err)
	}
	if s.Base == 0 && s.Height > 0 {
		s.Base = 1 // as CometBFT reads what older ones wrote
	}
	if s.Height < 0 || s.Base < 0 || s.Base > s.Height {
		return fmt.Errorf("it says that it has the blocks %d to %d", s.Base, s.Height)
	}
	c.r.Base, c.r.Store = s.Base, s.Height
	c.blocks = &blockStore{db: db, name: name, base: s.Base, height: s.Height, metas: map[int64]*types.BlockMeta{}}
	c.said(true, "blocks %d to %d", s.Base, s.Height)
	return nil
}

func (b *blockStore) at(height int64) string { return fmt.Sprintf("%s block %d", b.name, height) }

func (b *blockStore) has(height int64) bool {
	return height >= b.base && height <= b.height && height > 0
}

// get reads a message; ok is false where the key is not there.
func get(db engine.DB, key string, into proto.Message) (ok bool, err error) {
	value, err := db.Get([]byte(key))
	if err != nil || value == nil {
		return false, err
	}
	if err := proto.Unmarshal(value, into); err != nil {
		return false, fmt.Errorf("%s: %w", key, err)
	}
	return true, nil
}

// meta reads a block's header and id, and sees that they belong together: a hash
// is right, whatever is asked of it later. nil: it said what is wrong.
func (c *checker) meta(height int64) (*types.BlockMeta, error) {
	b := c.blocks
	if m, ok := b.metas[height]; ok {
		return m, nil
	}
	value, err := b.db.Get(fmt.Appendf(nil, "H:%d", height))
	if err != nil {
		return nil, err
	}
	m, err := parseMeta(value)
	if b.metas[height] = m; len(b.metas) > 1000 {
		b.metas = map[int64]*types.BlockMeta{height: m}
	}
	switch {
	case value == nil:
		c.fail(StageBlocks, MetaDamaged, b.at(height), "there is no header of it")
	case err != nil:
		c.fail(StageBlocks, MetaDamaged, b.at(height), "its header cannot be read: %v", err)
	case m.Header.Height != height:
		c.fail(StageBlocks, MetaDamaged, b.at(height), "its header is of height %d", m.Header.Height)
	case !bytes.Equal(m.Header.Hash(), m.BlockID.Hash):
		c.fail(StageBlocks, BlockHash, b.at(height), "its header has hash %X, its id says %X", m.Header.Hash(), m.BlockID.Hash)
	default:
		return m, nil
	}
	b.metas[height] = nil
	return nil, nil
}

func parseMeta(value []byte) (*types.BlockMeta, error) {
	if value == nil {
		return nil, nil
	}
	var pb cmtproto.BlockMeta
	if err := proto.Unmarshal(value, &pb); err != nil {
		return nil, err
	}
	return types.BlockMetaFromTrustedProto(&pb)
}

// commit reads the signatures for a block: the canonical ones, which the next
// block holds, or those that the node has seen. nil: there are none.
func (c *checker) commit(prefix string, height int64) (*types.Commit, error) {
	var pb cmtproto.Commit
	ok, err := get(c.blocks.db, fmt.Sprintf("%s:%d", prefix, height), &pb)
	if err != nil || !ok {
		return nil, err
	}
	return types.CommitFromProto(&pb)
}

// headers checks the headers of all heights from from to the newest: hash, chain,
// link to the block below, its commit, and the validators that each announces for
// the next.
func (c *checker) headers(ctx context.Context, from int64) error {
	b := c.blocks
	var below *types.BlockMeta
	for h := max(from, b.base); h <= b.height; h++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := c.meta(h)
		if err != nil {
			return err
		}
		if m == nil {
			below = nil
			continue
		}
		if c.r.ChainID == "" {
			c.r.ChainID = m.Header.ChainID
		}
		sound := true
		bad := func(what What, format string, args ...any) {
			sound = false
			c.fail(StageBlocks, what, b.at(h), format, args...)
		}
		if m.Header.ChainID != c.r.ChainID {
			bad(ChainID, "it is of chain %q, the state of chain %q", m.Header.ChainID, c.r.ChainID)
		}
		if below != nil {
			if !m.Header.LastBlockID.Equals(below.BlockID) {
				bad(HeaderLink, "it links to block %X, the block below it is %X", m.Header.LastBlockID.Hash, below.BlockID.Hash)
			}
			if !bytes.Equal(m.Header.ValidatorsHash, below.Header.NextValidatorsHash) {
				bad(ValidatorsHash, "it has the validators %X, the block below it announces %X", m.Header.ValidatorsHash, below.Header.NextValidatorsHash)
			}
			if !m.Header.Time.After(below.Header.Time) {
				bad(HeaderLink, "it was made at %s, the block below it at %s", m.Header.Time, below.Header.Time)
			}
			last, err := c.commit("C", h-1)
			switch {
			case err != nil:
				bad(CommitInvalid, "the signatures for the block below it cannot be read: %v", err)
			case last == nil:
				bad(CommitMissing, "there are no signatures for the block below it")
			case !bytes.Equal(last.Hash(), m.Header.LastCommitHash):
				bad(CommitHash, "the signatures for the block below it have hash %X, its header says %X", last.Hash(), m.Header.LastCommitHash)
			}
		}
		if sound {
			c.r.Proven.Headers++
		}
		below = m
	}
	return nil
}

// whole puts a block together from its parts. Each part must prove that it
// belongs to the block that the id names, and the block have the id's hash.
func (c *checker) whole(height int64) error {
	b := c.blocks
	m, err := c.meta(height)
	if err != nil || m == nil {
		return err
	}
	header := m.BlockID.PartSetHeader
	if header.Total == 0 || header.Total > types.MaxBlockPartsCount {
		c.fail(StageBlocks, MetaDamaged, b.at(height), "its id says %d parts", header.Total)
		return nil
	}
	parts := types.NewPartSetFromHeader(header)
	for i := range int(header.Total) {
		key := fmt.Sprintf("P:%d:%d", height, i)
		value, err := b.db.Get([]byte(key))
		if err != nil {
			return err
		}
		if value == nil {
			c.fail(StageBlocks, PartMissing, b.at(height), "there is no part %d of %d", i+1, header.Total)
			return nil
		}
		part, err := parsePart(value)
		if err == nil && part.Index != uint32(i) {
			err = fmt.Errorf("it is part %d", part.Index+1)
		}
		if err == nil {
			_, err = parts.AddPart(part)
		}
		if err != nil {
			c.fail(StageBlocks, PartProof, b.at(height), "part %d of %d does not belong to it: %v", i+1, header.Total, err)
			return nil
		}
	}
	text, err := io.ReadAll(parts.GetReader())
	if err != nil {
		return err
	}
	block, err := parseBlock(text)
	switch {
	case err != nil:
		c.fail(StageBlocks, BlockDamaged, b.at(height), "its parts make no block: %v", err)
	case !bytes.Equal(block.Hash(), m.BlockID.Hash):
		c.fail(StageBlocks, BlockHash, b.at(height), "its parts make block %X, its id says %X", block.Hash(), m.BlockID.Hash)
	case len(block.Txs) != m.NumTxs:
		c.fail(StageBlocks, BlockDamaged, b.at(height), "it has %d transactions, its header's entry says %d", len(block.Txs), m.NumTxs)
	default:
		c.r.Proven.Blocks++
	}
	where, err := b.db.Get(fmt.Appendf(nil, "BH:%x", []byte(m.BlockID.Hash)))
	if err == nil && string(where) != strconv.FormatInt(height, 10) {
		c.fail(StageBlocks, BlockDamaged, b.at(height), "it is not found by its hash: that leads to %q", where)
	}
	return err
}

func parsePart(value []byte) (*types.Part, error) {
	var pb cmtproto.Part
	if err := proto.Unmarshal(value, &pb); err != nil {
		return nil, err
	}
	return types.PartFromProto(&pb)
}

func parseBlock(text []byte) (*types.Block, error) {
	var pb cmtproto.Block
	if err := proto.Unmarshal(text, &pb); err != nil {
		return nil, err
	}
	return types.BlockFromProto(&pb)
}

// sampled are the heights whose blocks are put together: the newest ones and some
// that are evenly spread over all that there are, or all of them.
func (c *checker) sampled(visit func(height int64) error) error {
	const newest, spread = 5, 10
	b := c.blocks
	if b.height == 0 {
		return nil
	}
	if c.o.Deep {
		for h := b.base; h <= b.height; h++ {
			if err := visit(h); err != nil {
				return err
			}
		}
		return nil
	}
	done := map[int64]bool{}
	for i := range int64(newest + spread) {
		h := b.height - i
		if i >= newest {
			h = b.base + (b.height-b.base)*(i-newest)/spread
		}
		if !b.has(h) || done[h] {
			continue
		}
		done[h] = true
		if err := visit(h); err != nil {
			return err
		}
	}
	return nil
}
