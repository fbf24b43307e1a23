package job

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// runEvery is how often the run record in the bucket is brought up to date.
const runEvery = time.Minute

// sender carries one sealed stage into the bucket, or what is left of it.
type sender struct {
	b     *Backup
	st    *State
	stage *snapshot.Stage
	a     *attempt
	sum   *Summary
	watch *roomWatch
	work  *earlierWork // nil: nothing can be copied
	sent  bool         // by an earlier run, to the last byte: only the commit is left

	done, total atomic.Int64 // bytes of the plan, so far and in all

	noting sync.Mutex        // one note at a time
	noted  []uploader.Volume // as the run record has them
}

// newSender begins an attempt. It is durable before the first byte is sent.
func (b *Backup) newSender(ctx context.Context, st *State, stage *snapshot.Stage, m uploader.Manifest, sum *Summary) (*sender, error) {
	m.Runs = []uploader.Worked{{Begun: st.Started, Eddy: b.Version}}
	a := &attempt{
		Store: b.Store.URL(), Roots: stage.Roots(), Stage: stage.Digest(), VolumeSize: cmp.Or(b.VolumeSize, snapshot.DefaultVolumeSize), Pin: b.Pin, Manifest: m,
	}
	s := &sender{b: b, st: st, stage: stage, a: a, sum: sum}
	if b.Sealing != nil {
		return s, s.seal(ctx)
	}
	plan, err := s.plan(io.Discard)
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	bytes, files := plan.Totals()
	if err := b.shrunk(ctx, &m, bytes); err != nil {
		return nil, err
	}
	a.Cuts, a.Volumes, a.Manifest.Sizes.Files = plan.Cuts(), plan.Volumes(), files
	return s, b.Workdir.keep(a)
}

func (s *sender) plan(sums io.Writer) (*snapshot.Plan, error) {
	plan, err := snapshot.NewPlan(s.stage, s.stage.Roots(), snapshot.PlanOptions{
		Archive: s.a.Manifest.ID, VolumeSize: s.a.VolumeSize, Level: s.b.level(), Sums: sums, Producer: "eddy " + s.b.Version,
	})
	if err != nil {
		return nil, mark(ErrStage, fmt.Errorf("plan: %w", err))
	}
	return plan, nil
}

// run sends the volumes that are not stored yet and commits. It may be called
// again when it has failed.
func (s *sender) run(ctx context.Context) (err error) {
	b, m := s.b, &s.a.Manifest
	if err := s.attest(ctx, b.AttestWait); err != nil {
		return err
	}
	if err := b.Workdir.enter(s.st, stateUploading); err != nil {
		return err
	}
	s.done.Store(0)
	s.noted = slices.Clone(m.Volumes)
	stopNotes := s.keepRunCurrent(ctx)
	defer stopNotes()
	if s.a.Sealed != nil {
		err = s.sendSealed(ctx)
	} else {
		err = s.sendVolumes(ctx)
	}
	if err != nil {
		return err
	}
	if err := b.Workdir.enter(s.st, stateUploaded); err != nil {
		return err
	}
	return s.commit(ctx, stopNotes)
}

// sendVolumes sends what of the stage's archive is not stored yet, and its list of
// hashes.
func (s *sender) sendVolumes(ctx context.Context) (err error) {
	b, m := s.b, &s.a.Manifest
	sums, err := openSums(b.Workdir, s.a.SumsLen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sums.close()) }()
	plan, err := s.plan(sums)
	if err != nil {
		return err
	}
	defer plan.Close()
	if plan.Cuts() != s.a.Cuts {
		return unusable("this eddy cuts archives another way")
	}
	total, _ := plan.Totals()
	s.total.Store(total)
	if s.work = nil; !s.sent && !s.a.SendAll && len(m.Volumes) < s.a.Volumes {
		if s.work, err = b.earlierWork(ctx, m.ID); err != nil {
			return err
		}
	}

	for i := range m.Volumes {
		var carry []byte
		if i == len(m.Volumes)-1 {
			carry = s.a.Carry
		}
		n, err := plan.Skip(ctx, carry)
		if err != nil {
			return mark(ErrStage, fmt.Errorf("plan: %w", err))
		}
		s.done.Add(n)
	}
	for {
		v, err := plan.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return mark(ErrStage, fmt.Errorf("plan: %w", err))
		}
		if err := s.volume(ctx, plan, v, sums); err != nil {
			return err
		}
		s.note(ctx, m.Volumes)
		if v.Last() {
			continue
		}
		if err := s.release(plan, v.Number()); err != nil {
			return err
		}
		if err := s.watch.atBorder(ctx); err != nil {
			return err
		}
	}
	return s.putSums(ctx, sums.name(), m)
}

// commit makes what is stored a READY backup.
func (s *sender) commit(ctx context.Context, stopNotes func()) (err error) {
	b, m := s.b, &s.a.Manifest
	if err := s.attest(ctx, 0); err != nil {
		return err
	}
	s.count(m)
	if m.Times.Uploaded.IsZero() {
		// From here on the manifest does not change: a commit that breaks off may have
		// written it, and is repeated with the same bytes or refused for ever.
		m.Times.Uploaded = b.Now().UTC()
		if err := b.Workdir.keep(s.a); err != nil {
			return err
		}
	}
	if s.a.Pin > 0 { // before it is READY: what is to be kept is never without its pin
		if err := b.Catalog.PinAhead(ctx, m.ID, b.pin(s.a.Pin), b.Now()); err != nil {
			return err
		}
	}
	if m.Class == uploader.ClassSalvage {
		err = b.Catalog.CommitAside(ctx, *m, b.NewIncarn)
	} else if lacks := s.lacks(); lacks == nil {
		err = b.Catalog.Commit(ctx, *m, b.NewIncarn)
	} else if err = b.Catalog.CommitAside(ctx, *m, b.NewIncarn); err == nil {
		b.warn("latest stays where it is: "+lacks.Error(), hint.Of(lacks))
	}
	if errors.Is(err, uploader.ErrReadyBut) {
		b.warn(err.Error(), "the backup counts; the next commit brings latest up to date")
	} else if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if s.sum.Outcome = "ready"; m.Class == uploader.ClassSalvage {
		s.sum.Outcome = "salvaged"
	}
	if err := b.Workdir.enter(s.st, stateCommitted); err != nil {
		return err
	}
	stopNotes()
	// From here on the backup is READY; what fails is said, not undone.
	if err := b.Catalog.EndRun(ctx, s.st.ID); err != nil {
		b.warn("the run record could not be removed: "+err.Error(), "it lapses by itself")
	}
	return nil
}

// release removes from the stage what a stored volume was made of, so that it
// pins the replica's disk no longer. A run that died before it had is made good
// for by the next one, whose first volume releases all before it.
func (s *sender) release(plan *snapshot.Plan, volume int) error {
	for e, err := range plan.Ended(volume) {
		if err == nil {
			err = s.stage.Drop(e)
		}
		if err != nil {
			return mark(ErrStage, fmt.Errorf("free what is stored: %w", err))
		}
	}
	return nil
}

// count sums up for manifest and summary what all runs have done.
func (s *sender) count(m *uploader.Manifest) {
	m.Sizes.Read, m.Sizes.Sent, m.Sizes.Copied = 0, 0, 0
	for _, r := range m.Runs {
		m.Sizes.Read += r.Read
		m.Sizes.Sent += r.Sent
		m.Sizes.Copied += r.Copied
	}
	if last := m.Runs[len(m.Runs)-1]; !s.sent {
		s.sum.ReadBytes, s.sum.SentBytes, s.sum.CopiedBytes = last.Read, last.Sent, last.Copied
	}
	s.sum.Files, s.sum.SourceBytes, s.sum.StoredBytes = m.Sizes.Files, m.Sizes.Source, m.Sizes.Stored
	s.sum.Volumes, s.sum.Stored, s.sum.Attested = len(m.Volumes), m.Stored, m.Attested
}

// volume sends one volume and takes it into the attempt.
func (s *sender) volume(ctx context.Context, plan *snapshot.Plan, v *snapshot.Volume, list *sums) error {
	b, m := s.b, &s.a.Manifest
	name := uploader.VolumeName(v.Number())
	b.phase(m.ID, "upload", "sending %s to %s", name, b.Store.URL())
	var moved atomic.Value
	shelf := s.work.of(b, v.Number())
	v.Reuse(shelf)
	journal, unproven := b.Workdir.path(fmt.Sprintf("upload-%04d.journal", v.Number())), false
	_, err := b.Store.Put(ctx, uploader.PutRequest{
		Key:   b.Catalog.ObjectKey(m.ID, name),
		Upper: v.Upper(),
		Pieces: func(sent iter.Seq2[uploader.Sent, error]) iter.Seq2[uploader.Piece, error] {
			return s.pieces(ctx, v.Frames(ctx, known(sent)))
		},
		Reuses:  shelf != nil,
		Journal: journal,
		Identity: map[string]string{
			"backup": m.ID, "cluster": b.Cluster, "plan": plan.Digest(), "volume": name,
			"eddy": b.Version, "stage": s.stage.Digest(),
		},
		Moved: func(m uploader.Moved) { moved.Store(m) },
		Stored: func(obj uploader.Object) error {
			if err := s.prove(ctx, obj, v); err != nil {
				unproven = true
				return err
			}
			by, _ := moved.Load().(uploader.Moved) // a volume that was whole has moved nothing
			s.stored(name, obj, v.Result(), by)
			var err error
			if s.a.SumsLen, err = list.sealed(); err != nil {
				return err
			}
			return b.Workdir.keep(s.a)
		},
	})
	if unproven && errors.Is(err, uploader.ErrDamaged) {
		// Gone on with, it would be found damaged for ever.
		err = errors.Join(err, b.Store.Abandon(context.WithoutCancel(ctx), journal))
	}
	if err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	return nil
}

// prove looks at a volume that is stored.
func (s *sender) prove(ctx context.Context, obj uploader.Object, v *snapshot.Volume) error {
	r := v.Result()
	if obj.Size != r.Size {
		return fmt.Errorf("%w: the store has %d bytes, %d were sent", uploader.ErrDamaged, obj.Size, r.Size)
	}
	return s.b.proveTail(ctx, obj, r.IndexSHA256)
}

// stored notes a volume in the attempt.
func (s *sender) stored(name string, obj uploader.Object, r snapshot.VolumeResult, by uploader.Moved) {
	m := &s.a.Manifest
	m.Volumes = append(m.Volumes, uploader.Volume{
		Name: name, Size: obj.Size, ETag: obj.ETag, CRC64NVME: obj.CRC64NVME, IndexSHA256: r.IndexSHA256,
		Checked: obj.Checked, Frames: r.Frames,
	})
	m.Sizes.Source += r.SourceBytes
	m.Sizes.Stored += obj.Size
	m.Stored = weaker(m.Stored, obj.Checked)
	s.a.Carry = r.Carry
	run := &m.Runs[len(m.Runs)-1]
	run.Read += r.ReadBytes
	run.Sent += by.Sent
	run.Copied += by.Copied
	if n := len(m.Runs); n > 1 {
		// What a run that died has done is known by what of it was kept.
		m.Runs[n-2].Sent += by.Kept - by.KeptCopied
		m.Runs[n-2].Copied += by.KeptCopied
		m.Runs[n-2].Read += max(0, r.SourceBytes-r.ReadBytes)
	}
}

// pieces makes the uploader's pieces of the archive's frames. What a frame
// decodes to is counted as progress: it is what the user knows the size of.
func (s *sender) pieces(ctx context.Context, frames iter.Seq2[snapshot.Frame, error]) iter.Seq2[uploader.Piece, error] {
	return func(yield func(uploader.Piece, error) bool) {
		for f, err := range frames {
			if err != nil {
				if ctx.Err() == nil {
					err = mark(ErrStage, err)
				}
				yield(uploader.Piece{}, err)
				return
			}
			p := uploader.Piece{ID: f.ID, CRC: f.CRC, Record: f.Record}
			if data := f.Data; data != nil {
				p.Bytes = func(context.Context) ([]byte, error) { return data, nil }
			} else {
				p.Reuse = s.work.reuse(f)
				p.Len, p.Bytes = int64(f.CLen), func(ctx context.Context) ([]byte, error) {
					b, err := f.Again(ctx)
					if err != nil && ctx.Err() == nil {
						err = mark(ErrStage, err)
					}
					return b, err
				}
			}
			if !yield(p, nil) {
				return
			}
			done := s.done.Add(int64(f.ULen))
			s.b.Events.Emit(ui.Progress{What: "upload", Done: min(done, s.total.Load()), Total: s.total.Load()})
		}
	}
}

// known makes the archive's frames of the pieces of an earlier run.
func known(sent iter.Seq2[uploader.Sent, error]) iter.Seq2[snapshot.Known, error] {
	return func(yield func(snapshot.Known, error) bool) {
		for p, err := range sent {
			if !yield(snapshot.Known{ID: p.ID, CLen: int(p.Len), CRC: p.CRC, Record: p.Record}, err) || err != nil {
				return
			}
		}
	}
}

func (s *sender) putSums(ctx context.Context, spool string, m *uploader.Manifest) error {
	body, err := os.ReadFile(spool)
	if err != nil {
		return err
	}
	obj, err := s.b.Store.PutSmall(ctx, s.b.Catalog.ObjectKey(s.st.ID, uploader.SumsName), body, "application/zstd", uploader.Condition{})
	if err != nil {
		return fmt.Errorf("store the list of hashes: %w", err)
	}
	m.Sums = &uploader.SumsRef{Name: uploader.SumsName, Size: obj.Size, SHA256: fmt.Sprintf("%x", sha256.Sum256(body))}
	return nil
}

// sums spools the list of hashes, which grows with the number of files: a zstd
// frame for each volume, so that the list goes on behind the last that is stored.
type sums struct {
	f   *fsx.File
	enc *zstd.Encoder
}

// openSums opens the list behind its first n bytes.
func openSums(w Workdir, n int64) (*sums, error) {
	f, err := w.FS.OpenFile(w.path(sumsSpool), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.OS().Stat()
	if err == nil && st.Size() < n {
		err = unusable("its list of hashes is cut short")
	}
	if err == nil {
		err = f.Truncate(n)
	}
	if err == nil {
		err = w.FS.SyncDir(w.Dir) // before an attempt relies on it
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	enc, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &sums{f: f, enc: enc}, nil
}

func (s *sums) name() string { return s.f.Name() }

// Write takes lines of the volume that is being sent.
func (s *sums) Write(b []byte) (int, error) { return s.enc.Write(b) }

// sealed makes the lines of a volume durable and returns the list's length.
func (s *sums) sealed() (int64, error) {
	if err := errors.Join(s.enc.Close(), s.f.Sync()); err != nil {
		return 0, err
	}
	s.enc.Reset(s.f)
	st, err := s.f.OS().Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (s *sums) close() error { return s.f.Close() }

// keepRunCurrent notes the progress in the bucket now and then. The returned
// function stops it and waits; it may be called twice. A note that fails is no
// reason to give up an upload that works.
func (s *sender) keepRunCurrent(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(runEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			s.note(ctx, nil)
		}
	}()
	return func() { cancel(); <-done }
}

// note says in the bucket how far the run is, and what is stored, where that has
// changed.
func (s *sender) note(ctx context.Context, stored []uploader.Volume) {
	s.noting.Lock()
	defer s.noting.Unlock()
	if stored != nil {
		s.noted = slices.Clone(stored)
	}
	if err := s.b.Catalog.UpdateRun(ctx, s.st.ID, s.done.Load(), s.total.Load(), s.noted); err != nil && ctx.Err() == nil {
		s.b.Events.Emit(Warning{Text: "the progress could not be noted in the bucket: " + err.Error()})
	}
}

// manifest is that of a stage of which nothing is sent yet.
func (b *Backup) manifest(ctx context.Context, st *State, stage *snapshot.Stage, before observer.State, p observer.Position, sum *Summary) (uploader.Manifest, error) {
	facts, err := b.Replica.Facts(ctx)
	if err != nil {
		return uploader.Manifest{}, err
	}
	m := uploader.Manifest{
		ID: st.ID, Label: b.Label, Class: b.class(), Cluster: b.Cluster, Incarnation: p.Incarnation,
		Node:   uploader.Node{ID: before.Node.ID, Name: before.Node.Name, Host: b.Host, Role: before.Node.Role},
		System: before.System,
		Versions: uploader.Versions{
			System: before.Version, App: before.App, Eddy: b.Version, Encoder: snapshot.EncoderName(), Level: b.level(), Go: runtime.Version(),
		},
		Position: uploader.Position{
			Kind: p.Kind, Epoch: p.Epoch, Index: p.Index, Hash: hex.EncodeToString(p.Hash),
			HashKind: p.HashKind, Time: p.Time.UTC(), Consistency: p.Consistency, Marks: p.Marks,
		},
		Opened: "none", Attested: "not possible",
		Engines: facts.Engines, Pruning: facts.Pruning, Indexer: facts.Indexer,
		HeldSeconds: sum.HeldSeconds,
		Times:       uploader.Times{Begun: st.Started, Held: sum.heldAt, Released: sum.releasedAt},
		Created:     b.Now().UTC(),
	}
	for _, r := range stage.Roots() {
		m.Roots = append(m.Roots, uploader.RootRef{Name: r.Name, Prefix: r.Prefix, Path: r.Path})
	}
	for _, l := range stage.LeftOut() {
		m.LeftOut = append(m.LeftOut, uploader.LeftOut{Name: l.Name, Reason: l.Reason})
	}
	return m, nil
}

func (b *Backup) class() string {
	if b.Salvage {
		return uploader.ClassSalvage
	}
	return uploader.ClassNormal
}

// weaker returns the weaker of two means of checking stored bytes.
func weaker(a, b string) string {
	rank := map[string]int{"": 3, "read-back": 2, "checksum": 1, "sample": 0}
	if rank[a] < rank[b] {
		return a
	}
	return b
}
