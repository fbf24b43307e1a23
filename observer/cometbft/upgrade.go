package cometbft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/eddy-backup/eddy/observer"
)

// isUpgrading tells whether the next block is the first one of another program.
// The SDK writes the plan down when it is due and the running program does not
// know it, and then stands still; cosmovisor reads it, and changes the program
// (x/upgrade, DumpUpgradeInfoToDisk). `cosmovisor add-upgrade --upgrade-height`
// writes it ahead, so that a plan which is not due yet, or was carried out, says
// nothing. A file that cannot be understood is cosmovisor's to complain of.
func (r *Replica) isUpgrading(s observer.State) error {
	b, err := os.ReadFile(filepath.Join(r.o.Home, "data", "upgrade-info.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: the upgrade plan: %w", observer.ErrNotFit, err)
	}
	var plan struct {
		Name   string
		Height json.Number
	}
	if json.Unmarshal(b, &plan) != nil {
		return nil
	}
	if due, err := plan.Height.Int64(); err != nil || due < 1 || uint64(due) != s.Position.Index+1 {
		return nil
	}
	return behind("let the upgrade finish first; cosmovisor's log says how far it is, and which program it looks for",
		"the upgrade %q is due with the next block, %s", plan.Name, plan.Height)
}
