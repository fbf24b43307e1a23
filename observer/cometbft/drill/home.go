package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft"
)

// home is a restored home that is fit to be run.
type home struct {
	dir     string
	chainID string
	id      string // of its fresh node key
	address string // of its fresh validator key, upper case hex
	rpc     string // host:port on loopback
}

var (
	// secretFile are names that never get into a drill's home: a key, and what goes
	// with one. The drill makes its own.
	secretFile = regexp.MustCompile(`(?i)^(priv_validator|node_key|addrbook|keyring-|bls_)|mnemonic|\.(pem|key|age)$|_key\.json$`)
	// configFile are the names of a config directory that a node may need.
	configFile = regexp.MustCompile(`(?i)\.(toml|ya?ml|json)$`)
)

// maxConfigFile bounds a file of the config directory that is taken along, bytes;
// the genesis apart.
const maxConfigFile = 16 << 20

// prepare makes a home of what was restored: the live node's configuration, keys
// of its own, everything on loopback. peers is what it may call.
func (d *Driller) prepare(ctx context.Context, t observer.DrillTask, free ports, peers []string) (home, error) {
	h := home{dir: filepath.Join(t.Scratch, observer.DrillHome)}
	if err := noKeys(h.dir); err != nil {
		return h, err
	}
	config := filepath.Join(h.dir, "config")
	for _, dir := range []string{config, filepath.Join(h.dir, "data", "snapshots")} { // without the latter some apps do not start
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return h, err
		}
	}
	if err := d.copyConfig(ctx, config); err != nil {
		return h, fmt.Errorf("copy the node's config: %w", err)
	}
	places := []place{{was: d.From}}
	for _, r := range t.Roots {
		places = append([]place{{was: r.Path, prefix: r.Prefix}}, places...)
	}
	if dir, err := filepath.EvalSymlinks(d.From); err == nil {
		places = append(places, place{was: dir})
	}
	node, err := d.settings(filepath.Join(config, "config.toml"), h.dir, places, free)
	if err != nil {
		return h, err
	}
	if err := copyGenesis(ctx, d.From, filepath.Join(config, "genesis.json")); err != nil {
		return h, err
	}
	rpc, err := free()
	if err != nil {
		return h, err
	}
	own, err := free()
	if err != nil {
		return h, err
	}
	h.rpc = fmt.Sprintf("127.0.0.1:%d", rpc)
	alone(node, h.rpc, own, peers)
	if d.Isolated { // loopback only: nothing is saved by going slowly
		node.set("p2p.send_rate", int64(math.MaxInt32))
		node.set("p2p.recv_rate", int64(math.MaxInt32))
	}
	if app := node.text("proxy_app"); strings.Contains(app, ":") {
		// Apps in the node's own process ignore it; one outside must not be the live one.
		p, err := free()
		if err != nil {
			return h, err
		}
		node.set("proxy_app", fmt.Sprintf("tcp://127.0.0.1:%d", p))
	}
	if err := node.write(filepath.Join(config, "config.toml")); err != nil {
		return h, err
	}
	app, err := d.settings(filepath.Join(config, "app.toml"), h.dir, places, free)
	if err != nil {
		return h, err
	}
	if app != nil {
		quiet(app)
		if err := app.write(filepath.Join(config, "app.toml")); err != nil {
			return h, err
		}
	}
	if err := h.keys(config); err != nil {
		return h, fmt.Errorf("make the drill's keys: %w", err)
	}
	g, err := cometbft.ReadGenesis(h.dir)
	if err != nil {
		return h, err
	}
	h.chainID = g.ChainID
	return h, nil
}

// settings reads a copied file and takes every address and path out of it that is
// not the drill's.
func (d *Driller) settings(file, dir string, places []place, free ports) (table, error) {
	t, err := readTable(file)
	if t == nil || err != nil {
		return nil, err
	}
	for _, key := range []string{"rpc.tls_cert_file", "rpc.tls_key_file", "tls.certificate-path", "tls.key-path"} {
		t.setIf(key, "")
	}
	if err := t.confine(filepath.Base(file), dir, places); err != nil {
		return nil, err
	}
	return t, t.localise(free)
}

// alone are the values of config.toml that keep a node to itself: it listens on
// loopback, no peer books its address (see nodeconfig.Hide), it calls only peers,
// signs with nothing but its own key, tells no database and no metrics server.
func alone(t table, rpc string, p2pPort int, peers []string) {
	for key, v := range map[string]any{
		"moniker":                    "eddy-drill",
		"fast_sync":                  true, // until 0.37
		"block_sync":                 true, // 0.37
		"db_dir":                     t.dbDir(),
		"genesis_file":               "config/genesis.json",
		"priv_validator_key_file":    "config/priv_validator_key.json",
		"priv_validator_state_file":  "data/priv_validator_state.json",
		"priv_validator_laddr":       "",
		"node_key_file":              "config/node_key.json",
		"filter_peers":               false,
		"rpc.laddr":                  "tcp://" + rpc,
		"rpc.grpc_laddr":             "",
		"rpc.pprof_laddr":            "",
		"rpc.unsafe":                 false,
		"p2p.laddr":                  fmt.Sprintf("tcp://127.0.0.1:%d", p2pPort),
		"p2p.external_address":       fmt.Sprintf("0.0.0.0:%d", p2pPort),
		"p2p.seeds":                  "",
		"p2p.persistent_peers":       strings.Join(peers, ","),
		"p2p.unconditional_peer_ids": "", "p2p.private_peer_ids": "",
		"p2p.addr_book_file": "config/addrbook.json", "p2p.addr_book_strict": false,
		"p2p.pex": false, "p2p.seed_mode": false, "p2p.upnp": false, "p2p.allow_duplicate_ip": true,
		"statesync.enable":               false,
		"storage.discard_abci_responses": false, // they hold the app hash of each block
		"tx_index.indexer":               "null", "tx_index.psql-conn": "",
		"instrumentation.prometheus": false,
	} {
		t.set(key, v)
	}
}

// dbDir keeps a db_dir that was confined, and names the usual one else.
func (t table) dbDir() string {
	if dir := t.text("db_dir"); dir != "" {
		return dir
	}
	return "data"
}

// quiet are the values of app.toml that turn off what a drill does not need. A
// section that is not there is not made.
func quiet(t table) {
	for key, v := range map[string]any{
		"halt-height": int64(0), "halt-time": int64(0), "min-retain-blocks": int64(0),
		"api.enable": false, "grpc.enable": false, "grpc-web.enable": false, "rosetta.enable": false,
		"json-rpc.enable": false, "evm-rpc.enable": false, "telemetry.enabled": false,
		"evm.http_enabled": false, "evm.ws_enabled": false,
		"state-sync.snapshot-interval": int64(0),
		"streaming.abci.keys":          []string{}, "streaming.abci.plugin": "",
	} {
		t.setIf(key, v)
	}
}

// keys makes a node key, and a validator key that is in no validator set with the
// zero sign state that belongs only beside a fresh key.
func (h *home) keys(config string) error {
	key, err := p2p.LoadOrGenNodeKey(filepath.Join(config, "node_key.json"))
	if err != nil {
		return err
	}
	h.id = string(key.ID())
	pv := privval.NewFilePV(ed25519.GenPrivKey(), filepath.Join(config, "priv_validator_key.json"), filepath.Join(h.dir, "data", "priv_validator_state.json"))
	pv.Save()
	h.address = pv.GetAddress().String()
	return nil
}

// noKeys refuses a restored copy with a key or a sign state in it: no archive of
// eddy's has one, and none may be started with.
func noKeys(dir string) error {
	for _, sub := range []string{"", "config", "data"} {
		names, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, n := range names {
			if secretFile.MatchString(n.Name()) {
				return notPossible("look where it comes from: a copy of a real key must not be started", "the restored copy holds %s", filepath.Join(sub, n.Name()))
			}
		}
	}
	return nil
}

// copyConfig takes the files of the live config directory along, keys apart.
func (d *Driller) copyConfig(ctx context.Context, to string) error {
	from := filepath.Join(d.From, "config")
	names, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, n := range names {
		src := filepath.Join(from, n.Name())
		fi, err := os.Stat(src) // of what a symlink leads to
		if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxConfigFile ||
			n.Name() == "genesis.json" || secretFile.MatchString(n.Name()) || !configFile.MatchString(n.Name()) {
			continue
		}
		if _, err := fsx.Copy(ctx, src, filepath.Join(to, n.Name()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// copyGenesis copies the genesis file, which may be gigabytes long.
func copyGenesis(ctx context.Context, live, to string) error {
	t, err := readTable(filepath.Join(live, "config", "config.toml"))
	if err != nil {
		return err
	}
	src := t.text("genesis_file")
	if src == "" {
		src = "config/genesis.json"
	}
	if !filepath.IsAbs(src) {
		src = filepath.Join(live, src)
	}
	if src, err = filepath.EvalSymlinks(src); err == nil {
		_, _, err = fsx.FS{}.CloneOrCopy(ctx, src, to, 0o600)
	}
	if err != nil {
		return fmt.Errorf("copy the genesis file: %w", err)
	}
	return nil
}

// freePorts hands out ports that nobody listens on now. Each is kept open until
// all are known, so that no two are the same.
func freePorts(listen func(addr string) (net.Listener, error)) (free ports, done func()) {
	var held []net.Listener
	return func() (int, error) {
			l, err := listen("127.0.0.1:0")
			if err != nil {
				return 0, err
			}
			held = append(held, l)
			return l.Addr().(*net.TCPAddr).Port, nil
		}, func() {
			for _, l := range held {
				l.Close()
			}
		}
}
