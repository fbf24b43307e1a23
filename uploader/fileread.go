package uploader

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// GetSmall implements Store.
func (s *fileStore) GetSmall(ctx context.Context, key string, limit int64) ([]byte, Object, error) {
	const op = "read"
	f, o, err := s.object(ctx, op, key)
	if err != nil {
		return nil, Object{}, err
	}
	defer f.Close()
	if o.Size > limit {
		return nil, Object{}, tooLarge(op, key, limit)
	}
	b := make([]byte, o.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, Object{}, s.fail(ctx, op, key, err)
	}
	return b, o, nil
}

// Stat implements Store.
func (s *fileStore) Stat(ctx context.Context, key string) (Object, error) {
	f, o, err := s.object(ctx, "look at", key)
	if err != nil {
		return Object{}, err
	}
	return o, f.Close()
}

// Open implements Store. A file that is replaced stays readable through what is
// open, so two versions are never joined.
func (s *fileStore) Open(ctx context.Context, key, etag string, off, n int64) (io.ReadCloser, error) {
	const op = "read"
	f, o, err := s.object(ctx, op, key)
	if err != nil {
		return nil, err
	}
	if n < 0 {
		n = max(0, o.Size-off)
	}
	switch {
	case etag != "" && o.ETag != etag:
		err = replaced(op, key)
	case n > 0 && o.Size < off+n:
		err = tooShort(op, key)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileReader{exactReader{contextReader{ctx, io.NewSectionReader(f, off, n)}, n}, s, key, f}, nil
}

// fileReader gives the errors of the disk the store's sentinels.
type fileReader struct {
	exactReader
	s   *fileStore
	key string
	f   *os.File
}

func (r *fileReader) Read(b []byte) (int, error) {
	n, err := r.exactReader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = r.s.fail(r.ctx, "read", r.key, err)
	}
	return n, err
}

func (r *fileReader) Close() error { return r.f.Close() }

// exactReader turns an early end into io.ErrUnexpectedEOF.
type exactReader struct {
	contextReader
	left int64
}

func (e *exactReader) Read(b []byte) (int, error) {
	n, err := e.contextReader.Read(b)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// List implements Store.
func (s *fileStore) List(ctx context.Context, prefix, delimiter string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		keys, err := s.keys(ctx, prefix)
		if err != nil {
			yield(Object{}, s.fail(ctx, "list", prefix, err))
			return
		}
		common := ""
		for _, key := range keys {
			if common != "" && strings.HasPrefix(key, common) {
				continue
			}
			if delimiter != "" {
				if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
					common = key[:len(prefix)+i+len(delimiter)]
					if !yield(Object{Key: common}, nil) {
						return
					}
					continue
				}
			}
			o, err := s.Stat(ctx, key)
			if errors.Is(err, ErrNotFound) {
				continue // deleted since
			}
			if !yield(o, err) || err != nil {
				return
			}
		}
	}
}

// keys are the keys that begin with prefix, in order. No store yet is an empty
// one.
func (s *fileStore) keys(ctx context.Context, prefix string) ([]string, error) {
	return s.names(ctx, prefix, false)
}

// names are those of objects, or of what is not yet one, below prefix.
func (s *fileStore) names(ctx context.Context, prefix string, temporary bool) ([]string, error) {
	base := s.dir
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		p, err := s.path("list", prefix[:i])
		if err != nil {
			return nil, err
		}
		base = p
	}
	var keys []string
	// The slash makes it follow a symlink that the store itself is.
	err := filepath.WalkDir(base+"/", func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted since, or nothing there
		}
		if d != nil && d.IsDir() && filepath.Clean(p) == filepath.Join(s.dir, "lost+found") {
			return fs.SkipDir // of a filesystem's own, and not to be read
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(s.dir, p)
		if err != nil {
			return err
		}
		key := filepath.ToSlash(rel)
		if d.Type().IsRegular() && strings.HasPrefix(d.Name(), tmpMark) == temporary && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
		return nil
	})
	slices.Sort(keys)
	return keys, err
}
