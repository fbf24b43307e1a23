package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// trailerSize is how many bytes end a snapshot stream: the sha256 of all before
// (etcd, server/etcdserver/api/v3rpc/maintenance.go, Snapshot).
const trailerSize = sha256.Size

// trailed passes a snapshot on and compares its end with what came before it.
type trailed struct {
	w    io.Writer
	sum  hash.Hash
	tail []byte // the last bytes, which may be the trailer
	n    int64
}

func newTrailed(w io.Writer) *trailed { return &trailed{w: w, sum: sha256.New()} }

func (t *trailed) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	b, t.n = b[:n], t.n+int64(n)
	if len(b) >= trailerSize {
		t.sum.Write(t.tail)
		cut := len(b) - trailerSize
		t.sum.Write(b[:cut])
		t.tail = append(t.tail[:0], b[cut:]...)
		return n, err
	}
	t.tail = append(t.tail, b...)
	if cut := len(t.tail) - trailerSize; cut > 0 {
		t.sum.Write(t.tail[:cut])
		t.tail = append(t.tail[:0], t.tail[cut:]...)
	}
	return n, err
}

// whole tells what is wrong with what was written; "" where nothing is.
func (t *trailed) whole() string {
	switch sum := t.sum.Sum(nil); {
	case t.n%512 != trailerSize:
		return fmt.Sprintf("it has %d bytes, which no snapshot with its sha256 has", t.n)
	case !bytes.Equal(sum, t.tail):
		return fmt.Sprintf("its sha256 is %x, it says itself %x", sum, t.tail)
	}
	return ""
}

// content is what a database holds.
type content struct {
	Revision int64 // of the newest change
	// Compact is the revision below which history is gone; -1: nothing was compacted.
	Compact   int64
	RaftIndex uint64 // of the newest entry in it
	Term      uint64 // of that entry; 0 before etcd 3.5
	Hash      uint32 // as HashKV has it at Revision
	Storage   string // version of the form, from etcd 3.6 on
	Records   int64  // changes that it remembers
	Keys      int64  // that are there at Revision
	Leases    int64
	Users     int64
	Roles     int64
	Members   int64
	// Registry counts the keys of Kubernetes by their resource.
	Registry map[string]int64
}

// revision is a place in the history: a change, and a part of it.
type revision struct{ main, sub int64 }

const (
	revSize  = 17 // main 8, "_", sub 8; big endian
	tombSize = 18 // and "t": the key was deleted
)

func parseRevision(k []byte) (r revision, tomb bool, err error) {
	if len(k) != revSize && (len(k) != tombSize || k[revSize] != 't') || k[8] != '_' {
		return r, false, damaged("%x is no revision", short(k))
	}
	r = revision{int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[9:]))}
	if r.main < 0 || r.sub < 0 {
		return r, false, damaged("revision %d/%d", r.main, r.sub)
	}
	return r, len(k) == tombSize, nil
}

// The fields of mvccpb.KeyValue that are looked at.
const (
	fieldKey = 1
	fieldMod = 3
)

// parseRecord finds key and revision of a change without copying its value. A record
// of nothing, with no key, is where etcdutl has raised the revision
// (etcdutl/snapshot/v3_snapshot.go, unsafeBumpBucketsRevision).
func parseRecord(b []byte) (key []byte, mod int64, err error) {
	if len(b) == 0 {
		return nil, 0, nil
	}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, 0, damaged("a record: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == fieldKey && typ == protowire.BytesType:
			key, n = protowire.ConsumeBytes(b)
		case num == fieldMod && typ == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			mod = int64(v)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return nil, 0, damaged("a record: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	if len(key) == 0 {
		return nil, 0, damaged("a record without a key")
	}
	return key, mod, nil
}

// look reads all of a database.
func look(ctx context.Context, d *database) (c content, err error) {
	if err := c.meta(d); err != nil {
		return c, err
	}
	var kept []revision // of keys that are there, compacted history only, the newest first
	live := false
	seen := map[[16]byte]struct{}{}
	c.Revision = max(1, c.Compact)
	there, err := d.each("key", true, func(k, v []byte) error {
		rev, tomb, err := parseRevision(k)
		if err != nil {
			return err
		}
		key, mod, err := parseRecord(v)
		if err != nil {
			return fmt.Errorf("revision %d: %w", rev.main, err)
		}
		if !tomb && len(v) > 0 && mod != rev.main {
			return damaged("the record of revision %d says it is of %d", rev.main, mod)
		}
		c.Revision = max(c.Revision, rev.main)
		if c.Records++; c.Records&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		sum := sha256.Sum256(key)
		id := [16]byte(sum[:16])
		if _, newer := seen[id]; newer {
			return nil
		}
		seen[id] = struct{}{}
		if tomb {
			return nil
		}
		live = true
		if len(key) > 0 {
			c.Keys++
			c.register(string(key))
		}
		if rev.main <= c.Compact {
			kept = append(kept, rev)
		}
		return nil
	})
	if err == nil && !there {
		err = damaged("it has no bucket key: it is not etcd's")
	}
	if err != nil {
		return c, err
	}
	if c.Hash, err = hashKV(ctx, d, c.Compact, kept, live); err != nil {
		return c, err
	}
	for _, n := range []struct {
		bucket string
		count  *int64
	}{{"lease", &c.Leases}, {"authUsers", &c.Users}, {"authRoles", &c.Roles}, {"members", &c.Members}} {
		if _, err := d.each(n.bucket, false, func(_, _ []byte) error { *n.count++; return nil }); err != nil {
			return c, fmt.Errorf("bucket %s: %w", n.bucket, err)
		}
	}
	return c, nil
}

// hashKV is the hash by which members compare what they hold at the newest revision
// (etcd, server/storage/mvcc/hash.go): Castagnoli's crc32 over the bucket's name and
// every record, without those that a compaction has taken or will take. kept are the
// others of the compacted history, the newest first.
func hashKV(ctx context.Context, d *database, compact int64, kept []revision, anyKept bool) (uint32, error) {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, _ = io.WriteString(sum, "key")
	n := 0
	_, err := d.each("key", false, func(k, v []byte) error {
		if n++; n&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		rev, tomb, err := parseRevision(k)
		if err != nil {
			return err
		}
		if rev.main <= compact && anyKept {
			if len(kept) == 0 || kept[len(kept)-1] != rev {
				return nil
			}
			kept = kept[:len(kept)-1]
		}
		if rev.main == compact && tomb {
			return nil // some versions keep it, others do not
		}
		sum.Write(k)
		sum.Write(v)
		return nil
	})
	return sum.Sum32(), err
}

func (c *content) meta(d *database) error {
	c.Compact = -1
	there, err := d.each("meta", false, func(k, v []byte) error {
		switch string(k) {
		case "consistent_index", "term":
			if len(v) != 8 {
				return damaged("%s of %d bytes", k, len(v))
			}
			n := binary.BigEndian.Uint64(v)
			if string(k) == "term" {
				c.Term = n
			} else {
				c.RaftIndex = n
			}
		case "finishedCompactRev", "scheduledCompactRev": // what is scheduled counts for the members already
			r, _, err := parseRevision(v)
			if err != nil {
				return err
			}
			c.Compact = max(c.Compact, r.main)
		case "storageVersion":
			c.Storage = string(v[:min(len(v), 32)])
		}
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("bucket meta: %w", err)
	case !there:
		return damaged("it has no bucket meta: it is not etcd's")
	case c.RaftIndex == 0:
		return damaged("it does not say which entry it ends with")
	}
	return nil
}

// register counts a key of Kubernetes by its resource. The counts stand where
// everybody may read them, so that names of somebody's own are not told apart.
func (c *content) register(key string) {
	rest, ok := strings.CutPrefix(key, "/registry/")
	resource, _, deeper := strings.Cut(rest, "/")
	if !ok || !deeper || len(c.Registry) > 200 && c.Registry[resource] == 0 {
		return
	}
	if resource == "" || strings.ContainsFunc(resource, func(r rune) bool { return r < 'a' || r > 'z' }) {
		resource = "custom"
	}
	if c.Registry == nil {
		c.Registry = map[string]int64{}
	}
	c.Registry[resource]++
}

// isDamage tells findings from errors of the reading.
func isDamage(err error) bool { return errors.Is(err, errDamaged) }
