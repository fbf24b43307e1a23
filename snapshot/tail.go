package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/hint"
)

// CheckTail reads what follows a stored volume's frames, by ranged reads, and
// compares it with what was sent: the index by its sha256, and the seek table, of
// which everything stands in the index. A difference is ErrCorrupt.
func CheckTail(ctx context.Context, v VolumeSource, indexSHA256 string) error {
	x, err := ReadIndex(ctx, v)
	if err != nil {
		return err
	}
	return x.Check(ctx, indexSHA256)
}

// Check compares an index that was read with the sha256 that it was sent with, and
// reads the seek table behind it. A difference is ErrCorrupt.
func (x *Index) Check(ctx context.Context, sha256 string) error {
	v := x.vol
	wrong := func(format string, args ...any) error {
		return hint.Add(fmt.Errorf("%w: %s: %s", ErrCorrupt, v.Name, fmt.Sprintf(format, args...)), "the store has other bytes than were sent; back up again")
	}
	if x.SHA256 != sha256 {
		return wrong("its index has sha256 %.12s, the one that was sent %.12s", x.SHA256, sha256)
	}
	var t seekTable
	for f, err := range x.Frames() {
		if err != nil {
			return err
		}
		t.add(f)
	}
	want := t.frame()
	got, err := v.read(ctx, v.Size-int64(len(want)), int64(len(want)))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return wrong("its seek table is not the one of its index")
	}
	x.framed[2] = got
	return nil
}

// CRC is the CRC64NVME of the whole volume by arithmetic, from those of the frames
// that the index names, and from what follows them. Check comes before.
func (x *Index) CRC() (uint64, error) {
	var sum uint64
	for f, err := range x.Frames() {
		if err != nil {
			return 0, err
		}
		one, err := strconv.ParseUint(f.CRC, 16, 64)
		if err != nil {
			return 0, x.vol.corrupt("its index has an impossible checksum %.20q", f.CRC)
		}
		sum = crc.Combine(sum, one, int64(f.CLen))
	}
	for _, b := range x.framed {
		sum = crc.Combine(sum, crc.NVME(b), int64(len(b)))
	}
	return sum, nil
}
