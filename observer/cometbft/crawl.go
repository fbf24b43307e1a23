package cometbft

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cosmos/gogoproto/proto"

	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/libs/protoio"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/p2p/conn"
	"github.com/cometbft/cometbft/p2p/pex"
	cmtp2p "github.com/cometbft/cometbft/proto/tendermint/p2p"
)

const (
	// atALink is how many requests a peer takes from one connection without hanging
	// up; for a third it must be ten seconds later (p2p/pex/pex_reactor.go,
	// receiveRequest). Another connection begins anew.
	atALink = 2
	// askPause is between two connections to one peer.
	askPause = 250 * time.Millisecond
	// answerWithin bounds the wait for one answer.
	answerWithin = 5 * time.Second
	// maxAnswers bounds how often one peer is asked: enough for a book of 4,000.
	maxAnswers = 80
	// wholeBook is how many addresses a peer tells at least, if it knows as many: a
	// shorter answer is all of its book (p2p/pex/addrbook.go, GetSelection). Of a
	// longer one it tells about a quarter, at random, at most 250.
	wholeBook = 32
	// missed is how probable it may be, at most, that an entry of a longer book was in
	// none of the answers.
	missed = 0.01
	// maxAddrs bounds an answer, in bytes, as the peers themselves do.
	maxAddrs = 256 * 250
	// dialWithin bounds connection and handshake with one peer.
	dialWithin = 4 * time.Second
	// atOnce is how many peers are asked at the same time.
	atOnce = 16
)

// crawl asks nodes for the addresses that they know, as a new node does that has
// just joined: a throw-away peer with a key of its own, one connection at a time to
// each, the channel for addresses and no other. It tells an address that no node books.
type crawl struct {
	network string
	version p2p.ProtocolVersion
	id      p2p.ID          // whom to look for
	addrs   map[string]bool // host:port by which it might be known
}

// heard is what one peer told.
type heard struct {
	peer    string
	answers int    // to requests
	whole   bool   // it has told all of its book, as good as certainly
	listed  string // the entry that is looked for; "": not seen
	noPEX   bool   // it trades no addresses
	err     error
}

// run asks all peers (ID@HOST:PORT) until ctx ends or each has told all that it
// knows.
func (c crawl) run(ctx context.Context, peers []string) []heard {
	out := make([]heard, len(peers))
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, peer := range peers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out[i] = c.ask(ctx, peer)
		})
	}
	wg.Wait()
	return out
}

// ask asks one peer until it has told all of its book: one that is longer than an
// answer tells another part each time.
func (c crawl) ask(ctx context.Context, peer string) (h heard) {
	h.peer = peer
	addr, err := splitPeer(peer)
	if err != nil {
		h.err = err
		return h
	}
	book := tally{}
	for vain := 0; ; {
		before := h.answers
		link, err := c.dial(ctx, addr.id, addr.host)
		if err == nil {
			err = c.converse(ctx, link, &h, book)
			link.Close()
		}
		switch {
		case errors.Is(err, errNoPEX):
			h.noPEX = true
			return h
		case h.answers == 0:
			h.err = err
			return h
		case h.answers == before:
			vain++ // its slots may be taken now, by others
		default:
			vain = 0
		}
		if h.whole || h.listed != "" || vain == 3 || h.answers >= maxAnswers || sleep(ctx, askPause) != nil {
			return h
		}
	}
}

// errNoPEX: the peer has no channel for addresses.
var errNoPEX = errors.New("it trades no addresses")

type peerAddr struct {
	id   p2p.ID
	host string // with port
}

func splitPeer(peer string) (peerAddr, error) {
	a, err := p2p.NewNetAddressString(peer)
	if err != nil {
		return peerAddr{}, fmt.Errorf("address of a peer: %w", err)
	}
	return peerAddr{a.ID, a.DialString()}, nil
}

// dial connects and shakes hands. A peer that is not who it should be, or on
// another network, is an error.
func (c crawl) dial(ctx context.Context, id p2p.ID, host string) (link *conn.SecretConnection, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialWithin}
	raw, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	if err := raw.SetDeadline(time.Now().Add(dialWithin)); err != nil {
		return nil, err
	}
	key := ed25519.GenPrivKey()
	link, err = conn.MakeSecretConnection(raw, key)
	if err != nil {
		return nil, err
	}
	if got := p2p.PubKeyToID(link.RemotePubKey()); got != id {
		return nil, fmt.Errorf("it is node %s", got)
	}
	own := p2p.DefaultNodeInfo{
		ProtocolVersion: c.version, DefaultNodeID: p2p.PubKeyToID(key.PubKey()), ListenAddr: "tcp://0.0.0.0:26656",
		Network: c.network, Version: "0.38", Channels: []byte{pex.PexChannel}, Moniker: "address-check",
		Other: p2p.DefaultNodeInfoOther{TxIndex: "off", RPCAddress: ""},
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := protoio.NewDelimitedWriter(link).WriteMsg(own.ToProto())
		wrote <- err
	}()
	var pb cmtp2p.DefaultNodeInfo
	_, rerr := protoio.NewDelimitedReader(link, p2p.MaxNodeInfoSize()).ReadMsg(&pb)
	if rerr != nil {
		raw.Close() // ends the writer, too
	}
	if err := errors.Join(rerr, <-wrote); err != nil {
		return nil, err
	}
	switch info, err := p2p.DefaultNodeInfoFromToProto(&pb); {
	case err != nil:
		return nil, err
	case info.Network != c.network:
		return nil, fmt.Errorf("it is on chain %q", info.Network)
	case !slices.Contains(info.Channels, pex.PexChannel):
		return nil, errNoPEX
	}
	return link, raw.SetDeadline(time.Time{})
}

// converse asks for addresses as often as one connection is answered, until the peer
// has told all of its book, or what is looked for. That it answers no more is an
// error only where it has not answered at all.
func (c crawl) converse(ctx context.Context, link *conn.SecretConnection, h *heard, book tally) error {
	ctx, cancel := context.WithTimeout(ctx, atALink*answerWithin)
	defer cancel()
	told := make(chan []byte, 1)
	broke := make(chan any, 1)
	m := conn.NewMConnection(link,
		[]*conn.ChannelDescriptor{{ID: pex.PexChannel, Priority: 1, SendQueueCapacity: 1, RecvMessageCapacity: maxAddrs, MessageType: &cmtp2p.Message{}}},
		func(_ byte, msg []byte) {
			select {
			case told <- slices.Clone(msg):
			case <-ctx.Done():
			}
		},
		func(r any) {
			select {
			case broke <- r:
			default:
			}
		})
	m.SetLogger(log.NewNopLogger()) // it panics without one
	if err := m.Start(); err != nil {
		return err
	}
	defer m.Stop() //nolint:errcheck // stopped already is fine
	request, err := proto.Marshal((&cmtp2p.PexRequest{}).Wrap())
	if err != nil {
		return err
	}
	for n, asked := 0, false; n < atALink && !h.whole && h.listed == ""; {
		if !asked && !m.Send(pex.PexChannel, request) {
			return errors.New("it takes no request")
		}
		asked = true
		select {
		case <-ctx.Done():
			return errors.New("it does not answer")
		case r := <-broke:
			return fmt.Errorf("it hung up: %v", r) // as a seed does that has answered
		case b := <-told:
			var msg cmtp2p.Message
			if err := proto.Unmarshal(b, &msg); err != nil {
				return err
			}
			if addrs := msg.GetPexAddrs(); addrs != nil { // else: it asks us
				n, asked = n+1, false
				h.answers++
				h.whole = book.add(addrs.Addrs)
				h.listed = c.seen(addrs.Addrs)
			}
		}
	}
	return nil
}

// tally is what one peer has told so far: how often each entry.
type tally map[string]int

// add counts an answer, and returns whether the book is told: the answer was all of
// it, or there were so many that an entry which was in none is improbable. Each is a
// random part, so that those entries tell how many there are that were seen once and
// twice (Chao's estimate).
func (t tally) add(addrs []cmtp2p.NetAddress) bool {
	if len(addrs) < wholeBook {
		return true
	}
	for _, a := range addrs {
		t[a.ID]++
	}
	times := map[int]int{} // entries, by how often they were told
	told := 0
	for _, n := range t {
		times[n]++
		told += n
	}
	once, twice := float64(times[1]), float64(max(times[2], 1))
	size := float64(len(t)) + once*once/(2*twice)
	answers := float64(told) / float64(len(addrs))
	return answers > 1 && math.Pow(max(0, 1-float64(len(addrs))/size), answers) < missed
}

// seen returns the entry that names the node, "" where none does.
func (c crawl) seen(addrs []cmtp2p.NetAddress) string {
	for _, a := range addrs {
		host := net.JoinHostPort(a.IP, strconv.FormatUint(uint64(a.Port), 10))
		if p2p.ID(a.ID) == c.id || c.addrs[host] {
			return oneLine(errors.New(a.ID + "@" + host))
		}
	}
	return ""
}
