package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain runs a node or an app instead of the tests where one is named: they
// are processes of their own, as they are for users.
func TestMain(m *testing.M) {
	play := os.Getenv("EDDY_TEST_PLAY")
	if play == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	home, address, transport := os.Getenv("EDDY_TEST_HOME"), os.Getenv("EDDY_TEST_APP"), os.Getenv("EDDY_TEST_ABCI")
	var err error
	if play == "app" {
		err = RunApp(ctx, AppOptions{Home: home, Engine: "goleveldb", Listen: address, Transport: transport, Log: os.Stderr})
	} else {
		o := RunOptions{Home: home, Log: os.Stderr, ProxyApp: address, Transport: transport}
		if address != "" {
			o.StopWithin = 3 * time.Second
		}
		err = Run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type proc struct {
	cmd *exec.Cmd
	out strings.Builder
}

func start(t *testing.T, h Home) *proc {
	t.Helper()
	return play(t, "node", h.Dir, "", "")
}

func play(t *testing.T, what, home, app, abci string) *proc {
	t.Helper()
	p := &proc{cmd: exec.Command(os.Args[0])}
	// CometBFT has data races of its own; under the race detector a node would end
	// with its exit code for every one of them.
	p.cmd.Env = append(os.Environ(), "EDDY_TEST_PLAY="+what, "EDDY_TEST_HOME="+home, "EDDY_TEST_APP="+app, "EDDY_TEST_ABCI="+abci, "GORACE=exitcode=0")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() }) // gone already is fine
	return p
}

// stop ends a node and returns how long it took; it must end well.
func (p *proc) stop(t *testing.T) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("the node ended badly: %v\n%s", err, p.out.String())
	}
	return time.Since(begun)
}

func get(rpc, path string, into any) error {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Get(rpc + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

func waitHeight(t *testing.T, h Home, want int) int {
	t.Helper()
	var s struct {
		Result struct {
			SyncInfo struct {
				Height int `json:"latest_block_height,string"`
			} `json:"sync_info"`
		}
	}
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		if err := get(h.RPC, "/status", &s); err == nil && s.Result.SyncInfo.Height >= want {
			return s.Result.SyncInfo.Height
		}
	}
	t.Fatalf("%s does not reach height %d (at %d)", h.Name, want, s.Result.SyncInfo.Height)
	return 0
}

// A node that was stopped has left no lock and no torn file: it starts again,
// again and again, and goes on where it was.
func TestStopsCleanlyAndGoesOn(t *testing.T) {
	engines := []string{"goleveldb"}
	if pebbleBuiltIn {
		engines = append(engines, "pebbledb")
	}
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			homes, err := Testnet(t.TempDir(), TestnetOptions{Validators: 1, ChainID: "cycles", Engine: engine, Commit: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			height := 0
			for range 4 {
				p := start(t, homes[0])
				height = waitHeight(t, homes[0], height+2)
				t.Logf("stopped at height %d in %s", height, p.stop(t).Round(time.Millisecond))
			}
		})
	}
}

var errListed = errors.New("it has called the observer")

// sees returns nil when a node has the observer as an inbound peer.
func sees(v Home, id string) error {
	var net struct {
		Result struct {
			Peers []struct {
				Info struct {
					ID string `json:"id"`
				} `json:"node_info"`
				Outbound bool `json:"is_outbound"`
			}
		}
	}
	if err := get(v.RPC, "/net_info", &net); err != nil {
		return err
	}
	for _, p := range net.Result.Peers {
		if p.Info.ID == id {
			if p.Outbound {
				return errListed
			}
			return nil
		}
	}
	return errors.New("it has no connection to the observer: nothing is proven")
}

// The observer follows, and no validator lists it: not in its address book, not
// as an outbound peer, although address books are not strict here.
func TestNoValidatorListsTheObserver(t *testing.T) {
	t.Parallel()
	homes, err := Testnet(t.TempDir(), TestnetOptions{Validators: 2, Observers: 1, ChainID: "hidden", Commit: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	procs := make([]*proc, len(homes))
	for i, h := range homes {
		procs[i] = start(t, h)
	}
	observer := homes[2]
	id, _, _ := strings.Cut(observer.P2P, "@")
	waitHeight(t, observer, 5)
	for _, v := range homes[:2] {
		var err error
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if err = sees(v, id); err == nil || errors.Is(err, errListed) {
				break
			}
		}
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
	for i := range procs {
		procs[i].stop(t)
	}
	for _, v := range homes[:2] {
		b, err := os.ReadFile(filepath.Join(v.Dir, "config", "addrbook.json"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), id) {
			t.Errorf("the address book of %s lists the observer", v.Name)
		}
	}
}

func TestInitKeepsWhatIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	if _, err := Init(Options{Home: dir, ChainID: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(Options{Home: dir, ChainID: "x"}); err == nil {
		t.Fatal("a home was made over another")
	}
	if _, err := Init(Options{Home: filepath.Join(dir, "y")}); err == nil {
		t.Fatal("a chain without a name")
	}
	if _, err := Init(Options{Home: filepath.Join(dir, "z"), ChainID: "x", Engine: "rocksdb"}); err == nil {
		t.Fatal("an engine that cannot be run")
	}
}

// Nodes of one chain never share a port, however many there are.
func TestTestnetPortsAreDistinct(t *testing.T) {
	homes, err := Testnet(t.TempDir(), TestnetOptions{Validators: 2, Observers: 60, ChainID: "ports-1"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, h := range homes {
		_, p2p, _ := strings.Cut(h.P2P, "@")
		for _, addr := range []string{p2p, strings.TrimPrefix(h.RPC, "http://")} {
			if other := seen[addr]; other != "" {
				t.Errorf("%s and %s have both %s", other, h.Dir, addr)
			}
			seen[addr] = h.Dir
		}
	}
	if len(seen) != 124 {
		t.Errorf("%d addresses", len(seen))
	}
}
