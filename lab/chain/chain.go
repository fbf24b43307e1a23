package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// chain is one validator and one observer under eddy supervise, as processes,
// with a trickle of transactions.
type chain struct {
	dir, socket                 string
	home, rpc                   string // the observer's
	validatorHome, validatorRPC string
	procs                       []*lab.Process

	stopLoad context.CancelFunc
	loadDone chan struct{}
}

const stopGrace = time.Minute

// newChain writes the homes; nothing runs yet. Blocks come a second apart: an
// observer with one peer gains too little on a faster chain to ever be caught up.
func newChain(ctx context.Context, eddy, dir, engine string) (*chain, error) {
	out, err := output(ctx, nil, eddy, "node", "testnet", dir, "--validators", "1", "--observers", "1", "--timeout-commit", "1s", "--engine", engine)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 {
		return nil, fmt.Errorf("eddy node testnet printed %q, want a line for each of two nodes", out)
	}
	v, o := strings.Fields(lines[0]), strings.Fields(lines[1])
	if len(v) < 2 || len(o) < 2 {
		return nil, fmt.Errorf("eddy node testnet printed %q, want home and URL", out)
	}
	return &chain{
		dir: dir, socket: filepath.Join(dir, "node.sock"),
		home: o[0], rpc: o[1], validatorHome: v[0], validatorRPC: v[1],
	}, nil
}

// start runs both nodes and returns when the observer follows.
func (c *chain) start(ctx context.Context, eddy string) error {
	if err := c.spawn("validator", eddy, "node", "run", "--home", c.validatorHome); err != nil {
		return err
	}
	if err := c.spawn("observer", eddy, "supervise", "--max-held-per-hour", "2h", "--socket", c.socket, "--", eddy, "node", "run", "--home", c.home); err != nil {
		return err
	}
	if err := c.wait(ctx, 3); err != nil {
		return err
	}
	ctx, c.stopLoad = context.WithCancel(ctx)
	c.loadDone = make(chan struct{})
	go c.load(ctx)
	return nil
}

func (c *chain) spawn(name string, argv ...string) error {
	p, err := lab.StartProcess(argv, os.Environ(), filepath.Join(c.dir, name+".log"))
	if err == nil {
		c.procs = append(c.procs, p)
	}
	return err
}

// load sends a few small transactions a second, so that there is always
// something new and the databases are being written.
func (c *chain) load(ctx context.Context) {
	defer close(c.loadDone)
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		b := make([]byte, 512)
		rand.Read(b) // never fails since Go 1.24
		tx := hex.EncodeToString(b[:8]) + "=" + hex.EncodeToString(b[8:])
		// A transaction that is lost is no harm: the next one comes.
		_ = get(ctx, c.validatorRPC+"/broadcast_tx_async?"+url.Values{"tx": {`"` + tx + `"`}}.Encode(), nil)
	}
}

// height asks the observer.
func (c *chain) height(ctx context.Context) (int64, error) {
	var s struct {
		Result struct {
			SyncInfo struct {
				Height int64 `json:"latest_block_height,string"`
			} `json:"sync_info"`
		} `json:"result"`
	}
	err := get(ctx, c.rpc+"/status", &s)
	return s.Result.SyncInfo.Height, err
}

// wait returns when the observer has grown by n blocks.
func (c *chain) wait(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	first := int64(-1)
	for {
		h, err := c.height(ctx)
		if err == nil && first < 0 {
			first = h
		}
		if err == nil && h >= first+n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the observer does not follow: height %d, from %d (%w, %w)", h, first, ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// stop ends all that start began; it may be called again.
func (c *chain) stop() error {
	if c.stopLoad != nil {
		c.stopLoad()
		<-c.loadDone
		c.stopLoad = nil
	}
	var err error
	for i := len(c.procs) - 1; i >= 0; i-- {
		err = errors.Join(err, c.procs[i].Stop(stopGrace))
	}
	return err
}

func get(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(body, into)
}
