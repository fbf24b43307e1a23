package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// A Tendermint before 0.34, a Loom chain's for one, has the same keys and another
// encoding of their values, which differs between versions. Of these stores only
// the structure is checked: the entries are there, and the heights agree.

// oldBlocks reads the block store of such a one.
func (c *checker) oldBlocks(db engine.DB, name string, value []byte) error {
	base, height, err := parseOldStore(value)
	if err != nil {
		return err
	}
	c.r.Base, c.r.Store = base, height
	c.said(false, "blocks %d to %d of a Tendermint before 0.34: their content is not read", base, height)
	b := &blockStore{name: name}
	for _, h := range []int64{base, (base + height) / 2, height} {
		for _, key := range []string{"H:%d", "P:%d:0"} {
			key = fmt.Sprintf(key, h)
			if h == 0 {
				continue
			}
			value, err := db.Get([]byte(key))
			if err != nil {
				return err
			}
			if len(value) == 0 {
				c.fail(StageBlocks, MetaDamaged, b.at(h), "there is no %s", key)
			}
		}
	}
	return nil
}

// parseOldStore reads what a block store before Tendermint 0.34 says of itself:
// JSON, in which numbers may stand in quotes, and the base only since 0.33.
func parseOldStore(value []byte) (base, height int64, err error) {
	var s struct{ Base, Height json.RawMessage }
	if err := json.Unmarshal(value, &s); err != nil {
		return 0, 0, fmt.Errorf("what it says of its heights: %w", err)
	}
	number := func(raw json.RawMessage) int64 {
		if raw == nil {
			return 0
		}
		n, perr := strconv.ParseInt(string(bytes.Trim(raw, `"`)), 10, 64)
		if err = errors.Join(err, perr); n < 0 {
			err = errors.Join(err, fmt.Errorf("it says height %d", n))
		}
		return n
	}
	base, height = number(s.Base), number(s.Height)
	if base == 0 && height > 0 {
		base = 1
	}
	if base > height {
		err = errors.Join(err, fmt.Errorf("it says that it has the blocks %d to %d", base, height))
	}
	return base, height, err
}

// oldState reads the state store of such a one, whose blocks go to c.r.Store.
func (c *checker) oldState(name string, value []byte) {
	chain, heights, ok := parseOldState(value)
	if !ok {
		c.said(false, "a state of a Tendermint before 0.34 that cannot be read")
		return
	}
	height, store := heights[0], c.r.Store
	if behind := store - heights[1]; behind == 0 || behind == 1 {
		height = heights[1]
	}
	c.r.ChainID, c.r.Height = chain, height
	c.said(false, "the state after block %d of %s, of a Tendermint before 0.34: its content is not read", height, chain)
	if c.o.ChainID != "" && chain != c.o.ChainID {
		c.fail(StageChain, ChainID, name, "it is of chain %q, not of %q", chain, c.o.ChainID)
	}
	switch {
	case store > height+1:
		c.fail(StageState, StoreAhead, name, "the state is at height %d, the blocks go to %d", height, store)
	case store < height:
		c.fail(StageState, StateAhead, name, "the state is at height %d, the blocks go to %d only", height, store)
	}
}

// parseOldState finds chain and height in a state as amino wrote it: a string and
// the number in the next field, the first or second of the state (state/state.go
// of Tendermint 0.20 to 0.33). The number is signed or not by amino's version, so
// it has two readings.
func parseOldState(b []byte) (chain string, heights [2]int64, ok bool) {
	for range 2 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", heights, false
		}
		b = b[n:]
		if kind != protowire.BytesType {
			return "", heights, false
		}
		text, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return "", heights, false
		}
		b = b[n:]
		next, kind, n := protowire.ConsumeTag(b)
		if n < 0 || next != num+1 || kind != protowire.VarintType {
			continue // the version, before the chain's id
		}
		v, n := protowire.ConsumeVarint(b[n:])
		printable := len(text) > 0 && !strings.ContainsFunc(string(text), func(r rune) bool { return r <= ' ' || r > '~' })
		if n < 0 || !printable || int64(v) < 0 {
			return "", heights, false
		}
		return string(text), [2]int64{int64(v), max(protowire.DecodeZigZag(v), 0)}, true
	}
	return "", heights, false
}
