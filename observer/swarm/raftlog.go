package swarm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Where the raft log lies below the swarm directory.
const (
	walDir  = "raft/wal-v3-encrypted"
	snapDir = "raft/snap-v3-encrypted"
)

// Names are of a sequence number and the first index, or of term and index.
var (
	walName  = regexp.MustCompile(`^([0-9a-f]{16})-([0-9a-f]{16})\.wal$`)
	snapName = regexp.MustCompile(`^([0-9a-f]{16})-([0-9a-f]{16})\.snap$`)
)

// What a record of the log is (etcd server/storage/wal).
const (
	recMetadata = 1 + iota
	recEntry
	recState
	recCRC
	recSnapshot
)

const (
	// maxRecord bounds a record in memory, bytes; a transaction has 1.5 MiB at most.
	maxRecord = 64 << 20
	// maxSnapshot bounds a snapshot of the store in memory, bytes.
	maxSnapshot = 512 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// raftLog is what the log says of itself.
type raftLog struct {
	Self                member
	Term, Vote, Commit  uint64
	LastIndex, LastTerm uint64 // of the last entry, committed or not
	SnapIndex, SnapTerm uint64 // of the newest snapshot; 0: there is none
	Entries             int64  // of the log, counted as often as written
	Files               int64
	Store               *store // nil: no key was held
	started, haveState  bool
	crc                 uint32
	pending             []entry // after the snapshot, not known to be committed
	seen                bool    // an entry came
}

// entry is a record of the log: what it does is encrypted.
type entry struct {
	typ, term, index uint64
	data             []byte
}

// readLog reads the whole log in dir, the swarm directory. keys open it; without any
// it is only read as far as its checksums go. The error says what is wrong with it.
func readLog(ctx context.Context, dir string, keys [][]byte) (*raftLog, error) {
	l := &raftLog{}
	if len(keys) > 0 {
		l.Store = newStore()
	}
	if err := l.readSnapshots(filepath.Join(dir, snapDir), keys); err != nil {
		return nil, err
	}
	names, err := listed(filepath.Join(dir, walDir), walName)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: there is no log", walDir)
	}
	for i, name := range names {
		m := walName.FindStringSubmatch(name)
		if i > 0 && hexNum(m[1]) != hexNum(walName.FindStringSubmatch(names[i-1])[1])+1 {
			return nil, fmt.Errorf("%s: what was before %s is not there", walDir, name)
		}
		if i == 0 && hexNum(m[2]) > l.SnapIndex+1 {
			return nil, fmt.Errorf("%s begins at %d, and no snapshot reaches as far", name, hexNum(m[2]))
		}
		if err := l.readFile(ctx, filepath.Join(dir, walDir, name), keys); err != nil {
			return nil, fmt.Errorf("%s/%s: %w", walDir, name, err)
		}
		l.Files++
	}
	return l, l.whole()
}

// whole tells whether the log is one that a manager could start from.
func (l *raftLog) whole() error {
	switch {
	case !l.started:
		return errors.New("the raft log has no metadata record")
	case !l.haveState:
		return errors.New("the raft log has no state record")
	case l.Commit < l.SnapIndex:
		return fmt.Errorf("the raft log is committed up to %d, its snapshot is of %d", l.Commit, l.SnapIndex)
	case l.Commit > max(l.LastIndex, l.SnapIndex):
		return fmt.Errorf("the raft log is committed up to %d, and ends at %d", l.Commit, max(l.LastIndex, l.SnapIndex))
	}
	l.pending = nil
	return nil
}

func hexNum(s string) (n uint64) {
	_, _ = fmt.Sscanf(s, "%x", &n) // the name has been matched
	return n
}

// listed are the files of a directory in order, all of which must have such names.
func listed(dir string, want *regexp.Regexp) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range all {
		switch name := e.Name(); {
		case !e.Type().IsRegular():
			return nil, fmt.Errorf("%s: %q is no file", filepath.Base(dir), name)
		case want.MatchString(name):
			names = append(names, name)
		case !leftOut(name):
			return nil, fmt.Errorf("%s: what %q is, is not known", filepath.Base(dir), name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// leftOut: a file that is being made, which no start needs.
func leftOut(name string) bool {
	return strings.HasSuffix(name, ".tmp") || strings.HasPrefix(name, "db.tmp")
}

// readSnapshots proves every snapshot, and begins the store with the newest.
func (l *raftLog) readSnapshots(dir string, keys [][]byte) error {
	names, err := listed(dir, snapName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a young log has none
	}
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := l.readSnapshot(filepath.Join(dir, name), i == len(names)-1, keys); err != nil {
			return fmt.Errorf("%s/%s: %w", snapDir, name, err)
		}
		l.Files++
	}
	return nil
}

func (l *raftLog) readSnapshot(file string, newest bool, keys [][]byte) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	if st.Size() > maxSnapshot {
		return fmt.Errorf("it has %d bytes, more than %d are not read", st.Size(), int64(maxSnapshot))
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var sum uint64
	var data []byte
	if err := scan(b, map[protowire.Number]*uint64{1: &sum}, map[protowire.Number]*[]byte{2: &data}); err != nil {
		return err
	}
	if uint64(crc32.Update(0, castagnoli, data)) != sum {
		return errors.New("its checksum is another")
	}
	// Nothing sums the few bytes around the content, so they must be those that an
	// engine writes.
	head := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), sum)
	head = protowire.AppendBytes(protowire.AppendTag(head, 2, protowire.BytesType), data)
	if string(head) != string(b) {
		return errors.New("it is not as an engine writes it")
	}
	var record, meta []byte
	if err := scan(data, nil, map[protowire.Number]*[]byte{1: &record, 2: &meta}); err != nil {
		return err
	}
	var index, term uint64
	if err := scan(meta, map[protowire.Number]*uint64{2: &index, 3: &term}, nil); err != nil {
		return err
	}
	if m := snapName.FindStringSubmatch(filepath.Base(file)); hexNum(m[1]) != term || hexNum(m[2]) != index {
		return fmt.Errorf("it is of index %d of term %d", index, term)
	}
	if !newest {
		return nil // its key may be gone since
	}
	l.SnapIndex, l.SnapTerm = index, term
	if l.Store == nil {
		return nil
	}
	plain, err := open(record, keys)
	if err != nil {
		return err
	}
	return l.Store.begin(plain)
}

// readFile reads one file of the log: records of a length, the message, and zeros up to
// the next eighth byte; after the last there are zeros only. The first sets the checksum
// that all others continue.
func (l *raftLog) readFile(ctx context.Context, file string, keys [][]byte) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r, off, first := bufio.NewReaderSize(f, 1<<20), int64(0), true
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var head [8]byte
		n, err := io.ReadFull(r, head[:])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("it ends within a record, at byte %d", off+int64(n))
		}
		size := binary.LittleEndian.Uint64(head[:])
		if size == 0 {
			if err := onlyZeros(r); err != nil {
				return fmt.Errorf("after its last record, at byte %d: %w", off, err)
			}
			break
		}
		pad := uint64(0)
		if size>>63 == 1 {
			pad = size >> 56 & 7
		}
		high := size >> 56
		size &= 1<<56 - 1
		if size > maxRecord || (size+pad)%8 != 0 || pad == 0 && high != 0 || pad != 0 && high != 0x80|pad {
			return fmt.Errorf("the record at byte %d has no possible length", off)
		}
		buf := make([]byte, size+pad)
		if _, err := io.ReadFull(r, buf); err != nil {
			return fmt.Errorf("it ends within the record at byte %d", off)
		}
		for _, c := range buf[size:] {
			if c != 0 {
				return fmt.Errorf("behind the record at byte %d is something", off)
			}
		}
		if err := l.record(buf[:size], first, keys); err != nil {
			return fmt.Errorf("the record at byte %d: %w", off, err)
		}
		first, off = false, off+8+int64(size+pad)
	}
	if first {
		return errors.New("it has no record")
	}
	return nil
}

func onlyZeros(r io.Reader) error {
	buf := make([]byte, 1<<16)
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			if c != 0 {
				return errors.New("there is something where nothing was written yet")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// record takes one record in.
func (l *raftLog) record(b []byte, first bool, keys [][]byte) error {
	var typ, sum uint64
	var data []byte
	if err := scan(b, map[protowire.Number]*uint64{1: &typ, 2: &sum}, map[protowire.Number]*[]byte{3: &data}); err != nil {
		return err
	}
	// Nothing sums type and checksum, so they must be where an engine writes them.
	as := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), typ)
	as = protowire.AppendVarint(protowire.AppendTag(as, 2, protowire.VarintType), sum)
	if data != nil {
		as = protowire.AppendBytes(protowire.AppendTag(as, 3, protowire.BytesType), data)
	}
	if string(as) != string(b) {
		return errors.New("it is not as an engine writes it")
	}
	if typ == recCRC {
		if !first || len(data) > 0 || l.crc != 0 && uint64(l.crc) != sum || sum > 1<<32-1 {
			return errors.New("the checksums do not go on here")
		}
		l.crc = uint32(sum)
		return nil
	}
	if first {
		return errors.New("a file does not begin so")
	}
	if l.crc = crc32.Update(l.crc, castagnoli, data); uint64(l.crc) != sum {
		return errors.New("its checksum is another")
	}
	return l.take(typ, data, keys)
}

func (l *raftLog) take(typ uint64, data []byte, keys [][]byte) error {
	switch typ {
	case recMetadata:
		m, err := parseMember(data)
		if err == nil && l.started && m != l.Self {
			err = errors.New("it is of another member")
		}
		l.Self, l.started = m, true
		return err
	case recEntry:
		e := entry{}
		err := scan(data, map[protowire.Number]*uint64{1: &e.typ, 2: &e.term, 3: &e.index}, map[protowire.Number]*[]byte{4: &e.data})
		if err != nil {
			return err
		}
		return l.append(e)
	case recState:
		var term, vote, commit uint64
		if err := scan(data, map[protowire.Number]*uint64{1: &term, 2: &vote, 3: &commit}, nil); err != nil {
			return err
		}
		if l.haveState && (term < l.Term || commit < l.Commit) {
			return fmt.Errorf("it goes back to term %d, committed %d", term, commit)
		}
		l.Term, l.Vote, l.Commit, l.haveState = term, vote, commit, true
		return l.apply(keys)
	case recSnapshot:
		var index, term uint64
		err := scan(data, map[protowire.Number]*uint64{1: &index, 2: &term}, nil)
		if err == nil && index == l.SnapIndex && term != l.SnapTerm {
			err = fmt.Errorf("the snapshot of index %d is of term %d", index, term)
		}
		return err
	}
	return errors.New("what it is, is not known")
}

// append notes an entry. One that comes again takes the place of those from it on,
// which were not committed.
func (l *raftLog) append(e entry) error {
	if l.seen && (e.index > l.LastIndex+1 || e.index <= l.LastIndex && e.index <= l.Commit) {
		return fmt.Errorf("entry %d follows %d, committed are %d", e.index, l.LastIndex, l.Commit)
	}
	l.seen, l.LastIndex, l.LastTerm = true, e.index, e.term
	l.Entries++
	if e.index <= l.SnapIndex || l.Store == nil {
		return nil
	}
	if i := slices.IndexFunc(l.pending, func(p entry) bool { return p.index >= e.index }); i >= 0 {
		l.pending = l.pending[:i]
	}
	l.pending = append(l.pending, e)
	return nil
}

// apply brings what is committed into the store. Entries that came before a state
// record which commits them are kept until then.
func (l *raftLog) apply(keys [][]byte) error {
	for len(l.pending) > 0 && l.pending[0].index <= l.Commit {
		e := l.pending[0]
		l.pending = l.pending[1:]
		plain, err := open(e.data, keys)
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.index, err)
		}
		if err := l.Store.apply(e.typ, plain); err != nil {
			return fmt.Errorf("entry %d: %w", e.index, err)
		}
	}
	return nil
}
