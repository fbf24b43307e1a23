package uploader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	runLapse   = time.Hour           // where a run names no lapse of its own
	runKept    = 14 * 24 * time.Hour // what a failed run said is kept so long
	maxRunLen  = 64 << 10            // bytes of a record
	maxRunText = 4 << 10             // bytes of an error's text in it
	// maxRunVolumes keeps a record below its limit. By default they are 32 TiB.
	maxRunVolumes = 128
)

// Run is a backup that is being made or restored, or where that failed.
type Run struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	Status    Status    `json:"status"`    // BACKING_UP, RESTORING or ERROR
	Component string    `json:"component"` // the system: "swarm", "cometbft", ...
	Host      string    `json:"host"`
	Of        string    `json:"of,omitempty"` // of a restore: the backup
	Done      int64     `json:"done"`         // bytes
	Total     int64     `json:"total"`        // bytes
	Error     string    `json:"error,omitempty"`
	Started   time.Time `json:"started"`
	Updated   time.Time `json:"updated"`
	// LapseSeconds is how long the run may be silent before it counts as
	// abandoned; 0: an hour.
	LapseSeconds int64 `json:"lapse_seconds,omitempty"`
	// GivenUp: nobody will end it. Its volumes are of use to the next attempt only.
	GivenUp bool `json:"given_up,omitempty"`
	// Volumes are those that are stored and proven, at most maxRunVolumes of them,
	// Encoder and Level what they were made with: the next attempt may copy from
	// them.
	Encoder string   `json:"encoder,omitempty"`
	Level   int      `json:"level,omitempty"`
	Volumes []Volume `json:"volumes,omitempty"`

	modified time.Time // by the store's clock; zero where it was not read from one
}

// heard is when the run last said something: by the store's clock where it is
// known, because that of the run's host may be wrong.
func (r Run) heard() time.Time {
	if !r.modified.IsZero() {
		return r.modified
	}
	return r.Updated
}

// state is how a run is shown.
func (r Run) state(now time.Time) (Status, string) {
	lapse := runLapse
	if r.LapseSeconds > 0 {
		lapse = time.Duration(min(r.LapseSeconds, int64(runKept/time.Second))) * time.Second
	}
	on := "on " + r.Host
	if r.Of != "" {
		on = "restore of " + r.Of + " " + on
	}
	switch {
	case r.Status == StatusError && r.Of != "":
		return StatusError, on + ": " + r.Error
	case r.Status == StatusError:
		return StatusError, r.Error
	case now.Sub(r.heard()) > lapse:
		return StatusAbandoned, on + ", last heard of " + r.heard().UTC().Format(time.RFC3339)
	case r.Status == StatusRestoring:
		return StatusRestoring, on
	case r.Total > 0:
		return StatusBackingUp, fmt.Sprintf("%s, %.0f %%", on, 100*float64(r.Done)/float64(r.Total))
	default:
		return StatusBackingUp, on
	}
}

// StartRun announces a run. It sets the times and, where they are empty, cluster
// and status.
func (c *Catalog) StartRun(ctx context.Context, r Run) error {
	r.Started, r.Cluster = time.Now().UTC(), c.cluster
	if r.Status == "" {
		r.Status = StatusBackingUp
	}
	return c.putRun(ctx, r)
}

func (c *Catalog) putRun(ctx context.Context, r Run) error {
	if !validID(r.ID) {
		return fmt.Errorf("a run must have a backup's id, not %q", r.ID)
	}
	r.Volumes = r.Volumes[:min(len(r.Volumes), maxRunVolumes)]
	r.Format, r.MinReader, r.Updated = manifestFormat, manifestMinReader, time.Now().UTC()
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.store.PutSmall(ctx, c.runKey(r.ID), append(body, '\n'), "application/json", Condition{})
	return err
}

// getRun reads a record. One that cannot be read is returned as what it most
// probably is, so that it can be listed: damaged as ERROR, newer as BACKING_UP.
func (c *Catalog) getRun(ctx context.Context, id string) (Run, error) {
	b, o, err := c.store.GetSmall(ctx, c.runKey(id), maxRunLen)
	var r Run
	if err == nil {
		r, err = decodeRun(b, id)
	}
	switch {
	case errors.Is(err, ErrDamaged):
		r = Run{ID: id, Cluster: c.cluster, Status: StatusError, Error: err.Error()}
	case errors.Is(err, ErrNewer):
		r = Run{ID: id, Cluster: c.cluster, Status: StatusBackingUp, Host: "a host with a newer eddy"}
	case err != nil:
		return Run{}, err
	}
	r.modified = o.Modified
	return r, nil
}

func decodeRun(b []byte, id string) (Run, error) {
	if err := readable("run record of "+id, b); err != nil {
		return Run{}, err
	}
	var r Run
	if err := json.Unmarshal(b, &r); err != nil {
		return Run{}, fmt.Errorf("%w: run record of %s: %w", ErrDamaged, id, err)
	}
	for _, v := range r.Volumes {
		if !volumeName.MatchString(v.Name) || v.Size <= 0 || v.ETag == "" {
			return Run{}, fmt.Errorf("%w: run record of %s: impossible volume %.80q of %d bytes", ErrDamaged, id, v.Name, v.Size)
		}
	}
	if r.ID != id {
		return Run{}, fmt.Errorf("%w: run record of %s is one of %.60q", ErrDamaged, id, r.ID)
	}
	return r, nil
}

// UpdateRun notes how far a run has come, in bytes, and what of it is stored.
func (c *Catalog) UpdateRun(ctx context.Context, id string, done, total int64, stored []Volume) error {
	r, err := c.getRun(ctx, id)
	if err != nil {
		return err
	}
	r.Done, r.Total, r.Volumes = done, total, stored
	return c.putRun(ctx, r)
}

// FailRun notes why a run failed, and that it may be gone on with. A run that was
// never announced is announced.
func (c *Catalog) FailRun(ctx context.Context, id string, cause error) error {
	return c.endRun(ctx, id, cause, false)
}

// GiveUpRun notes why a run failed, and that nobody will go on with it.
func (c *Catalog) GiveUpRun(ctx context.Context, id string, cause error) error {
	return c.endRun(ctx, id, cause, true)
}

func (c *Catalog) endRun(ctx context.Context, id string, cause error, givenUp bool) error {
	r, err := c.getRun(ctx, id)
	if errors.Is(err, ErrNotFound) {
		r = Run{ID: id, Cluster: c.cluster, Started: time.Now().UTC()}
	} else if err != nil {
		return err
	}
	r.Status, r.Error, r.GivenUp = StatusError, cause.Error(), givenUp
	if len(r.Error) > maxRunText {
		r.Error = strings.ToValidUTF8(r.Error[:maxRunText], "") + "..."
	}
	return c.putRun(ctx, r)
}

// EndRun removes the record of a run that is READY or has changed nothing.
func (c *Catalog) EndRun(ctx context.Context, id string) error {
	return c.store.Delete(ctx, c.runKey(id))
}

// Restores are the restores of a backup of which the store knows: those that run, or
// failed, the newest last.
func (c *Catalog) Restores(ctx context.Context, id string) ([]Run, error) {
	all, err := c.runs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Run
	for _, r := range all {
		if r.Of == id && id != "" {
			r.Status, _ = r.state(time.Now())
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Run) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// EndRestores removes what restores of a backup on a host have left, which is known
// to restore nothing now.
func (c *Catalog) EndRestores(ctx context.Context, id, host string) error {
	all, err := c.Restores(ctx, id)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Host == host {
			err = errors.Join(err, c.EndRun(ctx, r.ID))
		}
	}
	return err
}

// CopySources are the other runs, dead or alive, whose volumes were made with an
// encoder and a level, newest first: from what is stored and proven may be copied.
// Of a backup that is READY nothing is: it may have been found wrong since.
func (c *Catalog) CopySources(ctx context.Context, id, encoder string, level int) ([]Run, error) {
	all, err := c.runs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Run
	for _, r := range all {
		if r.ID == id || len(r.Volumes) == 0 || r.Encoder != encoder || r.Level != level {
			continue
		}
		switch _, err := c.store.Stat(ctx, c.ObjectKey(r.ID, manifestName)); {
		case errors.Is(err, ErrNotFound):
			out = append(out, r)
		case err != nil:
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Run) int { return strings.Compare(b.ID, a.ID) })
	return out, nil
}

// runs reads all run records.
func (c *Catalog) runs(ctx context.Context) (map[string]Run, error) {
	out := map[string]Run{}
	for o, err := range c.store.List(ctx, c.runsPrefix(), "") {
		if err != nil {
			return nil, err
		}
		id := strings.TrimSuffix(path.Base(o.Key), ".json")
		if o.Key != c.runKey(id) || !validID(id) {
			continue
		}
		r, err := c.getRun(ctx, id)
		if errors.Is(err, ErrNotFound) { // ended since it was listed
			continue
		}
		if err != nil {
			return nil, err
		}
		out[id] = r
	}
	return out, nil
}
