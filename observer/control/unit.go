package control

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// unit is what systemd says of one unit. The names are those of its D-Bus
// properties, org.freedesktop.systemd1(5).
type unit struct {
	name          string
	loadState     string // loaded, not-found, masked, bad-setting, error
	activeState   string // active, reloading, inactive, failed, activating, deactivating
	subState      string
	unitFileState string // enabled, disabled, static, masked, ...; "": systemd cannot say
	invocation    string // of the present or the last run, in hex; "": none since boot, or forgotten
	job           uint32 // that waits or runs for it; 0: none
	canStart      bool   // false: RefuseManualStart=
	canStop       bool   // false: RefuseManualStop=

	// The condition that kept it from starting, "" where all held:
	// "ConditionPathExists=!/a/b".
	failedCondition string

	// What it does not start for while it exists: ConditionPathExists=!PATH.
	notWhile []string

	// Of services.
	kind           string        // Type=: simple, exec, notify, forking, oneshot, ...
	killSignal     unix.Signal   // what a stop begins with
	timeoutStop    time.Duration // after it systemd kills; 0: never
	result         string        // success, timeout, exit-code, signal, core-dump, oom-kill, start-limit-hit, ...
	execMainCode   int32         // how the main process ended: CLD_EXITED and so on of waitid(2); 0: it did not, or that is forgotten
	execMainStatus int32         // its exit status, or the signal
	user           string        // "": root
	execStart      [][]string    // an argv for each line

	// Names of other units, by what they have to do with this one.
	triggeredBy []string // sockets, timers, paths: they start it
	upheldBy    []string // Upholds=: they start it whenever it is down
	wantedBy    []string // they start it at boot, or when they are started
	stopsWith   []string // Requires=, Requisite=, BindsTo=, PartOf=, ...: its stop stops them, its start starts none
}

// unitOf takes what is known out of a unit's properties. What is absent, or of
// another type in a later systemd, is left at its zero value.
func unitOf(name string, p map[string]any) unit {
	u := unit{
		name: name, loadState: prop[string](p, "LoadState"), activeState: prop[string](p, "ActiveState"),
		subState: prop[string](p, "SubState"), unitFileState: prop[string](p, "UnitFileState"),
		invocation: hex.EncodeToString(prop[[]byte](p, "InvocationID")),
		canStart:   prop[bool](p, "CanStart"), canStop: prop[bool](p, "CanStop"),
		kind: prop[string](p, "Type"), killSignal: unix.Signal(prop[int32](p, "KillSignal")),
		result: prop[string](p, "Result"), user: prop[string](p, "User"),
		execMainCode: prop[int32](p, "ExecMainCode"), execMainStatus: prop[int32](p, "ExecMainStatus"),
		triggeredBy: prop[[]string](p, "TriggeredBy"), upheldBy: prop[[]string](p, "UpheldBy"),
	}
	for _, key := range []string{"WantedBy", "RequiredBy", "UpheldBy"} {
		u.wantedBy = append(u.wantedBy, prop[[]string](p, key)...)
	}
	for _, key := range []string{"RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo"} {
		u.stopsWith = append(u.stopsWith, prop[[]string](p, key)...)
	}
	if job := prop[[]any](p, "Job"); len(job) > 0 {
		u.job, _ = job[0].(uint32)
	}
	// USEC_INFINITY, 2^64-1, and whatever else no duration holds, is for ever.
	if usec := prop[uint64](p, "TimeoutStopUSec"); usec < 1<<53 {
		u.timeoutStop = time.Duration(usec) * time.Microsecond
	}
	for _, row := range prop[[][]any](p, "ExecStart") { // (path, argv, ...)
		if argv := cell[[]string](row, 1); len(argv) > 0 {
			u.execStart = append(u.execStart, argv)
		}
	}
	for _, row := range prop[[][]any](p, "Conditions") { // (type, one of many, negated, value, verdict)
		if cell[string](row, 0) == "ConditionPathExists" && cell[bool](row, 2) && !cell[bool](row, 1) {
			u.notWhile = append(u.notWhile, cell[string](row, 3))
		}
		if cell[int32](row, 4) < 0 && !prop[bool](p, "ConditionResult") {
			not := map[bool]string{true: "!"}[cell[bool](row, 2)]
			u.failedCondition = printable(cell[string](row, 0)+"="+not+cell[string](row, 3), 200)
		}
	}
	return u
}

func prop[T any](p map[string]any, name string) T {
	v, _ := p[name].(T)
	return v
}

func cell[T any](row []any, i int) (v T) {
	if i < len(row) {
		v, _ = row[i].(T)
	}
	return v
}

// without is the unit as it is beside others that are stopped and started with it.
func (u unit) without(others []string) unit {
	not := func(names []string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(others, n) })
	}
	u.triggeredBy, u.stopsWith = not(u.triggeredBy), not(u.stopsWith)
	return u
}

// active tells whether the unit runs.
func (u unit) active() bool { return u.activeState == "active" || u.activeState == "reloading" }

// down tells whether nothing of the unit runs, and nothing is about to.
func (u unit) down() bool { return u.activeState == "inactive" || u.activeState == "failed" }

func (u unit) masked() bool {
	return u.loadState == "masked" || strings.HasPrefix(u.unitFileState, "masked")
}

// fit tells whether the unit can be held: that it runs, that a stop of it is a
// clean one, and that a start brings it back.
func (u unit) fit() error {
	systemctl := func(verb ...string) string {
		return hint.Command(append(append([]string{"systemctl"}, verb...), u.name)...)
	}
	switch {
	case u.loadState == "not-found":
		return hint.Add(fmt.Errorf("%s: systemd knows no such unit", u.name), noSuchUnit)
	case u.masked() && !u.active():
		return hint.Add(fmt.Errorf("%w: %s is masked", ErrStopped, u.name), "somebody does not want it to run; else, as root: "+systemctl("unmask")+" and "+systemctl("start"))
	case u.masked():
		return hint.Add(fmt.Errorf("%s runs, but is masked: it could not be started again", u.name), "as root: "+systemctl("unmask"))
	case u.loadState != "loaded":
		return hint.Add(fmt.Errorf("%s: systemd cannot load it (%s)", u.name, u.loadState), systemctl("status")+" says why")
	case u.down() && u.unitFileState == "disabled":
		return hint.Add(fmt.Errorf("%w: %s is disabled and %s", ErrStopped, u.name, u.activeState), "somebody does not want it to run; else, as root: "+systemctl("enable", "--now"))
	case u.activeState == "failed":
		return hint.Add(fmt.Errorf("%w: %s has failed (%s)", ErrStopped, u.name, u.result), systemctl("status")+" says why; then, as root: "+systemctl("start"))
	case u.down():
		return hint.Add(fmt.Errorf("%w: %s is inactive", ErrStopped, u.name), "somebody stopped it; as root: "+systemctl("start"))
	case u.activeState != "active" || u.job != 0:
		return hint.Add(fmt.Errorf("%s is changing its state (%s, %s)", u.name, u.activeState, u.subState), "run eddy again when "+systemctl("is-active")+" says active")
	case u.kind == "oneshot" || u.subState == "exited":
		return hint.Add(fmt.Errorf("%s is no unit that runs (Type=%s, %s)", u.name, u.kind, u.subState), "set `replica.control.systemd.unit: NAME` to the one whose main process is the node")
	case !u.canStop || !u.canStart:
		return hint.Add(fmt.Errorf("%s refuses to be stopped and started by hand", u.name), "as root: "+dropIn(u.name, "[Unit]", "RefuseManualStop=no", "RefuseManualStart=no"))
	case u.killSignal == unix.SIGKILL:
		return hint.Add(fmt.Errorf("%s is stopped by SIGKILL, which no database survives for sure", u.name), "as root: "+dropIn(u.name, "[Service]", "KillSignal=SIGTERM"))
	case u.invocation == "":
		return hint.Add(fmt.Errorf("%s: systemd does not name its runs", u.name), "eddy needs systemd 232 or later")
	case u.unitFileState == "disabled" && len(u.wantedBy) == 0:
		return hint.Add(fmt.Errorf("%s is disabled: after a reboot inside the hold nothing would start it", u.name), "as root: "+systemctl("enable"))
	}
	return nil
}

// ended tells whether the run that was stopped ended by itself and well.
func (u unit) ended() error {
	const exited, killed, dumped = 1, 2, 3 // CLD_EXITED, CLD_KILLED, CLD_DUMPED
	sig := unix.Signal(u.execMainStatus)
	how, todo := "", taintedHint
	switch {
	case u.result == "timeout":
		how, todo = fmt.Sprintf("systemd killed it after %s", u.timeoutStop), longerStop(u.name)
	case u.execMainCode == killed && sig == u.killSignal && sig != unix.SIGKILL:
		how, todo = "it died of "+unix.SignalName(sig), "its command does not handle "+unix.SignalName(sig)+": a script around the node must exec it"
	case u.execMainCode == killed || u.execMainCode == dumped:
		how = "it died of " + unix.SignalName(sig)
	case u.execMainCode != exited:
		how, todo = "systemd does not know how it ended", hint.Command("systemctl", "status", u.name)+" must show its main PID; deploy/systemd/eddy-guard@.timer has the After= that keeps systemd from forgetting it"
	case u.result == "success":
		return nil
	case u.result == "exit-code" && (u.execMainStatus == 128+int32(unix.SIGINT) || u.execMainStatus == 128+int32(unix.SIGTERM)):
		return nil // a shell's or cosmovisor's way to say that it was asked to
	default:
		how = fmt.Sprintf("%s, exit status %d", u.result, u.execMainStatus)
		todo = "look at its log; where it always ends so when it is asked to, as root: " + dropIn(u.name, "[Service]", fmt.Sprintf("SuccessExitStatus=%d", u.execMainStatus))
	}
	return hint.Add(fmt.Errorf("%s: %s", u.name, how), todo)
}

// longerStop gives a unit the time that a node may need to stop.
func longerStop(name string) string {
	return "as root: " + dropIn(name, "[Service]", "TimeoutStopSec=180s")
}
