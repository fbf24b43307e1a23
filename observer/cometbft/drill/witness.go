package drill

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	rpchttp "github.com/cometbft/cometbft/rpc/client/http"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer/cometbft"
)

// callTimeout bounds one call of a node's RPC. A block may be 100 MB of text.
const callTimeout = 20 * time.Second

// asker asks one node.
type asker struct {
	url    string // for people
	raw    string
	client *rpchttp.HTTP
}

func newAsker(raw string, c *http.Client) (*asker, error) {
	if c == nil {
		c = &http.Client{Timeout: callTimeout}
	}
	client, err := rpchttp.NewWithClient(raw, "/websocket", c)
	if err != nil {
		return nil, cometbft.Redact(err, raw)
	}
	return &asker{url: cometbft.Bare(raw), raw: raw, client: client}, nil
}

// said is an error of a call, without what may be secret in it.
func (a *asker) said(err error) error { return cometbft.Redact(err, a.raw) }

// block is what a node says of one height.
type block struct {
	hash   []byte // of the block
	before []byte // the app hash in its header: that after the block before
}

// block asks for the head of a block that the node has.
func (a *asker) block(ctx context.Context, h int64) (block, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.client.BlockchainInfo(ctx, h, h)
	if err != nil {
		return block{}, a.said(err)
	}
	for _, m := range r.BlockMetas {
		if m.Header.Height == h {
			return block{hash: m.BlockID.Hash, before: m.Header.AppHash}, nil
		}
	}
	return block{}, fmt.Errorf("it has no block %d", h)
}

// reach is which blocks a node has.
type reach struct {
	chain      string
	base, tip  int64
	catchingUp bool
}

func (a *asker) reach(ctx context.Context) (reach, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := a.client.Status(ctx)
	if err != nil {
		return reach{}, a.said(err)
	}
	return reach{chain: s.NodeInfo.Network, base: s.SyncInfo.EarliestBlockHeight, tip: s.SyncInfo.LatestBlockHeight, catchingUp: s.SyncInfo.CatchingUp}, nil
}

// full is a whole block, as the chain has it.
func (a *asker) full(ctx context.Context, h int64) (*types.Block, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.client.Block(ctx, &h)
	if err != nil {
		return nil, a.said(err)
	}
	if r.Block == nil || r.Block.Height != h || !bytes.Equal(r.Block.Hash(), r.BlockID.Hash) {
		return nil, fmt.Errorf("what it says is block %d is none", h)
	}
	return r.Block, nil
}

// extended tells whether votes carry extensions at a height. They are no part of
// what RPC tells of a block, and a node takes no block without them.
func (a *asker) extended(ctx context.Context, h int64) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.client.ConsensusParams(ctx, &h)
	if err != nil || r.ConsensusParams.ABCI.VoteExtensionsEnableHeight == 0 {
		return false
	}
	return h >= r.ConsensusParams.ABCI.VoteExtensionsEnableHeight
}

// answer is what one witness says of a height: the block, and the app's hash after
// it, which the header of the next block has.
type answer struct {
	from  *asker
	block []byte
	app   []byte
}

// witnesses are the nodes of the living chain.
type witnesses []*asker

// answers asks all of them for a height. why is one reason why there is none.
func (w witnesses) answers(ctx context.Context, h int64) (all []answer, why error) {
	for _, a := range w {
		at, err := a.block(ctx, h)
		var next block
		if err == nil {
			next, err = a.block(ctx, h+1)
		}
		if err != nil {
			why = fmt.Errorf("%s: %w", a.url, err)
			continue
		}
		all = append(all, answer{from: a, block: at.hash, app: next.before})
	}
	return all, why
}

// reaches asks all for what they have. Those on another chain, or silent, are not
// among the answers; why is one reason.
func (w witnesses) reaches(ctx context.Context, chain string) (all map[*asker]reach, why error) {
	all = map[*asker]reach{}
	for _, a := range w {
		r, err := a.reach(ctx)
		if err == nil && r.chain != chain {
			err = fmt.Errorf("it is of chain %.64q, not %s", r.chain, chain)
		}
		if err != nil {
			why = fmt.Errorf("%s: %w", a.url, err)
			continue
		}
		all[a] = r
	}
	return all, why
}
