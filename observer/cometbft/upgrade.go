package cometbft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// plan is an upgrade of the program, as the SDK or cosmovisor wrote it down.
type plan struct {
	name   string
	height int64 // of the first block of the new program; 0: there is no plan
}

// upgradePlan reads the home's newest plan. A file that cannot be understood is
// cosmovisor's to complain of.
func upgradePlan(home string) (plan, error) {
	b, err := os.ReadFile(filepath.Join(home, "data", "upgrade-info.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return plan{}, nil
	}
	if err != nil {
		return plan{}, fmt.Errorf("%w: the upgrade plan: %w", observer.ErrNotFit, err)
	}
	var p struct {
		Name   string
		Height json.Number
	}
	if json.Unmarshal(b, &p) != nil {
		return plan{}, nil
	}
	due, err := p.Height.Int64()
	if err != nil || due < 1 {
		return plan{}, nil
	}
	return plan{name: p.Name, height: due}, nil
}

// isUpgrading tells whether the next block is the first one of another program.
// The SDK writes the plan down when it is due and the running program does not
// know it, and then stands still; cosmovisor reads it, and changes the program
// (x/upgrade, DumpUpgradeInfoToDisk). `cosmovisor add-upgrade --upgrade-height`
// writes it ahead, so that a plan which is not due yet, or was carried out, says
// nothing.
func (r *Replica) isUpgrading(s observer.State) error {
	p, err := upgradePlan(r.o.Home)
	if err != nil || p.height < 1 || uint64(p.height) != s.Position.Index+1 {
		return err
	}
	return behind("let the upgrade finish first; cosmovisor's log says how far it is, and which program it looks for",
		"the upgrade %q is due with the next block, %d", p.name, p.height)
}

// otherProgram compares the program that made what comes with the one that is
// here; now.Version is "" where the node does not answer. other is for a person to
// judge: versions are words, and say neither which is older nor what that matters.
//
// One case is known to do harm: the home's last upgrade was carried out, and what
// comes ends before the last block of the program of before. The SDK's own check
// (x/upgrade, "BINARY UPDATED BEFORE TRIGGER") panics there, or, where the plan was
// not voted yet, the blocks up to it are executed by rules that are not theirs and
// the app hash differs. While such a program runs here, err says no.
func otherProgram(comes, now observer.State, last plan) (other, err error) {
	before := last.height > 0 && comes.Position.Index+1 < uint64(last.height)
	differs := comes.Version != "" && comes.Version != now.Version || comes.App != "" && now.App != "" && comes.App != now.App
	const todo = "put the program in place that made the backup"
	switch {
	case now.Version == "" && before:
		return hint.Add(fmt.Errorf("the backup, of height %d, is from before the upgrade %q at height %d: no later program can go on from it; it was made by %s", comes.Position.Index, last.name, last.height, comes.Program()),
			todo+" before the node starts (--no-start leaves it down)"), nil
	case now.Version == "" || !differs:
		return nil, nil
	case before && now.Position.Index >= uint64(last.height):
		return nil, unfit(todo+", stop the node, then restore; a later backup needs neither",
			"the backup, of height %d, was made by %s; here runs %s, which the upgrade %q at height %d brought: it cannot go on from there", comes.Position.Index, comes.Program(), now.Program(), last.name, last.height)
	}
	return hint.Add(fmt.Errorf("the backup was made by %s, here runs %s", comes.Program(), now.Program()),
		"where their release notes do not say that both read the same data: "+todo), nil
}

// mayStart refuses to start what cosmovisor would: the program of an upgrade that
// comes after the backup. It knows a program by the directory that its link names
// (cosmovisor, args.go UpgradeDir: the plan's name, escaped, in lower case).
func mayStart(home string, comes observer.State, last plan) error {
	link, err := os.Readlink(filepath.Join(home, "cosmovisor", "current"))
	if err != nil {
		return nil // no cosmovisor, or one elsewhere
	}
	if last.height < 1 || comes.Position.Index+1 >= uint64(last.height) || !strings.EqualFold(filepath.Base(link), url.PathEscape(last.name)) {
		return nil
	}
	return unfit("lead cosmovisor/current back to the program that made the backup, "+comes.Program()+", then restore; or say --no-start",
		"cosmovisor would start the program of the upgrade %q at height %d; the backup, of height %d, is from before it", last.name, last.height, comes.Position.Index)
}
