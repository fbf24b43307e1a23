package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Farm makes a private copy of one directory of a sealed stage for a program that
// wants to open it: linked files are linked once more, all others are copied,
// because even a read-only open creates and rewrites files (LOCK, LOG). remove
// deletes it; it lies beside the stage and is swept with it after a crash.
func (s *Stage) Farm(ctx context.Context, name string) (dir string, remove func() error, err error) {
	var base string // of the root that holds name
	for e, err := range s.Entries() {
		if err != nil {
			return "", nil, err
		}
		if e.Name != name || e.Type != TypeDir {
			continue
		}
		r, err := s.root(e.Root)
		if err != nil {
			return "", nil, err
		}
		base = filepath.Join(r.Path, StageDir)
		break
	}
	if base == "" {
		return "", nil, fmt.Errorf("stage: there is no directory %s", name)
	}
	dir, err = s.fs.MkdirTemp(base, s.id+".farm-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error { return s.fs.RemoveAll(dir) }
	for e, err := range s.Entries() {
		if err == nil {
			err = ctx.Err()
		}
		rel, inside := strings.CutPrefix(e.Name, name+"/")
		if err == nil && inside {
			err = s.farm(ctx, e, filepath.Join(dir, rel))
		}
		if err != nil {
			return "", nil, errors.Join(err, remove())
		}
	}
	return dir, remove, nil
}

func (s *Stage) farm(ctx context.Context, e Entry, dst string) error {
	src, err := s.Path(e)
	if err != nil {
		return err
	}
	switch {
	case e.Type == TypeDir:
		return s.fs.MkdirAll(dst, 0o700)
	case e.Type == TypeSymlink:
		return s.fs.Symlink(e.Link, dst)
	case e.Treatment == Linked:
		return s.linkInto(src, dst)
	default:
		if err := s.fs.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
			return err
		}
		_, _, err = s.fs.CloneOrCopy(ctx, src, dst, 0o600)
		return err
	}
}
