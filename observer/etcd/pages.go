package etcd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The page format of bbolt (go.etcd.io/bbolt, internal/common/{page,meta,bucket}.go),
// version 2, on a little-endian machine. A library that maps the file would die of a
// page number that leads out of it; here every number is compared with the file.
const (
	pageHead   = 16 // id 8, flags 2, count 2, overflow 4
	elemSize   = 16 // leaf: flags 4, pos 4, ksize 4, vsize 4; branch: pos 4, ksize 4, page 8
	bucketHead = 16 // root page 8, sequence 8

	branchPage = 0x01
	leafPage   = 0x02
	metaPage   = 0x04
	bucketElem = 0x01

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	maxDepth = 64        // of a tree; each level multiplies
	maxPage  = 256 << 20 // bytes of a page with its overflow: of one value, mostly
)

// errDamaged is in the chain of every error that is about what was read.
var errDamaged = errors.New("damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errDamaged}, args...)...)
}

// database is a bbolt file that is read and never written to.
type database struct {
	r     io.ReaderAt
	page  int64  // bytes of a page
	pages uint64 // in the file
	root  uint64 // page of the bucket of all buckets
}

// openDatabase reads the newer of the two meta pages. size is the file's, in bytes.
func openDatabase(r io.ReaderAt, size int64) (*database, error) {
	d := &database{r: r}
	first, err := readMeta(r, 0, size)
	if err != nil {
		return nil, err
	}
	second, err := readMeta(r, first.page, size)
	if err != nil {
		return nil, err
	}
	if second.page != first.page {
		return nil, damaged("two page sizes, %d and %d", first.page, second.page)
	}
	if second.tx > first.tx {
		first = second
	}
	d.page, d.root, d.pages = first.page, first.root, uint64(size/first.page)
	if size%first.page != 0 || first.pages > d.pages {
		return nil, damaged("%d bytes are no %d pages of %d", size, first.pages, first.page)
	}
	return d, nil
}

type meta struct {
	page            int64
	root, pages, tx uint64
}

func readMeta(r io.ReaderAt, at, size int64) (m meta, err error) {
	b := make([]byte, pageHead+64)
	if at+int64(len(b)) > size {
		return m, damaged("%d bytes are no database", size)
	}
	if _, err := r.ReadAt(b, at); err != nil {
		return m, err
	}
	le, b, flags := binary.LittleEndian, b[pageHead:], binary.LittleEndian.Uint16(b[8:])
	m = meta{page: int64(le.Uint32(b[8:])), root: le.Uint64(b[16:]), pages: le.Uint64(b[40:]), tx: le.Uint64(b[48:])}
	switch {
	case flags&metaPage == 0 || le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion:
		return m, damaged("no meta page of a database at byte %d", at)
	case metaSum(b[:56]) != le.Uint64(b[56:]):
		return m, damaged("the meta page at byte %d has another checksum than it says", at)
	case m.page < 1024 || m.page > 1<<16 || m.page&(m.page-1) != 0:
		return m, damaged("pages of %d bytes", m.page)
	}
	return m, nil
}

func metaSum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

// read returns a page with its overflow.
func (d *database) read(id uint64) ([]byte, error) {
	if id < 2 || id >= d.pages {
		return nil, damaged("page %d of %d", id, d.pages)
	}
	head := make([]byte, pageHead)
	if _, err := d.r.ReadAt(head, int64(id)*d.page); err != nil {
		return nil, err
	}
	more := uint64(binary.LittleEndian.Uint32(head[12:]))
	size := (int64(more) + 1) * d.page
	switch {
	case binary.LittleEndian.Uint64(head) != id:
		return nil, damaged("page %d says that it is page %d", id, binary.LittleEndian.Uint64(head))
	case id+more >= d.pages || size > maxPage:
		return nil, damaged("page %d goes on for %d pages", id, more)
	}
	b := make([]byte, size)
	_, err := d.r.ReadAt(b, int64(id)*d.page)
	return b, err
}

// walk goes over a tree in the order of its keys.
type walk struct {
	d    *database
	desc bool
	fn   func(flags uint32, k, v []byte) error
	left uint64 // pages that may still be read: a tree has each once
	last []byte
	any  bool
}

func (w *walk) tree(id uint64, depth int) error {
	if w.left == 0 || depth > maxDepth {
		return damaged("the tree at page %d leads into itself", id)
	}
	w.left--
	b, err := w.d.read(id)
	if err != nil {
		return err
	}
	return w.content(b, id, depth)
}

func (w *walk) content(b []byte, id uint64, depth int) error {
	le := binary.LittleEndian
	flags, n := le.Uint16(b[8:]), int(le.Uint16(b[10:]))
	if pageHead+n*elemSize > len(b) {
		return damaged("page %d has %d elements", id, n)
	}
	for i := range n {
		if w.desc {
			i = n - 1 - i
		}
		at := pageHead + i*elemSize
		e := b[at : at+elemSize]
		switch flags {
		case branchPage:
			if err := w.tree(le.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
		case leafPage:
			from := uint64(at) + uint64(le.Uint32(e[4:]))
			mid := from + uint64(le.Uint32(e[8:]))
			to := mid + uint64(le.Uint32(e[12:]))
			if to > uint64(len(b)) {
				return damaged("element %d of page %d leads out of it", i, id)
			}
			if err := w.leaf(le.Uint32(e), b[from:mid], b[mid:to]); err != nil {
				return err
			}
		default:
			return damaged("page %d in a tree has flags %#x", id, flags)
		}
	}
	return nil
}

func (w *walk) leaf(flags uint32, k, v []byte) error {
	if c := bytes.Compare(w.last, k); w.any && (c == 0 || c > 0 != w.desc) {
		return damaged("keys are not in order: %x beside %x", short(w.last), short(k))
	}
	w.last, w.any = append(w.last[:0], k...), true
	return w.fn(flags, k, v)
}

func short(b []byte) []byte { return b[:min(len(b), 32)] }

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// each gives fn all of a bucket in the order of its keys, or in the reverse of it.
// What fn is given is valid until it returns. ok tells whether there is such a bucket.
func (d *database) each(bucket string, desc bool, fn func(k, v []byte) error) (ok bool, err error) {
	var head []byte
	err = d.walk(desc, d.root, func(flags uint32, k, v []byte) error {
		if flags&bucketElem == 0 || string(k) != bucket {
			return nil
		}
		head = bytes.Clone(v)
		return errEnough
	})
	if err != nil && !errors.Is(err, errEnough) || head == nil {
		return false, err
	}
	if len(head) < bucketHead {
		return false, damaged("bucket %s has a head of %d bytes", bucket, len(head))
	}
	plain := func(flags uint32, k, v []byte) error {
		if flags&bucketElem != 0 {
			return damaged("a bucket in bucket %s", bucket)
		}
		return fn(k, v)
	}
	root := binary.LittleEndian.Uint64(head)
	if root != 0 {
		return true, d.walk(desc, root, plain)
	}
	// A small bucket is a page in its own head.
	inline := head[bucketHead:]
	if len(inline) < pageHead || binary.LittleEndian.Uint16(inline[8:]) != leafPage {
		return true, damaged("bucket %s is no page", bucket)
	}
	w := &walk{d: d, desc: desc, fn: plain}
	return true, w.content(inline, 0, 0)
}

func (d *database) walk(desc bool, root uint64, fn func(flags uint32, k, v []byte) error) error {
	w := &walk{d: d, desc: desc, fn: fn, left: d.pages}
	return w.tree(root, 0)
}
