package uploader

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestCommitMakesReadyAndMovesLatestForwardOnly(t *testing.T) {
	c := testCatalog(t)
	first := mustBackup(t, c, t0, "first", 100)
	back, err := backupIn(t, c, t0.Add(time.Hour), "back", 99)
	if !errors.Is(err, ErrBackwards) || errors.Is(err, ErrReadyBut) || hint.Of(err) == "" {
		t.Fatalf("a lower height: %v, want ErrBackwards", err)
	}
	if b, err := c.one(t.Context(), back); err != nil || b.Status != StatusIncomplete {
		t.Fatalf("what was refused is %s, %v", b.Status, err)
	}
	if b, err := c.Latest(t.Context()); err != nil || b.ID != first || b.Status != StatusReady {
		t.Fatalf("latest is %s %s, %v; want %s READY", b.ID, b.Status, err, first)
	}
	mustBackup(t, c, t0.Add(2*time.Hour), "equal", 100)
	second := mustBackup(t, c, t0.Add(3*time.Hour), "second", 200)
	p, _, err := c.latest(t.Context())
	if err != nil || p.ID != second || p.Seq != 3 {
		t.Fatalf("latest.json: %s seq %d, %v; want %s seq 3", p.ID, p.Seq, err, second)
	}
}

func TestANewHistoryMustBeSaid(t *testing.T) {
	c := testCatalog(t)
	old := mustBackup(t, c, t0, "old", 1000)
	m := manifestAt(t, c, t0.Add(time.Hour), "anew", 3)
	m.Incarnation = "bb"
	if err := c.Commit(t.Context(), m, false); !errors.Is(err, ErrBackwards) || !strings.Contains(hint.Of(err), "--new-incarnation") {
		t.Fatalf("another history, unsaid: %v (%s)", err, hint.Of(err))
	}
	if err := c.Commit(t.Context(), m, true); err != nil {
		t.Fatal(err)
	}
	all, err := c.List(t.Context())
	if err != nil || len(all) != 2 || all[0].ID != m.ID || !all[0].Latest || all[1].ID != old {
		t.Fatalf("%+v, %v", all, err)
	}
	lower := manifestAt(t, c, t0.Add(2*time.Hour), "lower", 2)
	lower.Incarnation = "bb"
	if err := c.Commit(t.Context(), lower, true); !errors.Is(err, ErrBackwards) {
		t.Fatalf("a lower height, although a new history is allowed: %v", err)
	}
}

func TestCommitRefusesWhatIsNotStored(t *testing.T) {
	c := testCatalog(t)
	for name, harm := range map[string]func(m *Manifest){
		"no volume":      func(m *Manifest) { m.Volumes = append(m.Volumes, Volume{Name: VolumeName(1), Size: 1}) },
		"another size":   func(m *Manifest) { m.Volumes[0].Size++ },
		"no sums":        func(m *Manifest) { m.Sums = &SumsRef{Name: SumsName, Size: 9} },
		"strange volume": func(m *Manifest) { m.Volumes[0].Name = "../../x" },
		"other cluster":  func(m *Manifest) { m.Cluster = "other" },
		"other label":    func(m *Manifest) { m.Label = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			m := manifestAt(t, c, t0, "label", 1)
			harm(&m)
			if err := c.Commit(t.Context(), m, false); err == nil {
				t.Fatal("committed")
			}
			if b, err := c.one(t.Context(), m.ID); err != nil || b.Status != StatusIncomplete {
				t.Fatalf("it is %s, %v", b.Status, err)
			}
		})
	}
}

// A manifest is written once: another one under the same id is refused, the same
// one again is not.
func TestAManifestIsImmutable(t *testing.T) {
	c := testCatalog(t)
	m := manifestAt(t, c, t0, "once", 5)
	for range 2 {
		if err := c.Commit(t.Context(), m, false); err != nil {
			t.Fatal(err)
		}
	}
	if p, _, err := c.latest(t.Context()); err != nil || p.Seq != 1 {
		t.Fatalf("seq %d, %v; the second commit had nothing to move", p.Seq, err)
	}
	m.Position.Index = 6
	if err := c.Commit(t.Context(), m, false); !errors.Is(err, ErrPrecondition) || errors.Is(err, ErrReadyBut) {
		t.Fatalf("another manifest for the same id: %v", err)
	}
}

// Whatever call of a commit fails, with or without effect: latest points to a
// READY backup, an error is told apart from a READY one by ErrReadyBut, and the
// same commit again brings everything up to date.
func TestACommitThatBreaksOffCanBeRepeated(t *testing.T) {
	everyFault(t, func(wrap func(Store) *faulty) error {
		c := testCatalog(t)
		first := mustBackup(t, c, t0, "first", 1)
		m := manifestAt(t, c, t0.Add(time.Hour), "second", 2)
		f := wrap(c.Store())
		err := NewCatalog(f, "test").Commit(t.Context(), m, false)
		b, serr := c.one(t.Context(), m.ID)
		if serr != nil {
			t.Fatal(serr)
		}
		if ready := b.Status == StatusReady; ready != (err == nil || errors.Is(err, ErrReadyBut)) && !(f.after && ready) {
			t.Fatalf("fault at call %d: %v, and the backup is %s", f.at, err, b.Status)
		}
		l, lerr := c.Latest(t.Context())
		if lerr != nil || l.Warning != "" || l.ID != first && l.ID != m.ID || l.ID == m.ID && b.Status != StatusReady {
			t.Fatalf("fault at call %d: latest is %s, %q, %v", f.at, l.ID, l.Warning, lerr)
		}
		if err := c.Commit(t.Context(), m, false); err != nil {
			t.Fatalf("again, after a fault at call %d: %v", f.at, err)
		}
		if p, _, err := c.latest(t.Context()); err != nil || p.ID != m.ID || p.Seq != 2 {
			t.Fatalf("latest.json: %s, seq %d, %v", p.ID, p.Seq, err)
		}
		text, _, terr := c.Store().GetSmall(t.Context(), c.textKey(), 1<<20)
		if terr != nil || !strings.HasPrefix(string(text), "id "+m.ID+"\n") {
			t.Fatalf("latest.txt: %q, %v", text, terr)
		}
		return err
	})
}

func TestManyCommitsAtOnceAllCountAndTheHighestWins(t *testing.T) {
	c := testCatalog(t)
	const n = 8
	done := make(chan error)
	for i := range n {
		m := manifestAt(t, c, t0.Add(time.Duration(i)*time.Minute), "race", uint64(100+i))
		go func() {
			err := c.Commit(t.Context(), m, false)
			if errors.Is(err, ErrBackwards) && !errors.Is(err, ErrReadyBut) {
				err = nil // somebody higher was first
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	p, _, err := c.latest(t.Context())
	if err != nil || p.Position.Index != 100+n-1 || p.Seq > n {
		t.Fatalf("latest at %d, seq %d, %v; want %d", p.Position.Index, p.Seq, err, 100+n-1)
	}
	text, _, err := c.Store().GetSmall(t.Context(), c.textKey(), 1<<20)
	if err != nil || !strings.HasPrefix(string(text), "id "+p.ID+"\n") {
		t.Fatalf("latest.txt names another than latest.json: %q, %v", text, err)
	}
}

// between calls do once, before the first write of a key.
type between struct {
	Store
	key string
	do  func()
}

func (b *between) PutSmall(ctx context.Context, key string, body []byte, ct string, c Condition) (Object, error) {
	if do := b.do; key == b.key && do != nil {
		b.do = nil
		do()
	}
	return b.Store.PutSmall(ctx, key, body, ct, c)
}

// Somebody commits between any two writes of ours: latest.json and latest.txt
// end up with the further one.
func TestACommitInTheMiddleOfACommit(t *testing.T) {
	for _, key := range []string{"manifest", "latest.json", "latest.txt", "README.txt"} {
		t.Run(key, func(t *testing.T) {
			c := testCatalog(t)
			first := manifestAt(t, c, t0, "first", 1)
			second := manifestAt(t, c, t0.Add(time.Hour), "second", 2)
			s := &between{Store: c.Store(), key: "test/" + key}
			if key == "manifest" {
				s.key = c.ObjectKey(first.ID, manifestName)
			}
			s.do = func() {
				if err := c.Commit(t.Context(), second, false); err != nil {
					t.Error(err)
				}
			}
			if err := NewCatalog(s, "test").Commit(t.Context(), first, false); err != nil {
				t.Fatal(err)
			}
			p, _, err := c.latest(t.Context())
			if err != nil || p.ID != second.ID {
				t.Fatalf("latest.json names %s, %v", p.ID, err)
			}
			text, _, err := c.Store().GetSmall(t.Context(), c.textKey(), 1<<20)
			if err != nil || !strings.HasPrefix(string(text), "id "+second.ID+"\n") {
				t.Fatalf("latest.txt: %q, %v", text, err)
			}
			if b, err := c.one(t.Context(), first.ID); err != nil || b.Status != StatusReady {
				t.Fatalf("the one that was overtaken is %s, %v", b.Status, err)
			}
		})
	}
}

// latest against a model: one seq a move, never down inside a history, another
// history only when said.
func TestLatestAgainstAModel(t *testing.T) {
	for seed := range uint64(3) {
		latestModel(t, testCatalog(t), seed)
	}
}

func latestModel(t *testing.T, c *Catalog, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	inc, at, seq := "", uint64(0), uint64(0)
	for i := range 12 {
		m := manifestAt(t, c, t0.Add(time.Duration(i)*time.Minute), "auto", 1+r.Uint64N(5))
		m.Incarnation = []string{"aa", "aa", "bb"}[r.IntN(3)]
		said := r.IntN(2) == 0
		err := c.Commit(t.Context(), m, said)
		want := inc == "" || inc == m.Incarnation && m.Position.Index >= at || inc != m.Incarnation && said
		if want != (err == nil) || err != nil && !errors.Is(err, ErrBackwards) {
			t.Fatalf("seed %d: %s %d after %s %d, said %v: %v", seed, m.Incarnation, m.Position.Index, inc, at, said, err)
		}
		if want {
			inc, at, seq = m.Incarnation, m.Position.Index, seq+1
		}
		p, _, err := c.latest(t.Context())
		if err != nil || p.Incarnation != inc || p.Position.Index != at || p.Seq != seq {
			t.Fatalf("seed %d: latest.json is %+v, %v; want %s %d seq %d", seed, p, err, inc, at, seq)
		}
	}
}

func TestLatestTextHasItsOwnChecksum(t *testing.T) {
	c := testCatalog(t)
	m := manifestAt(t, c, t0, "first", 100)
	put(t, c, c.ObjectKey(m.ID, VolumeName(1)), "xyz")
	m.Volumes = append(m.Volumes, Volume{Name: VolumeName(1), Size: 3})
	if err := c.Commit(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	b, _, err := c.Store().GetSmall(t.Context(), "test/latest.txt", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("id %[1]s\n%[2]d test/data/%[1]s/vol-0000.tar.zst\n3 test/data/%[1]s/vol-0001.tar.zst\n", m.ID, len(m.ID))
	want += fmt.Sprintf("sha256 %x\n", sha256.Sum256([]byte(want)))
	if string(b) != want {
		t.Fatalf("latest.txt:\n%s\nwant:\n%s", b, want)
	}
}

func FuzzDecodePointer(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"seq":3,"incarnation":"aa","id":"20261120T120000Z-auto-000001","volumes":[{"name":"vol-0000.tar.zst","size":1}],"position":{"index":7}}`))
	f.Add([]byte(`{"format":2,"min_reader":2}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePointer(b)
		if err == nil && (!validID(p.ID) || p.Seq == 0) {
			t.Fatalf("accepted %q", b)
		}
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatalf("%q: %v", b, err)
		}
	})
}
