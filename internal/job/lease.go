package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/uploader"
)

// leaseFile has the nonce of the lease that this workdir's eddy has, or had when
// it was killed: the next one knows its own lease by it, and does not wait.
const leaseFile = "lease.json"

type leaseNote struct {
	Format    int    `json:"format"`
	MinReader int    `json:"min_reader"`
	Nonce     string `json:"nonce"`
}

// leaseNonce is the nonce for a lease, durable before the lease is taken. It
// needs the workdir's lock.
func (w Workdir) leaseNonce() (string, error) {
	var n leaseNote
	if ok, err := w.read(leaseFile, &n); err != nil || ok && n.Nonce != "" {
		return n.Nonce, err
	}
	n = leaseNote{Format: stateFormat, MinReader: stateMinReader, Nonce: rand.Text()}
	return n.Nonce, w.write(leaseFile, n)
}

func (w Workdir) forgetLease() error { return w.remove(leaseFile) }

// lease takes the cluster's lease for this backup. Losing it later is a warning:
// the backup has a name of its own. letGo gives it back, but not while the replica
// stands still: it then ends by itself, and the next run knows it as its own.
func (b *Backup) lease(ctx context.Context) (letGo func(), err error) {
	nonce, err := b.Workdir.leaseNonce()
	if err != nil {
		return nil, err
	}
	l, err := b.Catalog.Lease(ctx, uploader.LeaseOptions{
		Holder: "a backup on " + b.Host, Nonce: nonce, Wait: b.WhenBusy.Wait, Unguarded: b.caps.Unguarded() != "",
		Waiting: func(holder string) { b.phase("", "busy", "%s", waitingFor(holder, b.Cluster)) },
		Lost: func(err error) {
			b.warn(err.Error()+"; the backup goes on", "another eddy may work on this cluster at the same time: let each cluster have one that backs it up")
		},
	})
	if err != nil {
		return nil, err
	}
	b.leased = l
	return func() {
		if b.still {
			l.Rest()
			return
		}
		ctx, cancel := noteTo(ctx, 20*time.Second)
		defer cancel()
		err := l.Release(ctx)
		if err != nil && !errors.Is(err, uploader.ErrLeaseLost) { // that has been said
			// Nobody is kept from anything for long.
			b.Events.Emit(Warning{Text: "the lease could not be given back: " + err.Error(), Hint: "it ends by itself"})
			return // and the next run knows it as its own
		}
		if err := b.Workdir.forgetLease(); err != nil {
			b.Events.Emit(Warning{Text: "the lease's note stays in the workdir: " + err.Error()})
		}
	}, nil
}

func waitingFor(holder, cluster string) string {
	return fmt.Sprintf("%s has the lease of %s; looking whether it is alive", holder, cluster)
}

// Alone does what only one may do at a time to a cluster's part of a store.
type Alone struct {
	Catalog *uploader.Catalog
	Cluster string
	Holder  string // what others are told
	Wait    time.Duration
	Events  ui.Sink
}

// Do takes the lease, does work, and gives it back. still returns nil as long as
// the lease is ours; work asks it before each step that cannot be taken back.
func (a Alone) Do(ctx context.Context, work func(ctx context.Context, still func(context.Context) error) error) error {
	l, err := a.Catalog.Lease(ctx, uploader.LeaseOptions{
		Holder: a.Holder, Nonce: rand.Text(), Wait: a.Wait,
		Waiting: func(holder string) {
			a.Events.Emit(Phase{Phase: "busy", Text: waitingFor(holder, a.Cluster)})
		},
	})
	if err != nil {
		return err
	}
	err = work(ctx, l.Check)
	rctx, cancel := noteTo(ctx, 20*time.Second)
	defer cancel()
	rerr := l.Release(rctx)
	if errors.Is(err, uploader.ErrLeaseLost) {
		return hint.Add(fmt.Errorf("stopped half-way: %w", err), "what is done is done whole; the next run does the rest")
	}
	if errors.Is(rerr, uploader.ErrLeaseLost) {
		rerr = nil // lost behind the last step
	}
	return errors.Join(err, rerr)
}

// Expire deletes what retention no longer keeps.
type Expire struct {
	Alone
	Policy  uploader.Policy
	Bundles int // how many of each node are kept
	Now     time.Time
	// Deleted and DeletedBundle are called after each; nil: nobody hears.
	Deleted       func(uploader.Expiry)
	DeletedBundle func(uploader.BundleExpiry)
}

// Plan tells what Run would delete of the backups. It changes nothing.
func (x Expire) Plan(ctx context.Context) ([]uploader.Expiry, error) {
	return x.Catalog.PlanExpire(ctx, x.Policy, x.Now)
}

// PlanBundles tells what Run would delete of the nodes' keys. It changes nothing.
func (x Expire) PlanBundles(ctx context.Context) ([]uploader.BundleExpiry, error) {
	return x.Catalog.PlanExpireBundles(ctx, x.Bundles, x.Now)
}

// Run deletes what the plans name and retention still lets go. With the lease lost it
// deletes nothing further.
func (x Expire) Run(ctx context.Context, plan []uploader.Expiry, bundles []uploader.BundleExpiry) error {
	return x.Do(ctx, func(ctx context.Context, still func(context.Context) error) error {
		if err := x.Catalog.Apply(ctx, plan, x.Policy, x.Now, still, x.Deleted); err != nil {
			return err
		}
		return x.Catalog.ApplyBundles(ctx, bundles, x.Bundles, x.Now, still, x.DeletedBundle)
	})
}
