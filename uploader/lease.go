package uploader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrLeaseLost: somebody else has taken the lease over, or it could not be
// renewed for so long that somebody may have.
var ErrLeaseLost = errors.New("the lease is lost")

const (
	leaseFormat = 1
	maxLease    = 64 << 10 // bytes
	// leaseTTL is after how much silence a lease is another's for the taking.
	leaseTTL = 2 * time.Minute
	// settleTime is how long a lease on a store without conditional writes is let
	// lie before it is looked at once more: whoever looked before us has then
	// written.
	settleTime = 2 * time.Second
)

// leaseRecord is lease.json. Every renewal counts Beat up, so that the ETag of a
// lease that is alive changes. Without a nonce it is free.
type leaseRecord struct {
	Format     int    `json:"format"`
	MinReader  int    `json:"min_reader"`
	Holder     string `json:"holder"` // for people
	Nonce      string `json:"nonce"`
	TTLSeconds int64  `json:"ttl_seconds"`
	Beat       uint64 `json:"beat"`
}

// decodeLease reads a lease. One that cannot be read is somebody's whom this eddy
// does not understand: like any other it is taken over when it is not renewed.
func decodeLease(b []byte) leaseRecord {
	var r leaseRecord
	if err := readable(leaseName, b); err != nil || json.Unmarshal(b, &r) != nil {
		return leaseRecord{Holder: "somebody (its lease cannot be read)", Nonce: "?"}
	}
	return r
}

// ttl bounds what somebody else's record says: a lease must end.
func (r leaseRecord) ttl() time.Duration {
	if r.TTLSeconds <= 0 || r.TTLSeconds > 3600 {
		return leaseTTL
	}
	return time.Duration(r.TTLSeconds) * time.Second
}

// LeaseOptions say for whom a lease is taken.
type LeaseOptions struct {
	Holder string // what others are told: host and verb
	// Nonce names the lease. One with the same nonce that is there already is our
	// own, of a process that is known to be gone, and is taken at once.
	Nonce string
	TTL   time.Duration // 0: 2 minutes; whole seconds
	// Wait is how long a holder that is alive is waited for; 0: not at all. That
	// one is alive shows within a third of its TTL, that none is within all of it,
	// and so long any call takes.
	Wait time.Duration
	// Unguarded: the store has no conditional writes (Caps.Unguarded).
	Unguarded bool
	// Waiting, where set, is called once when somebody else has the lease; Lost,
	// once, when it is lost, from another goroutine.
	Waiting func(holder string)
	Lost    func(error)
}

// Lease is the right to change one cluster's part of a store: one eddy at a time
// has it, and renews it as long as it works. Who is silent for the TTL, by the
// clock of whoever looks on, has lost it; clocks are never compared. Losing it
// endangers no backup, because all have names of their own: it keeps two from
// working for nothing, and deletions from crossing each other.
type Lease struct {
	c    *Catalog
	o    LeaseOptions
	stop context.CancelFunc
	done chan struct{} // closed when nobody renews any more
	told bool          // that it is lost; of whoever renews

	mu      sync.Mutex // held while it is renewed
	etag    string
	beat    uint64
	renewed time.Time // when the last renewal that worked began
	lost    error
}

// Lease takes the cluster's lease and keeps it until Release. A holder that is
// alive, and stays beyond o.Wait, is fsx.ErrLocked, with its name.
func (c *Catalog) Lease(ctx context.Context, o LeaseOptions) (*Lease, error) {
	if o.TTL == 0 {
		o.TTL = leaseTTL
	}
	l := &Lease{c: c, o: o}
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	l.renews(ctx, l.keep)
	return l, nil
}

// renews begins the renewing: Rest and Release end it, ctx does not.
func (l *Lease) renews(ctx context.Context, keep func(context.Context)) {
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	l.done = done
	go func() {
		defer close(done)
		keep(ctx)
	}()
}

// Rest ends the renewing: when it returns nothing is under way, and nothing more is
// asked of the store until Resume. Who does not come back within the TTL leaves the
// lease for the taking, and needs do no more to give it up.
func (l *Lease) Rest() {
	l.stop()
	<-l.done
}

// Resume renews the lease at once, and goes on with it. It is called after Rest.
func (l *Lease) Resume(ctx context.Context) {
	l.renews(ctx, func(ctx context.Context) {
		if l.check(ctx) {
			l.keep(ctx)
		}
	})
}

// take returns when the lease is ours.
func (l *Lease) take(ctx context.Context) error {
	var (
		begun = time.Now()
		seen  Object
		since time.Time // when seen was first seen
		alive bool      // it changed while we looked
		none  int       // how often there was none, and yet somebody was first
	)
	for {
		r, o, err := l.look(ctx)
		mayTake := errors.Is(err, ErrNotFound) || err == nil && (r.Nonce == "" || r.Nonce == l.o.Nonce)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if !mayTake {
			if seen.ETag == "" && l.o.Waiting != nil {
				l.o.Waiting(r.Holder)
			}
			if o.ETag != seen.ETag {
				alive = seen.ETag != ""
				seen, since = o, time.Now()
			}
			mayTake = time.Since(since) >= r.ttl()
		}
		if mayTake {
			l.beat = r.Beat
			err := l.put(ctx, o.ETag)
			if err == nil {
				err = l.settle(ctx)
			}
			if err == nil || !errors.Is(err, ErrPrecondition) {
				return err
			}
			// Somebody was faster; or the store takes a delete marker for an object.
			if o.ETag == "" {
				none++
				l.o.Unguarded = l.o.Unguarded || none == 3
			}
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		if alive && time.Since(begun) >= l.o.Wait {
			return hint.Add(fmt.Errorf("%s works on %s: %w", r.Holder, l.c.cluster, fsx.ErrLocked),
				"wait until it has ended, or let this one wait: backup.when_busy: wait 2h")
		}
		if err := pause(ctx, min(r.ttl()/12, 10*time.Second)); err != nil {
			return err
		}
	}
}

func (l *Lease) look(ctx context.Context) (leaseRecord, Object, error) {
	b, o, err := l.c.store.GetSmall(ctx, l.c.leaseKey(), maxLease)
	if errors.Is(err, ErrDamaged) { // too large to be a lease; Stat has its ETag
		o, err = l.c.store.Stat(ctx, l.c.leaseKey())
	}
	if err != nil {
		return leaseRecord{}, Object{}, err
	}
	return decodeLease(b), o, nil
}

// put writes the lease as ours over the one with the ETag, "" for none.
func (l *Lease) put(ctx context.Context, etag string) error {
	begun := time.Now()
	r := leaseRecord{Holder: l.o.Holder, Nonce: l.o.Nonce, TTLSeconds: max(1, int64(l.o.TTL/time.Second)), Beat: l.beat + 1}
	o, err := l.write(ctx, etag, r)
	if err == nil {
		l.etag, l.beat, l.renewed = o.ETag, r.Beat, begun
	}
	return err
}

// again calls put, which writes over our own lease. Where that is another one the
// answer to an earlier write may not have arrived; else it is lost.
func (l *Lease) again(ctx context.Context, put func(etag string) error) error {
	err := put(l.etag)
	if !errors.Is(err, ErrPrecondition) {
		return err
	}
	r, o, lerr := l.look(ctx)
	switch {
	case errors.Is(lerr, ErrNotFound), lerr == nil && r.Nonce == "":
		return fmt.Errorf("%w: somebody has taken it, and it is free again", ErrLeaseLost)
	case lerr != nil:
		return lerr
	case r.Nonce != l.o.Nonce:
		return fmt.Errorf("%w: %s has taken it", ErrLeaseLost, r.Holder)
	}
	l.beat = max(l.beat, r.Beat)
	return put(o.ETag)
}

func (l *Lease) write(ctx context.Context, etag string, r leaseRecord) (Object, error) {
	r.Format, r.MinReader = leaseFormat, leaseFormat
	b, err := json.Marshal(r)
	if err != nil {
		return Object{}, err
	}
	cond := Condition{IfMatch: etag, IfAbsent: etag == ""}
	write := l.c.store.PutSmall
	if l.o.Unguarded {
		write = func(ctx context.Context, key string, b []byte, ct string, c Condition) (Object, error) {
			return putCompared(ctx, l.c.store, key, b, ct, c)
		}
	}
	o, err := write(ctx, l.c.leaseKey(), append(b, '\n'), "application/json", cond)
	if !l.o.Unguarded && errors.Is(err, ErrRefused) && hasCode(err, "NotImplemented") {
		l.o.Unguarded = true // nobody has probed this store yet
		return l.write(ctx, etag, r)
	}
	return o, err
}

// settle looks once more whose the lease is where the store does not decide.
func (l *Lease) settle(ctx context.Context) error {
	if !l.o.Unguarded {
		return nil
	}
	if err := pause(ctx, min(settleTime, l.o.TTL/4)); err != nil {
		return err
	}
	r, _, err := l.look(ctx)
	if err == nil && r.Nonce != l.o.Nonce {
		err = fmt.Errorf("%w: the lease", ErrPrecondition)
	}
	return err
}

// keep renews the lease, three times in each TTL, until ctx ends or it is lost.
func (l *Lease) keep(ctx context.Context) {
	tick := time.NewTicker(l.o.TTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !l.check(ctx) {
			return
		}
	}
}

// check renews the lease, and tells of its loss, once. false: there is none.
func (l *Lease) check(ctx context.Context) bool {
	err := l.Check(ctx)
	if !errors.Is(err, ErrLeaseLost) {
		return true
	}
	if !l.told && ctx.Err() == nil && l.o.Lost != nil {
		l.told = true
		l.o.Lost(err)
	}
	return false
}

// Check renews the lease now. nil means that it was ours a moment ago and nobody
// takes it within the TTL; after ErrLeaseLost it never is again. Any other error
// is one of the store, and leaves open whether it still is.
func (l *Lease) Check(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	// No longer than it is surely ours, but for one attempt: a process that was
	// stopped for minutes may still find that nobody has taken it.
	within, cancel := context.WithTimeout(ctx, max(time.Until(l.renewed.Add(l.o.TTL)), l.o.TTL/3))
	defer cancel()
	err := l.again(within, func(etag string) error { return l.put(within, etag) })
	if err != nil && !errors.Is(err, ErrLeaseLost) && ctx.Err() != nil {
		return err // we were called off, which says nothing of the lease
	}
	if err != nil && !errors.Is(err, ErrLeaseLost) && time.Since(l.renewed) >= l.o.TTL {
		err = fmt.Errorf("%w: it could not be renewed for %s: %w", ErrLeaseLost, l.o.TTL, err)
	}
	if errors.Is(err, ErrLeaseLost) {
		l.lost = err
	}
	return err
}

// Release gives the lease back, by a write: credentials need not be able to
// delete. It returns ErrLeaseLost where there was nothing to give back, and may be
// called once.
func (l *Lease) Release(ctx context.Context) error {
	l.stop()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	return l.again(ctx, func(etag string) error {
		_, err := l.write(ctx, etag, leaseRecord{Holder: l.o.Holder, Beat: l.beat + 1})
		return err
	})
}
