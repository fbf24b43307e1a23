package zookeeper

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// SumsName is a file of the archive: the sha256 of the small files in it that have no
// checksum of their own, as sha256sum writes and checks them.
const SumsName = "SHA256SUMS"

// Prepare implements observer.Holder: it links the snapshots that a capture would
// take now. Whichever of them is of no use then is left out.
func (r *Replica) Prepare(_ context.Context, st *snapshot.Stage) error {
	p, err := planOf(r.o.DataDir, r.o.LogDir)
	if err != nil {
		return err
	}
	for _, s := range p.snapshots() {
		if err := st.Prelink("", filepath.Join(stateDir, s.name)); err != nil {
			return err
		}
	}
	return nil
}

func (p plan) snapshots() []zxidName {
	if p.older == nil {
		return []zxidName{p.newest}
	}
	return []zxidName{*p.older, p.newest}
}

// Capture implements observer.Replica.
func (r *Replica) Capture(ctx context.Context, st *snapshot.Stage) error {
	return r.node.During(ctx, func(ctx context.Context) error { return r.capture(ctx, st) })
}

func (r *Replica) capture(ctx context.Context, st *snapshot.Stage) error {
	p, err := planOf(r.o.DataDir, r.o.LogDir)
	if err != nil {
		return err
	}
	if err := st.Dir("", stateDir); err != nil {
		return err
	}
	at := observer.Position{Kind: Kind, Index: p.newest.zxid, Consistency: "stopped"}
	for _, l := range p.logs {
		if err := r.takeLog(ctx, st, l, &at); err != nil {
			return err
		}
	}
	at.Epoch = at.Index >> 32
	for i, l := range p.extra {
		var ignored observer.Position
		err := r.takeLog(ctx, st, l, &ignored)
		if errors.Is(err, errForm) { // the newest does without
			p.left = append(p.left, leftOut{p.older.name, "the log behind it is damaged: " + err.Error()})
			p.older = nil
			for _, l := range p.extra[i:] {
				p.left = append(p.left, leftOut{l.name, "a damaged log of an older snapshot, or one behind it"})
			}
			break
		}
		if err != nil {
			return err
		}
	}
	for _, s := range p.snapshots() {
		take := st.Link
		if s.zxid >= at.Index {
			// A server that comes up with nothing behind its snapshot writes that very
			// file anew, in place.
			take = st.Copy
		}
		if err := take(ctx, "", filepath.Join(stateDir, s.name)); err != nil {
			return err
		}
	}
	if at.Time.IsZero() {
		fi, err := os.Stat(filepath.Join(r.o.DataDir, stateDir, p.newest.name))
		if err != nil {
			return err
		}
		at.Time = fi.ModTime().UTC()
	}
	for _, l := range p.left {
		if err := st.LeaveOut("", filepath.Join(stateDir, l.name), l.why); err != nil {
			return err
		}
	}
	// A log that lost its last transactions reads as a whole one, but for its size.
	// Links to snapshots that are of no use any more are in the stage until it is sealed.
	sizes, err := sizesOf(st.Place(stateDir), p.snapshots())
	if err != nil {
		return err
	}
	return r.takeSmall(ctx, st, observer.Note{State: r.before, Position: at, Facts: sizes})
}

// sizes are those of the snapshots and logs in a directory, in bytes, by name.
func sizes(dir string) (map[string]string, error) {
	snaps, err := named(dir, snapPrefix)
	if err != nil {
		return nil, err
	}
	return sizesOf(dir, snaps)
}

// sizesOf are those of some snapshots, and of all logs.
func sizesOf(dir string, snaps []zxidName) (map[string]string, error) {
	logs, err := named(dir, logPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, f := range slices.Concat(snaps, logs) {
		st, err := os.Stat(filepath.Join(dir, f.name))
		if err != nil {
			return nil, err
		}
		out[f.name] = strconv.FormatInt(st.Size(), 10)
	}
	return out, nil
}

// takeLog copies a log up to its last whole transaction, and tells where that is.
// One without any is left out.
func (r *Replica) takeLog(ctx context.Context, st *snapshot.Stage, l zxidName, at *observer.Position) (err error) {
	f, err := os.Open(filepath.Join(r.o.LogDir, stateDir, l.name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rel := filepath.Join(stateDir, l.name)
	err = st.Stream(ctx, "", rel, func(ctx context.Context, w io.Writer) error {
		buf := &batch{w: w}
		end, err := readLog(ctx, f, buf.write, func(t txn) error {
			at.Index, at.Time = max(at.Index, t.zxid), t.time.UTC()
			return buf.write(t.raw)
		})
		if err != nil {
			return err
		}
		if end.txns == 0 {
			return errEmpty
		}
		return buf.flush()
	})
	if errors.Is(err, errEmpty) {
		return st.LeaveOut("", rel, "a log without a transaction")
	}
	if errors.Is(err, errForm) {
		return hint.Add(fmt.Errorf("%w: %w", observer.ErrUnsound, err), "the server's own log is damaged: look at its disk; a server that is emptied, but for myid, fetches all from its leader")
	}
	return err
}

var errEmpty = errors.New("no transaction")

// batch gathers small writes.
type batch struct {
	w io.Writer
	b []byte
}

func (b *batch) write(p []byte) error {
	b.b = append(b.b, p...)
	if len(b.b) >= 1<<20 {
		return b.flush()
	}
	return nil
}

func (b *batch) flush() error {
	_, err := b.w.Write(b.b)
	b.b = b.b[:0]
	return err
}

// takeSmall takes what has no checksum of its own: the epochs and the note, and
// beside them their sums.
func (r *Replica) takeSmall(ctx context.Context, st *snapshot.Stage, n observer.Note) error {
	small := map[string][]byte{}
	for _, name := range epochs {
		rel := filepath.Join(stateDir, name)
		b, err := readSmall(filepath.Join(r.o.DataDir, rel))
		if os.IsNotExist(err) { // a standalone server has none
			continue
		}
		if err != nil {
			return err
		}
		if _, err := parseEpoch(b); err != nil {
			return hint.Add(fmt.Errorf("%w: %s: %w", observer.ErrUnsound, rel, err), "the server itself would not start with it")
		}
		small[rel] = b
		if err := stream(ctx, st, rel, b); err != nil {
			return err
		}
	}
	if err := n.Put(ctx, st); err != nil {
		return err
	}
	b, err := readSmall(st.Place(observer.NoteName))
	if err != nil {
		return err
	}
	small[observer.NoteName] = b
	return stream(ctx, st, SumsName, sumsOf(small))
}

func stream(ctx context.Context, st *snapshot.Stage, rel string, b []byte) error {
	return st.Stream(ctx, "", rel, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// maxSmall bounds the small files, in bytes.
const maxSmall = 4 << 20

func readSmall(file string) (b []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err = io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = malformed("%s is larger than %d bytes", file, maxSmall)
	}
	return b, err
}

// parseEpoch reads an epoch file: a number, and a newline where somebody edited it.
func parseEpoch(b []byte) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(string(b[:min(len(b), 32)])), 10, 32)
	if err != nil {
		return 0, malformed("no epoch")
	}
	return n, nil
}

// sumNames are the files that have a line in SHA256SUMS if they are there, in order.
var sumNames = []string{observer.NoteName, filepath.Join(stateDir, "acceptedEpoch"), filepath.Join(stateDir, "currentEpoch")}

func sumsOf(small map[string][]byte) []byte {
	var out bytes.Buffer
	for _, name := range sumNames {
		if b, ok := small[name]; ok {
			sum := sha256.Sum256(b)
			fmt.Fprintf(&out, "%s  %s\n", hex.EncodeToString(sum[:]), name)
		}
	}
	return out.Bytes()
}
