package etcd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// The facts of a note.
const (
	factStorage = "storage_version" // of the server that made the dump; "" before etcd 3.6
	factInitial = "initial_cluster" // voters and their peer URLs, as etcd's flag has them
	factSHA256  = "snapshot_sha256" // of the database
)

// Capture implements observer.Replica: it takes the member's snapshot. The gate is
// asked once more before.
func (e *Etcd) Capture(ctx context.Context, st *snapshot.Stage) error {
	s, _, err := e.describe(ctx)
	if err == nil {
		err = e.Gate(ctx, s)
	}
	if err != nil {
		return err
	}
	return e.take(ctx, st, s, "bounded")
}

// Salvage implements observer.Salvager: it takes what the member has, whoever else is
// there.
func (e *Etcd) Salvage(ctx context.Context, st *snapshot.Stage) error {
	s, _, _ := e.describe(ctx) // what it does not tell is not known
	return e.take(ctx, st, s, "stale-unbounded")
}

func (e *Etcd) take(ctx context.Context, st *snapshot.Stage, s observer.State, consistency string) error {
	n := observer.Note{State: s, Position: s.Position, Facts: map[string]string{factInitial: initial(s.Members)}}
	n.Position.Consistency = consistency
	if err := e.snapshot(ctx, st, &n); err != nil {
		return fmt.Errorf("take the snapshot of %s: %w", e.from, err)
	}
	return n.Put(ctx, st)
}

func (e *Etcd) snapshot(ctx context.Context, st *snapshot.Stage, n *observer.Note) error {
	ctx, err := e.login(ctx)
	if err != nil {
		return err
	}
	return e.with(ctx, e.from, e.o.Timeout, func(ctx context.Context, c *conn) error {
		return st.Stream(ctx, "", observer.DumpName, func(ctx context.Context, w io.Writer) error {
			r, err := c.c.SnapshotWithVersion(ctx)
			if err != nil {
				return hint.Add(err, advice(err))
			}
			defer r.Snapshot.Close()
			t := newTrailed(w)
			if _, err := io.Copy(t, r.Snapshot); err != nil {
				return err
			}
			if wrong := t.whole(); wrong != "" {
				return fmt.Errorf("%w: what came is no whole snapshot: %s", observer.ErrUnsound, wrong)
			}
			n.Facts[factStorage], n.Facts[factSHA256] = r.Version, fmt.Sprintf("%x", t.tail)
			if h := r.Header; h != nil && n.Position.Incarnation == "" { // nobody could be asked before
				n.Position.Kind, n.Position.Incarnation, n.Position.Time = Kind, hexID(h.ClusterId), e.now().UTC()
			}
			return nil
		})
	})
}

// initial lists the voters, with all their peer URLs.
func initial(members []observer.Member) string {
	var all []string
	for _, m := range members {
		if m.Voter && m.Name != "" { // one that was never started has none
			for u := range strings.SplitSeq(m.Address, ",") {
				all = append(all, m.Name+"="+u)
			}
		}
	}
	return strings.Join(all, ",")
}

// Locate implements observer.Replica.
func (e *Etcd) Locate(ctx context.Context, st *snapshot.Stage, _ observer.State) (observer.Position, error) {
	r, err := e.Check(ctx, st.Trees(), observer.Position{})
	if err != nil || r.At == nil {
		return observer.Position{}, errors.Join(err, errors.New("the dump does not say where it is"))
	}
	return *r.At, nil
}

// Check implements observer.Checker: the dump is whole, its database can be walked
// from end to end, and what is in it hashes to what its position says.
func (e *Etcd) Check(ctx context.Context, trees []snapshot.Tree, at observer.Position) (out observer.Checked, err error) {
	begun := time.Now()
	out = observer.Checked{Opened: "all", Grade: "read whole"}
	defer func() { out.Seconds = time.Since(begun).Seconds() }()
	c, n, err := lookAt(ctx, trees[0].Dir)
	if isDamage(err) || errors.Is(err, observer.ErrUnsound) {
		out.Opened, out.Grade = "none", ""
		out.Findings = []string{"dump: " + strings.TrimPrefix(err.Error(), observer.ErrUnsound.Error()+": ")}
		out.Hint = "take it of another member; `etcdctl endpoint hashkv --cluster` tells which of them agree"
		return out, nil
	}
	if err != nil {
		return out, err
	}
	p := c.position(n)
	out.At = &p
	out.Layers = []observer.CheckedLayer{{
		Name: "dump", Engine: "bbolt", Opened: true,
		Said: fmt.Sprintf("revision %d, compacted to %d, raft index %d, term %d, hashkv %d", c.Revision, c.Compact, c.RaftIndex, c.Term, c.Hash),
	}}
	out.Proven = map[string]int64{"keys": c.Keys, "records": c.Records, "leases": c.Leases, "users": c.Users, "roles": c.Roles, "members": c.Members}
	for name, count := range maps.All(c.Registry) {
		out.Proven["registry/"+name] = count
	}
	if at.Index != 0 && (p.Index != at.Index || len(at.Hash) > 0 && string(at.Hash) != string(p.Hash)) {
		out.Findings = append(out.Findings, fmt.Sprintf("dump: it is at %s with hash %x, it must be at %s with %x", p, p.Hash, at, at.Hash))
	}
	return out, nil
}

// lookAt reads dump and note of a directory. What is wrong with them has ErrUnsound
// or is damage.
func lookAt(ctx context.Context, dir string) (c content, n observer.Note, err error) {
	if n, err = observer.ReadNote(dir); err != nil {
		return c, n, err
	}
	f, err := os.Open(filepath.Join(dir, observer.DumpName))
	if err != nil {
		return c, n, err
	}
	defer f.Close()
	t := newTrailed(io.Discard)
	size, err := io.Copy(t, cancelled{ctx, f})
	if err != nil {
		return c, n, err
	}
	if wrong := t.whole(); wrong != "" {
		return c, n, damaged("%s", wrong)
	}
	d, err := openDatabase(f, size-trailerSize)
	if err == nil {
		c, err = look(ctx, d)
	}
	return c, n, err
}

// cancelled ends a long reading.
type cancelled struct {
	ctx context.Context
	io.Reader
}

func (c cancelled) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Reader.Read(b)
}

// position is the dump's. The cluster's id is in no database: the note has it.
func (c content) position(n observer.Note) observer.Position {
	return observer.Position{
		Kind: Kind, Incarnation: n.Position.Incarnation, Epoch: max(c.Term, n.Position.Epoch), Index: uint64(c.Revision),
		Hash: binary.BigEndian.AppendUint32(nil, c.Hash), HashKind: "hashkv", Time: n.Position.Time, Consistency: n.Position.Consistency,
		Marks: map[string]string{
			markRaft:    strconv.FormatUint(c.RaftIndex, 10),
			markCompact: strconv.FormatInt(c.Compact, 10),
			markMember:  n.State.Node.ID,
		},
	}
}
