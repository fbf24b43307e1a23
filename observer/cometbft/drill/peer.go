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
	"strconv"
	"time"

	"github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtlog "github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/p2p/conn"
	bcproto "github.com/cometbft/cometbft/proto/tendermint/blocksync"
	"github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"
)

// blockDir holds the blocks after the restored height, a file each as they go over
// the wire, so that a block of 100 MB is in memory only while it is handed on.
type blockDir struct {
	dir      string
	from, to int64 // the first and the last that there are
}

func (b blockDir) file(h int64) string { return filepath.Join(b.dir, strconv.FormatInt(h, 10)) }

// fetch gets the blocks from whoever of the chain has them, and waits for those
// that are not made yet. lost says why a block will never come.
func (b blockDir) fetch(ctx context.Context, from witnesses, lost func(h int64) error, say func(phase, text string)) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	said := false
	for h := b.from; h <= b.to; {
		err := b.fetchOne(ctx, from, h)
		if err == nil {
			h++
			continue
		}
		if err := lost(h); err != nil {
			return err
		}
		if !said {
			said = true
			say("wait", fmt.Sprintf("waiting for blocks %d to %d of the chain", h, b.to))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fetch block %d: %w: %w", h, ctx.Err(), err)
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (b blockDir) fetchOne(ctx context.Context, from witnesses, h int64) (err error) {
	err = errors.New("there is nobody to ask")
	for _, a := range from {
		var blk *types.Block
		if blk, err = a.full(ctx, h); err != nil {
			continue
		}
		pb, err := blk.ToProto()
		if err != nil {
			return fmt.Errorf("block %d of %s: %w", h, a.url, err)
		}
		raw, err := (&bcproto.BlockResponse{Block: pb}).Marshal()
		if err != nil {
			return fmt.Errorf("block %d of %s: %w", h, a.url, err)
		}
		return os.WriteFile(b.file(h), raw, 0o600)
	}
	return err
}

// read returns a block as a message, nil where it is not there.
func (b blockDir) read(h int64) (*bcproto.BlockResponse, error) {
	raw, err := os.ReadFile(b.file(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := &bcproto.BlockResponse{}
	if err == nil {
		err = m.Unmarshal(raw)
	}
	return m, err
}

// answer is what was told of a height when its blocks were fetched.
func (b blockDir) answer(h int64) ([]answer, error) {
	at, err := b.block(h)
	if err != nil {
		return nil, err
	}
	next, err := b.block(h + 1)
	if err != nil {
		return nil, err
	}
	return []answer{{block: at.Hash(), app: next.AppHash}}, nil
}

func (b blockDir) block(h int64) (*types.Block, error) {
	m, err := b.read(h)
	if err == nil && m == nil {
		err = fs.ErrNotExist
	}
	var blk *types.Block
	if err == nil {
		blk, err = types.BlockFromProto(m.Block)
	}
	if err != nil {
		return nil, fmt.Errorf("the block %d that was fetched: %w", h, err)
	}
	return blk, nil
}

// blockChannel is the channel on which nodes ask each other for blocks, in every
// version since Tendermint 0.34 (blocksync/reactor.go, BlocksyncChannel).
const blockChannel = byte(0x40)

// peer is a node of the chain as far as it hands out blocks. It has a key of its
// own and knows nobody.
type peer struct {
	p2p.BaseReactor
	blocks blockDir
	sw     *p2p.Switch
	mt     *p2p.MultiplexTransport
	addr   string // id@host:port
}

// servePeer starts the peer on loopback of the drill's world.
func servePeer(w *world, chain string, b blockDir) (*peer, error) {
	key := p2p.NodeKey{PrivKey: ed25519.GenPrivKey()}
	c := config.DefaultP2PConfig()
	c.SendRate, c.RecvRate, c.AllowDuplicateIP, c.PexReactor = math.MaxInt32, math.MaxInt32, true, false
	p := &peer{blocks: b}
	p.BaseReactor = *p2p.NewBaseReactor("BLOCKSYNC", p)
	l, err := w.listen("127.0.0.1:0") // a free port: the transport wants to know it before it listens
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, err
	}
	info := p2p.DefaultNodeInfo{
		ProtocolVersion: p2p.NewProtocolVersion(version.P2PProtocol, version.BlockProtocol, 0),
		DefaultNodeID:   key.ID(), ListenAddr: fmt.Sprintf("tcp://127.0.0.1:%d", port),
		Network: chain, Version: version.TMCoreSemVer, Channels: []byte{blockChannel}, Moniker: "eddy-drill-peer",
		Other: p2p.DefaultNodeInfoOther{TxIndex: "off"},
	}
	if err := info.Validate(); err != nil {
		return nil, fmt.Errorf("a peer of chain %q: %w", chain, err)
	}
	at, err := p2p.NewNetAddressString(fmt.Sprintf("%s@127.0.0.1:%d", key.ID(), port))
	if err != nil {
		return nil, err
	}
	p.addr = at.String()
	p.mt = p2p.NewMultiplexTransport(info, key, p2p.MConnConfig(c))
	if err := w.do(func() error { return p.mt.Listen(*at) }); err != nil {
		return nil, fmt.Errorf("listen for the copy: %w", err)
	}
	p.sw = p2p.NewSwitch(c, p.mt)
	p.sw.SetLogger(cmtlog.NewNopLogger())
	p.sw.SetNodeInfo(info)
	p.sw.SetNodeKey(&key)
	p.sw.AddReactor("BLOCKSYNC", p)
	if err := p.sw.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the peer of the copy: %w", err), p.mt.Close())
	}
	return p, nil
}

func (p *peer) end() error { return errors.Join(p.sw.Stop(), p.mt.Close()) }

// GetChannels implements p2p.Reactor.
func (p *peer) GetChannels() []*conn.ChannelDescriptor {
	return []*conn.ChannelDescriptor{{
		ID: blockChannel, Priority: 5, SendQueueCapacity: 1000, RecvBufferCapacity: 50 * 4096,
		RecvMessageCapacity: 1 << 20, MessageType: &bcproto.Message{}, // it is only ever asked
	}}
}

// AddPeer implements p2p.Reactor.
func (p *peer) AddPeer(to p2p.Peer) { p.tell(to) }

func (p *peer) tell(to p2p.Peer) {
	to.Send(p2p.Envelope{ChannelID: blockChannel, Message: &bcproto.StatusResponse{Base: p.blocks.from, Height: p.blocks.to}})
}

// Receive implements p2p.Reactor: it answers.
func (p *peer) Receive(e p2p.Envelope) {
	switch m := e.Message.(type) {
	case *bcproto.StatusRequest:
		p.tell(e.Src)
	case *bcproto.BlockRequest:
		b, err := p.blocks.read(m.Height)
		if err != nil || b == nil {
			e.Src.Send(p2p.Envelope{ChannelID: blockChannel, Message: &bcproto.NoBlockResponse{Height: m.Height}})
			return
		}
		e.Src.Send(p2p.Envelope{ChannelID: blockChannel, Message: b})
	}
}
