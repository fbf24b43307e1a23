package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// tmpMark begins the names of files that are being written. They are no objects.
const tmpMark = ".tmp-"

// fileStore keeps objects as files: 0600, in directories 0700. An object appears
// by a rename of a synced file, so that it is whole or not there.
type fileStore struct{ dir string }

var _ Store = (*fileStore)(nil)

func newFileStore(dir string) *fileStore { return &fileStore{dir: filepath.Clean(dir)} }

func (s *fileStore) URL() string { return "file://" + s.dir }

// path refuses keys that lead out of the store.
func (s *fileStore) path(key string) (string, error) {
	if !filepath.IsLocal(key) || strings.Contains(key, tmpMark) {
		return "", fmt.Errorf("key %q: %w", key, ErrRefused)
	}
	return filepath.Join(s.dir, filepath.FromSlash(key)), nil
}

func (s *fileStore) fail(op, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: %w", op, key, ErrNotFound)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint.Add(fmt.Errorf("%s %s: %w: %w", op, key, ErrRefused, root(err)), "make room on the store's filesystem, or expire old backups")
	case errors.Is(err, context.Canceled), errors.Is(err, ErrPrecondition), errors.Is(err, ErrRefused), errors.Is(err, ErrDamaged):
		return err
	default:
		return hint.Add(fmt.Errorf("%s %s: %w: %w", op, key, ErrRefused, root(err)), "the store's directory must be one that eddy's user may write to, on a disk that works")
	}
}

func (s *fileStore) object(key string, st fs.FileInfo) Object {
	return Object{Key: key, Size: st.Size(), ETag: etagOf(st), Modified: st.ModTime()}
}

// etagOf changes whenever an object is replaced: every write makes a new file.
func etagOf(st fs.FileInfo) string {
	return fmt.Sprintf("%x-%x-%x", st.Sys().(*syscall.Stat_t).Ino, st.ModTime().UnixNano(), st.Size())
}

// Put implements Store. What it has written is read back and compared.
func (s *fileStore) Put(ctx context.Context, r PutRequest) (Object, error) {
	if err := s.Abandon(ctx, r.Journal); err != nil {
		return Object{}, err
	}
	o, err := s.put(ctx, r)
	return o, s.fail("write", r.Key, err)
}

func (s *fileStore) put(ctx context.Context, r PutRequest) (Object, error) {
	path, err := s.path(r.Key)
	if err != nil {
		return Object{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Object{}, err
	}
	tmp := filepath.Join(filepath.Dir(path), tmpMark+filepath.Base(path))
	c := Config{}.withDefaults()
	j, err := createJournal(r.Journal, journalHead{Store: s.URL(), Key: r.Key, UploadID: tmp, PartSize: c.partSize(r.Upper), Identity: r.Identity})
	if err != nil {
		return Object{}, err
	}
	defer j.close()
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return Object{}, err
	}
	defer f.Close()
	cut := cutter{
		size: c.partSize(r.Upper), limit: 1,
		note: func(p part) error {
			return j.append(journalPart{Part: p.number, Off: p.off, Len: len(p.buf), CRC: crc.Base64(p.crc), Pieces: p.pieces})
		},
		send: func(ctx context.Context, p part) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := f.WriteAt(p.buf, p.off); err != nil {
				return err
			}
			if r.Progress != nil {
				r.Progress(p.off + int64(len(p.buf)))
			}
			return nil
		},
	}
	size, sum, err := cut.run(ctx, r)
	if err != nil {
		return Object{}, err
	}
	if err := f.Sync(); err != nil {
		return Object{}, err
	}
	if got, err := crcOf(ctx, f); err != nil {
		return Object{}, err
	} else if got != sum {
		return Object{}, fmt.Errorf("%w: %s reads back with another checksum", ErrDamaged, r.Key)
	}
	if err := os.Rename(tmp, path); err != nil {
		return Object{}, err
	}
	if err := fsx.SyncDir(filepath.Dir(path)); err != nil {
		return Object{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return Object{}, err
	}
	if st.Size() != size {
		return Object{}, fmt.Errorf("%w: %s has %d bytes, %d were written", ErrDamaged, r.Key, st.Size(), size)
	}
	o := s.object(r.Key, st)
	o.CRC64NVME, o.Checked = crc.Base64(sum), "read-back"
	return o, os.Remove(r.Journal)
}

func crcOf(ctx context.Context, f *os.File) (sum uint64, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		sum = crc.Combine(sum, crc.NVME(buf[:n]), int64(n))
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return 0, err
		}
	}
}

// Abandon implements Store.
func (s *fileStore) Abandon(_ context.Context, path string) error {
	h, _, err := readJournal(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ignoreAbsent(os.Remove(path))
	}
	if err != nil {
		return err
	}
	if h.Store == s.URL() && strings.HasPrefix(filepath.Base(h.UploadID), tmpMark) && strings.HasPrefix(h.UploadID, s.dir+"/") {
		if err := ignoreAbsent(os.Remove(h.UploadID)); err != nil {
			return s.fail("remove", h.Key, err)
		}
	}
	return ignoreAbsent(os.Remove(path))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// PutSmall implements Store.
func (s *fileStore) PutSmall(ctx context.Context, key string, body []byte, _ string, c Condition) (Object, error) {
	o, err := s.putSmall(ctx, key, body, c)
	return o, s.fail("write", key, err)
}

func (s *fileStore) putSmall(ctx context.Context, key string, body []byte, c Condition) (Object, error) {
	path, err := s.path(key)
	if err != nil {
		return Object{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Object{}, err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return Object{}, err
	}
	defer unlock()
	st, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Object{}, err
	}
	exists := err == nil
	if c.IfAbsent && exists || c.IfMatch != "" && (!exists || etagOf(st) != c.IfMatch) {
		return Object{}, fmt.Errorf("write %s: %w", key, ErrPrecondition)
	}
	tmp := filepath.Join(filepath.Dir(path), tmpMark+filepath.Base(path))
	if err := writeSynced(tmp, body); err != nil {
		return Object{}, errors.Join(err, ignoreAbsent(os.Remove(tmp)))
	}
	if err := os.Rename(tmp, path); err != nil {
		return Object{}, err
	}
	if err := fsx.SyncDir(filepath.Dir(path)); err != nil {
		return Object{}, err
	}
	if st, err = os.Stat(path); err != nil {
		return Object{}, err
	}
	return s.object(key, st), nil
}

func writeSynced(path string, body []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// lock makes conditional writes atomic among all eddys that use this directory.
func (s *fileStore) lock(ctx context.Context) (func(), error) {
	for {
		l, err := fsx.TryLock(filepath.Join(s.dir, tmpMark+"lock"))
		if err == nil {
			return func() { l.Unlock() }, nil
		}
		if !errors.Is(err, fsx.ErrLocked) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// GetSmall implements Store.
func (s *fileStore) GetSmall(_ context.Context, key string, limit int64) ([]byte, Object, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, Object{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, Object{}, s.fail("read", key, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, Object{}, s.fail("read", key, err)
	}
	if st.Size() > limit {
		return nil, Object{}, fmt.Errorf("read %s: %w: it has %d bytes, at most %d are expected", key, ErrDamaged, st.Size(), limit)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(f, limit+1)); err != nil {
		return nil, Object{}, s.fail("read", key, err)
	}
	return b.Bytes(), s.object(key, st), nil
}

// Stat implements Store.
func (s *fileStore) Stat(_ context.Context, key string) (Object, error) {
	path, err := s.path(key)
	if err != nil {
		return Object{}, err
	}
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Object{}, s.fail("look at", key, err)
	}
	return s.object(key, st), nil
}

// Open implements Store.
func (s *fileStore) Open(ctx context.Context, key, etag string, off, n int64) (io.ReadCloser, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, s.fail("open", key, err)
	}
	st, err := f.Stat()
	if err == nil && etag != "" && etagOf(st) != etag {
		err = fmt.Errorf("open %s: %w", key, ErrDamaged)
	}
	if err != nil {
		return nil, errors.Join(s.fail("open", key, err), f.Close())
	}
	if n < 0 {
		n = max(0, st.Size()-off)
	}
	return &exactReader{ctx: ctx, r: io.NewSectionReader(f, off, n), left: n, close: f.Close}, nil
}

// exactReader turns an early end into io.ErrUnexpectedEOF and ends with its
// context.
type exactReader struct {
	ctx   context.Context
	r     io.Reader
	left  int64
	close func() error
}

func (e *exactReader) Read(b []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := e.r.Read(b)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (e *exactReader) Close() error { return e.close() }

// List implements Store.
func (s *fileStore) List(ctx context.Context, prefix, delimiter string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var found []Object
		base := s.dir
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			p, err := s.path(prefix[:i])
			if err != nil {
				yield(Object{}, err)
				return
			}
			base = p
		}
		seen := map[string]bool{}
		err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			rel, err := filepath.Rel(s.dir, p)
			if err != nil {
				return err
			}
			key := filepath.ToSlash(rel)
			if d.IsDir() || strings.HasPrefix(d.Name(), tmpMark) || !strings.HasPrefix(key, prefix) {
				return nil
			}
			if delimiter != "" {
				if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
					common := key[:len(prefix)+i+len(delimiter)]
					if !seen[common] {
						seen[common] = true
						found = append(found, Object{Key: common})
					}
					return nil
				}
			}
			st, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			found = append(found, s.object(key, st))
			return nil
		})
		if err != nil {
			yield(Object{}, s.fail("list", prefix, err))
			return
		}
		slices.SortFunc(found, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
		for _, o := range found {
			if !yield(o, nil) {
				return
			}
		}
	}
}

// Delete implements Store. A directory that becomes empty goes as well.
func (s *fileStore) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		path, err := s.path(key)
		if err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), ignoreAbsent(os.Remove(path))); err != nil {
			return s.fail("delete", key, err)
		}
		for dir := filepath.Dir(path); dir != s.dir && os.Remove(dir) == nil; dir = filepath.Dir(dir) {
		}
	}
	return nil
}
