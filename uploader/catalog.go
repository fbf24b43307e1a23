package uploader

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

var (
	// ErrNoSuchBackup: nothing in the catalog answers to that name.
	ErrNoSuchBackup = errors.New("no such backup")
	// ErrNewest: the newest READY backup is not deleted.
	ErrNewest = errors.New("it is the newest READY backup")
	// ErrBackwards: the backup stands before what latest points to, or belongs to
	// another history.
	ErrBackwards = errors.New("latest does not go back")
)

// NewID makes the id of a backup: its time, its label and six random digits.
func NewID(now time.Time, label string) string {
	var b [3]byte
	rand.Read(b[:])
	return now.UTC().Format("20060102T150405Z") + "-" + label + "-" + hex.EncodeToString(b[:])
}

// Status is the word for a backup's state.
type Status string

// The states of a backup. A READY one has a manifest and every volume with its
// size; the others must not be restored.
const (
	StatusReady      Status = "READY"
	StatusBackingUp  Status = "BACKING_UP"
	StatusError      Status = "ERROR"
	StatusAbandoned  Status = "ABANDONED"  // its run no longer reports
	StatusIncomplete Status = "INCOMPLETE" // objects without a manifest
	StatusDamaged    Status = "DAMAGED"    // a volume is missing or has another size
)

// Backup is one line of the catalog.
type Backup struct {
	ID, Label string
	Status    Status
	Latest    bool
	Size      int64 // stored bytes of all volumes
	Volumes   int
	Created   time.Time
	Text      string    // of an error, or the progress
	Manifest  *Manifest // nil where there is none
	Warning   string    // something that the caller should say
}

// Catalog is one cluster's part of a store.
type Catalog struct {
	store   Store
	cluster string
}

// NewCatalog makes the catalog of a cluster. It asks nothing of the store.
func NewCatalog(s Store, cluster string) *Catalog { return &Catalog{store: s, cluster: cluster} }

// Store is where the catalog lies.
func (c *Catalog) Store() Store { return c.store }

// ObjectKey is the key of an object of a backup.
func (c *Catalog) ObjectKey(id, name string) string {
	return path.Join(c.cluster, "data", id, name)
}

func (c *Catalog) latestKey() string       { return path.Join(c.cluster, "latest.json") }
func (c *Catalog) runKey(id string) string { return path.Join(c.cluster, "runs", id+".json") }

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

// List reads the catalog, newest first.
func (c *Catalog) List(ctx context.Context) ([]Backup, error) {
	found := map[string]map[string]int64{} // id -> name -> size
	prefix := path.Join(c.cluster, "data") + "/"
	for o, err := range c.store.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		id, name, ok := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
		if !ok || !validID(id) {
			continue
		}
		if found[id] == nil {
			found[id] = map[string]int64{}
		}
		found[id][name] = o.Size
	}
	latest, _, err := c.latest(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	runs, err := c.runs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Backup
	for id, names := range found {
		b, err := c.backup(ctx, id, names)
		if err != nil {
			return nil, err
		}
		b.Latest = id == latest.ID
		if r, ok := runs[id]; ok {
			if b.Status == StatusIncomplete {
				b.Status, b.Text = r.state(time.Now())
			}
			delete(runs, id)
		}
		out = append(out, b)
	}
	for id, r := range runs {
		b := Backup{ID: id, Label: labelOf(id), Created: timeOf(id)}
		b.Status, b.Text = r.state(time.Now())
		out = append(out, b)
	}
	slices.SortFunc(out, newestFirst)
	return out, nil
}

// backup judges one directory of objects.
func (c *Catalog) backup(ctx context.Context, id string, names map[string]int64) (Backup, error) {
	b := Backup{ID: id, Label: labelOf(id), Created: timeOf(id), Status: StatusIncomplete}
	for name, size := range names {
		if strings.HasPrefix(name, "vol-") {
			b.Size += size
			b.Volumes++
		}
	}
	if _, ok := names[manifestName]; !ok {
		return b, nil
	}
	body, _, err := c.store.GetSmall(ctx, c.ObjectKey(id, manifestName), maxManifest)
	if errors.Is(err, ErrNotFound) {
		return b, nil // deleted since it was listed
	}
	var m *Manifest
	if err == nil {
		m, err = DecodeManifest(body)
	}
	if err == nil && (m.ID != id || m.Cluster != c.cluster) {
		err = fmt.Errorf("%w: it is the manifest of %s of %s", ErrDamaged, m.ID, m.Cluster)
	}
	if errors.Is(err, ErrDamaged) {
		b.Status, b.Text = StatusDamaged, err.Error()
		return b, nil
	}
	if err != nil {
		return b, err
	}
	b.Manifest, b.Status = m, StatusReady
	for _, v := range m.Volumes {
		if size, ok := names[v.Name]; !ok || size != v.Size {
			b.Status = StatusDamaged
			b.Text = v.Name + " is missing"
			if ok {
				b.Text = fmt.Sprintf("%s has %d bytes, its manifest says %d", v.Name, size, v.Size)
			}
			break
		}
	}
	return b, nil
}

// newestFirst orders by history where both are known, else by time.
func newestFirst(a, b Backup) int {
	if a.Manifest != nil && b.Manifest != nil && a.Manifest.Incarnation == b.Manifest.Incarnation {
		return cmp.Or(cmp.Compare(b.Manifest.Position.Index, a.Manifest.Position.Index), cmp.Compare(b.ID, a.ID))
	}
	return cmp.Compare(b.ID, a.ID)
}

// Latest is the newest READY backup: what latest.json points to where that still
// lists, else the newest of the list, with a warning.
func (c *Catalog) Latest(ctx context.Context) (Backup, error) { return c.Select(ctx, "latest") }

// Select finds one backup by id, unique beginning of an id, latest, height:N,
// before:TIME or label:L. The error has ErrNoSuchBackup in its chain where
// nothing fits.
func (c *Catalog) Select(ctx context.Context, sel string) (Backup, error) {
	all, err := c.List(ctx)
	if err != nil {
		return Backup{}, err
	}
	none := func(why string) error {
		return hint.Add(fmt.Errorf("%w: %s", ErrNoSuchBackup, why), fmt.Sprintf("`eddy list` shows what %s has in %s", c.cluster, c.store.URL()))
	}
	ready := slices.DeleteFunc(slices.Clone(all), func(b Backup) bool { return b.Status != StatusReady })
	first := func(why string, fits func(Backup) bool) (Backup, error) {
		if i := slices.IndexFunc(ready, fits); i >= 0 {
			return ready[i], nil
		}
		if i := slices.IndexFunc(all, func(b Backup) bool { return b.Manifest != nil && b.Status == StatusDamaged && fits(b) }); i >= 0 {
			return all[i], hint.Add(fmt.Errorf("%w: %s: %s", ErrDamaged, all[i].ID, all[i].Text), "restore another backup; `eddy list` shows them")
		}
		return Backup{}, none(why)
	}
	kind, arg, _ := strings.Cut(sel, ":")
	switch {
	case sel == "latest":
		if i := slices.IndexFunc(ready, func(b Backup) bool { return b.Latest }); i >= 0 {
			return ready[i], nil
		}
		b, err := first("no READY backup", func(Backup) bool { return true })
		if err == nil {
			b.Warning = "latest.json points to nothing that is READY; " + b.ID + " is the newest that is"
		}
		return b, err
	case kind == "height" && arg != "":
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return Backup{}, none(fmt.Sprintf("%q is no height", arg))
		}
		return first("none at or below height "+arg, func(b Backup) bool { return b.Manifest.Position.Index <= n })
	case kind == "label" && arg != "":
		return first("none with label "+arg, func(b Backup) bool { return b.Label == arg })
	case kind == "before" && arg != "":
		t, err := parseTime(arg)
		if err != nil {
			return Backup{}, none(fmt.Sprintf("%q is no time (RFC 3339, or a date)", arg))
		}
		return first("none before "+arg, func(b Backup) bool { return b.Created.Before(t) })
	case sel == "verified" || sel == "drilled":
		return Backup{}, none("none is " + sel)
	}
	var fits []Backup
	for _, b := range all {
		if b.ID == sel {
			return b, nil
		}
		if strings.HasPrefix(b.ID, sel) {
			fits = append(fits, b)
		}
	}
	switch {
	case len(fits) == 1:
		return fits[0], nil
	case len(fits) > 1:
		return Backup{}, none(fmt.Sprintf("%q begins the ids of %d backups", sel, len(fits)))
	default:
		return Backup{}, none(fmt.Sprintf("%q", sel))
	}
}

func parseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Parse(time.DateOnly, s)
}

// Commit makes a backup READY: every volume is looked at, the manifest is
// written, once, and latest is moved forward.
func (c *Catalog) Commit(ctx context.Context, m Manifest, newIncarnation bool) error {
	m.Format, m.MinReader = manifestFormat, manifestMinReader
	for _, v := range m.Volumes {
		o, err := c.store.Stat(ctx, c.ObjectKey(m.ID, v.Name))
		if err != nil {
			return err
		}
		if o.Size != v.Size {
			return fmt.Errorf("%w: %s has %d bytes in the store, %d were sent", ErrDamaged, v.Name, o.Size, v.Size)
		}
	}
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if _, err := DecodeManifest(body); err != nil {
		return err // ours is not what a reader accepts
	}
	// Whether latest may move is asked first: a history that began anew without
	// anybody saying so must not become a READY backup.
	if old, _, err := c.latest(ctx); err == nil {
		if err := old.accepts(&m, newIncarnation); err != nil {
			return err
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if _, err := c.store.PutSmall(ctx, c.ObjectKey(m.ID, manifestName), append(body, '\n'), "application/json", Condition{IfAbsent: true}); err != nil {
		return err
	}
	return c.advance(ctx, &m, newIncarnation)
}

// Delete removes a backup, its manifest first. The newest READY one is refused.
func (c *Catalog) Delete(ctx context.Context, id string) error {
	all, err := c.List(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(all, func(b Backup) bool { return b.Status == StatusReady }); i >= 0 && all[i].ID == id {
		return hint.Add(fmt.Errorf("%s: %w", id, ErrNewest), "make a newer backup first")
	}
	if slices.ContainsFunc(all, func(b Backup) bool { return b.ID == id && b.Latest && b.Status == StatusReady }) {
		return hint.Add(fmt.Errorf("%s: %w", id, ErrNewest), "latest points to it; make a newer backup first")
	}
	return c.remove(ctx, id)
}

func (c *Catalog) remove(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("%w: %q", ErrNoSuchBackup, id)
	}
	if err := c.store.Delete(ctx, c.ObjectKey(id, manifestName)); err != nil {
		return err
	}
	var keys []string
	for o, err := range c.store.List(ctx, c.ObjectKey(id, "")+"/", "") {
		if err != nil {
			return err
		}
		keys = append(keys, o.Key)
	}
	return c.store.Delete(ctx, append(keys, c.runKey(id))...)
}
