package control

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
)

// minStop is how long a node must at least be given to stop by itself: large
// databases are flushed then.
const minStop = 120 * time.Second

// Checks looks at a node's control: is the node running, does an earlier hold
// stand open in workdir, is there time enough to stop. A control that can say
// more (check.Checker) says it too. Nothing is stopped, started or written.
func Checks(ctx context.Context, c Control, workdir string, timeout time.Duration) []check.Finding {
	out := []check.Finding{isRunning(ctx, c)}
	if timeout < minStop {
		out = append(out, check.Finding{
			Name: "stop time-out", Level: check.Warn, Said: fmt.Sprintf("eddy gives the node %s to stop, then gives the backup up", timeout),
			Hint: "set `replica.control.timeout: 2m`, or more",
		})
	} else {
		out = append(out, check.Good("stop time-out", fmt.Sprintf("eddy gives the node %s to stop, and never kills it", timeout)))
	}
	switch rec, err := ReadHold(workdir); {
	case err != nil:
		out = append(out, check.Finding{Name: "open hold", Level: check.Warn, Said: err.Error(), Hint: "`eddy backup` starts the node, if it does not run, and closes the journal"})
	case rec != nil:
		f := check.Finding{Name: "open hold", Level: check.Warn, Said: rec.String(), Hint: fmt.Sprintf("while process %d lives this is as it should be; else `eddy backup` starts the node, if it does not run, and closes the journal", rec.PID)}
		if !settles(c, *rec) {
			f.Said += fmt.Sprintf(", by control %s; the configuration names another: %s", printable(rec.Control, 32), c)
			f.Hint = settleByHand(workdir)
		}
		out = append(out, f)
	}
	if more, ok := c.(check.Checker); ok {
		out = append(out, more.Checks(ctx)...)
	}
	return out
}

func isRunning(ctx context.Context, c Control) check.Finding {
	const name = "control"
	st, err := c.Status(ctx)
	switch {
	case err != nil:
		return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: hint.Or(err, "look at replica.control: eddy cannot tell whether the node runs")}
	case st.Held:
		return check.Finding{Name: name, Level: check.Warn, Said: c.String() + ": the node is held still just now", Hint: "a backup is in its hold: ask again in a minute"}
	case !st.Running:
		return check.Finding{Name: name, Level: check.Fail, Said: c.String() + ": the node is stopped", Hint: HowToStart(c) + "; eddy starts no node that somebody else stopped"}
	default:
		return check.Good(name, c.String()+": the node is running")
	}
}

// HowToStart is for hints: how a person starts the node that c controls.
func HowToStart(c Control) string {
	switch c := c.(type) {
	case *guarded:
		return "start it: " + byHand(c.node.by)
	case *docker:
		return "start it: " + byHand(c.node.by)
	case ordered:
		ways := make([]string, len(c))
		for i, one := range c {
			ways[len(c)-1-i] = HowToStart(one) // the app before its node
		}
		return strings.Join(ways, ", then ")
	default:
		return "look at the log of its `eddy supervise`, which starts it when it is started itself"
	}
}

func byHand(m manager) string { return hint.Command(m.startArgv()...) }

// settles tells whether Recover of c closes a journal that rec is read from.
func settles(c Control, rec Record) bool {
	switch c := c.(type) {
	case *guarded:
		return rec.Control == "" || rec.Control == c.control
	case *docker:
		return rec.Control == "" || rec.Control == c.control
	case ordered:
		return settles(c[0], rec) // the journal that is looked at is the node's
	default:
		return false // supervise has no journals, and does not look for any
	}
}

// settleByHand closes the journal of a control that is not used any more.
func settleByHand(workdir string) string {
	return "eddy will not touch it: when no eddy of before is left, see to it that the node runs, then " + hint.Command("rm", filepath.Join(workdir, recordFile))
}
