package uploader

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"path/filepath"
)

const journalFormat = 1

// journalHead is the first line of an upload journal: which upload it is of.
type journalHead struct {
	Format    int               `json:"format"`
	MinReader int               `json:"min_reader"`
	Store     string            `json:"store"` // URL
	Endpoint  string            `json:"endpoint,omitempty"`
	Key       string            `json:"key"`
	UploadID  string            `json:"upload_id"`
	PartSize  int64             `json:"part_size"`
	Identity  map[string]string `json:"identity"`
}

// journalPart is a line: a part that is about to be sent, and the pieces that
// end in it.
type journalPart struct {
	Part   int32          `json:"part"`
	Off    int64          `json:"off"`
	Len    int            `json:"len"`
	CRC    string         `json:"crc64nvme"` // base64
	Pieces []journalPiece `json:"pieces,omitempty"`
}

type journalPiece struct {
	ID     string          `json:"id,omitempty"`
	Len    int             `json:"len"` // stored bytes
	Record json.RawMessage `json:"record,omitempty"`
}

// journal is the append-only record of one upload. A line is durable before the
// part that it names is sent, so that after a crash bucket and journal together
// say what was done.
type journal struct{ f *os.File }

func createJournal(path string, h journalHead) (*journal, error) {
	h.Format, h.MinReader = journalFormat, journalFormat
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f}
	if err := errors.Join(j.append(h), fsx.SyncDir(filepath.Dir(path))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (j *journal) append(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(j.f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", j.f.Name(), err)
	}
	return nil
}

func (j *journal) close() error { return j.f.Close() }

// maxJournalLine bounds a line: a part of 32 MiB holds at most so many pieces.
const maxJournalLine = 64 << 20

// readJournal reads a journal. A last line that was torn by a crash is left out:
// its part had not been sent. A journal without a whole first line is as good as
// none: ErrNotExist.
func readJournal(path string) (journalHead, []journalPart, error) {
	f, err := os.Open(path)
	if err != nil {
		return journalHead{}, nil, err
	}
	defer f.Close()
	return parseJournal(f)
}

func parseJournal(r io.Reader) (h journalHead, parts []journalPart, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxJournalLine)
	for n := 0; sc.Scan(); n++ {
		if n == 0 {
			if json.Unmarshal(sc.Bytes(), &h) != nil {
				return h, nil, fmt.Errorf("upload journal: no whole first line: %w", fs.ErrNotExist)
			}
			if h.MinReader > journalFormat {
				return h, nil, fmt.Errorf("upload journal: written by a newer eddy (min_reader %d)", h.MinReader)
			}
			continue
		}
		var p journalPart
		if json.Unmarshal(sc.Bytes(), &p) != nil || p.Part != int32(n) {
			return h, parts, nil // torn
		}
		parts = append(parts, p)
	}
	if err := sc.Err(); err != nil {
		return h, parts, fmt.Errorf("upload journal: %w", err)
	}
	if h.UploadID == "" && h.Key == "" {
		return h, nil, fmt.Errorf("upload journal: empty: %w", fs.ErrNotExist)
	}
	return h, parts, nil
}
