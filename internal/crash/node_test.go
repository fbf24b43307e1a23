//go:build crash

package crash

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
)

// content is the files of a home that belong into a backup, by name, and their
// hashes.
type content map[string]uint64

var hashing = maphash.MakeSeed()

// node is a chain's node: files that change while it runs. What it writes itself
// is no effect of eddy's, and survives every crash.
type node struct {
	home    string
	running bool
	height  uint64
	hold    *hold              // of a living process
	at      map[uint64]content // what the home held when the node was last stopped there
	chance  *rand.Rand
	next    int    // number of the next table
	signed  uint64 // the highest height that it ever signed
	from    uint64 // height of the data with which it was last started
	moniker string // config.toml that goes with its data; "": nobody looks
	broken  func(invariant, format string, args ...any)
}

const chain = "sim"

// secret stands in every file that must not get into an archive.
const secret = "canary: this is key material"

func newNode(home string, broken func(string, string, ...any)) *node {
	n := &node{home: home, broken: broken, running: true, height: 100, at: map[uint64]content{}, chance: rand.New(rand.NewPCG(1, 2))}
	for _, dir := range []string{"config", "data/app.db", "data/blockstore.db", "data/state.db"} {
		must(os.MkdirAll(filepath.Join(home, dir), 0o700))
	}
	n.write("config/priv_validator_key.json", []byte(secret))
	n.write("config/node_key.json", []byte(secret))
	n.write("config/config.toml", []byte("moniker = \"sim\"\n"))
	for _, db := range []string{"app.db", "blockstore.db", "state.db"} {
		for range 4 {
			n.table(db, 2<<10+n.chance.IntN(6<<10))
		}
		n.write("data/"+db+"/CURRENT", []byte("MANIFEST-000001\n"))
		n.write("data/"+db+"/LOG", []byte("opened\n"))
	}
	n.table("app.db", 260<<10)
	n.table("blockstore.db", 100<<10)
	n.live()
	return n
}

func (n *node) write(name string, b []byte) {
	must(os.WriteFile(filepath.Join(n.home, name), b, 0o600))
}

// table writes a file that is never written again.
func (n *node) table(db string, size int) {
	b := make([]byte, size)
	for i := 0; i < len(b); i += 8 {
		copy(b[i:], binary.LittleEndian.AppendUint64(nil, n.chance.Uint64()))
	}
	n.next++
	n.write(fmt.Sprintf("data/%s/%06d.ldb", db, n.next), b)
}

// live is what a running node does to its files.
func (n *node) live() {
	n.height++
	for _, db := range []string{"app.db", "blockstore.db", "state.db"} {
		dir := filepath.Join(n.home, "data", db)
		old, err := filepath.Glob(filepath.Join(dir, "*.ldb"))
		must(err)
		for _, name := range old { // a backup of half the size would be suspected
			if st, err := os.Stat(name); err == nil && st.Size() < 64<<10 {
				must(os.Remove(name))
				break
			}
		}
		n.table(db, 4<<10+n.chance.IntN(10<<10))
		n.write("data/"+db+"/MANIFEST-000001", fmt.Appendf(nil, "%s at %d with %d", db, n.height, n.next))
		n.write("data/"+db+"/000003.log", fmt.Appendf(nil, "%s %d", strings.Repeat("entry ", 200), n.height))
	}
	n.write("data/height", fmt.Append(nil, n.height))
	n.signed = max(n.signed, n.height)
	n.write(signFile, signState(n.signed))
}

func (n *node) halt() {
	n.running = false
	n.at[n.height] = read(filepath.Join(n.home, "data"), "data", filepath.Base(signFile))
}

// run starts the node, and looks at what it is started with.
func (n *node) run() {
	if n.running {
		return
	}
	if b, err := os.ReadFile(snapshot.SwapFile(n.home)); err == nil && !strings.Contains(string(b), `"`+snapshot.SwapStopping+`"`) {
		n.broken("I8", "the node was started in the middle of a swap")
	}
	if at := signedAt(filepath.Join(n.home, signFile)); at < n.signed {
		n.broken("I5", "the node was started with a sign state at %d, it had signed at %d", at, n.signed)
	}
	got := read(filepath.Join(n.home, "data"), "data", filepath.Base(signFile))
	n.from = 0
	for at, want := range n.at {
		if differ(got, want) == nil {
			n.from = at
		}
	}
	if n.from == 0 {
		n.broken("I8", "the node was started with data that are neither what it had nor a backup")
	}
	if n.moniker != "" {
		if n.from < n.height { // a backup's
			n.moniker = bundled
		}
		if b, err := os.ReadFile(filepath.Join(n.home, "config/config.toml")); err != nil || string(b) != n.moniker {
			n.broken("I8", "the node was started at %d of %d with the other configuration: %s %v", n.from, n.height, b, err)
		}
	}
	n.running, n.height = true, n.from
	n.live()
}

const signFile = "data/priv_validator_state.json"

func signState(height uint64) []byte {
	return fmt.Appendf(nil, `{"height":"%d","round":0,"step":3}`, height)
}

// signedAt is the height of a sign state, 0 where there is none.
func signedAt(file string) (height uint64) {
	b, err := os.ReadFile(file)
	if err == nil {
		_, _ = fmt.Sscanf(string(b), `{"height":"%d"`, &height)
	}
	return height
}

func (n *node) held() bool { return n.hold != nil && !n.running }

// read hashes the files below dir; what is called like one of leave is left out.
func read(dir, prefix string, leave ...string) content {
	c := content{}
	must(filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		for _, l := range leave {
			if e.Name() == l {
				return nil
			}
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		c[filepath.Join(prefix, rel)] = maphash.Bytes(hashing, b)
		return err
	}))
	return c
}

// replica is the node as a process of eddy sees it.
type replica struct {
	w  *world
	im *image
}

// held is a replica that is held still while it is captured.
type held interface {
	job.Replica
	observer.Holder
}

var (
	_ held            = (*replica)(nil)
	_ job.Replaceable = (*replica)(nil)
)

func (r *replica) state() observer.State {
	n := r.w.node
	p := observer.Position{Kind: "cometbft", Incarnation: "00", Index: n.height, Time: time.Now(), Consistency: "live"}
	return observer.State{
		Cluster: chain, System: "cometbft", Version: "1", Node: observer.Node{ID: "ab", Role: "observer"}, Position: p, Peers: 3, Taken: time.Now(),
	}
}

func (r *replica) Describe(context.Context) (observer.State, error) {
	if !r.w.node.running {
		return observer.State{}, fmt.Errorf("%w: it does not answer", observer.ErrNotFit)
	}
	return r.state(), nil
}

func (r *replica) Gate(_ context.Context, _ observer.State) error { return nil }

func (r *replica) Roots(context.Context) ([]snapshot.Root, error) {
	return []snapshot.Root{{Path: r.w.home}}, nil
}

func (r *replica) Facts(context.Context) (job.Facts, error) {
	return job.Facts{Engines: []string{"goleveldb"}}, nil
}

// each calls f for every name that belongs into a backup.
func (r *replica) each(f func(rel string, e fs.DirEntry) error) error {
	return filepath.WalkDir(filepath.Join(r.w.home, "data"), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "priv_validator_state.json" {
			return err
		}
		rel, err := filepath.Rel(r.w.home, p)
		if err != nil {
			return err
		}
		return f(rel, e)
	})
}

func (r *replica) Prepare(_ context.Context, st *snapshot.Stage) error {
	return r.each(func(rel string, e fs.DirEntry) error {
		if filepath.Ext(rel) != ".ldb" {
			return nil
		}
		return st.Prelink("", rel)
	})
}

func (r *replica) Capture(ctx context.Context, st *snapshot.Stage) error {
	return r.each(func(rel string, e fs.DirEntry) error {
		switch {
		case e.IsDir():
			return st.Dir("", rel)
		case filepath.Ext(rel) == ".ldb":
			return st.Link(ctx, "", rel)
		default:
			return st.Copy(ctx, "", rel)
		}
	})
}

func (r *replica) Locate(_ context.Context, st *snapshot.Stage, _ observer.State) (observer.Position, error) {
	p := r.state().Position
	for e, err := range st.Entries() {
		if err != nil {
			return p, err
		}
		if e.Name != "data/height" {
			continue
		}
		f, err := st.Open(e)
		if err != nil {
			return p, err
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err == nil {
			_, err = fmt.Sscan(string(b), &p.Index)
		}
		p.Consistency = "stopped"
		return p, err
	}
	return p, errors.New("the dump has no height")
}

func (r *replica) Rejoined(_ context.Context, before observer.State) error {
	if !r.w.node.running || r.w.node.height <= before.Position.Index {
		return errors.New("it does not follow")
	}
	return nil
}

// MayReplace implements job.Replaceable.
func (r *replica) MayReplace(context.Context, observer.Replacing) (there string, other, err error) {
	return "a home", nil, nil
}

// Later implements job.Replaceable.
func (r *replica) Later(context.Context) (uint64, error) { return r.w.node.height, nil }

// Replaced implements job.Replaceable: this chain is never taken back.
func (r *replica) Replaced(context.Context, observer.Replaced) error { return nil }

// CheckRestored implements job.Replaceable.
func (r *replica) CheckRestored(_ context.Context, want observer.Position, at func(string) string) error {
	b, err := os.ReadFile(at("data/height"))
	if err == nil && string(b) != fmt.Sprint(want.Index) {
		err = fmt.Errorf("it is at %q", b)
	}
	return err
}

// Halt implements job.Replaceable.
func (r *replica) Halt(context.Context) error {
	if !r.w.node.running {
		return nil
	}
	return r.im.do("node", "halt", nil, func() error { r.w.node.halt(); return nil })
}

// Start implements job.Replaceable.
func (r *replica) Start(context.Context) error {
	return r.im.do("node", "start", nil, func() error { r.w.node.run(); return nil })
}

// Cover implements job.Replaceable: all of data/ goes, the sign state with it.
func (r *replica) Cover(context.Context) (snapshot.Cover, error) {
	return func(_ snapshot.Root, rel string, _ bool) snapshot.Part {
		if rel == "data" || strings.HasPrefix(rel, "data/") {
			return snapshot.Replaced
		}
		return snapshot.Kept
	}, nil
}

// CarrySigns implements job.Replaceable.
func (r *replica) CarrySigns(_ context.Context, dirs []string) error {
	own := filepath.Join(r.w.home, signFile)
	highest := signedAt(own)
	for _, d := range dirs {
		highest = max(highest, signedAt(filepath.Join(d, signFile)))
	}
	if highest == signedAt(own) {
		return nil
	}
	return errors.Join(r.im.fs().SweepTemp(own), r.im.fs().WriteFileAtomic(own, signState(highest), 0o600))
}

// holdFile is the hold journal's, as package control calls it.
const holdFile = "hold.json"

// hold is a node that a process stopped.
type hold struct {
	im    *image
	guard *time.Timer
}

const (
	deadline = 10 * time.Minute // of a hold
	stopTime = 3 * time.Minute  // that the node takes: longer than a lease lasts
)

func (r *replica) Hold(_ context.Context, st *snapshot.Stage) (func(context.Context) error, error) {
	w := r.w
	rec := control.Record{
		Format: 1, MinReader: 1, Kind: "hold", Control: "exec", BootID: "boot", Started: time.Now(), Deadline: time.Now().Add(deadline),
		StopMS: 1000, Purpose: "backup", Stage: st.ID(), PID: 1,
	}
	b, err := json.Marshal(rec)
	must(err)
	file := filepath.Join(w.work, holdFile)
	if err := errors.Join(r.im.fs().SweepTemp(file), r.im.fs().WriteFileAtomic(file, b, 0o600)); err != nil {
		return nil, errors.Join(err, r.closeHold())
	}
	h := &hold{im: r.im}
	h.guard = time.AfterFunc(deadline, func() { w.guardActs() })
	w.node.hold = h
	err = r.im.do("node", "stop", nil, func() error { w.node.halt(); return nil })
	if !w.node.running {
		time.Sleep(stopTime)
	}
	release := func(context.Context) error {
		if err := r.im.do("node", "start", nil, func() error { w.node.run(); return nil }); err != nil && !w.node.running {
			return fmt.Errorf("%w: %w", observer.ErrDown, err) // the guard goes on trying
		}
		h.guard.Stop()
		w.node.hold = nil
		return r.closeHold()
	}
	if err != nil {
		return nil, errors.Join(err, release(nil))
	}
	return release, nil
}

// closeHold does as control's own does.
func (r *replica) closeHold() error {
	err := r.im.fs().Remove(filepath.Join(r.w.work, holdFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = r.im.fs().SyncDir(r.w.work)
	}
	return err
}

// Recover finishes what a dead restore left, then what a backup did, as control
// reads it.
func (r *replica) Recover(ctx context.Context) (bool, error) {
	roots, err := r.Roots(ctx)
	must(err)
	if did, err := job.FinishSwap(ctx, r, roots, r.w.workdir(r.im)); did != "" || err != nil {
		return did != "", err
	}
	rec, err := control.ReadHold(r.w.work)
	switch {
	case rec == nil && err == nil:
		return false, nil
	case err != nil && !errors.Is(err, control.ErrTorn):
		return false, err
	case rec.Purpose == "restore":
		return false, control.ErrRestoring
	}
	if err := r.im.do("node", "start", nil, func() error { r.w.node.run(); return nil }); err != nil && !r.w.node.running {
		return false, err
	}
	return true, r.closeHold()
}

// guardActs is the guard: a process of its own, for which no plan is made.
func (w *world) guardActs() {
	w.node.run()
	w.node.hold = nil
	if err := (fsx.FS{}).Remove(filepath.Join(w.work, holdFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err)
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
