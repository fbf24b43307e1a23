package control

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
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

// An open journal is settled by the control that wrote it, and by no other: who has
// changed the configuration meanwhile is told to see for himself.
func TestOpenHoldOfAnotherControl(t *testing.T) {
	dir := t.TempDir()
	if err := (Record{Kind: kindHold, Control: controlExec, Purpose: purposeBackup, PID: 7}).write(dir); err != nil {
		t.Fatal(err)
	}
	sh := []string{"sh", "-c", "exit 0"}
	own := mustExec(t, ExecConfig{Stop: sh, Start: sh, Status: sh, Dir: dir})
	unit, err := NewSystemd(SystemdConfig{Unit: "gaiad", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Control{
		"while process 7 lives this is as it should be; else `eddy backup` starts": own,
		"then `rm " + dir + "/hold.json`":                                          NewSupervise(filepath.Join(dir, "s")),
		"see to it that the node runs, then `rm " + dir + "/hold.json`":            unit,
		"else `eddy backup` starts the node":                                       NewOrdered(own, unit),
	} {
		i := slices.IndexFunc(Checks(t.Context(), c, dir, DefaultTimeout), func(f check.Finding) bool {
			return f.Name == "open hold" && strings.Contains(f.Hint, want)
		})
		if i < 0 {
			t.Errorf("%s: no hint with %q", c, want)
		}
	}
}
