package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// MessageType implements Event.
func (Progress) MessageType() string { return "progress" }

// Line implements Event.
func (p Progress) Line() string {
	if p.Total <= 0 {
		return fmt.Sprintf("%s %s", p.What, Bytes(p.Done))
	}
	return fmt.Sprintf("%s %3.0f%% %s of %s", p.What, math.Floor(100*(float64(p.Done)/float64(p.Total))), Bytes(p.Done), Bytes(p.Total))
}

// Mode is a way to show events.
type Mode int

// The modes. Plain writes lines to stderr, Terminal also a progress bar; JSON
// writes every event to stdout; Quiet shows results, warnings and errors only.
const (
	Plain Mode = iota
	Terminal
	JSON
	Quiet
)

// IsTerminal tells whether a stream is one.
func IsTerminal(s any) bool {
	f, ok := s.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// How often progress is shown at most. Plain lines also come at every tenth of
// the way, so that a quick job says something too.
const (
	barEvery   = 100 * time.Millisecond
	jsonEvery  = time.Second
	plainEvery = 10 * time.Second
	plainTenth = time.Second
	rateOver   = 10 * time.Second // the rate is that of the last 10 to 20 seconds
)

// Renderer shows events. It may be used from many goroutines; it starts none.
type Renderer struct {
	mode     Mode
	out, err io.Writer
	now      func() time.Time
	width    func() int // columns of the terminal, 0: unknown

	mu     sync.Mutex
	bar    bool // a bar stands on the terminal's last line
	p      pace
	failed error // the first write that failed
}

// pace is what the shown progress is made from.
type pace struct {
	what       string
	begun      time.Time
	shown      time.Time // zero: not yet
	shownTenth int64
	old, young mark // the rate is taken from old; young takes its place
}

type mark struct {
	at   time.Time
	done int64
}

// New makes a renderer. Results go to out, everything else to err; in JSON mode
// all of it goes to out.
func New(mode Mode, out, err io.Writer) *Renderer {
	r := &Renderer{mode: mode, out: out, err: err, now: time.Now, width: func() int { return 0 }}
	if f, ok := err.(*os.File); ok && mode == Terminal {
		r.width = func() int {
			w, _, err := term.GetSize(int(f.Fd())) // asked each time: windows are resized
			if err != nil {
				return 0
			}
			return w
		}
	}
	return r
}

// Emit implements Sink. Quiet drops phases and progress.
func (r *Renderer) Emit(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := e.(Progress); ok {
		r.progress(p)
		return
	}
	switch {
	case r.mode == JSON:
		r.json(e)
	case r.mode == Quiet && e.MessageType() == "phase":
	default:
		r.line(r.err, e.Line())
	}
}

// Result prints what a verb was asked for. It returns the first error of any
// write, so that a full disk behind a redirected stdout is not taken for success.
func (r *Renderer) Result(e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mode == JSON {
		r.json(e)
	} else {
		r.line(r.out, e.Line())
	}
	return r.failed
}

// Writer is the way to stderr for what is not an event: log lines, each written
// whole. They do not run into the bar.
func (r *Renderer) Writer() io.Writer { return logWriter{r} }

type logWriter struct{ r *Renderer }

func (w logWriter) Write(b []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.clear()
	return w.r.err.Write(b)
}

// Close takes the bar off the terminal. It may be called more than once.
func (r *Renderer) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
}

func (r *Renderer) line(w io.Writer, s string) {
	if s == "" {
		return
	}
	r.clear()
	_, err := fmt.Fprintln(w, printable(s, "\n\t"))
	r.note(err)
}

func (r *Renderer) note(err error) {
	if r.failed == nil {
		r.failed = err
	}
}

func (r *Renderer) clear() {
	if r.bar {
		fmt.Fprint(r.err, "\r\x1b[K")
		r.bar = false
	}
}

// json writes the event as one object, with message_type and time in front.
func (r *Renderer) json(e Event) {
	head := fmt.Sprintf(`{"message_type":%q,"time":%q`, e.MessageType(), r.now().UTC().Format(time.RFC3339Nano))
	body, err := json.Marshal(e)
	if err != nil {
		// A number that JSON does not have. A renderer must not be what ends a job
		// that holds a node, so the fields are lost and said to be.
		r.note(fmt.Errorf("event %s: %w", e.MessageType(), err))
		body = []byte("{}")
	}
	if rest := strings.TrimPrefix(string(body), "{"); rest != "}" {
		head += "," + rest
	} else {
		head += "}"
	}
	_, err = fmt.Fprintln(r.out, head)
	r.note(err)
}

// progress shows p when it is due, and always when it is the end.
func (r *Renderer) progress(p Progress) {
	now := r.now()
	if r.mode == Quiet {
		return
	}
	if q := &r.p; p.What != q.what || p.Done < q.young.done {
		start := mark{now, p.Done}
		r.p = pace{what: p.What, begun: now, shownTenth: tenth(p), old: start, young: start}
	} else if now.Sub(q.young.at) >= rateOver {
		q.old, q.young = q.young, mark{now, p.Done}
	}
	if !r.due(p, now) {
		return
	}
	r.p.shown, r.p.shownTenth = now, tenth(p)
	switch r.mode {
	case JSON:
		r.json(p)
	case Terminal:
		r.bar = true
		fmt.Fprint(r.err, "\r\x1b[K"+r.drawn(p, now))
	default:
		r.line(r.err, strings.TrimRight(p.Line()+"  "+r.rate(p, now), " "))
	}
}

func (r *Renderer) due(p Progress, now time.Time) bool {
	since := now.Sub(r.p.shown)
	switch r.mode {
	case Terminal:
		return since >= barEvery
	case JSON:
		return since >= jsonEvery || p.Total > 0 && p.Done >= p.Total && r.p.shownTenth < 10
	}
	if r.p.shown.IsZero() {
		since = now.Sub(r.p.begun) // the phase has just been announced
	}
	return since >= plainEvery || since >= plainTenth && tenth(p) > r.p.shownTenth
}

func tenth(p Progress) int64 {
	if p.Total <= 0 {
		return 0
	}
	return int64(10 * (float64(p.Done) / float64(p.Total)))
}

// drawn is the bar's line: as much of it as the terminal has room for.
func (r *Renderer) drawn(p Progress, now time.Time) string {
	line := printable(strings.TrimRight(p.Line()+"  "+r.rate(p, now), " "), "")
	width := r.width()
	if width <= 0 {
		return line
	}
	const least, most = 10, 30
	if room := width - 1 - len([]rune(line)) - len(" []"); p.Total > 0 && room >= least {
		room = min(room, most)
		full := int(float64(room) * min(1, max(0, float64(p.Done)/float64(p.Total))))
		return line + " [" + strings.Repeat("#", full) + strings.Repeat(".", room-full) + "]"
	}
	if runes := []rune(line); len(runes) >= width {
		return string(runes[:width-1]) // a line that wraps cannot be taken off again
	}
	return line
}

// rate is the speed of late and the time that is left at it.
func (r *Renderer) rate(p Progress, now time.Time) string {
	t := now.Sub(r.p.old.at).Seconds()
	moved := p.Done - r.p.old.done
	if t < 1 || moved <= 0 {
		return ""
	}
	speed := float64(moved) / t
	s := Bytes(int64(speed)) + "/s"
	if left := float64(p.Total-p.Done) / speed; p.Total > p.Done && left < (1000*time.Hour).Seconds() {
		s += ", " + Duration(time.Duration(left*float64(time.Second))) + " left"
	}
	return s
}
