package uploader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/s3fake"
)

func mustLease(t testing.TB, c *Catalog, o LeaseOptions) *Lease {
	t.Helper()
	l, err := c.Lease(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func release(t testing.TB, l *Lease) {
	t.Helper()
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// One has it, the other hears at once whose it is, and gets it when it is given
// back. A third that waits gets it then, too.
func TestOneHasTheLease(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := NewCatalog(newFileStore(dir), "gaia")
		one := mustLease(t, c, LeaseOptions{Holder: "backup on a", Nonce: "a"})
		begun := time.Now()
		var waited string
		_, err := c.Lease(t.Context(), LeaseOptions{Holder: "backup on b", Nonce: "b", Waiting: func(h string) { waited = h }})
		if !errors.Is(err, fsx.ErrLocked) || !strings.Contains(err.Error(), "backup on a works on gaia") || hint.Of(err) == "" || waited != "backup on a" {
			t.Errorf("the second: %v (%s), after %q", err, hint.Of(err), waited)
		}
		if d := time.Since(begun); d > leaseTTL/3+15*time.Second {
			t.Errorf("it took %s to see that the holder lives", d)
		}
		time.AfterFunc(20*time.Minute, func() { release(t, one) })
		begun = time.Now()
		two := mustLease(t, c, LeaseOptions{Holder: "backup on b", Nonce: "b", Wait: time.Hour})
		if d := time.Since(begun); d < 20*time.Minute || d > 21*time.Minute {
			t.Errorf("the one that waits has it after %s, want 20 minutes", d)
		}
		if _, err := c.Lease(t.Context(), LeaseOptions{Nonce: "c", Wait: 10 * time.Minute}); !errors.Is(err, fsx.ErrLocked) {
			t.Errorf("the third, which waits for 10 minutes: %v", err)
		}
		release(t, two)
		begun = time.Now()
		release(t, mustLease(t, c, LeaseOptions{Nonce: "c"}))
		if d := time.Since(begun); d > time.Second {
			t.Errorf("a free lease is taken after %s", d)
		}
	})
}

// A holder that died is silent; who looks on for the TTL takes over, whatever the
// clocks say. Its own next process does not wait.
func TestALeaseIsTakenOver(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := NewCatalog(newFileStore(dir), "gaia")
		dead := &Lease{c: c, o: LeaseOptions{Holder: "x", Nonce: "x", TTL: leaseTTL}}
		if err := dead.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		l := mustLease(t, c, LeaseOptions{Nonce: "y"})
		if d := time.Since(begun); d < leaseTTL || d > leaseTTL+15*time.Second {
			t.Errorf("taken over after %s, want the TTL", d)
		}
		if err := dead.Check(t.Context()); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("whom it was taken from: %v", err)
		}
		release(t, l)

		if err := dead.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		begun = time.Now()
		l = mustLease(t, c, LeaseOptions{Nonce: "x"})
		if d := time.Since(begun); d > time.Second {
			t.Errorf("our own lease of before is taken after %s", d)
		}
		release(t, l)

		// What nobody can read is held, and taken over like any other.
		for _, junk := range []string{"{", "", `{"format":9,"min_reader":9}`, strings.Repeat("x", maxLease+1), `{"nonce":"z","ttl_seconds":-5}`} {
			mustPutSmall(t, c.store, c.leaseKey(), junk, Condition{})
			begun := time.Now()
			release(t, mustLease(t, c, LeaseOptions{Nonce: "y"}))
			if d := time.Since(begun); d < leaseTTL {
				t.Errorf("a lease %.20q is taken after %s", junk, d)
			}
		}
	})
}

// A store that does not answer for the TTL costs the lease; one that is back
// sooner does not.
func TestALeaseOutlivesAShortSilence(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &silenced{Store: newFileStore(dir)}
		c := NewCatalog(s, "gaia")
		lost := make(chan error, 1)
		l := mustLease(t, c, LeaseOptions{Nonce: "a", Lost: func(err error) { lost <- err }})
		time.Sleep(time.Second)
		s.off.Store(true)
		time.Sleep(leaseTTL - 15*time.Second)
		s.off.Store(false)
		time.Sleep(leaseTTL)
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("after a short silence: %v", err)
		}
		s.off.Store(true)
		select {
		case err := <-lost:
			if !errors.Is(err, ErrLeaseLost) || !errors.Is(err, ErrUnreachable) {
				t.Errorf("lost by %v", err)
			}
		case <-time.After(2 * leaseTTL):
			t.Error("a lease that nobody renews is not lost")
		}
		s.off.Store(false)
		if err := l.Check(t.Context()); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("a lost lease: %v", err)
		}
		if err := l.Release(t.Context()); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("released: %v", err)
		}
	})
}

// A lease at rest asks nothing of the store. Who comes back finds it his own,
// unless somebody has taken it meanwhile, which is told.
func TestALeaseRests(t *testing.T) {
	for _, taken := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c := NewCatalog(newFileStore(dir), "gaia")
			lost := make(chan error, 2)
			l := mustLease(t, c, LeaseOptions{Nonce: "a", Lost: func(err error) { lost <- err }})
			time.Sleep(leaseTTL)
			l.Rest()
			_, at, err := l.look(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * leaseTTL)
			if _, o, err := l.look(t.Context()); err != nil || o.ETag != at.ETag {
				t.Errorf("renewed at rest: %v", err)
			}
			if taken {
				other := mustLease(t, c, LeaseOptions{Nonce: "b"})
				defer release(t, other)
			}
			l.Resume(t.Context())
			synctest.Wait()
			if _, o, err := l.look(t.Context()); err != nil || !taken && o.ETag == at.ETag {
				t.Errorf("not renewed at once: %v", err)
			}
			if taken != (len(lost) == 1) {
				t.Errorf("taken %t, told of %d losses", taken, len(lost))
			}
			l.Rest()
			l.Resume(t.Context())
			synctest.Wait()
			if taken != (len(lost) == 1) {
				t.Error("told twice")
			}
			if err := l.Release(t.Context()); errors.Is(err, ErrLeaseLost) != taken || err != nil && !taken {
				t.Errorf("released: %v", err)
			}
		})
	}
}

// silenced is a store that may be out of reach.
type silenced struct {
	Store
	off  atomic.Bool
	lose atomic.Bool // the next write is done and its answer lost
}

func (s *silenced) PutSmall(ctx context.Context, key string, b []byte, ct string, c Condition) (Object, error) {
	if s.off.Load() {
		return Object{}, &storeError{op: "write", key: key, kind: ErrUnreachable}
	}
	o, err := s.Store.PutSmall(ctx, key, b, ct, c)
	if s.lose.CompareAndSwap(true, false) {
		return Object{}, &storeError{op: "write", key: key, kind: ErrUnreachable}
	}
	return o, err
}

// A renewal that was done, but not answered, is our own.
func TestALeaseIsNotLostToItself(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &silenced{Store: newFileStore(dir)}
		l := mustLease(t, NewCatalog(s, "gaia"), LeaseOptions{Nonce: "a"})
		time.Sleep(time.Second) // between two renewals from here on
		for range 3 {
			s.lose.Store(true)
			time.Sleep(leaseTTL / 3) // one whose answer is lost
			time.Sleep(leaseTTL / 3) // and one that finds its own
		}
		if err := l.Check(t.Context()); err != nil {
			t.Error(err)
		}
		s.lose.Store(true)
		if err := l.Check(t.Context()); err == nil {
			t.Error("an answer that was lost is none")
		}
		release(t, l)
	})
}

// Of many at once one has it, on every kind of store.
func TestOfManyOneHasTheLease(t *testing.T) {
	for name, q := range map[string]s3fake.Quirks{
		"conditions": {}, "ignored, and known to be": {Conditions: s3fake.CondIgnored}, "refused, and not known": {Conditions: s3fake.CondRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := s3fake.New("bucket", q)
				s := fakeBy(t, server, noNetwork{server}, "http://store.invalid")
				var has, most, had, locked atomic.Int32
				var wg sync.WaitGroup
				for i := range 6 {
					wg.Go(func() {
						l, err := NewCatalog(s, "gaia").Lease(t.Context(), LeaseOptions{
							Holder: fmt.Sprint(i), Nonce: fmt.Sprint(i), Unguarded: q.Conditions == s3fake.CondIgnored,
						})
						if errors.Is(err, fsx.ErrLocked) {
							locked.Add(1)
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
						had.Add(1)
						most.Store(max(most.Load(), has.Add(1)))
						time.Sleep(leaseTTL * 3 / 2)
						if err := l.Check(t.Context()); err != nil {
							t.Error(err)
						}
						has.Add(-1)
						release(t, l)
					})
				}
				wg.Wait()
				if most.Load() != 1 || had.Load()+locked.Load() != 6 {
					t.Errorf("%d had it, %d at once, %d were refused", had.Load(), most.Load(), locked.Load())
				}
			})
		})
	}
}

// A process that is stopped for longer than the TTL finds its lease taken, and
// deletes nothing more.
func TestAStoppedProcessLosesItsLease(t *testing.T) {
	if dir := os.Getenv("EDDY_TEST_LEASE_DIR"); dir != "" { // that process
		l := mustLease(t, NewCatalog(newFileStore(dir), "gaia"), LeaseOptions{Holder: "stopped", Nonce: "s", TTL: time.Second})
		fmt.Println("taken")
		for !exists(dir + "/go") {
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println("check:", errors.Is(l.Check(t.Context()), ErrLeaseLost))
		fmt.Println("release:", errors.Is(l.Release(t.Context()), ErrLeaseLost))
		return
	}
	dir := t.TempDir()
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestAStoppedProcessLosesItsLease$")
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), "EDDY_TEST_LEASE_DIR="+dir), f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := func(text string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			b, err := os.ReadFile(out)
			if err == nil && strings.Contains(string(b), text) {
				return
			}
			if time.Now().After(end) {
				_ = cmd.Process.Kill()
				t.Fatalf("it does not say %q: %s", text, b)
			}
		}
	}
	said("taken") // and not renewed for a third of the TTL: it is stopped outside the store's own lock
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l := mustLease(t, NewCatalog(newFileStore(dir), "gaia"), LeaseOptions{Holder: "other", Nonce: "o"})
	defer release(t, l)
	mustPutSmall(t, newFileStore(dir), "go", "", Condition{})
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	said("check: true\nrelease: true")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeLease(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"holder":"h","nonce":"n","ttl_seconds":120,"beat":7}`))
	f.Add([]byte(`{"format":1,"min_reader":2,"nonce":""}`))
	f.Add([]byte(`{"ttl_seconds":99999999999}`))
	f.Add([]byte("["))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d := decodeLease(b).ttl(); d <= 0 || d > time.Hour {
			t.Errorf("it lasts %s", d)
		}
	})
}
