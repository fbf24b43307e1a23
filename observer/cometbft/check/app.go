package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// checkApp recognises the application by what its database holds.
func (c *checker) checkApp(ctx context.Context, db engine.DB) error {
	name := c.layer().Name
	if value, err := db.Get([]byte("s/latest")); err != nil {
		return err
	} else if value != nil {
		return c.sdk(ctx, db, name, value)
	}
	value, err := db.Get([]byte("stateKey"))
	if err != nil {
		return err
	}
	if size, height, ok := parseKVStore(value); ok {
		return c.kvstore(name, size, height)
	}
	empty := true
	err = db.Each(nil, nil, func(_, _ []byte) error {
		empty = false
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	if empty && c.r.Height > 0 {
		c.fail(StageApp, AppMissing, name, "it is empty, the state is at height %d", c.r.Height)
		return nil
	}
	c.said(false, "an application that this eddy does not know")
	return nil
}

// errStop ends an iteration.
var errStop = errors.New("stop")

// kvstore checks the application that comes with CometBFT. Its hash is the number
// of transactions: that the values are the right ones it does not prove.
func (c *checker) kvstore(name string, size, height int64) error {
	c.r.Kind, c.r.App = "kvstore", height
	c.said(true, "CometBFT's key-value application at height %d, whose hash counts transactions only", height)
	hash := make([]byte, 8)
	binary.PutVarint(hash, size)
	return c.appAt(name, height, hash)
}

// parseKVStore reads the state of CometBFT's key-value application
// (abci/example/kvstore).
func parseKVStore(value []byte) (size, height int64, ok bool) {
	var s struct{ Size, Height *int64 }
	err := json.Unmarshal(value, &s)
	if err != nil || s.Size == nil || s.Height == nil || *s.Size < 0 || *s.Height < 0 {
		return 0, 0, false
	}
	return *s.Size, *s.Height, true
}

// appAt compares the application's height and hash with those of state and blocks.
// The hash after a block stands in the state, and in the next block's header.
func (c *checker) appAt(name string, height int64, hash []byte) error {
	s := c.state
	if s == nil {
		c.note("%s is at height %d with hash %X, and there is no state to compare it with", name, height, hash)
		return nil
	}
	compare := func(of string, want []byte) {
		if !bytes.Equal(hash, want) {
			c.fail(StageApp, AppHash, name, "at height %d it has hash %X, %s says %X", height, hash, of, want)
		}
	}
	switch h := s.LastBlockHeight; {
	case height == h:
		compare("the state", s.AppHash)
	case height == h+1 && c.blocks != nil && c.blocks.height == height:
		// The node was stopped between the application's commit and its own: after a
		// start it asks the application no more for that block. No header has the hash.
		c.r.Grade = Replayable
		c.note("%s is at height %d, one above the state: no header proves its hash yet", name, height)
	case height > h:
		c.fail(StageApp, AppAhead, name, "it is at height %d, the state at %d", height, h)
	case height == h-1 && c.blocks != nil && c.blocks.has(h):
		c.r.Grade = Replayable
		m, err := c.meta(h)
		if err != nil || m == nil {
			return err
		}
		compare(fmt.Sprintf("the header of height %d", h), m.Header.AppHash)
	default:
		c.fail(StageApp, AppBehind, name, "it is at height %d, the state at %d", height, h)
	}
	return nil
}
