package main

import (
	"fmt"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/job"
)

// newSource makes the replica of the configured kind.
func newSource(c *config.Config) (job.Replica, error) {
	switch c.Replica.Kind {
	case "cometbft":
		return newReplica(c)
	}
	return nil, fmt.Errorf("replica.kind %q is not wired", c.Replica.Kind) // config has refused it before
}
