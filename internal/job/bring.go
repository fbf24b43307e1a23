package job

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// Bring brings a dump back into the cluster that the configuration names: the
// archive is opened and checked in a directory of the workdir, what is there is
// shown and confirmed, and the kind does the rest. Construct it with Store, Catalog,
// Selector, Unseal, Events, Now and FS of Restore set, and all fields of its own.
type Bring struct {
	Restore
	Replica observer.Restorer
	Kind    string // of the cluster
	Workdir Workdir
	NoStart bool
	// Overwrite allows to replace what lives.
	Overwrite bool
	// Confirm asks before anything is replaced; an error is the answer no.
	Confirm func(there, comes string) error
}

// bringPrefix begins the directories of the workdir in which a dump lies in the
// plain while it is brought back. No lock, no dump: whoever has the workdir's lock
// may remove them.
const bringPrefix = "restore-"

// Run brings it back. Whatever happens, nothing of the dump is left in the plain but
// what the kind has brought into place.
func (r *Bring) Run(ctx context.Context) (out Restored, err error) {
	begun := r.Now()
	lock, err := r.Workdir.Lock(ctx)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if err := r.Workdir.sweepPlain(); err != nil {
		return out, err
	}
	m, err := r.find(ctx)
	if err != nil {
		return out, err
	}
	if m.System != r.Kind {
		return out, hint.Add(fmt.Errorf("%w: backup %s is of a %s, this is a %s", observer.ErrNotFit, m.ID, m.System, r.Kind), "name a backup of this cluster, or `--into DIR` to look at its files")
	}
	t := observer.RestoreTask{
		Dir: r.Workdir.path(bringPrefix + m.ID), Position: PositionOf(m), Overwrite: r.Overwrite, NoStart: r.NoStart,
		Node: observer.Node{ID: m.Node.ID, Name: m.Node.Name, Host: m.Node.Host, Role: m.Node.Role},
		Say:  func(phase, text string) { r.Events.Emit(Phase{ID: m.ID, Phase: phase, Text: text}) },
	}
	t.Position.Incarnation, _ = historyOf(t.Position.Incarnation) // as the system knows itself
	there, err := r.Replica.Target(ctx, t)
	if err != nil {
		return out, err
	}
	if err := r.Confirm(there, fmt.Sprintf("%s, %s at %s, made by %s", m.ID, m.Cluster, t.Position, madeBy(m).Program())); err != nil {
		return out, err
	}
	ended := r.restoring(ctx, m)
	defer func() { ended(ctx, err) }()
	defer func() { err = errors.Join(err, r.Workdir.sweepPlain()) }()
	r.Into = t.Dir
	if out, err = r.fill(ctx, m); err != nil {
		return out, err
	}
	out.Next, out.Dir = nil, there
	if err := r.check(ctx, t); err != nil {
		return out, err
	}
	out.Next, err = r.Replica.Restore(ctx, t)
	if err != nil {
		return out, fmt.Errorf("bring %s back: %w", m.ID, err)
	}
	out.Seconds = r.Now().Sub(begun).Seconds()
	return out, nil
}

// check looks into the dump once more, as it will be used.
func (r *Bring) check(ctx context.Context, t observer.RestoreTask) error {
	c, ok := r.Replica.(observer.Checker)
	if !ok {
		return nil
	}
	got, err := c.Check(ctx, []snapshot.Tree{{Dir: t.Dir}}, t.Position)
	if err != nil {
		return err
	}
	if len(got.Findings) > 0 {
		return mark(ErrProof, hint.Add(fmt.Errorf("%w: %s", observer.ErrUnsound, got.Findings[0]), hint.Or(hint.Add(observer.ErrUnsound, got.Hint), "restore another backup")))
	}
	return nil
}

// sweepPlain removes dumps that lie in the plain. It needs the workdir's lock.
func (w Workdir) sweepPlain() error {
	names, err := os.ReadDir(w.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, n := range names {
		if n.IsDir() && strings.HasPrefix(n.Name(), bringPrefix) {
			err = errors.Join(err, w.FS.RemoveAll(filepath.Join(w.Dir, n.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("remove a dump that lies in the plain: %w", err)
	}
	return nil
}
