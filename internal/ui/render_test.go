package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

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

func TestQuietShowsOnlyResults(t *testing.T) {
	var out, errs bytes.Buffer
	r := New(Quiet, &out, &errs)
	r.Emit(said{"working"})
	r.Emit(Progress{What: "upload", Done: 1, Total: 2})
	if errs.Len() != 0 {
		t.Fatalf("stderr %q", errs.String())
	}
}

func TestTheBarIsTakenAwayBeforeALine(t *testing.T) {
	var errs bytes.Buffer
	r := New(Terminal, &bytes.Buffer{}, &errs)
	at := time.Unix(0, 0)
	r.now = func() time.Time { at = at.Add(time.Second); return at }
	for n := range int64(3) {
		r.Emit(Progress{What: "upload", Done: n << 20, Total: 4 << 20})
	}
	r.Emit(said{"READY"})
	got := errs.String()
	if !strings.Contains(got, "50% 2.0 MiB of 4.0 MiB 1.0 MiB/s, 2.0 s left\r\x1b[KREADY\n") {
		t.Fatalf("%q", got)
	}
}

func TestPlainProgressIsSeldom(t *testing.T) {
	var errs bytes.Buffer
	r := New(Plain, &bytes.Buffer{}, &errs)
	at := time.Unix(0, 0)
	r.now = func() time.Time { at = at.Add(time.Second); return at }
	for n := range int64(35) {
		r.Emit(Progress{What: "upload", Done: n, Total: 35})
	}
	if lines := strings.Count(errs.String(), "\n"); lines != 3 {
		t.Fatalf("%d lines in 35 s, want 3:\n%s", lines, errs.String())
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
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB"} {
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
