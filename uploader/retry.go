package uploader

import (
	"context"
	"errors"
	"fmt"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/cenkalti/backoff/v4"
)

const (
	// firstWait is the pause before the second attempt; later ones are longer.
	firstWait = 200 * time.Millisecond
	// minTries is how often a call is made at least: the deadline of one attempt
	// with a large part may be longer than all of Config.GiveUp.
	minTries = 4
	// maxDamaged is how often bytes that arrive damaged are sent again: beyond
	// that it is no accident on the way.
	maxDamaged = 3
	// firstContact is how long a store is tried that has not answered once: then
	// the address is wrong more likely than the store is down.
	firstContact = 15 * time.Second
)

// deadline is what an attempt that moves n bytes may take.
func (s *s3Store) deadline(n int64) time.Duration {
	return s.c.Slack + time.Duration(float64(n)/float64(s.c.MinRate)*float64(time.Second))
}

// attempt makes one call again and again, each time with a deadline of its own,
// until it succeeds, is refused, or Config.GiveUp has passed. This is the only
// retry: the SDK's has no deadline for an attempt, so that a stalled connection
// would wait for ever. call gets the number of the attempt, from 1.
func (s *s3Store) attempt(ctx context.Context, op, key string, deadline time.Duration, call func(ctx context.Context, try int) error) error {
	p := &patience{
		ExponentialBackOff: s.newBackOff(),
		until: func() time.Duration {
			if s.answered.Load() {
				return s.c.GiveUp
			}
			return min(s.c.GiveUp, firstContact)
		},
	}
	damaged := 0
	again := func(err error, wait time.Duration) {
		s.c.Log.Warn().Err(err).Int("tries", p.tries).Dur("wait_ms", wait).Msg("the store call is tried again")
	}
	err := backoff.RetryNotify(func() error {
		actx, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		p.tries++
		err := call(actx, p.tries)
		if s.noteAnswer(err); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return backoff.Permanent(err)
		}
		if actx.Err() != nil {
			err = fmt.Errorf("%w after %s", context.DeadlineExceeded, deadline.Round(time.Millisecond))
		}
		err = classify(op, key, err)
		if errors.Is(err, ErrDamaged) {
			damaged++
		}
		if !passing(err) || damaged >= maxDamaged {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(p, ctx), again)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", op, key, context.Cause(ctx))
	}
	return err
}

// noteAnswer remembers that the store answers at all.
func (s *s3Store) noteAnswer(err error) {
	var resp *awshttp.ResponseError
	if err == nil || errors.As(err, &resp) {
		s.answered.Store(true)
	}
}

func (s *s3Store) newBackOff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(s.wait), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(0))
}

// patience stops a back-off when enough time has passed and enough was tried.
type patience struct {
	*backoff.ExponentialBackOff
	until func() time.Duration
	tries int
}

func (p *patience) NextBackOff() time.Duration {
	if p.tries >= minTries && p.GetElapsedTime() > p.until() {
		return backoff.Stop
	}
	return p.ExponentialBackOff.NextBackOff()
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
