package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/s3fake"
)

// run is a stretch of an object: bytes of its own, or those of another.
type run struct {
	b    []byte
	from *Range // nil: of its own
}

// patched yields the pieces of an object that is made of runs. Those that stand in
// the bucket are made only when somebody asks for them.
type patched struct {
	runs  []run
	piece int
	made  atomic.Int64 // bytes that stand in the bucket, and were asked for all the same
	dies  func() bool  // nil: never
	moved atomic.Value
}

func (p *patched) whole() (b []byte) {
	for _, r := range p.runs {
		b = append(b, r.b...)
	}
	return b
}

func (p *patched) pieces(sent iter.Seq2[Sent, error]) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		next, stop := iter.Pull2(sent)
		defer stop()
		n, shared := 0, make([]byte, p.piece) // valid until the next call
		for _, r := range p.runs {
			for off := 0; off < len(r.b); off += p.piece {
				b := r.b[off:min(off+p.piece, len(r.b))]
				piece := Piece{ID: fmt.Sprintf("piece-%d", n)}
				n++
				again := func(context.Context) ([]byte, error) {
					p.made.Add(int64(len(b)))
					clear(shared)
					return shared[:copy(shared, b)], nil
				}
				s, err, known := next()
				switch {
				case err != nil:
					yield(Piece{}, err)
					return
				case known:
					piece.Len, piece.CRC, piece.Bytes = s.Len, s.CRC, again
				case r.from != nil:
					piece.Len, piece.CRC, piece.Bytes = int64(len(b)), crc.NVME(b), again
					piece.Reuse = &Range{Key: r.from.Key, ETag: r.from.ETag, Off: r.from.Off + int64(off), Len: int64(len(b))}
				default:
					piece.Bytes = func(context.Context) ([]byte, error) { return b, nil }
				}
				if p.dies != nil && p.dies() {
					yield(Piece{}, errProducer)
					return
				}
				if !yield(piece, nil) {
					return
				}
			}
		}
	}
}

func (p *patched) request(t testing.TB, key string) PutRequest {
	return PutRequest{
		Key: key, Upper: int64(len(p.whole())) + 1000, Pieces: p.pieces, Reuses: true,
		Journal: filepath.Join(t.TempDir(), "journal"), Identity: map[string]string{"plan": "abc"},
		Moved: func(m Moved) { p.moved.Store(m) },
	}
}

func (p *patched) soFar() Moved {
	m, _ := p.moved.Load().(Moved)
	return m
}

// patch puts an object of 41 units, and makes another of two runs of it with bytes
// between, before and behind. Of its six parts three stand whole in a run.
func patch(t testing.TB, s Store) (*patched, Object) {
	t.Helper()
	src := content(41, 41*unit)
	o := mustPut(t, s, "gaia/data/old/vol", src)
	at := func(off, n int) run {
		return run{src[off : off+n], &Range{Key: o.Key, ETag: o.ETag, Off: int64(off)}}
	}
	return &patched{piece: 3 * unit, runs: []run{
		{b: content(42, 5*unit)}, at(1000, 20*unit), {b: content(43, 100)}, at(21*unit, 20*unit), {b: content(44, 3*unit)},
	}}, o
}

// same compares a stored object with what it must be.
func (p *patched) same(t testing.TB, s Store, o Object) {
	t.Helper()
	want := p.whole()
	if o.Size != int64(len(want)) || o.CRC64NVME != crc.Base64(crc.NVME(want)) || o.Checked == "" {
		t.Errorf("stored %+v", o)
	}
	if got, err := readRange(t, s, o.Key, o.ETag, 0, -1); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back, they are the same: %t, %v", len(got), bytes.Equal(got, want), err)
	}
}

// What stands in the store is copied there, where the store can do it; the object
// is whole without its source.
func testCopies(t *testing.T, s Store) {
	caps, err := NewCatalog(s, "gaia").Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, src := patch(t, s)
	o, err := s.Put(t.Context(), p.request(t, "gaia/data/new/vol"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), src.Key); err != nil {
		t.Fatal(err)
	}
	p.same(t, s, o)
	m := p.soFar()
	copied := int64(0)
	if s.Copies() {
		copied = 3 * 8 * unit
	}
	if m.Copied != copied || m.Sent != o.Size-copied || m.Kept != 0 || s.Copies() != (caps.PartCopy == Kept) {
		t.Errorf("moved %+v of %d bytes, want %d copied", m, o.Size, copied)
	}
	t.Logf("%s: copies %q with checksums %q, moved %+v, checked by %s", s.URL(), caps.PartCopy, caps.CopySums, m, o.Checked)
}

// wrongly are the ways in which stores take a copied part into an upload with a
// checksum, and what the probe says.
var wrongly = map[s3fake.Copies]Answer{
	s3fake.CopiesKnown: Kept, s3fake.CopiesRefused: Refused, s3fake.CopiesWholeSum: Ignored, s3fake.CopiesNoSum: Ignored,
}

func TestCopiesOnEveryStore(t *testing.T) {
	for way, want := range wrongly {
		s, server := fake(t, s3fake.Quirks{Copies: way})
		testCopies(t, s)
		caps := s.known()
		if caps.CopySums != want || caps.PartCopy != Kept {
			t.Errorf("way %d: the probe says %q and %q", way, caps.PartCopy, caps.CopySums)
		}
		o, err := s.Stat(t.Context(), "gaia/data/new/vol")
		if err != nil || (o.CRC64NVME != "") != (want == Kept) || server.Calls("GetObject") == 0 {
			t.Errorf("way %d: the store has the checksum %q, %v", way, o.CRC64NVME, err)
		}
	}
	// Without a probe nothing is copied.
	s, server := fake(t, s3fake.Quirks{})
	p, _ := patch(t, s)
	o, err := s.Put(t.Context(), p.request(t, "new"))
	if err != nil || s.Copies() || server.Calls("UploadPartCopy") != 0 {
		t.Fatal(err)
	}
	p.same(t, s, o)
}

// Whatever becomes of the source, the object comes out whole: what cannot be
// copied is sent.
func TestCopiesFallBack(t *testing.T) {
	const source = "eddy/gaia/data/old/vol"
	for name, c := range map[string]struct {
		at     int // the copy at which it happens
		happen func(*s3fake.Server) *s3fake.Reply
		calls  int  // of UploadPartCopy at most: four in flight do not know of each other
		stays  bool // the store is asked to copy the next object
	}{
		"the source is deleted":   {2, func(s *s3fake.Server) *s3fake.Reply { s.Remove(source); return nil }, 4, true},
		"the source is replaced":  {2, func(*s3fake.Server) *s3fake.Reply { return &s3fake.Reply{Status: 412, Code: "PreconditionFailed"} }, 4, true},
		"the store refuses":       {1, func(*s3fake.Server) *s3fake.Reply { return &s3fake.Reply{Status: 501, Code: "NotImplemented"} }, 4, false},
		"it is in an archive":     {2, func(*s3fake.Server) *s3fake.Reply { return &s3fake.Reply{Status: 403, Code: "InvalidObjectState"} }, 4, false},
		"an error in a success":   {2, func(*s3fake.Server) *s3fake.Reply { return &s3fake.Reply{Status: 200, Code: "InternalError"} }, 9, true},
		"no more than a slowdown": {2, func(*s3fake.Server) *s3fake.Reply { return &s3fake.Reply{Status: 503, Code: "SlowDown"} }, 9, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := fake(t, s3fake.Quirks{})
			if _, err := NewCatalog(s, "gaia").Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			p, _ := patch(t, s)
			first := server.Calls("UploadPartCopy")
			server.Fault = func(call s3fake.Call) *s3fake.Reply {
				if call.Op == "UploadPartCopy" && call.N == first+c.at {
					return c.happen(server)
				}
				return nil
			}
			o, err := s.Put(t.Context(), p.request(t, "gaia/data/new/vol"))
			if err != nil {
				t.Fatal(err)
			}
			p.same(t, s, o)
			m, n := p.soFar(), server.Calls("UploadPartCopy")-first
			if m.Copied+m.Sent != o.Size || n > c.calls || s.Copies() != c.stays {
				t.Errorf("moved %+v by %d copies; it copies: %t", m, n, s.Copies())
			}
		})
	}
}

// A bit that has rotted in the source is found before the object counts: by the
// store's checksum where it has one, else where it is read back.
func TestRottenCopies(t *testing.T) {
	for name, q := range map[string]s3fake.Quirks{
		"the store knows": {}, "it copies without a checksum": {Copies: s3fake.CopiesRefused}, "it has none": {Checksums: s3fake.SumsNo64},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := fake(t, q)
			if _, err := NewCatalog(s, "gaia").Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			src := content(41, 20*unit)
			o := mustPut(t, s, "old", src)
			p := &patched{piece: 3 * unit, runs: []run{{src, &Range{Key: o.Key, ETag: o.ETag}}, {b: []byte("the end")}}}
			server.Rot("eddy/old", 10*unit)
			r := p.request(t, "new")
			if _, err := s.Put(t.Context(), r); !errors.Is(err, ErrCopied) || errors.Is(err, ErrDamaged) {
				t.Fatalf("%v", err)
			}
			if n := server.Uploads(); n != 0 {
				t.Errorf("%d uploads are left", n)
			}
			// Again, without.
			for i := range p.runs {
				p.runs[i].from = nil
			}
			r.Reuses = false
			o, err := s.Put(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			p.same(t, s, o)
		})
	}
}

// An upload with copied parts that died is gone on with: they count like others.
func TestCopiesAreGoneOnWith(t *testing.T) {
	for way := range wrongly {
		s, server := fake(t, s3fake.Quirks{Copies: way})
		if _, err := NewCatalog(s, "gaia").Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, _ := patch(t, s)
		r := p.request(t, "gaia/data/new/vol")
		n := 0
		p.dies = func() bool {
			if n++; n < 14 {
				return false
			}
			for p.soFar().Copied < 2*8*unit {
				time.Sleep(time.Millisecond)
			}
			return true
		}
		if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
			t.Fatal(err)
		}
		// The next run finds that the source has gone meanwhile.
		server.Remove("eddy/gaia/data/old/vol")
		p.dies = nil
		o, err := s.Put(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		p.same(t, s, o)
		if m := p.soFar(); m.KeptCopied < 2*8*unit || m.Kept+m.Sent+m.Copied != o.Size {
			t.Errorf("way %d: moved %+v of %d bytes", way, m, o.Size)
		}
	}
}

// However runs and pieces lie, the parts hold the right bytes, a part that is
// copied is of full size, and each byte comes once.
func TestCutterCopies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 40).Draw(t, "part")
		src := rapid.SliceOfN(rapid.Byte(), 200, 200).Draw(t, "source")
		p := &patched{piece: rapid.IntRange(1, 60).Draw(t, "piece")}
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			off := rapid.IntRange(0, 150).Draw(t, "off")
			r := run{b: src[off : off+rapid.IntRange(1, 50).Draw(t, "n")]}
			if rapid.Bool().Draw(t, "stands there") {
				r.from = &Range{Key: "k", Off: int64(off)}
			}
			p.runs = append(p.runs, r)
		}
		refuses := rapid.SliceOfN(rapid.Bool(), 1, 5).Draw(t, "refuses")
		want := p.whole()
		got := make([]byte, len(want))
		c := cutter{
			size: int64(size), limit: 3, note: func(part) error { return nil },
			copies: func(*Range) bool { return true },
			send: func(_ context.Context, pt part) error {
				if crc.NVME(pt.buf) != pt.crc || int64(len(pt.buf)) != pt.len {
					t.Errorf("part %d: %d bytes of %d", pt.number, len(pt.buf), pt.len)
				}
				copy(got[pt.off:], pt.buf)
				return nil
			},
			copy: func(_ context.Context, pt part) (bool, error) {
				if pt.len != int64(size) || pt.from.Len != pt.len {
					t.Errorf("a copied part of %d bytes", pt.len)
				}
				if pr := pt.proof; pr.Off > pt.off || pr.Off+pr.Len < pt.off+pt.len || pr.CRC != crc.Base64(crc.NVME(want[pr.Off:pr.Off+pr.Len])) {
					t.Errorf("proof %+v of the part at %d", pt.proof, pt.off)
				}
				if refuses[int(pt.number)%len(refuses)] {
					return false, nil
				}
				copy(got[pt.off:], src[pt.from.Off:pt.from.Off+pt.from.Len])
				return true, nil
			},
		}
		n, sum, err := c.run(context.Background(), "k", p.pieces(func(func(Sent, error) bool) {}))
		if err != nil || n != int64(len(want)) || sum != crc.NVME(want) || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, %v", n, len(want), err)
		}
	})
}
