package cometbft

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"go.etcd.io/bbolt"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/snapshot"
)

// backends are the engines of this build that link.
func backends() map[dbm.BackendType]Engine {
	m := map[dbm.BackendType]Engine{dbm.GoLevelDBBackend: GoLevelDB}
	if engine.CanOpen(Pebble) {
		m[dbm.PebbleDBBackend] = Pebble
	}
	return m
}

// load writes batches of a megabyte of random values until ctx has ended and at
// least so many were written. Keys of one prefix are written again and again, so that the engine compacts and removes files.
func load(ctx context.Context, db dbm.DB, prefix string, least int) error {
	value := make([]byte, 16<<10)
	rng := rand.NewChaCha8([32]byte([]byte((prefix + strings.Repeat(" ", 32))[:32])))
	for i := 0; ctx.Err() == nil || i < least; i++ {
		b := db.NewBatch()
		for k := range 64 {
			rng.Read(value)
			if err := b.Set(fmt.Appendf(nil, "%s-%03d-%d", prefix, i%24, k), value); err != nil {
				return err
			}
		}
		if err := errors.Join(b.Write(), b.Close()); err != nil {
			return err
		}
	}
	return nil
}

// sums hashes all files of a stage.
func sums(t testing.TB, st *snapshot.Stage) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	for e, err := range st.Entries() {
		must(t, err)
		if e.Type != snapshot.TypeFile {
			continue
		}
		f, err := st.Open(e)
		must(t, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		must(t, err, f.Close())
		out[e.Name] = [32]byte(h.Sum(nil))
	}
	return out
}

// TestStageStandsStillWhileTheNodeGoesOn is the promise of the sealed stage: a
// database is linked while it is written, held for a moment, and goes on; what
// was staged keeps every bit, and opens with every key.
func TestStageStandsStillWhileTheNodeGoesOn(t *testing.T) {
	for backend, engine := range backends() {
		t.Run(string(engine), func(t *testing.T) {
			home := t.TempDir()
			data := filepath.Join(home, "data")
			must(t, os.MkdirAll(data, 0o755))
			db, err := dbm.NewDB("application", backend, data)
			must(t, err)
			// Old data, settled on the lowest level as most of a chain's is, and new.
			must(t, load(canceled(), db, "base", 12), db.Compact(nil, nil), load(canceled(), db, "hot", 6))
			l := layoutOf(t, home, nil)
			if len(l.Databases) != 1 || l.Databases[0].Engine != engine {
				t.Fatalf("databases %+v", l.Databases)
			}
			st, err := snapshot.CreateStage(fsx.FS{}, testID, l.Roots)
			must(t, err, st.ProbeLinks())

			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var loadErr error
			wg.Go(func() { loadErr = load(ctx, db, "hot", 6) })
			for range 3 {
				must(t, l.Prepare(t.Context(), st))
			}
			stop()
			wg.Wait()
			must(t, loadErr)

			// Still running: the lock says so.
			if err := l.Capture(t.Context(), st); !errors.Is(err, ErrInUse) || hint.Of(err) == "" {
				t.Fatalf("capture of an open database: %v, want ErrInUse with a hint", err)
			}
			want := dump(t, db)
			must(t, db.Close())
			begun := time.Now()
			must(t, l.Capture(t.Context(), st))
			held := time.Since(begun)

			db, err = dbm.NewDB("application", backend, data)
			must(t, err)
			must(t, st.Seal(t.Context()))
			before := sums(t, st)
			must(t, load(canceled(), db, "hot", 12))
			must(t, db.Compact(nil, nil))
			must(t, db.Close())
			after := sums(t, st)
			if len(before) != len(after) {
				t.Fatalf("%d files before, %d after", len(before), len(after))
			}
			for n := range before {
				if before[n] != after[n] {
					t.Errorf("%s changed in the stage", n)
				}
			}
			s := st.Stats()
			t.Logf("held %s: %+v", held, s)
			if s.Linked == 0 || s.PrelinkedKept == 0 || s.Linked != s.PrelinkedKept+s.LinkedLate {
				t.Errorf("stats %+v: want links, most of them made before the hold", s)
			}
			copied := filepath.Join(t.TempDir(), "application.db")
			must(t, os.CopyFS(copied, os.DirFS(st.Place("data/application.db"))))
			db, err = dbm.NewDB("application", backend, filepath.Dir(copied))
			must(t, err)
			got := dump(t, db)
			must(t, db.Close())
			if len(got) != len(want) {
				t.Fatalf("the staged database has %d keys, want %d", len(got), len(want))
			}
			for k, v := range want {
				if got[k] != v {
					t.Fatalf("key %s differs in the staged database", k)
				}
			}
		})
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func dump(t testing.TB, db dbm.DB) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	it, err := db.Iterator(nil, nil)
	must(t, err)
	for ; it.Valid(); it.Next() {
		out[string(it.Key())] = sha256.Sum256(it.Value())
	}
	must(t, it.Error(), it.Close())
	return out
}

func TestBoltFilesAreKnownAndTheirLockIsHeeded(t *testing.T) {
	home := t.TempDir()
	put(t, home, map[string]string{"data/text.db": "no database, but longer than a page's magic number stands in it"})
	file := filepath.Join(home, "data/state.db")
	db, err := bbolt.Open(file, 0o600, nil)
	must(t, err)
	l := layoutOf(t, home, nil)
	same(t, "engines", []string{"bolt"}, l.Engines())
	st, err := snapshot.CreateStage(fsx.FS{}, testID, l.Roots)
	must(t, err)
	must(t, l.Prepare(t.Context(), st))
	if err := l.Capture(t.Context(), st); !errors.Is(err, ErrInUse) {
		t.Errorf("capture of an open bolt file: %v, want ErrInUse", err)
	}
	must(t, db.Close(), l.Capture(t.Context(), st), st.Seal(t.Context()))
	same(t, "taken", []string{"data dir", "data/state.db copy", "data/text.db copy"}, taken(t, st))
	if _, err := l.Tip(t.Context(), st, Offline{}); !errors.Is(err, ErrNoPosition) {
		t.Errorf("position of a bolt database: %v, want ErrNoPosition", err)
	}
	db, err = bbolt.Open(file, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatalf("the lock is still held after the capture: %v", err)
	}
	must(t, db.Close())
}

func TestFilesThatComeAndGo(t *testing.T) {
	home := t.TempDir()
	put(t, home, level("data/state.db"))
	l := layoutOf(t, home, nil)
	st, err := snapshot.CreateStage(fsx.FS{}, testID, l.Roots)
	must(t, err)

	// While the node runs tables vanish at any moment, whole databases too.
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var churn error
	wg.Go(func() {
		for i := 0; ctx.Err() == nil && churn == nil; i++ {
			p := filepath.Join(home, fmt.Sprintf("data/state.db/%06d.ldb", 10+i%5))
			sub := filepath.Join(home, "data", fmt.Sprintf("tmp%d.db", i%2))
			churn = errors.Join(os.WriteFile(p, []byte{byte(i)}, 0o600), os.MkdirAll(sub, 0o700),
				os.WriteFile(filepath.Join(sub, "CURRENT"), nil, 0o600), os.Remove(p), os.RemoveAll(sub))
		}
	})
	for range 100 {
		if err := l.Prepare(t.Context(), st); err != nil {
			t.Errorf("prepare: %v", err)
			break
		}
	}
	stop()
	wg.Wait()
	must(t, churn)

	// While it is held nothing may vanish.
	w := walker{l: &l}
	must(t, w.walk(t.Context()))
	must(t, os.RemoveAll(filepath.Join(home, "data/state.db")))
	var last error
	for _, d := range w.dirs {
		if err := w.vanished(w.capture(t.Context(), st, d)); err != nil {
			last = err
		}
	}
	if !errors.Is(last, ErrMoving) || hint.Of(last) == "" {
		t.Errorf("capture of a directory that vanished: %v, want ErrMoving with a hint", last)
	}
	if err := w.vanished(fmt.Errorf("x: %w", snapshot.ErrChanged)); !errors.Is(err, ErrMoving) {
		t.Errorf("a file that changed: %v, want ErrMoving", err)
	}
}

func TestCaptureEndsWithItsContext(t *testing.T) {
	home := t.TempDir()
	put(t, home, level("data/state.db"))
	l := layoutOf(t, home, nil)
	st, err := snapshot.CreateStage(fsx.FS{}, testID, l.Roots)
	must(t, err)
	for name, f := range map[string]func(context.Context, *snapshot.Stage) error{"prepare": l.Prepare, "capture": l.Capture} {
		if err := f(canceled(), st); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
}
