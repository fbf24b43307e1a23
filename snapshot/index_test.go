package snapshot

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// The index of very many files is never in one piece of memory, and reads as if it
// had been.
func TestIndexInPieces(t *testing.T) {
	w, err := newIndexWriter(IndexHeader{Format: formatVersion, MinReader: minReader, Last: true})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	hash := func() string {
		return fmt.Sprintf("%016x%016x%016x%016x", r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64())
	}
	const frames, files = 500, 200
	for i := range frames {
		f := IndexFrame{ID: hash(), Off: int64(i), CLen: 1, ULen: 1, CRC: "0"}
		for j := range files {
			f.Entries = append(f.Entries, IndexEntry{Type: TypeFile, Path: fmt.Sprint(i, j), SHA256: hash()})
		}
		if err := w.frame(f); err != nil {
			t.Fatal(err)
		}
	}
	index, sum, seek, err := w.finish()
	if err != nil || len(index) < 3 {
		t.Fatalf("%d pieces, %v", len(index), err)
	}
	for _, p := range index {
		if cap(p) > indexPiece+tailLen+indexPiece/4 {
			t.Errorf("a piece has %d bytes, room for %d", len(p), cap(p))
		}
	}
	vol := bytes.Join([][]byte{make([]byte, frames), bytes.Join(index, nil), seek}, nil)
	x, err := ReadIndex(t.Context(), sources([][]byte{vol})[0])
	if err != nil || x.SHA256 != sum || x.Data != frames {
		t.Fatalf("%+v, %v", x, err)
	}
	n := 0
	for f, err := range x.Frames() {
		if err != nil {
			t.Fatal(err)
		}
		n += len(f.Entries)
	}
	if n != frames*files {
		t.Errorf("%d files", n)
	}
}
