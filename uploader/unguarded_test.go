package uploader

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/s3fake"
)

// unguarded runs a test on each kind of store without conditional writes, probed,
// and on one that has them.
func unguarded(t *testing.T, run func(t *testing.T, open func() *Catalog, server *s3fake.Server)) {
	for name, quirk := range map[string]s3fake.Conditions{"refused": s3fake.CondRefused, "ignored": s3fake.CondIgnored, "kept": s3fake.CondKept} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, server := fake(t, s3fake.Quirks{Conditions: quirk})
			caps, err := NewCatalog(s, "test").Probe(t.Context())
			if err != nil || (caps.Unguarded() == "") != (quirk == s3fake.CondKept) {
				t.Fatalf("%q, %v", caps.Unguarded(), err)
			}
			run(t, func() *Catalog { // as another process opens it
				other := fakeAt(t, server)
				caps := caps
				caps.Endpoint = other.c.Endpoint
				if !other.Use(caps) {
					t.Fatal("the probe's result is refused")
				}
				return NewCatalog(other, "test")
			}, server)
		})
	}
}

// One after the other, latest moves as it does with conditions: forward only, one
// seq a move, another history only when said.
func TestLatestWithoutConditions(t *testing.T) {
	unguarded(t, func(t *testing.T, open func() *Catalog, _ *s3fake.Server) { latestModel(t, open(), 7) })
}

// At the same moment two may both think that they moved it. Then it names one of
// them, whole, never nothing and never what is not READY; and the next backup
// brings it to the front.
func TestRacingCommitsWithoutConditions(t *testing.T) {
	unguarded(t, func(t *testing.T, open func() *Catalog, _ *s3fake.Server) {
		const n = 6
		var wg sync.WaitGroup
		for i := range n {
			c := open()
			m := manifestAt(t, c, t0.Add(time.Duration(i)*time.Minute), "race", uint64(100+i))
			wg.Go(func() {
				err := c.Commit(t.Context(), m, false)
				if err != nil && !errors.Is(err, ErrBackwards) && !errors.Is(err, ErrReadyBut) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		c := open()
		b, err := c.Latest(t.Context())
		if err != nil || b.Status != StatusReady || b.Manifest.Position.Index < 100 {
			t.Fatalf("latest is %+v, %v", b, err)
		}
		last := mustBackup(t, c, t0.Add(time.Hour), "last", 200)
		p, _, err := c.latest(t.Context())
		if err != nil || p.ID != last {
			t.Errorf("latest.json names %s, %v", p.ID, err)
		}
		text, _, err := c.store.GetSmall(t.Context(), c.textKey(), 1<<20)
		if err != nil || !strings.HasPrefix(string(text), "id "+last+"\n") {
			t.Errorf("latest.txt: %q, %v", text, err)
		}
	})
}

// Somebody further writes latest between our look and our write: we see it and
// leave it, whether the store decides or we compare.
func TestLatestIsOvertakenWithoutConditions(t *testing.T) {
	unguarded(t, func(t *testing.T, open func() *Catalog, _ *s3fake.Server) {
		c, other := open(), open()
		first, second := manifestAt(t, c, t0, "first", 1), manifestAt(t, c, t0.Add(time.Hour), "second", 2)
		s := &between{Store: c.store, key: c.latestKey(), do: func() {
			if err := other.Commit(t.Context(), second, false); err != nil {
				t.Error(err)
			}
		}}
		if err := NewCatalog(s, "test").Commit(t.Context(), first, false); err != nil {
			t.Fatal(err)
		}
		if p, _, err := c.latest(t.Context()); err != nil || p.ID != second.ID {
			t.Errorf("latest.json names %s, %v; want the further one", p.ID, err)
		}
	})
}
