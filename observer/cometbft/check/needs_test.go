package check

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// pick makes of a home what Needs says of it, and returns it with the bytes written
// and those of the home.
func pick(t testing.TB, home string) (to string, written, all int64) {
	t.Helper()
	to, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(to)) })
	var n Needs
	each := func(visit func(name, path string, size int64)) {
		must(t, filepath.WalkDir(home, func(path string, e fs.DirEntry, err error) error {
			must(t, err)
			rel, err := filepath.Rel(home, path)
			must(t, err)
			if e.IsDir() {
				must(t, os.MkdirAll(filepath.Join(to, rel), 0o700))
				return nil
			}
			fi, err := e.Info()
			must(t, err)
			visit(rel, path, fi.Size())
			return nil
		}))
	}
	each(func(name, _ string, _ int64) { n.See(name) })
	each(func(name, path string, size int64) {
		all += size
		head, ok := n.Head(name)
		if !ok {
			return
		}
		b, err := os.ReadFile(path)
		must(t, err)
		b = b[:min(head, size)]
		written += int64(len(b))
		must(t, os.WriteFile(filepath.Join(to, name), b, 0o600), os.Truncate(filepath.Join(to, name), size))
	})
	return to, written, all
}

// What is picked of a dump says of it what the whole dump does, sound or not.
func TestNeedsAreEnough(t *testing.T) {
	same := func(t *testing.T, what, home string) (written, all int64) {
		t.Helper()
		want, err := Run(t.Context(), home, Options{})
		must(t, err)
		picked, written, all := pick(t, home)
		got, err := Run(t.Context(), picked, Options{})
		must(t, err)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Report{}, "Seconds"), cmpopts.IgnoreFields(Finding{}, "Detail")); diff != "" {
			t.Errorf("%s: what is picked says another thing:\n%s", what, diff)
		}
		return written, all
	}
	for backend, kind := range backends() {
		t.Run(string(kind), func(t *testing.T) {
			c := chains.get(t, "sound", backend)
			d := c.dump(t, backend)
			put := func(name string, b []byte) { must(t, os.WriteFile(d.path(name), b, 0o600)) }
			must(t, os.Mkdir(d.path("rocks.db"), 0o700))
			put("rocks.db/IDENTITY", []byte("x"))
			put("rocks.db/000001.sst", make([]byte, 1<<20))
			put("bolt.db", append(make([]byte, 4<<10+16), 0xDA, 0x0C, 0xED, 0xED))
			put("cs.wal/wal.000", make([]byte, 1<<20))
			if written, all := same(t, "sound", d.home); written > all-(2<<20) {
				t.Errorf("%d bytes of %d are picked", written, all)
			}
			must(t, os.Remove(d.file("tx_index.db", tables...)))
			same(t, "a table of no layer is gone", d.home)
			for i, x := range harms(t, backend) {
				if cmp.Equal(x.o, Options{}) && i%7 == 0 {
					d := c.dump(t, backend)
					x.do(d, 34)
					same(t, x.name, d.home)
				}
			}
		})
	}
	d := sdkDump(t, dbm.GoLevelDBBackend)
	same(t, "an SDK chain's", d.home)
	must(t, os.Mkdir(d.path("memiavl.db"), 0o700))
	same(t, "memiavl", d.home)
}
