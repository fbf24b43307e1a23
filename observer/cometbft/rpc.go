package cometbft

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	rpchttp "github.com/cometbft/cometbft/rpc/client/http"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// callTimeout bounds one call of a node's RPC.
const callTimeout = 5 * time.Second

// bare is a URL without what might be a secret in it: user, password, query.
func bare(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(a URL that cannot be read)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// redact takes an RPC address out of an error's text, where it might stand with
// its password.
func redact(err error, raw string) error {
	if err == nil {
		return nil
	}
	text := strings.ReplaceAll(err.Error(), raw, bare(raw))
	if u, perr := url.Parse(raw); perr == nil && u.User != nil {
		if pw, ok := u.User.Password(); ok && pw != "" {
			text = strings.ReplaceAll(text, pw, "***")
		}
	}
	return errors.New(text)
}

// nodeStatus is what a node's /status says, as far as it matters here.
type nodeStatus struct {
	chainID, id, moniker, version string
	height                        int64
	time                          time.Time
	catchingUp                    bool
	power                         int64
	validator                     string // consensus address, hex
}

func askStatus(ctx context.Context, raw string) (nodeStatus, error) {
	c, err := rpchttp.NewWithTimeout(raw, "/websocket", uint(callTimeout.Seconds()))
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
	}, nil
}

// appAndPeers asks what status does not say. Both are facts for people: a node
// that cannot answer is not refused for it.
func appAndPeers(ctx context.Context, raw string) (app string, peers int, err error) {
	c, err := rpchttp.NewWithTimeout(raw, "/websocket", uint(callTimeout.Seconds()))
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

// Describe implements observer.Replica. Witnesses are asked at the same time; one
// that does not answer, or is on another chain, is told of and changes nothing.
func (r *Replica) Describe(ctx context.Context) (observer.State, error) {
	s := observer.State{System: "cometbft", Taken: time.Now().UTC()}
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
			"is the node running? replica.rpc must be its RPC address (config.toml, [rpc] laddr)")
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
	s.Leader = leader(s)
	return s, nil
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
