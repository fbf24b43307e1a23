package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

func newNodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "a CometBFT node with the built-in key-value app, for tests and trials"}
	c.AddCommand(nodeInit(), nodeTestnet(), nodeRun(), nodeApp())
	return c
}

func nodeInit() *cobra.Command {
	var o node.Options
	var validator bool
	c := &cobra.Command{
		Use: "init --home DIR (--validator --chain-id ID | --observer --genesis FILE)", Short: "write a home with fresh keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Home, _ = cmd.Flags().GetString("home") // a flag of the root: it exists
			switch {
			case o.Home == "":
				return errorsJoinUsage(fmt.Errorf("--home is missing"))
			case validator == o.Observer:
				return errorsJoinUsage(fmt.Errorf("say either --validator or --observer"))
			case o.Observer && o.Genesis == "":
				return errorsJoinUsage(fmt.Errorf("an observer needs --genesis, the file of the chain that it follows"))
			}
			h, err := node.Init(o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", h.Dir, h.RPC, h.P2P)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.ChainID, "chain-id", "", "name of a new chain")
	f.StringVar(&o.Engine, "engine", "goleveldb", "goleveldb or pebbledb")
	f.BoolVar(&validator, "validator", false, "the only validator of a new chain")
	f.BoolVar(&o.Observer, "observer", false, "a node that follows and that no other node lists")
	f.StringSliceVar(&o.Peers, "peers", nil, "id@host:port of the nodes to follow")
	f.StringVar(&o.Genesis, "genesis", "", "genesis file of the chain to join")
	f.IntVar(&o.P2PPort, "p2p-port", 0, "port for peers (default: a free one)")
	f.IntVar(&o.RPCPort, "rpc-port", 0, "port for RPC (default: a free one)")
	f.DurationVar(&o.Commit, "timeout-commit", 300*time.Millisecond, "pause between blocks")
	f.BoolVar(&o.Load, "load", false, "settings for heavy load")
	return c
}

func nodeTestnet() *cobra.Command {
	var o node.TestnetOptions
	c := &cobra.Command{
		Use: "testnet DIR", Short: "write the homes of a whole chain on loopback", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			homes, err := node.Testnet(args[0], o)
			if err != nil {
				return err
			}
			for _, h := range homes {
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", h.Dir, h.RPC, h.P2P)
			}
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&o.Validators, "validators", 4, "how many validators")
	f.IntVar(&o.Observers, "observers", 1, "how many observers")
	f.StringVar(&o.ChainID, "chain-id", "test-1", "name of the chain")
	f.StringVar(&o.Engine, "engine", "goleveldb", "goleveldb or pebbledb")
	f.DurationVar(&o.Commit, "timeout-commit", 300*time.Millisecond, "pause between blocks")
	f.BoolVar(&o.Load, "load", false, "settings for heavy load")
	return c
}

func nodeRun() *cobra.Command {
	var o node.RunOptions
	c := &cobra.Command{
		Use: "run --home DIR [--proxy-app ADDRESS]", Short: "run the node until SIGTERM", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Home, _ = cmd.Flags().GetString("home") // a flag of the root: it exists
			if o.Home == "" {
				return errorsJoinUsage(fmt.Errorf("--home is missing"))
			}
			o.Log = os.Stderr
			return node.Run(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Level, "log-level", "error", "error, info or debug")
	f.StringVar(&o.App, "app", node.KVStore, "the built-in app: kvstore, or ledger, whose app hash covers every value")
	f.StringVar(&o.ProxyApp, "proxy-app", "", "tcp://host:port or unix:///path of an app outside (default: the built-in one)")
	f.StringVar(&o.Transport, "abci", node.Socket, "how the app outside is spoken to: socket or grpc")
	return c
}

func nodeApp() *cobra.Command {
	var o node.AppOptions
	c := &cobra.Command{
		Use: "app --home DIR --listen ADDRESS", Short: "serve the key-value app to a node that runs outside", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Home, _ = cmd.Flags().GetString("home") // a flag of the root: it exists
			if o.Home == "" || o.Listen == "" {
				return errorsJoinUsage(fmt.Errorf("--home and --listen are both needed"))
			}
			o.Log = os.Stderr
			return node.RunApp(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Listen, "listen", "", "tcp://host:port or unix:///path")
	f.StringVar(&o.Transport, "abci", node.Socket, "socket or grpc")
	f.StringVar(&o.Engine, "engine", "goleveldb", "goleveldb or pebbledb")
	f.StringVar(&o.Level, "log-level", "error", "error, info or debug")
	return c
}
