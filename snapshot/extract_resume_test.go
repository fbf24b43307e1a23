package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

var errCut = errors.New("the connection was cut")

// cutting are sources that give so many bytes in all, then fail.
func cutting(vols [][]byte, budget *int64) []VolumeSource {
	out := sources(vols)
	for i := range out {
		open := out[i].Open
		out[i].Open = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			r, err := open(ctx, off, n)
			return &cutReader{r, budget}, err
		}
	}
	return out
}

type cutReader struct {
	io.ReadCloser
	budget *int64
}

func (c *cutReader) Read(b []byte) (int, error) {
	if *c.budget <= 0 {
		return 0, errCut
	}
	n, err := c.ReadCloser.Read(b[:min(int64(len(b)), *c.budget)])
	*c.budget -= int64(n)
	return n, err
}

func TestAnExtractionGoesOn(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "data/app.db/000005.ldb"), random(t, 300<<10))
	write(t, filepath.Join(home, "data/app.db/000012.ldb"), bytes.Repeat([]byte("height and hash "), 70<<10))
	write(t, filepath.Join(home, "data/app.db/CURRENT"), []byte("MANIFEST-000001\n"))
	write(t, filepath.Join(home, "data/large.ldb"), append(make([]byte, smallFrame+64<<10), random(t, 200<<10)...))
	write(t, filepath.Join(home, "data/empty"), nil)
	for i := range 4 {
		write(t, filepath.Join(home, "wasm", fmt.Sprint(i)), random(t, 40<<10))
	}
	if err := os.Symlink("app.db/CURRENT", filepath.Join(home, "data/link")); err != nil {
		t.Fatal(err)
	}
	vols := archiveOf(t, stageOf(t, home, "20261120T235500Z-auto-000011"), PlanOptions{VolumeSize: 1 << 20})
	size := int64(0)
	for _, v := range vols {
		size += int64(len(v))
	}
	base := fastDir(t)
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		dir := filepath.Join(base, fmt.Sprint(seed))
		o := ExtractOptions{Dir: dir, Journal: dir + ".journal", Workers: 2}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		var fetched int64
		for {
			budget := rnd.Int64N(size)
			whole := budget
			rep, err := Extract(t.Context(), cutting(vols, &budget), o)
			fetched += whole - budget
			if err == nil {
				if rep.Files != 9 || rep.KeptFiles > 9 {
					t.Fatalf("seed %d: %+v", seed, rep)
				}
				break
			}
			if !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			harm(t, rnd, o)
		}
		diff(t, home, dir)
		budget := size
		again, err := Extract(t.Context(), cutting(vols, &budget), o)
		if err != nil {
			t.Fatal(err)
		}
		if again.KeptFiles != 9 || again.Fetched > 4096 {
			t.Fatalf("seed %d: nothing was missing, yet: %+v", seed, again)
		}
		diff(t, home, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// harm does what a crash, or a stranger, may do to what an extraction left.
func harm(t *testing.T, rnd *rand.Rand, o ExtractOptions) {
	b, err := os.ReadFile(o.Journal)
	if err != nil {
		return // it failed before it had one
	}
	switch rnd.IntN(5) {
	case 0:
		err = os.WriteFile(o.Journal, b[:rnd.IntN(len(b))], 0o600)
	case 1:
		err = os.Remove(o.Journal)
	case 2:
		err = os.WriteFile(filepath.Join(o.Dir, "data/empty"), []byte("no"), 0o600)
	case 3:
		err = os.Mkdir(filepath.Join(o.Dir, "data/large.ldb"), 0o700)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
}

func TestOnlyTheSameExtractionGoesOn(t *testing.T) {
	vols := archiveOf(t, stageOf(t, smallHome(t), "20261120T235500Z-auto-000012"), PlanOptions{})
	dir := t.TempDir()
	o := ExtractOptions{Dir: filepath.Join(dir, "work"), Journal: filepath.Join(dir, "journal")}
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Extract(t.Context(), sources(vols), o); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.Dir, "stranger"), nil)
	other := smallHome(t)
	rep, err := Extract(t.Context(), sources(archiveOf(t, stageOf(t, other, "20261120T235500Z-auto-000013"), PlanOptions{})), o)
	if err != nil || rep.KeptFiles != 0 {
		t.Fatalf("%+v %v", rep, err)
	}
	diff(t, other, o.Dir)
}

func TestNamesGoToTheirPlaces(t *testing.T) {
	home := smallHome(t)
	vols := archiveOf(t, stageOf(t, home, "20261120T235500Z-auto-000014"), PlanOptions{})
	base := t.TempDir()
	o := ExtractOptions{Dir: filepath.Join(base, "home"), Preflight: true, Places: []Place{
		{Prefix: "data", Dir: filepath.Join(base, "disk")}, {Prefix: "data/app.db", Dir: filepath.Join(base, "fast")},
	}}
	for _, d := range []string{"home", "disk", "fast"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Extract(t.Context(), sources(vols), o); err != nil {
		t.Fatal(err)
	}
	diff(t, filepath.Join(home, "wasm"), filepath.Join(base, "home/wasm"))
	diff(t, filepath.Join(home, "data/app.db"), filepath.Join(base, "fast"))
	if err := os.RemoveAll(filepath.Join(home, "data/app.db")); err != nil {
		t.Fatal(err)
	}
	diff(t, filepath.Join(home, "data"), filepath.Join(base, "disk"))
	if _, err := os.Stat(filepath.Join(base, "home/data")); !os.IsNotExist(err) {
		t.Fatalf("a place's own directory was made: %v", err)
	}
}

func FuzzJournal(f *testing.F) {
	head := []byte(`{"format":1}`)
	f.Add([]byte("{\"format\":1}\n{\"from\":0,\"to\":3}\n{\"from\":3"))
	f.Add([]byte("{\"format\":1}\n{\"from\":-1,\"to\":999999999999}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		complete, ok := parseJournal(b, head, 100)
		if !ok && complete != nil || len(complete) > 2 || complete.has(100) {
			t.Fatalf("%v %t", complete, ok)
		}
	})
}
