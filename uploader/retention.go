package uploader

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Policy says what retention keeps.
type Policy struct {
	Last int // READY backups, the newest first; below 1 means 1
}

// Expiry is a backup, or the leavings of one, that retention no longer keeps.
type Expiry struct {
	ID, Reason string
	Size       int64 // stored bytes that go

	keepRun bool // the objects go, the run's record stays
}

const (
	graceOfReady  = 72 * time.Hour     // since it was READY, and something newer was: slow restores
	graceOfFailed = 7 * 24 * time.Hour // leavings of failed attempts
)

// PlanExpire tells what retention would delete now. It changes nothing.
func (c *Catalog) PlanExpire(ctx context.Context, p Policy, now time.Time) ([]Expiry, error) {
	all, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	return PlanExpire(all, p, now), nil
}

// PlanExpire decides on backups as List returns them, newest first. Whatever the
// policy says, these are never in the plan: the newest READY backup, the one that
// latest points to, the newest that was verified, pinned ones, what is being restored, what was
// not READY itself or had no READY successor 72 hours ago, and everything that this
// eddy cannot judge (DAMAGED, NEWER, BACKING_UP). One that failed a proof takes nobody's
// place: it is counted for none of these.
func PlanExpire(all []Backup, p Policy, now time.Time) []Expiry {
	var out []Expiry
	// A run that goes on may copy from what failed ones have left.
	busy := slices.ContainsFunc(all, func(b Backup) bool { return b.Status == StatusBackingUp })
	restored := map[string]bool{}
	for _, b := range all {
		restored[b.Of] = restored[b.Of] || b.Status == StatusRestoring
	}
	ready, verified := 0, 0
	var successor time.Time // when the next newer READY one was that
	for _, b := range all {
		switch b.Status {
		case StatusReady:
			since := b.Ready
			if since.IsZero() {
				since = b.Created
			}
			// One of a lower height may be READY long after that of a higher one: made by
			// a node that lags, or by a slow upload.
			young := now.Sub(successor) < graceOfReady || now.Sub(since) < graceOfReady
			kept := ready < max(1, p.Last) || b.Latest || len(b.Pins) > 0 || young || restored[b.ID]
			if b.good() {
				ready++
				if !b.Verified.IsZero() {
					verified++
					kept = kept || verified == 1
				}
				successor = since
			}
			if !kept {
				out = append(out, Expiry{ID: b.ID, Reason: "older than the last that are kept", Size: b.Size})
			}
		case StatusIncomplete, StatusAbandoned, StatusError:
			silent := now.Sub(b.touched())
			superseded := slices.ContainsFunc(all, func(r Backup) bool { return r.good() && r.ID > b.ID })
			switch {
			case len(b.Pins) > 0:
			case busy && b.objects > 0:
			case b.Status == StatusError && silent > runKept:
				out = append(out, Expiry{ID: b.ID, Reason: "the record of an attempt that failed", Size: b.Size})
			case b.Status == StatusError && b.givenUp && superseded && b.objects > 0:
				out = append(out, Expiry{ID: b.ID, Reason: "left by an attempt that was given up, and a later one is READY", Size: b.Size, keepRun: true})
			case b.Status == StatusError && silent > graceOfFailed && b.objects > 0:
				out = append(out, Expiry{ID: b.ID, Reason: "left by an attempt that failed", Size: b.Size, keepRun: true})
			case b.Status != StatusError && silent > graceOfFailed:
				out = append(out, Expiry{ID: b.ID, Reason: "left by an attempt that failed", Size: b.Size})
			}
		}
	}
	return out
}

// touched is the last sign of life. The id alone does not do: an upload may take
// longer than the grace.
func (b *Backup) touched() time.Time {
	if b.Touched.After(b.Created) {
		return b.Touched
	}
	return b.Created
}

// good tells a READY backup that no proof has found wrong.
func (b *Backup) good() bool { return b.Status == StatusReady && b.Failed == nil }

// Apply deletes what a plan names and the policy, asked again of what is there by
// now, still lets go: a backup that was pinned since, or that became the newest
// because others are gone, stays. Before each, may is asked: its error ends all.
// deleted, where set, is called after each.
func (c *Catalog) Apply(ctx context.Context, plan []Expiry, p Policy, now time.Time, may func(context.Context) error, deleted func(Expiry)) error {
	again, err := c.PlanExpire(ctx, p, now)
	if err != nil {
		return err
	}
	for _, x := range again {
		if !slices.ContainsFunc(plan, func(y Expiry) bool { return y.ID == x.ID }) {
			continue
		}
		if err := may(ctx); err != nil {
			return err
		}
		if err := c.removeObjects(ctx, x.ID); err != nil {
			return err
		}
		if !x.keepRun {
			if err := c.EndRun(ctx, x.ID); err != nil {
				return err
			}
		}
		if deleted != nil {
			deleted(x)
		}
	}
	return c.sweepRuns(ctx, now)
}

// sweepRuns removes the records of old runs whose backup is READY: their writer
// died between commit and EndRun. (All others have a line of the plan.)
func (c *Catalog) sweepRuns(ctx context.Context, now time.Time) error {
	runs, err := c.runs(ctx)
	if err != nil {
		return err
	}
	for id, r := range runs {
		if now.Sub(r.heard()) <= runKept {
			continue
		}
		b, err := c.one(ctx, id)
		if err != nil && !errors.Is(err, ErrNoSuchBackup) {
			return err
		}
		if b.Status == StatusReady {
			if err := c.EndRun(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}
