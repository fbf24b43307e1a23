package uploader

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

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
	Identity  map[string]string `json:"identity,omitempty"`
}

// journalPart is a line: a part that is about to be sent, and the pieces that
// end in it.
type journalPart struct {
	Part   int32          `json:"part"` // from 1, without gaps
	Off    int64          `json:"off"`
	Len    int64          `json:"len"`
	CRC    string         `json:"crc64nvme"` // base64
	Pieces []journalPiece `json:"pieces,omitempty"`
}

type journalPiece struct {
	ID     string          `json:"id,omitempty"`
	Len    int             `json:"len"` // stored bytes
	Record json.RawMessage `json:"record,omitempty"`
}

func lineOf(p part) journalPart {
	return journalPart{Part: p.number, Off: p.off, Len: int64(len(p.buf)), CRC: crc.Base64(p.crc), Pieces: p.pieces}
}

// journal is the append-only record of one upload. A line is durable before the
// part that it names is sent, so that after a crash bucket and journal together
// say what was done.
type journal struct{ f *os.File }

// createJournal begins a journal; path must not exist.
func createJournal(path string, h journalHead) (*journal, error) {
	h.Format, h.MinReader = journalFormat, journalFormat
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("upload journal: %w", err)
	}
	j := &journal{f: f}
	if err := errors.Join(j.append(h), fsx.SyncDir(filepath.Dir(path))); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return j, nil
}

func (j *journal) append(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("upload journal: %w", err)
	}
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("upload journal: %w", err)
	}
	if err := unix.Fdatasync(int(j.f.Fd())); err != nil {
		return fmt.Errorf("upload journal: sync %s: %w", j.f.Name(), err)
	}
	return nil
}

// close keeps the journal: every line of it is durable already.
func (j *journal) close() { j.f.Close() }

// maxJournalLine bounds a line: a part of 80 MiB has some ten pieces.
const maxJournalLine = 64 * mib

// readJournal reads a journal.
func readJournal(path string) (journalHead, []journalPart, error) {
	f, err := os.Open(path)
	if err != nil {
		return journalHead{}, nil, err
	}
	defer f.Close()
	return parseJournal(f)
}

// parseJournal reads the head and as many parts as are whole and follow each
// other. What comes after is what a crash has torn: those parts count as not
// sent. A journal without a whole head is as good as none, fs.ErrNotExist: its
// upload has no part yet.
func parseJournal(r io.Reader) (h journalHead, parts []journalPart, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxJournalLine)
	sc.Split(wholeLines)
	if !sc.Scan() || json.Unmarshal(sc.Bytes(), &h) != nil {
		if err := sc.Err(); err != nil {
			return journalHead{}, nil, fmt.Errorf("upload journal: %w", err)
		}
		return journalHead{}, nil, fmt.Errorf("upload journal: no whole first line: %w", fs.ErrNotExist)
	}
	if h.MinReader > journalFormat {
		return journalHead{}, nil, hint.Add(fmt.Errorf("upload journal: written by a newer eddy (min_reader %d)", h.MinReader),
			"use that version, or remove the journal and leave the upload to the bucket's lifecycle rule")
	}
	if h.Key == "" || h.UploadID == "" {
		return journalHead{}, nil, fmt.Errorf("upload journal: no upload in the first line: %w", fs.ErrNotExist)
	}
	var off int64
	for sc.Scan() {
		var p journalPart
		if json.Unmarshal(sc.Bytes(), &p) != nil || int(p.Part) != len(parts)+1 || p.Off != off || p.Len <= 0 || p.Len > h.PartSize {
			return h, parts, nil
		}
		parts = append(parts, p)
		off += p.Len
	}
	if err := sc.Err(); err != nil {
		return h, parts, fmt.Errorf("upload journal: %w", err)
	}
	return h, parts, nil
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
