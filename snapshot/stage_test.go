package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

const testID = "20261120T235500Z-auto-0a1b2c"

func newStage(t testing.TB, roots ...Root) *Stage {
	t.Helper()
	st, err := CreateStage(fsx.FS{}, testID, roots)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func entriesOf(t testing.TB, st *Stage) []Entry {
	t.Helper()
	var out []Entry
	for e, err := range st.Entries() {
		must(t, err)
		out = append(out, e)
	}
	return out
}

func namesOf(entries []Entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out
}

func readStaged(t testing.TB, st *Stage, e Entry) []byte {
	t.Helper()
	f, err := st.Open(e)
	must(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must(t, err)
	return b
}

// filesBelow lists the regular files of a directory, relative, sorted.
func filesBelow(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(dir, p)
			out = append(out, rel)
		}
		return err
	}))
	slices.Sort(out)
	return out
}

func TestPrelinkIsKeptReplacedOrDropped(t *testing.T) {
	home := t.TempDir()
	for i := 1; i <= 6; i++ {
		write(t, filepath.Join(home, fmt.Sprintf("db/%06d.ldb", i)), fmt.Appendf(nil, "table %d", i))
	}
	st := newStage(t, Root{Path: home})
	for range 2 { // a second Prepare changes nothing
		for i := 1; i <= 5; i++ {
			must(t, st.Prelink("", fmt.Sprintf("db/%06d.ldb", i)))
		}
	}
	must(t, st.Prelink("", "db/000099.ldb")) // vanished between readdir and link

	// Then the node goes on: one table is compacted away, one number is used again
	// with other content of the same size, before and after a second Prepare.
	must(t, os.Remove(filepath.Join(home, "db/000001.ldb")))
	for _, n := range []string{"2", "3"} {
		must(t, os.Remove(filepath.Join(home, "db/00000"+n+".ldb")))
		write(t, filepath.Join(home, "db/00000"+n+".ldb"), []byte("other "+n))
	}
	must(t, st.Prelink("", "db/000002.ldb"))

	must(t, st.Dir("", "db"))
	for i := 2; i <= 6; i++ {
		must(t, st.Link(t.Context(), "", fmt.Sprintf("db/%06d.ldb", i)))
	}
	must(t, st.Seal(t.Context()))
	if s := st.Stats(); s.Linked != 5 || s.PrelinkedKept != 3 || s.LinkedLate != 2 || s.Copied != 0 {
		t.Errorf("stats %+v: want 5 linked, 3 of them kept, 2 late", s)
	}
	want := []string{"db/000002.ldb", "db/000003.ldb", "db/000004.ldb", "db/000005.ldb", "db/000006.ldb"}
	got := slices.DeleteFunc(filesBelow(t, st.dir(st.roots[0])), func(n string) bool { return strings.HasPrefix(n, StageDir) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files in the stage (-want +got):\n%s", diff)
	}
	for _, e := range entriesOf(t, st) {
		if e.Type != TypeFile {
			continue
		}
		live, err := os.ReadFile(filepath.Join(home, e.Name))
		must(t, err)
		if got := readStaged(t, st, e); !bytes.Equal(got, live) {
			t.Errorf("%s holds %q, want %q", e.Name, got, live)
		}
	}
}

func TestCopyReplacesALinkMadeBeforeTheHold(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "f"), []byte("before"))
	st := newStage(t, Root{Path: home})
	must(t, st.Prelink("", "f"), st.Copy(t.Context(), "", "f"), st.Seal(t.Context()))
	must(t, os.WriteFile(filepath.Join(home, "f"), []byte("written in place"), 0o600))
	e := entriesOf(t, st)[0]
	if got := readStaged(t, st, e); string(got) != "before" || e.Treatment == Linked {
		t.Errorf("staged %q as %s, want a copy of what it was", got, e.Treatment)
	}
}

func TestSealedStageOpensAgainAfterAReboot(t *testing.T) {
	home := smallHome(t)
	st := stageOf(t, home, testID)
	must(t, os.WriteFile(filepath.Join(home, "note"), nil, 0o600))
	t.Setenv("EDDY_BOOT_ID", "another boot")
	again, err := OpenStage(fsx.FS{}, testID, []Root{{Path: home}})
	must(t, err)
	if diff := cmp.Diff(entriesOf(t, st), entriesOf(t, again)); diff != "" {
		t.Errorf("entries after opening again (-want +got):\n%s", diff)
	}
	if again.Digest() != st.Digest() || again.Stats() != st.Stats() || !cmp.Equal(again.Roots(), st.Roots()) {
		t.Errorf("opened %s %+v %v, sealed %s %+v %v", again.Digest(), again.Stats(), again.Roots(), st.Digest(), st.Stats(), st.Roots())
	}
	for _, e := range entriesOf(t, again) {
		if e.Type == TypeFile {
			live, err := os.ReadFile(filepath.Join(home, e.Name))
			must(t, err)
			if !bytes.Equal(readStaged(t, again, e), live) {
				t.Errorf("%q differs from the original", e.Name)
			}
		}
	}
	if err := again.Copy(t.Context(), "", "note"); err == nil {
		t.Error("a sealed stage took another file")
	}
	must(t, again.Remove(), again.Remove())
	if _, err := OpenStage(fsx.FS{}, testID, []Root{{Path: home}}); !errors.Is(err, ErrNotSealed) {
		t.Errorf("open a removed stage: %v, want ErrNotSealed", err)
	}
}

func TestUnsealedAndDamagedStagesDoNotOpen(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "a"), []byte("a"))
	roots := []Root{{Path: home}}
	st := newStage(t, roots...)
	must(t, st.Copy(t.Context(), "", "a"))
	if _, err := OpenStage(fsx.FS{}, testID, roots); !errors.Is(err, ErrNotSealed) {
		t.Errorf("open before the seal: %v, want ErrNotSealed", err)
	}
	for _, err := range st.Entries() {
		if !errors.Is(err, ErrNotSealed) {
			t.Errorf("entries before the seal: %v, want ErrNotSealed", err)
		}
	}
	if _, err := CreateStage(fsx.FS{}, testID, roots); !errors.Is(err, fs.ErrExist) || hint.Of(err) == "" {
		t.Errorf("a second stage of that id: %v, want ErrExist with a hint", err)
	}
	must(t, st.Seal(t.Context()))
	listing, err := os.ReadFile(st.record(listingName))
	must(t, err)
	must(t, os.WriteFile(st.record(listingName), bytes.Replace(listing, []byte(`"mode"`), []byte(`"mOde"`), 1), 0o600))
	again, err := OpenStage(fsx.FS{}, testID, roots)
	must(t, err)
	var last error
	for _, last = range again.Entries() {
	}
	if last == nil {
		t.Error("a listing that was changed was read without an error")
	}
	must(t, os.WriteFile(st.record(sealName), []byte(`{"format":9,"min_reader":9}`), 0o600))
	if _, err := OpenStage(fsx.FS{}, testID, roots); err == nil || hint.Of(err) == "" {
		t.Errorf("open a seal of a newer eddy: %v, want an error with a hint", err)
	}
}

func TestOpenRefusesWhatChangedInTheStage(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "1.ldb"), []byte("table"))
	write(t, filepath.Join(home, "2.ldb"), []byte("table"))
	write(t, filepath.Join(home, "log"), []byte("log"))
	st := newStage(t, Root{Path: home})
	must(t, st.Link(t.Context(), "", "1.ldb"), st.Link(t.Context(), "", "2.ldb"), st.Copy(t.Context(), "", "log"), st.Seal(t.Context()))
	e := entriesOf(t, st)
	must(t, os.WriteFile(filepath.Join(home, "1.ldb"), []byte("TABLE"), 0o600)) // through the other name
	must(t, os.Chtimes(filepath.Join(home, "1.ldb"), fixedTime, fixedTime))
	p, err := st.Path(e[1])
	must(t, err)
	must(t, os.Remove(p))
	write(t, p, []byte("table"))
	p, err = st.Path(e[2])
	must(t, err)
	must(t, os.Remove(p), os.Symlink("/etc/passwd", p))
	for i := range e {
		if f, err := st.Open(e[i]); err == nil {
			f.Close()
			t.Errorf("%s was opened although it changed", e[i].Name)
		}
	}
	if p, err := st.Path(Entry{Name: "../../etc/passwd"}); err == nil {
		t.Errorf("a name that leads out has a path: %s", p)
	}
}

func TestHostileNamesAndHolesSurvive(t *testing.T) {
	home := t.TempDir()
	names := []string{"new\nline", "\xff\xfe not utf-8", "back\\slash", `quo"te`, strings.Repeat("\x01", 255), "…", " ", "-rf", "a<b>&c"}
	st := newStage(t, Root{Path: home})
	for _, n := range names {
		write(t, filepath.Join(home, "d", n), []byte(n))
		must(t, st.Copy(t.Context(), "", filepath.Join("d", n)))
	}
	must(t, os.Symlink("\xffnowhere", filepath.Join(home, "d/link")), st.Symlink("", "d/link"))
	must(t, st.LeaveOut("", "d/\xfe", "because"))
	f, err := os.Create(filepath.Join(home, "d/sparse"))
	must(t, err)
	must(t, f.Truncate(1<<30), f.Close(), st.Copy(t.Context(), "", "d/sparse"))
	deep := strings.Repeat("deep/", 600) + "file"
	write(t, filepath.Join(home, deep), nil)
	must(t, st.Link(t.Context(), "", deep))
	must(t, st.Seal(t.Context()))

	again, err := OpenStage(fsx.FS{}, testID, []Root{{Path: home}})
	must(t, err)
	got := map[string]Entry{}
	for _, e := range entriesOf(t, again) {
		got[e.Name] = e
	}
	for _, n := range names {
		if e, ok := got["d/"+n]; !ok || string(readStaged(t, again, e)) != n {
			t.Errorf("%q did not survive", n)
		}
	}
	if got["d/link"].Link != "\xffnowhere" || again.LeftOut()[0].Name != "d/\xfe" || got[deep].Type != TypeFile {
		t.Errorf("link %q, left out %q, deep %v", got["d/link"].Link, again.LeftOut(), got[deep])
	}
	e := got["d/sparse"]
	p, err := again.Path(e)
	must(t, err)
	var s unix.Stat_t
	must(t, unix.Stat(p, &s))
	if !e.Sparse || e.Size != 1<<30 || s.Blocks*512 > 1<<20 {
		t.Errorf("sparse file: %+v, %d bytes on disk", e, s.Blocks*512)
	}
}

func TestStageRefusesWhatItMustNotHold(t *testing.T) {
	home := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(home, "pipe"), 0o600), os.Mkdir(filepath.Join(home, "dir"), 0o700))
	must(t, os.Symlink("/etc/passwd", filepath.Join(home, "link")))
	st := newStage(t, Root{Path: home})
	for name, err := range map[string]error{
		"pipe copied":     st.Copy(t.Context(), "", "pipe"),
		"pipe linked":     st.Link(t.Context(), "", "pipe"),
		"symlink copied":  st.Copy(t.Context(), "", "link"),
		"symlink linked":  st.Link(t.Context(), "", "link"),
		"file as dir":     st.Dir("", "link"),
		"outside":         st.Copy(t.Context(), "", "../x"),
		"absolute":        st.Link(t.Context(), "", "/etc/passwd"),
		"its own":         st.Copy(t.Context(), "", StageDir+"/x"),
		"missing":         st.Link(t.Context(), "", "missing"),
		"no such root":    st.Copy(t.Context(), "other", "x"),
		"symlink of none": st.Symlink("", "dir"),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if s := st.Stats(); s != (StageStats{}) {
		t.Errorf("something was counted: %+v", s)
	}
	write(t, filepath.Join(home, "twice"), nil)
	must(t, st.Link(t.Context(), "", "twice"), st.Link(t.Context(), "", "twice"))
	if err := st.Seal(t.Context()); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a name taken twice was sealed: %v", err)
	}
}

func TestCreateStageRefuses(t *testing.T) {
	home, other := t.TempDir(), t.TempDir()
	linked := t.TempDir()
	must(t, os.Symlink(other, filepath.Join(linked, StageDir)))
	for name, c := range map[string]struct {
		id    string
		roots []Root
	}{
		"no id":            {"", []Root{{Path: home}}},
		"id with a slash":  {"a/b", []Root{{Path: home}}},
		"id of dots":       {"..", []Root{{Path: home}}},
		"no roots":         {testID, nil},
		"relative root":    {testID, []Root{{Path: "home"}}},
		"one name twice":   {testID, []Root{{Path: home}, {Path: other}}},
		"missing root":     {testID, []Root{{Path: home}, {Name: "x", Path: filepath.Join(home, "none")}}},
		"root not UTF-8":   {testID, []Root{{Path: home + "/\xff"}}},
		"stage is a link":  {testID, []Root{{Path: linked}}},
		"no writing there": {testID, []Root{{Path: "/proc/self"}}},
	} {
		if st, err := CreateStage(fsx.FS{}, c.id, c.roots); err == nil {
			t.Errorf("%s: made %v", name, st.roots)
		}
	}
	if n := filesBelow(t, home); len(n) != 0 || exists(filepath.Join(home, StageDir, testID)) {
		t.Errorf("a refused stage left something: %v", n)
	}
	_, err := CreateStage(fsx.FS{}, testID, []Root{{Path: linked}})
	if hint.Of(err) == "" {
		t.Errorf("%v has no hint", err)
	}
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

func TestLinksAreProbedForReal(t *testing.T) {
	home := smallHome(t)
	st := newStage(t, Root{Path: home}, Root{Name: "empty", Path: t.TempDir(), Prefix: ".eddy-root/empty"})
	must(t, st.ProbeLinks())
	for _, r := range st.roots {
		names, err := os.ReadDir(filepath.Join(r.Path, StageDir))
		must(t, err)
		if len(names) != 1 {
			t.Errorf("the probe left something beside the stage: %v", names)
		}
	}

	// A link that cannot be made says what to do, whatever the cause.
	file := filepath.Join(home, "data/empty")
	shm, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(shm) })
	crossing := os.Link(file, filepath.Join(shm, "x"))
	if !errors.Is(crossing, unix.EXDEV) {
		t.Fatalf("link to /dev/shm: %v, want EXDEV", crossing)
	}
	for _, cause := range []error{crossing, unix.EPERM, unix.EACCES, unix.EMLINK, unix.EOPNOTSUPP, unix.ENOSPC} {
		err := linkError(cause, home)
		if !errors.Is(err, cause) || hint.Of(err) == "" {
			t.Errorf("%v: %v, hint %q", cause, err, hint.Of(err))
		}
	}
}

func TestRootsOnTwoFilesystems(t *testing.T) {
	home := t.TempDir()
	shm, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(shm) })
	write(t, filepath.Join(home, "data/000001.ldb"), []byte("home"))
	write(t, filepath.Join(shm, "000002.ldb"), []byte("elsewhere"))
	write(t, filepath.Join(shm, "LOG"), []byte("log"))
	roots := []Root{{Path: home}, {Name: "data-app.db", Path: shm, Prefix: "data/app.db", Target: shm}}
	st := newStage(t, roots...)
	must(t, st.ProbeLinks(), st.Prelink("data-app.db", "000002.ldb"))
	must(t, st.Dir("", "."), st.Dir("", "data"), st.Link(t.Context(), "", "data/000001.ldb"))
	must(t, st.Dir("data-app.db", "."), st.Link(t.Context(), "data-app.db", "000002.ldb"), st.Copy(t.Context(), "data-app.db", "LOG"))
	must(t, st.Seal(t.Context()))
	want := []string{"data", "data/app.db", "data/000001.ldb", "data/app.db/000002.ldb", "data/app.db/LOG"}
	if diff := cmp.Diff(want, namesOf(entriesOf(t, st))); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	for _, e := range entriesOf(t, st) {
		if e.Type == TypeFile {
			readStaged(t, st, e)
		}
	}
	for name, want := range map[string]string{
		"data":            filepath.Join(home, StageDir, testID, "data"),
		"data/app.dbs":    filepath.Join(home, StageDir, testID, "data/app.dbs"),
		"data/app.db":     filepath.Join(shm, StageDir, testID),
		"data/app.db/LOG": filepath.Join(shm, StageDir, testID, "LOG"),
	} {
		if got := st.Place(name); got != want {
			t.Errorf("%s lies at %s, want %s", name, got, want)
		}
	}
	must(t, st.Remove())
	if exists(filepath.Join(shm, StageDir, testID)) || exists(filepath.Join(home, StageDir, testID)) {
		t.Error("a part of the stage is left")
	}
}

func TestCopyAllLinksNothing(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "1.ldb"), []byte("table"))
	st := newStage(t, Root{Path: home})
	st.CopyAll()
	must(t, st.Prelink("", "1.ldb"), st.Link(t.Context(), "", "1.ldb"), st.Seal(t.Context()))
	if s := st.Stats(); s.Linked != 0 || s.Copied+s.Cloned != 1 {
		t.Errorf("stats %+v: want one copy", s)
	}
}

func TestSweepKeepsWhatIsNoStage(t *testing.T) {
	home := t.TempDir()
	const old, kept = "20250101T000000Z-auto-ffffff", "20250102T000000Z-auto-ffffff"
	roots := []Root{{Path: home}}
	for _, id := range []string{old, kept} {
		_, err := CreateStage(fsx.FS{}, id, roots)
		must(t, err)
	}
	write(t, filepath.Join(home, StageDir, old+".farm-123", "LOCK"), nil)
	write(t, filepath.Join(home, StageDir, "before-"+old, "data/x"), nil)
	write(t, filepath.Join(home, StageDir, "swap.json"), nil)
	must(t, SweepStages(fsx.FS{}, roots, kept))
	names, err := os.ReadDir(filepath.Join(home, StageDir))
	must(t, err)
	var got []string
	for _, n := range names {
		got = append(got, n.Name())
	}
	if diff := cmp.Diff([]string{kept, "before-" + old, "swap.json"}, got); diff != "" {
		t.Errorf("left after the sweep (-want +got):\n%s", diff)
	}
	must(t, SweepStages(fsx.FS{}, []Root{{Path: t.TempDir()}}, ""))
}

func TestListingIsSpooledAndMerged(t *testing.T) {
	st := newStage(t, Root{Path: t.TempDir()})
	const n = batchEntries + 1000
	for i := range n {
		e := Entry{Name: fmt.Sprintf("db/%d.ldb", (i*7919)%n), Type: TypeFile, Treatment: Linked, MTime: fixedTime}
		if i%3 == 0 {
			e.Treatment = Copied
		}
		must(t, st.add(e, func(s *StageStats) { s.Linked++ }))
	}
	if len(st.runs) != 1 {
		t.Fatalf("%d runs on disk, want 1", len(st.runs))
	}
	must(t, st.Seal(t.Context()))
	got := entriesOf(t, st)
	if len(got) != n || !slices.IsSortedFunc(got, archiveOrder) {
		t.Errorf("%d entries, sorted %t; want %d sorted", len(got), slices.IsSortedFunc(got, archiveOrder), n)
	}
	if left := filesBelow(t, st.record("")); !slices.Equal(left, []string{listingName, sealName}) {
		t.Errorf("records %v", left)
	}
}

func entryGen() *rapid.Generator[Entry] {
	return rapid.Custom(func(t *rapid.T) Entry {
		e := Entry{
			Name: rapid.StringMatching(`[a/0-9]{1,6}(/CURRENT)?`).Draw(t, "name"),
			Root: rapid.SampledFrom([]string{"", "x"}).Draw(t, "root"),
			Type: rapid.SampledFrom([]Type{TypeFile, TypeDir, TypeSymlink}).Draw(t, "type"),
		}
		if e.Type == TypeFile {
			e.Treatment = rapid.SampledFrom([]Treatment{Linked, Cloned, Copied}).Draw(t, "treatment")
		}
		return e
	})
}

func TestArchiveOrderIsATotalOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := entryGen().Draw(t, "a"), entryGen().Draw(t, "b"), entryGen().Draw(t, "c")
		ab, ba := archiveOrder(a, b), archiveOrder(b, a)
		if ab != -ba {
			t.Fatalf("a to b is %d, b to a is %d", ab, ba)
		}
		if ab <= 0 && archiveOrder(b, c) <= 0 && archiveOrder(a, c) > 0 {
			t.Fatal("a <= b <= c, but a > c")
		}
		if ab == 0 && (a.Name != b.Name || class(a) != class(b)) {
			t.Fatal("two names are equal")
		}
		if a.Type == TypeDir && b.Type == TypeDir && strings.HasPrefix(b.Name, a.Name+"/") && ab >= 0 {
			t.Fatal("a directory comes after what lies in it")
		}
		if a.Type == TypeDir && b.Type != TypeDir && ab >= 0 {
			t.Fatal("a directory comes after a file")
		}
	})
}

func TestArchiveOrderReadsNumbers(t *testing.T) {
	want := []string{"db", "db/2.ldb", "db/000002.ldb", "db/9.ldb", "db/10.ldb", "db/10a", "db/a/1", "db.x"}
	got := slices.Clone(want)
	rapid.Check(t, func(t *rapid.T) {
		got = rapid.Permutation(got).Draw(t, "order")
		slices.SortFunc(got, comparePaths)
		if !slices.Equal(got, want) {
			t.Fatalf("sorted %q, want %q", got, want)
		}
	})
}

func TestMergeEqualsSort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		runs := rapid.SliceOfN(rapid.SliceOf(entryGen()), 0, 5).Draw(t, "runs")
		var want []Entry
		var sources []iter.Seq2[Entry, error]
		for _, r := range runs {
			want = append(want, r...)
			slices.SortFunc(r, archiveOrder)
			sources = append(sources, func(yield func(Entry, error) bool) {
				for _, e := range r {
					if !yield(e, nil) {
						return
					}
				}
			})
		}
		slices.SortFunc(want, archiveOrder)
		n := 0
		for e, err := range merge(sources) {
			if err != nil || archiveOrder(e, want[n]) != 0 {
				t.Fatalf("at %d: %v, %v; want %v", n, e, err, want[n])
			}
			n++
		}
		if n != len(want) {
			t.Fatalf("%d entries, want %d", n, len(want))
		}
	})
}

func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"name":"data/x","root":"","type":"file","treatment":"link","size":5,"mode":420,"mtime":"2023-11-14T22:13:20Z","uid":0,"gid":0}`))
	f.Add([]byte(`{"name":"","name_b64":"/w==","link_b64":"/g==","type":"symlink","mtime":"2023-11-14T22:13:20Z"}`))
	f.Add([]byte(`{"name_b64":"!"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := parseListed(line)
		if err != nil || e.MTime.Year() < 0 || e.MTime.Year() > 9999 {
			return
		}
		file := filepath.Join(t.TempDir(), "listing")
		err = writeLines(fsx.FS{}, file, func(yield func(Entry, error) bool) { yield(e, nil) }, io.Discard)
		if err != nil {
			return // too long for a name
		}
		for got, err := range readLines(file, nil) {
			if err != nil || got.Name != e.Name || got.Link != e.Link || got.Size != e.Size || !got.MTime.Equal(e.MTime) {
				t.Fatalf("wrote %+v, read %+v, %v", e, got, err)
			}
		}
	})
}

func FuzzSeal(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"x","digest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","roots":[{"name":"","path":"/home"}]}`))
	f.Add([]byte(`{"format":1,"roots":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseSeal(b); err == nil && (len(s.Roots) == 0 || s.ID == "" || strings.Contains(s.ID, "/")) {
			t.Fatalf("accepted %+v", s)
		}
	})
}
