package zookeeper

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// Checker looks into dumps that lie anywhere.
type Checker struct{}

// digestVersion is the one of the digests that are compared.
const digestVersion = 2

// marksKept is how many digests a position carries: servers keep one of each 128
// transactions, the last 1024 of them.
const (
	marksKept  = 16
	digestEach = 128
)

// look is one look into a dump.
type look struct {
	dir  string
	out  observer.Checked
	at   observer.Position
	tree *treeDigest // of the newest snapshot
	from uint64      // the newest snapshot's name
	zxid uint64      // the last transaction of the chain
	// marks are digests of the log, at the points that servers keep.
	marks []treeDigest
	txns  int64
	bad   bool // the log has no digests
}

// Check implements observer.Checker. The snapshots are read to their end, each log
// record by record, and from the newest snapshot on no transaction may be missing. A
// log must end with a whole transaction: what a kill had begun was cut by the capture.
func (Checker) Check(ctx context.Context, trees []snapshot.Tree, want observer.Position) (observer.Checked, error) {
	begun := time.Now()
	l := look{dir: filepath.Join(trees[0].Dir, stateDir), out: observer.Checked{Opened: "all", Grade: "clean", Proven: map[string]int64{}}}
	err := l.all(ctx, trees[0].Dir)
	var finding unsound
	if errors.As(err, &finding) || errors.Is(err, errForm) {
		l.out.Findings = append(l.out.Findings, err.Error())
		l.out.Hint = "look at the server's disk; a server that is emptied, but for myid, fetches all from its leader"
		err = nil
	}
	if err != nil {
		return l.out, err
	}
	if want.Index != 0 && len(l.out.Findings) == 0 && want.Index != l.at.Index {
		l.out.Findings = []string{fmt.Sprintf("it ends at %s, not at %s", l.at, want)}
	}
	if len(l.out.Findings) == 0 {
		l.out.At = &l.at
	}
	l.out.Seconds = time.Since(begun).Seconds()
	return l.out, nil
}

// unsound is a finding.
type unsound string

func (u unsound) Error() string { return string(u) }

func wrong(format string, args ...any) error { return unsound(fmt.Sprintf(format, args...)) }

func (l *look) all(ctx context.Context, top string) error {
	note, err := l.small(top)
	if err != nil {
		return err
	}
	have, err := sizes(l.dir)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(note.Facts)) {
		if have[name] != note.Facts[name] {
			return wrong("%s has %s bytes, %s says %s", name, cmp.Or(have[name], "no"), observer.NoteName, note.Facts[name])
		}
	}
	if len(have) != len(note.Facts) {
		return wrong("it has %d snapshots and logs, %s says %d", len(have), observer.NoteName, len(note.Facts))
	}
	snaps, err := named(l.dir, snapPrefix)
	if err != nil {
		return err
	}
	if len(snaps) == 0 {
		return wrong("it has no snapshot")
	}
	for _, s := range snaps {
		if err := l.snapshot(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	l.from = snaps[len(snaps)-1].zxid
	l.zxid, l.at = l.from, note.Position
	logs, err := named(l.dir, logPrefix)
	if err != nil {
		return err
	}
	for _, g := range logs {
		if err := l.log(ctx, g); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	switch {
	case l.zxid != note.Position.Index:
		return wrong("it ends at zxid 0x%x, %s says 0x%x", l.zxid, observer.NoteName, note.Position.Index)
	case l.tree != nil && l.tree.zxid > l.zxid:
		return wrong("its snapshot holds transactions up to 0x%x, its log ends at 0x%x", l.tree.zxid, l.zxid)
	}
	l.out.Proven["transactions"] = l.txns
	l.mark()
	return nil
}

// mark writes the digests into the position.
func (l *look) mark() {
	if l.bad || len(l.marks) == 0 {
		l.out.Notes = append(l.out.Notes, "it has no digest that another server could be asked about")
		return
	}
	l.at.Marks = map[string]string{}
	for _, m := range l.marks[max(0, len(l.marks)-marksKept):] {
		l.at.Marks[markName(m.zxid)] = strconv.FormatUint(m.sum, 10)
	}
}

func markName(zxid uint64) string { return fmt.Sprintf("0x%x", zxid) }

// small compares the files without a checksum of their own with their sums, and reads
// them.
func (l *look) small(top string) (n observer.Note, err error) {
	have := map[string][]byte{}
	for _, name := range append([]string{SumsName}, sumNames...) {
		b, err := readSmall(filepath.Join(top, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return n, err
		}
		have[name] = b
	}
	if have[observer.NoteName] == nil || !bytes.Equal(have[SumsName], sumsOf(have)) {
		return n, wrong("the sums of %s, or one of the files that it names, are wrong", SumsName)
	}
	accepted, err := l.epoch(have, "acceptedEpoch")
	if err != nil {
		return n, err
	}
	current, err := l.epoch(have, "currentEpoch")
	if err != nil {
		return n, err
	}
	n, err = observer.ReadNote(top)
	if errors.Is(err, observer.ErrUnsound) {
		return n, wrong("%v", err)
	}
	if err == nil && (current > accepted || current < n.Position.Epoch && current != 0) {
		return n, wrong("its epochs do not fit: accepted %d, current %d, of the last transaction %d", accepted, current, n.Position.Epoch)
	}
	return n, err
}

func (l *look) epoch(have map[string][]byte, name string) (uint64, error) {
	b, ok := have[filepath.Join(stateDir, name)]
	if !ok {
		return 0, nil
	}
	n, err := parseEpoch(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

func (l *look) snapshot(ctx context.Context, s zxidName) error {
	r, known, err := openSnapshot(filepath.Join(l.dir, s.name))
	if err != nil {
		return err
	}
	layer := observer.CheckedLayer{Name: s.name, Engine: "snapshot", Opened: known}
	if !known {
		layer.Said, l.out.Opened, l.out.Grade = "snappy is not read here", "part", "log"
		l.out.Layers, l.tree = append(l.out.Layers, layer), nil
		return nil
	}
	img, err := readSnapshot(ctx, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	layer.Said = fmt.Sprintf("%d nodes, %d sessions", img.nodes, img.sessions)
	l.out.Layers, l.tree = append(l.out.Layers, layer), nil
	l.out.Proven["nodes"], l.out.Proven["sessions"] = img.nodes, img.sessions
	if img.tree != nil && img.tree.version == digestVersion && img.tree.zxid != 0 {
		l.tree = img.tree
		if img.tree.zxid < s.zxid {
			return wrong("its digest is of 0x%x", img.tree.zxid)
		}
	}
	return nil
}

func (l *look) log(ctx context.Context, g zxidName) error {
	f, err := os.Open(filepath.Join(l.dir, g.name))
	if err != nil {
		return err
	}
	defer f.Close()
	first, last := true, uint64(0)
	end, err := readLog(ctx, f, func([]byte) error { return nil }, func(t txn) error {
		if first && t.zxid != g.zxid {
			return wrong("it begins with 0x%x", t.zxid)
		}
		if !first && t.zxid <= last {
			return wrong("0x%x comes after 0x%x", t.zxid, last)
		}
		first, last = false, t.zxid
		return l.txn(t)
	})
	if err != nil {
		return err
	}
	if end.txns == 0 || end.torn || end.tail > 0 {
		return wrong("it does not end with a whole transaction")
	}
	l.out.Layers = append(l.out.Layers, observer.CheckedLayer{Name: g.name, Engine: "log", Opened: true, Said: fmt.Sprintf("%d transactions", end.txns)})
	return nil
}

// txn takes one of the chain behind the newest snapshot.
func (l *look) txn(t txn) error {
	digest := t.tree != nil && t.tree.version == digestVersion
	l.bad = l.bad || !digest
	if digest && l.tree != nil && t.zxid == l.tree.zxid && t.tree.sum != l.tree.sum {
		return wrong("the tree of the snapshot at 0x%x is not the one that the log tells", t.zxid)
	}
	if digest && t.zxid%digestEach == 0 {
		l.marks = append(l.marks, *t.tree)
	}
	if t.zxid <= l.from {
		return nil
	}
	if !follows(l.zxid, t.zxid) {
		return wrong("0x%x comes after 0x%x: something between them is missing", t.zxid, l.zxid)
	}
	l.zxid = t.zxid
	l.txns++
	l.at.Index, l.at.Epoch, l.at.Time = t.zxid, t.zxid>>32, t.time.UTC()
	if digest {
		l.at.Hash, l.at.HashKind = binary.BigEndian.AppendUint64(nil, t.tree.sum), "tree_digest"
	}
	return nil
}
