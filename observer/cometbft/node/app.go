package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cometbft/cometbft/abci/example/kvstore"
	"github.com/cometbft/cometbft/abci/server"
	"github.com/cometbft/cometbft/proxy"

	"github.com/eddy-backup/eddy/internal/hint"
)

// The ways in which a node talks to an app that is a process of its own
// (CometBFT's config key `abci`).
const (
	Socket = "socket"
	GRPC   = "grpc"
)

// AppOptions of the key-value app as a process of its own.
type AppOptions struct {
	Home      string // its database is below data/; made where it is absent
	Engine    string // "goleveldb" or "pebbledb"
	Listen    string // tcp://host:port or unix:///path
	Transport string // Socket or GRPC

	Log   io.Writer // nil: nothing is logged
	Level string    // "error" (the default), "info", "debug"
}

// RunApp serves the key-value app until ctx ends, and closes its database. It
// returns nil when it ended well.
func RunApp(ctx context.Context, o AppOptions) (err error) {
	if err := checkEngine(o.Engine); err != nil {
		return err
	}
	if _, _, err := appAddress(o.Listen, o.Transport); err != nil {
		return err
	}
	dir := filepath.Join(o.Home, "data")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	dbs := new(databases)
	defer func() { err = errors.Join(err, dbs.close(closeWithin)) }()
	db, err := dbs.openDB("application", o.Engine, dir)
	if err != nil {
		return err
	}
	s, err := server.NewServer(o.Listen, o.Transport, kvstore.NewApplication(db))
	if err != nil {
		return fmt.Errorf("make the app's server: %w", err)
	}
	s.SetLogger(newLogger(o.Log, o.Level))
	if err := s.Start(); err != nil {
		return fmt.Errorf("serve the app on %s: %w", o.Listen, err)
	}
	select {
	case <-ctx.Done():
	case <-s.Quit():
		return errors.New("the app's server stopped by itself")
	}
	if err := s.Stop(); err != nil {
		return fmt.Errorf("stop the app's server: %w", err)
	}
	return nil
}

// appAddress is what net.Dial takes for the address of an app.
func appAddress(address, transport string) (network, addr string, err error) {
	if transport != Socket && transport != GRPC {
		return "", "", hint.Add(fmt.Errorf("an app is spoken to by socket or grpc, not %q", transport), "say --abci socket or --abci grpc")
	}
	network, addr, ok := strings.Cut(address, "://")
	if !ok || addr == "" || network != "tcp" && network != "unix" {
		return "", "", hint.Add(fmt.Errorf("%q is no address of an app", address), "write tcp://127.0.0.1:26658 or unix:///run/app.sock")
	}
	return network, addr, nil
}

// dialEvery is how often an app that is not there yet is tried.
const dialEvery = 100 * time.Millisecond

// awaitApp waits until the app listens. CometBFT's own clients wait, too, but
// hear of no signal meanwhile (abci/client/socket_client.go, OnStart).
func awaitApp(ctx context.Context, address, transport string) (proxy.ClientCreator, error) {
	network, addr, err := appAddress(address, transport)
	if err != nil {
		return nil, err
	}
	for {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			if transport == GRPC {
				// grpc.NewClient asks DNS about a scheme that it does not know, and tcp
				// is none of its own (abci/client/grpc_client.go, OnStart).
				address = "passthrough:///" + address
			}
			const mustConnect = true
			return proxy.NewRemoteClientCreator(address, transport, mustConnect), conn.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the app: %w", err)
		case <-time.After(dialEvery):
		}
	}
}
