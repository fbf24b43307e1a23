package detect

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// RPC asks nodes by HTTP. Old Tendermint and its forks answer alike as far as it
// asks.
type RPC struct{ Timeout time.Duration }

func (r RPC) get(ctx context.Context, address string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var raw json.RawMessage
	if err := getJSON(ctx, client, address, &raw); err != nil {
		return err
	}
	var wrapped struct{ Result json.RawMessage }
	if err := json.Unmarshal(raw, &wrapped); err == nil && len(wrapped.Result) > 0 {
		raw = wrapped.Result // without it: a fork that answers bare
	}
	return json.Unmarshal(raw, into)
}

// nodeInfo is a node as it presents itself.
type nodeInfo struct {
	ID         string
	Network    string
	ListenAddr string `json:"listen_addr"`
	Other      struct {
		RPC string `json:"rpc_address"`
	}
}

// Status implements Chain.
func (r RPC) Status(ctx context.Context, address string) (Status, error) {
	var s struct {
		NodeInfo nodeInfo `json:"node_info"`
	}
	if err := r.get(ctx, address+"/status", &s); err != nil {
		return Status{}, err
	}
	if s.NodeInfo.Network == "" {
		return Status{}, errors.New("it does not say of which chain it is")
	}
	return Status{ID: s.NodeInfo.ID, ChainID: s.NodeInfo.Network}, nil
}

// Peers implements Chain.
func (r RPC) Peers(ctx context.Context, address string) ([]Peer, error) {
	var n struct {
		Peers []struct {
			NodeInfo nodeInfo `json:"node_info"`
			Outbound bool     `json:"is_outbound"`
			IP       string   `json:"remote_ip"`
		}
	}
	if err := r.get(ctx, address+"/net_info", &n); err != nil {
		return nil, err
	}
	var out []Peer
	for _, p := range n.Peers {
		if _, err := netip.ParseAddr(p.IP); err != nil {
			continue // peers are strangers: what they say must be what it should be
		}
		_, port, err := net.SplitHostPort(strings.TrimPrefix(p.NodeInfo.ListenAddr, "tcp://"))
		if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil {
			port = ""
		}
		out = append(out, Peer{ID: p.NodeInfo.ID, IP: p.IP, Port: port, RPC: p.NodeInfo.Other.RPC, Outbound: p.Outbound})
	}
	return out, nil
}
