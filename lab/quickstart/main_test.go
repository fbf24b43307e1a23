//go:build root

package quickstart

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
)

// This program stands for the nodes of the pages under the names that they have
// there: beside it lies eddy, whose `eddy node` is a real CometBFT node.
func TestMain(m *testing.M) {
	var stand func(args []string) error
	switch filepath.Base(os.Args[0]) {
	case "gaiad":
		stand = gaiad
	case "loom":
		stand = loom
	default:
		os.Exit(m.Run())
	}
	if err := stand(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// node is `eddy node` of a home, and eddy beside this program.
func node(home string) (eddy string, argv []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(filepath.Dir(self), "eddy"), []string{"eddy", "node", "run", "--home", home}, nil
}

// gaiad is `gaiad start --home HOME`.
func gaiad(args []string) error {
	if len(args) != 3 || args[0] != "start" || args[1] != "--home" {
		return fmt.Errorf("gaiad: unknown words %q", args)
	}
	eddy, argv, err := node(args[2])
	if err != nil {
		return err
	}
	return syscall.Exec(eddy, argv, os.Environ())
}

// loom is `loom run`, in the directory of the home: it has app.db open as long as
// the node runs.
func loom(args []string) (err error) {
	if !slices.Equal(args, []string{"run"}) {
		return fmt.Errorf("loom: unknown words %q", args)
	}
	// systemd tells all processes of a unit to end: this one waits for the node.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM)
	app, err := dbm.NewGoLevelDB("app", ".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, app.Close()) }()
	for i := range 100 {
		if err := app.Set(fmt.Appendf(nil, "account %d", i), []byte("balance")); err != nil {
			return err
		}
	}
	eddy, argv, err := node("chaindata")
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: eddy, Args: argv, Stdout: os.Stdout, Stderr: os.Stderr}
	return cmd.Run()
}
