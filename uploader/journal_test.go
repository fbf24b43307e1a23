package uploader

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
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

// Pieces that are written before their part count with its line only, and are read
// in order; acknowledgements of other parts may stand between.
func TestPiecesAheadOfTheirPart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := createJournal(fsx.FS{}, path, testHead)
	if err != nil {
		t.Fatal(err)
	}
	piece := func(id string) journalPiece {
		return journalPiece{ID: id, Len: 10, CRC: "AAAAAAAAAAE=", Record: json.RawMessage(`{"n":1}`)}
	}
	part := func(n int32, pieces ...journalPiece) journalPart {
		return journalPart{Part: n, Off: int64(n-1) * 100, Len: 100, CRC: "AAAAAAAAAAA=", Pieces: pieces}
	}
	read := func() (e *earlier, ids string) {
		e, err := readJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		for p, err := range e.pieces() {
			if err != nil || string(p.Record) != `{"n":1}` {
				t.Fatalf("%+v, %v", p, err)
			}
			ids += p.ID
		}
		return e, ids
	}
	for _, step := range []struct {
		do    func() error
		parts int
		ids   string
	}{
		{func() error { return j.more(1, []journalPiece{piece("a"), piece("b")}) }, 0, ""},
		{func() error { return j.more(1, []journalPiece{piece("c")}) }, 0, ""},
		{func() error { return j.append(part(1, piece("d"))) }, 1, "abcd"},
		{func() error { return j.more(2, []journalPiece{piece("e")}) }, 1, "abcd"},
		{func() error { return j.say(journalNote{Ack: 1, ETag: "e1"}) }, 1, "abcd"},
		{func() error { return j.more(2, []journalPiece{piece("f")}) }, 1, "abcd"},
		{func() error { return j.append(part(2)) }, 2, "abcdef"},
		{func() error { return j.more(3, []journalPiece{piece("g")}) }, 2, "abcdef"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if e, ids := read(); len(e.parts) != step.parts || ids != step.ids {
			t.Errorf("%d parts of %q, want %d of %q", len(e.parts), ids, step.parts, step.ids)
		}
	}
	j.close()
	// What is gone on with begins behind the last part, and says its pieces again.
	e, _ := read()
	if e.parts[0].etag != "e1" {
		t.Errorf("%+v", e.parts)
	}
	if j, err = e.goOn(fsx.FS{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.more(3, []journalPiece{piece("h")}), j.append(part(3))); err != nil {
		t.Fatal(err)
	}
	j.close()
	if e, ids := read(); len(e.parts) != 3 || ids != "abcdefh" {
		t.Errorf("%d parts of %q", len(e.parts), ids)
	}
	// Of a part that is not the next one nothing is taken.
	if err := os.WriteFile(path, []byte(`{"format":1,"min_reader":1,"key":"k","upload_id":"u","part_size":100}`+"\n"+`{"part":2,"more":[{"len":1,"crc64nvme":"AAAAAAAAAAE="}]}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := readJournal(path); err != nil || len(e.parts) > 0 || e.valid > 80 {
		t.Errorf("%+v, %v", e, err)
	}
}

// A part of very many tiny pieces costs neither memory nor a line of its size, and
// is gone on with as any other.
func TestAPartOfTinyPieces(t *testing.T) {
	const pieces, record = 6000, 1 << 10
	store, err := Open(t.Context(), Config{URL: "file://" + t.TempDir(), PartSize: 10 * pieces / 2})
	if err != nil {
		t.Fatal(err)
	}
	journal := filepath.Join(t.TempDir(), "journal")
	text := json.RawMessage(`"` + strings.Repeat("r", record-2) + `"`)
	broken := errors.New("broken")
	put := func(upTo int) (again int, err error) {
		_, err = store.Put(t.Context(), PutRequest{
			Key: "k", Upper: 10 * pieces, Journal: journal,
			Pieces: func(sent iter.Seq2[Sent, error]) iter.Seq2[Piece, error] {
				return func(yield func(Piece, error) bool) {
					n := 0
					for s, err := range sent {
						if want := fmt.Sprint(n); err != nil || s.ID != want || !bytes.Equal(s.Record, text) {
							t.Errorf("piece %s is %q with a record of %d bytes, %v", want, s.ID, len(s.Record), err)
						}
						if !yield(Piece{ID: s.ID, Len: s.Len, CRC: s.CRC, Record: s.Record, Bytes: func(context.Context) ([]byte, error) { return fmt.Appendf(nil, "%010s", s.ID), nil }}, err) {
							return
						}
						n++
					}
					for again = n; n < pieces; n++ {
						if n == upTo {
							yield(Piece{}, broken)
							return
						}
						if !yield(Piece{ID: fmt.Sprint(n), Record: text, Bytes: func(context.Context) ([]byte, error) { return fmt.Appendf(nil, "%010d", n), nil }}, nil) {
							return
						}
					}
				}
			},
		})
		return again, err
	}
	if _, err := put(pieces - 10); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for line := range bytes.Lines(b) {
		longest = max(longest, len(line))
	}
	if longest > 2*maxHeld || len(b) < pieces/2*record {
		t.Errorf("a journal of %d bytes has a line of %d", len(b), longest)
	}
	kept, err := put(pieces)
	if err != nil || kept != pieces/2 {
		t.Fatalf("%d pieces were kept, %v", kept, err)
	}
	o, _, err := store.GetSmall(t.Context(), "k", 1<<20)
	if err != nil || len(o) != 10*pieces || string(o[10*(pieces-1):]) != fmt.Sprintf("%010d", pieces-1) || string(o[:10]) != "0000000000" {
		t.Errorf("%d bytes, %v", len(o), err)
	}
}
