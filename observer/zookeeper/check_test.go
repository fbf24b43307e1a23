package zookeeper

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// lone is a dump that eddy has made of a server of ZooKeeper 3.8.0 with snapCount 10:
// two snapshots, three logs, 0x1a transactions.
const lone = "testdata/lone"

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func look1(t *testing.T, dir string) observer.Checked {
	t.Helper()
	c, err := Checker{}.Check(t.Context(), []snapshot.Tree{{Dir: dir}}, observer.Position{})
	must(t, err)
	return c
}

func copied(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(lone)))
	return dir
}

func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			out = append(out, p)
		}
		return err
	}))
	return out
}

func TestASoundDump(t *testing.T) {
	c := look1(t, lone)
	if len(c.Findings) > 0 || c.Opened != "all" || c.At == nil {
		t.Fatalf("%+v", c)
	}
	if c.At.Index != 0x1a || c.At.HashKind != "tree_digest" || c.Proven["transactions"] != 2 || c.Proven["nodes"] != 27 {
		t.Errorf("%+v, %v", c.At, c.Proven)
	}
	c, err := Checker{}.Check(t.Context(), []snapshot.Tree{{Dir: lone}}, observer.Position{Kind: Kind, Index: 0x19})
	if err != nil || len(c.Findings) != 1 || !strings.Contains(c.Findings[0], "not at zxid 0x19") {
		t.Errorf("%q, %v", c.Findings, err)
	}
}

// A flipped bit in any file is found, and so is an end that came too early.
func TestDamageIsFound(t *testing.T) {
	dir := copied(t)
	for _, file := range files(t, dir) {
		good, err := os.ReadFile(file)
		must(t, err)
		for at := 0; at < len(good); at += 1 + len(good)/40 {
			bad := bytes.Clone(good)
			bad[at] ^= 1 << (at % 8)
			must(t, os.WriteFile(file, bad, 0o600))
			if c := look1(t, dir); len(c.Findings) != 1 || c.At != nil {
				t.Fatalf("bit %d of byte %d of %s: %+v", at%8, at, file, c)
			}
			must(t, os.WriteFile(file, good[:at], 0o600))
			if c := look1(t, dir); len(c.Findings) != 1 {
				t.Fatalf("%s cut at %d: %+v", file, at, c)
			}
		}
		must(t, os.WriteFile(file, append(bytes.Clone(good), 0), 0o600))
		if c := look1(t, dir); len(c.Findings) != 1 {
			t.Fatalf("a byte more in %s: %+v", file, c)
		}
		must(t, os.WriteFile(file, good, 0o600))
	}
}

// What is missing is found, and so is a gap that its writer did not see.
func TestMissingFiles(t *testing.T) {
	for _, name := range []string{"log.9", "snapshot.f", "log.11", "log.1a", "snapshot.18"} {
		dir := copied(t)
		must(t, os.Remove(filepath.Join(dir, stateDir, name)))
		if got := strings.Join(look1(t, dir).Findings, "\n"); got != name+" has no bytes, dump.json says "+size(t, name) {
			t.Errorf("without %s: %q", name, got)
		}
	}
	l := look{from: 0x18, zxid: 0x18}
	if err := l.txn(txn{zxid: 0x1a}); err == nil || !strings.Contains(err.Error(), "something between them is missing") {
		t.Errorf("%v", err)
	}
}

func size(t *testing.T, name string) string {
	t.Helper()
	all, err := sizes(filepath.Join(lone, stateDir))
	must(t, err)
	return all[name]
}

func none([]byte) error { return nil }

// The digest of a snapshot is the one that the log tells of that transaction.
func TestSnapshotAndLogAgree(t *testing.T) {
	l := look{tree: &treeDigest{zxid: 0x1a, version: digestVersion, sum: 7}, from: 0x19, zxid: 0x19}
	if err := l.txn(txn{zxid: 0x1a, tree: &treeDigest{version: digestVersion, sum: 7}}); err != nil {
		t.Error(err)
	}
	if err := l.txn(txn{zxid: 0x1a, tree: &treeDigest{version: digestVersion, sum: 8}}); err == nil {
		t.Error("another tree passes")
	}
}

func TestFollows(t *testing.T) {
	for _, c := range []struct {
		before, zxid uint64
		want         bool
	}{
		{0, 1, true},
		{1, 3, false},
		{5, 5, false},
		{0, 1<<32 | 1, true},
		{1<<32 | 9, 3<<32 | 1, true},
		{1<<32 | 9, 2<<32 | 2, false},
		{2<<32 | 9, 1<<32 | 1, false},
		{1 << 32, 1<<32 | 1, true},
	} {
		if got := follows(c.before, c.zxid); got != c.want {
			t.Errorf("0x%x after 0x%x: %t", c.zxid, c.before, got)
		}
	}
}

func realLog(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(lone, stateDir, "log.11"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// How logs end that a server writes, or was killed over.
func TestEndsOfLogs(t *testing.T) {
	whole := realLog(t)
	zeros := make([]byte, 200_000)
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		log  []byte
		txns int64
		torn bool
		bad  bool
	}{
		"whole":                    {log: whole, txns: 9},
		"set aside":                {log: cat(whole, zeros), txns: 9},
		"a few zeros":              {log: cat(whole, zeros[:5]), txns: 9},
		"nothing":                  {},
		"only set aside":           {log: zeros},
		"killed in a record":       {log: whole[:len(whole)-20], txns: 8, torn: true},
		"killed, set aside":        {log: cat(whole[:len(whole)-20], zeros), txns: 8, torn: true},
		"killed in a length":       {log: whole[:1248+6], txns: 8, torn: true},
		"something behind zeros":   {log: cat(whole, zeros, []byte{1}), bad: true},
		"something behind a tear":  {log: cat(whole[:len(whole)-20], zeros, []byte{1}), bad: true},
		"a record lost in between": {log: cat(whole[:300], zeros[:100], whole[400:]), bad: true},
		"another file":             {log: []byte("#!/bin/sh\necho this is no log"), bad: true},
	} {
		end, err := readLog(t.Context(), bytes.NewReader(c.log), none, func(txn) error { return nil })
		if (err != nil) != c.bad || !c.bad && (end.txns != c.txns || end.torn != c.torn) {
			t.Errorf("%s: %+v, %v", name, end, err)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	b, err := os.ReadFile(filepath.Join(lone, stateDir, "snapshot.f"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:600])
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := readSnapshot(context.Background(), bytes.NewReader(b))
		if err == nil && img.nodes < 0 {
			t.Errorf("%+v", img)
		}
	})
}

// What is taken of a log reads as that log does, to its last byte.
func FuzzLog(f *testing.F) {
	b := realLog(f)
	f.Add(b)
	f.Add(append(b[:len(b)-9:len(b)-9], make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		write := func(p []byte) error { _, err := out.Write(p); return err }
		end, err := readLog(context.Background(), bytes.NewReader(b), write, func(x txn) error { return write(x.raw) })
		if err != nil || end.size == 0 {
			return
		}
		again, err := readLog(context.Background(), bytes.NewReader(out.Bytes()), none, func(txn) error { return nil })
		if err != nil || again.txns != end.txns || again.torn || again.tail > 0 || int64(out.Len()) != end.size {
			t.Errorf("%+v became %+v, %v", end, again, err)
		}
	})
}
