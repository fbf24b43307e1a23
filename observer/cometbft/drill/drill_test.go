package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// TestMain runs a node instead of the tests where a home is named: `PROGRAM --home
// DIR` is how the drilled nodes are started, as a chain's own program would be.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 || os.Args[1] != "--home" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := node.Run(ctx, node.RunOptions{Home: os.Args[2], App: node.Ledger, Log: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run starts a node and returns what stops it.
func run(t *testing.T, home string) (stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "--home", home)
	cmd.Env = append(os.Environ(), "GORACE=exitcode=0") // CometBFT has races of its own
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("a node ended badly: %v\n%s", err, out.String())
		}
	}
	t.Cleanup(stop)
	return stop
}

func get(rpc, path string, into any) error {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Get(rpc + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && into != nil {
		err = json.Unmarshal(b, into)
	}
	return err
}

func waitHeight(t *testing.T, rpc string, want int) int {
	t.Helper()
	var s struct {
		Result struct {
			SyncInfo struct {
				Height int `json:"latest_block_height,string"`
			} `json:"sync_info"`
		}
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		if err := get(rpc, "/status", &s); err == nil && s.Result.SyncInfo.Height >= want {
			return s.Result.SyncInfo.Height
		}
	}
	t.Fatalf("%s does not reach height %d (at %d)", rpc, want, s.Result.SyncInfo.Height)
	return 0
}

// chain is a validator under load, and an observer that was stopped.
type chain struct {
	validator, observer node.Home
	position            observer.Position
}

func newChain(t *testing.T) chain {
	t.Helper()
	homes, err := node.Testnet(t.TempDir(), node.TestnetOptions{Validators: 1, Observers: 1, ChainID: "drill-1", Commit: 150 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c := chain{validator: homes[0], observer: homes[1]}
	run(t, c.validator.Dir)
	stop := run(t, c.observer.Dir)
	waitHeight(t, c.validator.RPC, 1)
	ctx, cancel := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for n := 0; ctx.Err() == nil; n++ {
			q := url.Values{"tx": {strconv.Quote(fmt.Sprintf("key-%d=value-%d", n%200, n))}}
			_ = get(c.validator.RPC, "/broadcast_tx_async?"+q.Encode(), nil) // one that is lost is no harm
			time.Sleep(10 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-loaded })
	waitHeight(t, c.observer.RPC, 6)
	stop()
	db, err := dbm.NewGoLevelDB("application", filepath.Join(c.observer.Dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b, err := db.Get([]byte("head"))
	if err != nil {
		t.Fatal(err)
	}
	var head struct {
		Height uint64 `json:"height"`
		Hash   []byte `json:"hash"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		t.Fatal(err)
	}
	c.position = observer.Position{Kind: "cometbft", Index: head.Height, Hash: head.Hash, HashKind: "app_hash"}
	return c
}

// restored is a task on a copy of the observer's data, as a restore makes it.
func (c chain) restored(t *testing.T) observer.DrillTask {
	t.Helper()
	task := observer.DrillTask{Scratch: t.TempDir(), Position: c.position, Say: func(phase, text string) { t.Log(phase+":", text) }}
	home := filepath.Join(task.Scratch, observer.DrillHome)
	if err := os.CopyFS(filepath.Join(home, "data"), os.DirFS(filepath.Join(c.observer.Dir, "data"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(home, "data", "priv_validator_state.json")); err != nil {
		t.Fatal(err)
	}
	return task
}

func (c chain) driller(blocks int) *Driller {
	return &Driller{
		From: c.observer.Dir, RPC: c.observer.RPC, Witnesses: []string{c.validator.RPC},
		Command: []string{os.Args[0], "--home", homeWord}, Blocks: blocks, Timeout: time.Minute,
	}
}

// nothingLeft: no process of the drill runs, and its port is free.
func nothingLeft(t *testing.T, task observer.DrillTask) {
	t.Helper()
	left, err := withEnvironment([]byte(envHome + "=" + filepath.Join(task.Scratch, observer.DrillHome) + "\x00"))
	if err != nil || len(left) > 0 {
		t.Errorf("processes are left: %v, %v", left, err)
	}
}

// An app whose state was changed silently has the right hash at its head; only the
// drill sees it, and it passes the honest copy.
func TestDrill(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	for _, isolated := range []bool{false, true} {
		name := map[bool]string{false: "peers", true: "isolated"}[isolated]
		t.Run(name+"/honest", func(t *testing.T) {
			t.Parallel()
			d := c.driller(4)
			d.Isolated, d.Peers = isolated, []string{c.validator.P2P}
			task := c.restored(t)
			web := passOn(t, c.validator.RPC)
			d.Witnesses = []string{web.URL}
			if err := d.Prepare(t.Context(), task); err != nil {
				t.Fatal(err)
			}
			if isolated { // what it has fetched is enough, whoever prunes or goes away
				web.Close()
			}
			rep, err := d.Drill(t.Context(), task)
			if err != nil || rep.Outcome != observer.DrillPassed || len(rep.Executed) != 4 {
				t.Fatalf("%v\n%+v", err, rep)
			}
			for i, b := range rep.Executed {
				if b.Height != c.position.Index+uint64(i)+1 || b.By != "results" {
					t.Errorf("%+v", b)
				}
			}
			nothingLeft(t, task)
		})
		t.Run(name+"/changed", func(t *testing.T) {
			t.Parallel()
			d := c.driller(4)
			d.Isolated, d.Peers = isolated, []string{c.validator.P2P}
			task := c.restored(t)
			change(t, filepath.Join(task.Scratch, observer.DrillHome, "data"))
			if err := d.Prepare(t.Context(), task); err != nil {
				t.Fatal(err)
			}
			rep, err := d.Drill(t.Context(), task)
			if err != nil || rep.Outcome != observer.DrillFailed || len(rep.Executed) > 0 {
				t.Fatalf("%v\n%+v", err, rep)
			}
			if m := rep.Mismatch; m == nil || m.What != "app hash" || m.Height != c.position.Index+1 || m.Want == m.Got || len(m.Want) != 64 {
				t.Errorf("%+v", rep)
			}
			nothingLeft(t, task)
		})
	}
}

// passOn is a witness that can go away.
func passOn(t *testing.T, rpc string) *httptest.Server {
	t.Helper()
	u, err := url.Parse(rpc)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(httputil.NewSingleHostReverseProxy(u))
	t.Cleanup(web.Close)
	return web
}

// A chain that makes no blocks is not waited for until the time is over.
func TestChainAtRest(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	var s struct{ Result json.RawMessage }
	if err := get(c.validator.RPC, "/status", &s); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var call struct {
			ID     json.RawMessage
			Method string
		}
		if err := json.NewDecoder(r.Body).Decode(&call); err != nil || call.Method != "status" {
			http.Error(w, "no", http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, call.ID, s.Result)
	}))
	t.Cleanup(web.Close)
	for _, isolated := range []bool{true, false} {
		t.Run(fmt.Sprintf("isolated=%t", isolated), func(t *testing.T) {
			t.Parallel()
			d := c.driller(900)
			d.Isolated, d.RPC, d.Peers, d.Witnesses, d.Timeout = isolated, "", []string{c.validator.P2P}, []string{web.URL}, 15*time.Second
			task := c.restored(t)
			begun := time.Now()
			err := d.Prepare(t.Context(), task)
			if err == nil {
				var rep observer.DrillReport
				rep, err = d.Drill(t.Context(), task)
				if err == nil && rep.Outcome == observer.DrillNotPossible {
					err = fmt.Errorf("%w: %s", observer.ErrNotPossible, rep.Why)
				}
			}
			if !errors.Is(err, observer.ErrNotPossible) || !strings.Contains(err.Error(), "not enough blocks: the chain has been at") || time.Since(begun) > d.Timeout*2/3 {
				t.Errorf("after %s: %v", time.Since(begun), err)
			}
			nothingLeft(t, task)
		})
	}
}

// change changes the first value of the ledger, and nothing else.
func change(t *testing.T, data string) {
	t.Helper()
	db, err := dbm.NewGoLevelDB("application", data)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	it, err := db.Iterator([]byte("kv/"), []byte("kv0"))
	if err != nil || !it.Valid() {
		t.Fatal("the ledger is empty", err)
	}
	key := append([]byte{}, it.Key()...)
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.SetSync(key, []byte("another")); err != nil {
		t.Fatal(err)
	}
}
