package uploader

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/hint"
)

var testHead = journalHead{
	Format: 1, MinReader: 1, Store: "s3://b/p", Endpoint: "http://e", Key: "k", UploadID: "u", PartSize: 100, Identity: map[string]string{"plan": "abc"},
}

func testParts() []journalPart {
	return []journalPart{
		{Part: 1, Off: 0, Len: 100, CRC: "AAAAAAAAAAA=", Pieces: []journalPiece{{ID: "a", Len: 60, Record: json.RawMessage(`{"n":1}`)}}},
		{Part: 2, Off: 100, Len: 100, CRC: "AAAAAAAAAAA="},
		{Part: 3, Off: 200, Len: 7, CRC: "AAAAAAAAAAA=", Pieces: []journalPiece{{ID: "b", Len: 147}}},
	}
}

func writeJournal(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j, err := createJournal(path, testHead)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range testParts() {
		if err := j.append(p); err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	h, parts, err := readJournal(path)
	if diff := cmp.Diff(testHead, h) + cmp.Diff(testParts(), parts); err != nil || diff != "" {
		t.Fatalf("read back: %v\n%s", err, diff)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := createJournal(path, testHead); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another journal: %v, want ErrExist", err)
	}
	return b
}

// Wherever a crash tears it, what is read is a beginning of what was written.
func TestTornJournal(t *testing.T) {
	b := writeJournal(t)
	lines := 0
	for n := range len(b) + 1 {
		if n > 0 && b[n-1] == '\n' {
			lines++
		}
		h, parts, err := parseJournal(bytes.NewReader(b[:n]))
		if lines == 0 {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("cut at %d: %v, want ErrNotExist", n, err)
			}
			continue
		}
		if diff := cmp.Diff(testHead, h) + cmp.Diff(testParts()[:lines-1], parts, equateEmpty); err != nil || diff != "" {
			t.Fatalf("cut at %d: %v\n%s", n, err, diff)
		}
		// What a torn write leaves behind the end.
		if _, again, err := parseJournal(bytes.NewReader(append(bytes.Clone(b[:n]), 0, 0, 0, '\n'))); err != nil || len(again) > len(parts)+1 {
			t.Fatalf("cut at %d, with zeros: %d parts, %v", n, len(again), err)
		}
	}
}

var equateEmpty = cmp.Transformer("empty", func(p []journalPart) []journalPart {
	if len(p) == 0 {
		return nil
	}
	return p
})

func TestForeignJournals(t *testing.T) {
	for text, want := range map[string]string{
		`{"format":2,"min_reader":2,"key":"k","upload_id":"u"}` + "\n": "newer eddy",
	} {
		_, _, err := parseJournal(strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), want) || hint.Of(err) == "" || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v (hint %q)", text, err, hint.Of(err))
		}
	}
	// A newer format that this reader may read, with a field that it does not know.
	h, _, err := parseJournal(strings.NewReader(`{"format":2,"min_reader":1,"key":"k","upload_id":"u","new":true}` + "\n"))
	if err != nil || h.Key != "k" {
		t.Errorf("%+v, %v", h, err)
	}
	// Neither store removes what it does not understand.
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, []byte(`{"format":9,"min_reader":9,"key":"k","upload_id":"u"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newFileStore(t.TempDir()).Abandon(t.Context(), path); err == nil {
		t.Error("a newer journal was abandoned")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\n\n"))
	f.Add([]byte(`{"format":1,"min_reader":1,"key":"k","upload_id":"u","part_size":10}` + "\n" + `{"part":1,"off":0,"len":10,"crc64nvme":""}` + "\n" + `{"part":2,"off":10,"len":1}`))
	f.Add([]byte(`{"format":1,"min_reader":1,"key":"k","upload_id":"u","part_size":10}` + "\n" + `{"part":1,"off":0,"len":-10}` + "\n"))
	f.Add([]byte(`{"format":1,"min_reader":7}` + "\n"))
	f.Add([]byte("null\n{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, parts, err := parseJournal(bytes.NewReader(b))
		if err != nil {
			if len(parts) > 0 && h.Key == "" {
				t.Fatal("parts of no upload")
			}
			return
		}
		if h.Key == "" || h.UploadID == "" || h.MinReader > journalFormat {
			t.Fatalf("accepted %+v", h)
		}
		var off int64
		for i, p := range parts {
			if int(p.Part) != i+1 || p.Off != off || p.Len <= 0 || p.Len > h.PartSize {
				t.Fatalf("part %d is %+v", i, p)
			}
			off += p.Len
		}
	})
}
