package job

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Drill restores a backup into a scratch directory, brings it to life there, and
// writes down beside the backup what came of it. Construct it with Store, Catalog,
// Selector, Events, Now and FS of Restore set, and all fields of its own.
type Drill struct {
	Restore
	Driller observer.Driller
	Workdir Workdir
	Dir     string // the scratch directory, absent or empty
	Keep    bool   // leave it for a look
	Version string // of eddy
	Host    string
}

// drillFile in the workdir says where a drill works, from before its first file
// until after its last: who finds it, and gets the lock, ends what is left.
const (
	drillFile = "drill.json"
	drillLock = "drill.lock"
)

type drillNote struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Dir       string    `json:"dir"`
	Made      bool      `json:"made"` // the directory was not there before
	Started   time.Time `json:"started"`
}

// cleanWithin bounds the end of a drill: its processes die, its files go.
const cleanWithin = 10 * time.Minute

// Run drills one backup. The error is nil when it passed, has ErrProof in its chain
// when it failed and ErrWarnings when it was not possible; what was found is in
// Drilled all the same, once a backup was found.
func (d *Drill) Run(ctx context.Context) (out Drilled, err error) {
	begun := d.Now()
	dir, err := filepath.Abs(d.Dir)
	if err != nil {
		return out, err
	}
	lock, err := d.Workdir.lockDrill()
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if err := d.sweep(ctx); err != nil {
		return out, err
	}
	d.proves = true
	m, err := d.find(ctx)
	if err != nil {
		return out, err
	}
	out = Drilled{ID: m.ID, Cluster: m.Cluster, Position: m.Position.Index, At: PositionOf(m).String(), AgeSeconds: begun.Sub(m.Position.Time).Seconds()}
	hash, err := hex.DecodeString(m.Position.Hash)
	if err != nil {
		return out, fmt.Errorf("%w: the manifest's hash %.70q: %w", snapshot.ErrCorrupt, m.Position.Hash, err)
	}
	t := observer.DrillTask{
		Scratch: dir,
		Position: observer.Position{
			Kind: m.Position.Kind, Incarnation: m.Incarnation, Index: m.Position.Index, Time: m.Position.Time,
			Hash: hash, HashKind: m.Position.HashKind, Consistency: m.Position.Consistency,
		},
		Say: func(phase, text string) { d.Events.Emit(Phase{ID: m.ID, Phase: phase, Text: text}) },
	}
	for _, r := range m.Roots {
		t.Roots = append(t.Roots, snapshot.Root{Name: r.Name, Path: r.Path, Prefix: r.Prefix})
	}
	cannot := func(err error) (Drilled, error) {
		if !errors.Is(err, observer.ErrNotPossible) {
			return out, fmt.Errorf("drill %s: %w", m.ID, err)
		}
		out.Outcome, out.Why, out.Hint = observer.DrillNotPossible, err.Error(), hint.Of(err)
		return out, errors.Join(ErrWarnings, d.remember(out, begun))
	}
	if err := d.Driller.Possible(ctx, t.Position); err != nil {
		return cannot(err)
	}
	made, err := d.claim(dir, m.ID)
	if err != nil {
		return out, err
	}
	defer func() {
		if d.Keep {
			out.Dir = dir
			err = errors.Join(err, d.Workdir.remove(drillFile))
			return
		}
		err = errors.Join(err, d.clean(ctx, dir, made))
	}()
	if err := d.Driller.Prepare(ctx, t); err != nil {
		return cannot(err)
	}
	d.Into = filepath.Join(dir, observer.DrillHome)
	fetching := d.Now() // the wait for blocks is no part of a recovery
	got, err := d.fill(ctx, m)
	if err != nil {
		if errors.Is(err, snapshot.ErrCorrupt) {
			out.Outcome, out.Why = observer.DrillFailed, "it could not be restored: "+err.Error()
			return out, errors.Join(err, d.grade(ctx, &out, begun))
		}
		return out, err
	}
	out.Files, out.Bytes, out.FetchSeconds = got.Files, got.Bytes, d.Now().Sub(fetching).Seconds()
	if out.DrillReport, err = d.Driller.Drill(ctx, t); err != nil {
		return out, fmt.Errorf("drill %s: %w", m.ID, err)
	}
	out.Seconds = d.Now().Sub(begun).Seconds()
	return out, d.judge(ctx, &out, begun)
}

// judge turns what a drill has found into a grade and an error.
func (d *Drill) judge(ctx context.Context, out *Drilled, begun time.Time) error {
	if out.Outcome == observer.DrillNotPossible {
		return errors.Join(ErrWarnings, d.remember(*out, begun))
	}
	var err error
	if out.Late { // a slow machine proves nothing against a backup
		err = d.remember(*out, begun)
	} else {
		err = d.grade(ctx, out, begun)
	}
	for _, w := range out.Warnings {
		d.Events.Emit(Warning{Text: w})
		err = errors.Join(err, ErrWarnings)
	}
	if out.Outcome == observer.DrillFailed {
		failed := fmt.Errorf("the drill of %s failed: %s", out.ID, out.Why)
		advice := hint.Or(hint.Add(failed, out.Hint), "do not rely on this backup: drill another one, and look at the node that it was made of")
		return mark(ErrProof, hint.Add(failed, advice))
	}
	return err
}

// grade writes what was proven beside the backup, and into the workdir. A store
// that takes no grade, or a reader's credentials, are a warning.
func (d *Drill) grade(ctx context.Context, out *Drilled, begun time.Time) error {
	report, err := json.Marshal(out)
	if err != nil {
		return err
	}
	g := uploader.Grade{
		ID: out.ID, Kind: uploader.GradeDrilled, By: uploader.ByDrill, Given: d.Now(), Eddy: d.Version, Host: d.Host,
		Seconds: d.Now().Sub(begun).Seconds(), ManifestSHA256: d.sum, Report: report,
	}
	if out.Outcome == observer.DrillFailed {
		g.Kind, g.Findings = uploader.GradeFailed, []uploader.Finding{{Stage: uploader.ByDrill, Text: out.Why}}
	}
	ctx, cancel := noteTo(ctx, time.Minute)
	defer cancel()
	out.Grade, err = d.Catalog.PutGrade(ctx, g)
	rerr := d.remember(*out, begun)
	if err != nil {
		d.Events.Emit(Warning{Text: "the grade could not be written beside the backup: " + err.Error(), Hint: hint.Of(err)})
		return errors.Join(ErrWarnings, rerr)
	}
	return rerr
}

func (d *Drill) remember(out Drilled, begun time.Time) error {
	return d.Workdir.remember(func(l *Last) {
		l.LastDrill = &LastDrill{Time: begun.UTC(), ID: out.ID, Outcome: out.Outcome, Why: out.Why, Seconds: out.Seconds}
		if out.Outcome == observer.DrillPassed {
			l.LastDrilled, l.LastDrilledID = begun.UTC(), out.ID
		}
	})
}

// lockDrill admits one drill at a time; backups go on beside it.
func (w Workdir) lockDrill() (*fsx.Lock, error) {
	if err := w.Prepare(); err != nil {
		return nil, err
	}
	l, err := fsx.TryLock(w.path(drillLock))
	if errors.Is(err, fsx.ErrLocked) {
		return nil, hint.Add(fmt.Errorf("another drill is at work: %w", err), "wait until it has ended")
	}
	return l, err
}

// claim makes the scratch directory, or takes an empty one, and writes down that it
// is a drill's.
func (d *Drill) claim(dir, id string) (made bool, err error) {
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made = true
	case err != nil:
		return false, hint.Add(fmt.Errorf("look at the scratch directory: %w", err), "set `drill.dir: DIR` to a directory that eddy's user may write to")
	}
	for _, n := range names {
		if n.Name() != "lost+found" {
			return false, hint.Add(fmt.Errorf("%s: %w (it holds %s)", dir, ErrNotEmpty, n.Name()), "a drill fills and empties its directory: set `drill.dir: DIR` to one of its own, or remove what an earlier `eddy drill --keep` left; nothing was touched")
		}
	}
	note := drillNote{Format: stateFormat, MinReader: stateMinReader, ID: id, Dir: dir, Made: made, Started: d.Now().UTC()}
	if err := d.Workdir.write(drillFile, note); err != nil {
		return false, err
	}
	if made {
		err = makeLike(d.FS, dir)
	}
	return made, err
}

// clean removes all that a drill made, and then the note of it.
func (d *Drill) clean(ctx context.Context, dir string, made bool) error {
	ctx, cancel := noteTo(ctx, cleanWithin)
	defer cancel()
	if err := d.Driller.Sweep(ctx, dir); err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return d.Workdir.remove(drillFile)
	}
	for _, n := range names {
		if n.Name() != "lost+found" {
			err = errors.Join(err, d.FS.RemoveAll(filepath.Join(dir, n.Name())))
		}
	}
	if err == nil && made {
		err = d.FS.Remove(dir)
	}
	if err != nil {
		return fmt.Errorf("remove what the drill made: %w", err)
	}
	return d.Workdir.remove(drillFile)
}

// Sweep ends what a drill left that was killed: its processes and its files. Where
// a drill is at work it does nothing.
func (d *Drill) Sweep(ctx context.Context) (err error) {
	var note drillNote
	if there, err := d.Workdir.read(drillFile, &note); err != nil || !there {
		return err
	}
	lock, err := d.Workdir.lockDrill()
	if errors.Is(err, fsx.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	return d.sweep(ctx)
}

func (d *Drill) sweep(ctx context.Context) error {
	if err := d.Workdir.FS.SweepTemp(d.Workdir.path(drillFile)); err != nil {
		return err
	}
	var note drillNote
	if there, err := d.Workdir.read(drillFile, &note); err != nil || !there {
		return err
	}
	if err := d.clean(ctx, note.Dir, note.Made); err != nil {
		return fmt.Errorf("end the drill of %s that died: %w", note.ID, err)
	}
	d.Events.Emit(Warning{Text: "a drill of " + note.ID + " was killed; what it left is removed"})
	return nil
}

// Drilled ends a drill. Times in seconds.
type Drilled struct {
	ID           string  `json:"id"`
	Cluster      string  `json:"cluster"`
	Position     uint64  `json:"position"`
	At           string  `json:"at"`          // the position, for people
	AgeSeconds   float64 `json:"age_seconds"` // of what was restored, when the drill began: what a disaster would lose
	Files        int64   `json:"files,omitempty"`
	Bytes        int64   `json:"bytes,omitempty"`
	FetchSeconds float64 `json:"fetch_seconds,omitempty"` // from nothing to files with every hash right
	Seconds      float64 `json:"seconds"`                 // in all
	Grade        string  `json:"grade,omitempty"`         // its key in the store
	Dir          string  `json:"dir,omitempty"`           // where the copy was left
	observer.DrillReport
}

// MessageType implements ui.Event.
func (Drilled) MessageType() string { return "drilled" }

// Line implements ui.Event.
func (d Drilled) Line() string {
	var b strings.Builder
	switch d.Outcome {
	case observer.DrillPassed:
		if len(d.Executed) == 0 {
			fmt.Fprintf(&b, "DRILLED %s: %s at %s; %s", d.ID, d.Cluster, d.At, d.Proved)
			fmt.Fprintf(&b, "\n  recovery time:  %s (fetch %s of %s, start %s)", span(d.FetchSeconds+d.StartSeconds), span(d.FetchSeconds), ui.Bytes(d.Bytes), span(d.StartSeconds))
			fmt.Fprintf(&b, "\n  recovery point: %s, %s old when the drill began", d.At, span(d.AgeSeconds))
			break
		}
		last := d.Executed[len(d.Executed)-1]
		fmt.Fprintf(&b, "DRILLED %s: %s at height %d; %d blocks executed after it, to %d, each with the chain's block and app hash",
			d.ID, d.Cluster, d.Position, len(d.Executed), last.Height)
		fmt.Fprintf(&b, "\n  recovery time:  %s (fetch %s of %s, start %s, first block %s, %d blocks %s)",
			span(d.FetchSeconds+d.BlocksSeconds), span(d.FetchSeconds), ui.Bytes(d.Bytes), span(d.StartSeconds), span(d.FirstSeconds), len(d.Executed), span(d.BlocksSeconds))
		fmt.Fprintf(&b, "\n  recovery point: height %d, %s old when the drill began", d.Position, span(d.AgeSeconds))
	case observer.DrillFailed:
		fmt.Fprintf(&b, "drill of %s FAILED: %s", d.ID, d.Why)
		if n := len(d.Executed); n > 0 {
			fmt.Fprintf(&b, "\n  %d blocks before were executed as the chain did", n)
		}
	default:
		fmt.Fprintf(&b, "drill of %s not possible: %s", d.ID, d.Why)
		if d.Hint != "" {
			b.WriteString("\n hint: " + d.Hint)
		}
	}
	for _, l := range d.Log {
		b.WriteString("\n  | " + l)
	}
	if d.Dir != "" {
		b.WriteString("\n  the copy is left in " + d.Dir)
	}
	return b.String()
}

func span(seconds float64) string { return ui.Duration(time.Duration(seconds * float64(time.Second))) }
