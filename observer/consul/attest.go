package consul

import (
	"context"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// Attest implements observer.Attester: nobody can be asked. Six snapshots of one
// index have had six hashes, and no server tells one of its state.
func (s *Source) Attest(context.Context, observer.Position, observer.Evidence, time.Duration) (observer.Evidence, error) {
	return observer.Evidence{NotPossible: "two servers give different snapshots of one state"}, nil
}
