package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/s3fake"
)

// producer yields the pieces of an object, and after a crash those of an earlier
// run without their bytes, as the journal knows them.
type producer struct {
	b     []byte
	sizes []int
	// dies, where not negative, is the piece at which the producer fails, when until
	// is true of what was moved.
	dies  int
	until func(Moved) bool
	moved atomic.Value

	made []int // pieces whose bytes were asked for
	sent int   // pieces that were known
}

// soFar is what was moved; a real server may not have stored anything yet.
func (p *producer) soFar() Moved {
	m, _ := p.moved.Load().(Moved)
	return m
}

func (p *producer) pieces(sent iter.Seq2[Sent, error]) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		next, stop := iter.Pull2(sent)
		defer stop()
		off, known := 0, true
		for i := 0; off < len(p.b); i++ {
			if i == p.dies {
				for p.until != nil && !p.until(p.soFar()) {
					time.Sleep(time.Millisecond)
				}
				yield(Piece{}, errProducer)
				return
			}
			n := min(p.sizes[i%len(p.sizes)], len(p.b)-off)
			buf := bytes.Clone(p.b[off : off+n])
			off += n
			piece := Piece{
				ID: fmt.Sprintf("piece-%d", i), Record: []byte(fmt.Sprintf(`{"n":%d}`, i)),
				Bytes: func(context.Context) ([]byte, error) { p.made = append(p.made, i); return buf, nil },
			}
			if known {
				s, err, ok := next()
				if err != nil {
					yield(Piece{}, err)
					return
				}
				if known = ok; ok {
					p.sent++
					if s.ID != piece.ID || s.Len != int64(n) || string(s.Record) != string(piece.Record) {
						yield(Piece{}, fmt.Errorf("the journal has %+v at place %d", s, i))
						return
					}
					piece.Len, piece.CRC = s.Len, s.CRC
				}
			}
			if !yield(piece, nil) {
				return
			}
			if !known {
				clear(buf) // the contract: valid until the sequence advances
			}
		}
	}
}

func (p *producer) request(t testing.TB, key string) PutRequest {
	return PutRequest{
		Key: key, Upper: int64(len(p.b)) + 1000, Pieces: p.pieces,
		Journal: filepath.Join(t.TempDir(), "journal"), Identity: map[string]string{"plan": "abc"},
		Moved: func(m Moved) { p.moved.Store(m) },
	}
}

// An upload that broke off is gone on with: what the store has is neither made
// nor sent again, and what comes out is the same object.
func testResume(t *testing.T, s Store) {
	const part = 8 * unit
	b := content(20, 5*part+12345)
	p := &producer{b: b, sizes: []int{3 * unit, 100, 5 * unit}, dies: 12}
	p.until = func(m Moved) bool { return m.Kept+m.Sent == 4*part }
	r := p.request(t, "resume/vol-0000")
	if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
		t.Fatal(err)
	}
	// The first 12 pieces are 32 units and a little: four parts.
	for range 2 {
		p.dies, p.made, p.sent = 13, nil, 0
		if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
			t.Fatal(err)
		}
	}
	p.dies, p.made, p.sent = -1, nil, 0
	o, err := s.Put(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if o.Size != int64(len(b)) || o.CRC64NVME != crc.Base64(crc.NVME(b)) || o.Checked == "" {
		t.Errorf("stored %+v", o)
	}
	if got, err := readRange(t, s, r.Key, o.ETag, 0, -1); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if m := p.moved.Load().(Moved); m.Kept != 4*part || m.Kept+m.Sent != o.Size || m.Copied != 0 {
		t.Errorf("moved %+v of %d bytes, want four parts kept", m, o.Size)
	}
	if p.sent < 9 || slices.Min(p.made) < 9 {
		t.Errorf("%d pieces were known, the first that was made again is %d", p.sent, slices.Min(p.made))
	}
	absent(t, r.Journal)
	if got := keysOf(t, s, "", ""); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
}

// What an earlier run has sent of something else is removed, not gone on with.
func testResumeOther(t *testing.T, s Store) {
	for what, change := range map[string]func(*PutRequest){
		"another plan":          func(r *PutRequest) { r.Identity = map[string]string{"plan": "xyz"} },
		"another object":        func(r *PutRequest) { r.Key = "other/vol-0001" },
		"another size of parts": func(r *PutRequest) { r.Upper = 100 << 30 },
		"a torn journal": func(r *PutRequest) {
			if err := os.WriteFile(r.Journal, []byte(`{"format":1,`), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		p := &producer{b: content(21, 20*unit), sizes: []int{unit}, dies: 18}
		r := p.request(t, "other/vol-0000")
		if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
			t.Fatal(err)
		}
		change(&r)
		p.dies, p.made = -1, nil
		o, err := s.Put(t.Context(), r)
		if err != nil || len(p.made) != 20 || p.sent != 0 {
			t.Errorf("%s: %d pieces were made, %d known, %v", what, len(p.made), p.sent, err)
		}
		if got, err := readRange(t, s, r.Key, o.ETag, 0, -1); err != nil || !bytes.Equal(got, p.b) {
			t.Errorf("%s: %d bytes came back, %v", what, len(got), err)
		}
		absent(t, r.Journal)
		if err := s.Delete(t.Context(), r.Key); err != nil {
			t.Fatal(err)
		}
		if got := keysOf(t, s, "", ""); len(got) != 0 {
			t.Errorf("%s: left behind: %q", what, got)
		}
	}
}

// Bytes that are not what the journal says are never joined with those that were
// sent: nothing appears, and the next run begins anew.
func testResumeChanged(t *testing.T, s Store) {
	b := content(22, 20*unit+500)
	p := &producer{b: b, sizes: []int{3 * unit}, dies: 6} // the seventh piece would go on in the third part
	r := p.request(t, "changed/vol-0000")
	if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
		t.Fatal(err)
	}
	// The piece that the second part ends in was not noted: it is made again.
	p.b = bytes.Clone(b)
	p.b[15*unit]++
	p.dies = -1
	if _, err := s.Put(t.Context(), r); !errors.Is(err, ErrDamaged) {
		t.Fatalf("%v, want ErrDamaged", err)
	}
	absent(t, r.Journal)
	if got := keysOf(t, s, "", ""); len(got) != 0 {
		t.Errorf("an object of two halves: %q", got)
	}
	if _, err := s.Put(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// An upload that was gone on with and is refused in the end would be refused for
// ever: the run after it begins anew. One that may not ask now is kept.
func TestResumeRefused(t *testing.T) {
	for code, kept := range map[string]int{"InvalidRequest": 0, "InvalidPart": 0, "AccessDenied": 1} {
		t.Run(code, func(t *testing.T) {
			var refuses atomic.Bool
			server := s3fake.New("bucket", s3fake.Quirks{SmallParts: unit < mib})
			server.Fault = func(c s3fake.Call) *s3fake.Reply {
				if c.Op == "CompleteMultipartUpload" && refuses.Load() {
					return &s3fake.Reply{Status: 400, Code: code}
				}
				return nil
			}
			s := fakeAt(t, server)
			p := &producer{b: content(24, 20*unit), sizes: []int{unit}, dies: 18}
			r := p.request(t, "refused/vol-0000")
			if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
				t.Fatal(err)
			}
			refuses.Store(true)
			p.dies = -1
			if _, err := s.Put(t.Context(), r); !errors.Is(err, ErrRefused) || server.Uploads() != kept {
				t.Fatalf("%v, %d uploads are left, want %d", err, server.Uploads(), kept)
			}
			refuses.Store(false)
			p.made = nil
			o, err := s.Put(t.Context(), r)
			if err != nil || (len(p.made) == 20) != (kept == 0) {
				t.Fatalf("%d pieces were made again, %v", len(p.made), err)
			}
			if got, err := readRange(t, s, r.Key, o.ETag, 0, -1); err != nil || !bytes.Equal(got, p.b) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
			absent(t, r.Journal)
		})
	}
}

// A run that died between the end of the upload and the removal of its journal
// has done all there is to do.
func testResumeDone(t *testing.T, s Store) {
	p := &producer{b: content(23, 17*unit), sizes: []int{2 * unit}, dies: -1}
	r := p.request(t, "done/vol-0000")
	var journal []byte
	r.Moved = func(Moved) {
		b, err := os.ReadFile(r.Journal)
		if err == nil {
			journal = b
		}
	}
	o, err := s.Put(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	// The journal as it was before the end, with the line that comes after.
	e := &earlier{}
	if err := e.parse(bytes.NewReader(journal), nil); err != nil {
		t.Fatal(err)
	}
	off := e.parts[len(e.parts)-1].off + e.parts[len(e.parts)-1].len
	if off != o.Size {
		t.Fatalf("the journal ends at %d of %d", off, o.Size)
	}
	journal = append(journal, fmt.Sprintf(`{"done":{"size":%d,"crc64nvme":%q}}`+"\n", o.Size, o.CRC64NVME)...)
	if err := os.WriteFile(r.Journal, journal, 0o600); err != nil {
		t.Fatal(err)
	}
	p.made = nil
	again, err := s.Put(t.Context(), r)
	if err != nil || again.ETag != o.ETag || again.Size != o.Size || len(p.made) != 0 {
		t.Errorf("again: %+v, %d pieces made, %v; want %+v", again, len(p.made), err, o)
	}
	absent(t, r.Journal)
}

// Between the store's last answer and the caller's own record nothing is lost.
func testStored(t *testing.T, s Store) {
	p := &producer{b: content(24, 9*unit), sizes: []int{2 * unit}, dies: -1}
	r := p.request(t, "stored/vol-0000")
	died := errors.New("died")
	r.Stored = func(o Object) error {
		if o.Size != int64(len(p.b)) || o.Checked == "" {
			t.Errorf("told of %+v", o)
		}
		return died
	}
	if _, err := s.Put(t.Context(), r); !errors.Is(err, died) {
		t.Fatal(err)
	}
	p.made = nil
	told := 0
	r.Stored = func(Object) error { told++; return nil }
	o, err := s.Put(t.Context(), r)
	if err != nil || o.Size != int64(len(p.b)) || told != 1 || len(p.made) != 0 {
		t.Errorf("again: %+v, %v; told %d times, %d pieces made", o, err, told, len(p.made))
	}
	absent(t, r.Journal)
}

// Wherever an earlier run broke off, and whatever of its parts the store has, the
// same object comes out, and nothing is asked for that the store has whole.
func TestCutterGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 50).Draw(t, "part")
		b := rapid.SliceOfN(rapid.Byte(), 1, 1000).Draw(t, "bytes")
		sizes := rapid.SliceOfN(rapid.IntRange(1, 120), 1, 5).Draw(t, "pieces")
		first := &producer{b: b, sizes: sizes, dies: rapid.IntRange(0, 60).Draw(t, "dies")}
		e := &earlier{head: journalHead{PartSize: int64(size)}}
		var known []Sent
		c := cutter{
			size: int64(size), limit: 1,
			note: func(p part) error {
				l := lineOf(p)
				if !e.follows(l) {
					t.Fatalf("%+v does not follow", l)
				}
				e.parts = append(e.parts, priorPart{off: p.off, len: p.len, crc: l.CRC, open: p.open})
				for _, pc := range p.pieces {
					sum, err := crc.FromBase64(pc.CRC)
					if err != nil {
						t.Fatal(err)
					}
					known = append(known, Sent{ID: pc.ID, Len: pc.Len, CRC: sum, Record: pc.Record})
				}
				return nil
			},
			send: func(context.Context, part) error { return nil },
		}
		none := func(func(Sent, error) bool) {}
		if _, _, err := c.run(context.Background(), "k", first.pieces(none)); err != nil && !errors.Is(err, errProducer) {
			t.Fatal(err)
		}
		got := make([]byte, len(b))
		for i := range e.parts {
			p := &e.parts[i]
			if p.stored = rapid.Bool().Draw(t, "stored"); p.stored {
				copy(got[p.off:p.off+p.len], b[p.off:])
			}
		}
		c.prior = e.parts
		var sent []int64
		c.note = func(p part) error {
			if int(p.number) <= len(e.parts) {
				t.Errorf("part %d is noted twice", p.number)
			}
			return nil
		}
		c.send = func(_ context.Context, p part) error {
			if int(p.number) <= len(e.parts) && e.parts[p.number-1].stored {
				t.Errorf("part %d is sent, which the store has", p.number)
			}
			sent = append(sent, p.len)
			copy(got[p.off:], p.buf)
			return nil
		}
		second := &producer{b: b, sizes: sizes, dies: -1}
		n, sum, err := c.run(context.Background(), "k", second.pieces(func(yield func(Sent, error) bool) {
			for _, s := range known {
				if !yield(s, nil) {
					return
				}
			}
		}))
		if err != nil || n != int64(len(b)) || sum != crc.NVME(b) || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes of %d, %v", n, len(b), err)
		}
		var off int64
		for i, s := range known {
			need := slices.ContainsFunc(e.parts, func(p priorPart) bool { return !p.stored && p.off < off+s.Len && off < p.off+p.len })
			if made := slices.Contains(second.made, i); made != need {
				t.Errorf("piece %d of %+v: made again: %t, needed: %t", i, e.parts, made, need)
			}
			off += s.Len
		}
	})
}
