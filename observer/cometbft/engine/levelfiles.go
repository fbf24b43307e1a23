package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// levelFiles are the files of a goleveldb, read only. goleveldb's own storage
// makes a LOCK even for one who only reads.
type levelFiles struct{ dir string }

var _ storage.Storage = levelFiles{}

var errReadOnly = errors.New("the database is opened for reading only")

type unlocked struct{}

func (unlocked) Unlock() {}

func (levelFiles) Lock() (storage.Locker, error)                   { return unlocked{}, nil }
func (levelFiles) Log(string)                                      {}
func (levelFiles) SetMeta(storage.FileDesc) error                  { return errReadOnly }
func (levelFiles) Create(storage.FileDesc) (storage.Writer, error) { return nil, errReadOnly }
func (levelFiles) Remove(storage.FileDesc) error                   { return errReadOnly }
func (levelFiles) Rename(_, _ storage.FileDesc) error              { return errReadOnly }
func (levelFiles) Close() error                                    { return nil }

// GetMeta implements storage.Storage.
func (l levelFiles) GetMeta() (storage.FileDesc, error) {
	b, err := os.ReadFile(filepath.Join(l.dir, "CURRENT"))
	if err != nil {
		return storage.FileDesc{}, err
	}
	fd, ok := levelFile(strings.TrimSuffix(string(b), "\n"))
	if !ok || fd.Type != storage.TypeManifest {
		return storage.FileDesc{}, &storage.ErrCorrupted{Err: errors.New("its CURRENT names no MANIFEST")}
	}
	_, err = os.Stat(filepath.Join(l.dir, fd.String()))
	return fd, err
}

// List implements storage.Storage.
func (l levelFiles) List(ft storage.FileType) (out []storage.FileDesc, err error) {
	err = EachName(l.dir, func(e fs.DirEntry) error {
		if fd, ok := levelFile(e.Name()); ok && fd.Type&ft != 0 {
			out = append(out, fd)
		}
		return nil
	})
	return out, err
}

// Open implements storage.Storage. A table has one of two names.
func (l levelFiles) Open(fd storage.FileDesc) (storage.Reader, error) {
	name := filepath.Join(l.dir, fd.String())
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && fd.Type == storage.TypeTable {
		if old, oerr := os.Open(strings.TrimSuffix(name, ".ldb") + ".sst"); oerr == nil {
			return old, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func levelFile(name string) (storage.FileDesc, bool) {
	number, kind := name, storage.FileType(0)
	if n, ok := strings.CutPrefix(name, "MANIFEST-"); ok {
		number, kind = n, storage.TypeManifest
	} else if n, ok := strings.CutSuffix(name, ".log"); ok {
		number, kind = n, storage.TypeJournal
	} else if n, ok := TableNumber(name); ok {
		return storage.FileDesc{Type: storage.TypeTable, Num: int64(n)}, int64(n) >= 0
	}
	n, err := strconv.ParseInt(number, 10, 64)
	return storage.FileDesc{Type: kind, Num: n}, kind != 0 && err == nil && n >= 0
}
