// Package job is the only place where observer, snapshot and uploader meet: it
// runs a backup, a restore, an expiry and the schedule, and keeps the job's
// state on disk.
//
// It refuses to know command lines, configuration files and terminals: it is
// given values and a sink for events. Its invariant: every word of the state is
// durable before the step that it names begins, so that whoever comes after a
// crash knows what may have happened; and whatever happens, a replica that was
// stopped is started again before anything else is attempted.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

var (
	// ErrWarnings: the work is done, but something needs the operator's eye.
	ErrWarnings = errors.New("done with warnings")
	// ErrNotConfirmed: a step that destroys something was not confirmed.
	ErrNotConfirmed = errors.New("not confirmed")
	// ErrStage: the files of the replica could not be brought into the stage, or
	// not be read there.
	ErrStage = errors.New("the stage failed")
	// ErrStart: a node that eddy had stopped was not started again.
	ErrStart = errors.New("the node was not started again")
)

// mark makes err one that is known by a sentinel which its text does not repeat.
func mark(as, err error) error { return observer.Mark(as, err) }

// Watcher hears of runs, to tell others. Its methods may take as long as they
// need: they are called only while no node is held. What they cannot do they say
// by events of their own; no run fails by it.
type Watcher interface {
	// Begun: a run has begun. Its end is told by whoever called it.
	Begun(ctx context.Context)
	// Died: an earlier run was killed; text says which.
	Died(ctx context.Context, text string)
	// Missed: no daemon was there when a run was due. It is caught up now.
	Missed(ctx context.Context, due time.Time)
	// Warned: something beside the runs needs the operator's eye.
	Warned(ctx context.Context, text, advice string)
}

// The words of a backup's life, in order. Each is durable in the workdir before
// the step begins.
const (
	stateGated     = "gated"
	statePrepared  = "prepared"
	stateHolding   = "holding"
	stateReleased  = "released"
	stateSealed    = "sealed"
	stateUploading = "uploading"
	stateUploaded  = "uploaded"
	stateCommitted = "committed"
)

const (
	stateFormat    = 1
	stateMinReader = 1
)

// State is the running job on disk (workdir/job.json). A missing file means idle.
type State struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	State     string    `json:"state"`
	Cluster   string    `json:"cluster"`
	Store     string    `json:"store"`
	BootID    string    `json:"boot_id"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	Updated   time.Time `json:"updated"`
}

// Holding tells that the replica stood still when the state was written.
func (s *State) Holding() bool { return s.State == stateHolding }

// Workdir is the directory of locks and journals of one replica.
type Workdir struct {
	Dir string
	FS  fsx.FS // makes the changes, here and in whatever a job does
}

func (w Workdir) path(name string) string { return filepath.Join(w.Dir, name) }

// Prepare makes the directory where there is none.
func (w Workdir) Prepare() error {
	if err := w.FS.MkdirAll(w.Dir, 0o700); err != nil {
		return hint.Add(fmt.Errorf("workdir: %w", err), w.byRoot())
	}
	return nil
}

// byRoot is what to do where this user may not make the directory, or write to it.
func (w Workdir) byRoot() string {
	uid, gid := strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getgid())
	return "as root: " + hint.Command("install", "-d", "-m", "0700", "-o", uid, "-g", gid, w.Dir) + ", or set `workdir: DIR` to a directory that eddy's user may write to"
}

// Lock admits one changing verb at a time. The lock dies with the process, or a
// moment after it.
func (w Workdir) Lock(ctx context.Context) (*fsx.Lock, error) {
	if err := w.Prepare(); err != nil {
		return nil, err
	}
	l, err := fsx.LockSoon(ctx, w.path("eddy.lock"))
	if errors.Is(err, fsx.ErrLocked) {
		what := "another eddy works on this replica"
		if st, serr := w.State(); serr == nil && st != nil {
			what = fmt.Sprintf("backup %s is %s, begun %s", st.ID, st.State, st.Started.UTC().Format(time.RFC3339))
		}
		return nil, hint.Add(fmt.Errorf("%s: %w", what, err), "wait until it has ended; `eddy status` shows it")
	}
	return l, err
}

// State reads the running job; nil where there is none. Read-only.
func (w Workdir) State() (*State, error) {
	var st State
	ok, err := w.read("job.json", &st)
	if err != nil || !ok {
		return nil, err
	}
	return &st, nil
}

func (w Workdir) read(name string, into any) (bool, error) {
	b, err := os.ReadFile(w.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var head struct {
		MinReader int `json:"min_reader"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return false, hint.Add(fmt.Errorf("state file %s is damaged: %w", w.path(name), err),
			"look at it; when no backup is running it may be removed, the next run starts afresh")
	}
	if head.MinReader > stateMinReader {
		return false, hint.Add(fmt.Errorf("state file %s was written by a newer eddy (min_reader %d)", w.path(name), head.MinReader),
			"use the newer eddy on this machine")
	}
	return true, json.Unmarshal(b, into)
}

func (w Workdir) write(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return w.FS.WriteFileAtomic(w.path(name), append(b, '\n'), 0o600)
}

func (w Workdir) enter(st *State, word string) error {
	st.State, st.Updated = word, time.Now().UTC()
	st.Format, st.MinReader = stateFormat, stateMinReader
	if err := w.write("job.json", st); err != nil {
		return fmt.Errorf("record state %s: %w", word, err)
	}
	return nil
}

// sweep removes the files that a killed run was writing. It needs the workdir's
// lock.
func (w Workdir) sweep() error {
	for _, name := range []string{"job.json", attemptName, capsFile, leaseFile, startFile} {
		if err := w.FS.SweepTemp(w.path(name)); err != nil {
			return fmt.Errorf("remove what an earlier run was writing: %w", err)
		}
	}
	if _, err := os.Lstat(w.path(attemptName)); errors.Is(err, fs.ErrNotExist) {
		return errors.Join(w.remove(sumsSpool), w.remove(sealedName)) // of none
	}
	return nil
}

func (w Workdir) leave() error { return w.remove("job.json") }

// noteTo gives a context that survives cancellation for a short clean-up.
func noteTo(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}
