package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Stream takes what no file holds: fill writes the content of a new file of the
// stage, which belongs to eddy's user and has mode 0600. Where fill fails nothing
// of it stays.
func (s *Stage) Stream(ctx context.Context, root, rel string, fill func(ctx context.Context, w io.Writer) error) (err error) {
	r, _, dst, err := s.paths(root, rel)
	if err != nil {
		return err
	}
	if err := s.fs.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(fill(ctx, f), f.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("fill %s: %w", rel, err), s.fs.Remove(dst))
	}
	fi, err := os.Lstat(dst)
	if err != nil {
		return err
	}
	e, err := entryOf(r, rel, fi)
	if err != nil {
		return err
	}
	e.Treatment, e.Sparse = Copied, false
	return s.add(e, func(c *StageStats) {
		c.Copied++
		c.CopiedBytes += e.Size
	})
}
