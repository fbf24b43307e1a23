package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Timings of the client.
const (
	answerTimeout  = 10 * time.Second       // for what supervise answers at once
	releaseTimeout = 60 * time.Second       // for a node to run after a hold whose connection broke
	pollEvery      = 50 * time.Millisecond  // while a state is waited for
	downEvery      = 20 * time.Millisecond  // between two proofs that the node is down
	proofTimeout   = 100 * time.Millisecond // what a proof gets when the stop took all the time there was
)

// NewSupervise controls a node whose parent is "eddy supervise", over its socket.
// Nothing is written to disk: supervise itself is the guard, and after its own
// death its manager starts it, and it the node.
func NewSupervise(socket string) Control { return &supervised{socket: socket} }

type supervised struct{ socket string }

var _ Control = (*supervised)(nil)

func (c *supervised) String() string { return "supervise " + c.socket }

func (c *supervised) Status(ctx context.Context) (Status, error) {
	st, err := c.status(ctx)
	if err != nil {
		return Status{}, err
	}
	return Status{Running: st.Running, Held: st.Held, PID: st.PID, Since: st.Since}, nil
}

func (c *supervised) status(ctx context.Context) (wireStatus, error) {
	l, err := c.dial(ctx)
	if err != nil {
		return wireStatus{}, err
	}
	defer l.conn.Close()
	st, err := l.ask(ctx, request{Op: opStatus}, answerTimeout)
	if err != nil {
		return wireStatus{}, fmt.Errorf("%s: status: %w", c, err)
	}
	return st, nil
}

// Recover has nothing to do: a hold of supervise ends with the connection of
// its holder, and supervise starts the node whenever it is started itself.
func (c *supervised) Recover(context.Context) (bool, error) { return false, nil }

// Health tells whether the node behind socket is as it should be: running, held
// for a moment, or kept down by a restore. It is what a liveness probe asks, so
// that a hold does not get the container killed.
func Health(ctx context.Context, socket string) error {
	c := &supervised{socket: socket}
	st, err := c.status(ctx)
	if err != nil {
		return err
	}
	if st.Running || st.Held || st.State == stateBlocked {
		return nil
	}
	return fmt.Errorf("%s: the node is not running (%s)", c, st.State)
}

func (c *supervised) Hold(ctx context.Context, r Request) (Hold, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	_, err = l.ask(ctx, request{
		Op: opHold, DeadlineMS: r.Deadline.Milliseconds(), StopTimeoutMS: max(1, r.Timeout.Milliseconds()),
		Purpose: r.Purpose, Stage: r.Stage,
	}, r.Timeout+answerTimeout)
	if err != nil {
		l.conn.Close()
		var no *refusal
		switch {
		case !errors.As(err, &no):
			// We do not know how far it came; closing the connection took it back.
			err = join(err, c.awaitRunning(ctx, r.Timeout+answerTimeout))
		case errors.Is(err, ErrKilled): // it is being started
			err = join(err, c.awaitRunning(ctx, answerTimeout))
		case errors.Is(err, ErrStopTimeout):
			err = join(err, ErrStopping)
		}
		return nil, fmt.Errorf("%s: hold: %w", c, err)
	}
	h := &supervisedHold{c: c, line: l, lost: make(chan struct{}), answers: make(chan response, 1)}
	h.deadline = time.AfterFunc(r.Deadline-time.Since(began), h.lose) // if supervise itself is frozen
	h.wg.Go(h.listen)
	if err := proveDown(ctx, r, began); err != nil {
		return nil, fmt.Errorf("%s: hold: %w", c, join(err, h.Release(ctx)))
	}
	return h, nil
}

// proveDown asks r.Down until it is content or the stop's time is over.
func proveDown(ctx context.Context, r Request, began time.Time) error {
	if r.Down == nil {
		return nil
	}
	left := max(r.Timeout-time.Since(began), proofTimeout)
	within, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	for {
		err := r.Down(within)
		if err == nil {
			return nil
		}
		if sleep(within, downEvery) != nil {
			if ctx.Err() != nil {
				return join(context.Cause(ctx), err)
			}
			return hint.Add(fmt.Errorf("the node's manager says that it has stopped, but: %w", err),
				"something else keeps the node, or its files, open: it must be part of what the manager stops")
		}
	}
}

// awaitRunning waits until the node runs and is not held. It is not stopped by
// the end of ctx.
func (c *supervised) awaitRunning(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	for {
		st, err := c.status(ctx)
		switch {
		case err == nil && st.State == stateRunning:
			return nil
		case err == nil && st.State == stateBlocked:
			return ErrRestoring
		case err == nil:
			err = fmt.Errorf("the node is %s", st.State)
		}
		if sleep(ctx, pollEvery) != nil {
			return hint.Add(fmt.Errorf("%w again within %s: %w", ErrDown, d, err),
				"start the service or the container that has `eddy supervise` in it: it starts the node")
		}
	}
}

type supervisedHold struct {
	c        *supervised
	line     *line
	deadline *time.Timer
	answers  chan response // to a release; closed at the end of the connection
	wg       sync.WaitGroup

	lostOnce sync.Once
	lost     chan struct{}
	asked    atomic.Bool // for the release

	mu       sync.Mutex // of Release
	released bool
}

func (h *supervisedHold) Lost() <-chan struct{} { return h.lost }

func (h *supervisedHold) lose() { h.lostOnce.Do(func() { close(h.lost) }) }

// listen reads what supervise has to say during the hold.
func (h *supervisedHold) listen() {
	defer close(h.answers)
	_ = h.line.conn.SetReadDeadline(time.Time{})
	for {
		r, err := h.line.read()
		if err != nil || r.Event == eventLost {
			h.lose()
			return
		}
		if h.asked.Load() {
			h.answers <- r
			if !r.OK {
				h.lose()
			}
			return
		}
	}
}

func (h *supervisedHold) Release(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return nil
	}
	h.deadline.Stop()
	err := h.release()
	h.line.conn.Close()
	h.wg.Wait()
	if err != nil {
		// The connection's end starts the node, too.
		if err = h.c.awaitRunning(ctx, releaseTimeout); err != nil {
			return fmt.Errorf("%s: release: %w", h.c, err)
		}
	}
	h.released = true
	return nil
}

func (h *supervisedHold) release() error {
	h.asked.Store(true)
	if err := h.line.write(request{Op: opRelease}); err != nil {
		return err
	}
	t := time.NewTimer(answerTimeout)
	defer t.Stop()
	select {
	case r, ok := <-h.answers:
		if !ok {
			return errors.New("the connection was closed")
		}
		return r.err()
	case <-t.C:
		return errors.New("no answer")
	}
}

// line is a connection to supervise.
type line struct {
	conn net.Conn
	in   *bufio.Reader
}

func (c *supervised) dial(ctx context.Context) (*line, error) {
	conn, err := (&net.Dialer{Timeout: answerTimeout}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		todo := "look at the log of eddy supervise"
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
			todo = "start the node with `eddy supervise --home HOME --socket " + hint.Shell(c.socket) + " -- CMD`, or set `replica.control.supervise: SOCKET` to the one that it has"
		case errors.Is(err, fs.ErrPermission):
			todo = "run eddy as the user that runs the node, or allow this one with --allow-uid or --allow-gid"
		}
		return nil, hint.Add(fmt.Errorf("%s: %w", c, err), todo)
	}
	return &line{conn: conn, in: bufio.NewReaderSize(conn, maxLine)}, nil
}

func (l *line) write(r request) error {
	r.Format = protocolFormat
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	_, err = l.conn.Write(append(b, '\n'))
	return err
}

func (l *line) read() (response, error) {
	b, err := l.in.ReadSlice('\n')
	if err != nil {
		return response{}, err
	}
	return parseResponse(b)
}

// ask sends r and waits for its answer, at most d.
func (l *line) ask(ctx context.Context, r request, d time.Duration) (wireStatus, error) {
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	if err := l.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return wireStatus{}, err
	}
	err := l.write(r)
	// A refusal may be waiting even where the write failed: supervise says why
	// it closes a connection.
	a, rerr := l.read()
	if rerr != nil {
		if cause := context.Cause(ctx); cause != nil {
			return wireStatus{}, cause
		}
		return wireStatus{}, join(err, rerr)
	}
	if err := a.err(); err != nil {
		return wireStatus{}, err
	}
	if a.Status == nil {
		return wireStatus{}, errors.New("the answer has no status")
	}
	return *a.Status, nil
}

// refusal is an answer that is not ok.
type refusal struct {
	sentinel error
	text     string
}

func (e *refusal) Error() string { return e.text }
func (e *refusal) Unwrap() error { return e.sentinel }

func (r response) err() error {
	if r.OK {
		return nil
	}
	e := &refusal{text: r.Error}
	switch r.Code {
	case codeHeld:
		e.sentinel = ErrHeld
	case codeStopped:
		e.sentinel = ErrStopped
	case codeTimeout:
		e.sentinel = ErrStopTimeout
	case codeKilled:
		e.sentinel = ErrKilled
	case codeBlocked:
		e.sentinel = ErrRestoring
	case codeNoSwap:
		e.sentinel = ErrUnguarded
	case codeDenied:
		e.sentinel = fs.ErrPermission
	}
	if e.sentinel != nil {
		e.text = fmt.Sprintf("%v: %s", e.sentinel, r.Error)
	}
	if r.Hint != "" {
		return hint.Add(e, r.Hint)
	}
	return e
}
