package uploader

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

var (
	// ErrNoSuchBackup: nothing in the catalog answers to that name.
	ErrNoSuchBackup = errors.New("no such backup")
	// ErrNewest: the newest READY backup is not deleted.
	ErrNewest = errors.New("it is the newest READY backup")
	// ErrPinned: somebody has pinned the backup.
	ErrPinned = errors.New("it is pinned")
	// ErrFailed: a proof of the backup has failed since it was made.
	ErrFailed = errors.New("the backup failed a proof")
)

// Status is the word for a backup's state.
type Status string

// The states of a backup. A READY one has a manifest and every volume with its
// size; the others must not be restored.
const (
	StatusReady      Status = "READY"
	StatusBackingUp  Status = "BACKING_UP"
	StatusRestoring  Status = "RESTORING" // no backup, but the restore of one
	StatusError      Status = "ERROR"
	StatusAbandoned  Status = "ABANDONED"  // its run no longer reports
	StatusIncomplete Status = "INCOMPLETE" // objects without a manifest
	StatusDamaged    Status = "DAMAGED"    // a volume is missing or has another size
	StatusNewer      Status = "NEWER"      // only a newer eddy can read it
	// StatusSalvage: whole, of a member that stood alone; it is restored by its id only.
	StatusSalvage Status = "SALVAGE"
)

// Backup is one line of the catalog.
type Backup struct {
	ID, Label string
	Status    Status
	Latest    bool  // latest.json points to it
	Size      int64 // stored bytes of all volumes
	Volumes   int
	// Component is the system: "swarm", "cometbft"; "" where nobody says it. Of is, of
	// a restore, the backup.
	Component, Of string
	Created       time.Time // when it was begun, by its id
	Text          string    // of an error, or the progress
	// Manifest is nil where there is none. From List it comes without its own
	// lists (volumes, roots, what was left out), so that the memory of a listing
	// does not grow with them; Select has all of it.
	Manifest *Manifest
	Warning  string // something that the caller should say

	// Ready is when the manifest was written, Touched when anything of the backup
	// was, both by the store's clock.
	Ready, Touched time.Time
	// Grades are the names below grades/, without directory and .json:
	// "20261120T235500Z-verified".
	Grades []string
	Pins   []Pin // that count now
	// When it was last verified, drilled and sampled, by the grades' names; the zero
	// times where it never was.
	Verified, Drilled, Sampled, Attested time.Time
	// Failed is the newest proof that found it wrong, nil where none did, or where
	// one that goes as far has passed since. Nothing may be copied from such a
	// backup, and a restore of it must be wanted.
	Failed *Grade

	body    []byte // of the manifest, as it was read
	objects int    // how many the store has of it
	givenUp bool   // by the run that made it
}

// Catalog is one cluster's part of a store. It keeps nothing between calls and
// may be used from many goroutines.
type Catalog struct {
	store   Store
	cluster string
	keys    Keys
	omnibus string // the URL below which snapshot.json says that objects are; "": none is written
}

// NewCatalog makes the catalog of a cluster, whose name has passed CheckName. It
// asks nothing of the store.
func NewCatalog(s Store, cluster string) *Catalog { return &Catalog{store: s, cluster: cluster} }

// Store is where the catalog lies.
func (c *Catalog) Store() Store { return c.store }

// Cluster is whose catalog it is.
func (c *Catalog) Cluster() string { return c.cluster }

// ManifestSHA256 is the hash of the manifest's bytes as they were read, hex; only
// Select has read them.
func (b *Backup) ManifestSHA256() string {
	if b.body == nil {
		return ""
	}
	sum := sha256.Sum256(b.body)
	return hex.EncodeToString(sum[:])
}

// Clusters lists the clusters that have anything in the store.
func (c *Catalog) Clusters(ctx context.Context) ([]string, error) {
	var out []string
	for o, err := range c.store.List(ctx, "", "/") {
		if err != nil {
			return nil, err
		}
		if name, ok := strings.CutSuffix(o.Key, "/"); ok && CheckName(name) == nil {
			out = append(out, name)
		}
	}
	return out, nil
}

// List reads the catalog, newest first: the history that latest.json names before
// all others, in a history the higher position, then the later id. What has no
// readable manifest stands where its id belongs. Manifests are read one at a
// time, and one that is damaged or too new spoils no other's line.
func (c *Catalog) List(ctx context.Context) ([]Backup, error) {
	latest, _, err := c.latestIfAny(ctx)
	if err != nil {
		return nil, err
	}
	runs, err := c.runs(ctx)
	if err != nil {
		return nil, err
	}
	found, err := c.objects(ctx, c.dataPrefix())
	if err != nil {
		return nil, err
	}
	var out []Backup
	for _, d := range found {
		b, err := c.judge(ctx, d)
		if err != nil {
			return nil, err
		}
		if m := b.Manifest; m != nil {
			m.Volumes, m.Roots, m.LeftOut, b.body = nil, nil, nil, nil
		}
		out = append(out, b)
	}
	// The runs were read before the objects, the manifests after: a backup that
	// becomes READY meanwhile is READY here, never INCOMPLETE.
	now := time.Now()
	for i := range out {
		b := &out[i]
		b.Latest = b.ID == latest.ID
		if r, ok := runs[b.ID]; ok {
			b.underway(r, now)
			delete(runs, b.ID)
		}
	}
	for id, r := range runs {
		b := newBackup(id)
		b.underway(r, now)
		out = append(out, b)
	}
	return newestFirst(out, latest.Incarnation), nil
}

// one is List for a single id. A backup of which there is nothing has
// ErrNoSuchBackup; its manifest is whole.
func (c *Catalog) one(ctx context.Context, id string) (Backup, error) {
	if !validID(id) {
		return Backup{}, fmt.Errorf("%w: %q", ErrNoSuchBackup, id)
	}
	r, err := c.getRun(ctx, id)
	running := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Backup{}, err
	}
	found, err := c.objects(ctx, c.dataPrefix()+id+"/")
	if err != nil {
		return Backup{}, err
	}
	b := newBackup(id)
	if len(found) == 0 && !running {
		return b, fmt.Errorf("%w: %s", ErrNoSuchBackup, id)
	}
	for _, d := range found {
		if b, err = c.judge(ctx, d); err != nil {
			return b, err
		}
	}
	if running {
		b.underway(r, time.Now())
	}
	return b, nil
}

// directory is what the store lists of one backup.
type directory struct {
	Backup
	sizes map[string]int64 // of manifest and volumes, by name
}

func newBackup(id string) Backup {
	when, label, _ := ParseID(id)
	return Backup{ID: id, Label: label, Created: when, Status: StatusIncomplete}
}

// objects lists what lies below a prefix of data/, backup by backup.
func (c *Catalog) objects(ctx context.Context, prefix string) (map[string]*directory, error) {
	found := map[string]*directory{}
	for o, err := range c.store.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		id, name, ok := splitKey(strings.TrimPrefix(o.Key, c.dataPrefix()))
		if !ok {
			continue
		}
		d := found[id]
		if d == nil {
			d = &directory{Backup: newBackup(id), sizes: map[string]int64{}}
			found[id] = d
		}
		d.objects++
		if o.Modified.After(d.Touched) {
			d.Touched = o.Modified
		}
		switch base, isJSON := strings.CutSuffix(name, ".json"); {
		case name == manifestName:
			d.sizes[name], d.Ready = o.Size, o.Modified
		case strings.HasPrefix(name, "vol-"):
			d.sizes[name] = o.Size
			d.Size += o.Size
			d.Volumes++
		case isJSON && strings.HasPrefix(base, gradesPrefix):
			d.Grades = append(d.Grades, strings.TrimPrefix(base, gradesPrefix))
		case isJSON && strings.HasPrefix(base, pinsPrefix):
			d.Pins = append(d.Pins, Pin{Who: strings.TrimPrefix(base, pinsPrefix)})
		}
	}
	return found, nil
}

// judge reads the manifest, if there is one, and compares it with what is listed.
func (c *Catalog) judge(ctx context.Context, d *directory) (Backup, error) {
	b := d.Backup
	if err := c.standing(ctx, &b); err != nil {
		return b, err
	}
	if err := c.pinned(ctx, &b, time.Now()); err != nil {
		return b, err
	}
	if _, ok := d.sizes[manifestName]; !ok {
		return b, nil
	}
	body, _, err := c.store.GetSmall(ctx, c.ObjectKey(b.ID, manifestName), maxManifest)
	if errors.Is(err, ErrNotFound) {
		return b, nil // deleted since it was listed
	}
	var m *Manifest
	if err == nil {
		m, err = DecodeManifest(body)
	}
	if err == nil && (m.ID != b.ID || m.Cluster != c.cluster) {
		err = fmt.Errorf("%w: it is the manifest of %s of %s", ErrDamaged, m.ID, m.Cluster)
	}
	if err != nil {
		b.Status, b.Text, err = unreadable(b.Status, err)
		return b, err
	}
	b.Manifest, b.Status, b.body, b.Component = m, StatusReady, body, m.System
	if m.Class == ClassSalvage {
		b.Status = StatusSalvage
	}
	for _, v := range m.Volumes {
		if size, ok := d.sizes[v.Name]; !ok {
			b.Status, b.Text = StatusDamaged, v.Name+" is missing"
		} else if size != v.Size {
			b.Status, b.Text = StatusDamaged, fmt.Sprintf("%s has %d bytes, its manifest says %d", v.Name, size, v.Size)
		}
		if b.Status == StatusDamaged {
			break
		}
	}
	return b, nil
}

// unreadable is what becomes of something whose manifest could not be read: a status
// and its text where the manifest is to blame, else the error.
func unreadable(status Status, err error) (Status, string, error) {
	switch {
	case errors.Is(err, ErrNewer):
		return StatusNewer, err.Error(), nil
	case errors.Is(err, ErrDamaged):
		return StatusDamaged, err.Error(), nil
	}
	return status, "", err
}

// underway adds what the run says of a backup that has no manifest yet.
func (b *Backup) underway(r Run, now time.Time) {
	if r.heard().After(b.Touched) {
		b.Touched = r.heard()
	}
	if b.Component == "" {
		b.Component = r.Component
	}
	b.Of = r.Of
	if b.Status == StatusIncomplete {
		b.Status, b.Text = r.state(now)
		b.givenUp = r.GivenUp
	}
}

// newestFirst sorts backups. Positions compare inside one history only, so
// histories are ranked first: the one that latest names, then by their newest
// id. (An order that compared positions where it can and ids elsewhere would go
// in circles, and the newest would depend on how the store lists.) What has no
// manifest is merged in by its id.
func newestFirst(all []Backup, latestIncarnation string) []Backup {
	var known, rest []Backup
	newest := map[string]string{} // of each history: the greatest id
	for _, b := range all {
		if b.Manifest == nil {
			rest = append(rest, b)
			continue
		}
		known = append(known, b)
		newest[b.Manifest.Incarnation] = max(newest[b.Manifest.Incarnation], b.ID)
	}
	slices.SortFunc(known, func(a, b Backup) int {
		x, y := a.Manifest.Incarnation, b.Manifest.Incarnation
		return cmp.Or(
			first(x == latestIncarnation, y == latestIncarnation),
			cmp.Compare(newest[y], newest[x]),
			cmp.Compare(b.Manifest.Position.Index, a.Manifest.Position.Index),
			first(a.Latest, b.Latest),
			cmp.Compare(b.ID, a.ID),
		)
	})
	slices.SortFunc(rest, func(a, b Backup) int { return cmp.Compare(b.ID, a.ID) })
	out := make([]Backup, 0, len(all))
	for _, b := range known {
		for len(rest) > 0 && rest[0].ID > b.ID {
			out, rest = append(out, rest[0]), rest[1:]
		}
		out = append(out, b)
	}
	return append(out, rest...)
}

// first puts a before b where only a holds.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// Delete removes a backup: its manifest first, so that what is half deleted is
// never READY, then all other objects and the run's record. It moves no pointer.
// The newest READY one that failed no proof, and the one that latest points to, are
// refused with ErrNewest, a pinned one with ErrPinned, one that is being made or
// restored with fsx.ErrLocked.
func (c *Catalog) Delete(ctx context.Context, id string) error {
	all, err := c.List(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(b Backup) bool { return b.ID == id })
	if i < 0 {
		return c.none(fmt.Sprintf("%q", id))
	}
	if r := slices.IndexFunc(all, func(r Backup) bool { return r.Status == StatusRestoring && (r.Of == id || r.ID == id) }); r >= 0 {
		return hint.Add(fmt.Errorf("%s is being restored (%s): %w", id, all[r].Text, fsx.ErrLocked), "wait until that has ended; a restore that was killed is gone on with, or counts as ABANDONED after a day")
	}
	switch b := all[i]; {
	case len(b.Pins) > 0:
		return hint.Add(fmt.Errorf("%s: %w by %s", id, ErrPinned, PinText(b.Pins)), hint.Command("eddy", "unpin", id, "--as", b.Pins[0].Who)+" takes a pin back")
	case b.Status == StatusBackingUp:
		return hint.Add(fmt.Errorf("%s is being made (%s): %w", id, b.Text, fsx.ErrLocked), "end that run first; one that was killed counts as ABANDONED after an hour")
	case b.good() && i == slices.IndexFunc(all, func(b Backup) bool { return b.good() }):
		return hint.Add(fmt.Errorf("%s: %w", id, ErrNewest), "make a newer backup first")
	case b.Status == StatusReady && b.Latest:
		return hint.Add(fmt.Errorf("%s: %w that latest points to", id, ErrNewest), "make a newer backup first")
	}
	return c.remove(ctx, id)
}

func isReady(b Backup) bool { return b.Status == StatusReady }

// remove deletes a backup, whatever it is, and the record of its run last: while
// that stands somebody can see what the leavings are.
func (c *Catalog) remove(ctx context.Context, id string) error {
	if err := c.removeObjects(ctx, id); err != nil {
		return err
	}
	return c.store.Delete(ctx, c.runKey(id))
}

func (c *Catalog) removeObjects(ctx context.Context, id string) error {
	if !validID(id) { // or the prefix below would be somebody else's
		return fmt.Errorf("%w: %q", ErrNoSuchBackup, id)
	}
	if err := c.store.Delete(ctx, c.ObjectKey(id, manifestName)); err != nil {
		return err
	}
	var keys []string
	for o, err := range c.store.List(ctx, c.dataPrefix()+id+"/", "") {
		if err != nil {
			return err
		}
		keys = append(keys, o.Key)
	}
	return c.store.Delete(ctx, keys...)
}
