package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/hint"
)

// The fixed numbers of format 1; FORMAT.md has the boxes.
const (
	indexMagic = 0x184D2A50 // skippable frame of the index
	seekMagic  = 0x184D2A5E // skippable frame of the seek table (zstd contrib/seekable_format)
	seekFooter = 0x8F92EAB1
	tailLen    = 64
	footerLen  = 9
	seekEntry  = 8

	maxIndexRaw  = 16 << 30 // bytes of NDJSON; beyond it somebody lies
	maxIndexLine = 8 << 20  // one frame's line: 256 entries with paths of 4 KiB in base64
	maxFrameLen  = 2*frameContent + 1<<20
)

var tailMagic = [8]byte{'E', 'D', 'D', 'Y', 'I', 'D', 'X', '1'}

// IndexHeader is the first line of an index.
type IndexHeader struct {
	Format    int    `json:"format"`
	MinReader int    `json:"min_reader"`
	Archive   string `json:"archive"`
	Volume    int    `json:"volume"`
	Last      bool   `json:"last"` // the archive ends with this volume
	Roots     []Root `json:"roots"`
	Producer  string `json:"producer"`
}

// IndexFrame is one frame of a volume.
type IndexFrame struct {
	ID      string       `json:"id"`  // sha256 of what it decodes to, hex
	Off     int64        `json:"off"` // in the volume, bytes
	CLen    int          `json:"clen"`
	ULen    int          `json:"ulen"`
	CRC     string       `json:"crc64nvme"` // of the stored bytes, 16 hex digits
	Born    time.Time    `json:"born"`      // when these bytes were last read from a source
	Entries []IndexEntry `json:"entries,omitempty"`
}

// IndexEntry is a name, or a further piece of a file, in a frame.
type IndexEntry struct {
	Type    Type   `json:"type"`
	Path    string `json:"path,omitempty"`
	PathB64 []byte `json:"path_b64,omitempty"` // instead of path, where the name is no UTF-8
	Size    int64  `json:"size,omitempty"`     // of the whole file
	Off     int64  `json:"off,omitempty"`      // of this piece in the file
	Len     int64  `json:"len,omitempty"`      // of this piece
	Mode    uint32 `json:"mode"`
	MTimeNS int64  `json:"mtime_ns"`
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	SHA256  string `json:"sha256,omitempty"` // of the whole file, at its last piece
	Link    string `json:"link,omitempty"`
	LinkB64 []byte `json:"link_b64,omitempty"`
	Sparse  bool   `json:"sparse,omitempty"`
}

func indexEntry(p piecePlan) IndexEntry {
	e := p.entry
	x := IndexEntry{
		Type: e.Type, Path: e.Name, Size: e.Size, Off: p.off, Len: p.n, Mode: e.Mode,
		MTimeNS: e.MTime.UnixNano(), UID: e.UID, GID: e.GID, Link: e.Link, Sparse: e.Sparse,
	}
	if !utf8.ValidString(x.Path) {
		x.Path, x.PathB64 = "", []byte(e.Name)
	}
	if !utf8.ValidString(x.Link) {
		x.Link, x.LinkB64 = "", []byte(e.Link)
	}
	return x
}

// entry is what the header of the file was made from.
func (x IndexEntry) entry() Entry {
	e := Entry{
		Type: x.Type, Name: x.Path, Size: x.Size, Mode: x.Mode, MTime: time.Unix(0, x.MTimeNS),
		UID: x.UID, GID: x.GID, Link: x.Link, Sparse: x.Sparse,
	}
	if x.PathB64 != nil {
		e.Name = string(x.PathB64)
	}
	if x.LinkB64 != nil {
		e.Link = string(x.LinkB64)
	}
	return e
}

// indexWriter gathers a volume's index, compressed as it grows: forty bytes for each
// file, which are mostly its hash.
type indexWriter struct {
	buf  pieces
	enc  *zstd.Encoder
	raw  int64
	seek seekTable
}

func newIndexWriter(h IndexHeader) (*indexWriter, error) {
	w := &indexWriter{buf: pieces{hash: sha256.New(), all: [][]byte{make([]byte, 8)}}} // the frame's own header
	var err error
	if w.enc, err = zstd.NewWriter(&w.buf, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20)); err != nil {
		return nil, err
	}
	return w, w.line(h)
}

func (w *indexWriter) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.raw += int64(len(b)) + 1
	_, err = w.enc.Write(append(b, '\n'))
	return err
}

func (w *indexWriter) frame(f IndexFrame) error {
	w.seek.add(f)
	return w.line(f)
}

// seekTable is the table of the zstd seekable format.
type seekTable struct {
	entries []byte
	count   uint32
}

func (t *seekTable) add(f IndexFrame) {
	t.entries = binary.LittleEndian.AppendUint32(t.entries, uint32(f.CLen))
	t.entries = binary.LittleEndian.AppendUint32(t.entries, uint32(f.ULen))
	t.count++
}

// frame is the skippable frame.
func (t *seekTable) frame() []byte {
	b := binary.LittleEndian.AppendUint32(nil, seekMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.entries)+footerLen))
	b = append(b, t.entries...)
	b = binary.LittleEndian.AppendUint32(b, t.count)
	b = append(b, 0) // no checksums: every frame has its own
	return binary.LittleEndian.AppendUint32(b, seekFooter)
}

// finish returns the skippable frame of the index, in pieces, with its sha256, and
// that of the seek table.
func (w *indexWriter) finish() (index [][]byte, sum string, seek []byte, err error) {
	if err := w.enc.Close(); err != nil {
		return nil, "", nil, err
	}
	h, index := w.buf.hash.Sum(nil), w.buf.all
	binary.LittleEndian.PutUint32(index[0], indexMagic)
	binary.LittleEndian.PutUint32(index[0][4:], uint32(w.buf.n+tailLen))
	last := &index[len(index)-1]
	*last = binary.LittleEndian.AppendUint64(*last, uint64(w.buf.n))
	*last = binary.LittleEndian.AppendUint64(*last, uint64(w.raw))
	*last = append(*last, h...)
	*last = binary.LittleEndian.AppendUint32(*last, formatVersion)
	*last = binary.LittleEndian.AppendUint32(*last, 0) // reserved
	*last = append(*last, tailMagic[:]...)
	return index, hex.EncodeToString(h), w.seek.frame(), nil
}

// pieces gathers bytes without ever moving many: one buffer that grows would take
// three times what it holds, and of a million files it holds forty megabytes.
type pieces struct {
	all  [][]byte
	n    int64
	hash hash.Hash // of all that was written
}

const indexPiece = 1 << 20 // bytes

// Write implements io.Writer.
func (p *pieces) Write(b []byte) (int, error) {
	p.hash.Write(b)
	p.n += int64(len(b))
	for rest := b; len(rest) > 0; {
		last := &p.all[len(p.all)-1]
		n := min(len(rest), indexPiece-len(*last))
		*last = append(*last, rest[:n]...)
		if rest = rest[n:]; len(*last) == indexPiece {
			p.all = append(p.all, make([]byte, 0, indexPiece+tailLen))
		}
	}
	return len(b), nil
}

// VolumeSource is a volume to read from: a file, an object, anything that gives
// ranges. Open's reader fails with io.ErrUnexpectedEOF rather than end early.
type VolumeSource struct {
	Name string
	Size int64
	Open func(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

func (v VolumeSource) corrupt(format string, args ...any) error {
	return hint.Add(fmt.Errorf("%w: %s: %s", ErrCorrupt, v.Name, fmt.Sprintf(format, args...)),
		"what is stored is not what was sent; restore another backup")
}

// read reads a range whole. A volume that ends before is cut short.
func (v VolumeSource) read(ctx context.Context, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off+n > v.Size {
		return nil, v.corrupt("it is cut short")
	}
	r, err := v.Open(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	defer r.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, v.readError(err)
	}
	return b, nil
}

func (v VolumeSource) readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return v.corrupt("it is cut short")
	}
	return fmt.Errorf("read %s: %w", v.Name, err)
}

// Index is the index of one volume. It holds the compressed lines only.
type Index struct {
	Header IndexHeader
	SHA256 string // of the compressed lines, hex; the manifest names it
	Data   int64  // bytes of data frames: where the index begins

	vol        VolumeSource
	compressed []byte
	raw        int64
	framed     [3][]byte // all that follows the frames, as it was read; the seek table once Check has
}

// ReadIndex reads a volume's index from its end, by three ranged reads. Every
// length is bounded before anything is allocated.
func ReadIndex(ctx context.Context, v VolumeSource) (*Index, error) {
	foot, err := v.read(ctx, v.Size-footerLen, footerLen)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(foot[5:]) != seekFooter {
		return nil, v.corrupt("it does not end in a seek table: cut short, or no archive of eddy")
	}
	table := int64(binary.LittleEndian.Uint32(foot))*seekEntry + footerLen
	indexEnd := v.Size - table - 8
	tail, err := v.read(ctx, indexEnd-tailLen, tailLen)
	if err != nil {
		return nil, err
	}
	if [8]byte(tail[tailLen-8:]) != tailMagic {
		return nil, v.corrupt("it has no index")
	}
	if got := binary.LittleEndian.Uint32(tail[48:]); got > formatVersion {
		return nil, hint.Add(fmt.Errorf("%s: format %d is newer than this eddy", v.Name, got), "use a newer eddy; stock tools restore it too: zstd -dc | tar x")
	}
	clen, raw := int64(binary.LittleEndian.Uint64(tail)), int64(binary.LittleEndian.Uint64(tail[8:]))
	if clen < 0 || clen > indexEnd-tailLen-8 || raw < 0 || raw > maxIndexRaw || binary.LittleEndian.Uint32(tail[52:]) != 0 {
		return nil, v.corrupt("its index has impossible lengths")
	}
	whole, err := v.read(ctx, indexEnd-tailLen-clen-8, clen+8)
	if err != nil {
		return nil, err
	}
	body := whole[8:]
	sum := sha256.Sum256(body)
	if [32]byte(tail[16:48]) != sum {
		return nil, v.corrupt("its index has another hash than it says")
	}
	if binary.LittleEndian.Uint32(whole) != indexMagic || int64(binary.LittleEndian.Uint32(whole[4:])) != clen+tailLen {
		return nil, v.corrupt("its index is not framed as it should be")
	}
	x := &Index{SHA256: hex.EncodeToString(sum[:]), Data: indexEnd - tailLen - clen - 8, vol: v, compressed: body, raw: raw, framed: [3][]byte{whole, tail}}
	for line, err := range x.lines() {
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(line, &x.Header); err != nil {
			return nil, v.corrupt("its index begins with no header: %v", err)
		}
		break
	}
	if x.Header.MinReader > formatVersion {
		return nil, hint.Add(fmt.Errorf("%s: it needs a reader of format %d", v.Name, x.Header.MinReader), "use a newer eddy; stock tools restore it too: zstd -dc | tar x")
	}
	return x, nil
}

func (x *Index) lines() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		d, err := zstd.NewReader(bytes.NewReader(x.compressed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			yield(nil, err)
			return
		}
		defer d.Close()
		sc := bufio.NewScanner(io.LimitReader(d, x.raw+1))
		sc.Buffer(make([]byte, 0, 64<<10), maxIndexLine)
		read := int64(0)
		for sc.Scan() {
			read += int64(len(sc.Bytes())) + 1
			if !yield(sc.Bytes(), nil) {
				return
			}
		}
		if err := sc.Err(); err != nil || read != x.raw {
			yield(nil, x.vol.corrupt("its index has %d bytes, it says %d (%v)", read, x.raw, err))
		}
	}
}

// Frames yields the frames of the volume in order, each checked to lie where the
// one before ended.
func (x *Index) Frames() iter.Seq2[IndexFrame, error] {
	return func(yield func(IndexFrame, error) bool) {
		first, off := true, int64(0)
		for line, err := range x.lines() {
			if err != nil {
				yield(IndexFrame{}, err)
				return
			}
			if first {
				first = false
				continue
			}
			var f IndexFrame
			if err := json.Unmarshal(line, &f); err != nil {
				yield(f, x.vol.corrupt("a line of its index: %v", err))
				return
			}
			if f.Off != off || f.CLen <= 0 || f.CLen > maxFrameLen || f.ULen <= 0 || f.ULen > maxFrameLen {
				yield(f, x.vol.corrupt("its index puts a frame of %d bytes at %d, expected at %d", f.CLen, f.Off, off))
				return
			}
			off += int64(f.CLen)
			if !yield(f, nil) {
				return
			}
		}
		if off != x.Data {
			yield(IndexFrame{}, x.vol.corrupt("its index describes %d bytes of frames, there are %d", off, x.Data))
		}
	}
}
