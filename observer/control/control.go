package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrStopped is returned by Hold when the node was not running before: somebody
// stopped it on purpose.
var ErrStopped = errors.New("the node is already stopped")

// ErrKilled is returned by Hold when the stop ended in a SIGKILL or a crash:
// what lies on the disk is tainted and must not become a backup.
var ErrKilled = errors.New("the node did not stop by itself")

// ErrHeld is returned where somebody else holds the node, or a guard still
// watches over an earlier hold.
var ErrHeld = fmt.Errorf("the node is held already: %w", fsx.ErrLocked)

// ErrStopTimeout is returned by Hold when the node did not stop in time. It is
// never killed; if it ends later after all it is started again.
var ErrStopTimeout = errors.New("the node did not stop in time")

// ErrNotDown is in the chain of what NoOpenFiles, PortRefuses and AllDown return
// when something shows that the node still lives, or that this cannot be told.
var ErrNotDown = errors.New("the node is not proven to be down")

// ErrRestoring says that a restore holds the node: only it may start it.
var ErrRestoring = errors.New("a restore is under way")

// What a node is stopped for. A hold is for a backup: it ends with the node
// started, whatever happens. A restore halts the node: then nothing starts it
// while its swap file is there.
const (
	purposeBackup  = "backup"
	purposeRestore = "restore"
)

// What a Request means where it says nothing.
const (
	DefaultTimeout  = 120 * time.Second // cf. mezod's report on stops that were cut short
	DefaultDeadline = 10 * time.Minute
)

// ErrDown is in the chain of what Hold, Release and Recover return while the node
// stands still because of a hold, or may: it was not seen to run again, and its
// guard, or supervise, goes on trying.
var ErrDown = errors.New("the node is not seen to run")

// ErrStopping is in the chain of what Hold returns of a node that was told to stop
// and has not: it may yet, and is then started again.
var ErrStopping = errors.New("if it ends yet, it is started again")

// Status is what the node's manager says of it.
type Status struct {
	Running bool   `json:"running"`
	Held    bool   `json:"held"`
	PID     int    `json:"pid,omitempty"`
	Since   string `json:"since,omitempty"` // names this very run of the node; never a bare pid
}

// Request says what a hold is for.
type Request struct {
	Purpose  string        // "backup", which is also what "" means
	Timeout  time.Duration // how long the node may take to stop; 0: DefaultTimeout
	Deadline time.Duration // how long the hold may last in all, the stop included; after it the guard acts; 0: DefaultDeadline
	Stage    string        // id of the stage, for the journal
	// Down proves, beyond the manager's word, that the node is down. It is asked
	// until it returns nil or Timeout is over.
	Down func(ctx context.Context) error
	// Unlock is what a guard does when it has started the node; eddy itself does it by
	// its own. It is kept in memory, and goes to the guard by a socket. nil: nothing.
	Unlock *Unlock
}

// withDefaults checks r and fills in what it leaves open.
func (r Request) withDefaults() (Request, error) {
	if r.Purpose == "" {
		r.Purpose = purposeBackup
	}
	if r.Timeout == 0 {
		r.Timeout = DefaultTimeout
	}
	if r.Deadline == 0 {
		r.Deadline = DefaultDeadline
	}
	switch {
	case r.Purpose != purposeBackup:
		return r, fmt.Errorf("hold: purpose %q is not one that a node is held for here", r.Purpose)
	case r.Timeout < 0 || r.Deadline < 0:
		return r, errors.New("hold: time-out and deadline must not be negative")
	case r.Timeout >= r.Deadline:
		return r, hint.Add(fmt.Errorf("hold: the node may take %s to stop, but the whole hold only %s", r.Timeout, r.Deadline),
			"set `replica.control.deadline: 10m`, or anything else that is longer than replica.control.timeout")
	}
	return r, nil
}

// Hold is a node standing still.
type Hold interface {
	// Release starts the node and returns when its manager says that it runs. It
	// may be called more than once: after ErrDown it tells whether the node runs by
	// now. It ignores the cancellation of ctx.
	Release(ctx context.Context) error
	// Lost is closed when the hold ended without Release: deadline passed, guard
	// acted, connection dropped. What was captured must be discarded.
	Lost() <-chan struct{}
}

// Control is one way to stop and start one node.
type Control interface {
	// Status asks the manager. Read-only.
	Status(ctx context.Context) (Status, error)
	// Hold stops the node. On an error the node was not stopped, or runs again, but
	// for ErrDown and ErrStopping.
	Hold(ctx context.Context, r Request) (Hold, error)
	// Recover acts on a hold journal that a dead eddy left: it takes the lock,
	// and starts the node where the journal says that eddy stopped it. It
	// reports whether there was anything to do. Changing verbs call it first.
	Recover(ctx context.Context) (acted bool, err error)
	// MayHalt says why the node could not be halted, or would be started by somebody
	// while it is, or could not be started after; nil where it can. It need not run.
	// leaveDown: it is not to be started after. Read-only.
	MayHalt(ctx context.Context, leaveDown bool) error
	// Halt stops the node for a restore and proves that it is down; one that is down
	// is no error. The swap file must be there: from then on until it is removed
	// nothing starts the node, this process's death included. On an error the node
	// may run, or end yet; the caller removes the swap file and calls Start.
	Halt(ctx context.Context, r Request) error
	// Start starts the node after a restore, with the swap file gone, and returns
	// when its manager says that it runs.
	Start(ctx context.Context) error
	// String names the node for messages: "supervise /run/eddy/node.sock".
	String() string
}
