package uploader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Latest is the newest READY backup: what latest.json points to where that is
// READY, else the newest of the list, with a Warning.
func (c *Catalog) Latest(ctx context.Context) (Backup, error) { return c.Select(ctx, "latest") }

// Select finds one backup by id, unique beginning of an id, latest, verified and
// drilled (the newest that was, and has not failed since), height:N (the newest at
// or below N), before:TIME (RFC 3339 or a date, which is its midnight in UTC) or
// label:L. Named by its id a backup is returned whatever its Status is; all other
// names find READY ones, which may have Failed a proof. The error has ErrNoSuchBackup in its chain
// where nothing fits, ErrDamaged where only a damaged one does.
func (c *Catalog) Select(ctx context.Context, sel string) (Backup, error) {
	if validID(sel) {
		b, err := c.one(ctx, sel)
		if errors.Is(err, ErrNoSuchBackup) {
			return Backup{}, c.none(sel)
		}
		if err != nil {
			return Backup{}, err
		}
		latest, _, err := c.latestIfAny(ctx)
		b.Latest = b.ID == latest.ID
		return b, err
	}
	unsigned := ""
	if sel == "latest" {
		b, why, err := c.pointedTo(ctx)
		if err != nil || b.Status == StatusReady {
			return b, err
		}
		unsigned = why
	}
	fits, why, err := c.parseSelector(sel)
	if err != nil {
		return Backup{}, err
	}
	all, err := c.List(ctx)
	if err != nil {
		return Backup{}, err
	}
	i := -1
	if fits == nil { // the beginning of an id
		if i, err = c.byPrefix(all, sel); err != nil {
			return Backup{}, err
		}
	} else {
		if i = slices.IndexFunc(all, func(b Backup) bool { return isReady(b) && fits(b) }); i < 0 {
			i = slices.IndexFunc(all, func(b Backup) bool { return b.Status == StatusDamaged && b.Manifest != nil && fits(b) })
			if i >= 0 {
				return all[i], hint.Add(fmt.Errorf("%w: %s: %s", ErrDamaged, all[i].ID, all[i].Text), "restore another backup; `eddy list` shows them")
			}
			return Backup{}, c.none(why)
		}
	}
	b, err := c.one(ctx, all[i].ID) // with all of its manifest
	if errors.Is(err, ErrNoSuchBackup) {
		return Backup{}, c.none(all[i].ID + " was deleted just now")
	}
	b.Latest = all[i].Latest
	if sel == "latest" {
		b.Warning = cmp.Or(unsigned, "latest.json points to nothing that is READY") + "; " + b.ID + " is the newest that is READY"
	}
	return b, err
}

// none is the error for a name that nothing answers to.
func (c *Catalog) none(why string) error {
	return hint.Add(fmt.Errorf("%w: %s", ErrNoSuchBackup, why), fmt.Sprintf("`eddy list` shows what %s has in %s", c.cluster, c.store.URL()))
}

// pointedTo is the backup that latest.json names, with no status where there is
// none or it is gone, and with why where latest.json is not to be believed.
func (c *Catalog) pointedTo(ctx context.Context) (b Backup, why string, err error) {
	p, why, err := c.latestIfAny(ctx)
	if err != nil || p.ID == "" {
		return Backup{}, why, err
	}
	b, err = c.one(ctx, p.ID)
	if errors.Is(err, ErrNoSuchBackup) {
		return Backup{}, "", nil
	}
	b.Latest = true
	return b, "", err
}

// parseSelector turns a name into a test for READY backups, nil where the name is
// the beginning of an id. why is what to say when none passes.
func (c *Catalog) parseSelector(sel string) (fits func(Backup) bool, why string, err error) {
	kind, arg, _ := strings.Cut(sel, ":")
	switch {
	case sel == "":
		return nil, "", c.none("the name is empty")
	case sel == "latest":
		return func(Backup) bool { return true }, "none is READY", nil
	case sel == GradeVerified:
		return func(b Backup) bool { return b.good() && !b.Verified.IsZero() }, "none is verified, or it failed since; `eddy verify latest --read-data` reads one back", nil
	case sel == GradeDrilled:
		return func(b Backup) bool { return b.good() && !b.Drilled.IsZero() }, "none is drilled, or it failed since", nil
	case kind == "height" && arg != "":
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return nil, "", c.none(fmt.Sprintf("%q is no height", arg))
		}
		return func(b Backup) bool { return b.Manifest.Position.Index <= n }, "none is at or below height " + arg, nil
	case kind == "label" && arg != "":
		return func(b Backup) bool { return b.Label == arg }, "none has the label " + arg, nil
	case kind == "before" && arg != "":
		t, err := parseTime(arg)
		if err != nil {
			return nil, "", c.none(fmt.Sprintf("%q is no time; write 2026-11-20 or 2026-11-20T23:55:00Z", arg))
		}
		// Begun before is not enough: a gate may wait, and what must not be in the
		// backup may have come in meanwhile.
		return func(b Backup) bool { return b.Created.Before(t) && b.Manifest.Position.Time.Before(t) }, "none is from before " + arg, nil
	}
	return nil, "", nil
}

func (c *Catalog) byPrefix(all []Backup, sel string) (int, error) {
	found := -1
	for i, b := range all {
		if !strings.HasPrefix(b.ID, sel) {
			continue
		}
		if found >= 0 {
			return 0, hint.Add(fmt.Errorf("%w: %q begins more ids than one: %s, %s", ErrNoSuchBackup, sel, all[found].ID, b.ID), "write more of the id")
		}
		found = i
	}
	if found < 0 {
		return 0, c.none(fmt.Sprintf("%q", sel))
	}
	return found, nil
}

func parseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Parse(time.DateOnly, s)
}
