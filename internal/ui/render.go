package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// MessageType implements Event.
func (Progress) MessageType() string { return "progress" }

// Line implements Event; it is empty while nothing is known.
func (p Progress) Line() string {
	if p.Total <= 0 {
		return fmt.Sprintf("%s %s", p.What, Bytes(p.Done))
	}
	return fmt.Sprintf("%s %3d%% %s of %s", p.What, 100*p.Done/p.Total, Bytes(p.Done), Bytes(p.Total))
}

// Mode is a way to show events.
type Mode int

// The modes. Plain writes lines to stderr, Terminal also a progress bar; JSON
// writes every event to stdout; Quiet shows results and errors only.
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

// How often progress is shown.
const (
	barEvery   = 100 * time.Millisecond
	plainEvery = 10 * time.Second
)

// Renderer shows events. It may be used from many goroutines.
type Renderer struct {
	mode     Mode
	out, err io.Writer
	now      func() time.Time

	mu     sync.Mutex
	bar    bool // a bar stands on the terminal's last line
	what   string
	begun  time.Time
	shown  time.Time
	failed error // the first write that failed
}

// New makes a renderer. Results go to out, everything else to err; in JSON mode
// all of it goes to out.
func New(mode Mode, out, err io.Writer) *Renderer {
	return &Renderer{mode: mode, out: out, err: err, now: time.Now}
}

// Emit implements Sink.
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
	case r.mode == Quiet && e.MessageType() != "error" && e.MessageType() != "summary" && e.MessageType() != "restored":
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

// Close takes the bar off the terminal.
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
	_, err := fmt.Fprintln(w, s)
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
	body, err := json.Marshal(e)
	if err != nil {
		panic(err) // events are plain structs of our own
	}
	head := fmt.Sprintf(`{"message_type":%q,"time":%q`, e.MessageType(), r.now().UTC().Format(time.RFC3339Nano))
	if rest := strings.TrimPrefix(string(body), "{"); rest != "}" {
		head += "," + rest
	} else {
		head += "}"
	}
	_, err = fmt.Fprintln(r.out, head)
	r.note(err)
}

func (r *Renderer) progress(p Progress) {
	now := r.now()
	if p.What != r.what {
		r.what, r.begun, r.shown = p.What, now, time.Time{}
	}
	every := plainEvery
	if r.mode == Terminal {
		every = barEvery
	}
	if r.mode == Quiet || now.Sub(r.shown) < every || r.mode != Terminal && r.shown.IsZero() && now.Sub(r.begun) < every {
		return
	}
	r.shown = now
	switch r.mode {
	case JSON:
		r.json(p)
	case Terminal:
		r.bar = true
		fmt.Fprintf(r.err, "\r\x1b[K%s %s", p.Line(), r.rate(p, now))
	default:
		r.line(r.err, p.Line()+" "+r.rate(p, now))
	}
}

// rate is the speed so far and the time that is left at it.
func (r *Renderer) rate(p Progress, now time.Time) string {
	t := now.Sub(r.begun).Seconds()
	if t < 1 || p.Done == 0 {
		return ""
	}
	speed := float64(p.Done) / t
	s := Bytes(int64(speed)) + "/s"
	if p.Total > p.Done {
		s += ", " + Duration(time.Duration(float64(p.Total-p.Done)/speed*float64(time.Second))) + " left"
	}
	return s
}

// Bytes writes a size for people: 1.5 GiB.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB", "PiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, next
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// Duration writes a time for people, to the second above a minute.
func Duration(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Rows is a table whose columns are as wide as they must be.
type Rows struct {
	rows [][]string
}

// Table begins a table with its headings.
func Table(head ...string) *Rows { return &Rows{rows: [][]string{head}} }

// Row adds a line.
func (t *Rows) Row(cells ...string) { t.rows = append(t.rows, cells) }

// Len is the number of lines below the headings.
func (t *Rows) Len() int { return len(t.rows) - 1 }

// String is the table, a line feed behind every line.
func (t *Rows) String() string {
	var width []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			fmt.Fprintf(&line, "%-*s  ", width[i], c)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
