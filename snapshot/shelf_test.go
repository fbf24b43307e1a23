package snapshot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// What stands on the shelf is not encoded: the archive is what it would have been,
// each such frame can be made again, also when its volume has ended, and keeps the
// time at which it was born.
func TestShelf(t *testing.T) {
	home := mixedHome(t)
	old := stageOf(t, home, "old")
	vols := archiveOf(t, old, PlanOptions{VolumeSize: smallFrame})
	var all []*Index
	for _, v := range sources(vols) {
		x, err := ReadIndex(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	born := time.Now().UTC().Truncate(time.Second)
	shelf := func(now time.Time, most int) (*Shelf, int) {
		s, frames := &Shelf{max: most}, 0
		for i, x := range all {
			n, err := s.Add(x, i, now)
			if err != nil {
				t.Fatal(err)
			}
			frames += n
		}
		s.Seal()
		return s, frames
	}
	full, frames := shelf(born, 0)
	for name, c := range map[string]struct {
		now  time.Time
		most int
		want int
	}{
		"29 days":            {born.Add(29 * 24 * time.Hour), 0, frames},
		"31 days":            {born.Add(31 * 24 * time.Hour), 0, 0},
		"from the future":    {born.Add(-2 * time.Hour), 0, 0},
		"a clock a bit off":  {born.Add(-time.Minute), 0, frames},
		"no more than there": {born, 3, 3},
	} {
		if _, n := shelf(c.now, c.most); n != c.want {
			t.Errorf("%s: %d frames, want %d", name, n, c.want)
		}
	}

	// One large file changes near its beginning, a small one is new.
	name := filepath.Join(home, "data/a.db/000100.ldb")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	rand.Read(b[100:200])
	for _, err := range []error{os.Remove(name), os.WriteFile(name, b, 0o600), os.WriteFile(filepath.Join(home, "data/b/new"), b[:9], 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	st := stageOf(t, home, "new")
	p, err := NewPlan(st, st.Roots(), PlanOptions{Archive: st.ID(), frame: smallFrame})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	v, err := p.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v.Reuse(full)
	var got []byte
	var shelved []Frame
	var made, reused int64
	for f, err := range v.Frames(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Place == nil {
			got, made = append(got, f.Data...), made+int64(f.ULen)
			continue
		}
		reused += int64(f.ULen)
		got = append(got, vols[f.Place.Volume][f.Place.Off:f.Place.Off+int64(f.CLen)]...)
		shelved = append(shelved, f)
	}
	read := v.Result().ReadBytes
	for _, f := range shelved {
		again, err := f.Again(t.Context())
		if err != nil || !bytes.Equal(again, got[f.Off:f.Off+int64(f.CLen)]) {
			t.Fatalf("a frame at %d is made again otherwise, %v", f.Off, err)
		}
	}
	if r := v.Result(); reused < made || r.ReadBytes <= read || read != r.SourceBytes {
		t.Errorf("%d bytes on the shelf, %d made; %d read, and %d when the former are made again", reused, made, read, r.ReadBytes)
	}
	x, err := ReadIndex(t.Context(), sources([][]byte{got})[0])
	if err != nil {
		t.Fatal(err)
	}
	for f, err := range x.Frames() {
		if err != nil || f.Born.IsZero() {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	if _, err := p.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if !bytes.Equal(decoded(t, got), decoded(t, bytes.Join(archiveOf(t, st, PlanOptions{}), nil))) {
		t.Error("the archive decodes to something else")
	}
}

func decoded(t *testing.T, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
