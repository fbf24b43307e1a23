package job

import (
	"context"

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
	}
	b.caps = caps
	if text := caps.Unguarded(); text != "" {
		// No reason for exit code 3: it is so every time.
		b.Events.Emit(Warning{Text: text, Hint: "let only one eddy at a time write to this cluster"})
	}
	return nil
}
