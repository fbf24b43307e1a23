package job

import (
	"context"
	"fmt"
	"slices"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/uploader"
)

// capsFile is what the last probe of the store found, in the workdir.
const capsFile = "store.json"

// steer makes the store known: by what an earlier probe found, else by a probe.
// It comes before the node is held.
func (b *Backup) steer(ctx context.Context) error {
	file := b.Workdir.path(capsFile)
	caps, ok := uploader.Recall(b.Store, file, b.Now())
	if !ok {
		b.phase("", "probe", "finding out what %s can do", b.Store.URL())
		var err error
		if caps, err = b.Catalog.Probe(ctx); err != nil {
			return err
		}
		if err := caps.Save(b.Workdir.FS, file); err != nil {
			return err
		}
		if !caps.Sweeps() { // once for each probe
			b.Events.Emit(Warning{Text: uploader.UnsweptText, Hint: "`eddy doctor` says whether a rule does; deploy/s3/lifecycle.json is one"})
		}
	}
	b.caps = caps
	if text := caps.Unguarded(); text != "" {
		// No reason for exit code 3: it is so every time.
		b.Events.Emit(Warning{Text: text, Hint: "let only one eddy at a time write to this cluster"})
	}
	return nil
}

// sweepUploads aborts what dead uploads of this cluster have left in the store.
// It needs the lease. What the workdir's own journals name stays: it is gone on
// with, or abandoned, by them. No backup fails by it.
func (b *Backup) sweepUploads(ctx context.Context) {
	if !b.caps.Sweeps() {
		return
	}
	journals, err := b.Workdir.journals()
	if err == nil {
		var n int
		n, err = b.Catalog.SweepUploads(ctx, func(u uploader.Upload) bool {
			return slices.ContainsFunc(journals, func(j string) bool { return uploader.JournalOf(j, u) })
		})
		if n > 0 {
			b.phase("", "sweep", "aborted %d unfinished upload(s) of dead runs in %s", n, b.Store.URL())
		}
	}
	if err != nil {
		b.Events.Emit(Warning{Text: fmt.Sprintf("what dead uploads have left could not be swept: %v", err), Hint: hint.Of(err)})
	}
}
