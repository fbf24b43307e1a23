package command

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// Kind is the kind of the positions, and the system of the manifests.
const Kind = "command"

// Options describe the program.
type Options struct {
	Cluster string
	// Argv prints the dump. Precheck, where set, must exit with 0 before; Version
	// prints the system's version; Restore reads a dump from stdin.
	Argv, Precheck, Version, Restore []string
	// EnvFiles are variables whose values are the contents of files, each of mode
	// 0600 or less. All of the argvs get them.
	EnvFiles map[string]string
	Expect   Expect
	Timeout  time.Duration // of Argv and Restore each
	// Log takes a line of the program's stderr; nil: nobody.
	Log func(line string)
}

// Command is a program as a replica.
type Command struct {
	o   Options
	now func() time.Time
}

// New makes it; nothing is run.
func New(o Options) *Command { return &Command{o: o, now: time.Now} }

// short bounds the programs that only tell something.
const short = time.Minute

// Describe implements observer.Replica. The position is not known before there is a
// dump.
func (c *Command) Describe(ctx context.Context) (observer.State, error) {
	s := observer.State{Cluster: c.o.Cluster, System: Kind, Taken: c.now().UTC()}
	s.Node.Role = "host"
	if len(c.o.Version) == 0 {
		return s, nil
	}
	out, err := c.run(ctx, short, c.o.Version).text()
	if err != nil {
		return s, fmt.Errorf("%w: ask for the version: %w", observer.ErrNotFit, err)
	}
	s.Version, _, _ = strings.Cut(strings.TrimSpace(out), "\n")
	return s, nil
}

// Gate implements observer.Gater.
func (c *Command) Gate(ctx context.Context, _ observer.State) error {
	if len(c.o.Precheck) == 0 {
		return nil
	}
	if _, err := c.run(ctx, short, c.o.Precheck).text(); err != nil {
		return fmt.Errorf("%w: replica.command.precheck says no: %w", observer.ErrNotFit, err)
	}
	return nil
}

// Capture implements observer.Replica: it runs the program.
func (c *Command) Capture(ctx context.Context, st *snapshot.Stage) error {
	begun := c.now().UTC()
	sum := sha256.New()
	err := st.Stream(ctx, "", observer.DumpName, func(ctx context.Context, w io.Writer) error {
		n := &counter{w: io.MultiWriter(sum, w)}
		err := c.run(ctx, c.o.Timeout, c.o.Argv).into(nil, n)
		if err == nil && n.n == 0 {
			err = hint.Add(errors.New("it printed nothing"), "run it by hand, as eddy's user: the dump must come on stdout")
		}
		return err
	})
	if err != nil {
		return err
	}
	s, err := c.Describe(ctx)
	if err != nil {
		return err
	}
	return observer.Note{State: s, Position: positionAt(begun), Facts: map[string]string{sumFact: hex.EncodeToString(sum.Sum(nil))}}.Put(ctx, st)
}

// sumFact is the sha256 of what the program printed, taken before it was written: of a
// form without checksums nothing else tells that a bit has flipped since.
const sumFact = "sha256"

// positionAt is the position of a dump that was begun at a time: of two dumps the
// later one is further, and more is not known.
func positionAt(begun time.Time) observer.Position {
	return observer.Position{Kind: Kind, Index: uint64(begun.Unix()), Time: begun, Consistency: "command"}
}

// Locate implements observer.Replica.
func (c *Command) Locate(_ context.Context, st *snapshot.Stage, _ observer.State) (observer.Position, error) {
	n, err := observer.ReadNote(st.Trees()[0].Dir)
	return n.Position, err
}

// Check implements observer.Checker: is it what was printed, and what the configuration
// says it must be.
func (c *Command) Check(ctx context.Context, trees []snapshot.Tree, _ observer.Position) (observer.Checked, error) {
	begun := time.Now()
	f, err := os.Open(filepath.Join(trees[0].Dir, observer.DumpName))
	if err != nil {
		return observer.Checked{}, err
	}
	defer f.Close()
	out := observer.Checked{Opened: "none", Grade: "printed"}
	note, err := observer.ReadNote(trees[0].Dir)
	if err != nil {
		return out, err
	}
	sum := sha256.New()
	in := io.TeeReader(f, sum)
	said, finding, err := c.o.Expect.look(ctx, in)
	if err == nil {
		_, err = io.Copy(io.Discard, observer.Reading(ctx, in)) // what the form did not need
	}
	if err != nil {
		return out, err
	}
	if want := note.Facts[sumFact]; finding == "" && want != "" && want != hex.EncodeToString(sum.Sum(nil)) {
		finding = "it is not what was printed: its sha256 is another one"
	}
	if finding != "" {
		out.Findings, out.Hint = []string{"dump: " + finding}, "run the command by hand and look at what it prints; replica.command.expect says what it must be"
	} else if said != "" {
		out.Opened, out.Grade = "part", "form"
	}
	out.Layers = []observer.CheckedLayer{{Name: "dump", Engine: string(c.o.Expect.Form), Opened: said != "", Said: said}}
	out.Seconds = time.Since(begun).Seconds()
	return out, nil
}

// Target implements observer.Restorer.
func (c *Command) Target(context.Context, observer.RestoreTask) (string, error) {
	if len(c.o.Restore) == 0 {
		return "", hint.Add(fmt.Errorf("%w: no command takes a dump back", observer.ErrNotFit), "set `replica.command.restore: [PROGRAM, ...]`, which reads it from stdin; or `eddy restore SEL --into DIR` and use the file dump")
	}
	return c.o.Cluster + ", as " + c.o.Restore[0] + " finds it", nil
}

// Restore implements observer.Restorer: the program reads the dump from stdin. That
// it may be repeated is the program's own affair.
func (c *Command) Restore(ctx context.Context, t observer.RestoreTask) ([]string, error) {
	f, err := os.Open(filepath.Join(t.Dir, observer.DumpName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if t.Say != nil {
		t.Say("restore", "giving the dump to "+c.o.Restore[0])
	}
	return nil, c.run(ctx, c.o.Timeout, c.o.Restore).into(f, logger{c.o.Log})
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// sortedVars are the variables of EnvFiles in order, so that the first wrong one is
// always the same.
func sortedVars(m map[string]string) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
