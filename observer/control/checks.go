package control

import (
	"context"
	"fmt"
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
			Hint: "write timeout: 2m or more under replica.control",
		})
	} else {
		out = append(out, check.Good("stop time-out", fmt.Sprintf("eddy gives the node %s to stop, and never kills it", timeout)))
	}
	switch rec, err := ReadHold(workdir); {
	case err != nil:
		out = append(out, check.Finding{Name: "open hold", Level: check.Warn, Said: err.Error(), Hint: "the next `eddy backup` or `eddy run` settles it; look whether the node runs"})
	case rec != nil:
		out = append(out, check.Finding{
			Name: "open hold", Level: check.Warn, Said: rec.String(),
			Hint: "while that eddy lives this is as it should be; else the next `eddy backup` or `eddy run` starts the node",
		})
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
		todo := hint.Of(err)
		if todo == "" {
			todo = "look at replica.control: eddy cannot tell whether the node runs"
		}
		return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: todo}
	case st.Held:
		return check.Finding{Name: name, Level: check.Warn, Said: c.String() + ": the node is held still just now", Hint: "a backup is in its hold: ask again in a minute"}
	case !st.Running:
		return check.Finding{Name: name, Level: check.Fail, Said: c.String() + ": the node is stopped", Hint: "start it; eddy starts no node that somebody else stopped"}
	default:
		return check.Good(name, c.String()+": the node is running")
	}
}
