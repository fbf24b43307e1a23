package uploader

import (
	"context"
	"time"
)

// Policy says what retention keeps.
type Policy struct {
	Last int // READY backups, the newest first; at least 1
}

// Expiry is a backup that retention no longer keeps.
type Expiry struct {
	ID, Reason string
	Size       int64
}

const (
	graceOfReady  = 72 * time.Hour     // after something newer took its place: slow restores
	graceOfFailed = 7 * 24 * time.Hour // leavings of failed attempts
)

// PlanExpire tells what retention would delete now.
func (c *Catalog) PlanExpire(ctx context.Context, p Policy, now time.Time) ([]Expiry, error) {
	all, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	return planExpire(all, p, now), nil
}

// planExpire decides on backups that are sorted newest first. The newest READY
// one and what latest points to are never in the plan, nor anything that had no
// successor 72 hours ago, whatever the policy says.
func planExpire(all []Backup, p Policy, now time.Time) []Expiry {
	var out []Expiry
	ready := 0
	newestReady := false
	var successor time.Time // when the next newer READY one was made
	for _, b := range all {
		switch b.Status {
		case StatusReady:
			ready++
			kept := b.Latest || !newestReady || ready <= p.Last || now.Sub(successor) < graceOfReady
			newestReady, successor = true, b.Created
			if !kept {
				out = append(out, Expiry{b.ID, "older than the last that are kept", b.Size})
			}
		case StatusIncomplete, StatusAbandoned:
			if now.Sub(b.Created) > graceOfFailed {
				out = append(out, Expiry{b.ID, "left by an attempt that failed", b.Size})
			}
		case StatusError:
			if now.Sub(b.Created) > runKept {
				out = append(out, Expiry{b.ID, "the record of an attempt that failed", b.Size})
			}
		}
	}
	return out
}
