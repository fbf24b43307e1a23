package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/hint"
)

// proofOf is an archive of several volumes with a file that is cut, and its indexes.
func proofOf(t testing.TB) [][]byte {
	t.Helper()
	home := t.TempDir()
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(home, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		b := make([]byte, 300<<10)
		rand.Read(b)
		put(fmt.Sprintf("%d.ldb", i), b)
	}
	put("large.log", bytes.Repeat([]byte("a line of a log\n"), 5*smallFrame/2/16))
	vols := archiveOf(t, stageOf(t, home, "proof"), PlanOptions{Level: 1, VolumeSize: 1 << 20})
	if len(vols) < 3 {
		t.Fatalf("only %d volumes", len(vols))
	}
	return vols
}

// indexesOf reads them from wherever frames shall come from.
func indexesOf(t testing.TB, vols []VolumeSource) (indexes []*Index) {
	t.Helper()
	for _, v := range vols {
		x, err := ReadIndex(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Check(t.Context(), x.SHA256); err != nil {
			t.Fatal(err)
		}
		indexes = append(indexes, x)
	}
	return indexes
}

// tapped counts the bytes that are asked for, and those that are read.
func tapped(vols [][]byte, read *atomic.Int64) []VolumeSource {
	out := sources(vols)
	for i := range out {
		open := out[i].Open
		out[i].Open = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			r, err := open(ctx, off, n)
			return struct {
				io.Reader
				io.Closer
			}{io.TeeReader(r, counter{read}), r}, err
		}
	}
	return out
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return len(b), nil }

// What is picked comes out of the same pass: whole, the beginning, the size alone, or
// not at all.
func TestVerifyPicks(t *testing.T) {
	var read atomic.Int64
	vols := proofOf(t)
	indexes := indexesOf(t, tapped(vols, &read))
	read.Store(0)
	dir := t.TempDir()
	head := map[string]int64{"0.ldb": math.MaxInt64, "1.ldb": 1000, "2.ldb": 0, "large.log": 1<<20 + 77, "3.ldb": -1}
	var seen []string
	pick := &Pick{
		Dir: dir, See: func(name string) { seen = append(seen, name) },
		Head: func(name string) (int64, bool) { n, ok := head[name]; return n, ok && len(seen) == 7 },
	}
	rep, err := Verify(t.Context(), VerifyOptions{Indexes: indexes, Share: 1, Workers: 2, Into: pick})
	if err != nil || rep.Damaged > 0 || rep.BytesRead != rep.Bytes || read.Load() != rep.Bytes {
		t.Fatalf("%+v, %v, read %d", rep, err, read.Load())
	}
	whole := t.TempDir()
	if _, err := Extract(t.Context(), sources(vols), ExtractOptions{Dir: whole}); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != len(head) {
		t.Errorf("there are %v, %v", names, err)
	}
	for name, n := range head {
		want, err := os.ReadFile(filepath.Join(whole, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		clear(want[min(max(0, n), int64(len(want))):])
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d of %d: %v", name, len(got), n, len(want), err)
		}
	}
}

// Behind damage nothing more is picked, and all else is still looked at.
func TestVerifyPicksNothingBehindDamage(t *testing.T) {
	vols := proofOf(t)
	vols[0] = bytes.Clone(vols[0])
	vols[0][100] ^= 1
	dir := t.TempDir()
	pick := &Pick{Dir: dir, Head: func(string) (int64, bool) { return math.MaxInt64, true }}
	rep, err := Verify(t.Context(), VerifyOptions{Indexes: indexesOf(t, sources(vols)), Share: 1, Into: pick})
	if !errors.Is(err, ErrCorrupt) || rep.Damaged != 1 || rep.FramesRead != rep.Frames {
		t.Errorf("%+v, %v", rep, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 1 {
		t.Errorf("there are %v, %v", names, err)
	}
}

// Room is asked for before anything is fetched, and only for what is written.
func TestVerifyPicksWhereThereIsRoom(t *testing.T) {
	vols := sources(proofOf(t))
	pick := &Pick{Dir: t.TempDir(), Head: func(name string) (int64, bool) { return 1 << 20, name == "large.log" || name == "0.ldb" }}
	x := &extraction{o: ExtractOptions{Dir: pick.Dir}, verify: &VerifyOptions{Indexes: indexesOf(t, vols), Into: pick}}
	if err := errors.Join(x.open(), x.readIndexes(t.Context(), vols), x.preflight()); err != nil {
		t.Fatal(err)
	}
	if at := x.places[0]; at.bytes != 1<<20+300<<10 || at.names != 2 {
		t.Errorf("it would need %d bytes and %d names", at.bytes, at.names)
	}
	x.places[0].bytes = 1 << 60
	if err := x.preflight(); !errors.Is(err, ErrNoRoom) || hint.Of(err) == "" {
		t.Error(err)
	}
	if err := x.close(); err != nil {
		t.Error(err)
	}
}

func TestVerifyReadsEveryByteOnce(t *testing.T) {
	var read atomic.Int64
	indexes := indexesOf(t, tapped(proofOf(t), &read))
	read.Store(0)
	rep, err := Verify(t.Context(), VerifyOptions{Indexes: indexes, Share: 1, Workers: 2})
	if err != nil || rep.FramesRead != rep.Frames || rep.BytesRead != rep.Bytes || read.Load() != rep.Bytes {
		t.Fatalf("%+v, %d bytes read, %v", rep, read.Load(), err)
	}
}

// The same seed chooses the same frames, and of the store no more is asked for.
func TestVerifySamples(t *testing.T) {
	var read atomic.Int64
	indexes := indexesOf(t, tapped(proofOf(t), &read))
	sample := func(share float64, seed uint64) (VerifyReport, int64) {
		read.Store(0)
		rep, err := Verify(t.Context(), VerifyOptions{Indexes: indexes, Share: share, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		return rep, read.Load()
	}
	var seen []int64
	for seed := range uint64(20) {
		a, read := sample(0.4, seed)
		b, _ := sample(0.4, seed)
		if a != b || a.FramesRead != (a.Frames*2+4)/5 || read != a.BytesRead || read >= a.Bytes {
			t.Fatalf("seed %d: %+v, then %+v, %d bytes read", seed, a, b, read)
		}
		if !slices.Contains(seen, read) {
			seen = append(seen, read)
		}
	}
	if len(seen) < 3 {
		t.Errorf("twenty seeds chose frames of %v bytes only", seen)
	}
	if rep, _ := sample(1e-9, 1); rep.FramesRead != 1 {
		t.Errorf("a tiny share reads %d frames", rep.FramesRead)
	}
}

// Whichever frame is damaged, it is told of with its files, and all others are
// looked at.
func TestVerifyTellsOfEveryDamagedFrame(t *testing.T) {
	vols := proofOf(t)
	indexes := indexesOf(t, sources(vols))
	total := 0
	for v, x := range indexes {
		for f, err := range x.Frames() {
			if err != nil {
				t.Fatal(err)
			}
			vols[v][f.Off+int64(f.CLen)/2] ^= 1
			var got []FrameDamage
			rep, err := Verify(t.Context(), VerifyOptions{Indexes: indexes, Share: 1, Workers: 2, Damaged: func(d FrameDamage) { got = append(got, d) }})
			if !errors.Is(err, ErrCorrupt) || rep.Damaged != 1 || len(got) != 1 || got[0].Off != f.Off || rep.BytesRead != rep.Bytes {
				t.Fatalf("volume %d, frame at %d: %+v, %+v, %v", v, f.Off, rep, got, err)
			}
			if files := slices.DeleteFunc(slices.Clone(f.Entries), func(e IndexEntry) bool { return e.Type != TypeFile }); len(files) > 0 && (len(got[0].Files) == 0 || got[0].Files[0] != files[0].Path) {
				t.Fatalf("it holds %v, said %v", files, got[0].Files)
			}
			vols[v][f.Off+int64(f.CLen)/2] ^= 1
			total++
		}
	}
	for v, x := range indexes { // all of them at once
		for f := range x.Frames() {
			vols[v][f.Off+int64(f.CLen)/2] ^= 1
		}
	}
	if rep, err := Verify(t.Context(), VerifyOptions{Indexes: indexes, Share: 1}); !errors.Is(err, ErrCorrupt) || rep.Damaged != total {
		t.Fatalf("%d of %d frames, %v", rep.Damaged, total, err)
	}
	lost := errors.New("the store is away")
	indexes[1].vol.Open = func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, lost }
	if _, err := Verify(t.Context(), VerifyOptions{Indexes: indexes, Share: 1}); !errors.Is(err, lost) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("a store that does not answer: %v", err)
	}
}

func TestVolumeChecksumByArithmetic(t *testing.T) {
	vols := proofOf(t)
	indexes := indexesOf(t, sources(vols))
	for i, x := range indexes {
		if got, err := x.CRC(); err != nil || got != crc.NVME(vols[i]) {
			t.Errorf("volume %d: %x, want %x, %v", i, got, crc.NVME(vols[i]), err)
		}
	}
}

func TestSumsDiffer(t *testing.T) {
	indexes := indexesOf(t, sources(proofOf(t)))
	var list strings.Builder
	for _, x := range indexes {
		for f := range x.Frames() {
			for _, e := range f.Entries {
				if e.Type == TypeFile && e.Off+e.Len == e.Size {
					if err := writeSum(&list, e.Path, e.SHA256); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	whole := list.String()
	for name, text := range map[string]string{"": whole, "empty": "", "cut": whole[:len(whole)-1], "longer": whole + "x", "edited": strings.Replace(whole, "0.ldb", "O.ldb", 1)} {
		what, err := SumsDiffer(indexes, strings.NewReader(text))
		if err != nil || (what == "") != (name == "") {
			t.Errorf("%q: %q, %v", name, what, err)
		}
	}
}
