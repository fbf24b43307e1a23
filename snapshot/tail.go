package snapshot

import (
	"bytes"
	"context"
	"fmt"

	"github.com/eddy-backup/eddy/internal/hint"
)

// CheckTail reads what follows a stored volume's frames, by ranged reads, and
// compares it with what was sent: the index by its sha256, and the seek table, of
// which everything stands in the index. A difference is ErrCorrupt.
func CheckTail(ctx context.Context, v VolumeSource, indexSHA256 string) error {
	wrong := func(format string, args ...any) error {
		return hint.Add(fmt.Errorf("%w: %s: %s", ErrCorrupt, v.Name, fmt.Sprintf(format, args...)), "the store has other bytes than were sent; back up again")
	}
	x, err := ReadIndex(ctx, v)
	if err != nil {
		return err
	}
	if x.SHA256 != indexSHA256 {
		return wrong("its index has sha256 %.12s, the one that was sent %.12s", x.SHA256, indexSHA256)
	}
	var t seekTable
	for f, err := range x.Frames() {
		if err != nil {
			return err
		}
		t.add(f)
	}
	want := t.frame()
	got, err := v.read(ctx, v.Size-int64(len(want)), int64(len(want)))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return wrong("its seek table is not the one of its index")
	}
	return nil
}
