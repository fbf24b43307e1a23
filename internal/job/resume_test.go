package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// still is a replica whose files do not change, at a height that grows with every
// hold.
type still struct {
	home   string
	height uint64
	holds  int
	dead   bool // it answers nobody
}

func (r *still) Describe(context.Context) (observer.State, error) {
	if r.dead {
		return observer.State{}, observer.ErrNotFit
	}
	return observer.State{System: "cometbft", Cluster: "c-1", Node: observer.Node{ID: "n"}, Position: r.position(), Peers: 2}, nil
}

func (r *still) position() observer.Position {
	return observer.Position{Kind: "cometbft", Incarnation: "g", Index: r.height, Time: time.Unix(1, 0)}
}

func (r *still) Roots(context.Context) ([]snapshot.Root, error) {
	return []snapshot.Root{{Name: "home", Path: r.home}}, nil
}

func (r *still) Capture(ctx context.Context, st *snapshot.Stage) error {
	names, err := os.ReadDir(r.home)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.IsDir() {
			continue
		}
		if err := st.Link(ctx, "home", n.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (r *still) Locate(context.Context, *snapshot.Stage, observer.State) (observer.Position, error) {
	return r.position(), nil
}
func (r *still) Gate(context.Context, observer.State) error     { return nil }
func (r *still) Prepare(context.Context, *snapshot.Stage) error { return nil }
func (r *still) Rejoined(context.Context, observer.State) error { return nil }
func (r *still) Recover(context.Context) (bool, error)          { return false, nil }
func (r *still) Facts(context.Context) (Facts, error)           { return Facts{}, nil }
func (r *still) Hold(context.Context, *snapshot.Stage) (func(context.Context) error, error) {
	r.holds++
	r.height++
	return func(context.Context) error { return nil }, nil
}

// breaking is a store whose uploads break off when they have taken so many pieces
// and stored so many bytes.
type breaking struct {
	uploader.Store
	after  int // pieces; negative: never
	stored int64
	err    error
	each   func(piece int) // nil: nothing
	onPut  func(key string) error
	lost   string      // the end of a key: it is written once, and the answer is lost
	gone   atomic.Bool // that answer
}

func (s *breaking) PutSmall(ctx context.Context, key string, body []byte, contentType string, c uploader.Condition) (uploader.Object, error) {
	o, err := s.Store.PutSmall(ctx, key, body, contentType, c)
	if err == nil && s.lost != "" && strings.HasSuffix(key, s.lost) && !s.gone.Swap(true) {
		return uploader.Object{}, s.err
	}
	return o, err
}

func (s *breaking) Put(ctx context.Context, r uploader.PutRequest) (uploader.Object, error) {
	if s.onPut != nil {
		if err := s.onPut(r.Key); err != nil {
			return uploader.Object{}, err
		}
	}
	pieces, moved := r.Pieces, r.Moved
	var sent atomic.Int64
	r.Moved = func(m uploader.Moved) { sent.Store(m.Kept + m.Sent); moved(m) }
	r.Pieces = func(known iter.Seq2[uploader.Sent, error]) iter.Seq2[uploader.Piece, error] {
		return func(yield func(uploader.Piece, error) bool) {
			i := 0
			for p, err := range pieces(known) {
				if s.each != nil {
					s.each(i)
				}
				i++
				if s.after == 0 {
					for sent.Load() < s.stored {
						time.Sleep(time.Millisecond)
					}
					yield(uploader.Piece{}, s.err)
					return
				}
				s.after--
				if !yield(p, err) {
					return
				}
			}
		}
	}
	return s.Store.Put(ctx, r)
}

// told gathers what was emitted.
type told struct{ lines []string }

func (s *told) Emit(e ui.Event) {
	if _, ok := e.(ui.Progress); !ok {
		s.lines = append(s.lines, e.Line())
	}
}

func (s *told) has(text string) bool {
	return slices.ContainsFunc(s.lines, func(l string) bool { return strings.Contains(l, text) })
}

type bench struct {
	t       *testing.T
	replica *still
	store   *breaking
	workdir Workdir
	catalog *uploader.Catalog
	told    *told
	now     time.Time
	size    int   // of a file, where all have one
	unit    int64 // see benchUnit
}

// fastDir is a directory in memory where that can be had: these tests write much,
// and sync it often.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchOf(t, benchUnit)
}

// newBenchOf makes a bench whose files, parts and volumes are so much larger or
// smaller.
func newBenchOf(t *testing.T, unit int64) *bench {
	t.Helper()
	home := fastDir(t)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 7 {
		b := make([]byte, 3*unit)
		for j := 0; j < len(b); j += 8 {
			binary.LittleEndian.PutUint64(b[j:], r.Uint64())
		}
		if err := os.WriteFile(filepath.Join(home, fmt.Sprintf("%02d.ldb", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := uploader.Open(t.Context(), uploader.Config{URL: "file://" + fastDir(t), PartSize: 8 * unit})
	if err != nil {
		t.Fatal(err)
	}
	store := &breaking{Store: s, after: -1}
	cat := uploader.NewCatalog(store, "c")
	return &bench{
		t: t, replica: &still{home: home, height: 10}, store: store, workdir: Workdir{Dir: fastDir(t)}, catalog: cat,
		told: &told{}, now: time.Now(), unit: unit,
	}
}

func (x *bench) backup(change func(*Backup)) (Summary, error) {
	b := &Backup{
		Replica: x.replica, Store: x.store, Catalog: x.catalog, Workdir: x.workdir, Cluster: "c", Label: "auto", Version: "v1",
		VolumeSize: 9 * x.unit, Events: x.told, Reason: func(error) string { return ReasonOther }, Now: func() time.Time { return x.now },
	}
	if change != nil {
		change(b)
	}
	return b.Run(x.t.Context())
}

func (x *bench) restored(id string) {
	x.t.Helper()
	r := &Restore{
		Store: x.store, Catalog: x.catalog, Selector: id, Into: filepath.Join(fastDir(x.t), "into"), Events: x.told, Now: time.Now,
	}
	if _, err := r.Run(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
	for i := range 7 {
		name := fmt.Sprintf("%02d.ldb", i)
		want, err := os.ReadFile(filepath.Join(x.replica.home, name))
		if err != nil {
			x.t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(r.Into, name)); err != nil || !bytes.Equal(got, want) {
			x.t.Errorf("%s was restored otherwise, %v", name, err)
		}
	}
}

// leavings are what a finished run must not leave.
func (x *bench) leavings() {
	x.t.Helper()
	names, err := filepath.Glob(filepath.Join(x.workdir.Dir, "*"))
	if err != nil {
		x.t.Fatal(err)
	}
	for _, n := range names {
		if base := filepath.Base(n); base != "last.json" && base != "store.json" && !strings.HasSuffix(base, ".lock") {
			x.t.Errorf("left in the workdir: %s", base)
		}
	}
	stages, err := os.ReadDir(filepath.Join(x.replica.home, snapshot.StageDir))
	if len(stages) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		x.t.Errorf("stages left: %v, %v", stages, err)
	}
}

// interrupt makes a run that breaks off in its second volume.
func (x *bench) interrupt() (id string) {
	x.t.Helper()
	x.store.after, x.store.stored, x.store.err = 8, 8*x.unit, errors.New("the line is dead")
	sum, err := x.backup(nil)
	if !errors.Is(err, x.store.err) || sum.ID == "" {
		x.t.Fatalf("%+v, %v", sum, err)
	}
	x.store.after = -1
	u, err := x.workdir.Unfinished()
	if err != nil || u == nil || u.ID != sum.ID || u.Stored != 1 || u.Volumes != 3 || u.Position != 11 {
		x.t.Fatalf("unfinished: %+v, %v", u, err)
	}
	if !x.told.has("is kept") {
		x.t.Errorf("nobody was told: %q", x.told.lines)
	}
	return sum.ID
}

// A backup whose upload broke off is ended by the next run: without a hold, even
// without a node that answers, and without what was sent being read or sent again.
func TestUploadIsGoneOnWith(t *testing.T) {
	x := newBench(t)
	id := x.interrupt()
	all, err := x.catalog.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Status != uploader.StatusError {
		t.Fatalf("%+v, %v", all, err)
	}
	x.replica.dead = true
	sum, err := x.backup(nil)
	if err != nil || sum.Outcome != "ready" || !sum.Resumed || sum.ID != id || sum.Position != 11 || x.replica.holds != 1 {
		t.Fatalf("%+v after %d holds, %v", sum, x.replica.holds, err)
	}
	b, err := x.catalog.Select(t.Context(), "latest")
	if err != nil || b.ID != id || b.Status != uploader.StatusReady {
		t.Fatalf("latest is %+v, %v", b, err)
	}
	m := b.Manifest
	if len(m.Runs) != 2 || m.Sizes.Source != 21*benchUnit || m.Sizes.Read != m.Runs[0].Read+m.Runs[1].Read ||
		m.Sizes.Sent != m.Sizes.Stored || m.Runs[0].Sent < 16*benchUnit || m.Runs[1].Read > (21+3)*benchUnit-m.Runs[0].Sent {
		t.Errorf("runs %+v, sizes %+v", m.Runs, m.Sizes)
	}
	if sum.ReadBytes != m.Runs[1].Read || sum.SentBytes != m.Runs[1].Sent || !strings.Contains(sum.Line(), "an earlier run had begun it") {
		t.Errorf("%+v", sum)
	}
	x.restored(id)
	x.leavings()
	if got, err := x.catalog.List(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// A commit that broke off is ended by the next run, whatever of it was written,
// also when a clock has moved meanwhile: the manifest must stay what it was.
func TestCommitIsEnded(t *testing.T) {
	for _, lost := range []string{"SHA256SUMS.zst", "manifest.json"} {
		t.Run(lost, func(t *testing.T) {
			x := newBench(t)
			x.store.lost, x.store.err = lost, errors.New("the line is dead")
			first, err := x.backup(nil)
			if !errors.Is(err, x.store.err) {
				t.Fatal(err)
			}
			x.now = x.now.Add(time.Hour)
			sum, err := x.backup(nil)
			if err != nil || sum.Outcome != "ready" || sum.ID != first.ID || x.replica.holds != 1 || lost == "manifest.json" && sum.SentBytes+sum.ReadBytes > 0 {
				t.Fatalf("%+v after %d holds, %v", sum, x.replica.holds, err)
			}
			x.restored(first.ID)
			x.leavings()
		})
	}
}

// With another label the operator wants a backup of now: he gets both.
func TestUploadIsEndedBeforeAnother(t *testing.T) {
	x := newBench(t)
	id := x.interrupt()
	x.replica.height = 20
	sum, err := x.backup(func(b *Backup) { b.Label = "before-v2" })
	if err != nil || sum.ID == id || sum.Resumed || sum.Position != 21 || x.replica.holds != 2 {
		t.Fatalf("%+v after %d holds, %v", sum, x.replica.holds, err)
	}
	all, err := x.catalog.List(t.Context())
	if err != nil || len(all) != 2 || all[0].Status != uploader.StatusReady || all[1].Status != uploader.StatusReady {
		t.Fatalf("%+v, %v", all, err)
	}
	x.restored(id)
	x.leavings()
}

// What cannot be gone on with is removed, said, and replaced by a fresh backup.
func TestUploadThatIsGivenUp(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*bench, string)
		run    func(*Backup)
		said   string
	}{
		"asked for": {func(*bench, string) {}, func(b *Backup) { b.Fresh = true }, "a fresh backup was asked for"},
		"too old":   {func(x *bench, _ string) { x.now = x.now.Add(attemptKept + time.Hour) }, nil, "nothing was stored since"},
		"no stage": {func(x *bench, id string) {
			if err := os.RemoveAll(filepath.Join(x.replica.home, snapshot.StageDir, id)); err != nil {
				x.t.Fatal(err)
			}
		}, nil, "is not sealed"},
		"a volume is gone": {func(x *bench, id string) {
			if err := x.store.Delete(x.t.Context(), x.catalog.ObjectKey(id, uploader.VolumeName(0))); err != nil {
				x.t.Fatal(err)
			}
		}, nil, "no longer in the store"},
		"another cluster": {func(x *bench, _ string) {
			a, err := x.workdir.attempt()
			if err != nil {
				x.t.Fatal(err)
			}
			a.Manifest.Cluster = "d"
			if err := x.workdir.keep(a); err != nil {
				x.t.Fatal(err)
			}
		}, nil, "it is of d"},
		"the stage changed": {func(x *bench, id string) {
			// The last file, in place: of the same size and time, as a bad disk changes it.
			p := filepath.Join(x.replica.home, snapshot.StageDir, id, "06.ldb")
			st, err := os.Stat(p)
			if err != nil {
				x.t.Fatal(err)
			}
			if err := errors.Join(os.Truncate(p, st.Size()-1), os.Chtimes(p, st.ModTime(), st.ModTime())); err != nil {
				x.t.Fatal(err)
			}
		}, nil, ""},
	} {
		t.Run(what, func(t *testing.T) {
			x := newBench(t)
			id := x.interrupt()
			c.change(x, id)
			sum, err := x.backup(c.run)
			if c.said == "" { // found out while it is read: this run fails, the next is fresh
				if !errors.Is(err, ErrStage) {
					t.Fatalf("%+v, %v", sum, err)
				}
				sum, err = x.backup(nil)
			} else if !errors.Is(err, ErrWarnings) || !x.told.has(c.said) {
				t.Fatalf("%+v, %v, told %q", sum, err, x.told.lines)
			}
			if sum.Outcome != "ready" || sum.ID == id || sum.Resumed || x.replica.holds != 2 {
				t.Fatalf("%+v after %d holds, %v", sum, x.replica.holds, err)
			}
			x.leavings()
		})
	}
}

// A newer eddy's attempt is not ours to remove.
func TestUploadOfANewerEddy(t *testing.T) {
	x := newBench(t)
	if err := os.WriteFile(x.workdir.path(attemptName), []byte(`{"format":9,"min_reader":9}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := x.backup(nil); err == nil || !strings.Contains(err.Error(), "newer eddy") || x.replica.holds != 0 {
		t.Errorf("%v after %d holds", err, x.replica.holds)
	}
}

func FuzzAttempt(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"store":"file:///x","roots":[{"name":"home","path":"/x"}],"manifest":{"id":"20261120T235500Z-auto-abcdef"}}`))
	f.Add([]byte(`{"roots":[{"path":"../.."}],"manifest":{"id":"../../etc"}}`))
	f.Add([]byte(`null`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		w := Workdir{Dir: dir}
		if err := os.WriteFile(w.path(attemptName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := w.attempt()
		if err != nil || a == nil {
			return
		}
		if _, err := snapshot.OpenStage(w.FS, a.Manifest.ID, a.Roots); err == nil {
			t.Errorf("a stage was opened by %s", b)
		}
	})
}
