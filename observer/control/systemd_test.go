package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// good is a unit that can be held.
func goodUnit() unit {
	return unit{
		name: "gaiad.service", loadState: "loaded", activeState: "active", subState: "running", unitFileState: "enabled",
		invocation: "c04f3df0f4264e26b58f0328401b42b5", canStart: true, canStop: true, kind: "simple", killSignal: unix.SIGTERM,
	}
}

func TestUnitFit(t *testing.T) {
	if err := goodUnit().fit(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(*unit)
		want  string
	}{
		"unknown":            {func(u *unit) { u.loadState = "not-found" }, "knows no such unit"},
		"masked, running":    {func(u *unit) { u.loadState = "masked" }, "could not be started again"},
		"masked at runtime":  {func(u *unit) { u.unitFileState = "masked-runtime" }, "could not be started again"},
		"broken":             {func(u *unit) { u.loadState = "bad-setting" }, "cannot load it (bad-setting)"},
		"starting":           {func(u *unit) { u.activeState, u.subState = "activating", "auto-restart" }, "changing its state (activating, auto-restart)"},
		"job queued":         {func(u *unit) { u.job = 7 }, "changing its state"},
		"oneshot":            {func(u *unit) { u.kind = "oneshot" }, "no unit that runs"},
		"exited":             {func(u *unit) { u.subState = "exited" }, "no unit that runs"},
		"no stop by hand":    {func(u *unit) { u.canStop = false }, "refuses"},
		"stopped by SIGKILL": {func(u *unit) { u.killSignal = unix.SIGKILL }, "SIGKILL"},
		"old systemd":        {func(u *unit) { u.invocation = "" }, "does not name its runs"},
		"disabled, running":  {func(u *unit) { u.unitFileState = "disabled" }, "is disabled: after a reboot"},
	} {
		u := goodUnit()
		c.spoil(&u)
		err := u.fit()
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrStopped) || hint.Of(err) == "" {
			t.Errorf("%s: %v, hint %q", name, err, hint.Of(err))
		}
	}
	for name, spoil := range map[string]func(*unit){
		"inactive": func(u *unit) { u.activeState = "inactive" },
		"failed":   func(u *unit) { u.activeState = "failed" },
		"disabled": func(u *unit) { u.activeState, u.unitFileState = "inactive", "disabled" },
		"masked":   func(u *unit) { u.activeState, u.loadState = "inactive", "masked" },
	} {
		u := goodUnit()
		spoil(&u)
		if err := u.fit(); !errors.Is(err, ErrStopped) || hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	u := goodUnit()
	u.unitFileState, u.wantedBy = "disabled", []string{"chain.target"}
	if err := u.fit(); err != nil {
		t.Errorf("disabled, but something else starts it: %v", err)
	}
}

func TestUnitEnded(t *testing.T) {
	for _, c := range []struct {
		result       string
		code, status int32
		want         string
	}{
		{"success", 1, 0, ""},
		{"success", 1, 5, ""}, // SuccessExitStatus=5
		{"exit-code", 1, 143, ""},
		{"exit-code", 1, 130, ""},
		{"exit-code", 1, 1, "exit-code, exit status 1"},
		{"timeout", 2, 9, "systemd killed it after 1m30s"},
		{"timeout", 1, 0, "systemd killed it"}, // the main process ended well, another did not
		{"success", 2, 15, "it died of SIGTERM"},
		{"signal", 2, 9, "it died of SIGKILL"},
		{"oom-kill", 2, 9, "it died of SIGKILL"},
		{"core-dump", 3, 11, "it died of SIGSEGV"},
		{"success", 0, 0, "does not know how it ended"},
	} {
		u := goodUnit()
		u.activeState, u.timeoutStop = "inactive", 90*time.Second
		u.result, u.execMainCode, u.execMainStatus = c.result, c.code, c.status
		err := u.ended()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || hint.Of(err) == "") {
			t.Errorf("%s %d %d: %v, want %q", c.result, c.code, c.status, err, c.want)
		}
	}
}

// The properties as they come over D-Bus, and the same of wrong types.
func TestUnitOf(t *testing.T) {
	u := unitOf("x.service", map[string]any{
		"LoadState": "loaded", "ActiveState": "inactive", "InvocationID": []byte{0xc0, 0x4f}, "TimeoutStopUSec": uint64(90e6),
		"Job":        []any{uint32(7), dbus.ObjectPath("/x")},
		"KillSignal": int32(15), "RequiredBy": []string{"a.service"}, "PropagatesStopTo": []string{"b.service"},
		"ExecStart":       [][]any{{"/bin/x", []string{"/bin/x", "--workdir", "/w"}, false}, {}},
		"ConditionResult": false,
		"Conditions": [][]any{
			{"ConditionPathExists", false, false, "/a", int32(1)},
			{"ConditionPathExists", false, true, "/b", int32(-1)},
		},
	})
	if u.invocation != "c04f" || u.timeoutStop != 90*time.Second || u.job != 7 || u.killSignal != unix.SIGTERM ||
		len(u.execStart) != 1 || u.execStart[0][1] != "--workdir" || u.failedCondition != "ConditionPathExists=!/b" || len(u.notWhile) != 1 || u.notWhile[0] != "/b" ||
		strings.Join(u.stopsWith, " ") != "a.service b.service" || strings.Join(u.wantedBy, " ") != "a.service" {
		t.Errorf("%+v", u)
	}
	u = unitOf("x.service", map[string]any{
		"LoadState": 7, "Job": "x", "ExecStart": [][]any{nil, {1, 2}}, "Conditions": [][]any{{true}}, "TimeoutStopUSec": ^uint64(0),
	})
	if u.loadState != "" || u.job != 0 || u.execStart != nil || u.failedCondition != "" || u.timeoutStop != 0 {
		t.Errorf("%+v", u)
	}
}

func TestNewSystemd(t *testing.T) {
	for _, c := range []struct{ unit, rights, want string }{
		{"gaiad", "", "systemd gaiad.service"},
		{"cosmovisor@gaia.service", "sudo", "systemd cosmovisor@gaia.service"},
		{`a\x2db`, "polkit", `systemd a\x2db.service`},
		{"", "", ""},
		{"a b", "", ""},
		{"../x", "", ""},
		{"--now", "", ""},
		{"@x", "", ""},
		{"gaiad\n", "", ""},
		{"gaiad", "root", ""},
	} {
		ctl, err := NewSystemd(SystemdConfig{Unit: c.unit, Rights: c.rights, Dir: t.TempDir()})
		if (err == nil) != (c.want != "") || err == nil && ctl.String() != c.want {
			t.Errorf("%q %q: %v, %v", c.unit, c.rights, ctl, err)
		}
	}
	if got := (UnitRef{Name: "cosmovisor@gaia.service"}).guardUnit(".timer"); got != "eddy-guard@cosmovisor@gaia.timer" {
		t.Error(got)
	}
}

// The unit's guard finds who has the lock, and only those.
func TestLockHolders(t *testing.T) {
	t.Parallel()
	_, c := execNode(t)
	p := holder(t, holderArgs{Exec: &c, Timeout: 2 * slower * time.Second, Deadline: time.Minute})
	p.expect(t, "held")
	path := filepath.Join(c.Dir, lockFile)
	open, err := os.Open(path) // open is not locked
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	found, err := lockHolders(path)
	if err != nil || len(found) != 2 {
		t.Fatalf("%d holders, want eddy and its guard: %v", len(found), err)
	}
	for _, f := range found {
		if err := f.kill(); err != nil {
			t.Error(err)
		}
	}
	for _, f := range found {
		if !f.exited(5 * time.Second) {
			t.Error("a holder lives on")
		}
		f.close()
	}
	var lock *fsx.Lock
	eventually(t, time.Second, "the lock is free", func() bool {
		lock, err = fsx.TryLock(path)
		return err == nil
	})
	if found, err = lockHolders(path); err != nil || len(found) != 0 {
		t.Errorf("%d holders, want none but this process: %v", len(found), err)
	}
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
}

func TestUnitFindings(t *testing.T) {
	u := goodUnit()
	for limit, want := range map[time.Duration]check.Level{0: check.OK, 90 * time.Second: check.Fail, 120 * time.Second: check.OK} {
		u.timeoutStop = limit
		if f := stopTime(u); f.Level != want || (f.Hint == "") != (want == check.OK) {
			t.Errorf("%s: %+v", limit, f)
		}
	}
	for err, want := range map[error]check.Level{nil: check.OK, ErrHeld: check.Fail} {
		if f := found("guard", "it is there", err); f.Level != want || (f.Hint == "") != (want == check.OK) || f.Said == "" {
			t.Errorf("%v: %+v", err, f)
		}
	}
	c, err := NewSystemd(SystemdConfig{Unit: "no-such-unit-of-eddy", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	// With a bus or without: it says what is missing, and what to do.
	got := c.(check.Checker).Checks(ctxOf(t))
	if len(got) != 1 || got[0].Level != check.Fail || got[0].Hint == "" {
		t.Errorf("%+v", got)
	}
}
