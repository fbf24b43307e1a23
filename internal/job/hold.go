package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// hold stops the replica, captures, and starts it again on every path, a panic
// in the capture included. Nothing is asked of the bucket meanwhile.
func (b *Backup) hold(ctx context.Context, st *State, stage *snapshot.Stage, replica observer.Holder, sum *Summary) (err error) {
	b.phase(st.ID, "hold", "holding the node still")
	b.leased.Rest()
	b.still = true
	stopAt := time.Now()
	release, err := replica.Hold(ctx, stage)
	if err != nil {
		if b.still = errors.Is(err, observer.ErrDown) || errors.Is(err, observer.ErrStopping); !b.still {
			b.leased.Resume(ctx)
		}
		return notStarted(err)
	}
	stopped := time.Now()
	defer func() {
		captured := time.Now()
		rerr := b.start(ctx, st.ID, release, stopAt)
		ended := time.Now()
		sum.StopSeconds = stopped.Sub(stopAt).Seconds()
		sum.StageSeconds = captured.Sub(stopped).Seconds()
		sum.StartSeconds = ended.Sub(captured).Seconds()
		sum.HeldSeconds = ended.Sub(stopAt).Seconds()
		sum.heldAt, sum.releasedAt = stopAt.UTC(), ended.UTC()
		if b.still = errors.Is(rerr, observer.ErrDown); !b.still {
			b.leased.Resume(ctx)
		}
		switch {
		case errors.Is(rerr, observer.ErrLost):
			err = errors.Join(err, mark(ErrStage, rerr))
		case rerr != nil:
			rerr = mark(ErrStart, fmt.Errorf("start the node again: %w", notStarted(rerr)))
			if err != nil {
				rerr = fmt.Errorf("%w; before that: %w", rerr, err)
			}
			err = rerr
		}
	}()
	if err := b.Replica.Capture(ctx, stage); err != nil {
		return mark(ErrStage, fmt.Errorf("capture: %w", err))
	}
	return nil
}

// How often a replica that does not start is asked for again.
const (
	startEvery  = time.Second
	startSeldom = 30 * time.Second
)

// start releases the replica, and goes on asking for it until the hold's deadline
// while it cannot be started: the control and the guard go on trying. The end of
// ctx ends that, not the first attempt.
func (b *Backup) start(ctx context.Context, id string, release func(context.Context) error, stopAt time.Time) error {
	within, cancel := context.WithDeadline(ctx, stopAt.Add(cmp.Or(b.HoldDeadline, 10*time.Minute)))
	defer cancel()
	every := backoff.NewExponentialBackOff()
	every.InitialInterval, every.MaxInterval, every.MaxElapsedTime = startEvery, startSeldom, 0
	said := false
	var err error
	_ = backoff.RetryNotify(func() error {
		if err = release(context.WithoutCancel(ctx)); !errors.Is(err, observer.ErrDown) {
			return nil // it runs, or is not to be waited for
		}
		return err
	}, backoff.WithContext(every, within), func(error, time.Duration) {
		if !said {
			said = true
			b.Events.Emit(Warning{Text: "the node does not start, it is tried again: " + err.Error(), Hint: hint.Of(err)})
		}
	})
	return err
}

// notStarted says of an error of the hold what to do where the node stands still.
func notStarted(err error) error {
	if !errors.Is(err, observer.ErrDown) {
		return err
	}
	return mark(ErrStart, hint.Add(err, hint.Or(err, "look at the node's log, and start it by hand; whoever guards the hold goes on trying")))
}
