package cometbft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/p2p"
	coretypes "github.com/cometbft/cometbft/rpc/core/types"
	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

func TestARestoreIsNoRollback(t *testing.T) {
	signed := func(h int64) SignStatus { return SignStatus{Height: h, Step: 3, Path: "x", Key: true} }
	for name, c := range map[string]struct {
		g                 goesBack
		restore, rollback string // what the refusal says; "": none
	}{
		"an observer of a chain that goes on": {g: goesBack{to: 100, data: 300, named: 1, seen: []seen{{tip: 300}}}, rollback: "answers, and has the blocks up to 300"},
		"a little behind, and going on":       {g: goesBack{to: 100, data: 300, named: 1, seen: []seen{{tip: 290, grew: true}}}, rollback: "up to 290"},
		"nothing newer is known":              {g: goesBack{to: 100, data: 90, sign: signed(100), named: 2}},
		"broken data":                         {g: goesBack{to: 100, named: 2}},
		"an observer without witnesses":       {g: goesBack{to: 100, data: 300}},
		"signed above it":                     {g: goesBack{to: 1200, data: 1400, sign: signed(1400)}, restore: "its key has signed at height 1400, and no witness is configured"},
		"signed above it, all silent":         {g: goesBack{to: 1200, sign: signed(1400), named: 3}, restore: "no witness answers"},
		"a survivor has all":                  {g: goesBack{to: 1200, sign: signed(1400), named: 3, seen: []seen{{tip: 1399}}}, rollback: "up to 1399"},
		"a survivor lacks blocks":             {g: goesBack{to: 1200, sign: signed(1400), named: 3, seen: []seen{{tip: 1398}, {tip: 1200}}}, restore: "stand still at height 1398", rollback: "up to 1398"},
		"the last holder of blocks":           {g: goesBack{to: 1200, data: 1400, named: 3, seen: []seen{{tip: 1200}}}, restore: "this node has block 1400, and the witnesses stand still at height 1200"},
		"the last one, all silent":            {g: goesBack{to: 1200, data: 1400, named: 3}, restore: "this node has block 1400"},
		"a vote for the next block":           {g: goesBack{to: 1200, data: 1200, sign: signed(1201), named: 1, seen: []seen{{tip: 1200}}}},
		"a vote for it, all silent":           {g: goesBack{to: 1200, data: 1200, sign: signed(1201), named: 1}, restore: "at height 1201"},
		"it lives itself":                     {g: goesBack{to: 1200, data: 1400, own: seen{tip: 1401, grew: true}}, rollback: "makes or follows blocks"},
		"all stand below":                     {g: goesBack{to: 1200, data: 1200, named: 1, seen: []seen{{tip: 1100, grew: true}}}},
		"a floor":                             {g: goesBack{to: 1200, sign: floorAt(1410), named: 1}, restore: "at height 1410"},
	} {
		for _, q := range []struct {
			what, want string
			err        error
		}{{"restore", c.restore, c.g.isRestore()}, {"rollback", c.rollback, c.g.isRollback()}} {
			ok := q.err == nil
			if q.want != "" {
				ok = errors.Is(q.err, observer.ErrNotFit) && strings.Contains(q.err.Error(), q.want) && hint.Of(q.err) != ""
			}
			if !ok {
				t.Errorf("%s, %s: %v, want %q", name, q.what, q.err, q.want)
			}
		}
	}
}

func TestIncarnationsOfAChainThatWasTakenBack(t *testing.T) {
	g := Genesis{ChainID: "c", InitialHeight: 1}
	for _, c := range []struct {
		home, backup []int64
		height       int64
		ok           bool
	}{
		{nil, nil, 900, true},
		{[]int64{100}, nil, 100, true},
		{[]int64{100}, nil, 101, false},
		{[]int64{100}, []int64{100}, 900, true},
		{nil, []int64{100}, 900, true},
		{[]int64{100, 50}, []int64{100}, 60, false},
		{[]int64{100, 50}, nil, 50, true},
		{[]int64{100, 500}, nil, 200, false},
		{[]int64{100}, []int64{90}, 10, false},
		{[]int64{100, 50}, []int64{100, 50, 70}, 1, true},
	} {
		if err := onHistory(c.home, c.backup, c.height); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
		var list []rollback
		for _, at := range c.backup {
			list = append(list, rollback{At: at})
		}
		inc := after(g.Incarnation(), list)
		_, at, ok := takenBack(inc)
		if !ok || heights(at) != heights(c.backup) || !g.OfChain(inc) || (Genesis{ChainID: "d"}).OfChain(inc) {
			t.Errorf("%s: %v", inc, at)
		}
	}
	for _, bad := range []string{"", "ab", g.Incarnation() + "@", g.Incarnation() + "@x", g.Incarnation() + "@-1", g.Incarnation() + "@0"} {
		if g.OfChain(bad) {
			t.Errorf("%q is of the chain", bad)
		}
	}
}

func FuzzTakenBack(f *testing.F) {
	f.Add("ab@12@9")
	f.Add("@")
	f.Fuzz(func(t *testing.T, s string) {
		g, at, ok := takenBack(s)
		var list []rollback
		for _, h := range at {
			list = append(list, rollback{At: h})
		}
		if back, h2, ok2 := takenBack(after(g, list)); ok && (!ok2 || back != g || heights(h2) != heights(at)) {
			t.Fatalf("%q: %q %v", s, g, at)
		}
	})
}

// A list that cannot be read says nothing of the history: nothing is done then.
func TestAListOfRollbacksMustBeReadable(t *testing.T) {
	home := restoreHome(t)
	for _, bad := range []string{"{", `{"min_reader":9}`} {
		put(t, home, map[string]string{".eddy/rollbacks.json": bad})
		if _, err := readRollbacks(home); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %v", bad, err)
		}
		if err := replicaOf(t, home).Replaced(t.Context(), observer.Replaced{Before: "before-1"}); err == nil {
			t.Errorf("%s: it was written over", bad)
		}
	}
}

// statusAt answers as a node of that chain does, with what height says.
func statusAt(t testing.TB, chain string, height func() int64) string {
	t.Helper()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b, err := cmtjson.Marshal(coretypes.ResultStatus{
			NodeInfo:      p2p.DefaultNodeInfo{Network: chain},
			SyncInfo:      coretypes.SyncInfo{LatestBlockHeight: height()},
			ValidatorInfo: coretypes.ValidatorInfo{PubKey: ed25519.GenPrivKey().PubKey()},
		})
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":0,"result":%s}`, b)
	}))
	t.Cleanup(web.Close)
	return web.URL
}

func TestAChainIsWatchedUntilItMoves(t *testing.T) {
	const chain = "c"
	n := int64(90)
	witnesses := []string{"http://127.0.0.1:1", statusAt(t, "other", func() int64 { return 900 }), statusAt(t, chain, func() int64 { n++; return n })}
	for _, c := range []struct {
		to   int64
		sign string
		want bool
	}{{50, "200", true}, {150, "200", false}} {
		home := restoreHome(t)
		put(t, home, map[string]string{"data/priv_validator_state.json": `{"height":"` + c.sign + `","round":0,"step":3}`})
		r := replicaOf(t, home)
		r.o.Witnesses, r.patience = witnesses, 60*time.Millisecond
		n = 90
		g, err := r.back(t.Context(), c.to, chain, nodeStatus{}, false)
		must(t, err)
		if err := g.isRestore(); (err == nil) != c.want || len(g.seen) != 1 || !g.seen[0].grew {
			t.Errorf("to %d: %v, %+v", c.to, err, g)
		}
	}
}

// still is a node that is down, and stays.
type still struct{ control.Control }

func (still) Halt(context.Context, control.Request) error { return nil }
func (still) String() string                              { return "still" }

var errKilled = errors.New("killed")

// killer lets so many effects happen, and then none.
type killer struct{ left int }

func (k *killer) Do(e fsx.Effect, do func() error) error {
	if k.left--; k.left >= 0 {
		return do()
	}
	if k.left == -1 && e.Half != nil {
		return errors.Join(errKilled, e.Half())
	}
	return errKilled
}

// world is a home whose data are exchanged by processes that die.
type world struct {
	t       *rapid.T
	home    string
	old     bool // Loom's layout, with key and state in one file
	workdir job.Workdir
	swaps   int
}

func (w *world) replica(fsys fsx.FS) *Replica {
	r, err := New(Options{Home: w.home, RPC: "http://127.0.0.1:1", Control: still{}, FS: fsys})
	must2(w.t, err)
	return r
}

func must2(t *rapid.T, errs ...error) {
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (w *world) write(name, text string) {
	file := filepath.Join(w.home, name)
	must2(w.t, os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600))
}

func (w *world) below(name string) string {
	if w.old {
		return "chaindata/" + name
	}
	return name
}

func (w *world) setState(s SignStatus) {
	if w.old {
		w.write("chaindata/config/priv_validator.json", fmt.Sprintf(`{"address":"A","last_height":"%d","last_round":%d,"last_step":%d,"priv_key":{"value":"topsecret"}}`, s.Height, s.Round, s.Step))
		return
	}
	w.write("data/priv_validator_state.json", fmt.Sprintf(`{"height":"%d","round":%d,"step":%d}`, s.Height, s.Round, s.Step))
}

func (w *world) state() SignStatus {
	s, err := SignState(w.home)
	must2(w.t, err)
	return SignStatus{Height: s.Height, Round: s.Round, Step: s.Step}
}

func anyState(t *rapid.T, label string) SignStatus {
	return SignStatus{Height: int64(rapid.IntRange(0, 9).Draw(t, label+" height")), Round: int32(rapid.IntRange(0, 2).Draw(t, label+" round")), Step: int8(rapid.IntRange(0, 3).Draw(t, label+" step"))}
}

// begin is an exchange up to the point at which it goes forward.
func (w *world) begin(fsys fsx.FS, from string, what observer.Replaced) error {
	r := w.replica(fsys)
	words, err := json.Marshal(what)
	must2(w.t, err)
	w.swaps++
	s := &snapshot.Swap{FS: fsys, ID: fmt.Sprintf("2026-%03d", w.swaps), From: from, What: "test", NoStart: true, Roots: r.layout.Roots, Words: words}
	if err := s.Begin(); err != nil {
		return err
	}
	cover, err := r.Cover(w.t.Context())
	if err != nil {
		return err
	}
	return s.Plan(cover)
}

// finish is whoever comes next.
func (w *world) finish(fsys fsx.FS) error {
	r := w.replica(fsys)
	w.workdir.FS = fsys
	_, err := job.FinishSwap(w.t.Context(), r, r.layout.Roots, w.workdir)
	return err
}

// A sign state never goes down: whatever copies lie about, whatever dies, in whatever
// order restores, undos and rollbacks come. Only a rollback that was typed lowers it,
// to the height typed, and the undo of one brings it back.
func TestSignStatesNeverGoDown(t *testing.T) {
	base, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	if err != nil {
		base = t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(base)) })
	lowered, undone, died := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "w-")
		must2(rt, err)
		defer os.RemoveAll(dir)
		w := &world{t: rt, home: filepath.Join(dir, "home"), old: rapid.Bool().Draw(rt, "old"), workdir: job.Workdir{Dir: filepath.Join(dir, "work")}}
		must2(rt, os.MkdirAll(w.workdir.Dir, 0o700))
		w.write(w.below("config/config.toml"), "")
		w.write(w.below("data/app.db/CURRENT"), "there")
		floor := anyState(rt, "first")
		w.setState(floor)
		saved := map[string]SignStatus{} // by the directory that an undo takes
		for range rapid.IntRange(1, 3).Draw(rt, "exchanges") {
			var what observer.Replaced
			from := ""
			before := fmt.Sprintf("before-2026-%03d", w.swaps+1)
			kept, err := job.Kept([]snapshot.Root{{Path: w.home}})
			must2(rt, err)
			kind := rapid.SampledFrom([]string{"restore", "rollback", "undo"}).Draw(rt, "kind")
			if kind == "undo" && len(kept) == 0 {
				kind = "restore"
			}
			least, carried := floor, SignStatus{}
			switch kind {
			case "undo":
				from = kept[len(kept)-1]
				undone++
			default:
				from = fmt.Sprintf("restore-%d", w.swaps)
				w.write(".eddy/"+from+"/"+w.below("data/app.db/CURRENT"), "new")
				what.Incarnation = after("ab", nil)
				for i := range rapid.IntRange(0, 2).Draw(rt, "copies") { // an archive that somebody made by hand
					s := anyState(rt, "copy")
					if carried.less(s) {
						carried = s
					}
					w.write(fmt.Sprintf(".eddy/%s/%s/priv_validator_state.json", from, []string{w.below("data"), "."}[i]), fmt.Sprintf(`{"height":"%d","round":%d,"step":%d}`, s.Height, s.Round, s.Step))
				}
				if kind == "rollback" {
					at := rapid.IntRange(1, 9).Draw(rt, "at")
					what.Rollback = &observer.Rollback{At: uint64(at), Lost: 9}
					if to := floorAt(int64(at)); to.less(least) {
						least = to
						lowered++
					}
				}
			}
			fsys := fsx.FS{Effects: &killer{left: rapid.IntRange(0, 60).Draw(rt, "killed after")}}
			err = w.begin(fsys, from, what)
			for n := 0; ; n++ {
				if now := w.state(); now.less(least) {
					rt.Fatalf("%s: the state is %+v, it was %+v (may be %+v)", kind, now, floor, least)
				}
				if err != nil {
					died++
					fsys = fsx.FS{}
					if n < 2 {
						fsys.Effects = &killer{left: rapid.IntRange(0, 60).Draw(rt, "killed again after")}
					}
				} else if n > 0 {
					break
				}
				if err = w.finish(fsys); err != nil && n > 2 {
					rt.Fatal(err)
				}
			}
			now := w.state()
			_, gone := os.Stat(filepath.Join(w.home, ".eddy", before))
			forward := gone == nil
			if kind == "rollback" && forward {
				saved[before] = floor
				if floorAt(int64(what.Rollback.At)).less(now) {
					rt.Fatalf("the rollback to %d left the state at %+v", what.Rollback.At, now)
				}
			} else if now.less(floor) {
				rt.Fatalf("%s: the state went down from %+v to %+v", kind, floor, now)
			} else if kind == "restore" && forward && now.less(carried) {
				rt.Fatalf("the state is %+v, what came had %+v", now, carried)
			}
			if kind == "undo" && forward && now.less(saved[from]) {
				rt.Fatalf("the undo of a rollback left the state at %+v, it was %+v before", now, saved[from])
			}
			list, err := readRollbacks(w.home)
			must2(rt, err)
			for _, k := range list {
				if _, known := saved[k.Before]; !known || k.Before == from && forward {
					rt.Fatalf("%s of %s: the list of rollbacks is %+v", kind, from, list)
				}
			}
			if kind == "rollback" && forward && (len(list) == 0 || list[len(list)-1].Before != before) {
				rt.Fatalf("the rollback is not in the list: %+v", list)
			}
			if w.old {
				if b, err := os.ReadFile(filepath.Join(w.home, "chaindata/config/priv_validator.json")); err != nil || !strings.Contains(string(b), "topsecret") {
					rt.Fatalf("the key is gone: %v", err)
				}
			}
			// The node signs on.
			floor = now
			if rapid.Bool().Draw(rt, "signs") && now.Height < 20 {
				floor = SignStatus{Height: now.Height + 1, Step: 3}
				w.setState(floor)
			}
		}
	})
	if lowered == 0 || undone == 0 || died == 0 {
		t.Errorf("lowered %d, undone %d, died %d: the test does not reach what it is about", lowered, undone, died)
	}
	t.Logf("lowered %d, undone %d, died %d", lowered, undone, died)
}
