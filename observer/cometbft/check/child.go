package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Verb is what eddy's command line has for Child. Only eddy itself calls it.
const Verb = "check-child"

// DefaultMemory is what a child may have unless told otherwise, bytes.
const DefaultMemory = 1 << 30

// request is what a child is asked: one line of JSON. Its input then stays open
// for as long as somebody waits for the answer.
type request struct {
	Dir     string  `json:"dir"`
	Memory  uint64  `json:"memory"`
	Options Options `json:"options"`
}

// answer is what a child says at its end: one line of JSON.
type answer struct {
	Report *Report `json:"report,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// InChild is Run in a process of its own: engines take memory for each table, and
// some damage ends a process. argv starts this program, or another one that calls
// Child, with the input and output that it is given; it is told that its name is
// "eddy", and gets nothing of this process's environment, where secrets may be.
// memory bounds what the child
// may have, bytes; 0: DefaultMemory. A child that needs more, that panics or is
// killed is a finding. When ctx ends the child is killed, and ctx's error returned.
func InChild(ctx context.Context, argv []string, memory uint64, dir string, o Options) (Report, error) {
	if memory == 0 {
		memory = DefaultMemory
	}
	begun := time.Now()
	text, err := json.Marshal(request{dir, memory, o})
	if err != nil {
		return Report{}, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Args[0], cmd.Env = "eddy", []string{"GOTRACEBACK=single"}
	in, err := cmd.StdinPipe()
	if err != nil {
		return Report{}, err
	}
	defer in.Close()
	var out bytes.Buffer
	said := head{max: 64 << 10}
	cmd.Stdout, cmd.Stderr = &limited{w: &out, left: 8 << 20}, &said
	if err := cmd.Start(); err != nil {
		return Report{}, fmt.Errorf("start the check: %w", err)
	}
	_, werr := in.Write(append(text, '\n')) // one that has ended already says why itself
	err = cmd.Wait()
	if ctx.Err() != nil {
		return Report{}, ctx.Err()
	}
	var a answer
	jerr := json.Unmarshal(out.Bytes(), &a)
	r := Report{}
	switch {
	case err == nil && jerr == nil && a.Error != "":
		return r, errors.New(a.Error)
	case err == nil && jerr == nil && a.Report != nil:
		r = *a.Report
	default:
		what, detail := ended(cmd, said.b.String(), memory, errors.Join(err, werr, jerr))
		r.Opened, r.Grade = None, Broken
		r.Findings = []Finding{{Stage: StageChild, What: what, Detail: detail, Hint: what.hint()}}
		r.Seconds = time.Since(begun).Seconds()
	}
	if use, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.Peak = use.Maxrss << 10
	}
	return r, nil
}

// ended says how a child came to a bad end. Go's runtime ends a process that gets
// no memory with these words; the kernel's own killer says nothing.
func ended(cmd *exec.Cmd, said string, memory uint64, err error) (What, string) {
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	outOfMemory := strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory")
	if outOfMemory || status.Signaled() && status.Signal() == syscall.SIGKILL {
		return ChildMemory, line("it needed more than %d MiB, or was killed", memory>>20)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	return ChildEnded, line("%v: %s", err, first)
}

// Child answers InChild in a process that does nothing else: it bounds the
// process's memory, for good. It returns an error only where it could not answer.
// When in ends before the check does, the check is given up: nobody waits.
func Child(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := json.NewDecoder(in)
	var q request
	if err := d.Decode(&q); err != nil {
		return fmt.Errorf("read what to check: %w", err)
	}
	if err := bound(q.Memory); err != nil {
		return err
	}
	go func() { // it ends with the process: in cannot be made to return
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	r, err := Run(ctx, q.Dir, q.Options)
	a := answer{Report: &r}
	if err != nil {
		a = answer{Error: err.Error()}
	}
	return json.NewEncoder(out).Encode(a)
}

// bound limits what this process may allocate. The collector works harder near the
// bound; beyond it the process ends, and nothing else on the machine does.
func bound(memory uint64) error {
	debug.SetMemoryLimit(int64(memory - memory/8))
	limit := unix.Rlimit{Cur: memory, Max: memory}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &limit); err != nil {
		return fmt.Errorf("bound the check's memory: %w", err)
	}
	return nil
}

// limited takes no more than left bytes: what a child says is not trusted.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if len(b) > l.left {
		return 0, errors.New("the check's answer is too long")
	}
	l.left -= len(b)
	return l.w.Write(b)
}

// head keeps the first bytes of what is written; the rest is dropped. The buffer is
// not embedded: a copy would find its ReadFrom, which knows no bound.
type head struct {
	b   bytes.Buffer
	max int
}

func (t *head) Write(b []byte) (int, error) {
	t.b.Write(b[:min(len(b), max(0, t.max-t.b.Len()))])
	return len(b), nil
}
