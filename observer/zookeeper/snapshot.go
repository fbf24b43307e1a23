package zookeeper

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"strings"
)

const (
	snapMagic  = 0x5a4b534e // "ZKSN"
	logMagic   = 0x5a4b4c47 // "ZKLG"
	fileFormat = 2
)

// image is what a snapshot says. It is fuzzy: transactions went on while it was
// written, so that only the log behind it makes it one state.
type image struct {
	nodes    int64
	sessions int64
	// tree is the digest of all nodes at zxid, where the server keeps one (3.6 on).
	tree *treeDigest
	// last is the transaction up to which it was written, where it says so (3.9 on).
	last uint64
}

// treeDigest is a digest of the whole tree after a transaction.
type treeDigest struct {
	zxid    uint64
	version int32
	sum     uint64
}

// statSize are the bytes of a node's acl and its persisted stat.
const statSize = 8 + 8 + 8 + 8 + 8 + 4 + 4 + 4 + 8 + 8

// readSnapshot reads one to its last byte. Each part of it is sealed by an adler32 of
// all bytes before.
func readSnapshot(ctx context.Context, r io.Reader) (out image, err error) {
	j := newJute(r)
	if m, v, db := j.int(), j.int(), j.long(); j.err == nil && (m != snapMagic || v != fileFormat || db != -1) {
		return out, malformed("it does not begin as a snapshot does")
	}
	for n := j.count("sessions"); n > 0 && j.err == nil; n-- {
		j.pass(12) // id, time-out
		out.sessions++
	}
	for n := j.count("ACLs"); n > 0 && j.err == nil; n-- {
		j.long()
		for m := j.count("entries of an ACL"); m > 0 && j.err == nil; m-- {
			j.int()
			j.text()
			j.text()
		}
	}
	for j.err == nil {
		if out.nodes%4096 == 0 && ctx.Err() != nil {
			return out, ctx.Err()
		}
		path := j.text()
		if path == "/" || j.err != nil { // the root itself is called ""
			break
		}
		if path != "" && !strings.HasPrefix(path, "/") {
			return out, malformed("a node without a path before byte %d", j.n)
		}
		j.skip("a node's data")
		j.pass(statSize)
		out.nodes++
	}
	j.seal()
	// A server whose digests are switched off leaves the next part out.
	rest, _ := j.r.Peek(64)
	if len(rest) >= 33 && j.err == nil {
		d := treeDigest{zxid: uint64(j.long()), version: j.int(), sum: uint64(j.long())}
		j.seal()
		out.tree = &d
		rest, _ = j.r.Peek(64)
	}
	if len(rest) > 0 && j.err == nil {
		out.last = uint64(j.long())
		j.seal()
	}
	if j.err == nil && !j.ends() && j.err == nil {
		return out, malformed("bytes behind its end, at %d", j.n)
	}
	return out, j.err
}

// count reads how many of something follow.
func (j *jute) count(what string) int32 {
	n := j.int()
	if j.err == nil && n < -1 {
		j.err = malformed("%d %s at byte %d", n, what, j.n-4)
	}
	return max(n, 0)
}

// seal reads the checksum of all that was read, and the word behind it.
func (j *jute) seal() {
	want, at := int64(j.sum.Sum32()), j.n
	got, word := j.long(), j.text()
	if j.err == nil && (got != want || word != "/") {
		j.err = malformed("its checksum is wrong, at byte %d", at)
	}
}

// openSnapshot opens a snapshot's file in any of the forms that a server can be told
// to write. known is false for one that is not known here (snappy).
func openSnapshot(file string) (r io.ReadCloser, known bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false, err
	}
	switch {
	case strings.HasSuffix(file, ".snappy"):
		return nil, false, f.Close()
	case strings.HasSuffix(file, ".gz"):
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, true, errors.Join(malformed("%v", err), f.Close())
		}
		return gz{z, f}, true, nil
	}
	return f, true, nil
}

type gz struct {
	*gzip.Reader
	f *os.File
}

func (g gz) Read(b []byte) (int, error) {
	n, err := g.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = malformed("%v", err)
	}
	return n, err
}

func (g gz) Close() error { return errors.Join(g.Reader.Close(), g.f.Close()) }

// finished tells whether a snapshot was written to its end, as a server does before
// it loads one: by its last bytes. Of a compressed one it shows when it is read.
func finished(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !strings.HasPrefix(st.Name(), snapPrefix) || strings.Contains(st.Name()[len(snapPrefix):], ".") {
		return err == nil && st.Size() > 0, err
	}
	var end [5]byte
	if st.Size() < int64(len(end)) {
		return false, nil
	}
	if _, err := f.ReadAt(end[:], st.Size()-int64(len(end))); err != nil {
		return false, err
	}
	return end == [5]byte{0, 0, 0, 1, '/'}, nil
}
