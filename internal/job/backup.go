package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Replica is what a backup needs of the system. One that is an observer.Holder is
// held still while it is captured; one that is an observer.Gater is asked before.
type Replica interface {
	observer.Replica
	// Recover starts a node that a dead eddy left stopped.
	Recover(ctx context.Context) (acted bool, err error)
	// Facts are what the manifest says beside the position.
	Facts(ctx context.Context) (Facts, error)
}

// WhenBehind says what to do with a replica that has not caught up.
type WhenBehind struct {
	Wait time.Duration // 0: fail at once
	Skip bool          // such a run is no failure: its outcome is "skipped"
}

// Facts describe the replica's data for the manifest.
type Facts struct {
	Engines []string
	Pruning string
	Indexer string
}

// Backup makes one backup. Construct it with all fields set.
type Backup struct {
	Replica Replica
	Store   uploader.Store
	Catalog *uploader.Catalog
	Workdir Workdir
	Cluster string
	Label   string
	Version string // eddy's
	Host    string
	// CopyFallback copies what cannot be linked instead of refusing.
	CopyFallback bool
	WhenBehind   WhenBehind
	WhenBusy     WhenBehind // another eddy has the cluster's lease
	NewIncarn    bool       // accept a history that began anew
	Fresh        bool       // go on with no earlier attempt: remove it
	// Salvage takes what this one member has, of a cluster that cannot decide any
	// more: no gate is asked, and the backup is never the latest.
	Salvage bool
	// Pin keeps the backup that long from its commit on; 0: as retention does.
	Pin          time.Duration
	AcceptShrink bool // accept a dump of less than half the size
	// AttestWait is how long the witnesses are waited for that cannot say yet.
	AttestWait time.Duration
	// Attested is how many witnesses must agree before latest moves, where there are
	// any that can be asked.
	Attested int
	// Opened is how much of the dump must have been opened and checked before latest
	// moves: OpenedPossible ("" too), OpenedAll, OpenedPart or OpenedNone.
	Opened     string
	Level      int
	VolumeSize int64 // bytes of plan; 0: the format's default
	// Sealing encrypts the archive; nil: it is sent as it is.
	Sealing *Sealing
	Events  ui.Sink
	Watch   Watcher            // nil: nobody
	Reason  func(error) string // one of Reasons
	// Room tells what is free on the filesystem of a directory, and its size, in
	// bytes; nil: asks the filesystem.
	Room func(dir string) (free, size int64, err error)
	Now  func() time.Time

	// HoldDeadline is how long a hold may last in all, as its guard has it; 0: ten
	// minutes.
	HoldDeadline time.Duration

	roomEvery time.Duration // 0: the default; less in tests

	again  int             // how often the cluster's history began anew, once history has asked
	caps   uploader.Caps   // of the store, once steer has asked
	leased *uploader.Lease // once lease has taken it
	// component is the system that the run is of, once it is known.
	component string
	still     bool // the replica stands still, or may: the bucket is not to be asked for anything
	mu        sync.Mutex
	warnings  []string
}

// rejoinWait bounds how long a finished backup waits for the replica to be seen
// making blocks again.
const rejoinWait = 3 * time.Minute

func (b *Backup) warn(text, advice string) {
	b.mu.Lock()
	b.warnings = append(b.warnings, text)
	b.mu.Unlock()
	b.Events.Emit(Warning{Text: text, Hint: advice})
}

func (b *Backup) phase(id, phase, format string, args ...any) {
	b.Events.Emit(Phase{ID: id, Phase: phase, Text: fmt.Sprintf(format, args...)})
}

// Run makes the backup and returns when it is READY and the replica has been
// seen to follow the chain again. Whatever it returns, the replica runs or whoever
// guards the hold goes on trying to start it; the bucket then hears no more of this
// run, and what it has there ends by itself. ErrWarnings means that the backup
// is READY but something needs attention. The summary has an Outcome when there
// is one, and is for the caller to show.
func (b *Backup) Run(ctx context.Context) (Summary, error) {
	lock, err := b.Workdir.Lock(ctx)
	if errors.Is(err, fsx.ErrLocked) {
		return Summary{}, errors.Join(err, b.Workdir.Fail(ReasonLocked, err, b.Now()))
	}
	if err != nil {
		return Summary{}, err
	}
	defer lock.Unlock()
	begun := b.Now()
	died, err := b.Workdir.begin(b.Cluster, begun)
	if err != nil {
		return Summary{}, err
	}
	sum, err := b.run(ctx, begun, died)
	sum.Seconds = b.Now().Sub(begun).Seconds()
	var verified time.Time
	if err == nil && sum.Outcome != "skipped" {
		var verr error
		if verified, verr = b.Catalog.LastVerified(ctx); verr != nil {
			b.warn("the bucket does not say what was verified last: "+verr.Error(), hint.Of(verr))
		}
	}
	b.mu.Lock()
	sum.Warnings = b.warnings
	b.mu.Unlock()
	rerr := b.Workdir.remember(func(l *Last) {
		l.Open = false
		if sum.HeldSeconds > 0 {
			l.HeldSeconds, l.NodeSeconds = sum.HeldSeconds, sum.StopSeconds+sum.StartSeconds
		}
		if err != nil {
			reason := b.Reason(err)
			l.LastError, l.LastFailed = err.Error(), b.Now().UTC()
			if reason == ReasonInterrupted {
				l.LastError = "it was interrupted" // what the signal cut short says nothing
			}
			l.fail(reason)
			return
		}
		l.LastError = ""
		if sum.Outcome == "skipped" {
			return
		}
		l.LastSuccess, l.LastID, l.Position = b.Now().UTC(), sum.ID, sum.Position
		if !verified.IsZero() {
			l.LastVerified = verified
		}
	})
	if err != nil {
		return sum, errors.Join(err, rerr)
	}
	if rerr != nil {
		return sum, rerr
	}
	if len(sum.Warnings) > 0 {
		return sum, ErrWarnings
	}
	return sum, nil
}

func (b *Backup) run(ctx context.Context, begun time.Time, died string) (sum Summary, err error) {
	sum.Cluster = b.Cluster
	acted, err := b.Replica.Recover(ctx)
	if err != nil {
		return sum, mark(ErrStart, fmt.Errorf("start the node that an earlier run left stopped: %w", err))
	}
	if acted {
		b.warn("an earlier run left the node stopped; it has been started", "look at that run's log: eddy or its guard was killed")
	}
	if b.Watch != nil { // not sooner: whoever watches may be slow, and a node may have been left stopped
		if died != "" {
			b.Watch.Died(ctx, died)
		}
		b.Watch.Begun(ctx)
	}
	roots, err := b.Replica.Roots(ctx)
	if err != nil {
		return sum, err
	}
	if err := b.sweep(ctx, roots); err != nil {
		return sum, err
	}

	if done, err := b.goOn(ctx, &sum); b.skips(err) {
		sum.Outcome = "skipped"
		return sum, nil
	} else if err != nil {
		return sum, err
	} else if done && (sum.label == b.Label) {
		return sum, nil
	} else if done {
		b.phase("", "ready", "%s", sum.Line())
		sum = Summary{Cluster: b.Cluster}
	}

	before, err := b.ready(ctx, acted)
	if b.WhenBehind.Skip && errors.Is(err, observer.ErrBehind) {
		sum.Outcome = "skipped"
		sum.at(before.Position)
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	if err := b.history(ctx, &before); err != nil {
		return sum, err
	}
	if done, err := b.unchanged(ctx, before, &sum); err != nil || done {
		return sum, err
	}
	if err := b.hasRoom(ctx, roots); err != nil {
		return sum, err
	}

	id := uploader.NewID(begun, b.Label)
	sum.ID = id
	boot, err := fsx.BootID()
	if err != nil {
		return sum, err
	}
	st := &State{ID: id, Cluster: b.Cluster, Store: b.Store.URL(), BootID: boot, PID: os.Getpid(), Started: begun.UTC()}
	if err := b.Workdir.enter(st, stateGated); err != nil {
		return sum, err
	}
	b.phase(id, "gate", "%s: %s%s, fit for a backup", id, b.Cluster, standing(before))

	// The first writes to the bucket come before the stop: a bucket that refuses
	// must not cost the node a second.
	if err := b.steer(ctx); err != nil {
		return sum, errors.Join(err, b.Workdir.leave())
	}
	letGo, err := b.lease(ctx)
	if b.skips(err) {
		sum.Outcome, sum.ID = "skipped", ""
		sum.at(before.Position)
		return sum, b.Workdir.leave()
	}
	if err != nil {
		return sum, errors.Join(err, b.Workdir.leave())
	}
	defer letGo()
	b.component = before.System
	b.sweepUploads(ctx)
	if err := b.announce(ctx, id, nil); err != nil {
		return sum, errors.Join(err, b.Workdir.leave())
	}

	stage, err := snapshot.CreateStage(b.Workdir.FS, id, roots)
	if err != nil {
		err = fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	if err == nil {
		err = b.fill(ctx, st, stage, &sum)
	}
	var s *sender
	if err == nil {
		s, err = b.draft(ctx, st, stage, before, &sum)
	}
	if err != nil {
		return sum, errors.Join(err, b.abandon(ctx, stage, id, err))
	}
	return sum, b.send(ctx, s, before)
}

// skips tells whether an error is that another eddy works on the cluster, and such
// a run is no failure.
func (b *Backup) skips(err error) bool { return b.WhenBusy.Skip && errors.Is(err, fsx.ErrLocked) }

// announce says in the bucket that a backup is being made, and what of it is
// stored.
func (b *Backup) announce(ctx context.Context, id string, stored []uploader.Volume) error {
	return b.Catalog.StartRun(ctx, uploader.Run{
		ID: id, Cluster: b.Cluster, Status: uploader.StatusBackingUp, Component: b.component, Host: b.Host,
		Encoder: snapshot.EncoderName(), Level: b.level(), Volumes: stored,
	})
}

const (
	// behindEvery is how often a replica that catches up is asked.
	behindEvery = 5 * time.Second
	// answersWithin is how long a node that was started a moment ago may take until
	// it answers: it replays blocks first.
	answersWithin = 2 * time.Minute
)

// ready describes the replica when it is fit, waiting for one that is behind as
// long as it may, and for one that was just started until it answers. What waiting
// cannot cure is refused at once.
func (b *Backup) ready(ctx context.Context, started bool) (observer.State, error) {
	answer := time.Now()
	if started {
		answer = answer.Add(answersWithin)
	}
	until, said := time.Now().Add(b.WhenBehind.Wait), false
	for {
		s, err := b.Replica.Describe(ctx)
		if err != nil && b.Salvage {
			b.warn("the member does not say how it is: "+err.Error(), "the salvage is made all the same")
			return s, nil
		}
		wait := time.Until(answer) // of use where nothing answers
		if err == nil {
			err = b.gate(ctx, s)
			wait = time.Until(until)
			if !errors.Is(err, observer.ErrBehind) {
				return s, err
			}
		}
		if wait <= 0 {
			return s, err
		}
		if !said {
			said = true
			b.phase("", "wait", "waiting up to %s: %v", wait.Round(time.Second), err)
		}
		t := time.NewTimer(min(wait, behindEvery))
		select {
		case <-ctx.Done():
			t.Stop()
			return s, ctx.Err()
		case <-t.C:
		}
	}
}

// gate asks a replica that knows when it is not fit.
func (b *Backup) gate(ctx context.Context, s observer.State) error {
	if g, ok := b.Replica.(observer.Gater); ok && !b.Salvage {
		return g.Gate(ctx, s)
	}
	return nil
}

// standing says where the replica is, as far as it tells, and who else there is.
func standing(s observer.State) string {
	if s.Position.Index == 0 {
		return company(s)
	}
	return " at " + s.Position.String() + company(s)
}

// company says who else there is.
func company(s observer.State) string {
	switch {
	case len(s.Members) > 0:
		q := observer.QuorumOf(s.Members)
		return fmt.Sprintf(", %d of %d voters reachable", q.Reachable, q.Voters)
	case s.Peers > 0 || s.System == "cometbft":
		return fmt.Sprintf(", %d peers", s.Peers)
	}
	return ""
}

// unchanged tells whether the newest READY backup holds this very position, and no
// proof has found it wrong. Of a replica that does not tell its position while it
// lives it is not known.
func (b *Backup) unchanged(ctx context.Context, s observer.State, sum *Summary) (bool, error) {
	if s.Position.Index == 0 || b.Salvage {
		return false, nil
	}
	newest, err := b.Catalog.Latest(ctx)
	if errors.Is(err, uploader.ErrNoSuchBackup) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	m := newest.Manifest
	if m == nil || newest.Failed != nil || m.Incarnation != s.Position.Incarnation {
		return false, nil
	}
	// A node that follows others that are further on lags, as may be where another
	// observer was a moment faster.
	if follows := s.Leader != nil && s.Leader.Index >= m.Position.Index; s.Position.Index < m.Position.Index && !follows {
		return false, hint.Add(fmt.Errorf("%w: it is at %s, and backup %s has %s of the same history: it went back", observer.ErrNotFit, s.Position, m.ID, PositionOf(m)),
			"another observer may be ahead of this one: wait until it has caught up; if this node was set back, let it follow the chain again; if the whole cluster was restored from an older backup, say `eddy backup --new-incarnation` once")
	}
	if m.Position.Index != s.Position.Index || movedOn(m.Position.Marks, s.Position.Marks) {
		return false, nil
	}
	sum.Outcome, sum.ID = "unchanged", m.ID
	sum.at(PositionOf(m))
	if b.Pin > 0 {
		return true, b.Catalog.Pin(ctx, newest, b.pin(b.Pin), b.Now())
	}
	return true, nil
}

// pin is the one that a run makes, named as `eddy pin` names its own.
func (b *Backup) pin(d time.Duration) uploader.Pin {
	return uploader.Pin{Who: "operator", Until: b.Now().Add(d)}
}

// movedOn tells whether a mark that both have is another: something was decided that
// does not count for the index.
func movedOn(then, now map[string]string) bool {
	for name, text := range now {
		if was, ok := then[name]; ok && was != text {
			return true
		}
	}
	return false
}

// fill brings what the replica has into the stage, and seals it.
func (b *Backup) fill(ctx context.Context, st *State, stage *snapshot.Stage, sum *Summary) error {
	var err error
	if h, ok := b.Replica.(observer.Holder); ok {
		err = b.fillHeld(ctx, st, stage, h, sum)
	} else {
		err = b.fillAsked(ctx, st, stage, sum)
	}
	if err != nil {
		return err
	}
	if err := stage.Seal(ctx); err != nil {
		return mark(ErrStage, fmt.Errorf("seal the stage: %w", err))
	}
	if err := b.audit(ctx, stage); err != nil {
		return err
	}
	return b.Workdir.enter(st, stateSealed)
}

// fillAsked captures a replica that gives its dump while it lives.
func (b *Backup) fillAsked(ctx context.Context, st *State, stage *snapshot.Stage, sum *Summary) error {
	if err := b.Workdir.enter(st, statePrepared); err != nil {
		return err
	}
	b.phase(st.ID, "capture", "taking the dump; nothing is stopped for it")
	begun := b.Now()
	capture := b.Replica.Capture
	if s, ok := b.Replica.(observer.Salvager); ok && b.Salvage {
		capture = s.Salvage
	}
	if err := capture(ctx, stage); err != nil {
		return mark(ErrStage, fmt.Errorf("capture: %w", err))
	}
	sum.heldAt, sum.releasedAt = begun.UTC(), b.Now().UTC()
	sum.StageSeconds = sum.releasedAt.Sub(sum.heldAt).Seconds()
	return nil
}

// fillHeld links what is immutable while the replica runs, holds it, captures the
// rest, and starts it again.
func (b *Backup) fillHeld(ctx context.Context, st *State, stage *snapshot.Stage, replica observer.Holder, sum *Summary) error {
	if err := stage.ProbeLinks(); err != nil {
		if !b.CopyFallback {
			return fmt.Errorf("%w: %w", observer.ErrNotFit, err)
		}
		stage.CopyAll()
		b.warn("files cannot be linked here, so all of them are copied while the node stands still", hint.Of(err))
	}
	if r, ok := replica.(observer.Rester); ok && b.Salvage && r.Still(ctx) == nil {
		b.warn("the node was down already; it is left so", "")
		return b.fillAsked(ctx, st, stage, sum)
	}
	b.phase(st.ID, "prepare", "linking what is immutable while the node runs")
	if err := replica.Prepare(ctx, stage); err != nil {
		return mark(ErrStage, err)
	}
	if err := b.Workdir.enter(st, statePrepared); err != nil {
		return err
	}
	// Asked again: preparing may have taken long. One that fell behind meanwhile is
	// waited for as before.
	if _, err := b.ready(ctx, false); err != nil {
		return err
	}
	if err := b.Workdir.enter(st, stateHolding); err != nil {
		return err
	}
	if err := b.hold(ctx, st, stage, replica, sum); err != nil {
		return err
	}
	if err := b.Workdir.enter(st, stateReleased); err != nil {
		return err
	}
	stats := stage.Stats()
	b.phase(st.ID, "released", "node runs again after %.2f s (stop %.2f, stage %.2f, start %.2f): %d files linked, %d copied (%s)",
		sum.HeldSeconds, sum.StopSeconds, sum.StageSeconds, sum.StartSeconds,
		stats.Linked, stats.Cloned+stats.Copied, ui.Bytes(stats.CopiedBytes))
	return nil
}

// draft reads the position of a sealed stage and makes of it an attempt, which
// from then on survives this run.
func (b *Backup) draft(ctx context.Context, st *State, stage *snapshot.Stage, before observer.State, sum *Summary) (*sender, error) {
	checked, pos, err := b.check(ctx, stage, before, sum)
	if err != nil {
		return nil, err
	}
	pos.Incarnation = b.ofHistory(pos.Incarnation)
	m, err := b.manifest(ctx, st, stage, before, pos, sum)
	if err != nil {
		return nil, err
	}
	if checked != nil {
		m.Opened, m.Check = checked.Opened, checked
	}
	return b.newSender(ctx, st, stage, m, sum)
}

// send ends the attempt while the replica catches up in the background.
func (b *Backup) send(ctx context.Context, s *sender, before observer.State) (err error) {
	held, ok := b.Replica.(observer.Holder)
	if !ok || b.Salvage { // who salvages knows that the cluster cannot take it back
		return b.end(ctx, s)
	}
	rejoined := make(chan error, 1)
	rctx, stopWaiting := context.WithTimeout(ctx, rejoinWait)
	go func() { rejoined <- held.Rejoined(rctx, before) }()
	defer func() {
		if err != nil {
			stopWaiting() // the upload failed: do not keep the operator waiting
		} else {
			b.phase(s.st.ID, "rejoin", "waiting until the node follows the chain again")
		}
		rerr := <-rejoined
		stopWaiting()
		if rerr != nil && err == nil {
			b.warn("the node was started but has not been seen to follow the chain: "+rerr.Error(), "look at the node's log; the backup itself is complete")
		}
	}()
	return b.end(ctx, s)
}

// abandon takes back a run of which nothing is sent: stage and run record. It
// reports its own troubles as warnings: they never replace the cause. With the
// replica down the run record stays, and lapses.
func (b *Backup) abandon(ctx context.Context, stage *snapshot.Stage, id string, cause error) error {
	ctx, cancel := noteTo(ctx, 20*time.Second)
	defer cancel()
	var errs []error
	if stage != nil {
		errs = append(errs, stage.Remove())
	}
	if b.still {
		return errors.Join(append(errs, b.Workdir.leave())...)
	}
	if ferr := b.Catalog.GiveUpRun(ctx, id, cause); ferr != nil {
		b.Events.Emit(Warning{Text: "the failure could not be noted in the bucket: " + ferr.Error()})
	}
	return errors.Join(append(errs, b.Workdir.leave())...)
}

// journals are those of uploads that were not ended.
func (w Workdir) journals() ([]string, error) { return filepath.Glob(w.path("upload-*.journal")) }

func (b *Backup) abandonUploads(ctx context.Context) error {
	journals, err := b.Workdir.journals()
	if err != nil {
		return err
	}
	var errs []error
	for _, j := range journals {
		errs = append(errs, b.Store.Abandon(ctx, j))
	}
	return errors.Join(errs...)
}

// sweep removes what a run left that died before there was anything to go on
// with: its stage and its run record. It needs the workdir's lock.
func (b *Backup) sweep(ctx context.Context, roots []snapshot.Root) error {
	if err := b.Workdir.sweep(); err != nil {
		return err
	}
	st, err := b.Workdir.State()
	if err != nil {
		return err
	}
	a, err := b.Workdir.attempt()
	if err != nil {
		return err
	}
	keep := ""
	if a != nil && a.Sealed == nil { // of a sealed one nothing in the plain is needed
		keep = a.Manifest.ID
	}
	if err := snapshot.SweepStages(b.Workdir.FS, roots, keep); err != nil {
		return fmt.Errorf("remove the stage of an earlier run: %w", err)
	}
	if a == nil {
		if err := b.abandonUploads(ctx); err != nil {
			return fmt.Errorf("remove the upload of an earlier run: %w", err)
		}
	}
	if st == nil {
		return nil
	}
	if a != nil && st.ID == a.Manifest.ID {
		b.warn(fmt.Sprintf("backup %s died as it was %s", st.ID, st.State), "")
		return b.Workdir.leave()
	}
	b.warn(fmt.Sprintf("backup %s died as it was %s; what it left is removed", st.ID, st.State), "")
	if st.Store == b.Store.URL() {
		if err := b.Catalog.GiveUpRun(ctx, st.ID, fmt.Errorf("died as it was %s", st.State)); err != nil {
			return err
		}
	}
	return b.Workdir.leave()
}
