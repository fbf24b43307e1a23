package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// ErrProof: what is to be sent is not what a backup of this replica should be.
var ErrProof = errors.New("proof failed")

// audit compares the databases of a sealed stage with what they say of
// themselves, where the replica can.
func (b *Backup) audit(ctx context.Context, stage *snapshot.Stage) error {
	a, ok := b.Replica.(observer.Auditor)
	if !ok {
		return nil
	}
	unread, err := a.Audit(ctx, stage)
	if errors.Is(err, observer.ErrUnsound) {
		return mark(ErrProof, err)
	}
	if err != nil {
		return mark(ErrStage, err)
	}
	for _, text := range unread {
		// No reason for exit code 3: it is so every time.
		b.Events.Emit(Warning{Text: "it is not known whether all tables are there: " + text, Hint: "a newer eddy may know its form"})
	}
	return nil
}

// shrunk refuses a dump that is less than half of the newest backup of the same
// history in the same engines: data is lost more often than it shrinks. source is
// what the plan will read, in bytes.
func (b *Backup) shrunk(ctx context.Context, m *uploader.Manifest, source int64) error {
	if b.Salvage {
		return nil
	}
	newest, err := b.Catalog.Latest(ctx)
	if errors.Is(err, uploader.ErrNoSuchBackup) {
		return nil
	}
	if err != nil {
		return err
	}
	old := newest.Manifest
	if old == nil || old.Incarnation != m.Incarnation || !sameSet(old.Engines, m.Engines) || source >= old.Sizes.Source/2 {
		return nil
	}
	said := fmt.Sprintf("it has %s, backup %s had %s", ui.Bytes(source), old.ID, ui.Bytes(old.Sizes.Source))
	switch {
	case old.Pruning != m.Pruning:
		b.warn(fmt.Sprintf("%s; pruning was %q then and is %q now", said, old.Pruning, m.Pruning), "look whether that explains it")
		return nil
	case b.AcceptShrink:
		b.warn(said+", which is accepted", "")
		return nil
	}
	return hint.Add(fmt.Errorf("%w: less than half is left: %s", ErrProof, said),
		"look whether the node's data is whole; if it was pruned, compacted or synchronised anew, say `eddy backup --accept-shrink` once")
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// proveTail reads the end of a stored volume back, index and seek table, and
// compares it with what was sent.
func (b *Backup) proveTail(ctx context.Context, o uploader.Object, indexSHA256 string) error {
	err := snapshot.CheckTail(ctx, snapshot.VolumeSource{
		Name: o.Key, Size: o.Size,
		Open: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			return b.Store.Open(ctx, o.Key, o.ETag, off, n)
		},
	}, indexSHA256)
	if err != nil {
		return fmt.Errorf("read the end of it back: %w", err)
	}
	return nil
}
