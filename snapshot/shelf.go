package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"time"
)

const (
	// shelfFrames is how many frames a shelf holds at most: 32 MiB of memory, some
	// 4 TiB of large files, 1 TiB of files of 2 MiB. What is beyond is sent again.
	shelfFrames = 500_000
	// bornKept is how long bytes may be handed on from archive to archive. Later
	// they are read from a source and encoded anew: what has rotted in a store must
	// not live for ever.
	bornKept = 30 * 24 * time.Hour
	// bornAhead is how far a clock may be wrong that said when a frame was born.
	bornAhead = time.Hour
)

// StoredAt is where a frame's stored bytes begin, in a volume of an earlier archive
// by the number under which Shelf.Add got it.
type StoredAt struct {
	Volume int
	Off    int64
}

// Shelf holds the frames of earlier volumes, so that a frame that is read now and
// decodes to the same bytes need not be encoded. All of them were made by the
// encoder and the level that the new archive is made with: a frame that cannot be
// had from its place after all is encoded again, and must be the same bytes.
//
// It is filled first, and then asked from many goroutines.
type Shelf struct {
	frames []shelved // in the order of their IDs, once it is asked
	max    int       // 0: shelfFrames; less in tests
}

type shelved struct {
	id         [sha256.Size]byte
	off        int64
	crc        uint64
	born       int64 // Unix seconds
	volume     int32
	clen, ulen int32
}

// Add puts the frames of a volume on the shelf, under a number. Of equal frames
// the first that was added counts. It returns how many it took: none that are
// older than 30 days, and none beyond the shelf's size.
func (s *Shelf) Add(x *Index, volume int, now time.Time) (n int, err error) {
	most := shelfFrames
	if s.max > 0 {
		most = s.max
	}
	for f, err := range x.Frames() {
		if err != nil {
			return n, err
		}
		if age := now.Sub(f.Born); age < -bornAhead || age > bornKept {
			continue
		}
		if len(s.frames) == most {
			break
		}
		id, err := hex.DecodeString(f.ID)
		sum, cerr := strconv.ParseUint(f.CRC, 16, 64)
		if err != nil || len(id) != sha256.Size || cerr != nil {
			return n, x.vol.corrupt("its index has a frame with the ID %.80q and the checksum %.40q", f.ID, f.CRC)
		}
		s.frames = append(s.frames, shelved{
			id: [sha256.Size]byte(id), off: f.Off, crc: sum, born: f.Born.Unix(), volume: int32(volume), clen: int32(f.CLen), ulen: int32(f.ULen),
		})
		n++
	}
	return n, nil
}

// Seal ends the filling.
func (s *Shelf) Seal() {
	slices.SortStableFunc(s.frames, func(a, b shelved) int { return bytes.Compare(a.id[:], b.id[:]) })
	s.frames = slices.CompactFunc(s.frames, func(a, b shelved) bool { return a.id == b.id })
}

// find looks for a frame of ulen decoded bytes. A nil shelf is empty.
func (s *Shelf) find(id [sha256.Size]byte, ulen int) (shelved, bool) {
	if s == nil {
		return shelved{}, false
	}
	i, ok := slices.BinarySearchFunc(s.frames, id, func(f shelved, id [sha256.Size]byte) int { return bytes.Compare(f.id[:], id[:]) })
	if !ok || int(s.frames[i].ulen) != ulen {
		return shelved{}, false
	}
	return s.frames[i], true
}
