package job

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// attempt is a backup whose sending has begun (workdir/attempt.json): all that a
// later run needs to end it, without asking the replica. The stage that it names
// is sealed.
type attempt struct {
	Format    int    `json:"format"`
	MinReader int    `json:"min_reader"`
	Store     string `json:"store"` // URL
	// Roots are those of the stage, Stage its digest, Cuts the plan's: volumes that
	// are stored fit to no other.
	Roots      []snapshot.Root `json:"roots"`
	Stage      string          `json:"stage"`
	Cuts       string          `json:"cuts"`
	VolumeSize int64           `json:"volume_size"`
	Volumes    int             `json:"volumes"` // in all
	// SumsLen is how much of the spooled list of hashes belongs to volumes that are
	// stored, Carry the running hash of a file that goes on behind them.
	SumsLen int64  `json:"sums_len"`
	Carry   []byte `json:"carry,omitempty"`
	// SendAll: what was copied from earlier attempts was not what it should be.
	SendAll bool `json:"send_all,omitempty"`
	// Sealed is the encrypted archive, where it is to be sent so. Then there is no
	// stage any more.
	Sealed *sealed `json:"sealed,omitempty"`
	// Pin is how long it is pinned from its commit on; 0: not at all.
	Pin time.Duration `json:"pin_ns,omitempty"`
	// Manifest is what it will be, with the volumes that are stored.
	Manifest uploader.Manifest `json:"manifest"`
}

const (
	attemptName = "attempt.json"
	sumsSpool   = "sums.zst"
)

// attemptKept is how long an attempt may lie without a byte more of it stored: its
// stage pins the replica's disk.
const attemptKept = 72 * time.Hour

// Unfinished is an attempt, for those who look.
type Unfinished struct {
	ID       string    `json:"id"`
	Position uint64    `json:"position"`
	Held     time.Time `json:"held"`
	Stored   int       `json:"volumes_stored"`
	Volumes  int       `json:"volumes"`
}

// Unfinished reads the attempt that the next run goes on with; nil where there is
// none. Read-only.
func (w Workdir) Unfinished() (*Unfinished, error) {
	a, err := w.attempt()
	if a == nil || err != nil {
		return nil, err
	}
	m := a.Manifest
	return &Unfinished{ID: m.ID, Position: m.Position.Index, Held: m.Times.Held, Stored: len(m.Volumes), Volumes: a.Volumes}, nil
}

func (w Workdir) attempt() (*attempt, error) {
	var a attempt
	ok, err := w.read(attemptName, &a)
	if err != nil || !ok {
		return nil, err
	}
	return &a, nil
}

func (w Workdir) keep(a *attempt) error {
	a.Format, a.MinReader = stateFormat, stateMinReader
	if err := w.write(attemptName, a); err != nil {
		return fmt.Errorf("record what is sent: %w", err)
	}
	return nil
}

// forget removes the attempt, its record first and durably: with that alone a
// power cut would leave an attempt that nobody can go on with.
func (w Workdir) forget() error {
	err := w.remove(attemptName)
	if err == nil {
		err = w.FS.SyncDir(w.Dir)
	}
	if err == nil {
		err = errors.Join(w.remove(sumsSpool), w.remove(sealedName))
	}
	return err
}

func (w Workdir) remove(name string) error {
	err := w.FS.Remove(w.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lastStored is when something of the attempt was stored last.
func (w Workdir) lastStored() (last time.Time, err error) {
	names, err := w.journals()
	if err != nil {
		return last, err
	}
	for _, name := range append(names, w.path(attemptName)) {
		st, err := os.Stat(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return last, err
		}
		if err == nil && st.ModTime().After(last) {
			last = st.ModTime()
		}
	}
	return last, nil
}

// errUnusable: an attempt cannot be gone on with. Its text says why.
var errUnusable = errors.New("it cannot be gone on with")

func unusable(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errUnusable}, args...)...)
}

// reopen makes the sender that goes on with an attempt. errUnusable means that
// nobody can; other errors are no reason to give it up.
func (b *Backup) reopen(ctx context.Context, a *attempt) (*sender, error) {
	m := &a.Manifest
	switch {
	case b.Fresh:
		return nil, unusable("a fresh backup was asked for")
	case a.Store != b.Store.URL() || m.Cluster != b.Cluster:
		return nil, unusable("it is of %s in %s", m.Cluster, a.Store)
	}
	last, err := b.Workdir.lastStored()
	if err != nil {
		return nil, err
	}
	if b.Now().Sub(last) > attemptKept {
		return nil, unusable("nothing was stored since %s", last.UTC().Format(time.RFC3339))
	}
	var stage *snapshot.Stage
	if a.Sealed != nil {
		err = a.Sealed.there(b.Workdir)
	} else if stage, err = snapshot.OpenStage(b.Workdir.FS, m.ID, a.Roots); err == nil && stage.Digest() != a.Stage {
		err = errors.New("its stage is another one")
	}
	if err != nil {
		return nil, unusable("%w", err)
	}
	for _, v := range m.Volumes {
		o, err := b.Store.Stat(ctx, b.Catalog.ObjectKey(m.ID, v.Name))
		if errors.Is(err, uploader.ErrNotFound) || err == nil && (o.Size != v.Size || o.ETag != v.ETag) {
			return nil, unusable("%s is no longer in the store as it was stored", v.Name)
		}
		if err != nil {
			return nil, err
		}
	}
	return &sender{b: b, stage: stage, a: a}, nil
}

// goOn ends the attempt of an earlier run, where there is one that can be ended;
// a nil sender means that there was none. It needs no replica.
func (b *Backup) goOn(ctx context.Context, sum *Summary) (done bool, err error) {
	a, err := b.Workdir.attempt()
	if a == nil || err != nil {
		return false, err
	}
	m := &a.Manifest
	s, err := b.reopen(ctx, a)
	if errors.Is(err, errUnusable) {
		b.warn(fmt.Sprintf("what was sent of backup %s is removed: %v", m.ID, err), hint.Of(err))
		return false, b.discard(ctx, a, err)
	}
	if err == nil {
		err = b.steer(ctx)
	}
	if err != nil {
		return false, err
	}
	letGo, err := b.lease(ctx)
	if err != nil {
		return false, err
	}
	defer letGo()
	sum.ID, sum.Resumed, sum.label = m.ID, true, m.Label
	sum.at(PositionOf(m))
	sum.Hash = m.Position.Hash
	b.phase(m.ID, "resume", "going on with %s: %s, taken at %s, %d of %d volumes stored",
		m.ID, PositionOf(m), m.Times.Held.Format(time.RFC3339), len(m.Volumes), a.Volumes)
	s.st = &State{ID: m.ID, Cluster: b.Cluster, Store: a.Store, PID: os.Getpid(), Started: m.Times.Begun}
	if s.st.BootID, err = fsx.BootID(); err != nil {
		return false, err
	}
	b.component = m.System
	if m.Label == b.Label { // or it is not the one that is to be pinned
		a.Pin = max(a.Pin, b.Pin)
	}
	if err := b.announce(ctx, m.ID, m.Volumes); err != nil {
		return false, err
	}
	if s.sent = !m.Times.Uploaded.IsZero(); !s.sent {
		m.Runs = append(m.Runs, uploader.Worked{Begun: b.Now().UTC(), Eddy: b.Version})
	}
	s.sum = sum
	return true, b.end(ctx, s)
}

// end sends what is left and takes away what was needed for it. A run that fails
// leaves the attempt for the next one, unless its stage is to blame.
func (b *Backup) end(ctx context.Context, s *sender) error {
	id := s.a.Manifest.ID
	wctx, watch := b.watchRoom(ctx, s.a.Roots)
	s.watch = watch
	err := s.run(wctx)
	if errors.Is(err, uploader.ErrUploadGone) {
		b.warn("the half-sent upload was ended by somebody else; it is begun anew", hint.Of(err))
		err = s.run(wctx)
	}
	if errors.Is(err, uploader.ErrCopied) {
		b.warn("what earlier attempts have stored is not copied any more: "+err.Error(), hint.Of(err))
		s.a.SendAll = true
		if err = b.Workdir.keep(s.a); err == nil {
			err = s.run(wctx)
		}
	}
	if cause := context.Cause(wctx); err != nil && errors.Is(cause, errRoom) {
		err = cause
	}
	watch.stop()
	switch {
	case err == nil:
		return errors.Join(s.removeStage(), b.Workdir.forget(), b.Workdir.leave())
	case errors.Is(err, ErrStage), errors.Is(err, errUnusable), errors.Is(err, ErrProof):
		return errors.Join(err, b.discard(ctx, s.a, err))
	}
	nctx, cancel := noteTo(ctx, 20*time.Second)
	defer cancel()
	if ferr := b.Catalog.FailRun(nctx, id, err); ferr != nil {
		b.Events.Emit(Warning{Text: "the failure could not be noted in the bucket: " + ferr.Error()})
	}
	b.phase(id, "kept", "what was sent of %s is kept: the next backup goes on with it", id)
	return errors.Join(err, b.Workdir.leave())
}

// discard takes back an attempt that nobody can end: half-sent upload, run
// record, stage. Volumes that are stored stay: the next attempt may copy them, and
// then retention takes them.
func (b *Backup) discard(ctx context.Context, a *attempt, cause error) error {
	ctx, cancel := noteTo(ctx, 20*time.Second)
	defer cancel()
	if a.Store == b.Store.URL() {
		if err := b.abandonUploads(ctx); err != nil {
			return fmt.Errorf("remove the upload of an earlier run: %w", err)
		}
		if err := b.Catalog.GiveUpRun(ctx, a.Manifest.ID, cause); err != nil {
			b.Events.Emit(Warning{Text: "the failure could not be noted in the bucket: " + err.Error()})
		}
	}
	if err := snapshot.SweepStages(b.Workdir.FS, a.Roots, ""); err != nil {
		return fmt.Errorf("remove the stage of an earlier run: %w", err)
	}
	return errors.Join(b.Workdir.forget(), b.Workdir.leave())
}
