package uploader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
)

// suite is what every Store must do. open gives an empty store each time; many
// is how many small objects the tests of long listings make.
func suite(t *testing.T, open func(*testing.T) Store, many int) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Store)
	}{
		{"a large object comes back", testRoundTrip},
		{"objects of awkward sizes", testSizes},
		{"ranges", testRanges},
		{"a range of a replaced object", testReplaced},
		{"nothing is there before it is whole", testUnfinished},
		{"an upload begins anew over an old journal", testOldJournal},
		{"what stands in the store is copied", testCopies},
		{"an upload is gone on with", testResume},
		{"an upload of something else is not", testResumeOther},
		{"bytes that changed are not joined", testResumeChanged},
		{"an upload that was ended is found", testResumeDone},
		{"one that nobody wrote down is not sent again", testStored},
		{"unfinished uploads are listed and ended", testUploads},
		{"conditional writes", testConditions},
		{"of many racers one wins", testRacers},
		{"compare and swap loses no update", testSwap},
		{"small objects", testSmall},
		{"keys that need care", testKeys},
		{"lists", testList},
		{"deletes", testDelete},
		{"a cancelled context", testCancelled},
		{"URL opens the same store", testURL},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
	t.Run("long lists", func(t *testing.T) { testLongList(t, open(t), many) })
}

// content is n bytes that do not repeat, made from seed.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

// pieces cuts b into pieces of the given sizes, again and again.
func pieces(b []byte, sizes ...int) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		for i := 0; len(b) > 0; i++ {
			n := min(sizes[i%len(sizes)], len(b))
			// The contract: the bytes are valid until the sequence advances.
			buf := bytes.Clone(b[:n])
			p := Piece{
				ID:     fmt.Sprintf("piece-%d", i),
				Bytes:  func(context.Context) ([]byte, error) { return buf, nil },
				Record: []byte(fmt.Sprintf(`{"n":%d}`, i)),
			}
			if !yield(p, nil) {
				return
			}
			clear(buf)
			b = b[n:]
		}
	}
}

// anew is a sequence that knows nothing of an earlier run.
func anew(seq iter.Seq2[Piece, error]) func(iter.Seq2[Sent, error]) iter.Seq2[Piece, error] {
	return func(iter.Seq2[Sent, error]) iter.Seq2[Piece, error] { return seq }
}

func request(t testing.TB, key string, b []byte, sizes ...int) PutRequest {
	return PutRequest{
		Key: key, Upper: int64(len(b)) + 1000, Pieces: anew(pieces(b, sizes...)),
		Journal: filepath.Join(t.TempDir(), "journal"), Identity: map[string]string{"plan": "abc"},
	}
}

func mustPut(t testing.TB, s Store, key string, b []byte) Object {
	t.Helper()
	o, err := s.Put(t.Context(), request(t, key, b, 3*unit))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func mustPutSmall(t testing.TB, s Store, key, body string, c Condition) Object {
	t.Helper()
	o, err := s.PutSmall(t.Context(), key, []byte(body), "text/plain", c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func readRange(t testing.TB, s Store, key, etag string, off, n int64) ([]byte, error) {
	t.Helper()
	r, err := s.Open(t.Context(), key, etag, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func keysOf(t testing.TB, s Store, prefix, delimiter string) []string {
	t.Helper()
	var keys []string
	for o, err := range s.List(t.Context(), prefix, delimiter) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func absent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", filepath.Base(path), err)
	}
}

func testRoundTrip(t *testing.T, s Store) {
	b := content(1, 64*unit+12345)
	r := request(t, "c/data/id/vol-0000.tar.zst", b, 8*unit, 1, 5*unit+7, 100)
	var moved atomic.Value
	r.Moved = func(m Moved) { moved.Store(m) }
	o, err := s.Put(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := Object{Key: r.Key, Size: int64(len(b)), ETag: o.ETag, CRC64NVME: crc.Base64(crc.NVME(b)), Modified: o.Modified, Checked: o.Checked}
	if o != want || o.ETag == "" || o.Checked != "checksum" && o.Checked != "read-back" {
		t.Errorf("stored %+v, want %+v checked by checksum or read-back", o, want)
	}
	if m := moved.Load(); m != (Moved{Sent: o.Size}) {
		t.Errorf("moved %+v of %d bytes", m, o.Size)
	}
	absent(t, r.Journal)
	got, err := readRange(t, s, r.Key, o.ETag, 0, -1)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(b) {
		t.Fatalf("%d bytes came back, %v: not those that were sent", len(got), err)
	}
	st, err := s.Stat(t.Context(), r.Key)
	if err != nil || st.Size != o.Size || st.ETag != o.ETag || time.Since(st.Modified).Abs() > time.Hour {
		t.Errorf("stat says %+v, %v; put said %+v", st, err, o)
	}
	if st.CRC64NVME != "" && st.CRC64NVME != o.CRC64NVME {
		t.Errorf("stat says CRC %s, put said %s", st.CRC64NVME, o.CRC64NVME)
	}
}

func testSizes(t *testing.T, s Store) {
	const part = 8 * unit
	for _, n := range []int{1, 2, part - 1, part, part + 1} {
		key := fmt.Sprintf("sizes/%d", n)
		b := content(uint64(n), n)
		if o := mustPut(t, s, key, b); o.Size != int64(n) {
			t.Errorf("%d bytes stored, %d sent", o.Size, n)
		}
		if got, err := readRange(t, s, key, "", 0, -1); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
	if _, err := s.Put(t.Context(), request(t, "sizes/0", nil, 1)); err == nil || !strings.Contains(err.Error(), "nothing to send") {
		t.Errorf("an empty object: %v", err)
	}
	if _, err := s.Stat(t.Context(), "sizes/0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after an empty put: %v", err)
	}
}

func testRanges(t *testing.T, s Store) {
	b := content(3, 300_000)
	o := mustPut(t, s, "r/object", b)
	n := int64(len(b))
	for _, c := range [][2]int64{{0, 0}, {0, 1}, {0, n}, {n - 1, 1}, {12345, 6789}, {n, 0}, {5, -1}, {n, -1}} {
		want := b[c[0]:]
		if c[1] >= 0 {
			want = want[:c[1]]
		}
		for _, etag := range []string{"", o.ETag} {
			if got, err := readRange(t, s, "r/object", etag, c[0], c[1]); err != nil || !bytes.Equal(got, want) {
				t.Errorf("range %v: %d bytes, %v; want %d", c, len(got), err, len(want))
			}
		}
	}
	for _, c := range [][2]int64{{0, n + 1}, {n - 1, 2}, {n, 1}, {n + 5, 10}} {
		_, err := readRange(t, s, "r/object", "", c[0], c[1])
		if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrDamaged) {
			t.Errorf("range %v beyond the end: %v, want ErrUnexpectedEOF and ErrDamaged", c, err)
		}
	}
	if _, err := s.Open(t.Context(), "r/nothing", "", 0, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("no object: %v, want ErrNotFound", err)
	}
	if _, err := s.Open(t.Context(), "r/nothing", "", 0, -1); !errors.Is(err, ErrNotFound) {
		t.Errorf("no object, whole: %v, want ErrNotFound", err)
	}
	if _, err := s.Open(t.Context(), "r/object", "0123", 0, 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("another ETag: %v, want ErrDamaged", err)
	}
}

// A reader that was opened gives the old bytes or an error, never a mixture.
func testReplaced(t *testing.T, s Store) {
	old, fresh := content(4, 4*unit), content(5, 4*unit)
	o := mustPut(t, s, "x/object", old)
	r, err := s.Open(t.Context(), "x/object", "", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := make([]byte, 1000)
	if _, err := io.ReadFull(r, first); err != nil {
		t.Fatal(err)
	}
	o2 := mustPut(t, s, "x/object", fresh)
	if o2.ETag == o.ETag {
		t.Errorf("both versions have ETag %s", o.ETag)
	}
	rest, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(append(first, rest...), old) || err != nil && !errors.Is(err, ErrDamaged) {
		t.Errorf("after a replacement: %d bytes, %v", len(rest), err)
	}
	if _, err := s.Open(t.Context(), "x/object", o.ETag, 0, 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("the old ETag: %v, want ErrDamaged", err)
	}
}

var errProducer = errors.New("the stage is gone")

func testUnfinished(t *testing.T, s Store) {
	b := content(6, 20*unit)
	r := request(t, "u/vol-0000", b)
	r.Pieces = anew(func(yield func(Piece, error) bool) {
		for p, err := range pieces(b, unit) {
			if !yield(p, err) {
				return
			}
		}
		if got := keysOf(t, s, "", ""); len(got) != 0 {
			t.Errorf("visible during the upload: %q", got)
		}
		yield(Piece{}, fmt.Errorf("open /stage/x: %w: %w", errProducer, os.ErrNotExist))
	})
	_, err := s.Put(t.Context(), r)
	if !errors.Is(err, errProducer) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrRefused) {
		t.Fatalf("the producer's error became %v", err)
	}
	e, err := readJournal(r.Journal)
	if err != nil || e.head.Key != r.Key || e.head.Store != s.URL() || e.head.Identity["plan"] != "abc" || len(e.parts) < 2 {
		t.Fatalf("journal: %+v, %v", e, err)
	}
	var parts int64
	for i, p := range e.parts {
		if want := crc.Base64(crc.NVME(b[p.off:][:p.len])); p.crc != want {
			t.Errorf("part %d has CRC %s in the journal, want %s", i+1, p.crc, want)
		}
		parts += p.len
	}
	var ends int64
	for pc, err := range e.pieces() {
		if ends += pc.Len; err != nil || pc.ID != fmt.Sprintf("piece-%d", ends/unit-1) || ends > parts || pc.CRC != crc.NVME(b[ends-pc.Len:ends]) {
			t.Errorf("the journal claims %+v, which ends at %d of %d, %v", pc, ends, parts, err)
		}
	}
	if ends <= parts-unit {
		t.Errorf("the journal names pieces of %d bytes, of %d that were sent", ends, parts)
	}
	if _, err := s.Stat(t.Context(), r.Key); !errors.Is(err, ErrNotFound) {
		t.Errorf("a part of an object is visible: %v", err)
	}
	for range 2 { // the second time there is nothing
		if err := s.Abandon(t.Context(), r.Journal); err != nil {
			t.Fatal(err)
		}
	}
	absent(t, r.Journal)
	if got := keysOf(t, s, "", ""); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func testOldJournal(t *testing.T, s Store) {
	b := content(7, 9*unit)
	r := request(t, "o/vol-0000", b)
	r.Pieces = anew(func(yield func(Piece, error) bool) { yield(Piece{}, errProducer) })
	if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
		t.Fatal(err)
	}
	old, err := readJournal(r.Journal)
	if err != nil {
		t.Fatal(err)
	}
	r.Pieces = anew(pieces(b, unit))
	o, err := s.Put(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	absent(t, r.Journal)
	if got, err := readRange(t, s, r.Key, o.ETag, 0, -1); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	// The journal of an upload that is done, or gone, harms nothing.
	j, err := createJournal(fsx.FS{}, r.Journal, old.head)
	if err != nil {
		t.Fatal(err)
	}
	j.close()
	if err := s.Abandon(t.Context(), r.Journal); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), r.Key); err != nil {
		t.Errorf("the object went with an old journal: %v", err)
	}
}

func testUploads(t *testing.T, s Store) {
	list := func(prefix string) (out []Upload) {
		for u, err := range s.Uploads(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, u)
		}
		return out
	}
	if got := list(""); len(got) != 0 {
		t.Errorf("an empty store has %v", got)
	}
	mustPutSmall(t, s, "p/small", "x", Condition{})
	mustPut(t, s, "p/done", content(1, 1000))
	for _, key := range []string{"p/one", "p/two", "q/three"} {
		r := request(t, key, nil)
		r.Pieces = anew(func(yield func(Piece, error) bool) {
			for p, err := range pieces(content(2, 9*unit), unit) {
				if !yield(p, err) {
					return
				}
			}
			yield(Piece{}, errProducer)
		})
		if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
			t.Fatal(err)
		}
	}
	got := list("p/")
	for _, u := range got {
		if (u.Key != "p/one" && u.Key != "p/two") || u.ID == "" || time.Since(u.Begun).Abs() > time.Hour {
			t.Errorf("listed %+v", u)
		}
	}
	if len(got) != 2 || len(list("")) != 3 || len(list("p/one")) != 1 || len(list("r/")) != 0 {
		t.Fatalf("listed %+v", got)
	}
	for range 2 { // the second time they are gone
		for _, u := range got {
			if err := s.AbortUpload(t.Context(), u); err != nil {
				t.Error(err)
			}
		}
	}
	if got := list(""); len(got) != 1 || got[0].Key != "q/three" {
		t.Errorf("left: %+v", got)
	}
	if err := s.AbortUpload(t.Context(), list("")[0]); err != nil {
		t.Error(err)
	}
	if keys := keysOf(t, s, "", ""); !slices.Equal(keys, []string{"p/done", "p/small"}) {
		t.Errorf("objects: %q", keys)
	}
}

func testCancelled(t *testing.T, s Store) {
	mustPutSmall(t, s, "c/object", "x", Condition{})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"PutSmall": func() error {
			_, err := s.PutSmall(gone, "c/new", []byte("x"), "", Condition{IfAbsent: true})
			return err
		},
		"Put": func() error { _, err := s.Put(gone, request(t, "c/large", content(1, 100), 10)); return err },
		"Open": func() error {
			r, err := s.Open(gone, "c/object", "", 0, 1)
			if err == nil {
				_, err = io.ReadAll(r)
				r.Close()
			}
			return err
		},
		"List": func() error {
			for _, err := range s.List(gone, "", "") {
				return err
			}
			return nil
		},
		"Delete": func() error { return s.Delete(gone, "c/object") },
	} {
		begun := time.Now()
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("%s took %s to notice", name, d)
		}
	}
	if got := keysOf(t, s, "", ""); !slices.Equal(got, []string{"c/object"}) {
		t.Errorf("cancelled calls left %q", got)
	}

	// In the middle of an upload; the producer has more to give.
	ctx, stop := context.WithCancelCause(t.Context())
	cause := errors.New("the operator said so")
	r := request(t, "c/middle", nil)
	b := content(2, unit)
	n := 0
	r.Pieces = anew(func(yield func(Piece, error) bool) {
		for {
			if n++; n == 20 {
				stop(cause)
			}
			if n > 100 || !yield(Piece{Bytes: func(context.Context) ([]byte, error) { return b, nil }}, nil) {
				return
			}
		}
	})
	r.Upper = 100 * unit
	begun := time.Now()
	_, err := s.Put(ctx, r)
	if !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled upload: %v", err)
	}
	if d := time.Since(begun); d > 5*time.Second || n > 50 {
		t.Errorf("it took %s and %d pieces to notice", d, n)
	}
	if err := s.Abandon(t.Context(), r.Journal); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "", ""); !slices.Equal(got, []string{"c/object"}) {
		t.Errorf("a cancelled upload left %q", got)
	}
}

func testURL(t *testing.T, s Store) {
	u, err := Config{URL: s.URL()}.parseURL()
	if err != nil {
		t.Fatalf("%s: %v", s.URL(), err)
	}
	if u.Scheme == "file" {
		mustPutSmall(t, s, "k", "v", Condition{})
		again, err := Open(t.Context(), Config{URL: s.URL()})
		if err != nil {
			t.Fatal(err)
		}
		if b, _, err := again.GetSmall(t.Context(), "k", 10); err != nil || string(b) != "v" {
			t.Errorf("through %s: %q, %v", s.URL(), b, err)
		}
	}
}
