package control

import (
	"cmp"
	"context"
	"fmt"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
)

var _ check.Checker = (*guarded)(nil)

// Checks are those of the node's manager, where it has any.
func (e *guarded) Checks(ctx context.Context) []check.Finding {
	if by, ok := e.node.by.(check.Checker); ok {
		return by.Checks(ctx)
	}
	return nil
}

// Checks says what Hold would refuse, and what would make a stop an unclean one.
func (s *service) Checks(ctx context.Context) []check.Finding {
	u, err := s.systemd.unit(ctx, s.ref.Name)
	if err == nil {
		err = u.fit()
	}
	if err == nil {
		var sockets []string
		if sockets, err = s.sockets(ctx, u); err == nil {
			err = s.alone(ctx, u.without(sockets))
		}
	}
	const manager = "node's manager"
	out := []check.Finding{found(manager, u.name+" is "+cmp.Or(u.unitFileState, "loaded")+" and runs as "+orRoot(u.user), err)}
	if u.loadState != "loaded" {
		return out
	}
	return append(out, stopTime(u),
		found("guard", s.ref.guardUnit(".timer")+" is installed and looks into "+s.dir, s.guardFits(ctx, u)),
		inPlace(s.mayHalt(ctx), u.name+" is not started into a restore in place"),
		found("right to stop", "eddy may stop and start "+u.name+" and its guard", s.mayControl(ctx, u)))
}

func found(name, good string, err error) check.Finding {
	if err == nil {
		return check.Good(name, good)
	}
	return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: hint.Or(err, "see docs/systemd.md")}
}

// inPlace is the finding of MayHalt's answer: it concerns no backup.
func inPlace(err error, good string) check.Finding {
	const name = "restore in place"
	if err == nil {
		return check.Good(name, good)
	}
	return check.Finding{Name: name, Level: check.Warn, Said: "it would refuse: " + err.Error(), Hint: cmp.Or(hint.Of(err), "eddy restore SEL --into DIR works all the same")}
}

var _ check.Checker = (*supervised)(nil)

// Checks implements check.Checker.
func (c *supervised) Checks(ctx context.Context) []check.Finding {
	if _, err := c.status(ctx); err != nil {
		return nil // said already: it is asked whether the node runs
	}
	return []check.Finding{inPlace(c.MayHalt(ctx, false), c.String()+" starts no node into a restore in place")}
}

// stopTime judges how long systemd waits before it kills.
func stopTime(u unit) check.Finding {
	const name = "stop time-out"
	if u.timeoutStop != 0 && u.timeoutStop < minStop {
		return check.Finding{
			Name: name, Level: check.Fail, Said: fmt.Sprintf("systemd kills %s after %s", u.name, u.timeoutStop),
			Hint: longerStop(u.name),
		}
	}
	return check.Good(name, "systemd gives "+u.name+" time enough to stop")
}
