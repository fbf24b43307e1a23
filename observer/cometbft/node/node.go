// Package node runs a CometBFT full node with the built-in key-value app as a
// process of its own: the validators and observers of tests, of the demo and of
// a first trial.
//
// It refuses to know anything of backups. Its invariant: a node that ran ends
// with every database closed, so that the next start finds no lock and no torn
// file.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	cfg "github.com/cometbft/cometbft/config"
	cmtlog "github.com/cometbft/cometbft/libs/log"
	cmtnode "github.com/cometbft/cometbft/node"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"
	"github.com/cometbft/cometbft/proxy"

	"github.com/eddy-backup/eddy/internal/hint"
)

// closeWithin bounds how long a stopped node waits for the last users of its
// databases.
const closeWithin = 10 * time.Second

// RunOptions of one node.
type RunOptions struct {
	Home  string
	Log   io.Writer // nil: nothing is logged
	Level string    // "error" (the default), "info", "debug"

	App string // the built-in app: KVStore (the default) or Ledger

	// ProxyApp is the address of an app that is a process of its own, tcp:// or
	// unix://; "": the built-in one. The node waits until it is there.
	ProxyApp  string
	Transport string // to ProxyApp: Socket or GRPC

	// StopWithin is how long the node may take to stop; 0: 30 s. One whose app is
	// gone takes for ever: consensus waits for the app's answer, or has failed, and
	// is waited for (consensus/reactor.go, OnStop; abci/client/grpc_client.go). Its
	// databases are closed all the same.
	StopWithin time.Duration
}

// Run runs the node of a home until ctx ends, stops it and closes its databases.
// It returns nil when the node ended well.
func Run(ctx context.Context, o RunOptions) (err error) {
	c, err := readConfig(o.Home)
	if err != nil {
		return err
	}
	if err := checkEngine(c.DBBackend); err != nil {
		return err
	}
	if o.StopWithin == 0 {
		o.StopWithin = 30 * time.Second
	}
	key, err := p2p.LoadNodeKey(c.NodeKeyFile())
	if err != nil {
		return hint.Add(fmt.Errorf("node key: %w", err), "make the home with `eddy node init`")
	}
	if _, err := os.Stat(c.PrivValidatorStateFile()); err != nil {
		// FilePV ends the process with a stack of its own words otherwise.
		return hint.Add(fmt.Errorf("sign state: %w", err), "a key without its sign state must not sign; `eddy node init` makes both for an observer")
	}
	dbs := new(databases)
	defer func() { err = errors.Join(err, dbs.close(closeWithin)) }()
	app, err := appOf(ctx, o, dbs, c)
	if err != nil {
		return err
	}
	n, err := cmtnode.NewNode(c,
		privval.LoadFilePV(c.PrivValidatorKeyFile(), c.PrivValidatorStateFile()), key,
		app,
		cmtnode.DefaultGenesisDocProviderFunc(c), dbs.provide,
		cmtnode.DefaultMetricsProvider(c.Instrumentation), newLogger(o.Log, o.Level))
	if err != nil {
		return fmt.Errorf("make the node: %w", err)
	}
	if err := n.Start(); err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	select {
	case <-ctx.Done():
	case <-n.Quit():
		return errors.New("the node stopped by itself")
	}
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stop() }() // it may never return; the process ends then
	select {
	case err := <-stopped:
		if err != nil {
			return fmt.Errorf("stop the node: %w", err)
		}
	case <-time.After(o.StopWithin):
		return fmt.Errorf("the node did not stop within %s: its app may be gone", o.StopWithin)
	}
	return nil
}

// appOf is the app of a node: the one at ProxyApp, or the built-in one, with its
// database among the node's.
func appOf(ctx context.Context, o RunOptions, dbs *databases, c *cfg.Config) (proxy.ClientCreator, error) {
	if o.ProxyApp != "" {
		return awaitApp(ctx, o.ProxyApp, o.Transport)
	}
	db, err := dbs.openDB("application", c.DBBackend, c.DBDir())
	if err != nil {
		return nil, err
	}
	app, err := newApp(o.App, db)
	if err != nil {
		return nil, err
	}
	return proxy.NewLocalClientCreator(app), nil
}

func newLogger(w io.Writer, level string) cmtlog.Logger {
	if w == nil {
		return cmtlog.NewNopLogger()
	}
	l := cmtlog.NewTMLogger(cmtlog.NewSyncWriter(w))
	switch level {
	case "debug":
		return cmtlog.NewFilter(l, cmtlog.AllowDebug())
	case "info":
		return cmtlog.NewFilter(l, cmtlog.AllowInfo())
	default:
		return cmtlog.NewFilter(l, cmtlog.AllowError())
	}
}

// checkEngine refuses an engine that was not compiled in, before NewDB does it
// with a panic or a list of backends.
func checkEngine(engine string) error {
	switch dbm.BackendType(engine) {
	case dbm.GoLevelDBBackend:
		return nil
	case dbm.PebbleDBBackend:
		if pebbleBuiltIn {
			return nil
		}
		return hint.Add(errors.New("pebbledb is not compiled in"), "build with -tags pebbledb, as `make build` does")
	default:
		return hint.Add(fmt.Errorf("engine %q is not supported by eddy node", engine), "use goleveldb or pebbledb")
	}
}

// Home is the home of a node.
type Home struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	RPC     string `json:"rpc"` // http://host:port
	P2P     string `json:"p2p"` // id@host:port
	ChainID string `json:"chain_id"`
}

// Open reads the addresses of an existing home.
func Open(dir string) (Home, error) {
	c, err := readConfig(dir)
	if err != nil {
		return Home{}, err
	}
	key, err := p2p.LoadNodeKey(c.NodeKeyFile())
	if err != nil {
		return Home{}, err
	}
	g, err := os.ReadFile(c.GenesisFile())
	if err != nil {
		return Home{}, err
	}
	var genesis struct {
		ChainID string `json:"chain_id"`
	}
	if err := json.Unmarshal(g, &genesis); err != nil {
		return Home{}, fmt.Errorf("%s: %w", c.GenesisFile(), err)
	}
	return Home{
		Name: c.Moniker, Dir: dir, RPC: httpOf(c.RPC.ListenAddress),
		P2P: string(key.ID()) + "@" + hostPort(c.P2P.ListenAddress), ChainID: genesis.ChainID,
	}, nil
}

// configPath is where CometBFT keeps config.toml.
func configPath(home string) string {
	return filepath.Join(home, cfg.DefaultConfigDir, cfg.DefaultConfigFileName)
}
