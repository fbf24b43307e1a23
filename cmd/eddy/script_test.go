package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

func TestMain(m *testing.M) {
	// The scripts mostly wait for blocks: more of them at once than processors.
	// What the command line says comes later and wins.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){
		"eddy": func() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"loom": func() { os.Exit(loom(os.Args[1:])) },
	})
}

// chain is one validator, shared by all scripts, and observers that are handed
// out one to a script.
type chain struct {
	once  sync.Once
	dir   string
	id    string // of the chain
	err   error
	homes []node.Home
	next  int
	mu    sync.Mutex
	cmds  []*exec.Cmd
	birds map[string]*birds // by directory of the script
}

// observers bounds how many scripts may have a replica of their own.
const observers = 24

func (c *chain) validator() node.Home { return c.homes[0] }

func (c *chain) start() error {
	c.once.Do(func() {
		// An observer's ports are chosen now and used minutes later. On an address of
		// its own nobody else, other tests included, takes them until then.
		host := fmt.Sprintf("127.%d.%d.%d", rand.IntN(256), rand.IntN(256), 2+rand.IntN(250))
		c.homes, c.err = node.Testnet(c.dir, node.TestnetOptions{Validators: 1, Observers: observers, ChainID: cmp.Or(c.id, "script-1"), Commit: 500 * time.Millisecond, Host: host})
		if c.err != nil {
			return
		}
		var cmd *exec.Cmd
		if cmd, c.err = spawn(filepath.Join(c.dir, "validator.log"), "eddy", "node", "run", "--home", c.validator().Dir); c.err != nil {
			return
		}
		c.cmds = append(c.cmds, cmd)
		c.err = waitFor(c.validator().RPC, 2)
	})
	return c.err
}

func (c *chain) take() node.Home {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return c.homes[c.next]
}

func (c *chain) stop() {
	for _, cmd := range c.cmds {
		kill(cmd)
	}
}

// execControl makes the replica one that shell commands stop and start, and
// starts it.
func (c *chain) execControl(ts *testscript.TestScript, h node.Home) {
	dir := ts.MkAbs("ctl")
	err := writeControl(dir, h)
	b, rerr := os.ReadFile(ts.MkAbs("eddy.yaml"))
	yaml := strings.Replace(string(b), "control: {supervise: "+ts.Getenv("SOCKET")+",",
		fmt.Sprintf("control: {exec: {stop: [%[1]s/stop], start: [%[1]s/start], status: [%[1]s/status]},", dir), 1)
	err = errors.Join(err, rerr, os.WriteFile(ts.MkAbs("eddy.yaml"), []byte(yaml), 0o600), os.Mkdir(ts.MkAbs("state"), 0o700))
	if err == nil {
		err = exec.Command("sh", filepath.Join(dir, "start")).Run()
	}
	if err != nil {
		ts.Fatalf("%v", err)
	}
	ts.Defer(func() { exec.Command("sh", "-c", "kill -KILL $(cat "+dir+"/pid)").Run() }) // gone already is fine
}

// writeControl makes the commands start, stop and status of a node, in dir.
func writeControl(dir string, h node.Home) error {
	err := os.MkdirAll(dir, 0o700)
	for name, body := range map[string]string{
		"start": "GORACE=exitcode=0 eddy node run --home " + h.Dir + " >" + dir + "/log 2>&1 3>&- & echo $! >" + dir + "/pid",
		"stop":  "kill -TERM $(cat " + dir + "/pid); sleep 0.5", // a hold long enough to be hit
		// One look: a zombie that is reaped between two would seem to run again.
		"status": "case $(sed -n 's/^State:.\\(.\\).*/\\1/p' /proc/$(cat " + dir + "/pid)/status 2>/dev/null) in ''|Z|X) exit 3;; esac",
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700))
	}
	return err
}

// appOutside starts the replica's app under a supervise of its own, says so in
// eddy.yaml, and returns its address.
func (c *chain) appOutside(ts *testscript.TestScript) (address string) {
	sock, home := ts.MkAbs("app.sock"), ts.MkAbs("app")
	address = "unix://" + ts.MkAbs("abci.sock")
	b, err := os.ReadFile(ts.MkAbs("eddy.yaml"))
	yaml := strings.Replace(string(b), "store:", fmt.Sprintf("  app: {home: %s, control: {supervise: %s}}\nstore:", home, sock), 1)
	err = errors.Join(err, os.WriteFile(ts.MkAbs("eddy.yaml"), []byte(yaml), 0o600))
	cmd, serr := spawn(ts.MkAbs("app.log"), "eddy", "supervise", "--socket", sock, "--", "eddy", "node", "app", "--home", home, "--listen", address)
	if err = errors.Join(err, serr); err != nil {
		ts.Fatalf("%v", err)
	}
	ts.Defer(func() { kill(cmd) })
	return address
}

// spawn starts this test binary under the name of a program.
func spawn(log string, argv ...string) (*exec.Cmd, error) {
	exe, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// CometBFT has data races of its own; under the race detector a node would end
	// with its exit code for every one of them.
	env := append(os.Environ(), "GORACE=exitcode=0")
	cmd := &exec.Cmd{Path: exe, Args: argv, Env: env, Stdout: f, Stderr: f, SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
	return cmd, cmd.Start()
}

func kill(cmd *exec.Cmd) {
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // a group that is gone is what was wanted
	cmd.Wait()
}

func heightOf(rpc string) (int64, error) {
	h, _, err := statusOf(rpc)
	return h, err
}

func statusOf(rpc string) (height int64, catchingUp bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rpc+"/status", nil)
	if err != nil {
		return 0, false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	var s struct {
		Result struct {
			SyncInfo struct {
				Height     string `json:"latest_block_height"`
				CatchingUp bool   `json:"catching_up"`
			} `json:"sync_info"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return 0, false, err
	}
	height, err = strconv.ParseInt(s.Result.SyncInfo.Height, 10, 64)
	return height, s.Result.SyncInfo.CatchingUp, err
}

// caughtUp waits until a replica follows its chain block by block.
func caughtUp(rpc, chain string) error {
	var last error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		tip, err := heightOf(chain)
		if err != nil {
			return err
		}
		h, catching, err := statusOf(rpc)
		if err == nil && !catching && h >= tip-1 {
			return nil
		}
		last = fmt.Errorf("at height %d of %d, catching up: %v, error: %v", h, tip, catching, err)
	}
	return fmt.Errorf("%s does not catch up: %w", rpc, last)
}

// tail is the end of a log, for the message of a test that fails.
func tail(log string) string {
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-8192):])
}

func waitFor(rpc string, height int64) error {
	var last error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		h, err := heightOf(rpc)
		if err == nil && h >= height {
			return nil
		}
		last = fmt.Errorf("at height %d: %w", h, err)
	}
	return fmt.Errorf("%s does not reach height %d: %w", rpc, height, last)
}

func TestScripts(t *testing.T) { runScripts(t, filepath.Join("testdata", "script")) }

func runScripts(t *testing.T, dir string) {
	c := &chain{dir: t.TempDir()}
	t.Cleanup(c.stop)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("EDDY_CONFIG", filepath.Join(env.WorkDir, "eddy.yaml"))
			env.Setenv("TZ", "UTC")
			scripts, err := filepath.Abs(filepath.Join("..", "..", "scripts"))
			if err != nil {
				return err
			}
			env.Setenv("SCRIPTS", scripts)
			for _, name := range []string{"EDDY_LAB_S3_ENDPOINT", "EDDY_LAB_S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} {
				env.Setenv(name, os.Getenv(name))
			}
			return nil
		},
		Cmds: c.commands(),
	})
}

func (c *chain) commands() map[string]func(*testscript.TestScript, bool, []string) {
	check := func(ts *testscript.TestScript, err error) {
		if err != nil {
			ts.Fatalf("%v", err)
		}
	}
	return map[string]func(*testscript.TestScript, bool, []string){
		"keeper":      keeper,
		"canary":      c.canary,
		"leaks":       leaks,
		"start":       c.startReplica,
		"other-chain": c.startOther,
		"database":    database,
		"healthy":     healthy,
		// replica [stopped|exec|app]: a replica of the script's own, under
		// supervise, caught up; HOME_DIR, RPC, VALIDATOR_RPC and SOCKET name it, and
		// eddy.yaml is written for it.
		"replica": func(ts *testscript.TestScript, _ bool, args []string) {
			check(ts, c.start())
			h := c.take()
			sock := filepath.Join(ts.MkAbs("."), "node.sock")
			ts.Setenv("HOME_DIR", h.Dir)
			ts.Setenv("RPC", h.RPC)
			ts.Setenv("VALIDATOR_RPC", c.validator().RPC)
			ts.Setenv("VALIDATOR_HOME", c.validator().Dir)
			ts.Setenv("SOCKET", sock)
			yaml := fmt.Sprintf("cluster: script\nreplica:\n  kind: cometbft\n  home: %s\n  rpc: %s\n  witnesses: [%s]\n  control: {supervise: %s, timeout: 30s, deadline: 1m}\nstore: {url: \"file://%s\"}\nworkdir: %s\nschedule: \"@daily\"\n",
				h.Dir, h.RPC, c.validator().RPC, sock, ts.MkAbs("bucket"), ts.MkAbs("state"))
			check(ts, os.WriteFile(ts.MkAbs("eddy.yaml"), []byte(yaml), 0o600))
			if len(args) == 1 && args[0] == "stopped" {
				return
			}
			if len(args) == 1 && args[0] == "exec" {
				c.execControl(ts, h)
				check(ts, caughtUp(h.RPC, c.validator().RPC))
				return
			}
			node := []string{"eddy", "supervise", "--home", h.Dir, "--socket", sock, "--", "eddy", "node", "run", "--home", h.Dir}
			if len(args) == 1 && args[0] == "app" {
				node = append(node, "--proxy-app", c.appOutside(ts))
			}
			cmd, err := spawn(ts.MkAbs("node.log"), node...)
			check(ts, err)
			ts.Defer(func() { kill(cmd) })
			if err := caughtUp(h.RPC, c.validator().RPC); err != nil {
				ts.Fatalf("%v\nthe replica: %s\nthe validator: %s", err, tail(ts.MkAbs("node.log")), tail(filepath.Join(c.dir, "validator.log")))
			}
		},
		// forge HOME: makes a backup of a home that is damaged inside (see forge).
		"forge": func(ts *testscript.TestScript, _ bool, args []string) {
			if err := forge(context.Background(), ts.MkAbs(args[0]), "file://"+ts.MkAbs("bucket"), "script", ts.MkAbs("forgery")); err != nil {
				ts.Fatalf("forge: %v", err)
			}
		},
		// caught-up: the replica follows its chain block by block.
		"caught-up": func(ts *testscript.TestScript, _ bool, _ []string) {
			check(ts, caughtUp(ts.Getenv("RPC"), ts.Getenv("VALIDATOR_RPC")))
		},
		// running: the replica answers and makes blocks.
		"running": func(ts *testscript.TestScript, neg bool, _ []string) {
			h, err := heightOf(ts.Getenv("RPC"))
			if neg {
				if err == nil {
					ts.Fatalf("the replica runs")
				}
				return
			}
			check(ts, err)
			check(ts, waitFor(ts.Getenv("RPC"), h+1))
		},
		// killed-in-hold [guard]: a backup that is killed while the node is held; its
		// guard starts the node. With guard that is killed, too, and nobody does.
		"killed-in-hold": func(ts *testscript.TestScript, _ bool, args []string) {
			before, err := heightOf(ts.Getenv("RPC"))
			check(ts, err)
			alone := len(args) == 1 && args[0] == "guard"
			cmd := exec.Command("eddy", "backup")
			cmd.Env = append(os.Environ(), "EDDY_CONFIG="+ts.MkAbs("eddy.yaml"))
			check(ts, cmd.Start())
			hold := filepath.Join(ts.MkAbs("state"), "hold.json")
			for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(hold); err == nil {
					break
				}
				if time.Now().After(deadline) {
					ts.Fatalf("no hold was seen")
				}
			}
			for deadline := time.Now().Add(30 * time.Second); alone; time.Sleep(time.Millisecond) {
				if _, err := heightOf(ts.Getenv("RPC")); err != nil {
					check(ts, killGuards(cmd.Process.Pid))
					break
				}
				if time.Now().After(deadline) {
					ts.Fatalf("the node was not seen to stop")
				}
			}
			check(ts, cmd.Process.Kill())
			_ = cmd.Wait() // killed, as it should be
			if !alone {
				check(ts, waitFor(ts.Getenv("RPC"), before+1))
			}
		},
		// killed-in-swap WHERE: a restore in place that is killed as soon as its swap is
		// seen to be stopping or moving, or at its end to have the node restarted; or,
		// extracting, before there is one. While its journal is there the node stays down
		// once it has ended, and supervise starts none.
		"killed-in-swap": func(ts *testscript.TestScript, _ bool, args []string) {
			cmd := exec.Command("eddy", "restore", "latest", "--yes")
			cmd.Env = append(os.Environ(), "EDDY_CONFIG="+ts.MkAbs("eddy.yaml"))
			check(ts, cmd.Start())
			swap := filepath.Join(ts.Getenv("HOME_DIR"), ".eddy/swap.json")
			file, word := swap, args[0]
			if word == "restarting" {
				file, word = ts.MkAbs("state/restart.json"), "swap"
			}
			for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Microsecond) {
				if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), word) {
					break
				}
				if some, _ := filepath.Glob(filepath.Join(ts.Getenv("HOME_DIR"), ".eddy/restore-*/wasm/wasm/state/*")); word == "extracting" && len(some) > 5 {
					break
				}
				if time.Now().After(deadline) {
					ts.Fatalf("no swap was seen")
				}
			}
			check(ts, cmd.Process.Kill())
			_ = cmd.Wait() // killed, as it should be
			b, err := os.ReadFile(swap)
			if errors.Is(err, os.ErrNotExist) {
				ts.Logf("killed outside the swap")
				return
			}
			check(ts, err)
			var s struct{ Step string }
			check(ts, json.Unmarshal(b, &s))
			ts.Logf("killed as it was %s", s.Step)
			time.Sleep(time.Second)
			h, err := heightOf(ts.Getenv("RPC"))
			if s.Step != "stopping" && err == nil {
				ts.Fatalf("the node runs at height %d between two steps of a swap", h)
			}
		},
		// config OLD NEW: replace in eddy.yaml; a text that is not there fails.
		"config": func(ts *testscript.TestScript, _ bool, args []string) {
			b, err := os.ReadFile(ts.MkAbs("eddy.yaml"))
			check(ts, err)
			if !strings.Contains(string(b), args[0]) {
				ts.Fatalf("eddy.yaml does not hold %q", args[0])
			}
			check(ts, os.WriteFile(ts.MkAbs("eddy.yaml"), []byte(strings.Replace(string(b), args[0], args[1], 1)), 0o600))
		},
		// volume: VOL, ID and DIR name the newest backup's first volume.
		"volume": func(ts *testscript.TestScript, _ bool, _ []string) {
			m, err := filepath.Glob(ts.MkAbs("bucket/script/data/*/vol-0000.tar.zst"))
			check(ts, err)
			if len(m) == 0 {
				ts.Fatalf("no volume in the bucket")
			}
			vol := m[len(m)-1]
			ts.Setenv("VOL", vol)
			ts.Setenv("DIR", filepath.Dir(vol))
			ts.Setenv("ID", filepath.Base(filepath.Dir(vol)))
		},
		// flip FILE: one bit in the middle. cut FILE: the last 1000 bytes off.
		"flip": func(ts *testscript.TestScript, _ bool, args []string) {
			b, err := os.ReadFile(args[0])
			check(ts, err)
			b[len(b)/3] ^= 0x10
			check(ts, os.WriteFile(args[0], b, 0o600))
		},
		"cut": func(ts *testscript.TestScript, _ bool, args []string) {
			st, err := os.Stat(args[0])
			check(ts, err)
			check(ts, os.Truncate(args[0], st.Size()-1000))
		},
		// exits CODE PROG ARGS...: run to the end, the exit code must be CODE.
		"exits": func(ts *testscript.TestScript, _ bool, args []string) {
			err := ts.Exec(args[1], args[2:]...)
			got := 0
			if err != nil {
				got = -1
				if ee := new(exec.ExitError); asExit(err, &ee) {
					got = ee.ExitCode()
				}
			}
			if strconv.Itoa(got) != args[0] {
				ts.Fatalf("exit code %d, want %s", got, args[0])
			}
		},
		// tmpfs DIR SIZE: a small filesystem of its own, gone at the end. Needs root.
		"tmpfs": func(ts *testscript.TestScript, _ bool, args []string) {
			dir := ts.MkAbs(args[0])
			check(ts, os.MkdirAll(dir, 0o755))
			check(ts, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
			ts.Defer(func() {
				if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
					ts.Fatalf("unmount %s: %v", dir, err)
				}
			})
		},
	}
}

// killGuards kills the guard process of an eddy.
func killGuards(eddy int) error {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", eddy))
	for _, list := range lists {
		b, rerr := os.ReadFile(list)
		err = errors.Join(err, rerr)
		for _, child := range strings.Fields(string(b)) {
			argv, _ := os.ReadFile("/proc/" + child + "/cmdline") // one that has ended is no guard
			if pid, perr := strconv.Atoi(child); perr == nil && string(argv) == "eddy\x00guard\x00" {
				return errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
			}
		}
	}
	return errors.Join(errors.New("no guard was seen"), err)
}

func asExit(err error, into **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	if ok {
		*into = e
	}
	return ok
}
