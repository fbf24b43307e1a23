package swarm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// The dumps in testdata are of an engine 20.10.24, manager 2 of 3 of swarms that were
// made for them and thrown away: with one secret, one config, one service. The locked
// one has a snapshot, because an engine changes the log's key when it begins to lock.

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unpacked is a dump of testdata as a backup has it.
func unpacked(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile(filepath.Join("testdata", name+".tar.gz"))
	must(t, err)
	z, err := gzip.NewReader(bytes.NewReader(b))
	must(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		file := filepath.Join(dir, h.Name)
		must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		b, err := io.ReadAll(r)
		must(t, err)
		must(t, os.WriteFile(file, b, 0o600))
	}
	must(t, os.WriteFile(filepath.Join(dir, observer.NoteName), []byte(`{"format": 1, "min_reader": 1}`), 0o600))
	must(t, os.MkdirAll(filepath.Join(dir, listsDir), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, listsDir, "secrets.json"), []byte("[]\n"), 0o600))
	summed(t, dir)
	return dir
}

// summed writes the sums anew, as if all had been captured as it is.
func summed(t testing.TB, dir string) {
	t.Helper()
	var sums strings.Builder
	names, err := stateFiles(dir)
	must(t, err)
	for _, name := range names {
		if name != sumsName {
			sum, err := sumOf(t.Context(), filepath.Join(dir, name))
			must(t, err)
			fmt.Fprintf(&sums, "%s  %s\n", sum, name)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, sumsName), []byte(sums.String()), 0o600))
}

func heldKey(t testing.TB) []UnlockKey {
	t.Helper()
	b, err := os.ReadFile("testdata/locked.key")
	must(t, err)
	keys, err := ParseUnlockKeys("To unlock a swarm manager ...\n\n    " + string(b))
	must(t, err)
	return keys
}

func TestRealDumps(t *testing.T) {
	for name, want := range map[string]struct {
		term, commit, snap uint64
		version            uint64
		locked             bool
	}{
		"plain":  {2, 34, 0, 10, false},
		"locked": {2, 42, 36, 35, true},
	} {
		d, err := readDump(t.Context(), unpacked(t, name), heldKey(t))
		must(t, err)
		p := d.position()
		if p.Epoch != want.term || p.Index != want.commit || d.Log.SnapIndex != want.snap || d.Key.Version != want.version || d.Key.Locked != want.locked {
			t.Errorf("%s: %+v, %+v, version %d", name, p, d.Log, d.Key.Version)
		}
		if p.Incarnation != "rog9mb0cm4k6979c4o9id9o72" || d.nodeID() != "5etrdrz9una1rukb96c9zrpvq" || d.role() != "manager" || d.advertised() != "10.99.0.2" {
			t.Errorf("%s: %s, %s, %s, %s", name, p.Incarnation, d.nodeID(), d.role(), d.advertised())
		}
		got := d.Log.Store.counts()
		for kind, n := range map[string]int64{"nodes": 3, "secrets": 1, "configs": 1, "services": 1, "networks": 4, "clusters": 1, "tasks": 2} {
			if got[kind] != n {
				t.Errorf("%s: %d %s", name, got[kind], kind)
			}
		}
		if s := d.Log.Store.names("secrets"); !slices.Equal(s, []string{"missing_drones"}) || !slices.Contains(d.Log.Store.names("networks"), "Unimatrix-01") {
			t.Errorf("%s: %q", name, s)
		}
		if m := d.Log.Store.managers(d.nodeID()); len(m) != 2 || m[0].Addr == "" || len(d.Peers) != 3 {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// Without its key a locked dump is proven as far as its checksums go, and said to be.
func TestALockedDumpWithoutItsKey(t *testing.T) {
	dir := unpacked(t, "locked")
	other, err := ParseUnlockKeys(unlockPrefix + strings.Repeat("A", 43))
	must(t, err)
	for name, keys := range map[string][]UnlockKey{"none": nil, "another": other} {
		d, err := readDump(t.Context(), dir, keys)
		if !errors.Is(err, errKey) || d.Log == nil || d.Log.Commit != 42 || d.Log.Store != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := &Replica{}
	out, err := r.Check(t.Context(), []snapshot.Tree{{Dir: dir}}, observer.Position{})
	if err != nil || out.Opened != "part" || len(out.Findings) > 0 || out.At.Index != 42 {
		t.Errorf("%+v, %v", out, err)
	}
	r.key = heldKey(t)[0]
	out, err = r.Check(t.Context(), []snapshot.Tree{{Dir: dir}}, *out.At)
	if err != nil || out.Opened != "all" || len(out.Findings) > 0 || out.Proven["secrets"] != 1 {
		t.Errorf("%+v, %v", out, err)
	}
}

// A bit that turned anywhere after the capture is found, whatever file it is in.
func TestFlippedBits(t *testing.T) {
	dir := unpacked(t, "plain")
	names, err := stateFiles(dir)
	must(t, err)
	for _, name := range names {
		file := filepath.Join(dir, name)
		b, err := os.ReadFile(file)
		must(t, err)
		for at := 0; at < len(b); at += max(1, len(b)/7) {
			c := bytes.Clone(b)
			c[at] ^= 1 << (at % 8)
			must(t, os.WriteFile(file, c, 0o600))
			out, err := (&Replica{}).Check(t.Context(), []snapshot.Tree{{Dir: dir}}, observer.Position{})
			if err != nil || len(out.Findings) != 1 || strings.Contains(out.Findings[0], "\n") || out.Hint == "" {
				t.Fatalf("%s, byte %d: %+v, %v", name, at, out, err)
			}
		}
		must(t, os.WriteFile(file, b, 0o600))
	}
	// A file that is gone, and one that was not there.
	must(t, os.Rename(filepath.Join(dir, stateDir, peersFile), filepath.Join(dir, stateDir, "x.json")))
	if out, err := (&Replica{}).Check(t.Context(), []snapshot.Tree{{Dir: dir}}, observer.Position{}); err != nil || len(out.Findings) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
}

// A bit that had turned before the capture, on the manager's own disk, is found in all
// that the formats themselves cover: log, snapshots, certificates and the secrets of
// the key's file. The others are docker-state.json, state.json, the worker's tasks, and
// the version in the key's headers.
func TestFlippedBitsAtTheSource(t *testing.T) {
	for _, c := range []struct {
		dump, file string
		grain      int
	}{
		{"plain", "raft/wal-v3-encrypted/0000000000000000-0000000000000000.wal", 2503},
		{"locked", "raft/wal-v3-encrypted/0000000000000000-0000000000000000.wal", 9001},
		{"locked", "raft/snap-v3-encrypted/0000000000000002-0000000000000024.snap", 701},
		{"plain", certFile, 37},
		{"plain", rootFile, 37},
		{"locked", nodeFile, 23},
	} {
		dir := filepath.Join(unpacked(t, c.dump), stateDir)
		file := filepath.Join(dir, c.file)
		b, err := os.ReadFile(file)
		must(t, err)
		from := 0
		if c.file == nodeFile {
			from = bytes.Index(b, []byte(headKey)) + len(headKey) + 2
		}
		for at := from; at < len(b)-1; at += c.grain {
			f := bytes.Clone(b)
			f[at] ^= 1 << (at % 8)
			if same(b, f) {
				continue // another way to write the same PEM
			}
			must(t, os.WriteFile(file, f, 0o600))
			if err := (&dump{}).readState(t.Context(), dir, heldKey(t)); err == nil {
				t.Errorf("%s %s: byte %d of %d", c.dump, c.file, at, len(b))
			}
		}
	}
}

func same(a, b []byte) bool {
	p, _ := pem.Decode(a)
	q, _ := pem.Decode(b)
	return p != nil && q != nil && bytes.Equal(p.Bytes, q.Bytes) && fmt.Sprint(p.Headers) == fmt.Sprint(q.Headers)
}

// The log's end: cut anywhere it is not whole, and what stands behind the last record
// is not passed over.
func TestTornLog(t *testing.T) {
	dir := filepath.Join(unpacked(t, "plain"), stateDir)
	file := filepath.Join(dir, "raft/wal-v3-encrypted/0000000000000000-0000000000000000.wal")
	b, err := os.ReadFile(file)
	must(t, err)
	used := len(bytes.TrimRight(b, "\x00"))
	for _, n := range []int{0, 4, 11, used / 2, used - 9} {
		must(t, os.WriteFile(file, b[:n], 0o600))
		if err := (&dump{}).readState(t.Context(), dir, nil); err == nil {
			t.Errorf("cut at %d of %d", n, used)
		}
	}
	var out bytes.Buffer
	must(t, copyUsed(&out, io.MultiReader(bytes.NewReader(b), bytes.NewReader(make([]byte, 5<<20)))))
	if out.Len() < used+8 || out.Len() > len(b)+2*usedChunk {
		t.Errorf("%d of %d bytes are copied", out.Len(), len(b))
	}
	must(t, os.WriteFile(file, out.Bytes(), 0o600))
	must(t, (&dump{}).readState(t.Context(), dir, nil))
	must(t, os.Rename(file, filepath.Join(filepath.Dir(file), "0000000000000001-0000000000000040.wal")))
	if err := (&dump{}).readState(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), "no snapshot reaches") {
		t.Error(err)
	}
}

// The rewritten key file opens without a key, and what it opens is the same.
func TestKeyFileInThePlain(t *testing.T) {
	dir := unpacked(t, "locked")
	d, err := readDump(t.Context(), dir, heldKey(t))
	must(t, err)
	plain := d.Key.plain(d.Opened)
	must(t, os.WriteFile(filepath.Join(dir, stateDir, nodeFile), plain, 0o600))
	n := &dump{}
	must(t, n.readState(t.Context(), filepath.Join(dir, stateDir), nil))
	if n.Key.Locked || n.Key.Version != d.Key.Version+1 || n.Log.Commit != d.Log.Commit || n.Log.Store.counts()["secrets"] != 1 {
		t.Errorf("%+v", n.Key)
	}
}

func TestUnlockKeysStayHidden(t *testing.T) {
	k := heldKey(t)[0]
	for _, text := range []string{fmt.Sprint(k), fmt.Sprintf("%v %s %q %#v", k, k, k, k), fmt.Sprint([]UnlockKey{k})} {
		if strings.Contains(text, unlockPrefix) {
			t.Error("a key is printed")
		}
	}
	for _, text := range []string{"", "SWMKEY-2-x", unlockPrefix + "x", unlockPrefix + strings.Repeat("A", 44)} {
		if _, err := ParseUnlockKeys(text); err == nil || strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The token of github.com/fernet/spec/verify.json.
func TestFernet(t *testing.T) {
	key := []byte{0x73, 0x0f, 0xf4, 0xc7, 0xaf, 0x3d, 0x46, 0x92, 0x3e, 0x8e, 0xd4, 0x51, 0xee, 0x81, 0x3c, 0x87, 0xf7, 0x90, 0xb0, 0xa2, 0x26, 0xbc, 0x96, 0xa9, 0x2d, 0xe4, 0x9b, 0x5e, 0x9c, 0x05, 0xe1, 0xee}
	token := []byte("gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==")
	if got, ok := openFernet(token, key); !ok || string(got) != "hello" {
		t.Errorf("%q, %t", got, ok)
	}
	token[20] ^= 1
	if _, ok := openFernet(token, key); ok {
		t.Error("a token with another content is opened")
	}
}

func FuzzLog(f *testing.F) {
	b, err := os.ReadFile(filepath.Join(unpacked(f, "plain"), stateDir, walDir, "0000000000000000-0000000000000000.wal"))
	must(f, err)
	f.Add(b[:2048])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, walDir), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, walDir, "0000000000000000-0000000000000000.wal"), b, 0o600))
		_, _ = readLog(t.Context(), dir, [][]byte{make([]byte, keySize)})
	})
}

func FuzzStore(f *testing.F) {
	f.Add(uint64(ofStore), []byte{0x12, 0x02, 0x08, 0x01})
	f.Add(uint64(ofMembers), []byte{0x10, 0x00, 0x18, 0x07})
	f.Fuzz(func(_ *testing.T, typ uint64, b []byte) {
		s := newStore()
		_ = s.apply(typ, b)
		_ = s.begin(b)
		_, _ = parseMember(b)
	})
}

func FuzzNodeKey(f *testing.F) {
	for _, name := range []string{"plain", "locked"} {
		b, err := os.ReadFile(filepath.Join(unpacked(f, name), stateDir, nodeFile))
		must(f, err)
		f.Add(b)
	}
	keys := heldKey(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseNodeKey(b)
		if err != nil {
			return
		}
		o, err := k.open(keys)
		if err != nil {
			return
		}
		if again, err := parseNodeKey(k.plain(o)); err != nil || again.Locked {
			t.Errorf("%v", err)
		}
	})
}
