package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// PinnedBytes is the disk space that the stages of the roots keep from being
// freed: that of files which only a stage still names. A link to a file that the
// replica has as well costs nothing; once the replica removes its own, as it does
// when it compacts, the stage alone pins it. It only looks, and may be called
// while a stage is filled, read or removed.
func PinnedBytes(ctx context.Context, roots []Root) (int64, error) {
	const block = 512 // of st_blocks, whatever the filesystem's own is: stat(2)
	var pinned int64
	for _, r := range roots {
		stages, err := os.ReadDir(filepath.Join(r.Path, StageDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		for _, s := range stages {
			if !s.IsDir() || !looksLikeID(s.Name()) {
				continue
			}
			err := filepath.WalkDir(filepath.Join(r.Path, StageDir, s.Name()), func(_ string, d fs.DirEntry, err error) error {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if errors.Is(err, fs.ErrNotExist) {
					return nil // removed since it was listed
				}
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				fi, err := d.Info()
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err != nil {
					return err
				}
				if st := fi.Sys().(*syscall.Stat_t); st.Nlink == 1 {
					pinned += st.Blocks * block
				}
				return nil
			})
			if err != nil {
				return 0, err
			}
		}
	}
	return pinned, nil
}
