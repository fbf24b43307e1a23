package check

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/store"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// TestMain runs a node instead of the tests where a home is named: it is a process
// of its own, as it is for users.
func TestMain(m *testing.M) {
	if role := os.Getenv("EDDY_TEST_CHILD"); role != "" {
		os.Exit(playChild(role))
	}
	home := os.Getenv("EDDY_TEST_HOME")
	if home == "" {
		code := m.Run()
		chains.remove()
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := node.Run(ctx, node.RunOptions{Home: home, Log: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// chain is what a real node has left when it was stopped: early, and again later.
type chain struct {
	id          string
	early, late string // homes; nobody may change them
	height      int64  // of early
}

// chains are made once, when the first test asks for them.
var chains farm

type farm struct {
	mu  sync.Mutex
	dir string
	all map[string]chain
}

func (f *farm) remove() {
	if f.dir != "" {
		_ = os.RemoveAll(f.dir)
	}
}

func (f *farm) get(t testing.TB, id string, backend dbm.BackendType) chain {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	key := id + "-" + string(backend)
	if c, ok := f.all[key]; ok {
		return c
	}
	if f.dir == "" {
		dir, err := os.MkdirTemp("/dev/shm", "eddy-test-") // fsync would be most of what is tested
		must(t, err)
		f.dir, f.all = dir, map[string]chain{}
	}
	dir := filepath.Join(f.dir, key)
	homes, err := node.Testnet(dir, node.TestnetOptions{Validators: 1, ChainID: id, Engine: string(backend), Commit: 10 * time.Millisecond})
	must(t, err)
	c := chain{id: id, early: filepath.Join(f.dir, key+"-early"), late: filepath.Join(f.dir, key+"-late")}
	// An engine that is opened again turns its log into tables.
	play(t, homes[0], 8)
	must(t, os.CopyFS(c.early, os.DirFS(homes[0].Dir)))
	early, err := Run(t.Context(), c.early, Options{}) // on a busy machine it was stopped well above 8
	must(t, err)
	c.height = early.Height
	play(t, homes[0], int(c.height)+22)
	// A log may have become a table right before the stop; the damages need some.
	late := int(c.height) + 26
	for until := late; until == late || !logged(t, homes[0].Dir); until++ {
		play(t, homes[0], until)
	}
	must(t, os.CopyFS(c.late, os.DirFS(homes[0].Dir)))
	f.all[key] = c
	return c
}

// logged tells whether the newest logs of a node's own databases hold something. A
// database opens with an older one beside it that it needs no more.
func logged(t testing.TB, home string) bool {
	t.Helper()
	for _, db := range []string{"blockstore.db", "state.db", "application.db"} {
		all, err := filepath.Glob(filepath.Join(home, "data", db, "*.log"))
		must(t, err)
		if len(all) == 0 || written(t, slices.Max(all)) < 64 {
			return false
		}
	}
	return true
}

// written is how many bytes of a log were written: an engine may make it larger.
func written(t testing.TB, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return len(bytes.TrimRight(b, "\x00"))
}

// play runs a node until it is at a height, with a transaction of its own in many
// blocks, some of them larger than one part, and stops it.
func play(t testing.TB, h node.Home, until int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "EDDY_TEST_HOME="+h.Dir, "GORACE=exitcode=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	defer func() {
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the node ended badly: %v\n%s", err, out.String())
		}
	}()
	var s struct {
		Result struct {
			SyncInfo struct {
				Height int `json:"latest_block_height,string"`
			} `json:"sync_info"`
		}
	}
	deadline := time.Now().Add(40 * time.Second)
	for i := 0; time.Now().Before(deadline); i++ {
		if call(h.RPC, "status", "{}", &s) == nil && s.Result.SyncInfo.Height >= until {
			return
		}
		size := 200
		if i%5 == 0 {
			size = 70 << 10
		}
		tx := fmt.Sprintf("key-%d-%d=%s", until, i, strings.Repeat("v", size))
		var ignored any
		_ = call(h.RPC, "broadcast_tx_sync", `{"tx":"`+base64.StdEncoding.EncodeToString([]byte(tx))+`"}`, &ignored)
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the chain is at height %d, not at %d: %s", s.Result.SyncInfo.Height, until, out.String())
}

func call(rpc, method, params string, into any) error {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Post(rpc, "application/json", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":`+params+`}`))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// backends are the engines that this build has.
func backends() map[dbm.BackendType]engine.Engine {
	out := map[dbm.BackendType]engine.Engine{dbm.GoLevelDBBackend: engine.GoLevelDB}
	if engine.CanOpen(engine.Pebble) {
		out[dbm.PebbleDBBackend] = engine.Pebble
	}
	return out
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// dump is a copy of a home that a test may harm.
type dump struct {
	testing.TB
	chain
	home    string
	backend dbm.BackendType
}

func (c chain) dump(t testing.TB, backend dbm.BackendType) *dump {
	t.Helper()
	home, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(home)) })
	must(t, os.CopyFS(home, os.DirFS(c.late)))
	return &dump{t, c, home, backend}
}

func (d *dump) path(name string) string { return filepath.Join(d.home, "data", name) }

// replace takes a part of the home from another one.
func (d *dump) replace(name, from string) {
	d.Helper()
	must(d, os.RemoveAll(d.path(name)), os.CopyFS(d.path(name), os.DirFS(filepath.Join(from, "data", name))))
}

// edit opens one of the databases as the node would.
func (d *dump) edit(name string, f func(db dbm.DB)) {
	d.Helper()
	db, err := dbm.NewDB(name, d.backend, filepath.Join(d.home, "data"))
	must(d, err)
	f(db)
	must(d, db.Close())
}

// set changes the value of a key; nil deletes it.
func (d *dump) set(name, key string, change func(old []byte) []byte) {
	d.Helper()
	d.edit(name, func(db dbm.DB) {
		old, err := db.Get([]byte(key))
		must(d, err)
		if old == nil {
			d.Fatalf("%s has no %s", name, key)
		}
		if value := change(bytes.Clone(old)); value == nil {
			must(d, db.DeleteSync([]byte(key)))
		} else {
			must(d, db.SetSync([]byte(key), value))
		}
	})
}

// file returns the last file of a database by its pattern.
func (d *dump) file(name string, patterns ...string) string {
	d.Helper()
	return slices.Max(d.files(name, patterns))
}

// newest is the file with the highest number, of those with as many digits.
func (d *dump) newest(name string, patterns ...string) string {
	d.Helper()
	return slices.Max(d.files(name, patterns))
}

func (d *dump) files(name string, patterns []string) (out []string) {
	d.Helper()
	for _, p := range patterns {
		all, err := filepath.Glob(filepath.Join(d.path(name), p))
		must(d, err)
		out = append(out, all...)
	}
	if len(out) == 0 {
		d.Fatalf("%s has no %v", name, patterns)
	}
	return out
}

// rewrite changes a file's bytes.
func (d *dump) rewrite(file string, change func([]byte) []byte) {
	d.Helper()
	b, err := os.ReadFile(file)
	must(d, err, os.WriteFile(file, change(b), 0o600))
}

// kvState is the state of CometBFT's key-value application.
type kvState struct {
	Size   int64 `json:"size"`
	Height int64 `json:"height"`
}

func (d *dump) kvstore(change func(*kvState)) {
	d.Helper()
	d.set("application", "stateKey", func(b []byte) []byte {
		var s kvState
		must(d, json.Unmarshal(b, &s))
		change(&s)
		b, err := json.Marshal(s)
		must(d, err)
		return b
	})
}

// sizeOf is the number of transactions that is in that application's hash.
func sizeOf(hash []byte) int64 {
	n, _ := binary.Varint(hash)
	return n
}

func cmtBlocks(db dbm.DB) *store.BlockStore { return store.NewBlockStore(db) }
