package snapshot

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
	"time"
)

// Whatever a file is called and whosesoever it is, a tar reader gets back what the
// header was made from, or there is no header.
func FuzzHeader(f *testing.F) {
	f.Add("data/state.db/000001.ldb", int64(7), uint32(0o644), int64(1700000000), 1000, 1000, "")
	f.Add(strings.Repeat("d/", 200)+"\xff\n", int64(1)<<40, uint32(0o7777), int64(-5), 1<<30, -1, "")
	f.Add("link", int64(0), uint32(0o777), int64(1<<33), 0, 0, "../"+strings.Repeat("x", 300))
	f.Fuzz(func(t *testing.T, name string, size int64, mode uint32, mtime int64, uid, gid int, link string) {
		e := Entry{Name: name, Type: TypeFile, Size: max(0, size), Mode: mode & 0o7777, MTime: time.Unix(mtime%(1<<33), 0), UID: uid, GID: gid}
		if link != "" {
			e.Type, e.Link, e.Size = TypeSymlink, link, 0
		}
		b, err := header(e)
		if err != nil {
			return
		}
		again, err := header(e)
		if err != nil || !bytes.Equal(b, again) || len(b)%tarBlock != 0 {
			t.Fatalf("the second time %d bytes, %v; the first %d", len(again), err, len(b))
		}
		h, err := tar.NewReader(bytes.NewReader(b)).Next()
		if err != nil {
			if strings.HasPrefix(name, "/") || name == "" || strings.HasSuffix(name, "/") {
				return // no name that a stage can have
			}
			t.Fatalf("%q: %v", name, err)
		}
		if h.Size != e.Size || h.Mode != int64(e.Mode) || h.Uid != uid || h.Gid != gid || !h.ModTime.Equal(e.MTime) || h.Linkname != link {
			t.Errorf("%+v became %+v", e, h)
		}
	})
}
