package node

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	cfg "github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"
	"github.com/cometbft/cometbft/types"
	"github.com/spf13/viper"

	"github.com/eddy-backup/eddy/internal/hint"
)

// localhost is where a node listens that is told nothing.
const localhost = "127.0.0.1"

// Options of one home.
type Options struct {
	Home     string
	ChainID  string
	Engine   string // "goleveldb" (the default) or "pebbledb"
	Moniker  string // default: the directory's name
	Observer bool   // hide it: see hide
	Peers    []string
	Genesis  string // a genesis file to copy; "": this node is the only validator of a new chain
	Host     string // address to listen on; "": localhost
	P2PPort  int    // 0: a free one
	RPCPort  int    // 0: a free one
	Commit   time.Duration
	Load     bool // settings for megabytes of transactions a second, as measured for benchmarks
}

// Init writes a home with fresh keys. It never overwrites: keys and a sign state
// that are there stay, and so does the data.
func Init(o Options) (Home, error) {
	if o.Engine == "" {
		o.Engine = "goleveldb"
	}
	if err := checkEngine(o.Engine); err != nil {
		return Home{}, err
	}
	if o.ChainID == "" && o.Genesis == "" {
		return Home{}, hint.Add(errors.New("a new chain needs a name"), "say --chain-id, or --genesis FILE to join one")
	}
	if _, err := os.Stat(configPath(o.Home)); err == nil {
		return Home{}, hint.Add(fmt.Errorf("%s is there already", configPath(o.Home)), "nothing was changed; name another home")
	}
	c, err := newConfig(o)
	if err != nil {
		return Home{}, err
	}
	cfg.EnsureRoot(o.Home)
	pv := freshValidator(c)
	key, err := p2p.LoadOrGenNodeKey(c.NodeKeyFile())
	if err != nil {
		return Home{}, err
	}
	if err := writeGenesis(o, c, pv); err != nil {
		return Home{}, err
	}
	cfg.WriteConfigFile(configPath(o.Home), c)
	h, err := Open(o.Home)
	if err != nil {
		return Home{}, err
	}
	h.P2P = string(key.ID()) + "@" + hostPort(c.P2P.ListenAddress)
	return h, nil
}

// freshValidator makes a key and the zero sign state beside it. A key that is
// there is kept, and then its sign state is never invented.
func freshValidator(c *cfg.Config) *privval.FilePV {
	if _, err := os.Stat(c.PrivValidatorKeyFile()); errors.Is(err, fs.ErrNotExist) {
		pv := privval.GenFilePV(c.PrivValidatorKeyFile(), c.PrivValidatorStateFile())
		pv.Save()
		return pv
	}
	return privval.LoadFilePVEmptyState(c.PrivValidatorKeyFile(), c.PrivValidatorStateFile())
}

func newConfig(o Options) (*cfg.Config, error) {
	c := cfg.DefaultConfig()
	c.SetRoot(o.Home)
	c.DBBackend = o.Engine
	c.Moniker = o.Moniker
	if c.Moniker == "" {
		c.Moniker = filepath.Base(o.Home)
	}
	host := cmp.Or(o.Host, localhost)
	ports, err := freePorts(host, 2)
	if err != nil {
		return nil, err
	}
	for i, p := range []int{o.P2PPort, o.RPCPort} {
		if p != 0 {
			ports[i] = p
		}
	}
	c.P2P.ListenAddress = fmt.Sprintf("tcp://%s:%d", host, ports[0])
	c.RPC.ListenAddress = fmt.Sprintf("tcp://%s:%d", host, ports[1])
	c.RPC.PprofListenAddress = ""
	c.P2P.PersistentPeers = strings.Join(o.Peers, ",")
	c.P2P.AllowDuplicateIP = true // a whole chain on one loopback
	c.P2P.AddrBookStrict = false
	c.Consensus.TimeoutCommit = o.Commit
	if o.Commit == 0 {
		c.Consensus.TimeoutCommit = 300 * time.Millisecond
	}
	// A follower asks its peers for what it lacks at this pace; at the default of
	// 100 ms it never catches up with a chain of several blocks a second.
	c.Consensus.PeerGossipSleepDuration = 10 * time.Millisecond
	c.Consensus.TimeoutPropose = time.Second
	if o.Load {
		c.P2P.SendRate, c.P2P.RecvRate = 200<<20, 200<<20
		c.Mempool.MaxTxsBytes = 256 << 20
		c.Mempool.Size = 50000
	}
	if o.Observer {
		hide(c)
	}
	return c, c.ValidateBasic()
}

// hide makes a node that no other node lists. pex=false alone does not: a peer
// books an inbound node's self-advertised address all the same (cometbft
// p2p/pex/pex_reactor.go AddPeer), but refuses an unspecified one
// (p2p/netaddress.go IsUnspecified).
func hide(c *cfg.Config) {
	_, port, _ := net.SplitHostPort(hostPort(c.P2P.ListenAddress))
	c.P2P.PexReactor = false
	c.P2P.SeedMode = false
	c.P2P.ExternalAddress = "0.0.0.0:" + port
}

func writeGenesis(o Options, c *cfg.Config, pv *privval.FilePV) error {
	if o.Genesis != "" {
		b, err := os.ReadFile(o.Genesis)
		if err != nil {
			return fmt.Errorf("genesis: %w", err)
		}
		return os.WriteFile(c.GenesisFile(), b, 0o600)
	}
	return newGenesis(o.ChainID, []*privval.FilePV{pv}).SaveAs(c.GenesisFile())
}

func newGenesis(chainID string, pvs []*privval.FilePV) *types.GenesisDoc {
	g := &types.GenesisDoc{ChainID: chainID, GenesisTime: time.Now().UTC(), ConsensusParams: types.DefaultConsensusParams()}
	g.ConsensusParams.Block.MaxBytes = 21 << 20
	for i, pv := range pvs {
		g.Validators = append(g.Validators, types.GenesisValidator{
			Address: pv.Key.PubKey.Address(), PubKey: pv.Key.PubKey, Power: 10, Name: fmt.Sprintf("validator-%d", i),
		})
	}
	return g
}

// TestnetOptions of a chain on one machine.
type TestnetOptions struct {
	Validators, Observers int
	ChainID, Engine       string
	Commit                time.Duration // pause between blocks; 0: 300 ms
	Load                  bool
	Host                  string // "": localhost
}

// Testnet writes the homes of a chain below dir, validators first. Validators
// have each other as persistent peers; observers have the validators, and no
// validator lists an observer.
func Testnet(dir string, o TestnetOptions) ([]Home, error) {
	if o.Validators < 1 {
		return nil, errors.New("a chain needs a validator")
	}
	// Found all at once: a port that was found and let go may be found again.
	ports, err := freePorts(cmp.Or(o.Host, localhost), 2*(o.Validators+o.Observers))
	if err != nil {
		return nil, err
	}
	var homes []Home
	var pvs []*privval.FilePV
	for i := range o.Validators + o.Observers {
		name, observer := fmt.Sprintf("validator-%d", i), i >= o.Validators
		if observer {
			name = fmt.Sprintf("observer-%d", i-o.Validators)
		}
		h, err := Init(Options{
			Home: filepath.Join(dir, name), ChainID: o.ChainID, Engine: o.Engine, Observer: observer, Commit: o.Commit, Load: o.Load, Host: o.Host,
			P2PPort: ports[2*i], RPCPort: ports[2*i+1],
		})
		if err != nil {
			return nil, err
		}
		homes = append(homes, h)
		if !observer {
			c, err := readConfig(h.Dir)
			if err != nil {
				return nil, err
			}
			pvs = append(pvs, privval.LoadFilePV(c.PrivValidatorKeyFile(), c.PrivValidatorStateFile()))
		}
	}
	genesis := newGenesis(o.ChainID, pvs)
	for i, h := range homes {
		c, err := readConfig(h.Dir)
		if err != nil {
			return nil, err
		}
		var peers []string
		for j, p := range homes[:o.Validators] {
			if j != i {
				peers = append(peers, p.P2P)
			}
		}
		c.P2P.PersistentPeers = strings.Join(peers, ",")
		cfg.WriteConfigFile(configPath(h.Dir), c)
		if err := genesis.SaveAs(c.GenesisFile()); err != nil {
			return nil, err
		}
	}
	return homes, nil
}

func readConfig(home string) (*cfg.Config, error) {
	v := viper.New()
	v.SetConfigFile(configPath(home))
	if err := v.ReadInConfig(); err != nil {
		return nil, hint.Add(fmt.Errorf("read the node's config: %w", err), "make the home with `eddy node init`")
	}
	c := cfg.DefaultConfig()
	if err := v.Unmarshal(c); err != nil {
		return nil, fmt.Errorf("%s: %w", configPath(home), err)
	}
	c.SetRoot(home)
	return c, c.ValidateBasic()
}

// freePorts finds ports of a local address that nobody uses now.
func freePorts(host string, n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, err
		}
		defer l.Close() // all of them at the end: two must not be the same
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func hostPort(addr string) string { return strings.TrimPrefix(addr, "tcp://") }
func httpOf(addr string) string   { return "http://" + hostPort(addr) }
