package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// earlierWork is what other attempts have stored, and this one may copy.
type earlierWork struct {
	shelf   *snapshot.Shelf
	objects []uploader.Object // by snapshot.StoredAt.Volume
	// reaches is how many volumes the longest of them has. What comes later in an
	// archive stands in none: files keep their order, and move a little only.
	reaches int
}

// level is the encoder's.
func (b *Backup) level() int { return cmp.Or(b.Level, snapshot.DefaultLevel) }

// earlierWork looks for volumes that other attempts have stored and proven, with
// this encoder and level; nil where there are none, or the store cannot copy. Only
// what is still as it was proven counts: by its ETag, by the checksum that the
// store has, by the hash of its index. No backup fails by it.
func (b *Backup) earlierWork(ctx context.Context, id string) (*earlierWork, error) {
	if b.Fresh || !b.Store.Copies() {
		return nil, nil
	}
	w, frames := &earlierWork{shelf: &snapshot.Shelf{}}, 0
	add := func() error {
		runs, err := b.Catalog.CopySources(ctx, id, snapshot.EncoderName(), b.level())
		if err != nil {
			return err
		}
		for _, r := range runs {
			for i, v := range r.Volumes {
				n, err := b.shelve(ctx, w, r.ID, v)
				if err != nil {
					return err
				}
				if frames += n; n > 0 {
					w.reaches = max(w.reaches, i+1)
				}
			}
		}
		return nil
	}
	if err := add(); ctx.Err() != nil {
		return nil, context.Cause(ctx)
	} else if err != nil {
		b.Events.Emit(Warning{Text: fmt.Sprintf("what earlier attempts have stored cannot be looked at: %v", err), Hint: hint.Of(err)})
	}
	if frames == 0 {
		return nil, nil
	}
	w.shelf.Seal()
	b.phase(id, "copy", "earlier attempts have stored %d volumes: what has not changed since is copied inside the store, not sent", len(w.objects))
	return w, nil
}

// shelve takes up a volume of another attempt, unless it is gone or not what it
// was.
func (b *Backup) shelve(ctx context.Context, w *earlierWork, id string, v uploader.Volume) (frames int, err error) {
	key := b.Catalog.ObjectKey(id, v.Name)
	o, err := b.Store.Stat(ctx, key)
	if errors.Is(err, uploader.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if o.Size != v.Size || o.ETag != v.ETag || o.CRC64NVME != "" && o.CRC64NVME != v.CRC64NVME {
		return 0, nil
	}
	x, err := snapshot.ReadIndex(ctx, snapshot.VolumeSource{
		Name: key, Size: o.Size,
		Open: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			return b.Store.Open(ctx, key, o.ETag, off, n)
		},
	})
	if errors.Is(err, snapshot.ErrCorrupt) {
		return 0, nil // it says nothing of the other volumes
	}
	if err != nil {
		return 0, err
	}
	if x.SHA256 != v.IndexSHA256 {
		return 0, nil
	}
	frames, err = w.shelf.Add(x, len(w.objects), b.Now())
	if frames > 0 {
		w.objects = append(w.objects, o)
	}
	return frames, err
}

// of is what a volume of the new archive may copy from; nil: nothing.
func (w *earlierWork) of(b *Backup, volume int) *snapshot.Shelf {
	if w == nil || volume > w.reaches || !b.Store.Copies() {
		return nil
	}
	return w.shelf
}

// reuse names a frame's bytes in the store.
func (w *earlierWork) reuse(f snapshot.Frame) *uploader.Range {
	if f.Place == nil {
		return nil
	}
	o := w.objects[f.Place.Volume]
	return &uploader.Range{Key: o.Key, ETag: o.ETag, Off: f.Place.Off, Len: int64(f.CLen)}
}
