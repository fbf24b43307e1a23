package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// eddy is a run of the program under test.
type eddy struct {
	cmd  *exec.Cmd
	argv []string
	done chan struct{}

	mu     sync.Mutex
	phases []string
	said   []string // every line that is no progress
	err    error    // of Wait
}

// start runs a verb on a set-up.
func (w *world) start(s *setup, verb ...string) (*eddy, error) {
	e := &eddy{argv: verb, done: make(chan struct{})}
	e.cmd = exec.Command(w.o.Eddy, append(slices.Clone(verb), "--config", s.config, "--json", "--yes")...)
	e.cmd.Env = w.env
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	e.cmd.WaitDelay = time.Second // a guard does not have our pipes; should one, we go on
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs, err := e.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	var readers sync.WaitGroup
	readers.Go(func() { e.listen(out) })
	readers.Go(func() { e.listen(errs) })
	go func() {
		readers.Wait()
		err := e.cmd.Wait()
		e.mu.Lock()
		e.err = err
		e.mu.Unlock()
		close(e.done)
	}()
	return e, nil
}

func (e *eddy) listen(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var ev struct {
			MessageType string `json:"message_type"`
			Phase       string
		}
		_ = json.Unmarshal(lines.Bytes(), &ev) // a line of the log is none
		e.mu.Lock()
		if ev.Phase != "" {
			e.phases = append(e.phases, ev.Phase)
		}
		if ev.MessageType != "progress" {
			e.said = append(e.said, lines.Text())
		}
		e.mu.Unlock()
	}
	// The pipe may break with the process: its end is what counts.
	_, _ = io.Copy(io.Discard, r)
}

func (e *eddy) pid() int { return e.cmd.Process.Pid }

func (e *eddy) saw(phase string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.phases, phase)
}

func (e *eddy) count(phase string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.phases {
		if p == phase {
			n++
		}
	}
	return n
}

func (e *eddy) ended() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// wait waits for the end, and returns the exit code: -1 for a signal.
func (e *eddy) wait(d time.Duration) (code int, ok bool) {
	select {
	case <-e.done:
		return e.cmd.ProcessState.ExitCode(), true
	case <-time.After(d):
		return 0, false
	}
}

// end waits, asks by SIGTERM, and in the end kills.
func (e *eddy) end(d time.Duration) (code int, err error) {
	if code, ok := e.wait(d); ok {
		return code, nil
	}
	return e.term()
}

// term asks eddy to end, and in the end kills it.
func (e *eddy) term() (code int, err error) {
	if err := signal(e.pid(), syscall.SIGTERM); err != nil {
		return 0, err
	}
	if code, ok := e.wait(termTime); ok {
		return code, nil
	}
	err = fmt.Errorf("eddy %s did not end within %s of a SIGTERM", strings.Join(e.argv, " "), termTime)
	if kerr := signal(e.pid(), syscall.SIGKILL); kerr != nil {
		return 0, errors.Join(err, kerr)
	}
	<-e.done
	return -1, err
}

// termTime is what eddy may need to give back a node and a half-sent upload when it
// is asked to end.
const termTime = 40 * time.Second

// tail is the end of what eddy said.
func (e *eddy) tail() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return "      " + strings.Join(e.said[max(0, len(e.said)-12):], "\n      ")
}

// run runs a verb to its end.
func (w *world) run(ctx context.Context, s *setup, limit time.Duration, verb ...string) (code int, said string, err error) {
	e, err := w.start(s, verb...)
	if err != nil {
		return 0, "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = signal(e.pid(), syscall.SIGTERM) })
	defer stop()
	code, err = e.end(limit)
	return code, e.tail(), err
}

// point is a moment in a run.
type point struct {
	name string
	at   func(w *world, s *setup, e *eddy) bool
}

// state is reached when eddy's state file says so.
func state(word string) point {
	return point{word, func(_ *world, s *setup, _ *eddy) bool {
		got, _ := s.watch.state()
		return got == word
	}}
}

// held is reached when the node is down.
func held() point {
	return point{"held", func(_ *world, s *setup, _ *eddy) bool {
		up, _ := s.watch.up()
		return !up
	}}
}

// phase is reached when the event stream says so.
func phase(name string) point {
	return point{name, func(_ *world, _ *setup, e *eddy) bool { return e.saw(name) }}
}

// sentPercent is reached when so much of an archive like the last one has come to
// the store, or was copied there.
func sentPercent(n int64) point {
	return point{fmt.Sprintf("%d %% sent", n), func(w *world, s *setup, _ *eddy) bool {
		return w.liar.stored()-s.sentBefore >= s.stored*n/100
	}}
}

// after is reached when that time has passed.
func after(d time.Duration) point {
	begun := time.Time{}
	return point{"after " + d.String(), func(*world, *setup, *eddy) bool {
		if begun.IsZero() {
			begun = time.Now()
		}
		return time.Since(begun) >= d
	}}
}

// reach waits for a point; false: the run ended, or the time was over, before.
func (w *world) reach(ctx context.Context, s *setup, e *eddy, p point) bool {
	return w.reachWithin(ctx, s, e, p, reachTime)
}

func (w *world) reachWithin(ctx context.Context, s *setup, e *eddy, p point, within time.Duration) bool {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	late := time.After(within)
	for {
		if p.at(w, s, e) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-late:
			return false
		case <-e.done:
			return false
		case <-t.C:
		}
	}
}

const reachTime = time.Minute

// environ is ours with the store's keys, less what would lead past the wire.
func environ(base []string) []string {
	return slices.DeleteFunc(slices.Clone(base), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "AWS_ENDPOINT_URL" || strings.HasPrefix(name, "EDDY_LAB_S3_")
	})
}

func writeFile(path, format string, args ...any) error {
	return os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o600)
}
