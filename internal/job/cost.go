package job

import (
	"context"
	"fmt"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/uploader"
)

const (
	daysOfMonth = 30
	// graceDays is how long retention keeps a backup at least after something newer
	// took its place; see uploader.PlanExpire.
	graceDays = 3
)

// cost tells how much will be stored once retention has reached its balance, and
// what that costs. Each backup is whole, so it is their number times their size.
func (d *Doctor) cost(ctx context.Context, all []uploader.Backup, caps uploader.Caps) check.Finding {
	const name = "retention"
	var one, now int64
	ready := 0
	for _, b := range all {
		now += b.Size
		if b.Status == uploader.StatusReady {
			if ready++; ready == 1 {
				one = b.Size
			}
		}
	}
	guess := ""
	if one == 0 && d.DataSize != nil {
		var err error
		if one, err = d.DataSize(ctx); err != nil {
			return verdict(name, check.Warn, err, "run eddy as the node's user")
		}
		guess = "about " // archives are compressed, and hold a little more
	}
	if one == 0 {
		return check.Good(name, "how much will be stored is known after the first backup")
	}
	each := fmt.Sprintf("a backup takes %s%s", guess, ui.Bytes(one))
	kept, known := d.kept(caps)
	if !known {
		growth := one * int64(d.PerMonth)
		return check.Finding{
			Name: name, Level: check.Warn,
			Said: fmt.Sprintf("%s, nobody deletes old ones: %s now, and %s%s more each month%s", each, ui.Bytes(now), guess, ui.Bytes(growth), d.price(growth)),
			Hint: "set `retention: {by: eddy, last: 7}`, or delete by hand, now and then: `eddy expire --last 7 --apply`",
		}
	}
	total := one * int64(kept)
	return check.Good(name, fmt.Sprintf("%s, %d are kept: %s%s in the end%s, %s now", each, kept, guess, ui.Bytes(total), d.price(total), ui.Bytes(now)))
}

// kept is how many backups there are once the oldest begin to go. known is false
// where none ever goes.
func (d *Doctor) kept(caps uploader.Caps) (n int, known bool) {
	in := func(days int) int { return (d.PerMonth*days + daysOfMonth - 1) / daysOfMonth }
	switch d.RetentionBy {
	case "eddy":
		return max(d.Keep, in(graceDays)+1), true
	case "lifecycle":
		for _, r := range caps.Lifecycle {
			if r.ExpireDays > 0 && !r.Tagged {
				return in(r.ExpireDays) + 1, true
			}
		}
	}
	return 0, false
}

func (d *Doctor) price(bytes int64) string {
	if d.GBMonth == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.2f %s a month)", float64(bytes)/1e9*d.GBMonth, d.Currency)
}
