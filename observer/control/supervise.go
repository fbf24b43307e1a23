package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// SuperviseOptions say what Supervise runs and what it allows. Socket and Argv
// are required; the zero value of everything else is a sound default.
type SuperviseOptions struct {
	Socket string   // path of the unix socket, see PROTOCOL.md; inside the node's home only under .eddy, as a lock file is open beside it
	Argv   []string // the node's command, run without a shell
	Env    []string // the node's environment; nil: this process's own
	Dir    string   // the node's working directory; "": this process's own

	StopTimeout    time.Duration // for holds that say none; 0: DefaultTimeout
	MaxHold        time.Duration // longest deadline that a hold may ask for; 0: 15 minutes
	MaxHeldPerHour time.Duration // held time within any hour; 0: 30 minutes
	AllowUIDs      []int         // may use the socket, beside root and this process's user
	AllowGID       int           // this group may, too, and owns the socket; 0: none
	CleanExit      []int         // exit codes of a clean stop; nil: 0, 130 and 143 (128 + INT, TERM)

	// SwapFile, where set, is looked for before each start: while it exists a
	// restore is between two of its steps and the node stays down.
	SwapFile string

	Log zerolog.Logger // the zero value says nothing
}

func (o SuperviseOptions) withDefaults() (SuperviseOptions, error) {
	if o.StopTimeout == 0 {
		o.StopTimeout = DefaultTimeout
	}
	if o.MaxHold == 0 {
		o.MaxHold = 15 * time.Minute
	}
	if o.MaxHeldPerHour == 0 {
		o.MaxHeldPerHour = 30 * time.Minute
	}
	if o.CleanExit == nil {
		o.CleanExit = []int{0, 128 + int(unix.SIGINT), 128 + int(unix.SIGTERM)}
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	switch {
	case o.Socket == "":
		return o, errors.New("supervise: no socket was given")
	case len(o.Argv) == 0 || o.Argv[0] == "":
		return o, hint.Add(errors.New("supervise: no command was given"), "put the node's command after --")
	case o.StopTimeout < 0 || o.MaxHold < 0 || o.MaxHeldPerHour < 0:
		return o, errors.New("supervise: a time must not be negative")
	}
	return o, nil
}

// The states of the node, as PROTOCOL.md names them.
const (
	stateRunning  = "running"
	stateStopping = "stopping" // a hold was asked for, the node has its SIGTERM
	stateHeld     = "held"
	stateEnding   = "ending"   // the hold is over, its holder is waited for
	stateStarting = "starting" // the start failed and is tried again
	stateBlocked  = "blocked"  // SwapFile is there
)

// Timings of the loop. None of them is a promise.
const (
	tickShort    = 5 * time.Millisecond   // while the end of a process is awaited
	tickBlocked  = 250 * time.Millisecond // how often SwapFile is looked for
	goneGrace    = time.Second            // for a holder that closed its connection to be gone
	killGrace    = 10 * time.Second       // for a killed holder to be gone (it may sit in a disk wait)
	retryStart   = time.Second
	startRetries = 30
)

// supervisor is the state of Supervise. One goroutine, on one locked thread,
// owns all of it: the node's parent-death signal is tied to that thread.
type supervisor struct {
	o        SuperviseOptions
	instance string
	events   chan event    // from the connections
	done     chan struct{} // closed when the loop has ended

	state    string
	pid      int // of the node; 0 once it is reaped
	pgid     int // of its process group; 0 once nobody is left in it
	starts   int
	code     int    // exit code of the last run
	unclean  string // how the last run ended, when it was no clean stop
	linger   bool   // an earlier hold's SIGTERM is still out: start again whenever it ends
	exiting  bool   // we have been told to stop
	hold     *serverHold
	spans    []span // past holds
	retryAt  time.Time
	failed   int    // starts that failed in a row
	blockWhy string // what was last said of SwapFile
}

type serverHold struct {
	peer      *peer
	holder    *process // nil: cannot be killed
	stage     string
	restore   bool // it ends with the node down: the swap file keeps it so
	began     time.Time
	deadline  time.Time
	stopUntil time.Time
	gone      bool      // its connection is closed
	until     time.Time // ending: when to start the node even if the holder lives
}

type span struct{ from, to time.Time }

// Supervise runs the node as its child until the node ends or a signal (or ctx)
// says so, and lets holders stop and start it meanwhile, as PROTOCOL.md says. It
// returns the node's exit code, 128+n for a death by signal n.
//
// It is made to be all that its process does: it reaps every child of the
// process, becomes the reaper of orphans, and takes SIGTERM, SIGINT, SIGHUP,
// SIGUSR1 and SIGUSR2, which it forwards to the node. It may be PID 1.
//
// The node is never sent SIGKILL. When supervise itself is killed, the node gets
// a SIGTERM from the kernel. A shell script around the node must exec it: it is
// the command itself that gets the signals and whose exit code is judged.
func Supervise(ctx context.Context, o SuperviseOptions) (exitCode int, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return 1, err
	}
	instance, err := newInstance()
	if err != nil {
		return 1, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("supervise: become the reaper of orphans: %w", err)
	}
	s := &supervisor{
		o: o, instance: instance, events: make(chan event), done: make(chan struct{}),
		state: stateStarting,
	}
	srv, err := s.listen()
	if err != nil {
		return 1, err
	}
	defer func() {
		close(s.done)
		err = join(err, srv.close())
	}()
	return s.run(ctx)
}

func (s *supervisor) run(ctx context.Context) (int, error) {
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(sigs)
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	defer signal.Stop(chld)

	if err := s.start(); err != nil {
		return startCode(err), err
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	cancelled := ctx.Done()
	for {
		if over, err := s.tick(time.Now()); over {
			return s.code, err
		}
		timer.Reset(s.next(time.Now()))
		select {
		case <-cancelled:
			cancelled = nil
			s.signal(unix.SIGTERM)
		case sig := <-sigs:
			s.signal(sig.(syscall.Signal))
		case <-chld:
			s.reap()
		case e := <-s.events:
			s.handle(e)
		case <-timer.C:
		}
	}
}

// startCode is what a shell would exit with for a command that cannot be run.
func startCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return 127
	}
	return 126
}

// start starts the node, unless a restore says that it must stay down.
func (s *supervisor) start() error {
	if why := swapping(s.o.SwapFile); why != nil {
		s.state = stateBlocked
		if s.blockWhy != why.Error() {
			s.blockWhy = why.Error()
			s.o.Log.Warn().Err(why).Msg("the node stays down")
		}
		return nil
	}
	s.state = stateStarting
	path, err := exec.LookPath(s.o.Argv[0])
	if err == nil {
		s.pid, err = syscall.ForkExec(path, s.o.Argv, &syscall.ProcAttr{
			Dir: s.o.Dir, Env: s.o.Env, Files: []uintptr{0, 1, 2},
			// A group of its own: a ctrl-C at the terminal reaches us alone and is
			// forwarded once.
			Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM},
		})
	}
	if err != nil {
		s.pid = 0
		return fmt.Errorf("start the node: %w", err)
	}
	s.pgid, s.state, s.linger, s.failed, s.blockWhy = s.pid, stateRunning, false, 0, ""
	s.starts++
	s.o.Log.Info().Int("pid", s.pid).Str("run", s.since()).Msg("node started")
	return nil
}

// startAgain is start after a hold: a failure is tried again for a while, as the
// binary may be in the middle of being replaced.
func (s *supervisor) startAgain() {
	if err := s.start(); err != nil {
		s.failed++
		s.retryAt = time.Now().Add(retryStart)
		s.o.Log.Error().Err(err).Int("attempt", s.failed).Msg("the node cannot be started")
	}
}

// swapping returns an error while a restore is between two of its steps, or
// where that cannot be told.
func swapping(file string) error {
	if file == "" {
		return nil
	}
	_, err := os.Lstat(file)
	switch {
	case err == nil:
		return hint.Add(fmt.Errorf("%w: %s is there", ErrRestoring, file), "finish the restore")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil
	default:
		return hint.Add(fmt.Errorf("look for a restore under way: %w", err), "eddy must be able to look into that directory: run it as the node's user")
	}
}

// signal acts on a signal that we were sent.
func (s *supervisor) signal(sig syscall.Signal) {
	stop := sig == unix.SIGTERM || sig == unix.SIGINT
	if stop {
		s.exiting = true
	}
	// While a hold's own SIGTERM is out a second one could turn a clean stop into
	// a hurried one.
	if s.pid == 0 || (sig == unix.SIGTERM && s.state == stateStopping) {
		return
	}
	if err := unix.Kill(s.pid, sig); err != nil {
		s.o.Log.Error().Err(err).Stringer("signal", sig).Msg("signal not forwarded")
	}
}

// reap collects every child that has ended: the node, and orphans that came to us.
func (s *supervisor) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || pid == 0:
			return
		case pid == s.pid:
			s.ended(ws)
		}
	}
}

// ended notes the node's end. What follows from it is tick's business.
func (s *supervisor) ended(ws syscall.WaitStatus) {
	s.pid, s.code, s.unclean = 0, ws.ExitStatus(), ""
	clean := false
	if ws.Signaled() {
		s.code = 128 + int(ws.Signal())
	} else {
		for _, c := range s.o.CleanExit {
			clean = clean || c == s.code
		}
	}
	if !clean {
		s.unclean = describe(ws)
	}
	s.o.Log.Info().Str("how", describe(ws)).Str("run", s.since()).Msg("node ended")
	if s.groupLives() {
		// Its command was a wrapper, or left helpers behind: they may have the
		// database open still.
		_ = unix.Kill(-s.pgid, unix.SIGTERM)
	}
}

func (s *supervisor) groupLives() bool {
	return s.pgid != 0 && !errors.Is(unix.Kill(-s.pgid, 0), unix.ESRCH)
}

// tick does what the time, or the node's end, makes due. over means that
// supervise is to end with s.code.
func (s *supervisor) tick(now time.Time) (over bool, err error) {
	asked := s.state == stateStopping || s.linger // the end was asked for by a hold
	if s.pid == 0 && (s.exiting || s.state == stateRunning && !asked) {
		return true, nil
	}
	if s.pid == 0 && asked && !s.groupLives() {
		s.pgid = 0
		s.down()
	}
	switch {
	case s.state == stateStopping && !now.Before(s.hold.stopUntil):
		s.giveUp()
	case s.state == stateHeld && !now.Before(s.hold.deadline):
		s.expire(now)
	case s.state == stateEnding && (s.hold.holder == nil || s.hold.holder.exited(0) || !now.Before(s.hold.until)):
		s.endHold()
		s.startAgain()
	case s.state == stateBlocked:
		s.startAgain()
	case s.state == stateStarting && !now.Before(s.retryAt):
		if s.failed >= startRetries {
			s.code = 126
			return true, fmt.Errorf("the node could not be started %d times", s.failed)
		}
		s.startAgain()
	}
	return false, nil
}

// next is how long the loop may sleep.
func (s *supervisor) next(now time.Time) time.Duration {
	var at time.Time
	switch {
	case s.pid == 0 && (s.state == stateStopping || s.linger), s.state == stateEnding:
		return tickShort
	case s.state == stateBlocked:
		return tickBlocked
	case s.state == stateStopping:
		at = s.hold.stopUntil
	case s.state == stateHeld:
		at = s.hold.deadline
	case s.state == stateStarting:
		at = s.retryAt
	default:
		return time.Hour
	}
	return max(0, at.Sub(now))
}

// down is called when the node that a hold stopped is gone, helpers included.
func (s *supervisor) down() {
	switch h := s.hold; {
	case s.linger:
		s.startAgain()
	case h.gone, h.restore: // after a restore's the swap file decides
		s.endHold()
		s.startAgain()
		if h.restore {
			h.peer.reply(s.answer())
		}
	case s.unclean != "":
		how, todo := s.unclean, taintedHint
		switch {
		case s.code == 128+int(unix.SIGTERM):
			todo = "its command does not handle SIGTERM: a script around the node must exec it"
		case s.code < 128:
			codes := strconv.Itoa(s.code)
			for _, c := range s.o.CleanExit {
				codes += "," + strconv.Itoa(c)
			}
			todo = "look at the node's log; where it always ends so when it is asked to, give its `eddy supervise` the flag --clean-exit " + codes
		}
		s.endHold()
		s.startAgain()
		h.peer.refuse(codeKilled, "it ended: "+how, todo)
	default:
		s.state = stateHeld
		h.peer.reply(s.answer())
	}
}

// giveUp ends a hold whose stop took too long. The node keeps its SIGTERM; when
// it ends after all it is started again.
func (s *supervisor) giveUp() {
	h := s.hold
	s.o.Log.Warn().Stringer("after", time.Since(h.began)).Msg("the node did not stop in time; it is left alone, and started again if it ends")
	s.endHold()
	s.state, s.linger = stateRunning, true
	h.peer.refuse(codeTimeout, fmt.Sprintf("it did not end within %s of SIGTERM", time.Since(h.began).Round(time.Millisecond)),
		"it was not killed; raise replica.control.timeout if it only needs longer, else look at the node's log")
}

// expire ends a hold at its deadline.
func (s *supervisor) expire(now time.Time) {
	h := s.hold
	h.peer.reply(response{Event: eventLost, Error: "the deadline passed"})
	ev := s.o.Log.Warn().Str("stage", h.stage)
	if h.holder == nil {
		ev.Msg("a hold is over its deadline; its holder cannot be killed, only cut off")
	} else {
		ev.Msg("a hold is over its deadline; its holder is killed")
		if err := h.holder.kill(); err != nil {
			s.o.Log.Error().Err(err).Msg("the holder lives on")
		}
	}
	h.peer.conn.Close()
	s.state, h.gone, h.until = stateEnding, true, now.Add(killGrace)
}

// endHold books the time and forgets the hold.
func (s *supervisor) endHold() {
	h := s.hold
	s.hold = nil
	if !h.restore {
		s.spans = append(s.spans, span{from: h.began, to: time.Now()})
	}
	if h.holder != nil {
		h.holder.close()
	}
}

// heldWithin sums the held time of the last hour.
func (s *supervisor) heldWithin(now time.Time) time.Duration {
	since := now.Add(-time.Hour)
	var sum time.Duration
	keep := s.spans[:0]
	for _, sp := range s.spans {
		if sp.to.Before(since) {
			continue
		}
		keep = append(keep, sp)
		if sp.from.Before(since) {
			sp.from = since
		}
		sum += sp.to.Sub(sp.from)
	}
	s.spans = keep
	return sum
}

func (s *supervisor) since() string { return fmt.Sprintf("%s/%d", s.instance, s.starts) }
