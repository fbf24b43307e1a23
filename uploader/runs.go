package uploader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
)

const (
	runLapse  = time.Hour           // a run that has not reported for so long is abandoned
	runKept   = 14 * 24 * time.Hour // what a failed run said is kept so long
	maxRunLen = 64 << 10
)

// Run is a backup that is being made, or that failed.
type Run struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	Status    Status    `json:"status"` // BACKING_UP or ERROR
	Component string    `json:"component"`
	Host      string    `json:"host"`
	Done      int64     `json:"done"`  // bytes
	Total     int64     `json:"total"` // bytes
	Error     string    `json:"error,omitempty"`
	Started   time.Time `json:"started"`
	Updated   time.Time `json:"updated"`
}

// state is how a run is shown.
func (r Run) state(now time.Time) (Status, string) {
	switch {
	case r.Status == StatusError:
		return StatusError, r.Error
	case now.Sub(r.Updated) > runLapse:
		return StatusAbandoned, "on " + r.Host + ", last heard of " + r.Updated.UTC().Format(time.RFC3339)
	case r.Total > 0:
		return r.Status, fmt.Sprintf("on %s, %d %%", r.Host, 100*r.Done/r.Total)
	default:
		return r.Status, "on " + r.Host
	}
}

// StartRun announces a run.
func (c *Catalog) StartRun(ctx context.Context, r Run) error {
	r.Started = time.Now().UTC()
	return c.putRun(ctx, r)
}

func (c *Catalog) putRun(ctx context.Context, r Run) error {
	r.Format, r.MinReader, r.Updated = manifestFormat, manifestMinReader, time.Now().UTC()
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.store.PutSmall(ctx, c.runKey(r.ID), append(body, '\n'), "application/json", Condition{})
	return err
}

func (c *Catalog) getRun(ctx context.Context, id string) (Run, error) {
	r := Run{ID: id, Cluster: c.cluster}
	b, _, err := c.store.GetSmall(ctx, c.runKey(id), maxRunLen)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil || r.ID != id {
		return Run{ID: id, Cluster: c.cluster}, fmt.Errorf("%w: run record of %s", ErrDamaged, id)
	}
	return r, nil
}

// UpdateRun notes how far a run has come.
func (c *Catalog) UpdateRun(ctx context.Context, id string, done, total int64) error {
	r, err := c.getRun(ctx, id)
	if err != nil {
		return err
	}
	r.Done, r.Total = done, total
	return c.putRun(ctx, r)
}

// FailRun notes why a run failed. A run that was never announced is announced.
func (c *Catalog) FailRun(ctx context.Context, id string, cause error) error {
	r, err := c.getRun(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
		return err
	}
	r.Status, r.Error = StatusError, cause.Error()
	return c.putRun(ctx, r)
}

// EndRun removes the record of a run that is READY or has changed nothing.
func (c *Catalog) EndRun(ctx context.Context, id string) error {
	return c.store.Delete(ctx, c.runKey(id))
}

// runs reads all run records.
func (c *Catalog) runs(ctx context.Context) (map[string]Run, error) {
	out := map[string]Run{}
	for o, err := range c.store.List(ctx, path.Join(c.cluster, "runs")+"/", "") {
		if err != nil {
			return nil, err
		}
		id := strings.TrimSuffix(path.Base(o.Key), ".json")
		if !validID(id) {
			continue
		}
		r, err := c.getRun(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound): // ended since it was listed
			continue
		case errors.Is(err, ErrDamaged):
			r.Status, r.Error = StatusError, err.Error()
		case err != nil:
			return nil, err
		}
		out[id] = r
	}
	return out, nil
}
