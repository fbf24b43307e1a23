package engine

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// ErrNewer is returned by Open for a database that a newer engine has written
// than this program has.
var ErrNewer = errors.New("written by a newer engine")

// DB is a database that is read and never changed. Checksums are verified of all
// that is read. An engine may panic over files that are damaged.
type DB interface {
	// Get returns the value of a key, nil where there is none.
	Get(key []byte) ([]byte, error)
	// Each visits the pairs with from <= key < to in order until visit returns an
	// error, which it returns. nil stands for the beginning and for the end. Key and
	// value are visit's until it returns.
	Each(from, to []byte, visit func(key, value []byte) error) error
	// Close closes it; nothing may be asked afterwards.
	Close() error
}

// Open opens a database that lies in a directory. It makes no file, not even a
// lock. CanOpen must hold for the engine.
func Open(e Engine, dir string) (DB, error) {
	switch {
	case e == GoLevelDB:
		return openGoLevelDB(dir)
	case CanOpen(e):
		return openPebble(dir)
	default:
		return nil, fmt.Errorf("this eddy cannot open %s", e)
	}
}

type levelDB struct{ db *leveldb.DB }

// cache bounds what an open database keeps of its tables, bytes.
const cache = 8 << 20

func openGoLevelDB(dir string) (DB, error) {
	db, err := leveldb.Open(levelFiles{dir}, &opt.Options{
		ReadOnly: true, ErrorIfMissing: true, Strict: opt.StrictAll,
		BlockCacheCapacity: cache, OpenFilesCacheCapacity: 64,
	})
	if err != nil {
		return nil, err
	}
	return levelDB{db}, nil
}

func (l levelDB) Get(key []byte) ([]byte, error) {
	value, err := l.db.Get(key, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, nil
	}
	if value == nil && err == nil {
		value = []byte{}
	}
	return value, err
}

func (l levelDB) Each(from, to []byte, visit func(key, value []byte) error) error {
	it := l.db.NewIterator(&util.Range{Start: from, Limit: to}, &opt.ReadOptions{DontFillCache: true, Strict: opt.StrictAll})
	defer it.Release()
	for it.Next() {
		if err := visit(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}

func (l levelDB) Close() error { return l.db.Close() }

// clone keeps the difference between no value and an empty one.
func clone(b []byte) []byte {
	if len(b) == 0 {
		return []byte{}
	}
	return bytes.Clone(b)
}
