package cometbft

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/viper"

	cfg "github.com/cometbft/cometbft/config"

	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// playEnv names a home whose node this test binary is to run.
const playEnv = "EDDY_TEST_NODE"

// TestMain runs a node instead of the tests where one is named: nodes are
// processes of their own, as they are for users.
func TestMain(m *testing.M) {
	home := os.Getenv(playEnv)
	if home == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := node.Run(ctx, node.RunOptions{Home: home, Log: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// running is a node's process.
type running struct {
	node.Home
	t   testing.TB
	cmd *exec.Cmd
	log *os.File
}

// run starts a node.
func run(t testing.TB, h node.Home) *running {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "node.log"))
	must(t, err)
	r := &running{Home: h, t: t, cmd: exec.Command(os.Args[0]), log: log}
	// CometBFT has data races of its own; under the race detector a node would end
	// with its exit code for every one of them.
	r.cmd.Env = append(os.Environ(), playEnv+"="+h.Dir, "GORACE=exitcode=0")
	r.cmd.Stdout, r.cmd.Stderr = log, log
	must(t, r.cmd.Start())
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill() // gone already is fine
			_ = r.cmd.Wait()
		}
		log.Close()
	})
	return r
}

// stop ends a node; it must end well.
func (r *running) stop() {
	r.t.Helper()
	must(r.t, r.cmd.Process.Signal(syscall.SIGTERM))
	if err := r.cmd.Wait(); err != nil {
		said, _ := os.ReadFile(r.log.Name())
		r.t.Fatalf("%s ended badly: %v\n%s", r.Name, err, said)
	}
}

// reach waits until a node has a height.
func (r *running) reach(height int64) {
	r.t.Helper()
	var last error
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		s, err := askStatus(r.t.Context(), r.RPC)
		if err == nil && s.height >= height {
			return
		}
		last = fmt.Errorf("height %d: %w", s.height, err)
	}
	said, _ := os.ReadFile(r.log.Name())
	r.t.Fatalf("%s does not reach height %d: %v\n%s", r.Name, height, last, said)
}

// keepBusy sends a transaction now and then until the test ends, so that every few
// blocks have another app hash.
func (r *running) keepBusy() {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	r.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			tx := url.Values{"tx": {fmt.Sprintf(`"%s=1"`, rand.Text())}}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.RPC+"/broadcast_tx_async?"+tx.Encode(), nil)
			if err != nil {
				panic(err)
			}
			// One that is lost is no harm: the next comes.
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			_ = sleep(ctx, 20*time.Millisecond)
		}
	}()
}

// configure changes a node's config.toml.
func configure(t testing.TB, home string, change func(*cfg.Config)) {
	t.Helper()
	file := filepath.Join(home, "config", "config.toml")
	v := viper.New()
	v.SetConfigFile(file)
	must(t, v.ReadInConfig())
	c := cfg.DefaultConfig()
	must(t, v.Unmarshal(c))
	change(c)
	cfg.WriteConfigFile(file, c)
}

// forkOf copies a home that has not run, and gives it ports of its own: a node with
// the same validator key, that will make blocks of its own.
func forkOf(t testing.TB, h node.Home) node.Home {
	t.Helper()
	dir := filepath.Join(t.TempDir(), h.Name+"-forked")
	must(t, os.CopyFS(dir, os.DirFS(h.Dir)))
	other, err := node.Init(node.Options{Home: filepath.Join(t.TempDir(), "ports"), ChainID: "ports"})
	must(t, err)
	configure(t, dir, func(c *cfg.Config) {
		c.RPC.ListenAddress = strings.Replace(other.RPC, "http", "tcp", 1)
		_, at, _ := strings.Cut(other.P2P, "@")
		c.P2P.ListenAddress = "tcp://" + at
	})
	must(t, os.Chmod(filepath.Join(dir, "config", "priv_validator_key.json"), 0o600))
	out, err := node.Open(dir)
	must(t, err)
	return out
}

// call is one call of a node's RPC.
type call struct {
	Method string
	Params struct {
		Height string `json:"height"`
	}
}

// between stands before a node's RPC: change is given each answer, and may write
// another.
func between(t testing.TB, upstream string, change func(c call, answer []byte) []byte) string {
	t.Helper()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked, err := io.ReadAll(r.Body)
		if err != nil {
			return // the one who asked has gone
		}
		var c call
		if err := json.Unmarshal(asked, &c); err != nil {
			t.Errorf("asked %q: %v", asked, err)
		}
		resp, err := http.Post(upstream, "application/json", bytes.NewReader(asked))
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(resp.StatusCode)
		_, _ = w.Write(change(c, answer)) // the one who asked may have gone
	}))
	t.Cleanup(web.Close)
	return web.URL
}

// refusal is an answer of a node that cannot say.
func refusal(text string) []byte {
	return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":-1,"error":{"code":-32603,"message":"Internal error","data":%q}}`, text)
}
