package cometbft

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/journal"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// bigHome is a home whose databases have been written, overwritten, compacted and
// opened again, so that their MANIFESTs have history.
func bigHome(t testing.TB, backend dbm.BackendType) (home string) {
	t.Helper()
	home = chainHome(t, backend, "", 42)
	value := make([]byte, 4<<10)
	rand.Read(value) // does not shrink
	for range 2 {
		db, err := dbm.NewDB("application", backend, filepath.Join(home, "data"))
		must(t, err)
		for i := range 3000 {
			must(t, db.Set(fmt.Appendf(nil, "key-%d", i), append(fmt.Append(nil, i), value...)))
		}
		for i := range 1000 {
			must(t, db.Delete(fmt.Appendf(nil, "key-%d", i)))
		}
		must(t, db.Compact(nil, nil), db.Close())
	}
	return home
}

// manifestOf is the MANIFEST in force of a database that a test has made.
func manifestOf(t testing.TB, dir string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "MANIFEST-*"))
	must(t, err)
	if len(all) == 0 {
		t.Fatalf("no MANIFEST in %s", dir)
	}
	return slices.Max(all)
}

// What the databases say of themselves is what there is.
func TestAuditOfASoundDump(t *testing.T) {
	for backend, kind := range backends() {
		home := bigHome(t, backend)
		l := layoutOf(t, home, nil)
		st := staged(t, l)
		before := sums(t, st)
		unread, err := l.Audit(t.Context(), st)
		if err != nil || len(unread) != 0 {
			t.Errorf("%s: %v, %v", kind, unread, err)
		}
		if after := sums(t, st); len(before) != len(after) {
			t.Errorf("%s: the stage had %d files, has %d", kind, len(before), len(after))
		}
		dir := filepath.Join(home, "data", "application.db")
		f, err := os.Open(manifestOf(t, dir))
		must(t, err)
		defer f.Close()
		got, err := engine.ReadManifest(f)
		must(t, err)
		if want := tablesOf(t, kind, dir); len(want) < 2 || !slices.Equal(got, want) {
			t.Errorf("%s: the MANIFEST has %v, the engine %v", kind, got, want)
		}
	}
}

// tablesOf asks the engine itself.
func tablesOf(t testing.TB, e Engine, dir string) (out []engine.Table) {
	t.Helper()
	if e != GoLevelDB {
		return pebbleTables(t, dir)
	}
	db, err := leveldb.OpenFile(dir, &opt.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	text, err := db.GetProperty("leveldb.sstables")
	must(t, err)
	for line := range strings.Lines(text) { // 12:2097152["key-1"...
		var x engine.Table
		if n, _ := fmt.Sscanf(line, "%d:%d[", &x.Num, &x.Size); n == 2 {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, engine.ByNumber)
	return out
}

func TestAuditFindsWhatIsMissing(t *testing.T) {
	lastTable := func(dir string) string {
		var all []string
		for _, ext := range []string{"*.ldb", "*.sst"} {
			found, err := filepath.Glob(filepath.Join(dir, ext))
			must(t, err)
			all = append(all, found...)
		}
		return slices.Max(all)
	}
	change := func(file string, f func([]byte) []byte) {
		b, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, f(b), 0o600))
	}
	for backend, kind := range backends() {
		sound := bigHome(t, backend)
		for name, c := range map[string]struct {
			harm   func(dir string)
			text   string // "": it is sound
			unread string
		}{
			"a table is gone":      {func(dir string) { must(t, os.Remove(lastTable(dir))) }, "which is not there", ""},
			"a table is cut short": {func(dir string) { must(t, os.Truncate(lastTable(dir), 1000)) }, "has 1000 bytes, its MANIFEST says", ""},
			"a table too many":     {func(dir string) { put(t, dir, map[string]string{"999999.ldb": "x", "999999.sst": "x"}) }, "", ""},
			"no MANIFEST":          {func(dir string) { must(t, os.Remove(manifestOf(t, dir))) }, "which is its list of tables", ""},
			"an empty MANIFEST":    {func(dir string) { must(t, os.Truncate(manifestOf(t, dir), 0)) }, "no whole record", ""},
			"a torn tail": {func(dir string) {
				change(manifestOf(t, dir), func(b []byte) []byte { return append(b, 1, 2, 3, 4, 50, 0, 1, 7) })
			}, "", ""},
			"zeros behind it": {func(dir string) {
				change(manifestOf(t, dir), func(b []byte) []byte { return append(b, make([]byte, 5000)...) })
			}, "", ""},
			"a torn record": {func(dir string) { change(manifestOf(t, dir), func(b []byte) []byte { return torn(t, b) }) }, "", ""},
			"its beginning rots": {func(dir string) {
				change(manifestOf(t, dir), func(b []byte) []byte { b[9] ^= 0xFF; return withRecord(t, b, nil) })
			}, "MANIFEST is damaged", ""},
			"a newer form": {func(dir string) {
				change(manifestOf(t, dir), func(b []byte) []byte { return withRecord(t, b, []byte{120, 1, 1}) })
			}, "", "newer form: field 120"},
			"a table is added": {func(dir string) {
				change(manifestOf(t, dir), func(b []byte) []byte { return withRecord(t, b, newTable(777777)) })
			}, "table 777777", ""},
			"added, and taken again": {func(dir string) {
				change(manifestOf(t, dir), func(b []byte) []byte {
					return withRecord(t, withRecord(t, b, newTable(777777)), []byte{tagDeletedFile, 2, 0xB1, 0xBC, 0x2F})
				})
			}, "", ""},
		} {
			t.Run(string(kind)+"/"+name, func(t *testing.T) {
				home := t.TempDir()
				must(t, os.CopyFS(home, os.DirFS(sound)))
				c.harm(filepath.Join(home, "data", "application.db"))
				l := layoutOf(t, home, nil)
				unread, err := l.Audit(t.Context(), staged(t, l))
				switch {
				case c.text == "" && err != nil, c.text != "" && (!errors.Is(err, observer.ErrUnsound) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "data/application.db") || hint.Of(err) == ""):
					t.Errorf("%v, want %q", err, c.text)
				case !strings.Contains(strings.Join(unread, ";"), c.unread) || c.unread == "" && len(unread) > 0:
					t.Errorf("unread: %v, want %q", unread, c.unread)
				}
			})
		}
	}
}

// What a record of a MANIFEST begins with; see the engine's manifest.go.
const (
	tagComparator     = 1
	tagDeletedFile    = 6
	tagNewFile        = 7
	tagNewFile4       = 103
	tagNewFile5       = 104
	tagCreatedBacking = 105
	fieldEnd          = 1
	fieldVirtual      = 66
)

// newTable is a record that adds a table.
func newTable(num uint64) []byte {
	b := []byte{tagNewFile, 2}
	for ; num >= 0x80; num >>= 7 {
		b = append(b, byte(num)|0x80)
	}
	return append(b, byte(num), 9, 1, 'a', 1, 'b')
}

// withRecord writes a MANIFEST anew, record by record as they stand, and one more.
// A first block whose checksum is wrong is kept as it is.
func withRecord(t testing.TB, b, more []byte) []byte {
	t.Helper()
	if more == nil {
		more = newTable(5)
	}
	var one bytes.Buffer
	w := journal.NewWriter(&one)
	r, err := w.Next()
	must(t, err)
	_, err = r.Write(more)
	must(t, err, w.Close())
	// A block has 32 KiB: what follows a short one stands in the next.
	const block = 32 << 10
	if left := block - len(b)%block; left < len(one.Bytes()) {
		b = append(b, make([]byte, left)...)
	}
	return append(b, one.Bytes()...)
}

// torn is a MANIFEST whose last record was cut off while it was written.
func torn(t testing.TB, b []byte) []byte {
	whole := withRecord(t, b, newTable(777777))
	return whole[:len(whole)-3]
}

func FuzzReadManifest(f *testing.F) {
	good := withRecord(f, nil, newTable(12))
	f.Add(good)
	f.Add(torn(f, good))
	f.Add(withRecord(f, good, []byte{tagNewFile4, 0, 7, 9, 1, 'a', 1, 'b', 0, 3, fieldVirtual, 6, fieldEnd, tagCreatedBacking, 6, 100}))
	f.Add(withRecord(f, good, []byte{tagNewFile5, 0, 7, 9, 1, 1, 'a', 1, 'b', 1, 'c', 1, 'd', 0, 3, 2, 1, 1, fieldEnd}))
	f.Add(withRecord(f, good, []byte{tagComparator, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1}))
	f.Add(make([]byte, 40<<10))
	f.Fuzz(func(t *testing.T, b []byte) {
		tables, err := engine.ReadManifest(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(tables, engine.ByNumber) {
			t.Errorf("not in order: %v", tables)
		}
		// What a crash tears off changes nothing of what was whole before.
		again, err := engine.ReadManifest(bytes.NewReader(append(b, 0)))
		if err != nil && !errors.Is(err, engine.ErrManifest) || err == nil && !slices.Equal(tables, again) {
			t.Errorf("%v became %v, %v", tables, again, err)
		}
	})
}
