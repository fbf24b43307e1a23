package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/fsx"
)

var fixedTime = time.Unix(1700000000, 0)

// stageOf stages all of a directory: *.ldb linked, everything else copied.
func stageOf(t testing.TB, home, id string) *Stage {
	t.Helper()
	st, err := CreateStage(fsx.FS{}, id, []Root{{Path: home}})
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.Walk(home, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(home, p)
		if err != nil {
			return err
		}
		switch {
		case fi.IsDir() && fi.Name() == StageDir:
			return filepath.SkipDir
		case fi.IsDir():
			return st.Dir("", rel)
		case fi.Mode()&os.ModeSymlink != 0:
			return st.Symlink("", rel)
		case strings.HasSuffix(rel, ".ldb"):
			return st.Link(t.Context(), "", rel)
		default:
			return st.Copy(t.Context(), "", rel)
		}
	})
	if err == nil {
		err = st.Seal(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// archiveOf encodes a stage into volumes in memory, with frames of smallFrame unless
// told otherwise.
func archiveOf(t testing.TB, st *Stage, o PlanOptions) [][]byte {
	t.Helper()
	o.frame = cmp.Or(o.frame, smallFrame)
	o.Archive = st.ID()
	p, err := NewPlan(st, st.Roots(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var vols [][]byte
	for {
		v, err := p.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return vols
		}
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for f, err := range v.Frames(t.Context(), nil) {
			if err != nil {
				t.Fatal(err)
			}
			if f.Off != int64(b.Len()) {
				t.Fatalf("frame at %d, expected %d", f.Off, b.Len())
			}
			b.Write(f.Data)
		}
		if int64(b.Len()) != v.Result().Size || v.Result().Size > v.Upper() {
			t.Fatalf("volume has %d bytes, result %d, upper bound %d", b.Len(), v.Result().Size, v.Upper())
		}
		vols = append(vols, b.Bytes())
	}
}

func sources(vols [][]byte) []VolumeSource {
	out := make([]VolumeSource, len(vols))
	for i, b := range vols {
		out[i] = VolumeSource{
			Name: fmt.Sprintf("vol-%04d.tar.zst", i), Size: int64(len(b)),
			Open: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
			},
		}
	}
	return out
}

// fastDir is a directory in memory where that can be had: tests that extract a
// thousand times would wait for everything else that the machine writes.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o640); err != nil {
		t.Fatal(err)
	}
}

func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// smallHome has a file of every kind that the format treats differently, for frames
// of smallFrame.
func smallHome(t testing.TB) string {
	t.Helper()
	return homeFor(t, smallFrame)
}

func homeFor(t testing.TB, frame int) string {
	t.Helper()
	home := t.TempDir()
	write(t, filepath.Join(home, "data/app.db/000005.ldb"), random(t, 300<<10))
	write(t, filepath.Join(home, "data/app.db/000012.ldb"), bytes.Repeat([]byte("height and hash "), 70<<10))
	write(t, filepath.Join(home, "data/app.db/CURRENT"), []byte("MANIFEST-000001\n"))
	write(t, filepath.Join(home, "data/app.db/000013.log"), random(t, 1000))
	write(t, filepath.Join(home, "data/large.ldb"), random(t, 2*frame+123))
	write(t, filepath.Join(home, "data/empty"), nil)
	write(t, filepath.Join(home, "data/odd\nname \xff\\"), []byte("odd"))
	write(t, filepath.Join(home, "wasm", strings.Repeat("deep/", 30), "file"), []byte("deep"))
	if err := os.Symlink("app.db/CURRENT", filepath.Join(home, "data/link")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(home, "data/sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(int64(frame)+1<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	return home
}

func diff(t testing.TB, a, b string) {
	t.Helper()
	out, err := exec.Command("diff", "-r", "--no-dereference", "-x", StageDir, a, b).CombinedOutput()
	if err != nil {
		t.Fatalf("%s and %s differ: %s", a, b, out)
	}
}

func TestRoundTrip(t *testing.T) {
	home := homeFor(t, frameContent)
	st := stageOf(t, home, "20261120T235500Z-auto-000001")
	for _, volumeSize := range []int64{0, 1 << 20} {
		vols := archiveOf(t, st, PlanOptions{VolumeSize: volumeSize, frame: frameContent})
		if volumeSize != 0 && len(vols) < 2 {
			t.Fatalf("%d volumes, want several", len(vols))
		}
		dir := t.TempDir()
		rep, err := Extract(t.Context(), sources(vols), ExtractOptions{Dir: dir, Preflight: true})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Files != 9 {
			t.Fatalf("%d files, want 9", rep.Files)
		}
		diff(t, home, dir)
		a, err := os.Stat(filepath.Join(home, "data/app.db/000013.log"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.Stat(filepath.Join(dir, "data/app.db/000013.log"))
		if err != nil {
			t.Fatal(err)
		}
		if a.Mode() != b.Mode() || !a.ModTime().Truncate(1e9).Equal(b.ModTime().Truncate(1e9)) {
			t.Fatalf("mode %v and time %v, want %v and %v", b.Mode(), b.ModTime(), a.Mode(), a.ModTime())
		}
		if out, err := exec.Command("du", "-k", filepath.Join(dir, "data/sparse")).Output(); err != nil || !strings.HasPrefix(string(out), "0") {
			t.Fatalf("the hole was filled: du says %s, %v", out, err)
		}
	}
}

func TestStockToolsRestoreIt(t *testing.T) {
	home := smallHome(t)
	st := stageOf(t, home, "20261120T235500Z-auto-000002")
	var sums bytes.Buffer
	for _, volumeSize := range []int64{0, 1 << 20} {
		sums.Reset()
		vols := archiveOf(t, st, PlanOptions{VolumeSize: volumeSize, Sums: &sums})
		dir := t.TempDir()
		for i, b := range vols {
			name := filepath.Join(dir, fmt.Sprintf("vol-%04d.tar.zst", i))
			write(t, name, b)
			for _, flag := range []string{"-t", "-l"} {
				if out, err := exec.Command("zstd", flag, name).CombinedOutput(); err != nil {
					t.Fatalf("zstd %s: %v: %s", flag, err, out)
				}
			}
		}
		write(t, filepath.Join(dir, "sums"), sums.Bytes())
		out, err := exec.Command("bash", "-c", "set -eo pipefail; cd "+dir+"; mkdir x; cat vol-* | zstd -dc | tar -x -C x; cd x; sha256sum --strict --quiet -c ../sums").CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Fatalf("%v: %s", err, out)
		}
		diff(t, home, filepath.Join(dir, "x"))
	}
}

func TestWorkersChangeNothing(t *testing.T) {
	st := stageOf(t, smallHome(t), "20261120T235500Z-auto-000003")
	one := archiveOf(t, st, PlanOptions{Workers: 1})
	for _, n := range []int{2, 5} {
		if !bytes.Equal(dataOf(t, one[0]), dataOf(t, archiveOf(t, st, PlanOptions{Workers: n})[0])) {
			t.Fatalf("%d encoders make other bytes than one", n)
		}
	}
}

// dataOf is a volume without its index, which tells the time.
func dataOf(t testing.TB, vol []byte) []byte {
	t.Helper()
	ix, err := ReadIndex(t.Context(), sources([][]byte{vol})[0])
	if err != nil {
		t.Fatal(err)
	}
	return vol[:ix.Data]
}

func tinyArchive(t testing.TB) [][]byte {
	t.Helper()
	home := t.TempDir()
	write(t, filepath.Join(home, "data/a.ldb"), []byte("a table of a database"))
	write(t, filepath.Join(home, "data/b"), []byte("a log"))
	return archiveOf(t, stageOf(t, home, "20261120T235500Z-auto-000004"), PlanOptions{})
}

func TestEveryFlippedBitAndEveryCutIsFound(t *testing.T) {
	vol := tinyArchive(t)[0]
	ix, err := ReadIndex(t.Context(), sources([][]byte{vol})[0])
	if err != nil {
		t.Fatal(err)
	}
	// The seek table is for other tools; eddy reads only its length and magic.
	seek := len(vol) - footerLen - int(4*seekEntry) - 8
	for i := range vol {
		if i >= seek && i < len(vol)-footerLen || i == len(vol)-footerLen+4 {
			continue
		}
		bad := bytes.Clone(vol)
		bad[i] ^= 0x40
		if _, err := Extract(t.Context(), sources([][]byte{bad}), ExtractOptions{Dir: fastDir(t)}); err == nil {
			t.Fatalf("byte %d of %d (frames end at %d) was flipped and nobody noticed", i, len(vol), ix.Data)
		}
	}
	for n := range vol {
		_, err := Extract(t.Context(), sources([][]byte{vol[:n]}), ExtractOptions{Dir: fastDir(t)})
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
}

func TestMissingAndStrangeVolumesAreFound(t *testing.T) {
	st := stageOf(t, smallHome(t), "20261120T235500Z-auto-000005")
	vols := archiveOf(t, st, PlanOptions{VolumeSize: 1 << 20})
	if len(vols) < 3 {
		t.Fatalf("%d volumes, want three at least", len(vols))
	}
	for what, bad := range map[string][][]byte{
		"first missing":   vols[1:],
		"last missing":    vols[:len(vols)-1],
		"middle missing":  append([][]byte{vols[0]}, vols[2:]...),
		"order":           append([][]byte{vols[1], vols[0]}, vols[2:]...),
		"another archive": append([][]byte{tinyArchive(t)[0]}, vols[1:]...),
	} {
		if _, err := Extract(t.Context(), sources(bad), ExtractOptions{Dir: t.TempDir()}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
}

func TestAnInsertionMovesOneGroup(t *testing.T) {
	ids := func(extra bool) map[string]bool {
		home := t.TempDir()
		for i := range 400 {
			write(t, filepath.Join(home, fmt.Sprintf("wasm/%05d", i*2)), fmt.Appendf(nil, "module %d", i))
		}
		if extra {
			write(t, filepath.Join(home, "wasm/00333"), []byte("new"))
		}
		// Times differ between the two homes; what is compared is grouping.
		if err := filepath.Walk(home, func(p string, _ os.FileInfo, err error) error {
			return errors.Join(err, os.Chtimes(p, fixedTime, fixedTime))
		}); err != nil {
			t.Fatal(err)
		}
		st := stageOf(t, home, "20261120T235500Z-auto-000006")
		ix, err := ReadIndex(t.Context(), sources(archiveOf(t, st, PlanOptions{}))[0])
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]bool{}
		for f, err := range ix.Frames() {
			if err != nil {
				t.Fatal(err)
			}
			out[f.ID] = true
		}
		return out
	}
	before, after := ids(false), ids(true)
	moved := 0
	for id := range after {
		if !before[id] {
			moved++
		}
	}
	if len(before) < 6 || moved > 2 {
		t.Fatalf("%d of %d frames are new after one insertion, want at most 2", moved, len(after))
	}
}

func TestOnlyExtractsWhatMatches(t *testing.T) {
	vols := archiveOf(t, stageOf(t, smallHome(t), "20261120T235500Z-auto-000007"), PlanOptions{})
	dir := t.TempDir()
	rep, err := Extract(t.Context(), sources(vols), ExtractOptions{Dir: dir, Only: []string{"data/app.db"}})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Files != 4 {
		t.Fatalf("%d files, want the 4 of app.db", rep.Files)
	}
	if _, err := os.Stat(filepath.Join(dir, "data/large.ldb")); !os.IsNotExist(err) {
		t.Fatalf("a file that was not asked for: %v", err)
	}
}

func TestRandomTreesRoundTrip(t *testing.T) {
	base := fastDir(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		home := filepath.Join(base, fmt.Sprint(n))
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c]{1,2}/[a-z0-9é\n\\ ]{1,40}`), 1, 12, rapid.ID[string]).Draw(rt, "names")
		for i, name := range names {
			size := rapid.SampledFrom([]int{0, 1, 511, 512, 513, 5000, ownFrame - 1, ownFrame}).Draw(rt, "size")
			if i%3 == 0 {
				name += ".ldb"
			}
			write(t, filepath.Join(home, name), random(t, size))
		}
		st := stageOf(t, home, "20261120T235500Z-auto-000008")
		dir := filepath.Join(base, fmt.Sprint(n, "-back"))
		if err := os.Mkdir(dir, 0o700); err != nil {
			rt.Fatal(err)
		}
		vols := archiveOf(t, st, PlanOptions{VolumeSize: rapid.SampledFrom([]int64{0, 1, 4096}).Draw(rt, "volume")})
		if _, err := Extract(t.Context(), sources(vols), ExtractOptions{Dir: dir}); err != nil {
			rt.Fatal(err)
		}
		diff(t, home, dir)
		if err := errors.Join(os.RemoveAll(home), os.RemoveAll(dir)); err != nil {
			rt.Fatal(err)
		}
	})
}

func FuzzReadIndex(f *testing.F) {
	f.Add(tinyArchive(f)[0])
	f.Add([]byte("nothing"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := ReadIndex(t.Context(), sources([][]byte{b})[0])
		if err != nil {
			return
		}
		for _, err := range ix.Frames() {
			if err != nil {
				return
			}
		}
	})
}

func FuzzExtract(f *testing.F) {
	f.Add(tinyArchive(f)[0])
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := fastDir(t) // a sync of a disk takes longer than all the rest
		dir := filepath.Join(outer, "target")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = Extract(t.Context(), sources([][]byte{b}), ExtractOptions{Dir: dir}) // any answer but a write outside
		names, err := os.ReadDir(outer)
		if err != nil || len(names) != 1 {
			t.Fatalf("outside of the target: %v, %v", names, err)
		}
	})
}
