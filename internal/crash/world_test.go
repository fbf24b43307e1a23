//go:build crash

package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/s3fake"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// What makes a small home many volumes of many parts, bytes.
const (
	partSize   = 40 << 10
	volumeSize = 150 << 10
)

// world is all that outlives a process: the disk, the bucket, the node.
type world struct {
	dir, home, work, into string
	server                *s3fake.Server
	node                  *node
	disk                  disk
	planted               planted

	ids     map[string]string // of backups, to names that are the same in every run
	temps   map[string]string
	found   []string // violations
	latest  uint64   // the furthest position that latest.json ever had
	good    map[string]uint64
	whole   bool // the last restore said that it was
	expired bool // retention may have deleted
	parts   int  // of a planted bug
	lax     bool // something was refused: what could not be removed may be left
	sound   map[string]bool
	keys    bundle.Identities // of the bundle that is restored with the data; nil: none is

	arrived map[uint64]bool // parts that an earlier process has sent, by place and content
	again   int64           // bytes of them that were sent again
	allowed int64           // bytes that may be: those in flight when processes died
}

// newWorld makes a machine with a node that was never backed up, and an empty
// bucket. dir is empty.
func newWorld(dir string, p planted) *world {
	w := &world{
		dir: dir, home: filepath.Join(dir, "home"), work: filepath.Join(dir, "work"), into: filepath.Join(dir, "into"),
		server: s3fake.New("bucket", s3fake.Quirks{SmallParts: true}), planted: p,
		ids: map[string]string{}, temps: map[string]string{}, good: map[string]uint64{}, sound: map[string]bool{}, arrived: map[uint64]bool{},
	}
	w.disk.trash = filepath.Join(dir, "trash")
	for _, d := range []string{w.home, w.work, w.disk.trash} {
		must(os.Mkdir(d, 0o700))
	}
	w.node = newNode(w.home, w.broken)
	return w
}

func (w *world) broken(invariant, format string, args ...any) {
	w.found = append(w.found, invariant+": "+fmt.Sprintf(format, args...))
}

var (
	idForm   = regexp.MustCompile(`\d{8}T\d{6}Z-[A-Za-z0-9_.]+-[0-9a-f]{6}`)
	tempForm = regexp.MustCompile(`(\.tmp-|sums-)\d+`)
)

// normal makes a name that is the same in every run.
func (w *world) normal(name string) string {
	if !strings.Contains(name, "-") {
		return name
	}
	name = idForm.ReplaceAllStringFunc(name, func(id string) string {
		if w.ids[id] == "" {
			w.ids[id] = fmt.Sprintf("id%d", len(w.ids)+1)
		}
		return w.ids[id]
	})
	return tempForm.ReplaceAllString(name, "${1}N")
}

// name is normal of a path.
func (w *world) name(path string) string {
	if rel, err := filepath.Rel(w.dir, path); err == nil && !strings.HasPrefix(rel, "..") {
		path = rel
	}
	return w.normal(path)
}

// ended is called when a process is no more.
func (w *world) ended(im *image) {
	if im.dead || im.stop.how == torn { // then one answer was lost
		w.allowed += int64(im.parallel()) * partSize
	}
	if im.dead && im.stop.how == power {
		must(w.disk.cut(func() bool { return true }))
	}
	h := w.node.hold
	if h == nil || h.im != im {
		return
	}
	h.guard.Stop()
	w.node.hold = nil
	if !im.dead { // it went without a release: its guard sees that
		w.guardActs()
	}
}

// part counts what is sent twice.
func (w *world) part(im *image, a *arrival) {
	if strings.Contains(a.object, "/probe/") {
		return
	}
	type part struct{ object, body string }
	key := maphash.Comparable(hashing, part{a.object, string(a.body)})
	if w.arrived[key] {
		w.again += int64(len(a.body))
	}
	w.arrived[key] = true
	im.sent += int64(len(a.body))
}

// latestMoved looks at every latest.json that is ever written.
func (w *world) latestMoved() {
	b, _ := w.server.Object(prefix + "latest.json")
	var p struct {
		Position struct{ Index uint64 }
	}
	if err := json.Unmarshal(b, &p); err != nil {
		w.broken("I3", "latest.json cannot be read: %v", err)
		return
	}
	if p.Position.Index < w.latest {
		w.broken("I3", "latest went back from %d to %d", w.latest, p.Position.Index)
	}
	w.latest = max(w.latest, p.Position.Index)
}

const prefix = "eddy/" + chain + "/"

type silent struct{}

func (silent) Emit(ui.Event) {}

// open is the store as a process sees it.
func (w *world) open(ctx context.Context, im *image) (uploader.Store, *uploader.Catalog) {
	s, err := uploader.Open(ctx, uploader.Config{
		URL: "s3://bucket/eddy", Region: "us-east-1", Endpoint: "http://store.invalid", PartSize: partSize, Concurrency: im.parallel(),
		FS: im.fs(), Transport: im, Slack: 5 * time.Second, GiveUp: 2 * time.Second,
	})
	must(err)
	if w.planted.store != nil {
		s = w.planted.store(w, s)
	}
	return s, uploader.NewCatalog(s, chain)
}

// parallel is how many parts are sent at once.
func (im *image) parallel() int {
	if im.chance != nil {
		return 3
	}
	return 1
}

// backup is `eddy backup`.
func (w *world) backup(ctx context.Context, im *image) error {
	store, catalog := w.open(ctx, im)
	var rep held = &replica{w: w, im: im}
	if w.planted.replica != nil {
		rep = w.planted.replica(w, im, rep)
	}
	b := &job.Backup{
		Replica: rep, Store: store, Catalog: catalog, Workdir: w.workdir(im), Cluster: chain, Label: "auto",
		Version: "v1", Host: "host", VolumeSize: volumeSize, WhenBusy: job.WhenBehind{Wait: busy}, Events: silent{}, Reason: func(error) string { return job.ReasonOther }, Now: time.Now,
	}
	_, err := b.Run(ctx)
	return done(err)
}

// restore is `eddy restore latest --into DIR`.
func (w *world) restore(ctx context.Context, im *image) error {
	if w.whole || w.finished() { // this run does so once more
		must(os.RemoveAll(w.into))
		w.whole = false
	}
	store, catalog := w.open(ctx, im)
	r := &job.Restore{Store: store, Catalog: catalog, Selector: "latest", Into: w.into, Keys: w.keysRestore(im), Events: silent{}, Now: time.Now, FS: im.fs()}
	_, err := r.Run(ctx)
	w.whole = err == nil
	return done(err)
}

func (w *world) workdir(im *image) job.Workdir { return job.Workdir{Dir: w.work, FS: im.fs()} }

// replace is `eddy restore latest`, in place.
func (w *world) replace(ctx context.Context, im *image) error {
	_, err := w.replacer(ctx, im).Run(ctx)
	return done(err)
}

// forget is `eddy restore --forget`.
func (w *world) forget(ctx context.Context, im *image) error {
	_, err := w.replacer(ctx, im).Forget(ctx)
	return err
}

func (w *world) replacer(ctx context.Context, im *image) *job.Replace {
	store, catalog := w.open(ctx, im)
	var rep job.Replaceable = &replica{w: w, im: im}
	if w.planted.replaceable != nil {
		rep = w.planted.replaceable(rep)
	}
	return &job.Replace{
		Restore: job.Restore{Store: store, Catalog: catalog, Selector: "latest", Keys: w.keysRestore(im), Events: silent{}, Now: time.Now, FS: im.fs()},
		Replica: rep, Workdir: w.workdir(im), Confirm: func(string, string) error { return nil },
	}
}

// expire is `eddy expire --apply --last 1`.
func (w *world) expire(ctx context.Context, im *image) error {
	_, catalog := w.open(ctx, im)
	x := job.Expire{
		Alone:  job.Alone{Catalog: catalog, Cluster: chain, Holder: "eddy expire", Wait: busy, Events: silent{}},
		Policy: uploader.Policy{Last: 1}, Now: time.Now(),
	}
	plan, err := x.Plan(ctx)
	if err != nil {
		return err
	}
	w.expired = true
	return x.Run(ctx, plan, nil)
}

// busy is how long another eddy is waited for: longer than the lease of a dead one.
const busy = 10 * time.Minute

// clean runs a verb that nothing disturbs.
func (w *world) clean(t *testing.T, verb func(context.Context, *image) error) (*image, error) {
	ctx, im := w.start(t.Context(), stop{})
	err := verb(ctx, im)
	im.exit()
	time.Sleep(time.Minute)
	return im, err
}

// scenario is a verb on a world of its own.
type scenario struct {
	name    string
	until   string // effects behind the first of this kind and object are those of another scenario
	prepare func(t *testing.T, w *world)
	verb    func(*world) func(context.Context, *image) error
	// check says whether the verb, run to its end after whatever happened, did its work.
	check func(w *world)
}

var scenarios = []scenario{
	{"first backup", "mkdir home/.eddy", func(*testing.T, *world) {}, backupVerb, (*world).backedUp},
	{"backup", "", backups(1), backupVerb, (*world).backedUp},
	{"restore", "", backups(1), func(w *world) func(context.Context, *image) error { return w.restore }, (*world).restored},
	{"restore in place", "", backups(1), func(w *world) func(context.Context, *image) error { return w.replace }, (*world).replaced},
	{"backup behind a restore", "request PutObject eddy/sim/lease.json", func(t *testing.T, w *world) {
		backups(1)(t, w)
		ctx, im := w.start(t.Context(), stop{"syncdir home/.eddy 4", before})
		if err := w.replace(ctx, im); err == nil {
			t.Fatal("the restore did not die")
		}
		im.exit()
	}, backupVerb, (*world).backedUp},
	{"restore with keys", "", bundledToo, func(w *world) func(context.Context, *image) error { return w.restore }, (*world).restored},
	{"restore in place with keys", "", bundledToo, func(w *world) func(context.Context, *image) error { return w.replace }, (*world).replacedWithKeys},
	{"expire", "", func(t *testing.T, w *world) {
		backups(3)(t, w)
		time.Sleep(100 * time.Hour)
	}, func(w *world) func(context.Context, *image) error { return w.expire }, (*world).onlyNewest},
}

var (
	probing sync.Once
	caps    []byte
)

// probed writes down what a probe of the bucket finds. It takes megabytes, so it is
// made once.
func (w *world) probed(t *testing.T) {
	file := filepath.Join(w.work, "store.json")
	probing.Do(func() {
		var found uploader.Caps
		if _, err := w.clean(t, func(ctx context.Context, im *image) (err error) {
			_, catalog := w.open(ctx, im)
			found, err = catalog.Probe(ctx)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		must(found.Save(fsx.FS{}, file))
		caps, _ = os.ReadFile(file)
	})
	must(os.WriteFile(file, caps, 0o600))
}

func backupVerb(w *world) func(context.Context, *image) error { return w.backup }

// backups makes a world with so many backups.
func backups(n int) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		w.probed(t)
		for range n {
			p := w.planted
			w.planted = planted{}
			if _, err := w.clean(t, w.backup); err != nil {
				t.Fatal(err)
			}
			w.planted = p
			w.node.live()
		}
		w.look()
		if len(w.found) > 0 || len(w.good) != n {
			t.Fatalf("%d good backups before anything happened: %q", len(w.good), w.found)
		}
	}
}

// play runs a scenario, disturbs it as s says, runs the verb again, and looks.
func (sc scenario) play(t *testing.T, w *world, s stop) *image {
	sc.prepare(t, w)
	im := sc.disturb(t, w, func(im *image) { im.stop = s })
	sc.finish(t, w, im)
	return im
}

func (sc scenario) disturb(t *testing.T, w *world, how func(*image)) *image {
	ctx, im := w.start(t.Context(), stop{})
	how(im)
	w.disk.on = w.disk.on || im.stop.how == power
	err := sc.verb(w)(ctx, im)
	im.exit()
	if im.stop.effect == "" && im.dieAt == 0 && err != nil {
		w.broken("I6", "undisturbed: %v", err)
	}
	w.look()
	w.lax = w.lax || im.stop.how == refused
	if err == nil && !im.dead && im.stop.how != refused {
		sc.check(w)
	}
	return im
}

// finish is what follows a disturbed run.
func (sc scenario) finish(t *testing.T, w *world, im *image) {
	w.look()
	if !im.dead {
		w.atRest(afterLife)
	}
	time.Sleep(time.Minute)
	if _, err := w.clean(t, sc.verb(w)); err != nil {
		w.broken("I6", "the next run: %v", err)
		return
	}
	w.look()
	w.atRest(afterNext)
	sc.check(w)
	if !w.lax && w.again > w.allowed {
		w.broken("I7", "%d bytes were sent again, %d were in flight", w.again, w.allowed)
	}
	if im.stop.how == after || im.stop.how == power {
		return // as with others
	}
	// What nobody wants any more is gone in the end.
	time.Sleep(20 * 24 * time.Hour)
	w.node.live()
	if _, err := w.clean(t, w.backup); err != nil {
		w.broken("I6", "the run after that: %v", err)
	}
	w.look()
	time.Sleep(100 * time.Hour)
	if _, err := w.clean(t, w.expire); err != nil {
		w.broken("I6", "expire: %v", err)
	}
	if _, err := w.clean(t, w.forget); err != nil {
		w.broken("I6", "forget: %v", err)
	}
	w.look()
	w.onlyNewest()
	w.swept()
}

// seeded disturbs a run by chance: several requests at once, in any order, a death
// anywhere, of the process or of the machine.
func (sc scenario) seeded(t *testing.T, w *world, seed uint64) *image {
	sc.prepare(t, w)
	chance := rand.New(rand.NewPCG(seed, 0))
	w.disk.on = true
	for range 1 + chance.IntN(2) {
		im := sc.disturb(t, w, func(im *image) { im.chance, im.dieAt = chance, 1+chance.IntN(300) })
		if im.dead {
			switch chance.IntN(3) {
			case 0: // the process alone: its guard sees that
				if r := w.holdJournal(); r && !w.node.running {
					w.guardActs()
				}
			case 1: // the guard as well
			default:
				must(w.disk.cut(func() bool { return chance.IntN(2) == 0 }))
			}
		}
		w.look()
		time.Sleep(time.Minute)
	}
	sc.finish(t, w, &image{dead: true})
	return nil
}

func (w *world) holdJournal() bool {
	_, err := os.Lstat(filepath.Join(w.work, holdFile))
	return err == nil
}

// sorted is for messages.
func sorted[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// done takes warnings for success.
func done(err error) error {
	if err == nil || strings.Contains(err.Error(), job.ErrWarnings.Error()) {
		return nil
	}
	return err
}
