package cometbft

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// Engine is what writes the files of a directory.
type Engine = engine.Engine

// The engines that are recognised. Unknown files are copied.
const (
	GoLevelDB = engine.GoLevelDB
	Pebble    = engine.Pebble
	RocksDB   = engine.RocksDB
	Badger    = engine.Badger
	Bolt      = engine.Bolt
	WAL       = engine.WAL
	Unknown   = engine.Unknown
)

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
