package cometbft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/snapshot"
)

// Audit implements observer.Auditor: every goleveldb and pebble database of the
// stage has the tables that its MANIFEST names, with their sizes. It opens none
// and changes nothing.
func (r *Replica) Audit(ctx context.Context, st *snapshot.Stage) ([]string, error) {
	return r.layout.Audit(ctx, st)
}

// Audit is Replica.Audit.
func (l Layout) Audit(ctx context.Context, st *snapshot.Stage) (unread []string, err error) {
	dbs := map[string]*audited{}
	for _, d := range l.Databases {
		if d.Engine == GoLevelDB || d.Engine == Pebble {
			dbs[d.Name] = &audited{name: d.Name, entries: map[string]snapshot.Entry{}}
		}
	}
	// First the few files that say what there must be, then all that there is.
	err = eachOf(ctx, st, dbs, func(a *audited, name string, e snapshot.Entry) error {
		if _, ok := engine.TableNumber(name); ok {
			a.tables++
		} else if engine.NamesManifest(name) {
			a.entries[name] = e
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for name, a := range dbs {
		err := a.read(st)
		if errors.Is(err, engine.ErrManifestForm) {
			unread = append(unread, name+": "+err.Error())
			delete(dbs, name)
			continue
		}
		if err != nil {
			return nil, a.unsound(err)
		}
	}
	err = eachOf(ctx, st, dbs, func(a *audited, name string, e snapshot.Entry) error {
		num, ok := engine.TableNumber(name)
		if !ok {
			return nil
		}
		i, found := slices.BinarySearchFunc(a.want, engine.Table{Num: num}, engine.ByNumber)
		switch {
		case !found: // written after, or not yet deleted: the engine passes over it
		case uint64(e.Size) != a.want[i].Size:
			return a.unsound(fmt.Errorf("%s has %d bytes, its MANIFEST says %d", name, e.Size, a.want[i].Size))
		default:
			a.found.Set(num, true)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, a := range dbs {
		for _, t := range a.want {
			if !a.found.Has(t.Num) {
				return nil, a.unsound(fmt.Errorf("its MANIFEST names table %06d, which is not there", t.Num))
			}
		}
	}
	slices.Sort(unread)
	return unread, nil
}

// audited is a database that is compared with its own list.
type audited struct {
	name    string
	entries map[string]snapshot.Entry // CURRENT, marker, MANIFEST
	tables  int
	want    []engine.Table
	found   engine.Numbers
}

func (a *audited) unsound(err error) error {
	return hint.Add(fmt.Errorf("%w: %s: %w", observer.ErrUnsound, a.name, err),
		"the node's own data is damaged, or something changed it while it stood still: look at the node's log, and back up again")
}

// read reads the MANIFEST that is in force.
func (a *audited) read(st *snapshot.Stage) error {
	name, err := engine.CurrentManifest(maps.Keys(a.entries), a.tables > 0, func(name string) (io.ReadCloser, error) { return st.Open(a.entries[name]) })
	if err != nil || name == "" {
		return err
	}
	e, ok := a.entries[name]
	if !ok {
		return fmt.Errorf("there is no %s, which is its list of tables", name)
	}
	f, err := st.Open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	a.want, err = engine.ReadManifest(f)
	return err
}

// eachOf visits the files of databases in a stage.
func eachOf(ctx context.Context, st *snapshot.Stage, dbs map[string]*audited, visit func(a *audited, name string, e snapshot.Entry) error) error {
	for e, err := range st.Entries() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		a := dbs[path.Dir(e.Name)]
		if a == nil || e.Type != snapshot.TypeFile {
			continue
		}
		if err := visit(a, path.Base(e.Name), e); err != nil {
			return err
		}
	}
	return nil
}
