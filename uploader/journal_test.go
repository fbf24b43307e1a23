package uploader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

var testHead = journalHead{
	Format: 1, MinReader: 1, Store: "s3://b/p", Endpoint: "http://e", Key: "k", UploadID: "u", PartSize: 100, Identity: map[string]string{"plan": "abc"},
}

func testParts() []journalPart {
	return []journalPart{
		{Part: 1, Off: 0, Len: 100, CRC: "AAAAAAAAAAA=", Pieces: []journalPiece{{ID: "a", Len: 60, CRC: "AAAAAAAAAAE=", Record: json.RawMessage(`{"n":1}`)}}, Open: &journalOpen{40, "AAAAAAAAAAI="}},
		{Part: 2, Off: 100, Len: 100, Copy: "o", Proof: &proof{60, 147, "AAAAAAAAAAM="}},
		{Part: 3, Off: 200, Len: 7, CRC: "AAAAAAAAAAA=", Pieces: []journalPiece{{ID: "b", Len: 147, CRC: "AAAAAAAAAAM="}}},
	}
}

// lines are those of a journal behind its head, and what a reader knows when it
// has read as many.
func lines() (all []any, known []*earlier) {
	p := testParts()
	one := priorPart{off: 0, len: 100, crc: "AAAAAAAAAAA=", open: p[0].Open}
	acked := one
	acked.etag = "e1"
	two, three := priorPart{off: 100, len: 100, copied: true, proof: p[1].Proof}, priorPart{off: 200, len: 7, crc: "AAAAAAAAAAA="}
	sent := priorPart{off: 100, len: 100, crc: "AAAAAAAAAAU=", etag: "e2"}
	done := &journalDone{207, "AAAAAAAAAAQ="}
	return []any{p[0], p[1], journalNote{Ack: 1, ETag: "e1"}, p[2], journalNote{Ack: 2, ETag: "e2", Sent: sent.crc}, journalNote{Done: done}}, []*earlier{
		{head: testHead},
		{head: testHead, parts: []priorPart{one}},
		{head: testHead, parts: []priorPart{one, two}},
		{head: testHead, parts: []priorPart{acked, two}},
		{head: testHead, parts: []priorPart{acked, two, three}},
		{head: testHead, parts: []priorPart{acked, sent, three}},
		{head: testHead, parts: []priorPart{acked, sent, three}, done: done},
	}
}

var exported = cmp.AllowUnexported(earlier{}, priorPart{})

func writeJournal(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j, err := createJournal(fsx.FS{}, path, testHead)
	if err != nil {
		t.Fatal(err)
	}
	all, known := lines()
	for _, l := range all {
		if err := j.append(l); err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := known[len(all)]
	want.path, want.valid = path, int64(len(b))
	got, err := readJournal(path)
	if diff := cmp.Diff(want, got, exported); err != nil || diff != "" {
		t.Fatalf("read back: %v\n%s", err, diff)
	}
	var ids []string
	for p, err := range got.pieces() {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, fmt.Sprintf("%s %d %d %s", p.ID, p.Len, p.CRC, p.Record))
	}
	if diff := cmp.Diff([]string{`a 60 1 {"n":1}`, "b 147 3 "}, ids); diff != "" {
		t.Errorf("pieces:\n%s", diff)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := createJournal(fsx.FS{}, path, testHead); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another journal: %v, want ErrExist", err)
	}
	return b
}

// Wherever a crash tears it, what is read is a beginning of what was written, and
// the journal goes on behind it.
func TestTornJournal(t *testing.T) {
	b := writeJournal(t)
	_, known := lines()
	count, whole := 0, 0
	for n := range len(b) + 1 {
		if n > 0 && b[n-1] == '\n' {
			count, whole = count+1, n
		}
		got := &earlier{}
		err := got.parse(bytes.NewReader(b[:n]), nil)
		if count == 0 {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("cut at %d: %v, want ErrNotExist", n, err)
			}
			continue
		}
		want := *known[count-1]
		want.valid = int64(whole)
		if diff := cmp.Diff(&want, got, exported); err != nil || diff != "" {
			t.Fatalf("cut at %d: %v\n%s", n, err, diff)
		}
		// What a torn write leaves behind the end.
		torn := &earlier{}
		if err := torn.parse(bytes.NewReader(append(bytes.Clone(b[:n]), 0, 0, 0, '\n')), nil); err != nil || torn.valid != got.valid && n == whole {
			t.Fatalf("cut at %d, with zeros: %d bytes are good, want %d, %v", n, torn.valid, got.valid, err)
		}
	}

	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, append(bytes.Clone(b), `{"part":4,"off`...), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := readJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	j, err := e.goOn(fsx.FS{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.append(journalPart{Part: 4, Off: 207, Len: 1, CRC: "AAAAAAAAAAA="}); err != nil {
		t.Fatal(err)
	}
	j.close()
	if e, err := readJournal(path); err != nil || len(e.parts) != 4 {
		t.Errorf("gone on with: %+v, %v", e, err)
	}
}

func TestForeignJournals(t *testing.T) {
	for text, want := range map[string]string{
		`{"format":2,"min_reader":2,"key":"k","upload_id":"u"}` + "\n": "newer eddy",
	} {
		err := new(earlier).parse(strings.NewReader(text), nil)
		if err == nil || !strings.Contains(err.Error(), want) || hint.Of(err) == "" || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v (hint %q)", text, err, hint.Of(err))
		}
	}
	// A newer format that this reader may read, with a field that it does not know.
	e := &earlier{}
	if err := e.parse(strings.NewReader(`{"format":2,"min_reader":1,"key":"k","upload_id":"u","new":true}`+"\n"), nil); err != nil || e.head.Key != "k" {
		t.Errorf("%+v, %v", e, err)
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
	f.Add([]byte(`{"format":1,"min_reader":1,"key":"k","upload_id":"u","part_size":10}` + "\n" + `{"part":1,"len":10,"pieces":[{"len":3,"crc64nvme":"AAAAAAAAAAA="}],"open":{"len":7}}` + "\n" + `{"ack":1,"etag":"e"}` + "\n" + `{"ack":2}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &earlier{}
		var pieces int64
		err := e.parse(bytes.NewReader(b), func(p journalPiece) error {
			if p.Len <= 0 {
				t.Fatalf("piece %+v", p)
			}
			pieces++
			return nil
		})
		if err != nil {
			if len(e.parts) > 0 && e.head.Key == "" {
				t.Fatal("parts of no upload")
			}
			return
		}
		if e.head.Key == "" || e.head.UploadID == "" || e.head.MinReader > journalFormat || e.valid > int64(len(b)) {
			t.Fatalf("accepted %+v", e)
		}
		var off int64
		for i, p := range e.parts {
			if p.off != off || p.len <= 0 || p.len > e.head.PartSize {
				t.Fatalf("part %d is %+v", i, p)
			}
			off += p.len
		}
	})
}
