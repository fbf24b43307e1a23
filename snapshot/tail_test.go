package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// tailOf is a small archive's last volume, and where its index begins.
func tailOf(t testing.TB) (vol []byte, x *Index) {
	t.Helper()
	home := t.TempDir()
	for i := range 5 {
		b := make([]byte, 300<<10)
		rand.Read(b)
		if err := os.WriteFile(filepath.Join(home, fmt.Sprintf("%d.ldb", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vols := archiveOf(t, stageOf(t, home, "tail"), PlanOptions{Level: 1})
	vol = vols[len(vols)-1]
	x, err := ReadIndex(t.Context(), sources([][]byte{vol})[0])
	if err != nil {
		t.Fatal(err)
	}
	return vol, x
}

// Whatever bit of index or seek table comes back another one, it is found; what is
// in the frames is not looked at here.
func TestCheckTail(t *testing.T) {
	vol, x := tailOf(t)
	check := func(b []byte) error { return CheckTail(t.Context(), sources([][]byte{b})[0], x.SHA256) }
	if err := check(vol); err != nil {
		t.Fatal(err)
	}
	for i := int64(0); i < int64(len(vol)); i++ {
		if i < x.Data-100 {
			i = x.Data - 100
		}
		b := bytes.Clone(vol)
		b[i] ^= 0x40
		err := check(b)
		if i < x.Data && err != nil || i >= x.Data && err == nil {
			t.Errorf("byte %d of the index at %d: %v", i, x.Data, err)
		}
	}
	for _, n := range []int{0, 1, 8, 100, len(vol) - 1} {
		if err := check(vol[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if err := CheckTail(t.Context(), sources([][]byte{vol})[0], "00"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another index: %v", err)
	}
	lost := errors.New("the store is away")
	v := VolumeSource{Name: "v", Size: int64(len(vol)), Open: func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, lost }}
	if err := CheckTail(t.Context(), v, x.SHA256); !errors.Is(err, lost) || errors.Is(err, ErrCorrupt) {
		t.Errorf("a store that does not answer: %v", err)
	}
}

// A seek table that lies is never believed.
func FuzzSeekTable(f *testing.F) {
	vol, x := tailOf(f)
	table := vol[x.Data:]
	f.Add(table)
	f.Add(table[len(table)-footerLen:])
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0xB1, 0xEA, 0x92, 0x8F})
	f.Fuzz(func(t *testing.T, b []byte) {
		err := CheckTail(t.Context(), sources([][]byte{append(bytes.Clone(vol[:x.Data]), b...)})[0], x.SHA256)
		if (err == nil) != bytes.Equal(b, table) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	})
}
