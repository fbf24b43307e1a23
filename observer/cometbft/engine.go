package cometbft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Engine is what writes the files of a directory.
type Engine string

// The engines that are recognised. Unknown files are copied.
const (
	GoLevelDB Engine = "goleveldb"
	Pebble    Engine = "pebble"
	RocksDB   Engine = "rocksdb"
	Badger    Engine = "badger"
	Bolt      Engine = "bolt" // one plain file, not a directory
	WAL       Engine = "wal"  // CometBFT's consensus log
	Unknown   Engine = ""
)

// marks collects what the names of a directory tell about its engine. Names
// decide, never an extension alone: badger has .sst files too, and truncates
// them before it removes them, so a link to one becomes empty.
type marks struct{ badger, rocks, pebble, level bool }

func (m *marks) see(name string) {
	switch {
	case name == "KEYREGISTRY", name == "DISCARD", strings.HasSuffix(name, ".vlog"), strings.HasSuffix(name, ".mem"):
		m.badger = true
	case name == "IDENTITY":
		m.rocks = true
	case strings.HasPrefix(name, "marker."), strings.HasPrefix(name, "OPTIONS-"):
		m.pebble = true
	case name == "CURRENT":
		m.level = true
	}
}

// engine decides in the order in which the engines share files: rocksdb and
// pebble have OPTIONS-* and CURRENT as well.
func (m marks) engine() Engine {
	switch {
	case m.badger:
		return Badger
	case m.rocks:
		return RocksDB
	case m.pebble:
		return Pebble
	case m.level:
		return GoLevelDB
	default:
		return Unknown
	}
}

// detect recognises the engine of a directory.
func detect(dir string) (Engine, error) {
	var m marks
	err := eachName(dir, func(e fs.DirEntry) error {
		if !e.IsDir() {
			m.see(e.Name())
		}
		return nil
	})
	return m.engine(), err
}

// eachName calls f for the names of a directory, unsorted, without holding all
// of them: a goleveldb of 8 TB has four million.
func eachName(dir string, f func(fs.DirEntry) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.ReadDir(1024)
		for _, e := range names {
			if err := f(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// linkable tells whether nobody writes a file of this engine again once it has
// its name. Everything else is cloned or copied. head is the name of the
// consensus log's head file.
func (e Engine) linkable(name, head string) bool {
	switch e {
	case GoLevelDB:
		return isTable(name, ".ldb")
	case Pebble, RocksDB:
		return isTable(name, ".sst")
	case WAL: // rotated by rename, afterwards only deleted
		n, ok := strings.CutPrefix(name, head+".")
		return ok && len(n) >= 3 && allDigits(n)
	default:
		return false
	}
}

func isTable(name, ext string) bool {
	n, ok := strings.CutSuffix(name, ext)
	return ok && allDigits(n)
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// isBolt recognises a bolt file by the magic number of its first or second page.
// The page size is not known, so the usual ones are tried for the second.
func isBolt(file string) (bool, error) {
	const magic, at = 0xED0CDAED, 16
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for _, page := range []int64{0, 4 << 10, 16 << 10, 64 << 10} {
		var b [4]byte
		if _, err := f.ReadAt(b[:], page+at); err != nil {
			if errors.Is(err, io.EOF) {
				return false, nil
			}
			return false, err
		}
		if binary.NativeEndian.Uint32(b[:]) == magic {
			return true, nil
		}
	}
	return false, nil
}

// ErrInUse is returned when a database is open in another process: the node is
// not down.
var ErrInUse = errors.New("the database is open in another process: the node is not down")

// dbLock holds a database as its engine would, so that nobody opens it.
type dbLock struct{ f *os.File }

// lockDB takes the lock of a database. A database without a lock file was not
// opened since it was made, and none is made for it: lock is then nil.
func lockDB(d Database) (lock *dbLock, err error) {
	file, flags := filepath.Join(d.Path, "LOCK"), os.O_RDWR
	switch d.Engine {
	case GoLevelDB, Pebble, RocksDB:
	case Badger: // locks the directory itself
		file, flags = d.Path, os.O_RDONLY|unix.O_DIRECTORY
	case Bolt:
		file = d.Path
	default:
		return nil, nil
	}
	f, err := os.OpenFile(file, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, hint.Add(fmt.Errorf("lock %s: %w", d.Name, err), "run eddy as the node's user"+ownerOf(file))
	}
	if d.Engine == Pebble || d.Engine == RocksDB {
		// An open-file-description lock meets the engine's F_SETLK lock, but is not
		// lost when this process closes another descriptor of the same file.
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
	} else {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
			return nil, hint.Add(fmt.Errorf("%s: %w", d.Name, ErrInUse), "see that replica.control stops the node that uses this home")
		}
		return nil, fmt.Errorf("lock %s: %w", d.Name, err)
	}
	return &dbLock{f}, nil
}

// release gives the lock up: closing the only descriptor does.
func (l *dbLock) release() error { return l.f.Close() }
