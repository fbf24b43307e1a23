package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// GuardVerb is the hidden verb of the command line that calls RunGuard.
const GuardVerb = "guard"

// What eddy and its guard tell each other. Both are the same executable, so that
// this needs no versions.
const (
	gArm       = "arm"       // -> what to guard; answered by armed
	gArmed     = "armed"     // <- the guard is ready, the stop may begin
	gStopping  = "stopping"  // -> the stop is about to begin
	gHeld      = "held"      // -> the node is down
	gReleasing = "releasing" // -> eddy starts it and needs no killing any more
	gReleased  = "released"  // -> it runs, the journal is closed: go
	gHandover  = "handover"  // -> eddy could not start it: do it
	gWatch     = "watch"     // -> it did not stop: start it if it ends within watch_ms
	gActing    = "acting"    // <- the hold is over, the guard acts
)

// wordsFirst is how long a guard listens on at the deadline before it kills.
const wordsFirst = 50 * time.Millisecond

// dismissTime is what a guard gets to exit after it was let go.
const dismissTime = 2 * time.Second

// The descriptors that a guard is born with, beside the first three.
const (
	guardLockFD = 3 + iota
	guardSocketFD
	guardHolderFD // a pidfd of eddy
)

type guardMsg struct {
	Op         string  `json:"op"`
	Node       *node   `json:"node,omitempty"`
	Unlock     *Unlock `json:"unlock,omitempty"`
	DeadlineMS int64   `json:"deadline_ms,omitempty"`
	WatchMS    int64   `json:"watch_ms,omitempty"`
	Error      string  `json:"error,omitempty"`
}

func sendGuard(w net.Conn, m guardMsg) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := w.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// guard is eddy's view of its guard process.
type guard struct {
	pid  int
	proc *process
	conn net.Conn
	gone chan struct{} // closed when it acts or is dead
	wg   sync.WaitGroup
}

func pidOfThis() int { return os.Getpid() }

// startGuard starts a guard that shares lock, and returns when it is armed.
func startGuard(ctx context.Context, lock *fsx.Lock, arm guardMsg, dir string) (g *guard, err error) {
	defer func() {
		if err != nil {
			err = hint.Add(fmt.Errorf("start the guard: %w", err), "nothing was stopped; see "+filepath.Join(dir, guardLogFile))
		}
	}()
	log, err := os.OpenFile(filepath.Join(dir, guardLogFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	self, err := openProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer self.close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "guard"), os.NewFile(uintptr(pair[1]), "eddy")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	pidfd := -1
	files := []uintptr{null.Fd(), log.Fd(), log.Fd(), lock.File().Fd(), theirs.Fd(), uintptr(self.fd)}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"eddy", GuardVerb}, &syscall.ProcAttr{
		Env: nodeEnv(), Files: files, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	g = &guard{pid: pid, proc: &process{fd: pidfd}, conn: conn, gone: make(chan struct{})}
	theirs.Close() // or we would not see its end
	if err := g.arm(ctx, arm); err != nil {
		conn.Close()
		_ = g.proc.kill() // it guards nothing yet
		g.reap(dismissTime)
		return nil, err
	}
	return g, nil
}

// arm sends the orders and waits for the answer.
func (g *guard) arm(ctx context.Context, m guardMsg) error {
	stop := context.AfterFunc(ctx, func() { _ = g.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := g.conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	if err := sendGuard(g.conn, m); err != nil {
		return err
	}
	in := bufio.NewReader(g.conn)
	answer, err := readGuard(in)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if answer.Op != gArmed {
		return fmt.Errorf("it answered %q", answer.Op)
	}
	if err := g.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	g.wg.Go(func() {
		defer close(g.gone)
		_, _ = readGuard(in) // a word or its end: both mean that the hold is over
	})
	return nil
}

func readGuard(in *bufio.Reader) (guardMsg, error) {
	var m guardMsg
	line, err := in.ReadBytes('\n')
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(line, &m)
}

func (g *guard) send(m guardMsg) error { return sendGuard(g.conn, m) }

// hangUp closes the connection. Without a word before, the guard takes it for
// eddy's death.
func (g *guard) hangUp() {
	g.conn.Close()
	g.wg.Wait()
}

// reap waits up to d for the guard to exit. It is called until it returns true.
func (g *guard) reap(d time.Duration) bool {
	if !g.proc.exited(d) {
		return false
	}
	for {
		if _, err := syscall.Wait4(g.pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	g.proc.close()
	return true
}

// sentry is the guard process's own state.
type sentry struct {
	node   *node
	holder *process
	conn   net.Conn
	watch  time.Duration // for a node whose stop nobody saw through
	unlock *Unlock
	log    zerolog.Logger
}

// RunGuard is the guard process: it starts the node when the eddy that stopped
// it dies, or, after killing that eddy, when the deadline is over. It returns
// when there is nothing left to guard. It is started by a guarded control's Hold,
// which gives it a share of the hold lock, a socket, and a pidfd of its own
// process.
func RunGuard() error {
	// Whoever ends eddy's session or service means eddy. The node comes first.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	for fd := guardLockFD; fd <= guardHolderFD; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return hint.Add(fmt.Errorf("guard: descriptor %d: %w", fd, err), "eddy itself starts its guard; there is nothing to do by hand")
		}
	}
	lock := fsx.Inherited(os.NewFile(guardLockFD, lockFile))
	defer lock.Close()
	sock := os.NewFile(guardSocketFD, "eddy")
	conn, err := net.FileConn(sock)
	sock.Close()
	if err != nil {
		return hint.Add(fmt.Errorf("guard: %w", err), "eddy itself starts its guard; there is nothing to do by hand")
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	arm, err := readGuard(in)
	if err != nil || arm.Op != gArm || arm.Node == nil {
		return join(errors.New("guard: no orders"), err)
	}
	s := &sentry{
		node: arm.Node.managed(), holder: &process{fd: guardHolderFD}, conn: conn, watch: millis(arm.WatchMS), unlock: arm.Unlock,
		log: zerolog.New(os.Stderr).With().Timestamp().Int("pid", os.Getpid()).Logger(),
	}
	deadline := time.NewTimer(millis(arm.DeadlineMS))
	defer deadline.Stop()
	if err := sendGuard(conn, guardMsg{Op: gArmed}); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return s.stand(in, deadline.C)
}

func millis(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// stand follows the hold until somebody has to act.
func (s *sentry) stand(in *bufio.Reader, deadline <-chan time.Time) error {
	words := make(chan guardMsg)
	var wg sync.WaitGroup
	done := make(chan struct{})
	defer func() {
		close(done)
		s.conn.Close()
		wg.Wait()
	}()
	wg.Go(func() {
		defer close(words)
		for {
			m, err := readGuard(in)
			if err != nil {
				return
			}
			select {
			case words <- m:
			case <-done:
				return
			}
		}
	})
	phase, over := gArm, false
	for {
		select {
		case m, ok := <-words:
			if !ok {
				return s.orphaned(phase)
			}
			switch m.Op {
			case gReleased:
				return nil
			case gHandover:
				return s.start("eddy could not start the node")
			case gWatch:
				return s.lingerFor(millis(m.WatchMS))
			default:
				phase = m.Op
			}
		case <-deadline:
			if over {
				return s.late(phase)
			}
			// Had we been frozen, eddy's words would still lie unread.
			over, deadline = true, time.After(wordsFirst)
		}
	}
}

// orphaned acts on eddy's death.
func (s *sentry) orphaned(phase string) error {
	died := time.Now()
	gone := s.holder.exited(killGrace) // its database locks go with it
	// A killed process lives on as long as the disk keeps one of its threads.
	s.log.Info().Str("phase", phase).Bool("gone", gone).Dur("waited_ms", time.Since(died)).Msg("eddy died")
	switch phase {
	case gArm: // it died before it stopped anything
		return s.finish()
	case gStopping:
		s.log.Warn().Msg("eddy died while it was stopping the node")
		return s.lingerFor(s.watch)
	default:
		return s.start("eddy died during the hold")
	}
}

// late acts on a deadline that has passed. An eddy that is releasing has let go
// of the node's files and is not killed.
func (s *sentry) late(phase string) error {
	_ = sendGuard(s.conn, guardMsg{Op: gActing, Error: "the deadline passed"})
	if phase != gReleasing {
		s.log.Warn().Str("phase", phase).Msg("the hold is over its deadline: eddy is killed")
		if err := s.holder.kill(); err != nil {
			s.log.Error().Err(err).Msg("eddy lives on")
		}
		s.holder.exited(killGrace)
	}
	if phase == gStopping {
		return s.lingerFor(s.watch)
	}
	return s.start("the hold was over its deadline")
}

// start starts the node, for as long as it takes.
func (s *sentry) start(why string) error {
	s.log.Warn().Str("why", why).Msg("the node is started")
	err := s.node.revive(context.Background(), true, 0, func(err error) {
		s.log.Error().Err(err).Msg("the node does not start; it is tried again")
	})
	return s.done(err)
}

// lingerFor starts the node if it ends within d. Where its state cannot be told,
// and nobody saw it down, the journal stays open for the next eddy.
func (s *sentry) lingerFor(d time.Duration) error {
	return s.done(s.node.settle(context.Background(), d, 0, func(err error) {
		s.log.Error().Err(err).Msg("the node's state, or its start")
	}))
}

// done ends the duty of a guard whose node runs, or is no more.
func (s *sentry) done(err error) error {
	switch {
	case errors.Is(err, errGone):
		s.log.Warn().Err(err).Msg("there is nothing to start")
	case err != nil:
		return fmt.Errorf("guard: %w", err)
	default:
		s.log.Info().Msg("the node runs")
		s.unlocked()
	}
	return s.finish()
}

// unlocked unlocks a node that runs, where that is needed. What does not succeed within its time the
// next eddy finds: the node runs and says that it is locked.
func (s *sentry) unlocked() {
	if s.unlock == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), unlockTime)
	defer cancel()
	if err := s.unlock.Do(ctx); err != nil {
		s.log.Error().Err(err).Msg("the node runs and is locked")
		return
	}
	s.log.Info().Msg("the node is not locked")
}

func (s *sentry) finish() error {
	if err := removeRecord(s.node.Dir); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}
