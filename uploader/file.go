package uploader

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// tmpMark begins the names of files that are no objects: those that are being
// written, and the lock.
const tmpMark = ".tmp-"

// fileStore keeps objects as files: 0600, in directories 0700. An object appears
// by a rename of a synced file, so that it is whole or not there. What changes
// names does so under a lock file, which makes conditional writes atomic among
// all eddys that use the directory.
type fileStore struct {
	dir string
	fs  fsx.FS
	c   Config // for the sizes of parts
}

var _ Store = (*fileStore)(nil)

func newFileStore(dir string) *fileStore { return &fileStore{dir: filepath.Clean(dir)} }

// URL implements Store.
func (s *fileStore) URL() string { return (&url.URL{Scheme: "file", Path: s.dir}).String() }

// path refuses keys that lead out of the store, or to what is no object.
func (s *fileStore) path(op, key string) (string, error) {
	bad := !fs.ValidPath(key) || key == "." || strings.ContainsRune(key, 0)
	for name := range strings.SplitSeq(key, "/") {
		bad = bad || strings.HasPrefix(name, tmpMark)
	}
	if bad {
		return "", &storeError{op: op, key: fmt.Sprintf("%q", key), kind: ErrRefused, said: "it is no key"}
	}
	return filepath.Join(s.dir, filepath.FromSlash(key)), nil
}

// fail gives an error of the filesystem a sentinel and a hint.
func (s *fileStore) fail(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", op, key, context.Cause(ctx))
	}
	e := &storeError{op: op, key: key, kind: ErrRefused, said: root(err).Error(), cause: err}
	switch {
	case errors.Is(err, fsx.ErrLocked):
		e.kind, e.said = ErrUnreachable, "another process keeps the store's lock"
		return hint.Add(e, "look which process has it open, and whether it is stopped: "+hint.Command("lsof", filepath.Join(s.dir, tmpMark+"lock")))
	case errors.Is(err, fs.ErrNotExist):
		e.kind, e.said, e.cause = ErrNotFound, "", nil
		return e
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint.Add(e, "make room on the filesystem of "+s.dir+", or keep fewer: `eddy expire --last 1 --apply`")
	case errors.Is(err, fs.ErrPermission):
		uid, gid := strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getgid())
		return hint.Add(e, "eddy's user must be able to write there; as root: "+hint.Command("install", "-d", "-m", "0700", "-o", uid, "-g", gid, s.dir))
	case errors.Is(err, syscall.EROFS):
		return hint.Add(e, "the filesystem of "+s.dir+" is mounted read-only: mount it for writing, or set `store.url: file:///DIR` to another directory")
	case errors.Is(err, syscall.ENOTDIR):
		return hint.Add(e, "a part of "+s.dir+" is a file: set `store.url: file:///DIR` to a directory")
	default:
		return hint.Add(e, "look at "+s.dir+" and the disk below it")
	}
}

// etagSpan is how much of an object's beginning and of its end its ETag is made
// from.
const etagSpan = 64 << 10

// etagOf is made from size and content, so that it stays what it is when the
// whole store is copied elsewhere, or touched. Pointers and manifests lie whole
// in the two spans; a large archive ends in the hashes of all that comes before.
func etagOf(f io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", size)
	first := min(size, etagSpan)
	rest := max(first, size-etagSpan)
	for _, span := range [][2]int64{{0, first}, {rest, size - rest}} {
		n, err := io.Copy(h, io.NewSectionReader(f, span[0], span[1]))
		if err == nil && n != span[1] {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// object opens an object and describes it. The caller closes the file.
func (s *fileStore) object(ctx context.Context, op, key string) (*os.File, Object, error) {
	p, err := s.path(op, key)
	if err != nil {
		return nil, Object{}, err
	}
	if ctx.Err() != nil {
		return nil, Object{}, s.fail(ctx, op, key, context.Cause(ctx))
	}
	f, err := os.Open(p)
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist // the key goes on below an object
	}
	if err != nil {
		return nil, Object{}, s.fail(ctx, op, key, err)
	}
	o, err := describe(f, key)
	if err != nil {
		return nil, Object{}, errors.Join(s.fail(ctx, op, key, err), f.Close())
	}
	return f, o, nil
}

func describe(f *os.File, key string) (Object, error) {
	st, err := f.Stat()
	if err != nil {
		return Object{}, err
	}
	if !st.Mode().IsRegular() {
		return Object{}, fs.ErrNotExist
	}
	etag, err := etagOf(f, st.Size())
	return Object{Key: key, Size: st.Size(), ETag: etag, Modified: st.ModTime()}, err
}

// Copies implements Store: a disk that reads and writes the same bytes gains
// nothing, and all of an object is read back anyway.
func (s *fileStore) Copies() bool { return false }

// Put implements Store. What it has written is read back from the disk and
// compared.
func (s *fileStore) Put(ctx context.Context, r PutRequest) (Object, error) {
	const op = "write"
	p, err := s.path(op, r.Key)
	if err != nil {
		return Object{}, err
	}
	u := &fileUpload{s: s, r: r, dst: p, partSize: s.c.partSize(r.Upper)}
	old, err := u.resume(ctx)
	if err != nil {
		return Object{}, err
	}
	sent := iter.Seq2[Sent, error](func(func(Sent, error) bool) {})
	var prior []priorPart
	if old != nil {
		sent, prior = old.pieces(), old.parts
		u.journal, err = old.goOn(s.fs)
	} else {
		err = u.begin(ctx)
	}
	if err != nil {
		return Object{}, err
	}
	defer u.close()
	cut := cutter{size: u.partSize, limit: 1, prior: prior, send: u.send, note: func(p part) error { return u.journal.append(lineOf(p)) }, more: u.journal.more}
	size, sum, err := cut.run(ctx, r.Key, r.Pieces(sent))
	if errors.Is(err, errChanged) {
		// What cannot be gone on with would fail the next run as well.
		return Object{}, errors.Join(err, s.Abandon(context.WithoutCancel(ctx), r.Journal))
	}
	if err != nil {
		return Object{}, err
	}
	o, err := u.publish(ctx, size, sum)
	if err != nil {
		return Object{}, s.fail(ctx, op, r.Key, err)
	}
	if r.Stored != nil {
		if err := r.Stored(o); err != nil {
			return Object{}, err
		}
	}
	return o, ignoreAbsent(s.fs.Remove(r.Journal))
}

// fileUpload is an object that is being written.
type fileUpload struct {
	s        *fileStore
	r        PutRequest
	dst      string // its path as an object
	tmp      string // key of the file that it is before
	partSize int64
	journal  *journal
	f        *fsx.File
	moved    Moved
}

func (u *fileUpload) head() journalHead {
	return journalHead{Store: u.s.URL(), Key: u.r.Key, UploadID: u.tmp, PartSize: u.partSize, Identity: u.r.Identity}
}

func (u *fileUpload) close() {
	u.journal.close()
	u.f.Close() // synced where that matters
}

func (u *fileUpload) begin(ctx context.Context) error {
	var nonce [6]byte
	rand.Read(nonce[:])
	u.tmp = path.Join(path.Dir(u.r.Key), tmpMark+hex.EncodeToString(nonce[:])+"-"+path.Base(u.r.Key))
	var err error
	if u.journal, err = createJournal(u.s.fs, u.r.Journal, u.head()); err != nil {
		return err
	}
	if u.f, err = u.s.create(ctx, u.tmp); err != nil {
		u.journal.close()
		return u.s.fail(ctx, "write", u.r.Key, err)
	}
	return nil
}

// resume opens what an earlier run has written: the temporary file, or the object
// where that run died behind the rename. A part counts when its bytes read back
// as the journal says.
func (u *fileUpload) resume(ctx context.Context) (*earlier, error) {
	old, err := readJournal(u.r.Journal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil || !old.head.same(u.head()) || !isTemporary(old.head.UploadID) {
		return nil, u.s.Abandon(ctx, u.r.Journal)
	}
	u.tmp = old.head.UploadID
	for _, p := range []string{u.s.temporary(u.tmp), u.dst} {
		if u.f, err = u.s.fs.OpenFile(p, os.O_RDWR, 0); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, u.s.Abandon(ctx, u.r.Journal)
	}
	if err != nil {
		return nil, u.s.fail(ctx, "write", u.r.Key, err)
	}
	old.finished = u.f.Name() == u.dst
	for i := range old.parts {
		p := &old.parts[i]
		sum, err := crcOf(&contextReader{ctx, io.NewSectionReader(u.f.OS(), p.off, p.len)})
		if err != nil {
			return nil, errors.Join(u.s.fail(ctx, "read back", u.r.Key, err), u.f.Close())
		}
		if p.stored = crc.Base64(sum) == p.crc; p.stored {
			u.moved.Kept += p.len
		}
	}
	if old.finished && slices.ContainsFunc(old.parts, func(p priorPart) bool { return !p.stored }) {
		return nil, errors.Join(u.f.Close(), u.s.Abandon(ctx, u.r.Journal)) // another object of this name
	}
	u.tell()
	return old, nil
}

func (u *fileUpload) tell() {
	if u.r.Moved != nil {
		u.r.Moved(u.moved)
	}
}

func (u *fileUpload) send(ctx context.Context, p part) error {
	err := ctx.Err()
	if err == nil {
		_, err = u.f.WriteAt(p.buf, p.off)
	}
	if err != nil {
		return u.s.fail(ctx, "write", u.r.Key, err)
	}
	u.moved.Sent += p.len
	u.tell()
	return nil
}

// publish makes the file an object when the disk returns what was written.
func (u *fileUpload) publish(ctx context.Context, size int64, sum uint64) (Object, error) {
	if err := u.f.Sync(); err != nil {
		return Object{}, err
	}
	if err := compare(ctx, u.f.OS(), size, sum); err != nil {
		return Object{}, err
	}
	o, err := describe(u.f.OS(), u.r.Key)
	if err == nil && u.f.Name() != u.dst {
		err = u.s.publish(ctx, u.f.Name(), u.dst)
	}
	o.CRC64NVME, o.Checked = crc.Base64(sum), "read-back"
	return o, err
}

// temporary is the path of a file that is no object yet.
func (s *fileStore) temporary(key string) string {
	return filepath.Join(s.dir, filepath.FromSlash(key))
}

// isTemporary refuses what would lead elsewhere, or to an object.
func isTemporary(key string) bool {
	return fs.ValidPath(key) && strings.HasPrefix(path.Base(key), tmpMark)
}

// create makes a file that is no object yet, and the directories above it.
func (s *fileStore) create(ctx context.Context, name string) (*fsx.File, error) {
	p := s.temporary(name)
	if err := s.mkdirs(s.dir); err != nil {
		return nil, err
	}
	// Under the lock, because Delete removes directories that are empty.
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.mkdirs(filepath.Dir(p)); err != nil {
		return nil, err
	}
	return s.fs.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// publish makes a synced file an object.
func (s *fileStore) publish(ctx context.Context, tmp, p string) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.fs.Rename(tmp, p); err != nil {
		return err
	}
	return s.fs.SyncDir(filepath.Dir(p))
}

// compare reads a synced file and compares it with what was written. The kernel
// is told to forget its pages before, so that the disk is asked.
func compare(ctx context.Context, f *os.File, size int64, sum uint64) error {
	// Advice: where it is not taken (tmpfs) the pages are all there is.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	got, err := crcOf(&contextReader{ctx, io.NewSectionReader(f, 0, size)})
	if err == nil && got != sum {
		err = &storeError{op: "read back", key: filepath.Base(f.Name()), kind: ErrDamaged, said: "the disk returns other bytes than were written"}
	}
	return err
}

// mkdirs makes dir and what is missing above it, durably.
func (s *fileStore) mkdirs(dir string) error {
	err := s.fs.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.mkdirs(filepath.Dir(dir)); err == nil {
			err = s.fs.Mkdir(dir, 0o700)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // not a directory: the next step says so
	}
	if err != nil {
		return err
	}
	return s.fs.SyncDir(filepath.Dir(dir))
}

// lockWait is how long another eddy may hold the lock: it does so for a rename.
const lockWait = 30 * time.Second

func (s *fileStore) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, fsx.ErrLocked)
	defer cancel()
	for ctx.Err() == nil {
		l, err := fsx.TryLock(filepath.Join(s.dir, tmpMark+"lock"))
		if err == nil {
			return func() { _ = l.Unlock() }, nil // closing gives it up in any case
		}
		if !errors.Is(err, fsx.ErrLocked) {
			return nil, err
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return nil, context.Cause(ctx)
}

// Abandon implements Store.
func (s *fileStore) Abandon(ctx context.Context, journal string) error {
	e, err := readJournal(journal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && e.head.Store == s.URL() && isTemporary(e.head.UploadID) {
		if err := ignoreAbsent(s.fs.Remove(s.temporary(e.head.UploadID))); err != nil {
			return s.fail(ctx, "remove", e.head.UploadID, err)
		}
	}
	return ignoreAbsent(s.fs.Remove(journal))
}

// PutSmall implements Store.
func (s *fileStore) PutSmall(ctx context.Context, key string, content []byte, _ string, c Condition) (Object, error) {
	const op = "write"
	p, err := s.path(op, key)
	if err != nil {
		return Object{}, err
	}
	if err := s.mkdirs(s.dir); err != nil {
		return Object{}, s.fail(ctx, op, key, err)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return Object{}, s.fail(ctx, op, key, err)
	}
	defer unlock()
	if c != (Condition{}) {
		if err := s.allows(ctx, c, key); err != nil {
			return Object{}, err
		}
	}
	if err := s.mkdirs(filepath.Dir(p)); err != nil {
		return Object{}, s.fail(ctx, op, key, err)
	}
	// Of those who write this key only one has the lock; what a crash left is
	// written over.
	tmp := filepath.Join(filepath.Dir(p), tmpMark+filepath.Base(p))
	if err := s.writeSynced(tmp, content); err != nil {
		return Object{}, s.fail(ctx, op, key, errors.Join(err, ignoreAbsent(s.fs.Remove(tmp))))
	}
	if err := s.fs.Rename(tmp, p); err != nil {
		return Object{}, s.fail(ctx, op, key, errors.Join(err, ignoreAbsent(s.fs.Remove(tmp))))
	}
	if err := s.fs.SyncDir(filepath.Dir(p)); err != nil {
		return Object{}, s.fail(ctx, op, key, err)
	}
	f, o, err := s.object(ctx, op, key)
	if err != nil {
		return Object{}, err
	}
	return o, f.Close()
}

// allows checks the condition of a write, under the lock.
func (s *fileStore) allows(ctx context.Context, c Condition, key string) error {
	lost := &storeError{op: "write", key: key, kind: ErrPrecondition}
	f, o, err := s.object(ctx, "write", key)
	switch {
	case err == nil:
		f.Close() // only read from
		if c.IfAbsent || c.IfMatch != o.ETag {
			return lost
		}
		return nil
	case !errors.Is(err, ErrNotFound):
		return err
	case c.IfMatch != "":
		lost.said = "it is gone"
		return lost
	default:
		return nil
	}
}

func (s *fileStore) writeSynced(path string, content []byte) error {
	f, err := s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Delete implements Store. Directories that become empty go as well. A file of a
// backup that comes back after a power cut would be no backup: the manifest is
// deleted by a call of its own before, and the directory is synced.
func (s *fileStore) Delete(ctx context.Context, keys ...string) error {
	const op = "delete"
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) || len(keys) == 0 {
		return nil
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return s.fail(ctx, op, keys[0], err)
	}
	defer unlock()
	dirs := map[string]bool{}
	for _, key := range keys {
		p, err := s.path(op, key)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return s.fail(ctx, op, key, context.Cause(ctx))
		}
		// A directory, or what would lie below an object, is no object.
		err = s.fs.Unlink(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, syscall.EISDIR) {
			return s.fail(ctx, op, key, err)
		}
		dirs[filepath.Dir(p)] = true
	}
	for dir := range dirs {
		// Up to the first that is not empty, or to the store itself.
		for dir != s.dir && (s.fs.Rmdir(dir) == nil || !exists(dir)) {
			dir = filepath.Dir(dir)
		}
		if err := s.fs.SyncDir(dir); err != nil {
			return s.fail(ctx, op, dir, err)
		}
	}
	return nil
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}
