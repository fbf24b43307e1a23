package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// unitEarly is how long before the end of the time that a hold may take its guards
// take it for over: when all are frozen the unit's guard acts after guardLate and
// one look (OnUnitInactiveSec=, AccuracySec= of eddy-guard@.timer), and the node
// runs by the end all the same.
const unitEarly = guardLate + 7*time.Second

// UnitGuardVerb is the hidden verb of the command line that calls RunUnitGuard.
const UnitGuardVerb = "guard-unit"

// guardLate is how long after the deadline the guard process has to act before
// the unit's guard takes it for frozen, too.
const guardLate = 5 * time.Second

// RunUnitGuard is one look at a held unit, by a timer of systemd's that is active
// from before the stop until a look finds no journal. It is the next eddy that
// Recover speaks of: who else is alive has the lock, and is left in peace until
// the deadline, and guardLate, are over while the unit is still down; then
// whoever has the lock is killed.
//
// It reads nothing but the journal: a configuration that is being edited keeps no
// node down. What it returns systemd logs, and the next look tries again.
func RunUnitGuard(ctx context.Context, workdir, name string) error {
	if err := runUnitGuard(ctx, workdir, name); err != nil {
		return fmt.Errorf("guard %s: %w", name, err)
	}
	return nil
}

func runUnitGuard(ctx context.Context, workdir, name string) error {
	rec, err := ReadHold(workdir)
	if err != nil && !errors.Is(err, ErrTorn) {
		return err
	}
	rights := RightsPolkit
	if rec != nil && rec.Unit.Name != "" {
		rights = rec.Unit.Rights
	}
	g, err := newSystemd(SystemdConfig{Unit: name, Rights: rights, Dir: workdir})
	if err != nil {
		return err
	}
	if rec == nil {
		return g.disarm(ctx)
	}
	if was := rec.Unit.Name; was != "" && was != g.node.Unit.Name {
		return hint.Add(fmt.Errorf("the hold journal in %s is of %s", workdir, was), "set `workdir: DIR` in the eddy.yaml of each node to a directory of its own; as root, for the guard of this one: "+dropIn(g.node.Unit.guardUnit(".service"), "[Service]", "ExecStart=", "ExecStart=/usr/local/bin/eddy guard-unit --workdir DIR %i"))
	}
	lock, err := g.lock()
	if errors.Is(err, ErrHeld) {
		if lock, err = g.evict(ctx, *rec); lock == nil || err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	_, err = g.recover(ctx)
	return join(err, lock.Unlock())
}

// disarm ends the timer. A hold that begins meanwhile has written its journal
// before it arms: then it is armed again. The journal that would say by which
// rights is gone, so that both are tried.
func (e *guarded) disarm(ctx context.Context) error {
	var s systemd
	timer := e.node.Unit.guardUnit(".timer")
	err := s.stop(ctx, timer)
	if errors.Is(err, errDenied) {
		s.sudo = true
		if serr := s.stop(ctx, timer); serr != nil {
			return join(err, serr)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	if rec, err := ReadHold(e.node.Dir); rec == nil && err == nil {
		return nil
	}
	return s.start(ctx, timer)
}

// evict takes the lock from those who still have it when the hold should be over
// and the unit is down. nil: it is too early for that.
func (e *guarded) evict(ctx context.Context, rec Record) (*fsx.Lock, error) {
	boot, err := fsx.BootID()
	if err != nil {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	late := time.Since(rec.Deadline)
	if rec.BootID == boot && rec.Unit.DeadlineMS != 0 {
		late = bootTime() - millis(rec.Unit.DeadlineMS)
	}
	if late < guardLate || rec.Deadline.IsZero() {
		return nil, nil
	}
	if st, _, err := e.node.of(rec).status(ctx); st != stopped {
		return nil, err
	}
	path := filepath.Join(e.node.Dir, lockFile)
	holders, err := lockHolders(path)
	if err != nil {
		return nil, err
	}
	for _, p := range holders {
		defer p.close()
		if err := p.kill(); err != nil {
			return nil, err
		}
	}
	for _, p := range holders {
		p.exited(killGrace)
	}
	return e.lockOfTheDying(ctx)
}

// lockHolders are the processes that have an flock on path, as far as this user
// may look. A lock is of an open file: whoever shares that one has it.
func lockHolders(path string) (holders []*process, err error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	for _, e := range names {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := openProcess(pid) // first: then it is this very process that is looked at
		if err != nil {
			continue // gone
		}
		if holdsLock(pid, want) {
			holders = append(holders, p)
		} else {
			p.close()
		}
	}
	return holders, nil
}

// holdsLock tells whether a process has the file open and an flock on it, which
// its /proc/PID/fdinfo/FD says with a line "lock:	1: FLOCK ADVISORY WRITE ...".
func holdsLock(pid int, want unix.Stat_t) bool {
	base := "/proc/" + strconv.Itoa(pid)
	dir, err := os.Open(base + "/fd")
	if err != nil {
		return false // gone, or another user's: that one is not eddy
	}
	defer dir.Close()
	fds, err := dir.Readdirnames(-1)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(base+"/fd/"+fd, &st) != nil || st.Dev != want.Dev || st.Ino != want.Ino {
			continue
		}
		info, err := os.ReadFile(base + "/fdinfo/" + fd)
		if err == nil && strings.Contains(string(info), "FLOCK") {
			return true
		}
	}
	return false
}
