package engine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/syndtr/goleveldb/leveldb/journal"
)

// A MANIFEST is the log in which LevelDB and its descendants keep which tables
// make up the database. goleveldb exports the log's reader and not that of its
// records, pebble neither; both write the same records, with tags of their own.
const (
	tagComparator     = 1
	tagLogNumber      = 2
	tagNextFile       = 3
	tagLastSequence   = 4
	tagCompactPointer = 5
	tagDeletedFile    = 6
	tagNewFile        = 7
	tagPrevLogNumber  = 9
	// RocksDB's and pebble's.
	tagNewFile2       = 100 // with sequence Numbers
	tagNewFile3       = 102 // and a path
	tagNewFile4       = 103 // and fields of its own
	tagNewFile5       = 104 // and range keys
	tagCreatedBacking = 105 // a table of which others show parts
	tagRemovedBacking = 106

	fieldEnd     = 1
	fieldVirtual = 66 // the file is a part of a backing one
)

var (
	// ErrManifest: no engine would take this for a MANIFEST.
	ErrManifest = errors.New("its MANIFEST is damaged")
	// ErrManifestForm: it is of a form that this program does not know.
	ErrManifestForm = errors.New("its MANIFEST is of a newer form")
)

// edit is what one field of a record does to the set of tables.
type edit struct {
	add, backing bool // else: remove; a backing table, else a table
	num, size    uint64
}

// decodeEdits reads a record to its end. Numbers of tables that are a part of
// another file are passed over: the other file is what must be there.
func decodeEdits(r *bufio.Reader, visit func(edit)) error {
	d := editReader{r: r}
	for {
		tag, err := binary.ReadUvarint(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch tag {
		case tagComparator:
			d.skip()
		case tagLogNumber, tagNextFile, tagLastSequence, tagPrevLogNumber:
			d.number()
		case tagCompactPointer:
			d.number()
			d.skip()
		case tagDeletedFile:
			d.number() // the level
			d.visit(visit, edit{num: d.number()})
		case tagNewFile, tagNewFile2, tagNewFile3, tagNewFile4, tagNewFile5:
			d.newFile(tag, visit)
		case tagCreatedBacking:
			num := d.number()
			d.visit(visit, edit{add: true, backing: true, num: num, size: d.number()})
		case tagRemovedBacking:
			d.visit(visit, edit{backing: true, num: d.number()})
		default:
			return fmt.Errorf("%w: field %d", ErrManifestForm, tag)
		}
		if d.err != nil {
			return d.err
		}
	}
}

// editReader reads the parts of a field; the first error stays.
type editReader struct {
	r   *bufio.Reader
	err error
}

func (d *editReader) number() (n uint64) {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(d.r)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	d.err = err
	return n
}

// skip passes over a run of bytes with its length before it.
func (d *editReader) skip() {
	n := d.number()
	for d.err == nil && n > 0 {
		step := min(n, 1<<20)
		if _, err := d.r.Discard(int(step)); err != nil {
			d.err = io.ErrUnexpectedEOF
		}
		n -= step
	}
}

func (d *editReader) visit(visit func(edit), e edit) {
	if d.err == nil {
		visit(e)
	}
}

func (d *editReader) newFile(tag uint64, visit func(edit)) {
	d.number() // the level
	e, virtual := edit{add: true, num: d.number()}, false
	if tag == tagNewFile3 {
		d.number() // the path
	}
	e.size = d.number()
	bounds := 2 // keys, with their lengths
	if tag == tagNewFile5 {
		const points = 1 // of the byte that says which bounds follow
		marker, err := d.r.ReadByte()
		if d.err == nil && err != nil {
			d.err = io.ErrUnexpectedEOF
		}
		if marker&points != 0 {
			bounds += 2
		}
	}
	for range bounds {
		d.skip()
	}
	if tag != tagNewFile {
		d.number()
		d.number()
	}
	for tag == tagNewFile4 || tag == tagNewFile5 {
		field := d.number()
		if d.err != nil || field == fieldEnd {
			break
		}
		if field == fieldVirtual {
			virtual = true
			d.number()
			continue
		}
		d.skip()
	}
	if !virtual {
		d.visit(visit, e)
	}
}

// table is a file that a MANIFEST names.
type Table struct{ Num, Size uint64 }

// ReadManifest returns the tables that a MANIFEST ends with, by number. It reads
// it three times and keeps a bit for each number, not a line: of the millions of
// tables of a large database most are long gone.
//
// What is torn at its end is no damage: the engines pass over it, too. What is
// damaged before its end they pass over as well, or stop there, and lose tables:
// that is ErrManifest.
func ReadManifest(f io.ReadSeeker) ([]Table, error) {
	whole, err := wholeRecords(f)
	if err != nil {
		return nil, err
	}
	var live [2]Numbers // tables, and backing ones
	of := func(e edit) *Numbers {
		if e.backing {
			return &live[1]
		}
		return &live[0]
	}
	err = eachRecord(f, whole, func(e edit) { of(e).Set(e.num, e.add) })
	if err != nil {
		return nil, err
	}
	var out []Table
	var seen Numbers
	err = eachRecord(f, whole, func(e edit) {
		if e.add && of(e).Has(e.num) && !seen.Has(e.num) {
			seen.Set(e.num, true)
			out = append(out, Table{e.num, e.size})
		}
	})
	slices.SortFunc(out, ByNumber)
	return out, err
}

// ByNumber orders tables.
func ByNumber(a, b Table) int {
	switch {
	case a.Num < b.Num:
		return -1
	case a.Num > b.Num:
		return 1
	default:
		return 0
	}
}

// losses counts what the log's reader passes over.
type losses int

func (l *losses) Drop(error) { *l++ }

// wholeRecords tells which records can be read to their end.
func wholeRecords(f io.ReadSeeker) (whole []bool, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	var lost losses
	log, buf := journal.NewReader(f, &lost, false, true), bufio.NewReader(nil)
	damaged, any := false, false
	for {
		r, err := log.Next()
		damaged = damaged || lost > 0
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		buf.Reset(r)
		err = decodeEdits(buf, func(edit) {})
		switch {
		case errors.Is(err, ErrManifestForm):
			return nil, err
		case err != nil || lost > 0 && !damaged:
			damaged = true
		case damaged:
			return nil, fmt.Errorf("%w before its end", ErrManifest)
		default:
			any = true
		}
		whole = append(whole, err == nil)
	}
	if !any {
		return nil, fmt.Errorf("%w: it has no whole record", ErrManifest)
	}
	return whole, nil
}

// eachRecord visits the edits of the records that are whole.
func eachRecord(f io.ReadSeeker, whole []bool, visit func(edit)) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	log, buf := journal.NewReader(f, nil, false, true), bufio.NewReader(nil)
	for _, ok := range whole {
		r, err := log.Next()
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		buf.Reset(r)
		if err := decodeEdits(buf, visit); err != nil {
			return err
		}
	}
	return nil
}

// Numbers is a set of file Numbers, a bit for each.
type Numbers map[uint64]*[1 << 10]uint64

// Set takes a number in, or out.
func (s *Numbers) Set(n uint64, in bool) {
	page, word, bit := n>>16, n>>6&(1<<10-1), uint64(1)<<(n&63)
	p := (*s)[page]
	switch {
	case p == nil && !in:
		return
	case p == nil:
		if *s == nil {
			*s = Numbers{}
		}
		p = new([1 << 10]uint64)
		(*s)[page] = p
	}
	if p[word] &^= bit; in {
		p[word] |= bit
	}
}

// Has tells whether a number is in.
func (s Numbers) Has(n uint64) bool {
	p := s[n>>16]
	return p != nil && p[n>>6&(1<<10-1)]>>(n&63)&1 == 1
}
