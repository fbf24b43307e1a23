package cometbft

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/p2p/pex"
	cmtp2p "github.com/cometbft/cometbft/proto/tendermint/p2p"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// A book counts as told when an entry that nobody has told of is improbable, and not
// before: on the books of CometBFT itself, short and long.
func TestABookIsToldByItsAnswers(t *testing.T) {
	t.Parallel()
	for size, answers := range map[int][2]int{1: {1, 1}, 31: {1, 1}, 33: {2, 3}, 60: {3, 12}, 142: {9, 40}, 500: {10, 40}, 1500: {15, 60}} {
		book := pex.NewAddrBook(filepath.Join(t.TempDir(), "addrbook.json"), false)
		for i := range size {
			addr, err := p2p.NewNetAddressString(fmt.Sprintf("%040x@%d.%d.9.9:26656", i+1, 11+i/100, i%100+1))
			must(t, err)
			must(t, book.AddAddress(addr, addr))
		}
		if book.Size() != size {
			t.Fatalf("the book has %d entries, want %d", book.Size(), size)
		}
		sought, missed, asked := fmt.Sprintf("%040x", size/2+1), 0, 0
		const crawls = 40
		for range crawls {
			told, seen := tally{}, false
			for n, whole := 1, false; !whole; n++ {
				if n > maxAnswers {
					t.Fatalf("%d entries are not told by %d answers", size, n-1)
				}
				var answer []cmtp2p.NetAddress
				for _, a := range book.GetSelection() {
					answer = append(answer, a.ToProto())
					seen = seen || string(a.ID) == sought
				}
				whole = told.add(answer)
				asked++
			}
			if !seen {
				missed++
			}
		}
		if mean := asked / crawls; missed > crawls/8 || mean < answers[0] || mean > answers[1] {
			t.Errorf("%d entries: %d answers on average, one was missed %d times of %d", size, mean, missed, crawls)
		}
	}
}

// Where nobody at all could be asked nothing is proven, and that is no OK.
func TestUnlistedWhereNobodyCanBeAsked(t *testing.T) {
	t.Parallel()
	h, err := node.Init(node.Options{Home: filepath.Join(t.TempDir(), "home"), ChainID: "alone-1", Observer: true})
	must(t, err)
	id, _, _ := strings.Cut(h.P2P, "@")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":0,"result":{"node_info":{"id":%q,"listen_addr":"tcp://0.0.0.0:26656","network":"alone-1","version":"0.38.26","channels":"20"},"peers":[]}}`, id)
	}))
	t.Cleanup(web.Close)
	r, err := New(Options{Home: h.Dir, RPC: web.URL, Witnesses: []string{"http://127.0.0.1:1"}})
	must(t, err)
	got := r.Unlisted(t.Context(), 10*time.Second)
	if len(got) != 1 || got[0].Level != check.Warn || !strings.Contains(got[0].Said, "is not known") || got[0].Hint == "" {
		t.Errorf("%+v", got)
	}
}
