package uploader

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

const journalFormat = 1

// journalHead is the first line of an upload journal: which upload it is of.
type journalHead struct {
	Format    int               `json:"format"`
	MinReader int               `json:"min_reader"`
	Store     string            `json:"store"` // URL
	Endpoint  string            `json:"endpoint,omitempty"`
	Key       string            `json:"key"`
	UploadID  string            `json:"upload_id"` // file store: the temporary file's name
	PartSize  int64             `json:"part_size"`
	Plain     bool              `json:"plain,omitempty"` // begun without a checksum, so that parts can be copied
	Identity  map[string]string `json:"identity,omitempty"`
}

// same tells whether both are of the same bytes on their way to the same place.
func (h journalHead) same(o journalHead) bool {
	return h.Store == o.Store && h.Endpoint == o.Endpoint && h.Key == o.Key && h.PartSize == o.PartSize && maps.Equal(h.Identity, o.Identity)
}

// journalPart is a line: a part that is about to be sent, and the pieces that
// end in it.
type journalPart struct {
	Part int32  `json:"part"` // from 1, without gaps
	Off  int64  `json:"off"`
	Len  int64  `json:"len"`
	CRC  string `json:"crc64nvme,omitempty"` // base64; none of a part that the store copies
	// Copy names the object that the store copies the part from.
	Copy   string         `json:"copy,omitempty"`
	Proof  *proof         `json:"proof,omitempty"` // of such a part
	Pieces []journalPiece `json:"pieces,omitempty"`
	// Open is the piece that goes on in the next part, as far as it has come.
	Open *journalOpen `json:"open,omitempty"`
}

type journalPiece struct {
	ID     string          `json:"id,omitempty"`
	Len    int64           `json:"len"` // stored bytes
	CRC    string          `json:"crc64nvme"`
	Record json.RawMessage `json:"record,omitempty"`
}

type journalOpen struct {
	Len int64  `json:"len"`
	CRC string `json:"crc64nvme"` // of these bytes
}

// journalMore is a line of pieces that end in a part whose own line comes later, and
// counts only with that.
type journalMore struct {
	Part int32          `json:"part"`
	More []journalPiece `json:"more"`
}

// journalNote is a line of another kind.
type journalNote struct {
	// Ack: the store has the part Ack, and calls it ETag. Such a line is not made
	// durable: without it a part is sent again at worst.
	Ack  int32  `json:"ack,omitempty"`
	ETag string `json:"etag,omitempty"`
	// Sent is the checksum of a part that was to be copied, and had to be sent.
	Sent string `json:"sent,omitempty"`
	// Done: all parts are stored, and will be made an object of this size.
	Done *journalDone `json:"done,omitempty"`
}

type journalDone struct {
	Size int64  `json:"size"`
	CRC  string `json:"crc64nvme"`
}

func lineOf(p part) journalPart {
	l := journalPart{Part: p.number, Off: p.off, Len: p.len, Pieces: p.pieces, Open: p.open}
	if p.from != nil {
		l.Copy, l.Proof = p.from.Key, p.proof
	} else {
		l.CRC = crc.Base64(p.crc)
	}
	return l
}

// journal is the append-only record of one upload. A part's line is durable
// before the part is sent, so that after a crash bucket and journal together say
// what was done. The uploads of a probe have none: nil.
type journal struct {
	mu sync.Mutex // parts are acknowledged while others are noted
	f  *fsx.File
}

// createJournal begins a journal; path must not exist.
func createJournal(fsys fsx.FS, path string, h journalHead) (*journal, error) {
	h.Format, h.MinReader = journalFormat, journalFormat
	f, err := fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("upload journal: %w", err)
	}
	j := &journal{f: f}
	if err := errors.Join(j.append(h), fsys.SyncDir(filepath.Dir(path))); err != nil {
		return nil, errors.Join(err, f.Close(), fsys.Remove(path))
	}
	return j, nil
}

// append writes a line and makes it durable.
func (j *journal) append(v any) error {
	if err := j.say(v); err != nil || j == nil {
		return err
	}
	if err := j.f.SyncData(); err != nil {
		return fmt.Errorf("upload journal: %w", err)
	}
	return nil
}

// say writes a line that may be lost.
func (j *journal) say(v any) error {
	if j == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("upload journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("upload journal: %w", err)
	}
	return nil
}

// more writes pieces of a part that is noted later. The part's line makes them durable.
func (j *journal) more(part int32, pieces []journalPiece) error {
	return j.say(journalMore{Part: part, More: pieces})
}

// close keeps the journal: every line that counts is durable already.
func (j *journal) close() { j.f.Close() }

// earlier is what a journal knows of an upload that was not ended.
type earlier struct {
	head  journalHead
	parts []priorPart
	done  *journalDone
	// finished: the store has made them the object that done describes.
	finished bool

	path  string
	valid int64 // bytes of the journal that are whole lines in order
}

// priorPart is a part of an earlier run.
type priorPart struct {
	off, len int64
	crc      string // "" where the store copied it
	copied   bool
	proof    *proof // of a part that was copied
	open     *journalOpen
	etag     string // as the store acknowledged it, "" where it was not heard
	stored   bool   // the store has it: what it lists and the journal agree
}

// readJournal reads a journal, fs.ErrNotExist where there is none or as good as
// none.
func readJournal(path string) (*earlier, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	e := &earlier{path: path}
	return e, e.parse(f, nil)
}

// goOn opens the journal behind its last whole line.
func (e *earlier) goOn(fsys fsx.FS) (*journal, error) {
	f, err := fsys.OpenFile(e.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("upload journal: %w", err)
	}
	if err := f.Truncate(e.valid); err != nil {
		return nil, errors.Join(fmt.Errorf("upload journal: %w", err), f.Close())
	}
	return &journal{f: f}, nil
}

// pieces yields what the parts were made of, in order. They are read from the
// journal again: there may be very many.
func (e *earlier) pieces() iter.Seq2[Sent, error] {
	return func(yield func(Sent, error) bool) {
		f, err := os.Open(e.path)
		if err != nil {
			yield(Sent{}, err)
			return
		}
		defer f.Close()
		again := &earlier{}
		err = again.parse(io.LimitReader(f, e.valid), func(p journalPiece) error {
			sum, err := crc.FromBase64(p.CRC)
			if err != nil {
				return fmt.Errorf("upload journal: %w", err)
			}
			if !yield(Sent{ID: p.ID, Len: p.Len, CRC: sum, Record: p.Record}, nil) {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(Sent{}, err)
		}
	}
}

// errEnough: the consumer wants no more.
var errEnough = errors.New("enough")

// maxJournalLine bounds a line: it has at most maxHeld of records, and one more.
const maxJournalLine = 64 * mib

// parse reads the head and as many lines as are whole and follow each other. What
// comes after is what a crash has torn: those parts count as not sent. A journal
// without a whole head is as good as none, fs.ErrNotExist: its upload has no part
// yet. each, where set, gets every piece.
func (e *earlier) parse(r io.Reader, each func(journalPiece) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxJournalLine)
	sc.Split(wholeLines)
	h := &e.head
	if !sc.Scan() || json.Unmarshal(sc.Bytes(), h) != nil {
		if err := sc.Err(); err != nil {
			return fmt.Errorf("upload journal: %w", err)
		}
		return fmt.Errorf("upload journal: no whole first line: %w", fs.ErrNotExist)
	}
	if h.MinReader > journalFormat {
		return hint.Add(fmt.Errorf("upload journal: written by a newer eddy (min_reader %d)", h.MinReader),
			"use that version, or remove the journal and leave the upload to the bucket's lifecycle rule")
	}
	if h.Key == "" || h.UploadID == "" {
		return fmt.Errorf("upload journal: no upload in the first line: %w", fs.ErrNotExist)
	}
	e.valid = int64(len(sc.Bytes())) + 1
	ahead := int64(0) // bytes of lines that count only with a part that is to come
	for sc.Scan() {
		var l struct {
			journalPart
			journalNote
			More []journalPiece `json:"more"`
		}
		if json.Unmarshal(sc.Bytes(), &l) != nil {
			return nil
		}
		line := int64(len(sc.Bytes())) + 1
		switch {
		case l.More != nil:
			if int(l.Part) != len(e.parts)+1 || !whole(l.More) {
				return nil
			}
			if err := tell(each, l.More); err != nil {
				return err
			}
			ahead += line
			continue
		case l.Done != nil:
			e.done = l.Done
		case l.Ack != 0:
			if l.Ack < 0 || int(l.Ack) > len(e.parts) {
				return nil
			}
			p := &e.parts[l.Ack-1]
			if p.etag = l.ETag; l.Sent != "" {
				p.crc, p.copied, p.proof = l.Sent, false, nil
			}
		default:
			p := l.journalPart
			if !e.follows(p) {
				return nil
			}
			e.parts = append(e.parts, priorPart{off: p.Off, len: p.Len, crc: p.CRC, copied: p.Copy != "", proof: p.Proof, open: p.Open})
			if err := tell(each, p.Pieces); err != nil {
				return err
			}
			line, ahead = line+ahead, 0
		}
		if ahead > 0 { // an acknowledgement between the two
			ahead += line
			continue
		}
		e.valid += line
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("upload journal: %w", err)
	}
	return nil
}

// tell gives pieces to each, where that is set.
func tell(each func(journalPiece) error, pieces []journalPiece) error {
	if each == nil {
		return nil
	}
	for _, pc := range pieces {
		if err := each(pc); err != nil {
			return err
		}
	}
	return nil
}

// whole tells whether pieces are ones that somebody noted.
func whole(pieces []journalPiece) bool {
	for _, pc := range pieces {
		if pc.Len <= 0 {
			return false
		}
	}
	return true
}

// follows tells whether p is the part behind those that were read.
func (e *earlier) follows(p journalPart) bool {
	var off int64
	if n := len(e.parts); n > 0 {
		off = e.parts[n-1].off + e.parts[n-1].len
	}
	if !whole(p.Pieces) {
		return false
	}
	if p.Copy != "" && (p.Proof == nil || p.Proof.Off > p.Off || p.Proof.Off < 0 || p.Proof.Len < p.Off-p.Proof.Off+p.Len) {
		return false
	}
	return int(p.Part) == len(e.parts)+1 && p.Off == off && p.Len > 0 && p.Len <= e.head.PartSize && (p.Open == nil || p.Open.Len > 0)
}

// wholeLines is bufio.ScanLines without a last line that lacks its line break.
func wholeLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF {
		return len(data), nil, nil
	}
	return 0, nil, nil
}
