package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/crypto/ed25519"
	cryptoenc "github.com/cometbft/cometbft/crypto/encoding"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/p2p"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	cmtversion "github.com/cometbft/cometbft/proto/tendermint/version"
	ctypes "github.com/cometbft/cometbft/rpc/core/types"
	"github.com/cometbft/cometbft/types"
	cometversion "github.com/cometbft/cometbft/version"

	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
	"github.com/eddy-backup/eddy/uploader"
)

// rpcNode is what a node says of itself, and of a chain with one validator whose
// blocks are really signed.
type rpcNode struct {
	chain   string
	height  int64
	made    time.Time // its newest block
	catchUp bool
	key     ed25519.PubKey // its own
	power   int64          // of that key
	next    int64          // two blocks later; 0: no change
	signer  ed25519.PrivKey
	history string // another one has other blocks
}

// block is the signed header of a height.
func (n rpcNode) block(height int64) (types.SignedHeader, *types.ValidatorSet) {
	vals := types.NewValidatorSet([]*types.Validator{types.NewValidator(n.signer.PubKey(), 10)})
	state := sha256.Sum256([]byte(n.history))
	h := &types.Header{
		Version: cmtversion.Consensus{Block: cometversion.BlockProtocol}, ChainID: n.chain, Height: height, Time: time.Unix(1_700_000_000+height, 0).UTC(),
		ValidatorsHash: vals.Hash(), NextValidatorsHash: vals.Hash(), AppHash: state[:], ProposerAddress: n.signer.PubKey().Address(),
	}
	id := types.BlockID{Hash: h.Hash(), PartSetHeader: types.PartSetHeader{Total: 1, Hash: state[:]}}
	v := &types.Vote{Type: cmtproto.PrecommitType, Height: height, BlockID: id, Timestamp: h.Time, ValidatorAddress: h.ProposerAddress}
	sig, err := n.signer.Sign(types.VoteSignBytes(n.chain, v.ToProto()))
	if err != nil {
		panic(err)
	}
	commit := &types.Commit{Height: height, BlockID: id, Signatures: []types.CommitSig{{BlockIDFlag: types.BlockIDFlagCommit, ValidatorAddress: h.ProposerAddress, Timestamp: h.Time, Signature: sig}}}
	return types.SignedHeader{Header: h, Commit: commit}, vals
}

func (n rpcNode) answer(method string, height int64) (any, error) {
	switch method {
	case "status":
		return &ctypes.ResultStatus{
			NodeInfo:      p2p.DefaultNodeInfo{DefaultNodeID: p2p.PubKeyToID(n.key), Network: n.chain, Version: "0.38.26", Moniker: "observed"},
			SyncInfo:      ctypes.SyncInfo{LatestBlockHeight: n.height, LatestBlockTime: n.made, CatchingUp: n.catchUp},
			ValidatorInfo: ctypes.ValidatorInfo{Address: n.key.Address(), PubKey: n.key, VotingPower: n.power},
		}, nil
	case "net_info":
		return &ctypes.ResultNetInfo{Listening: true, NPeers: 2}, nil
	case "abci_info":
		return &ctypes.ResultABCIInfo{}, nil
	case "block_results":
		out := &ctypes.ResultBlockResults{Height: height}
		if n.next > 0 {
			key, err := cryptoenc.PubKeyToProto(n.key)
			if err != nil {
				return nil, err
			}
			out.ValidatorUpdates = []abci.ValidatorUpdate{{PubKey: key, Power: n.next}}
		}
		return out, nil
	case "commit":
		b, _ := n.block(height)
		return &ctypes.ResultCommit{SignedHeader: b, CanonicalCommit: true}, nil
	case "validators":
		_, vals := n.block(height)
		return &ctypes.ResultValidators{BlockHeight: height, Validators: vals.Validators, Count: 1, Total: 1}, nil
	}
	return nil, fmt.Errorf("no method %q", method)
}

func (n rpcNode) serve(t *testing.T) (url string) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c struct {
			ID     json.RawMessage
			Method string
			Params struct{ Height string }
		}
		err := json.NewDecoder(r.Body).Decode(&c)
		height := n.height
		if err == nil && c.Params.Height != "" {
			height, err = strconv.ParseInt(c.Params.Height, 10, 64)
		}
		var result any
		if err == nil {
			result, err = n.answer(c.Method, height)
		}
		var b []byte
		if err == nil {
			b, err = cmtjson.Marshal(result)
		}
		if err != nil {
			t.Errorf("%s: %v", c.Method, err)
			return
		}
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, c.ID, b)
	}))
	t.Cleanup(web.Close)
	return web.URL
}

// Each gate refuses with exit code 12 and says why and what to do, before anything
// is stopped or stored.
func TestGates(t *testing.T) {
	t.Parallel()
	type set struct{ own, witness *rpcNode }
	behind := func(s set) { s.witness.height = 100 }
	for name, c := range map[string]struct {
		change func(s set)
		yaml   []string // replaced texts
		home   func(t *testing.T, home, bucket string)
		code   int
		says   string
	}{
		"catching up":                    {change: func(s set) { s.own.catchUp = true }, code: 12, says: "it has not caught up: it is at height 7"},
		"behind the chain":               {change: behind, code: 12, says: "it is at height 7, the chain at 100"},
		"behind, and it is waited for":   {change: behind, yaml: []string{"when_behind: fail", "when_behind: wait 1s"}, code: 12, says: "waiting up to "},
		"behind, and no backup is fine":  {change: behind, yaml: []string{"when_behind: fail", "when_behind: skip"}, code: 0, says: "skipped"},
		"on another chain than its home": {change: func(s set) { s.own.chain, s.witness.chain = "other-1", "other-1" }, code: 12, says: "its RPC is on chain other-1, the genesis in"},
		"on another chain than said":     {yaml: []string{"  rpc:", "  chain_id: other-1\n  rpc:"}, code: 12, says: "it is on chain gates-1, the configuration says other-1"},
		"a witness of another chain":     {change: func(s set) { s.witness.chain = "other-1" }, code: 12, says: "is on chain other-1, the node on gates-1"},
		"begun anew under the same name": {change: func(s set) { s.witness.signer, s.witness.history = ed25519.GenPrivKey(), "anew" }, code: 12, says: "no witness shares the node's history"},
		"on a fork":                      {change: func(s set) { s.witness.history = "fork" }, code: 12, says: "the chain has forked"},
		"a validator":                    {change: func(s set) { s.own.power = 10 }, code: 12, says: "observed is a validator (voting power 10)"},
		"about to be a validator":        {change: func(s set) { s.own.next = 5 }, code: 12, says: "observed is about to be a validator (voting power 5)"},
		"its key has signed": {home: func(t *testing.T, home, _ string) {
			must(t, os.WriteFile(filepath.Join(home, "data/priv_validator_state.json"), []byte(`{"height":"5","round":0,"step":3}`), 0o600))
		}, code: 12, says: "its key has signed (height 5)"},
		"standing still":     {change: func(s set) { s.own.made = time.Now().Add(-time.Hour) }, yaml: []string{"witnesses: [", "witnesses: [] #"}, code: 12, says: "its newest block is 1h0m"},
		"nobody to ask":      {yaml: []string{"witnesses: [", "witnesses: [\"http://127.0.0.1:1\"] #"}, code: 12, says: "no witness answers"},
		"stopped on purpose": {yaml: []string{"status: [/bin/true]", "status: [sh, -c, exit 3]"}, code: 12, says: "says that the node is stopped"},
		"it went back":       {home: backupAt(1000), code: 12, says: "has height 1000 of the same history: it went back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			h, err := node.Init(node.Options{Home: filepath.Join(dir, "home"), ChainID: "gates-1", Observer: true})
			must(t, err)
			own := rpcNode{chain: "gates-1", height: 7, made: time.Now(), key: ed25519.GenPrivKey().PubKey().(ed25519.PubKey), signer: ed25519.GenPrivKey(), history: "one"}
			witness := own
			witness.key = ed25519.GenPrivKey().PubKey().(ed25519.PubKey)
			if c.change != nil {
				c.change(set{&own, &witness})
			}
			bucket := filepath.Join(dir, "bucket")
			if c.home != nil {
				c.home(t, h.Dir, bucket)
			}
			yaml := strings.NewReplacer(c.yaml...).Replace(fmt.Sprintf(`cluster: gates
replica:
  kind: cometbft
  home: %s
  rpc: %s
  witnesses: [%s]
  control: {exec: {stop: [/bin/false], start: [/bin/false], status: [/bin/true]}}
store: {url: "file://%s"}
workdir: %s
backup: {when_behind: fail}
`, h.Dir, own.serve(t), witness.serve(t), bucket, filepath.Join(dir, "state")))
			file := filepath.Join(dir, "eddy.yaml")
			must(t, os.WriteFile(file, []byte(yaml), 0o600))
			var out, errs strings.Builder
			code := run([]string{"-c", file, "backup"}, strings.NewReader(""), &out, &errs)
			if said := out.String() + errs.String(); code != c.code || !strings.Contains(said, c.says) || code != 0 && !strings.Contains(said, "hint: ") {
				t.Errorf("exit code %d, want %d with %q:\n%s", code, c.code, c.says, said)
			}
			all, err := filepath.Glob(filepath.Join(bucket, "gates/data/*/vol-*"))
			if stages, _ := filepath.Glob(filepath.Join(h.Dir, ".eddy/*-*")); err != nil || len(all) > 0 && c.home == nil || len(stages) > 0 {
				t.Errorf("left: %v %v, %v", all, stages, err)
			}
		})
	}
}

// backupAt puts a backup of the home's chain into the bucket.
func backupAt(height uint64) func(*testing.T, string, string) {
	return func(t *testing.T, home, bucket string) {
		store, err := uploader.Open(t.Context(), uploader.Config{URL: "file://" + bucket})
		must(t, err)
		incarnation, err := cometbft.Incarnation(home)
		must(t, err)
		cat := uploader.NewCatalog(store, "gates")
		m := uploader.Manifest{ID: uploader.NewID(time.Now(), "auto"), Label: "auto", Cluster: "gates", Incarnation: incarnation, Created: time.Now()}
		m.Position.Kind, m.Position.Index = "cometbft", height
		o, err := store.PutSmall(t.Context(), cat.ObjectKey(m.ID, uploader.VolumeName(0)), []byte("x"), "", uploader.Condition{})
		must(t, err)
		m.Volumes = []uploader.Volume{{Name: uploader.VolumeName(0), Size: o.Size}}
		must(t, cat.Commit(t.Context(), m, false))
	}
}
