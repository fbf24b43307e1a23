package swarm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/observer/held"
	"github.com/eddy-backup/eddy/snapshot"
)

// Kind is the kind of the positions, and the system of the manifests.
const Kind = "swarm"

// Options of a manager.
type Options struct {
	Cluster  string
	DataRoot string // of the engine
	Host     string // of the engine, as DOCKER_HOST has it; "": the default
	Control  control.Control
	// StopTimeout is the engine's own stop, HoldDeadline the whole hold.
	StopTimeout, HoldDeadline time.Duration
	// Keys are unlock keys that lie somewhere for a start after which nobody remembers
	// any; nil: none do.
	Keys func(ctx context.Context) ([]UnlockKey, error)
	// AllowRunning allows to stop an engine that runs containers.
	AllowRunning bool
	// KeepKey is given the unlock key of a locked swarm and its version before anything
	// is stopped, to keep it apart from the data; nil: nobody does.
	KeepKey func(ctx context.Context, key UnlockKey, version uint64) error
	// StageDir is where dumps are staged. Nothing in it lies in the engine's own
	// directories, which it may clear.
	StageDir string
	Drill    Drill
}

// Replica is a manager of a swarm.
type Replica struct {
	o      Options
	engine engine
	node   held.Node

	key   UnlockKey         // in force, of a locked swarm; Gate learns it
	state observer.State    // when Prepare looked
	lists map[string][]byte // the inventory that Prepare has asked for
}

var (
	_ observer.Replica  = (*Replica)(nil)
	_ observer.Holder   = (*Replica)(nil)
	_ observer.Rester   = (*Replica)(nil)
	_ observer.Checker  = (*Replica)(nil)
	_ observer.Restorer = (*Replica)(nil)
)

// New makes it; nobody is asked.
func New(o Options) (*Replica, error) {
	e, err := control.NewEngine(o.Host)
	if err != nil {
		return nil, err
	}
	r := &Replica{o: o, engine: engine{e}}
	r.node = held.Node{
		Control: o.Control, Timeout: o.StopTimeout, Deadline: o.HoldDeadline,
		Down: control.AllDown([]string{r.dir()}, nil), Awake: r.awake,
	}
	return r, nil
}

// dir is the manager's state.
func (r *Replica) dir() string { return filepath.Join(r.o.DataRoot, stateDir) }

// Roots implements observer.Replica: a directory of its own, as all is copied.
func (r *Replica) Roots(context.Context) ([]snapshot.Root, error) {
	return []snapshot.Root{{Path: r.o.StageDir}}, nil
}

// The roles of a node.
const (
	roleLeader  = "leader"
	roleManager = "manager"
	roleWorker  = "worker"
	roleLocked  = "locked"
	roleNone    = "no member"
)

// Describe implements observer.Replica. The API tells neither term nor index.
func (r *Replica) Describe(ctx context.Context) (observer.State, error) {
	s := observer.State{Cluster: r.o.Cluster, System: Kind, Position: observer.Position{Kind: Kind, Consistency: "live"}, Taken: time.Now().UTC()}
	i, err := r.engine.info(ctx)
	if err != nil {
		return s, fmt.Errorf("%w: ask the engine: %w", observer.ErrNotFit, err)
	}
	s.Version = i.ServerVersion
	s.Node = observer.Node{ID: i.Swarm.NodeID, Name: i.Name, Host: i.Swarm.NodeAddr}
	if i.Swarm.Cluster != nil {
		s.Position.Incarnation = i.Swarm.Cluster.ID
	}
	switch {
	case i.Swarm.LocalNodeState == "locked":
		s.Node.Role = roleLocked
		return s, nil
	case i.Swarm.LocalNodeState == "inactive" || i.Swarm.LocalNodeState == "":
		s.Node.Role = roleNone
		return s, nil
	case !i.Swarm.ControlAvailable:
		s.Node.Role = roleWorker
		return s, nil
	}
	nodes, err := r.engine.nodes(ctx)
	if err != nil {
		return s, fmt.Errorf("%w: ask for the managers: %w", observer.ErrNotFit, err)
	}
	s.Members = members(i.Swarm.NodeID, nodes)
	s.Peers = len(nodes) - 1
	s.Node.Role = roleManager
	if m := s.Self(); m != nil && m.Leader {
		s.Node.Role = roleLeader
	}
	return s, nil
}

// Prepare implements observer.Holder: while the engine answers it is asked for what is
// kept beside its state, and its key is kept.
func (r *Replica) Prepare(ctx context.Context, _ *snapshot.Stage) (err error) {
	if r.state, err = r.Describe(ctx); err != nil {
		r.state.Node.Role = roleNone // a salvage goes on all the same
		return nil
	}
	r.lists = nil
	if r.state.Node.Role == roleManager || r.state.Node.Role == roleLeader {
		r.lists, err = r.engine.inventory(ctx)
		if err != nil && observer.QuorumOf(r.state.Members).Bears() >= 0 {
			return err
		}
	}
	if r.key != "" && r.o.KeepKey != nil {
		k, err := r.nodeKey()
		if err != nil {
			return err
		}
		return r.o.KeepKey(ctx, r.key, k.Version)
	}
	return nil
}

// nodeKey is the file of the node's key as it lies there.
func (r *Replica) nodeKey() (nodeKey, error) {
	b, err := readSmall(filepath.Join(r.dir(), nodeFile))
	if errors.Is(err, fs.ErrPermission) {
		err = hint.Add(err, "only root may read it: run eddy as root")
	}
	if err != nil {
		return nodeKey{}, err
	}
	k, err := parseNodeKey(b)
	if err != nil {
		err = fmt.Errorf("%s: %w", nodeFile, err)
	}
	return k, err
}

// Hold implements observer.Holder. A manager that would be locked after, with no key at
// hand, is never stopped.
func (r *Replica) Hold(ctx context.Context, st *snapshot.Stage) (func(context.Context) error, error) {
	if err := r.haveKey(ctx); err != nil {
		return nil, err
	}
	r.node.Unlock = nil
	if r.key != "" {
		r.node.Unlock = &control.Unlock{Host: r.engine.Host(), Key: string(r.key)}
	}
	return r.node.Hold(ctx, st)
}

// Still implements observer.Rester.
func (r *Replica) Still(ctx context.Context) error { return r.node.Still(ctx) }

// haveKey sees to it that the key is held that opens the node's own file: nothing else
// proves that it will unlock it.
func (r *Replica) haveKey(ctx context.Context) error {
	k, err := r.nodeKey()
	if err != nil {
		return fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	if !k.Locked {
		r.key = ""
		return nil
	}
	keys, err := r.keys(ctx)
	asked, aerr := r.engine.unlockKey(ctx)
	if aerr == nil && asked != "" {
		keys = append([]UnlockKey{asked}, keys...)
	}
	for _, key := range keys {
		if _, err := k.open([]UnlockKey{key}); err == nil {
			r.key = key
			return nil
		}
	}
	return hint.Add(fmt.Errorf("%w: the swarm locks its managers, and no key opens this one's after a stop: %w", observer.ErrNotFit, errors.Join(errKey, err, aerr)),
		"when `docker swarm unlock-key` shows it on a manager, write it to a file of mode 0600 and set `replica.swarm.unlock_key: {file: FILE}`")
}

// HeldKey is the unlock key in force and its version; "" where the swarm locks nobody.
func (r *Replica) HeldKey(ctx context.Context) (UnlockKey, uint64, error) {
	if err := r.haveKey(ctx); err != nil || r.key == "" {
		return "", 0, err
	}
	k, err := r.nodeKey()
	return r.key, k.Version, err
}

// keys are those that lie somewhere, and the one that is remembered.
func (r *Replica) keys(ctx context.Context) ([]UnlockKey, error) {
	var all []UnlockKey
	if r.key != "" {
		all = append(all, r.key)
	}
	if r.o.Keys == nil {
		return all, nil
	}
	more, err := r.o.Keys(ctx)
	return append(all, more...), err
}

// awakeTime bounds the unlocking after a start.
const awakeTime = 3 * time.Minute

// awake unlocks a manager that is locked after its start.
func (r *Replica) awake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), awakeTime)
	defer cancel()
	k, err := r.nodeKey()
	if err != nil || !k.Locked {
		return err
	}
	keys, kerr := r.keys(ctx)
	for _, key := range keys {
		if _, err := k.open([]UnlockKey{key}); err == nil {
			return (&control.Unlock{Host: r.engine.Host(), Key: string(key)}).Do(ctx)
		}
	}
	return hint.Add(errors.Join(errors.New("the manager is locked, and no key that is held opens it"), kerr), "as root: `docker swarm unlock`, with the key that `docker swarm unlock-key` shows on another manager, or that lies in a bundle: `eddy keys restore latest`")
}

// Recover starts an engine that a dead eddy left stopped, and unlocks a manager that is
// locked since a start where a key lies somewhere.
func (r *Replica) Recover(ctx context.Context) (bool, error) {
	if err := (fsx.FS{}).MkdirAll(r.o.StageDir, 0o700); err != nil {
		return false, err
	}
	acted, err := r.node.Recover(ctx)
	if err != nil || acted || r.o.Keys == nil {
		return acted, err
	}
	i, err := r.engine.info(ctx)
	if err != nil || i.Swarm.LocalNodeState != "locked" {
		return false, nil // the gate says what is wrong with it
	}
	if err := r.awake(ctx); err != nil {
		return false, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	return true, nil
}

// Rejoined implements observer.Holder: the leader sees the manager again.
func (r *Replica) Rejoined(ctx context.Context, _ observer.State) error {
	for {
		s, err := r.Describe(ctx)
		if err == nil {
			self, q := s.Self(), observer.QuorumOf(s.Members)
			if self != nil && self.Reachable && q.Leaders == 1 {
				return nil
			}
			err = fmt.Errorf("it is a %s, %d of %d managers are reachable", s.Node.Role, q.Reachable, q.Voters)
		}
		t := time.NewTimer(250 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w: last seen: %w", ctx.Err(), err)
		case <-t.C:
		}
	}
}

// Capture implements observer.Replica: all is copied, for the log is written in place.
func (r *Replica) Capture(ctx context.Context, st *snapshot.Stage) error {
	return r.node.During(ctx, func(ctx context.Context) error { return r.capture(ctx, st) })
}

func (r *Replica) capture(ctx context.Context, st *snapshot.Stage) error {
	names, err := stateFiles(r.dir())
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	take := func(name string, in io.Reader) error {
		h := sha256.New()
		err := st.Stream(ctx, "", name, func(ctx context.Context, w io.Writer) error {
			w, in := io.MultiWriter(w, h), &patient{ctx, in}
			if strings.HasSuffix(name, ".wal") {
				return copyUsed(w, in)
			}
			_, err := io.Copy(w, in)
			return err
		})
		fmt.Fprintf(&sums, "%s  %s\n", hex.EncodeToString(h.Sum(nil)), name)
		return err
	}
	for _, name := range names {
		f, err := os.Open(filepath.Join(r.dir(), filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		if err := errors.Join(take(stateDir+"/"+name, f), f.Close()); err != nil {
			return err
		}
	}
	for _, what := range inventories {
		if b := r.lists[what+".json"]; b != nil {
			if err := take(listsDir+"/"+what+".json", bytes.NewReader(b)); err != nil {
				return err
			}
		}
	}
	r.state.Taken = time.Now().UTC()
	note := observer.Note{
		State: r.state, Position: r.state.Position,
		Facts: map[string]string{"data_root": r.o.DataRoot, "autolock": fmt.Sprint(r.key != "")},
	}
	if err := note.Put(ctx, st); err != nil {
		return err
	}
	sum, err := sumOf(ctx, st.Place(observer.NoteName))
	if err != nil {
		return err
	}
	fmt.Fprintf(&sums, "%s  %s\n", sum, observer.NoteName)
	return st.Stream(ctx, "", sumsName, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(sums.Bytes())
		return err
	})
}

// usedChunk is the grain of copyUsed, bytes.
const usedChunk = 1 << 16

// copyUsed copies without the zeros at the end, of which a log of 64 MB that an engine
// allocates ahead mostly consists; up to one chunk of them stays, as records end in some.
func copyUsed(w io.Writer, r io.Reader) error {
	buf, none, zeros := make([]byte, usedChunk), make([]byte, usedChunk), int64(0)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 && bytes.Equal(buf[:n], none[:n]) {
			zeros += int64(n)
		} else if n > 0 {
			for ; zeros > 0; zeros -= min(zeros, usedChunk) {
				if _, err := w.Write(none[:min(zeros, usedChunk)]); err != nil {
					return err
				}
			}
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			_, err := w.Write(none[:min(zeros, usedChunk)])
			return err
		case err != nil:
			return err
		}
	}
}

// Locate implements observer.Replica.
func (r *Replica) Locate(ctx context.Context, st *snapshot.Stage, _ observer.State) (observer.Position, error) {
	keys, err := r.keys(ctx)
	if err != nil {
		return observer.Position{}, err
	}
	d, err := readDump(ctx, st.Trees()[0].Dir, keys)
	if err != nil && !errors.Is(err, errKey) {
		return observer.Position{}, err
	}
	return d.position(), nil
}

// lapses is how long before its end a certificate is spoken of.
const lapses = 14 * 24 * time.Hour

// Check implements observer.Checker: every byte is summed, and what can be opened is
// read to its end.
func (r *Replica) Check(ctx context.Context, trees []snapshot.Tree, at observer.Position) (out observer.Checked, err error) {
	begun := time.Now()
	keys, err := r.keys(ctx)
	if err != nil {
		return out, err
	}
	d, err := readDump(ctx, trees[0].Dir, keys)
	out.Seconds = time.Since(begun).Seconds()
	var bad damage
	locked := errors.Is(err, errKey) && d.Log != nil
	switch {
	case errors.As(err, &bad) && !locked:
		out.Opened = "none"
		out.Findings, out.Hint = []string{bad.Error()}, "make another backup; if it is said again, look at this manager's disk, and back up another one"
		return out, nil
	case err != nil && !locked:
		return out, err
	}
	p := d.position()
	out.At = &p
	if at.Index != 0 && (at.Index != p.Index || at.Incarnation != p.Incarnation) {
		out.Findings = []string{fmt.Sprintf("it is at %s of swarm %s, not at %s of %s", p, p.Incarnation, at, at.Incarnation)}
		return out, nil
	}
	out.Proven = map[string]int64{"log entries": d.Log.Entries, "log files": d.Log.Files}
	log := observer.CheckedLayer{Name: "raft log", Engine: "etcd wal", Opened: !locked}
	out.Opened, out.Grade = "all", "decrypted"
	if locked {
		out.Opened, out.Grade = "part", "checksums"
		log.Said = "its unlock key (" + headVersion + fmt.Sprintf(" %d) is not held", d.Key.Version)
	} else {
		log.Said = fmt.Sprintf("term %d, committed %d of %d", d.Log.Term, d.Log.Commit, d.Log.LastIndex)
		for kind, n := range d.Log.Store.counts() {
			out.Proven[kind] = n
		}
	}
	out.Layers = []observer.CheckedLayer{
		log, {Name: "node", Opened: true, Said: fmt.Sprintf("%s %s of swarm %s, at %s, certificate until %s", d.role(), d.nodeID(), d.cluster(), d.Log.Self.Addr, d.Cert.NotAfter.UTC().Format(time.DateOnly))},
	}
	if left := time.Until(d.Cert.NotAfter); left < lapses {
		out.Notes = append(out.Notes, "the node's certificate ends "+d.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if live := d.Note.State.Position.Incarnation; live != "" && live != d.cluster() {
		out.Findings = append(out.Findings, fmt.Sprintf("the engine says swarm %s, the certificate %s", live, d.cluster()))
	}
	return out, nil
}

// KeyText is the key for a file that `docker swarm unlock` and replica.swarm.unlock_key
// take.
func (k UnlockKey) KeyText() []byte { return []byte(string(k) + "\n") }

// fewNames are some of many, for a line.
func fewNames(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(slices.Clone(names), ", ")
}
