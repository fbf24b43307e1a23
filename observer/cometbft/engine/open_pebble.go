//go:build pebbledb

package engine

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cockroachdb/pebble"
	"github.com/cockroachdb/pebble/vfs"
)

// CanOpen tells which engines this program can open.
func CanOpen(e Engine) bool { return e == GoLevelDB || e == Pebble }

func openPebble(dir string) (DB, error) {
	c := pebble.NewCache(cache)
	defer c.Unref() // the database has its own
	db, err := pebble.Open(dir, &pebble.Options{
		ReadOnly: true, ErrorIfNotExists: true, Logger: silent{}, FS: readOnlyFS{vfs.Default},
		Cache: c, MaxOpenFiles: 64,
	})
	if err != nil {
		if strings.Contains(err.Error(), "format major version") {
			err = fmt.Errorf("%w: %w", ErrNewer, err)
		}
		return nil, err
	}
	return pebbleDB{db}, nil
}

type pebbleDB struct{ db *pebble.DB }

func (p pebbleDB) Get(key []byte) ([]byte, error) {
	v, closer, err := p.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	value := clone(v)
	return value, closer.Close()
}

func (p pebbleDB) Each(from, to []byte, visit func(key, value []byte) error) (err error) {
	it, err := p.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := visit(it.Key(), value); err != nil {
			return err
		}
	}
	return it.Error()
}

func (p pebbleDB) Close() error { return p.db.Close() }

// readOnlyFS makes no file and takes no lock: pebble makes a LOCK even for one who
// only reads.
type readOnlyFS struct{ vfs.FS }

type unlockedFile struct{}

func (unlockedFile) Close() error { return nil }

func (readOnlyFS) Lock(string) (io.Closer, error) { return unlockedFile{}, nil }

func (readOnlyFS) Create(string) (vfs.File, error) { return nil, errReadOnly }

func (readOnlyFS) OpenReadWrite(string, ...vfs.OpenOption) (vfs.File, error) { return nil, errReadOnly }

func (readOnlyFS) ReuseForWrite(_, _ string) (vfs.File, error) { return nil, errReadOnly }
func (readOnlyFS) Link(_, _ string) error                      { return errReadOnly }
func (readOnlyFS) Rename(_, _ string) error                    { return errReadOnly }
func (readOnlyFS) Remove(string) error                         { return errReadOnly }
func (readOnlyFS) RemoveAll(string) error                      { return errReadOnly }

// silent is a logger for an engine: what matters comes back as an error. Fatalf
// must not return.
type silent struct{}

func (silent) Infof(string, ...any) {}

func (silent) Errorf(string, ...any) {}

func (silent) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
