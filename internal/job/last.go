package job

import (
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// Last is what became of past backups (workdir/last.json). It tells the schedule
// whether a run was missed, status how long ago the last success was, and is what
// the metrics are made from, so that they outlive every eddy.
type Last struct {
	Format      int       `json:"format"`
	MinReader   int       `json:"min_reader"`
	Cluster     string    `json:"cluster,omitempty"`
	LastRun     time.Time `json:"last_run"`     // begun
	LastSuccess time.Time `json:"last_success"` // READY, or unchanged since a READY that still lists
	LastID      string    `json:"last_id,omitempty"`
	Position    uint64    `json:"position,omitempty"` // of LastID
	// LastVerified is when a backup of the cluster was last read back whole, by
	// anybody, as the bucket said at the last success, or by this workdir's daemon.
	LastVerified time.Time `json:"last_verified,omitzero"`
	// LastDrill is the newest drill that this workdir's eddy made, LastDrilled the
	// newest that passed.
	LastDrill     *LastDrill `json:"last_drill,omitempty"`
	LastDrilled   time.Time  `json:"last_drilled,omitzero"`
	LastDrilledID string     `json:"last_drilled_id,omitempty"`
	LastError     string     `json:"last_error,omitempty"`
	LastFailed    time.Time  `json:"last_failed,omitzero"`   // when LastError was; a run that could not begin is no LastRun
	HeldSeconds   float64    `json:"held_seconds,omitempty"` // of the last hold, whatever became of its run
	NodeSeconds   float64    `json:"node_seconds,omitempty"` // of HeldSeconds: the node's own stop and start
	// Open says that a run has begun and not ended. Who finds it set while it has
	// the workdir's lock knows that the run died.
	Open bool `json:"open,omitempty"`
	// Tasks is when each of the daemon's tasks was done last, whatever it found.
	Tasks map[string]time.Time `json:"tasks,omitempty"`
	// Failures counts the runs that failed, by reason, since the workdir was made.
	Failures map[string]uint64 `json:"failures,omitempty"`
}

// LastDrill is what became of a drill.
type LastDrill struct {
	Time    time.Time `json:"time"` // begun
	ID      string    `json:"id"`
	Outcome string    `json:"outcome"`
	Why     string    `json:"why,omitempty"` // of one that did not pass
	Seconds float64   `json:"seconds"`
}

// The words by which failures are counted. Which error counts as what is said by
// Backup.Reason, for the errors of all packages are known to the wiring only.
const (
	ReasonConfig      = "config"      // the run could not begin: configuration, credentials, layout
	ReasonLocked      = "locked"      // another eddy was at work
	ReasonGate        = "gate"        // the replica was not fit
	ReasonHold        = "hold"        // it could not be stopped as it should be
	ReasonStart       = "start"       // it was not started again
	ReasonStage       = "stage"       // its files could not be staged or read
	ReasonProof       = "proof"       // they are not what a backup should be
	ReasonStore       = "store"       // the store refused or was not reached
	ReasonCorrupt     = "corrupt"     // what was stored is not what was sent
	ReasonInterrupted = "interrupted" // by a signal
	ReasonKilled      = "killed"      // nobody was left to say why
	ReasonOther       = "other"
)

// Reasons lists all words, so that each has a counter before it is first needed:
// an increase from nothing to one is none to Prometheus.
func Reasons() []string {
	return []string{
		ReasonConfig, ReasonLocked, ReasonGate, ReasonHold, ReasonStart, ReasonStage, ReasonProof,
		ReasonStore, ReasonCorrupt, ReasonInterrupted, ReasonKilled, ReasonOther,
	}
}

func (l *Last) fail(reason string) {
	if l.Failures == nil {
		l.Failures = map[string]uint64{}
	}
	l.Failures[reason]++
}

// settle counts a run that died; word is the state in which it did, "" where it
// had none yet. It returns what to say of it, "" where none did.
func (l *Last) settle(word string) string {
	if !l.Open {
		return ""
	}
	l.Open = false
	l.fail(ReasonKilled)
	l.LastFailed = l.LastRun
	l.LastError = "the run of " + l.LastRun.UTC().Format(time.RFC3339) + " died"
	if word != "" {
		l.LastError += " as it was " + word
	}
	return l.LastError
}

// Last reads what became of past backups; the zero value where nothing is known.
func (w Workdir) Last() (Last, error) {
	var l Last
	_, err := w.read("last.json", &l)
	return l, err
}

// remember changes last.json. It has a lock of its own, held for an instant:
// a run that finds another one at work has something to write down as well.
func (w Workdir) remember(change func(*Last)) (err error) {
	if err := w.Prepare(); err != nil {
		return err
	}
	var lock *fsx.Lock
	take := func() error {
		if lock, err = fsx.TryLock(w.path("last.lock")); err != nil && !errors.Is(err, fsx.ErrLocked) {
			return backoff.Permanent(err)
		}
		return err
	}
	if err := backoff.Retry(take, backoff.WithMaxRetries(backoff.NewConstantBackOff(10*time.Millisecond), 500)); err != nil {
		return fmt.Errorf("write down what became of a run: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	l, err := w.Last()
	if err != nil {
		return err
	}
	l.Format, l.MinReader = stateFormat, stateMinReader
	change(&l)
	if err := w.FS.SweepTemp(w.path("last.json")); err != nil {
		return err
	}
	return w.write("last.json", l)
}

// Verified writes down that a backup was read back whole just now.
func (w Workdir) Verified(now time.Time) error {
	return w.remember(func(l *Last) { l.LastVerified = now.UTC() })
}

// begin writes down that a run has begun, and returns what to say of one that
// died before it. It needs the workdir's lock.
func (w Workdir) begin(cluster string, now time.Time) (died string, err error) {
	word, err := w.word()
	if err != nil {
		return "", err
	}
	err = w.remember(func(l *Last) {
		died = l.settle(word)
		l.Cluster, l.LastRun, l.Open = cluster, now.UTC(), true
	})
	return died, err
}

// settle counts a run that died, and returns what to say of it, "" where none
// did. It needs the workdir's lock: with it no run is alive.
func (w Workdir) settle() (died string, err error) {
	last, err := w.Last()
	if err != nil || !last.Open {
		return "", err
	}
	word, err := w.word()
	if err != nil {
		return "", err
	}
	err = w.remember(func(l *Last) { died = l.settle(word) })
	return died, err
}

// word is the state that job.json names, "" where there is none.
func (w Workdir) word() (string, error) {
	st, err := w.State()
	if st == nil || err != nil {
		return "", err
	}
	return st.State, nil
}

// Fail counts a run that could not begin: its configuration was wrong, or another
// one was at work, of which LastError then says nothing. What comes to Backup.Run
// is counted there.
func (w Workdir) Fail(reason string, cause error, now time.Time) error {
	return w.remember(func(l *Last) {
		l.fail(reason)
		if !errors.Is(cause, fsx.ErrLocked) {
			l.LastError, l.LastFailed = cause.Error(), now.UTC()
		}
	})
}
