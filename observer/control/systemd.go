package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// The ways by which an eddy that is not root gets its rights over two units.
const (
	RightsPolkit = "polkit" // a rule of polkit: eddy asks systemd itself, over D-Bus
	RightsSudo   = "sudo"   // lines of sudoers: eddy runs sudo systemctl
)

// UnitRef is a service of systemd, and what a hold noted of it.
type UnitRef struct {
	Name   string `json:"name"`   // gaiad.service
	Rights string `json:"rights"` // RightsPolkit or RightsSudo; root needs neither

	TakeSockets bool `json:"take_sockets,omitempty"` // SystemdConfig.Sockets
	// Sockets that start it are stopped with it, and started with it.
	Sockets []string `json:"sockets,omitempty"`
	// Before the stop: "disabled" later means that somebody meant it.
	FileState string `json:"file_state,omitempty"`
	// The hold's deadline by CLOCK_BOOTTIME, which nobody sets; 0: not held.
	DeadlineMS int64 `json:"deadline_boottime_ms,omitempty"`
}

// unitName is a service's name; escapes (\x2d) are part of it.
var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]{1,200}\.service$`)

var socketName = regexp.MustCompile(`^[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]{0,199}\.socket$`)

func checkUnit(u UnitRef) error {
	switch {
	case !unitName.MatchString(u.Name) || strings.HasPrefix(u.Name, "-") || strings.HasPrefix(u.Name, "@"):
		return fmt.Errorf("%q is no service's name", printable(u.Name, 64))
	case slices.ContainsFunc(u.Sockets, func(name string) bool { return !socketName.MatchString(name) }):
		return errors.New("one of its sockets is none")
	case u.Rights != RightsPolkit && u.Rights != RightsSudo:
		return fmt.Errorf("rights %q are neither polkit nor sudo", printable(u.Rights, 16))
	}
	return nil
}

// guardUnit is the name of the unit's guard: its timer, or what that starts.
func (u UnitRef) guardUnit(kind string) string {
	return "eddy-guard@" + strings.TrimSuffix(u.Name, ".service") + kind
}

// SystemdConfig says how a node is stopped and started by systemd.
type SystemdConfig struct {
	Unit   string // with or without .service
	Rights string // RightsPolkit or RightsSudo; "": polkit

	// Sockets tells that socket units which would start it while it is held are stopped
	// with it and started again; else such a unit is not held.
	Sockets bool

	// MayStart: see ExecConfig.
	MayStart func(context.Context) error `json:"-"`

	Dir      string // workdir, for the journal; must exist
	SwapFile string // see SuperviseOptions; "": none

	StartTimeout time.Duration // from the start to an active unit; 0: 120 s
	Linger       time.Duration // see ExecConfig; 0: 15 minutes
}

// NewSystemd controls a node that is a service of systemd. A hold is guarded
// twice: by a process as for exec, and by a timer of systemd's, eddy-guard@, which
// lives through whatever ends that process together with eddy (RunUnitGuard).
func NewSystemd(c SystemdConfig) (Control, error) {
	g, err := newSystemd(c)
	if err != nil {
		return nil, fmt.Errorf("control.systemd: %w", err)
	}
	return g, nil
}

func newSystemd(c SystemdConfig) (*guarded, error) {
	if c.StartTimeout == 0 {
		c.StartTimeout = 120 * time.Second
	}
	if c.Linger == 0 {
		c.Linger = 15 * time.Minute
	}
	if c.Rights == "" {
		c.Rights = RightsPolkit
	}
	if !strings.HasSuffix(c.Unit, ".service") {
		c.Unit += ".service"
	}
	ref := UnitRef{Name: c.Unit, Rights: c.Rights, TakeSockets: c.Sockets}
	if err := checkUnit(ref); err != nil {
		return nil, err
	}
	if c.Dir == "" {
		return nil, errors.New("no workdir for the hold journal")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	return &guarded{
		name: controlSystemd + " " + c.Unit, control: controlSystemd, linger: c.Linger, early: unitEarly, mayStart: c.MayStart,
		node: (&node{
			Unit: ref, Dir: dir, SwapFile: c.SwapFile, StartTimeout: c.StartTimeout, StatusTimeout: busTimeout,
		}).managed(),
	}, nil
}

// service is the manager of a node that is a unit of systemd's.
type service struct {
	ref      UnitRef
	dir      string // the workdir that the unit's guard must look into
	swapFile string
	systemd  systemd
}

var _ manager = (*service)(nil)

func newService(ref UnitRef, dir, swapFile string) *service {
	return &service{ref: ref, dir: dir, swapFile: swapFile, systemd: systemd{sudo: ref.Rights == RightsSudo && os.Geteuid() != 0}}
}

// status implements manager. A run is named by its InvocationID.
func (s *service) status(ctx context.Context) (runState, string, error) {
	u, err := s.systemd.unit(ctx, s.ref.Name)
	if err != nil {
		return unknown, "", err
	}
	held := s.ref.DeadlineMS != 0
	switch {
	case u.active():
		return running, u.invocation, nil
	case u.loadState == "not-found":
		return unknown, u.invocation, hint.Add(fmt.Errorf("%w: systemd knows no %s", errGone, u.name), noSuchUnit)
	case held && u.masked():
		return unknown, u.invocation, fmt.Errorf("%w: %s was masked", errGone, u.name)
	case held && u.unitFileState == "disabled" && s.ref.FileState != "disabled":
		return unknown, u.invocation, fmt.Errorf("%w: %s was disabled", errGone, u.name)
	case u.down():
		return stopped, u.invocation, nil
	default:
		return unknown, u.invocation, fmt.Errorf("%w: %s is %s (%s)", errChanging, u.name, u.activeState, u.subState)
	}
}

// fit implements manager. Rights are asked for, not tried.
func (s *service) fit(ctx context.Context, r *Record) error {
	u, err := s.systemd.unit(ctx, s.ref.Name)
	if err != nil {
		return err
	}
	sockets, err := s.sockets(ctx, u)
	if err != nil {
		return err
	}
	u = u.without(sockets)
	for _, check := range []func(context.Context, unit) error{
		func(_ context.Context, u unit) error { return u.fit() }, s.alone, s.guardFits, s.mayControl,
	} {
		if err := check(ctx, u); err != nil {
			return err
		}
	}
	r.Unit = s.ref
	r.Unit.Sockets = sockets
	r.Unit.FileState = u.unitFileState
	r.Unit.DeadlineMS = (bootTime() + r.Deadline.Sub(r.Started)).Milliseconds()
	return nil
}

// sockets are those units that would start the node and can be stopped with it.
func (s *service) sockets(ctx context.Context, u unit) (names []string, err error) {
	if !s.ref.TakeSockets {
		return nil, nil
	}
	for _, name := range u.triggeredBy {
		if !strings.HasSuffix(name, ".socket") {
			continue
		}
		o, err := s.systemd.unit(ctx, name)
		if err != nil {
			return nil, err
		}
		if o.down() {
			continue
		}
		for _, verb := range []string{"stop", "start"} {
			if err := s.systemd.may(ctx, verb, name); err != nil {
				return nil, err
			}
		}
		names = append(names, name)
	}
	return names, nil
}

// alone refuses a unit that others would start while it is held, or that would
// take others down with it for good.
func (s *service) alone(ctx context.Context, u unit) error {
	err := s.noneUp(ctx, append(slices.Clone(u.triggeredBy), u.upheldBy...), u.name, "%s would start %s while it is held",
		"as root: `systemctl disable --now %s`; eddy holds no node that is started by others")
	if err != nil {
		return err
	}
	return s.takesNoneDown(ctx, u)
}

// takesNoneDown refuses a unit whose stop would stop others, which its start does
// not start again.
func (s *service) takesNoneDown(ctx context.Context, u unit) error {
	return s.noneUp(ctx, u.stopsWith, u.name, "%s would be stopped with %s, and not started again",
		"in the file of %s say Wants= instead of Requires=, Requisite=, BindsTo= or PartOf=, then, as root: `systemctl daemon-reload`")
}

// noneUp refuses for the first of the units that is not down. why and todo are
// formats: of its name and the node's, and of its name.
func (s *service) noneUp(ctx context.Context, units []string, node, why, todo string) error {
	for _, name := range units {
		o, err := s.systemd.unit(ctx, name)
		if err != nil {
			return err
		}
		if !o.down() {
			return hint.Add(fmt.Errorf(why, name, node), fmt.Sprintf(todo, name))
		}
	}
	return nil
}

// guardFits refuses a hold where the unit's guard is not there, or would not find
// the journal, or not be allowed to read it.
func (s *service) guardFits(ctx context.Context, _ unit) error {
	const todo = "install deploy/systemd/eddy-guard@.timer and deploy/systemd/eddy-guard@.service in /etc/systemd/system, with eddy's user in place of gaia, then, as root: `systemctl daemon-reload`"
	timer, err := s.systemd.unit(ctx, s.ref.guardUnit(".timer"))
	if err != nil {
		return err
	}
	if timer.loadState != "loaded" {
		return hint.Add(fmt.Errorf("the guard %s is not there (%s)", timer.name, timer.loadState), todo)
	}
	g, err := s.systemd.unit(ctx, s.ref.guardUnit(".service"))
	if err != nil {
		return err
	}
	if g.loadState != "loaded" {
		return hint.Add(fmt.Errorf("the guard %s is not there (%s)", g.name, g.loadState), todo)
	}
	reads := slices.ContainsFunc(g.execStart, func(argv []string) bool {
		i := slices.Index(argv, "--workdir")
		return i > 0 && i+1 < len(argv) && filepath.Clean(argv[i+1]) == s.dir
	})
	if !reads {
		return hint.Add(fmt.Errorf("the guard %s does not look into the workdir %s", g.name, s.dir), "as root: "+dropIn(g.name, "[Service]", "ExecStart=", "ExecStart=/usr/local/bin/eddy guard-unit --workdir "+s.dir+" %i")+", or set `workdir: DIR` to the guard's")
	}
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("who runs eddy: %w", err)
	}
	if runs := orRoot(g.user); runs != me.Username && runs != me.Uid {
		return hint.Add(fmt.Errorf("the guard %s runs as %s, this eddy as %s", g.name, runs, me.Username), "both must be the node's user; where eddy is, as root: "+dropIn(g.name, "[Service]", "User="+me.Username, "Group="+me.Gid))
	}
	return nil
}

// noSuchUnit is what to do where the configuration names no unit of this machine.
const noSuchUnit = "`systemctl list-units --type=service` shows its name: set `replica.control.systemd.unit: NAME`"

// dropIn is the command by which root changes a unit for good: lines of a file of
// its own beside the unit's. It is read after the others that are there.
func dropIn(unit string, lines ...string) string {
	dir := "/etc/systemd/system/" + unit + ".d"
	return fmt.Sprintf("`mkdir -p %s && printf '%%s\\n' %s >>%s && systemctl daemon-reload`", hint.Shell(dir), hint.Shell(lines...), hint.Shell(dir+"/zz-eddy.conf"))
}

func orRoot(name string) string {
	if name == "" {
		return "root"
	}
	return name
}

func (s *service) mayControl(ctx context.Context, _ unit) error {
	for _, name := range []string{s.ref.Name, s.ref.guardUnit(".timer")} {
		for _, verb := range []string{"stop", "start"} {
			if err := s.systemd.may(ctx, verb, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// startArgv implements manager.
func (s *service) startArgv() []string { return []string{"systemctl", "start", s.ref.Name} }

// lookEvery implements manager.
func (s *service) lookEvery() time.Duration { return time.Second }

// stop implements manager.
func (s *service) stop(ctx context.Context) (failed, err error) {
	for _, socket := range s.ref.Sockets { // first: a client would start the node again
		if err := s.systemd.stop(ctx, socket); err != nil {
			return nil, err
		}
	}
	if err := s.systemd.stop(ctx, s.ref.Name); err != nil {
		return nil, err
	}
	u, err := s.systemd.await(ctx, s.ref.Name, func(u unit) bool { return u.down() && u.job == 0 })
	if err != nil {
		return nil, nil // its time is over; what became of it is asked next
	}
	return u.ended(), nil
}

var _ armer = (*service)(nil)

// arm implements armer: it starts the unit's timer, which looks after the journal from now on, until
// there is none.
func (s *service) arm(ctx context.Context) error {
	timer := s.ref.guardUnit(".timer")
	if err := s.systemd.start(ctx, timer); err != nil {
		return fmt.Errorf("arm the guard: %w", err)
	}
	within, cancel := context.WithTimeoutCause(ctx, busTimeout, fmt.Errorf("it is not active after %s", busTimeout))
	defer cancel()
	if _, err := s.systemd.await(within, timer, unit.active); err != nil {
		return hint.Add(fmt.Errorf("arm the guard %s: %w", timer, err), hint.Command("systemctl", "status", timer)+" says why")
	}
	return nil
}

// start implements manager: lock is not needed, systemd starts a unit once.
func (s *service) start(ctx context.Context, _ *os.File) (failed, err error) {
	u, err := s.systemd.unit(ctx, s.ref.Name)
	if err != nil {
		return nil, err
	}
	if u.result == "start-limit-hit" {
		if err := s.systemd.resetFailed(ctx, s.ref.Name); err != nil {
			return nil, err
		}
	}
	for _, socket := range s.ref.Sockets { // first: the node is given what they listen on
		if err := s.systemd.start(ctx, socket); err != nil {
			return nil, err
		}
	}
	if err := s.systemd.start(ctx, s.ref.Name); err != nil {
		return nil, err
	}
	u, err = s.systemd.await(ctx, s.ref.Name, func(u unit) bool { return u.active() || u.down() && u.job == 0 })
	switch {
	case err != nil: // it takes long; what became of it is asked next
		return nil, nil
	case u.active():
		return nil, nil
	case u.failedCondition != "":
		return fmt.Errorf("%s was not started: %s does not hold", u.name, u.failedCondition), nil
	default:
		return hint.Add(fmt.Errorf("%s did not start: %s (%s)", u.name, u.activeState, u.result), hint.Command("journalctl", "-n", "100", "-u", u.name)+" says why"), nil
	}
}

// bootTime is CLOCK_BOOTTIME: the time since boot, sleep included.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // the kernel has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
