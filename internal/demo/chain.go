package demo

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

type home struct{ name, dir, rpc, chainID string }

func testnet(dir string, validators int, engine string) ([]home, error) {
	nodes, err := node.Testnet(dir, node.TestnetOptions{Validators: validators, Observers: 1, ChainID: "demo-1", Engine: engine})
	if err != nil {
		return nil, err
	}
	homes := make([]home, len(nodes))
	for i, n := range nodes {
		homes[i] = home{name: n.Name, dir: n.Dir, rpc: n.RPC, chainID: "demo-1"}
	}
	return homes, nil
}

func openHome(dir string) (home, error) {
	n, err := node.Open(dir)
	if err != nil {
		return home{}, err
	}
	return home{name: n.Name, dir: n.Dir, rpc: n.RPC, chainID: "demo-1"}, nil
}

var client = &http.Client{Timeout: 10 * time.Second}

// call asks a node's RPC and decodes the result.
func call(ctx context.Context, rpc, method string, q url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rpc+"/"+method+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	var r struct {
		Result json.RawMessage
		Error  *struct{ Message, Data string }
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if r.Error != nil {
		return fmt.Errorf("%s: %s %s", method, r.Error.Message, r.Error.Data)
	}
	return json.Unmarshal(r.Result, into)
}

func height(ctx context.Context, rpc string) (int64, error) {
	var s struct {
		SyncInfo struct {
			Height int64 `json:"latest_block_height,string"`
		} `json:"sync_info"`
	}
	err := call(ctx, rpc, "status", nil, &s)
	return s.SyncInfo.Height, err
}

func waitHeight(ctx context.Context, rpc string, want int64, within time.Duration) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		h, err := height(ctx, rpc)
		if err == nil && h >= want {
			return h, nil
		}
		select {
		case <-ctx.Done():
			return h, fmt.Errorf("height %d not reached within %s (at %d, %v)", want, within, h, err)
		case <-tick.C:
		}
	}
}

// load sends transactions until it is stopped.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// startLoad sends about a hundred transactions a second, of a few hundred bytes
// each, to the nodes in turn. One that is refused (a full mempool, a node that
// is going down) is no trouble: what counts is what the blocks hold.
func startLoad(rpcs []string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	l.done.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var noise [150]byte
			rand.Read(noise[:])
			tx := fmt.Sprintf("key-%07d=%s", n, hex.EncodeToString(noise[:]))
			var ignored json.RawMessage
			if err := call(ctx, rpcs[n%len(rpcs)], "broadcast_tx_async", url.Values{"tx": {strconv.Quote(tx)}}, &ignored); err != nil {
				continue
			}
		}
	})
	return l
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

// truth is what the living chain said of a height.
type truth struct {
	height             int64
	blockHash, appHash string
	keys               map[string]string
}

type block struct {
	BlockID struct {
		Hash string `json:"hash"`
	} `json:"block_id"`
	Block struct {
		Header struct {
			AppHash string `json:"app_hash"`
		} `json:"header"`
		Data struct {
			Txs []string `json:"txs"`
		} `json:"data"`
	} `json:"block"`
}

func getBlock(ctx context.Context, rpc string, h int64) (b block, err error) {
	err = call(ctx, rpc, "block", url.Values{"height": {strconv.FormatInt(h, 10)}}, &b)
	return b, err
}

// readTruth reads every transaction of the blocks up to h from the blocks
// themselves: not what was sent counts, but what the chain has.
func readTruth(ctx context.Context, rpc string, h int64) (truth, error) {
	t := truth{height: h, keys: map[string]string{}}
	for i := int64(1); i <= h; i++ {
		b, err := getBlock(ctx, rpc, i)
		if err != nil {
			return t, err
		}
		for _, tx := range b.Block.Data.Txs {
			raw, err := base64.StdEncoding.DecodeString(tx)
			if err != nil {
				return t, err
			}
			k, v, ok := strings.Cut(string(raw), "=")
			if !ok {
				return t, fmt.Errorf("block %d holds a transaction that is no key=value", i)
			}
			t.keys[k] = v
		}
		if i == h {
			t.blockHash = b.BlockID.Hash
		}
	}
	next, err := getBlock(ctx, rpc, h+1)
	if err != nil {
		return t, err
	}
	t.appHash = next.Block.Header.AppHash // the result of block h
	return t, nil
}

// compare asks a restored node for everything that the truth holds.
func (t truth) compare(ctx context.Context, rpc string) error {
	h, err := height(ctx, rpc)
	if err != nil {
		return err
	}
	if h != t.height {
		return fmt.Errorf("the restored node is at height %d, the backup was made at %d", h, t.height)
	}
	b, err := getBlock(ctx, rpc, t.height)
	if err != nil {
		return err
	}
	if b.BlockID.Hash != t.blockHash {
		return fmt.Errorf("block %d has hash %s on the restored node, %s on the chain", t.height, b.BlockID.Hash, t.blockHash)
	}
	var info struct {
		Response struct {
			Height  int64  `json:"last_block_height,string"`
			AppHash []byte `json:"last_block_app_hash"`
		} `json:"response"`
	}
	if err := call(ctx, rpc, "abci_info", nil, &info); err != nil {
		return err
	}
	if got := strings.ToUpper(hex.EncodeToString(info.Response.AppHash)); got != t.appHash || info.Response.Height != t.height {
		return fmt.Errorf("the restored app is at height %d with app hash %s, the chain said %d and %s", info.Response.Height, got, t.height, t.appHash)
	}
	for k, v := range t.keys {
		var q struct {
			Response struct {
				Value []byte `json:"value"`
			} `json:"response"`
		}
		if err := call(ctx, rpc, "abci_query", url.Values{"data": {"0x" + hex.EncodeToString([]byte(k))}}, &q); err != nil {
			return err
		}
		if string(q.Response.Value) != v {
			return fmt.Errorf("key %s reads %q on the restored node, %q was written", k, q.Response.Value, v)
		}
	}
	return nil
}
