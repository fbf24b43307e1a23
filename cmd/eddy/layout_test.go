package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/eddy-backup/eddy/internal/check"
)

// loom stands for the program of a Loom chain: a real node whose home is the
// chaindata of the directory in which it is started.
func loom(args []string) int {
	if !slices.Equal(args, []string{"run"}) {
		return exitUsage
	}
	return run([]string{"node", "run", "--home", "chaindata"}, os.Stdin, os.Stdout, os.Stderr)
}

// start [DIR PROG ARGS...]: starts what `replica stopped` has prepared, and the
// script has changed since, under supervise, and waits until it has caught up: the
// node of HOME_DIR, or a program in a directory.
func (c *chain) startReplica(ts *testscript.TestScript, _ bool, args []string) {
	home := ts.Getenv("HOME_DIR")
	dir, prog := ts.MkAbs("."), []string{"eddy", "node", "run", "--home", home}
	if len(args) > 1 {
		dir, prog = ts.MkAbs(args[0]), args[1:]
		home = dir
	}
	argv := []string{"env", "--chdir=" + dir, "eddy", "supervise", "--home", home, "--socket", ts.Getenv("SOCKET"), "--"}
	cmd, err := spawn(ts.MkAbs("node.log"), append(argv, prog...)...)
	if err == nil {
		ts.Defer(func() { kill(cmd) })
		err = caughtUp(ts.Getenv("RPC"), c.validator().RPC)
	}
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

// other-chain: another chain on this machine, with a replica under supervise that
// OTHER_HOME, OTHER_RPC and OTHER_SOCKET name.
func (c *chain) startOther(ts *testscript.TestScript, _ bool, _ []string) {
	o := &chain{dir: ts.MkAbs("other-chain"), id: "other-1"}
	ts.Defer(o.stop)
	err := o.start()
	if err == nil {
		h, sock := o.take(), ts.MkAbs("other.sock")
		ts.Setenv("OTHER_HOME", h.Dir)
		ts.Setenv("OTHER_RPC", h.RPC)
		ts.Setenv("OTHER_SOCKET", sock)
		cmd, serr := spawn(ts.MkAbs("other.log"), "eddy", "supervise", "--home", h.Dir, "--socket", sock, "--", "eddy", "node", "run", "--home", h.Dir)
		if serr == nil {
			o.cmds = append(o.cmds, cmd)
			serr = caughtUp(h.RPC, o.validator().RPC)
		}
		err = serr
	}
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

// database DIR...: goleveldbs with something in them, as a program beside the node
// may have.
func database(ts *testscript.TestScript, _ bool, args []string) {
	for _, dir := range args {
		db, err := leveldb.OpenFile(ts.MkAbs(dir), nil)
		if err == nil {
			for i := range 100 {
				err = errors.Join(err, db.Put(fmt.Appendf(nil, "key %d", i), []byte("value"), nil))
			}
			err = errors.Join(err, db.Close())
		}
		if err != nil {
			ts.Fatalf("%s: %v", dir, err)
		}
	}
}

// healthy FILE [NAME...]: doctor finds nothing that would fail with a
// configuration, and warns of what is named, once each, in order, and of nothing
// else. A node that is a few blocks behind is asked again: no script is about that.
func healthy(ts *testscript.TestScript, _ bool, args []string) {
	var warned []string
	for range 20 {
		err := ts.Exec("eddy", "--json", "doctor", "-c", args[0])
		all, perr := findings(ts.ReadFile("stdout"))
		if perr != nil || len(all) == 0 {
			ts.Fatalf("doctor: %v: %v", err, perr)
		}
		warned = nil
		for _, f := range all {
			switch f.Level {
			case check.Fail:
				ts.Fatalf("%+v", f)
			case check.Warn:
				warned = append(warned, f.Name)
			}
		}
		if !slices.Contains(warned, "caught up") {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	if !slices.Equal(warned, args[1:]) {
		ts.Fatalf("doctor warns of %q, want %q", warned, args[1:])
	}
}

// findings reads what `eddy --json doctor` prints.
func findings(out string) (all []check.Finding, err error) {
	for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
		var f struct {
			Type string `json:"message_type"`
			check.Finding
		}
		if err := json.Unmarshal(sc.Bytes(), &f); err != nil {
			return nil, err
		}
		if f.Type == "check" {
			all = append(all, f.Finding)
		}
	}
	return all, nil
}
