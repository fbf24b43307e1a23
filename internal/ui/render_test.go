package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type said struct {
	Text string `json:"text"`
}

func (said) MessageType() string { return "said" }
func (s said) Line() string      { return s.Text }

func TestPlainKeepsResultsApart(t *testing.T) {
	var out, errs bytes.Buffer
	r := New(Plain, &out, &errs)
	r.Emit(said{"working"})
	if err := r.Result(said{"done"}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "done\n" || errs.String() != "working\n" {
		t.Fatalf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestJSONIsOneObjectALine(t *testing.T) {
	var out bytes.Buffer
	r := New(JSON, &out, &bytes.Buffer{})
	r.Emit(said{"a \"quoted\" word"})
	for line := range strings.Lines(out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if m["message_type"] != "said" || m["text"] != "a \"quoted\" word" || m["time"] == "" {
			t.Fatalf("%v", m)
		}
	}
}

func TestQuietDropsPhasesAndProgress(t *testing.T) {
	var out, errs bytes.Buffer
	r := New(Quiet, &out, &errs)
	r.Emit(kinded{"phase"})
	r.Emit(Progress{What: "upload", Done: 1, Total: 2})
	if errs.Len() != 0 {
		t.Fatalf("stderr %q", errs.String())
	}
}

// ticking makes every look at the clock a step later than the last.
func ticking(r *Renderer, step time.Duration) {
	at := time.Unix(0, 0)
	r.now = func() time.Time { at = at.Add(step); return at }
}

func TestQuietShowsWarningsAndErrors(t *testing.T) {
	var errs bytes.Buffer
	r := New(Quiet, &bytes.Buffer{}, &errs)
	for _, kind := range []string{"phase", "warning", "failed", "summary", "error"} {
		r.Emit(kinded{kind})
	}
	if errs.String() != "warning\nfailed\nsummary\nerror\n" {
		t.Fatalf("stderr %q", errs.String())
	}
}

type kinded struct{ kind string }

func (k kinded) MessageType() string { return k.kind }
func (k kinded) Line() string        { return k.kind }

// All that a terminal is sent, byte by byte.
func TestTerminalGolden(t *testing.T) {
	const on = "\r\x1b[K"
	for name, c := range map[string]struct {
		width int
		step  time.Duration
		want  string
	}{
		"no width": {0, time.Second, on + "upload   0% 0 B of 4.0 MiB" +
			on + "upload  25% 1.0 MiB of 4.0 MiB  1.0 MiB/s, 3.0 s left" +
			on + "upload  50% 2.0 MiB of 4.0 MiB  1.0 MiB/s, 2.0 s left" +
			on + "upload  75% 3.0 MiB of 4.0 MiB  1.0 MiB/s, 1.0 s left" +
			on + "upload 100% 4.0 MiB of 4.0 MiB  1.0 MiB/s" + on + "READY\n"},
		"wide": {80, time.Second, on + "upload   0% 0 B of 4.0 MiB [" + strings.Repeat(".", 30) + "]" +
			on + "upload  25% 1.0 MiB of 4.0 MiB  1.0 MiB/s, 3.0 s left [#####" + strings.Repeat(".", 18) + "]" +
			on + "upload  50% 2.0 MiB of 4.0 MiB  1.0 MiB/s, 2.0 s left [###########" + strings.Repeat(".", 12) + "]" +
			on + "upload  75% 3.0 MiB of 4.0 MiB  1.0 MiB/s, 1.0 s left [" + strings.Repeat("#", 17) + "......]" +
			on + "upload 100% 4.0 MiB of 4.0 MiB  1.0 MiB/s [" + strings.Repeat("#", 30) + "]" + on + "READY\n"},
		"narrow": {20, time.Second, on + "upload   0% 0 B of " +
			on + "upload  25% 1.0 MiB" + on + "upload  50% 2.0 MiB" + on + "upload  75% 3.0 MiB" + on + "upload 100% 4.0 MiB" + on + "READY\n"},
		"ten a second at most": {0, 40 * time.Millisecond, on + "upload   0% 0 B of 4.0 MiB" + on + "upload  75% 3.0 MiB of 4.0 MiB" + on + "READY\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			r := New(Terminal, &out, &errs)
			r.width = func() int { return c.width }
			ticking(r, c.step)
			for n := range int64(5) {
				r.Emit(Progress{What: "upload", Done: n << 20, Total: 4 << 20})
			}
			r.Emit(said{"READY"})
			r.Close()
			if errs.String() != c.want || out.Len() != 0 {
				t.Fatalf("stderr\n%q, want\n%q", errs.String(), c.want)
			}
		})
	}
}

func TestCloseAndResultsTakeTheBarAway(t *testing.T) {
	for name, end := range map[string]func(r *Renderer){
		"close":  func(r *Renderer) { r.Close(); r.Close() },
		"result": func(r *Renderer) { _ = r.Result(said{"x"}) },
	} {
		var errs bytes.Buffer
		r := New(Terminal, &bytes.Buffer{}, &errs)
		r.Emit(Progress{What: "upload", Done: 1})
		end(r)
		if errs.String() != "\r\x1b[Kupload 1 B\r\x1b[K" {
			t.Errorf("%s: %q", name, errs.String())
		}
	}
}

func TestPlainProgressIsSeldom(t *testing.T) {
	for name, c := range map[string]struct {
		step  time.Duration
		total int64
		want  int
	}{
		"slow: every ten seconds":    {time.Second, 0, 49},
		"steady: no more at a tenth": {time.Second, 500, 49}, // where a line is due anyway
		"quicker: nothing at all":    {time.Millisecond, 500, 0},
		"very slow: every report":    {time.Minute, 500, 499},
		"quick: every tenth":         {100 * time.Millisecond, 500, 10},
	} {
		t.Run(name, func(t *testing.T) {
			var errs bytes.Buffer
			r := New(Plain, &bytes.Buffer{}, &errs)
			ticking(r, c.step)
			for n := range int64(500) {
				r.Emit(Progress{What: "upload", Done: n, Total: c.total})
			}
			lines := strings.Count(errs.String(), "\n")
			if lines < c.want-2 || lines > c.want+2 {
				t.Fatalf("%d lines, want about %d:\n%s", lines, c.want, errs.String())
			}
		})
	}
}

func TestJSONGolden(t *testing.T) {
	var out, errs bytes.Buffer
	r := New(JSON, &out, &errs)
	ticking(r, 300*time.Millisecond)
	for n := range int64(6) {
		r.Emit(Progress{What: "restore", Done: n, Total: 5})
	}
	r.Emit(kinded{"empty"})
	want := `{"message_type":"progress","time":"1970-01-01T00:00:00.6Z","what":"restore","done":0,"total":5}
{"message_type":"progress","time":"1970-01-01T00:00:01.8Z","what":"restore","done":3,"total":5}
{"message_type":"progress","time":"1970-01-01T00:00:02.7Z","what":"restore","done":5,"total":5}
{"message_type":"empty","time":"1970-01-01T00:00:03Z"}
`
	if out.String() != want || errs.Len() != 0 {
		t.Fatalf("%s\nstderr %q, want\n%s", out.String(), errs.String(), want)
	}
}

// A number that JSON does not have must not end the job that holds a node.
func TestJSONOfAnImpossibleNumber(t *testing.T) {
	var out bytes.Buffer
	err := New(JSON, &out, &bytes.Buffer{}).Result(impossible{math.NaN()})
	if err == nil || !strings.HasPrefix(out.String(), `{"message_type":"impossible"`) || !json.Valid(out.Bytes()) {
		t.Fatalf("%q, %v", out.String(), err)
	}
}

type impossible struct{ X float64 }

func (impossible) MessageType() string { return "impossible" }
func (impossible) Line() string        { return "" }

// The rate follows a link that became slow; what was done before the first
// report does not count as fast.
func TestTheRateIsThatOfLate(t *testing.T) {
	r := New(Plain, &bytes.Buffer{}, &bytes.Buffer{})
	ticking(r, time.Second)
	p := Progress{What: "upload", Done: 1 << 40, Total: 1 << 41}
	for range 60 {
		p.Done += 100 << 20
		r.Emit(p)
	}
	for range 30 {
		p.Done += 1 << 20
		r.Emit(p)
	}
	if got := r.rate(p, r.now()); !strings.HasPrefix(got, "0.9 MiB/s") && !strings.HasPrefix(got, "1.0 MiB/s") && !strings.HasPrefix(got, "9") {
		t.Fatalf("%q", got)
	}
	p.Done -= 1 << 39 // another object begins
	r.Emit(p)
	if got := r.rate(p, r.now()); got != "" {
		t.Fatalf("after a step back: %q", got)
	}
}

// What others wrote must not steer the terminal or break a table.
func TestNothingSteersTheTerminal(t *testing.T) {
	var out, errs bytes.Buffer
	r := New(Terminal, &out, &errs)
	r.Emit(said{"a\x1b]0;title\a\u202e\x9b\r\x7fb\n hint:\tc \xff é 漢"})
	if want := "a?]0;title??" + "\ufffd" + "??b\n hint:\tc \ufffd é 漢\n"; errs.String() != want {
		t.Errorf("%q, want %q", errs.String(), want)
	}
	r.Emit(Progress{What: "up\nload\x1b[2J", Done: 1})
	if strings.Contains(errs.String()[20:], "\n\x1b[2J") || strings.Count(errs.String(), "\x1b") != 1 {
		t.Errorf("%q", errs.String())
	}
	tb := Table("A", "B")
	tb.Row("x\ny\x1b[1m", "z")
	if got := tb.String(); got != "A         B\nx?y?[1m   z\n" && got != "A        B\nx?y?[1m  z\n" {
		t.Errorf("%q", got)
	}
}

func TestManyAtOnce(t *testing.T) {
	for _, mode := range []Mode{Plain, Terminal, JSON, Quiet} {
		var out, errs bytes.Buffer
		r := New(mode, &out, &errs)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for n := range int64(50) {
					r.Emit(Progress{What: "upload", Done: n, Total: 50})
					r.Emit(said{"line"})
				}
			})
		}
		wg.Wait()
		r.Close()
		if got := strings.Count(out.String()+errs.String(), "line"); got != 400 {
			t.Errorf("mode %d: %d lines of 400", mode, got)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestAFailedWriteOfTheResultIsAnError(t *testing.T) {
	if err := New(Plain, full{}, &bytes.Buffer{}).Result(said{"x"}); err == nil {
		t.Fatal("a result that could not be written counts as written")
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB", 1<<20 - 1: "1.0 MiB", 1<<63 - 1: "8192.0 PiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestTableAligns(t *testing.T) {
	tb := Table("ID", "SIZE")
	tb.Row("é", "1")
	tb.Row("long", "22")
	if got := tb.String(); got != "ID    SIZE\né     1\nlong  22\n" {
		t.Fatalf("%q", got)
	}
}
