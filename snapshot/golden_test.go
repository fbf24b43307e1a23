package snapshot

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// write-golden is for a new format only: the archives of an old one are never
// made again, they are what must stay readable.
var writeGolden = flag.Bool("write-golden", false, "write the golden archive of the present format")

// goldenSource is a sealed stage whose every field is fixed.
type goldenSource struct{ dir string }

// goldenText is content that anybody can make again: the name of the file and a
// counter, line by line, cut at n bytes.
func goldenText(name string, n int64) []byte {
	var b bytes.Buffer
	for i := 0; int64(b.Len()) < n; i++ {
		fmt.Fprintf(&b, "%s %d\n", name, i/1024)
	}
	return b.Bytes()[:n]
}

func (goldenSource) entries() []Entry {
	at := time.Unix(1700000000, 123456789)
	dir := func(name string) Entry {
		return Entry{Name: name, Type: TypeDir, Mode: 0o750, MTime: at, UID: 1000, GID: 1001}
	}
	file := func(name string, how Treatment, size int64) Entry {
		return Entry{Name: name, Type: TypeFile, Treatment: how, Size: size, Mode: 0o640, MTime: at, UID: 1000, GID: 1001}
	}
	long := "data/" + strings.Repeat("long", 60) + ".sst"
	big := file("data/app.db/000009.ldb", Linked, 9<<20+17)
	old := file("data/old", Copied, 12)
	old.MTime, old.Mode = time.Unix(-5, 0), 0o4755
	far := file("data/far", Copied, 0)
	far.UID, far.GID, far.MTime = 1<<31-2, 1<<22, time.Unix(1<<34, 0)
	return []Entry{
		dir("data"), dir("data/app.db"),
		file("data/app.db/000002.ldb", Linked, 511), big, file("data/app.db/000010.ldb", Linked, 256<<10),
		file(long, Linked, 700),
		file("data/app.db/MANIFEST-000011", Copied, 512), far, file("data/line\nfeed\xff", Copied, 3), old,
		{Name: "data/link", Type: TypeSymlink, Mode: 0o777, MTime: at, UID: 1000, GID: 1001, Link: "app.db/CURRENT"},
		file("data/app.db/CURRENT", Copied, 16),
	}
}

func (s goldenSource) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range s.entries() {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (s goldenSource) Open(e Entry) (*os.File, error) {
	name := filepath.Join(s.dir, fmt.Sprintf("%x", sha256.Sum256([]byte(e.Name))))
	if err := os.WriteFile(name, goldenText(e.Name, e.Size), 0o600); err != nil {
		return nil, err
	}
	return os.Open(name)
}

// describe tells what volumes decode to and how they are cut: everything that
// the format fixes, nothing that an encoder may choose.
func describe(t *testing.T, vols [][]byte) string {
	t.Helper()
	var out bytes.Buffer
	stream := sha256.New()
	for i, b := range vols {
		d, err := zstd.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(stream, d)
		d.Close()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "volume %d: %d bytes of tar\n", i, n)
		ix, err := ReadIndex(t.Context(), sources([][]byte{b})[0])
		if err != nil {
			t.Fatal(err)
		}
		h := ix.Header
		fmt.Fprintf(&out, "  format %d, min_reader %d, archive %s, volume %d, last %v, roots %+v\n", h.Format, h.MinReader, h.Archive, h.Volume, h.Last, h.Roots)
		for f, err := range ix.Frames() {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "  frame %s, %d bytes\n", f.ID, f.ULen)
			for _, e := range f.Entries {
				fmt.Fprintf(&out, "    %+v\n", e)
			}
		}
	}
	fmt.Fprintf(&out, "tar %x\n", stream.Sum(nil))
	return out.String()
}

// The archives of every format that was ever released are read, and the present
// format decodes to what it always did. Encoded bytes are free to change.
func TestGolden(t *testing.T) {
	src := goldenSource{dir: t.TempDir()}
	plan, err := NewPlan(src, []Root{{Path: "/srv/home"}}, PlanOptions{Archive: "20231114T221320Z-auto-00c0de", VolumeSize: 8 << 20, Producer: "eddy golden"})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var now [][]byte
	for {
		v, err := plan.Next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var b []byte
		for f, err := range v.Frames(t.Context(), nil) {
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, f.Data...)
		}
		now = append(now, b)
	}
	if *writeGolden {
		dir := fmt.Sprintf("testdata/format-%d", formatVersion)
		write(t, filepath.Join(dir, "decoded.txt"), []byte(describe(t, now)))
		for i, b := range now {
			write(t, filepath.Join(dir, fmt.Sprintf("vol-%04d.tar.zst", i)), b)
		}
	}
	for format := 1; format <= formatVersion; format++ {
		dir := fmt.Sprintf("testdata/format-%d", format)
		want, err := os.ReadFile(filepath.Join(dir, "decoded.txt"))
		if err != nil {
			t.Fatal(err)
		}
		names, err := filepath.Glob(filepath.Join(dir, "vol-*.tar.zst"))
		if err != nil || len(names) < 2 {
			t.Fatalf("%s: %d volumes, want two at least (%v)", dir, len(names), err)
		}
		var then [][]byte
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			then = append(then, b)
		}
		if d := cmp.Diff(string(want), describe(t, then)); d != "" {
			t.Errorf("%s is not read as it was written (-want +got):\n%s", dir, d)
		}
		if format == formatVersion {
			if d := cmp.Diff(string(want), describe(t, now)); d != "" {
				t.Errorf("what is written now decodes to something else (-want +got):\n%s", d)
			}
		}
		goldenExtracts(t, src, then)
	}
}

// goldenExtracts restores the archive and compares every content.
func goldenExtracts(t *testing.T, src goldenSource, vols [][]byte) {
	t.Helper()
	dir := t.TempDir()
	me := &Owner{UID: os.Geteuid(), GID: os.Getegid()}
	if _, err := Extract(t.Context(), sources(vols), ExtractOptions{Dir: dir, Owner: me}); err != nil {
		t.Fatal(err)
	}
	for _, e := range src.entries() {
		name := filepath.Join(dir, e.Name)
		fi, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		switch e.Type {
		case TypeDir:
			if !fi.IsDir() {
				t.Errorf("%q is %v", e.Name, fi.Mode())
			}
		case TypeSymlink:
			if got, err := os.Readlink(name); got != e.Link {
				t.Errorf("%q leads to %q, want %q (%v)", e.Name, got, e.Link, err)
			}
		case TypeFile:
			got, err := os.ReadFile(name)
			if err != nil || !bytes.Equal(got, goldenText(e.Name, e.Size)) {
				t.Errorf("%q has other content (%v)", e.Name, err)
			}
			if want := representable(e.MTime); !fi.ModTime().Equal(want) {
				t.Errorf("%q is of %v, want %v", e.Name, fi.ModTime(), want)
			}
		}
	}
}
