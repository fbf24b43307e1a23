// Package chain runs a real chain as processes: a validator or more, and an
// observer under eddy supervise, with transactions flowing. It knows eddy by its
// command line only.
package chain

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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// Options of a chain.
type Options struct {
	Eddy   string        // the executable
	Dir    string        // absent or empty; gets homes, socket and logs
	Engine string        // goleveldb or pebbledb
	Every  time.Duration // between two transactions of half a kilobyte; 0: 200 ms

	Validators int // 0: one
	Others     int // observers beside the supervised one, which the caller runs
}

// Node is a home and the URL of its RPC.
type Node struct{ Home, RPC string }

// Chain is made by New and run by Start.
type Chain struct {
	Home, RPC    string // the observer's
	Socket       string // of its supervise
	ValidatorRPC string // the first one's
	Validators   []Node
	Others       []Node

	o     Options
	procs []*lab.Process

	stopLoad context.CancelFunc
	loadDone chan struct{}
}

const stopGrace = time.Minute

// New writes the homes; nothing runs yet. Blocks come a second apart: an
// observer with one peer gains too little on a faster chain to ever be caught up.
func New(ctx context.Context, o Options) (*Chain, error) {
	if o.Every == 0 {
		o.Every = 200 * time.Millisecond
	}
	o.Validators = max(o.Validators, 1)
	cmd := exec.CommandContext(ctx, o.Eddy, "node", "testnet", o.Dir, "--validators", strconv.Itoa(o.Validators),
		"--observers", strconv.Itoa(1+o.Others), "--timeout-commit", "1s", "--engine", o.Engine)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("eddy node testnet: %w\n%s", err, stderr.String())
	}
	var nodes []Node
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			return nil, fmt.Errorf("eddy node testnet printed %q, want home and URL", line)
		}
		nodes = append(nodes, Node{Home: f[0], RPC: f[1]})
	}
	if len(nodes) != o.Validators+1+o.Others {
		return nil, fmt.Errorf("eddy node testnet printed %q, want a line for each of %d nodes", out, o.Validators+1+o.Others)
	}
	observer := nodes[o.Validators]
	return &Chain{
		o: o, Socket: filepath.Join(o.Dir, "node.sock"), Home: observer.Home, RPC: observer.RPC,
		ValidatorRPC: nodes[0].RPC, Validators: nodes[:o.Validators], Others: nodes[o.Validators+1:],
	}, nil
}

// Start runs the validators and the supervised observer and returns when that one
// follows.
func (c *Chain) Start(ctx context.Context) error {
	for i, v := range c.Validators {
		if err := c.spawn(fmt.Sprintf("validator%d", i), c.o.Eddy, "node", "run", "--home", v.Home); err != nil {
			return err
		}
	}
	if err := c.spawn("observer", c.o.Eddy, "supervise", "--home", c.Home, "--max-held-per-hour", "2h", "--socket", c.Socket, "--", c.o.Eddy, "node", "run", "--home", c.Home); err != nil {
		return err
	}
	if err := c.Wait(ctx, 3); err != nil {
		return err
	}
	ctx, c.stopLoad = context.WithCancel(ctx)
	c.loadDone = make(chan struct{})
	go c.load(ctx)
	return nil
}

func (c *Chain) spawn(name string, argv ...string) error {
	p, err := lab.StartProcess(argv, os.Environ(), filepath.Join(c.o.Dir, name+".log"))
	if err == nil {
		c.procs = append(c.procs, p)
	}
	return err
}

// load sends a few small transactions a second, so that there is always
// something new and the databases are being written.
func (c *Chain) load(ctx context.Context) {
	defer close(c.loadDone)
	t := time.NewTicker(c.o.Every)
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
		_ = get(ctx, c.ValidatorRPC+"/broadcast_tx_async?"+url.Values{"tx": {`"` + tx + `"`}}.Encode(), nil)
	}
}

// Height asks the observer.
func (c *Chain) Height(ctx context.Context) (int64, error) {
	var s struct {
		Result struct {
			SyncInfo struct {
				Height int64 `json:"latest_block_height,string"`
			} `json:"sync_info"`
		} `json:"result"`
	}
	err := get(ctx, c.RPC+"/status", &s)
	return s.Result.SyncInfo.Height, err
}

// Wait returns when the observer has grown by n blocks.
func (c *Chain) Wait(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	first := int64(-1)
	for {
		h, err := c.Height(ctx)
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

// Stop ends all that Start began; it may be called again.
func (c *Chain) Stop() error {
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
