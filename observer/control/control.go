package control

import (
	"context"
	"errors"
	"time"
)

// ErrStopped is returned by Hold when the node was not running before: somebody
// stopped it on purpose.
var ErrStopped = errors.New("the node is already stopped")

// ErrKilled is returned by Hold when the stop ended in a SIGKILL or a crash:
// what lies on the disk is tainted and must not become a backup.
var ErrKilled = errors.New("the node did not stop by itself")

// Status is what the node's manager says of it.
type Status struct {
	Running bool   `json:"running"`
	Held    bool   `json:"held"`
	PID     int    `json:"pid,omitempty"`
	Since   string `json:"since,omitempty"` // names this very run of the node; never a bare pid
}

// Request says what a hold is for.
type Request struct {
	Purpose  string        // "backup"
	Timeout  time.Duration // how long the node may take to stop
	Deadline time.Duration // how long the hold may last in all; after it the guard acts
	Stage    string        // id of the stage, for the journal
	// Down proves, beyond the manager's word, that the node is down. It is asked
	// until it returns nil or Timeout is over.
	Down func(ctx context.Context) error
}

// Hold is a node standing still.
type Hold interface {
	// Release starts the node and returns when its manager says that it runs. It
	// may be called more than once. It ignores the cancellation of ctx.
	Release(ctx context.Context) error
	// Lost is closed when the hold ended without Release: deadline passed, guard
	// acted, connection dropped. What was captured must be discarded.
	Lost() <-chan struct{}
}

// Control is one way to stop and start one node.
type Control interface {
	// Status asks the manager. Read-only.
	Status(ctx context.Context) (Status, error)
	// Hold stops the node. On an error the node was not stopped, or runs again.
	Hold(ctx context.Context, r Request) (Hold, error)
	// Recover acts on a hold journal that a dead eddy left: it takes the lock,
	// and starts the node where the journal says that eddy stopped it. It
	// reports whether there was anything to do. Changing verbs call it first.
	Recover(ctx context.Context) (acted bool, err error)
	// String names the node for messages: "supervise /run/eddy/node.sock".
	String() string
}
