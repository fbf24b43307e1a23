package job

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// runEvery is how often the run record in the bucket is brought up to date.
const runEvery = time.Minute

// sender carries one sealed stage into the bucket.
type sender struct {
	b      *Backup
	st     *State
	stage  *snapshot.Stage
	before observer.State
	pos    observer.Position
	sum    *Summary

	read, total atomic.Int64 // source bytes encoded so far, and in all
}

func (s *sender) run(ctx context.Context) (err error) {
	b := s.b
	if err := b.Workdir.enter(s.st, stateUploading); err != nil {
		return err
	}
	// The list of hashes grows with the number of files, so it is spooled.
	spool, err := b.Workdir.FS.CreateTemp(b.Workdir.Dir, "sums-*.zst")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spool.Close(), b.Workdir.FS.Remove(spool.Name())) }()
	sums, err := zstd.NewWriter(spool, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer sums.Close()
	plan, err := snapshot.NewPlan(s.stage, s.stage.Roots(), snapshot.PlanOptions{
		Archive: s.st.ID, VolumeSize: b.VolumeSize, Level: b.Level, Sums: sums, Producer: "eddy " + b.Version,
	})
	if err != nil {
		return mark(ErrStage, fmt.Errorf("plan: %w", err))
	}
	defer plan.Close()
	planBytes, files := plan.Totals()
	s.total.Store(planBytes)
	s.sum.Files = files

	stopNotes := s.keepRunCurrent(ctx)
	defer stopNotes()
	m, err := s.manifest(ctx)
	if err != nil {
		return err
	}
	for {
		v, err := plan.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return mark(ErrStage, fmt.Errorf("plan: %w", err))
		}
		vol, err := s.volume(ctx, plan, v)
		if err != nil {
			return err
		}
		m.Volumes = append(m.Volumes, vol)
		s.sum.StoredBytes += vol.Size
		s.sum.SourceBytes += v.Result().SourceBytes
		s.sum.Stored = weaker(s.sum.Stored, vol.Checked)
	}
	if err := sums.Close(); err != nil {
		return err
	}
	if err := s.putSums(ctx, spool, &m); err != nil {
		return err
	}
	if err := b.Workdir.enter(s.st, stateUploaded); err != nil {
		return err
	}
	s.sum.Volumes = len(m.Volumes)
	m.Sizes = uploader.Sizes{Source: s.sum.SourceBytes, Read: s.sum.SourceBytes, Sent: s.sum.StoredBytes, Stored: s.sum.StoredBytes, Files: files}
	m.Stored = s.sum.Stored
	m.Times.Uploaded = b.Now().UTC()
	err = b.Catalog.Commit(ctx, m, b.NewIncarn)
	if errors.Is(err, uploader.ErrReadyBut) {
		b.warn(err.Error(), "the backup counts; the next commit brings latest up to date")
	} else if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.sum.Outcome = "ready"
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

// volume sends one volume and returns its line in the manifest.
func (s *sender) volume(ctx context.Context, plan *snapshot.Plan, v *snapshot.Volume) (uploader.Volume, error) {
	b := s.b
	name := uploader.VolumeName(v.Number())
	b.phase(s.st.ID, "upload", "sending %s to %s", name, b.Store.URL())
	obj, err := b.Store.Put(ctx, uploader.PutRequest{
		Key:     b.Catalog.ObjectKey(s.st.ID, name),
		Upper:   v.Upper(),
		Pieces: func(sent iter.Seq2[uploader.Sent, error]) iter.Seq2[uploader.Piece, error] {
			return s.pieces(v.Frames(ctx, known(sent)))
		},
		Journal: b.Workdir.path(fmt.Sprintf("upload-%04d.journal", v.Number())),
		Identity: map[string]string{
			"backup": s.st.ID, "cluster": b.Cluster, "plan": plan.Digest(), "volume": name,
			"eddy": b.Version, "stage": s.stage.Digest(),
		},
	})
	if err != nil {
		return uploader.Volume{}, fmt.Errorf("upload %s: %w", name, err)
	}
	r := v.Result()
	if obj.Size != r.Size {
		return uploader.Volume{}, fmt.Errorf("upload %s: %w: the store has %d bytes, %d were sent", name, uploader.ErrDamaged, obj.Size, r.Size)
	}
	return uploader.Volume{
		Name: name, Size: obj.Size, ETag: obj.ETag, CRC64NVME: obj.CRC64NVME, IndexSHA256: r.IndexSHA256,
		Checked: obj.Checked, Frames: r.Frames,
	}, nil
}

// pieces makes the uploader's pieces of the archive's frames. What a frame
// decodes to is counted as progress: it is what the user knows the size of.
func (s *sender) pieces(frames iter.Seq2[snapshot.Frame, error]) iter.Seq2[uploader.Piece, error] {
	return func(yield func(uploader.Piece, error) bool) {
		for f, err := range frames {
			if err != nil {
				yield(uploader.Piece{}, err)
				return
			}
			p := uploader.Piece{ID: f.ID, CRC: f.CRC, Record: f.Record}
			if data := f.Data; data != nil {
				p.Bytes = func(context.Context) ([]byte, error) { return data, nil }
			} else {
				p.Len, p.Bytes = int64(f.CLen), f.Again
			}
			if !yield(p, nil) {
				return
			}
			done := s.read.Add(int64(f.ULen))
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

func (s *sender) putSums(ctx context.Context, spool *fsx.File, m *uploader.Manifest) error {
	body, err := os.ReadFile(spool.Name())
	if err != nil {
		return err
	}
	obj, err := s.b.Store.PutSmall(ctx, s.b.Catalog.ObjectKey(s.st.ID, uploader.SumsName), body, "application/zstd", uploader.Condition{})
	if err != nil {
		return fmt.Errorf("store the list of hashes: %w", err)
	}
	m.Sums = &uploader.SumsRef{Name: uploader.SumsName, Size: obj.Size}
	return nil
}

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
			if err := s.b.Catalog.UpdateRun(ctx, s.st.ID, s.read.Load(), s.total.Load()); err != nil && ctx.Err() == nil {
				s.b.Events.Emit(Warning{Text: "the progress could not be noted in the bucket: " + err.Error()})
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (s *sender) manifest(ctx context.Context) (uploader.Manifest, error) {
	b, p := s.b, s.pos
	facts, err := b.Replica.Facts(ctx)
	if err != nil {
		return uploader.Manifest{}, err
	}
	m := uploader.Manifest{
		ID: s.st.ID, Label: b.Label, Class: "normal", Cluster: b.Cluster, Incarnation: p.Incarnation,
		Node:   uploader.Node{ID: s.before.Node.ID, Name: s.before.Node.Name, Host: b.Host, Role: s.before.Node.Role},
		System: s.before.System,
		Versions: uploader.Versions{
			System: s.before.Version, App: s.before.App, Eddy: b.Version, Encoder: snapshot.EncoderName(), Go: runtime.Version(),
		},
		Position: uploader.Position{
			Kind: p.Kind, Epoch: p.Epoch, Index: p.Index, Hash: hex.EncodeToString(p.Hash),
			HashKind: p.HashKind, Time: p.Time.UTC(), Consistency: p.Consistency,
		},
		Opened: "none", Attested: "not possible",
		Engines: facts.Engines, Pruning: facts.Pruning, Indexer: facts.Indexer,
		HeldSeconds: s.sum.HeldSeconds,
		Times:       uploader.Times{Begun: s.st.Started, Held: s.sum.heldAt, Released: s.sum.releasedAt},
		Created:     b.Now().UTC(),
	}
	for _, r := range s.stage.Roots() {
		m.Roots = append(m.Roots, uploader.RootRef{Name: r.Name, Prefix: r.Prefix, Path: r.Path})
	}
	for _, l := range s.stage.LeftOut() {
		m.LeftOut = append(m.LeftOut, uploader.LeftOut{Name: l.Name, Reason: l.Reason})
	}
	return m, nil
}

// weaker returns the weaker of two means of checking stored bytes.
func weaker(a, b string) string {
	rank := map[string]int{"": 3, "read-back": 2, "checksum": 1, "sample": 0}
	if rank[a] < rank[b] {
		return a
	}
	return b
}
