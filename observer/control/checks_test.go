package control

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
)

// stub is a control that only tells its status.
type stub struct {
	Control
	status Status
	err    error
}

func (s stub) String() string                         { return "stub" }
func (s stub) Status(context.Context) (Status, error) { return s.status, s.err }

// checkingStub has more to say.
type checkingStub struct{ stub }

func (checkingStub) Checks(context.Context) []check.Finding {
	return []check.Finding{{Name: "right to stop", Level: check.Fail, Said: "no", Hint: "install the rule"}}
}

func TestChecks(t *testing.T) {
	up := stub{status: Status{Running: true}}
	for name, c := range map[string]struct {
		control Control
		timeout time.Duration
		want    check.Level
	}{
		"running":          {up, DefaultTimeout, check.OK},
		"stopped":          {stub{}, DefaultTimeout, check.Fail},
		"held":             {stub{status: Status{Held: true}}, DefaultTimeout, check.Warn},
		"no answer":        {stub{err: errors.New("no")}, DefaultTimeout, check.Fail},
		"in a hurry":       {up, time.Minute, check.Warn},
		"one that objects": {checkingStub{up}, DefaultTimeout, check.Fail},
		"really nobody":    {NewSupervise(filepath.Join(t.TempDir(), "s")), DefaultTimeout, check.Fail},
	} {
		all := Checks(t.Context(), c.control, t.TempDir(), c.timeout)
		if got := check.Worst(all); got != c.want {
			t.Errorf("%s: %s, want %s: %+v", name, got, c.want, all)
		}
		for _, f := range all {
			if (f.Hint == "") != (f.Level == check.OK) || f.Said == "" {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}
