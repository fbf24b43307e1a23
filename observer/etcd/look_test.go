package etcd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	bolt "go.etcd.io/bbolt"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dumps were taken of etcd 3.6.16; what is expected of each is what the server said
// of itself right after (`etcdctl endpoint hashkv`).
var dumps = map[string]content{
	// Never compacted; a lease is attached to a key, which etcdutl's hashkv dies of.
	"plain": {Revision: 9, Compact: -1, Hash: 718918155, Keys: 7, Records: 8, Leases: 1},
	// History with deleted and overwritten keys on both sides of a compaction.
	"compacted": {Revision: 17, Compact: 12, Hash: 2975667760, Keys: 7, Leases: 1, Users: 1, Roles: 1},
	// Compacted at a deletion, which is the newest change.
	"tombstone": {Revision: 18, Compact: 18, Hash: 4202312360, Keys: 6, Leases: 1, Users: 1, Roles: 1},
	// Restored by etcdutl with a raised revision, and written to.
	"bumped": {Revision: 1000000018, Compact: 1000000017, Hash: 1340265242, Keys: 8, Leases: 1, Users: 1, Roles: 1},
}

func dumpBytes(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".db.zst")
	must(t, err)
	z, err := zstd.NewReader(nil)
	must(t, err)
	defer z.Close()
	b, err = z.DecodeAll(b, nil)
	must(t, err)
	return b
}

func lookBytes(t testing.TB, b []byte) (content, error) {
	t.Helper()
	d, err := openDatabase(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return content{}, err
	}
	return look(t.Context(), d)
}

// What a dump holds is read as its server sees it.
func TestLook(t *testing.T) {
	for name, want := range dumps {
		b := dumpBytes(t, name)
		c, err := lookBytes(t, b[:len(b)-trailerSize])
		must(t, err)
		if c.Revision != want.Revision || c.Compact != want.Compact || c.Hash != want.Hash || c.Keys != want.Keys || c.Leases != want.Leases || c.Users != want.Users || c.Roles != want.Roles {
			t.Errorf("%s: %+v, not %+v", name, c, want)
		}
		if c.RaftIndex == 0 || c.Term == 0 || c.Members != 1 || c.Storage == "" {
			t.Errorf("%s: %+v", name, c)
		}
		if c.Registry["pods"] != 2 || c.Registry["custom"] != 1 {
			t.Errorf("%s: %v", name, c.Registry)
		}
	}
}

// dumpDir makes of a dump what is checked.
func dumpDir(t testing.TB, b []byte) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, observer.DumpName), b, 0o600))
	st, err := snapshot.CreateStage(fsx.FS{}, "20261121T000000Z-auto-000000", []snapshot.Root{{Path: t.TempDir()}})
	must(t, err)
	n := observer.Note{Position: observer.Position{Kind: Kind, Incarnation: "abc", Index: 1}}
	must(t, n.Put(t.Context(), st))
	note, err := os.ReadFile(filepath.Join(st.Trees()[0].Dir, observer.NoteName))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, observer.NoteName), note, 0o600))
	return dir
}

func check(t testing.TB, dir string, at observer.Position) observer.Checked {
	t.Helper()
	out, err := New(Options{}).Check(t.Context(), []snapshot.Tree{{Dir: dir}}, at)
	must(t, err)
	return out
}

// Wherever one bit is another, in each place of a real dump, the check finds it.
func TestEveryFlippedBitIsFound(t *testing.T) {
	b := dumpBytes(t, "compacted")
	dir := dumpDir(t, b)
	good := check(t, dir, observer.Position{})
	if len(good.Findings) > 0 || good.At.Index != 17 || hex.EncodeToString(good.At.Hash) != fmt.Sprintf("%08x", dumps["compacted"].Hash) {
		t.Fatalf("%+v", good)
	}
	if good = check(t, dir, *good.At); len(good.Findings) > 0 {
		t.Fatalf("%+v", good)
	}
	if other := check(t, dir, observer.Position{Index: 16}); len(other.Findings) != 1 {
		t.Errorf("a dump at another position: %+v", other)
	}
	f, err := os.OpenFile(filepath.Join(dir, observer.DumpName), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for at := 0; at < len(b); at += 61 {
		_, err := f.WriteAt([]byte{b[at] ^ 1<<(at%8)}, int64(at))
		must(t, err)
		if out := check(t, dir, observer.Position{}); len(out.Findings) != 1 || strings.Contains(out.Findings[0], "\n") || out.Opened != "none" {
			t.Fatalf("bit %d of byte %d: %+v", at%8, at, out)
		}
		_, err = f.WriteAt(b[at:at+1], int64(at))
		must(t, err)
	}
	for _, size := range []int64{0, 31, 32, 512, int64(len(b)) - 1, int64(len(b)) - 32, int64(len(b)) - 512} {
		must(t, f.Truncate(size))
		if out := check(t, dir, observer.Position{}); len(out.Findings) != 1 {
			t.Errorf("%d bytes: %+v", size, out)
		}
	}
}

// Behind a trailer that somebody has made right, damage is found by the pages, by the
// records, or by the hash; it never ends the program.
func TestDamageBehindARightTrailer(t *testing.T) {
	b := dumpBytes(t, "compacted")
	b = b[:len(b)-trailerSize]
	same := 0
	tries := 0
	for at := 0; at < len(b); at += 5 { // coprime to the sizes of elements
		was := b[at]
		b[at] ^= 1 << (at % 8)
		c, err := lookBytes(t, b)
		if err != nil && !isDamage(err) {
			t.Fatalf("byte %d: %v", at, err)
		}
		if err == nil && c.Hash == dumps["compacted"].Hash {
			same++ // in what is free, or in another bucket
		}
		b[at] = was
		tries++
	}
	if same == 0 || same == tries {
		t.Errorf("%d changes were not seen", same)
	}
}

// The pages are read as bbolt reads them: small buckets within others, large values,
// trees of several levels, in both directions.
func TestPagesAsBBoltHasThem(t *testing.T) {
	file := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(file, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true})
	must(t, err)
	want := map[string][]string{}
	must(t, db.Update(func(tx *bolt.Tx) error {
		for name, n := range map[string]int{"none": 0, "few": 3, "key": 3000, "large": 5} {
			bkt, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			want[name] = nil
			for i := range n {
				k, v := fmt.Sprintf("%06d", i), bytes.Repeat([]byte{byte(i)}, i%100)
				if name == "large" {
					v = bytes.Repeat([]byte{byte(i)}, i*10_000)
				}
				if err := bkt.Put([]byte(k), v); err != nil {
					return err
				}
				want[name] = append(want[name], k)
			}
		}
		return nil
	}))
	must(t, db.Close())
	b, err := os.ReadFile(file)
	must(t, err)
	d, err := openDatabase(bytes.NewReader(b), int64(len(b)))
	must(t, err)
	for name, keys := range want {
		var up, down []string
		bytesSeen := 0
		for desc, got := range map[bool]*[]string{false: &up, true: &down} {
			ok, err := d.each(name, desc, func(k, v []byte) error {
				*got = append(*got, string(k))
				bytesSeen += len(v)
				return nil
			})
			must(t, err)
			if !ok {
				t.Errorf("no bucket %s", name)
			}
		}
		if fmt.Sprint(up) != fmt.Sprint(keys) || len(down) != len(up) || len(up) > 0 && down[0] != up[len(up)-1] {
			t.Errorf("%s: %d up, %d down of %d", name, len(up), len(down), len(keys))
		}
		if name == "large" && bytesSeen != 200_000 {
			t.Errorf("%d bytes of large values", bytesSeen)
		}
	}
	if ok, err := d.each("nowhere", false, nil); ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

// FuzzLook: whatever a file holds, reading it ends with an answer.
func FuzzLook(f *testing.F) {
	for name := range dumps {
		b := dumpBytes(f, name)
		f.Add(b[:len(b)-trailerSize], uint32(0), byte(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint32, to byte) {
		if len(b) > 1<<20 {
			return
		}
		b = bytes.Clone(b)
		if len(b) > 0 {
			b[int(at)%len(b)] = to
		}
		// Checksums are made right, so that what is behind them is reached.
		for _, p := range []int{0, 4096} {
			if p+pageHead+64 <= len(b) {
				binary.LittleEndian.PutUint64(b[p+pageHead+56:], metaSum(b[p+pageHead:p+pageHead+56]))
			}
		}
		d, err := openDatabase(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if _, err := look(context.Background(), d); err != nil && !isDamage(err) {
			t.Error(err)
		}
	})
}

// FuzzRecord: a record that is taken has a key.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("\x0a\x01a\x10\x02\x18\x02\x20\x01\x2a\x011"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		key, _, err := parseRecord(b)
		if err == nil && len(key) == 0 && len(b) > 0 || err != nil && !isDamage(err) {
			t.Errorf("%q, %v", key, err)
		}
	})
}

// The end of a snapshot is known however the stream is cut.
func TestTrailer(t *testing.T) {
	b := dumpBytes(t, "plain")
	for _, cut := range []int{1, 7, 31, 32, 33, 4096, len(b)} {
		tr := newTrailed(new(bytes.Buffer))
		for rest := b; len(rest) > 0; {
			n := min(cut, len(rest))
			_, err := tr.Write(rest[:n])
			must(t, err)
			rest = rest[n:]
		}
		if wrong := tr.whole(); wrong != "" {
			t.Errorf("in pieces of %d: %s", cut, wrong)
		}
	}
}
