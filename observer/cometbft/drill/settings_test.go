package drill

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

func counter() ports {
	n := 40000
	return func() (int, error) { n++; return n, nil }
}

func parsed(t testing.TB, text string) table {
	t.Helper()
	c := table{}
	if err := toml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Whatever a chain's files name, the copy listens on loopback at ports of its own,
// calls nobody, and keeps its database and its telemetry to itself.
func TestAlone(t *testing.T) {
	c := parsed(t, `
proxy_app = "tcp://127.0.0.1:26658"
priv_validator_laddr = "tcp://0.0.0.0:26659"
Moniker = "mine"
[rpc]
laddr = "tcp://0.0.0.0:26657"
grpc_laddr = "tcp://0.0.0.0:9091"
pprof_laddr = "localhost:6060"
[p2p]
laddr = "tcp://0.0.0.0:26656"
external_address = "5.6.7.8:26656"
seeds = "a@b:1"
pex = true
[tx_index]
indexer = "psql"
psql-conn = "postgres://u:hunter2@db/x"
[instrumentation]
prometheus = true
prometheus_listen_addr = ":26660"
`)
	if err := c.localise(counter()); err != nil {
		t.Fatal(err)
	}
	alone(c, "127.0.0.1:1", 2, []string{"id@127.0.0.1:3"})
	for key, want := range map[string]any{
		"priv_validator_laddr": "", "Moniker": "eddy-drill", "rpc.laddr": "tcp://127.0.0.1:1", "rpc.grpc_laddr": "", "rpc.pprof_laddr": "",
		"p2p.laddr": "tcp://127.0.0.1:2", "p2p.external_address": "0.0.0.0:2", "p2p.seeds": "", "p2p.persistent_peers": "id@127.0.0.1:3", "p2p.pex": false,
		"tx_index.indexer": "null", "tx_index.psql-conn": "", "instrumentation.prometheus": false,
	} {
		if got, _ := c.get(key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if c.text("moniker") != "eddy-drill" || len(c) != len(parsed(t, text(t, c))) {
		t.Errorf("two names that differ in case: %v", c)
	}
	if got := c.text("instrumentation.prometheus_listen_addr"); !strings.HasPrefix(got, "127.0.0.1:4") {
		t.Error(got)
	}

	app := parsed(t, `
halt-height = 7
[api]
enable = true
address = "tcp://0.0.0.0:1317"
[json-rpc]
enable = true
ws-address = "0.0.0.0:8546"
[evm]
http_enabled = true
http_port = 8545
[oracle]
remote_endpoint = "10.0.0.7:8080"
[telemetry]
enabled = true
[streaming.abci]
plugin = "abci"
keys = ["*"]
`)
	if err := app.localise(counter()); err != nil {
		t.Fatal(err)
	}
	quiet(app)
	if s := text(t, app); strings.Contains(s, "0.0.0.0") || strings.Contains(s, "10.0.0.7") || strings.Contains(s, "true") || strings.Contains(s, "8545") || strings.Contains(s, `"abci"`) || strings.Contains(s, "rosetta") {
		t.Error(s)
	}
}

func text(t testing.TB, c table) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := c.write(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A path of the live node leads into the copy, one that is nobody's is refused.
func TestConfine(t *testing.T) {
	live, elsewhere := t.TempDir(), t.TempDir()
	roots := []place{{was: "/mnt/db", prefix: ".eddy-root/db"}, {was: live}}
	c := parsed(t, `db_dir = "/mnt/db"
[wasm]
dir = "`+live+`/wasm"
[metrics]
path = "/metrics"
[log]
relative = "data/x"
`)
	if err := c.confine("config.toml", "/scratch/home", roots); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"db_dir": "/scratch/home/.eddy-root/db", "wasm.dir": "/scratch/home/wasm", "metrics.path": "/metrics", "log.relative": "data/x"} {
		if got := c.text(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	for _, dir := range []string{elsewhere, filepath.Join(elsewhere, "absent")} {
		c = parsed(t, `db_dir = "`+dir+`"`)
		if err := c.confine("config.toml", "/scratch/home", roots); !isImpossible(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestCleanLog(t *testing.T) {
	got := strings.Join(clean([]byte("\x1b[31mERR\x1b[0m dial http://u:hunter2@h/ failed\npassword=hunter2 x\n{\"api_key\": \"hunter2\"}\nfine\xff\n\n"+strings.Repeat("y", 1000))), "\n")
	if strings.Contains(got, "hunter2") || strings.Contains(got, "\x1b") || !strings.Contains(got, "fine?") || !strings.Contains(got, "ERR dial http://***@h/ failed") || !strings.HasSuffix(got, "y ...") {
		t.Errorf("%q", got)
	}
}

func TestNoKeysAreStartedWith(t *testing.T) {
	for _, name := range []string{"config/priv_validator_key.json", "data/priv_validator_state.json", "config/node_key.json", "keyring-file", "my_mnemonic.txt", "config/bls_key.json"} {
		dir := t.TempDir()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := noKeys(dir); !isImpossible(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No file that a node accepts makes it listen elsewhere.
func FuzzLocalise(f *testing.F) {
	f.Add("laddr = \"tcp://0.0.0.0:1\"\n[a.b]\nport = 7\n[[c]]\naddress = \"[::]:9\"\n")
	f.Add("addr = \"unix:///run/x\"\nlisten = \":1\"\nhost = 3\n")
	f.Fuzz(func(t *testing.T, s string) {
		c := table{}
		if toml.Unmarshal([]byte(s), &c) != nil {
			return
		}
		if err := c.localise(counter()); err != nil {
			t.Fatal(err)
		}
		err := c.each("", func(key string, v any) (any, error) {
			if s, ok := v.(string); ok && addressKey.MatchString(key) && strings.HasPrefix(s, "tcp://0.0.0.0:") && !strings.ContainsAny(s[14:], ":/[]%") {
				t.Errorf("%s is %q", key, s)
			}
			return v, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
