// Package engine is what is known of the databases that nodes of chains keep
// their state in: which engine wrote a directory, which of its files nobody
// writes again, which tables its MANIFEST names, and how to read it.
//
// It refuses to know what the keys mean. Its invariant: nothing here changes a
// file or makes one. A database is opened without its lock, so whoever opens one
// must know that nobody writes it.
package engine

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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

// Marks collects what the names of a directory tell about its engine. Names
// decide, never an extension alone: badger has .sst files too, and truncates
// them before it removes them, so a link to one becomes empty.
type Marks struct{ badger, rocks, pebble, level bool }

// See takes in the name of a file.
func (m *Marks) See(name string) {
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

// Engine decides in the order in which the engines share files: rocksdb and
// pebble have OPTIONS-* and CURRENT as well.
func (m Marks) Engine() Engine {
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

// Detect recognises the engine of a directory.
func Detect(dir string) (Engine, error) {
	var m Marks
	err := EachName(dir, func(e fs.DirEntry) error {
		if !e.IsDir() {
			m.See(e.Name())
		}
		return nil
	})
	return m.Engine(), err
}

// EachName calls f for the names of a directory, unsorted, without holding all
// of them: a goleveldb of 8 TB has four million.
func EachName(dir string, f func(fs.DirEntry) error) error {
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

// Linkable tells whether nobody writes a file of this engine again once it has
// its name. Everything else is cloned or copied. head is the name of the
// consensus log's head file.
func (e Engine) Linkable(name, head string) bool {
	switch e {
	case GoLevelDB:
		return tableOf(name, ".ldb")
	case Pebble, RocksDB:
		return tableOf(name, ".sst")
	case WAL: // rotated by rename, afterwards only deleted
		n, ok := strings.CutPrefix(name, head+".")
		return ok && len(n) >= 3 && allDigits(n)
	default:
		return false
	}
}

func tableOf(name, ext string) bool {
	n, ok := strings.CutSuffix(name, ext)
	return ok && allDigits(n)
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// BoltHead is how much of a file's beginning IsBolt reads, bytes.
const BoltHead = 64<<10 + 20

// IsBolt recognises a bolt file by the magic number of its first or second page.
// The page size is not known, so the usual ones are tried for the second.
func IsBolt(file string) (bool, error) {
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

// TableNumber is the number of a table by its name.
func TableNumber(name string) (uint64, bool) {
	for _, ext := range []string{".ldb", ".sst"} {
		if tableOf(name, ext) {
			n, err := strconv.ParseUint(strings.TrimSuffix(name, ext), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
