package control

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
)

var _ check.Checker = (*docker)(nil)

// goodStopTimeout is what a node should be given to stop, by whoever stops it.
const goodStopTimeout = DefaultTimeout

// Checks implements check.Checker.
func (d *docker) Checks(ctx context.Context) []check.Finding {
	ctx, cancel := context.WithTimeout(ctx, d.node.StatusTimeout)
	defer cancel()
	i, err := d.container.look(ctx)
	if err != nil {
		return []check.Finding{bad("right to stop", err)}
	}
	return []check.Finding{
		check.Good("right to stop", "the engine at "+d.container.ref.Host+" answers; before each hold it is asked for a start, which does nothing"),
		guardCheck(),
		i.managerCheck(),
		i.stopCheck(),
		i.inPlaceCheck(d.container.mayHalt(ctx)),
	}
}

func bad(name string, err error) check.Finding {
	return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: hint.Or(err, "`journalctl -u docker` has the engine's log")}
}

func guardCheck() check.Finding {
	if err := notProcessOne(os.Getpid()); err != nil {
		return bad("guard", err)
	}
	return check.Good("guard", "a process of eddy's own, started with each hold")
}

func (i containerInfo) managerCheck() check.Finding {
	const name = "node's manager"
	said := fmt.Sprintf("container %s is %s, its restart policy is %s", i.name, i.status, i.restart)
	if err := i.refusal(); err != nil {
		return bad(name, err)
	}
	if i.restart == "no" {
		return check.Finding{Name: name, Level: check.Warn, Said: said, Hint: hint.Command(dockerArgv(i.host, "update", "--restart", "unless-stopped", i.name)...)}
	}
	return check.Good(name, said)
}

// inPlaceCheck is the finding of MayHalt's answer. A restart policy is what a
// container should have, and is out of the way for as long as a restore takes.
func (i containerInfo) inPlaceCheck(err error) check.Finding {
	if errors.Is(err, ErrUnguarded) {
		before, after := i.policies()
		return inPlace(nil, fmt.Sprintf("it needs the restart policy no meanwhile: %s before it, %s after it", before, after))
	}
	return inPlace(err, "container "+i.name+" has no restart policy: the engine does not start it into one")
}

func (i containerInfo) stopCheck() check.Finding {
	const name = "stop time-out"
	if i.stopTimeout < 0 || i.stopTimeout >= goodStopTimeout {
		return check.Good(name, "eddy asks for a stop without SIGKILL")
	}
	return check.Finding{
		Name: name, Level: check.Warn,
		Said: fmt.Sprintf("eddy asks for a stop without SIGKILL, but docker stop and the engine's own end kill the node after %s", i.stopTimeout),
		Hint: "make the container anew with --stop-timeout 180, or with stop_grace_period: 3m in its compose file",
	}
}
