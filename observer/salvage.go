package observer

import (
	"context"

	"github.com/eddy-backup/eddy/snapshot"
)

// Salvager is a replica that gives what one member has, of a cluster that cannot
// decide any more, only when it is asked for just that.
type Salvager interface {
	// Salvage is Capture without a look at who leads. The position says how old what
	// it took may be, or that nobody knows.
	Salvage(ctx context.Context, st *snapshot.Stage) error
}
