package cometbft

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cometbft/cometbft/crypto"
	rpchttp "github.com/cometbft/cometbft/rpc/client/http"
	jsonrpc "github.com/cometbft/cometbft/rpc/jsonrpc/client"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

// callTimeout bounds one call of a node's RPC.
const callTimeout = 5 * time.Second

// bare is a URL without what might be a secret in it: user, password, query, and
// the path, in which providers put their tokens.
func bare(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(a URL that cannot be read)"
	}
	out := url.URL{Scheme: u.Scheme, Host: u.Host}
	if u.Path != "" && u.Path != "/" {
		out.Path = "/..."
	}
	return out.String()
}

// redact takes an RPC address out of an error's text, where it stands with all
// that is secret in it.
func redact(err error, raw string) error {
	if err == nil {
		return nil
	}
	if u := new(url.Error); errors.As(err, &u) {
		err = u.Err // the rest of its text is the address
	}
	words := []string{raw, bare(raw)}
	if u, perr := url.Parse(raw); perr == nil {
		if pw, ok := u.User.Password(); ok && pw != "" {
			header := base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + pw))
			words = append(words, pw, "***", url.QueryEscape(pw), "***", header, "***")
		}
		for _, p := range []string{u.Path, u.EscapedPath(), u.RawQuery} {
			if p = strings.TrimSuffix(p, "/"); len(p) > 1 {
				words = append(words, p, "/...")
			}
		}
	}
	return errors.New(strings.NewReplacer(words...).Replace(err.Error()))
}

// maxAnswer bounds what a node may answer, in bytes. The longest that is asked for
// is a header with the signatures, or a page with the keys, of a few hundred
// validators.
const maxAnswer = 32 << 20

// dial makes a client of a node's RPC. It connects with its first call.
func dial(raw string) (*rpchttp.HTTP, error) {
	c, err := jsonrpc.DefaultHTTPClient(raw)
	if err != nil {
		return nil, err
	}
	if t, ok := c.Transport.(*http.Transport); ok {
		t.DisableKeepAlives = true // asked a few times, minutes apart
	}
	c.Timeout, c.Transport = callTimeout, bounded{c.Transport}
	return rpchttp.NewWithClient(raw, "/websocket", c)
}

// bounded cuts answers that are longer than any that is asked for.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// nodeStatus is what a node's /status says, as far as it matters here.
type nodeStatus struct {
	chainID, id, moniker, version string
	height                        int64
	time                          time.Time
	catchingUp                    bool
	power                         int64
	validator                     string // consensus address, hex
	key                           crypto.PubKey
	listen                        string // the address that it tells its peers
	channels                      []byte // that it opens to its peers
}

func askStatus(ctx context.Context, raw string) (nodeStatus, error) {
	c, err := dial(raw)
	if err != nil {
		return nodeStatus{}, redact(err, raw)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.Status(ctx)
	if err != nil {
		return nodeStatus{}, redact(err, raw)
	}
	return nodeStatus{
		chainID: s.NodeInfo.Network, id: string(s.NodeInfo.ID()), moniker: s.NodeInfo.Moniker, version: s.NodeInfo.Version,
		height: s.SyncInfo.LatestBlockHeight, time: s.SyncInfo.LatestBlockTime, catchingUp: s.SyncInfo.CatchingUp,
		power: s.ValidatorInfo.VotingPower, validator: s.ValidatorInfo.Address.String(),
		key: s.ValidatorInfo.PubKey, listen: s.NodeInfo.ListenAddr, channels: s.NodeInfo.Channels,
	}, nil
}

// peersOf asks a node for its peers: how many have called it, and whether one of
// them all is the node with that id.
func peersOf(ctx context.Context, raw, id string) (inbound int, has bool, err error) {
	c, err := dial(raw)
	if err != nil {
		return 0, false, redact(err, raw)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	net, err := c.NetInfo(ctx)
	if err != nil {
		return 0, false, redact(err, raw)
	}
	for _, p := range net.Peers {
		if !p.IsOutbound {
			inbound++
		}
		has = has || string(p.NodeInfo.ID()) == id
	}
	return inbound, has, nil
}

// appAndPeers asks what status does not say. Both are facts for people: a node
// that cannot answer is not refused for it.
func appAndPeers(ctx context.Context, raw string) (app string, peers int, err error) {
	c, err := dial(raw)
	if err != nil {
		return "", 0, redact(err, raw)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	net, err := c.NetInfo(ctx)
	if err != nil {
		return "", 0, redact(err, raw)
	}
	info, err := c.ABCIInfo(ctx)
	if err != nil {
		return "", net.NPeers, redact(err, raw)
	}
	app = strings.TrimSpace(info.Response.Data + " " + info.Response.Version)
	if len(app) > 200 || strings.HasPrefix(app, "{") {
		app = info.Response.Version
	}
	return app, net.NPeers, nil
}

// system is the name of what this package observes.
const system = "cometbft"

// Describe implements observer.Replica. Witnesses are asked at the same time; one
// that does not answer, or is on another chain, is told of and changes nothing.
func (r *Replica) Describe(ctx context.Context) (observer.State, error) {
	s := observer.State{System: system, Taken: time.Now().UTC()}
	var wg sync.WaitGroup
	s.Witness = make([]observer.Witness, len(r.o.Witnesses))
	for i, raw := range r.o.Witnesses {
		wg.Go(func() { s.Witness[i] = r.witness(ctx, raw) })
	}
	st, err := askStatus(ctx, r.o.RPC)
	if err == nil {
		s.App, s.Peers, err = appAndPeers(ctx, r.o.RPC)
	}
	wg.Wait()
	if err != nil {
		return s, hint.Add(fmt.Errorf("%w: its RPC %s does not answer: %w", observer.ErrNotFit, bare(r.o.RPC), err),
			r.rightRPC())
	}
	s.Cluster, s.Version, s.CatchUp, s.Voting = st.chainID, st.version, st.catchingUp, st.power
	s.Node = observer.Node{ID: st.id, Name: st.moniker, Role: "observer"}
	if st.power > 0 {
		s.Node.Role = "validator"
	}
	incarnation, err := Incarnation(r.o.Home)
	if err != nil {
		return s, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	s.Position = observer.Position{
		Kind: "cometbft", Incarnation: incarnation, Index: uint64(st.height), Time: st.time, Consistency: "live",
	}
	r.compare(ctx, &s)
	s.Leader = leader(s)
	s.NextVoting = nextPower(ctx, r.o.RPC, st)
	return s, nil
}

// rightRPC is what to do where nothing answers at replica.rpc. The node's own file
// says where its RPC listens, unless its command says otherwise.
func (r *Replica) rightRPC() string {
	file := filepath.Join(r.layout.bases[0].dir, "config", "config.toml")
	var c struct {
		RPC struct {
			Listen string `toml:"laddr"`
		} `toml:"rpc"`
	}
	err := readTOML(file, &c)
	_, listen, _ := strings.Cut(c.RPC.Listen, "://")
	host, port, serr := net.SplitHostPort(listen)
	if err = errors.Join(err, serr); err != nil {
		return "set `replica.rpc: URL` to the node's RPC address, if it runs; else " + control.HowToStart(r.o.Control)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	says := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
	if own, err := url.Parse(r.o.RPC); err == nil && own.Host == says.Host {
		return control.HowToStart(r.o.Control) + ", unless it runs: replica.rpc is what " + file + " says; its log tells why it does not answer"
	}
	return fmt.Sprintf("set `replica.rpc: %s`, as %s has it", &says, file)
}

func (r *Replica) witness(ctx context.Context, raw string) observer.Witness {
	w := observer.Witness{URL: bare(raw)}
	st, err := askStatus(ctx, raw)
	if err != nil {
		w.Error = err.Error()
		return w
	}
	w.Cluster = st.chainID
	w.Position = observer.Position{Kind: "cometbft", Index: uint64(st.height), Time: st.time, Consistency: "live"}
	return w
}

// Bare is an RPC address for people: without what might be a secret in it.
func Bare(raw string) string { return bare(raw) }

// Redact takes an RPC address, and what may be secret in it, out of an error's text.
func Redact(err error, raw string) error { return redact(err, raw) }

// PeerAddress is where a node that is asked at its RPC can be called by another one
// on this machine, id@host:port.
func PeerAddress(ctx context.Context, raw string) (string, error) {
	s, err := askStatus(ctx, raw)
	if err != nil {
		return "", err
	}
	_, listen, ok := strings.Cut(s.listen, "://")
	if !ok {
		listen = s.listen
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("the node tells peers no address: %w", err)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("its RPC address cannot be read")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = u.Hostname()
	}
	return s.id + "@" + net.JoinHostPort(host, port), nil
}
