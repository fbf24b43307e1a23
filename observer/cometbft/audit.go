package cometbft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
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
		if _, ok := tableNumber(name); ok {
			a.tables++
		} else if name == "CURRENT" || strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, manifestMarker) {
			a.entries[name] = e
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for name, a := range dbs {
		err := a.read(st)
		if errors.Is(err, errManifestForm) {
			unread = append(unread, name+": "+err.Error())
			delete(dbs, name)
			continue
		}
		if err != nil {
			return nil, a.unsound(err)
		}
	}
	err = eachOf(ctx, st, dbs, func(a *audited, name string, e snapshot.Entry) error {
		num, ok := tableNumber(name)
		if !ok {
			return nil
		}
		i, found := slices.BinarySearchFunc(a.want, table{num: num}, byNumber)
		switch {
		case !found: // written after, or not yet deleted: the engine passes over it
		case uint64(e.Size) != a.want[i].size:
			return a.unsound(fmt.Errorf("%s has %d bytes, its MANIFEST says %d", name, e.Size, a.want[i].size))
		default:
			a.found.set(num, true)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, a := range dbs {
		for _, t := range a.want {
			if !a.found.has(t.num) {
				return nil, a.unsound(fmt.Errorf("its MANIFEST names table %06d, which is not there", t.num))
			}
		}
	}
	slices.Sort(unread)
	return unread, nil
}

const manifestMarker = "marker.manifest." // pebble: the rest is a number, a dot, and a name

// audited is a database that is compared with its own list.
type audited struct {
	name    string
	entries map[string]snapshot.Entry // CURRENT, marker, MANIFEST
	tables  int
	want    []table
	found   numbers
}

func (a *audited) unsound(err error) error {
	return hint.Add(fmt.Errorf("%w: %s: %w", observer.ErrUnsound, a.name, err),
		"the node's own data is damaged, or something changed it while it stood still: look at the node's log, and back up again")
}

// read reads the MANIFEST that is in force.
func (a *audited) read(st *snapshot.Stage) error {
	name, err := a.current(st)
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
	a.want, err = readManifest(f)
	return err
}

// current is the name of the MANIFEST in force, "" of a database that has none
// yet.
func (a *audited) current(st *snapshot.Stage) (string, error) {
	newest, name := uint64(0), ""
	for have := range a.entries {
		number, value, ok := strings.Cut(strings.TrimPrefix(have, manifestMarker), ".")
		n, err := strconv.ParseUint(number, 10, 64)
		if ok && err == nil && strings.HasPrefix(have, manifestMarker) && (name == "" || n > newest) {
			newest, name = n, value
		}
	}
	if name != "" {
		return name, nil
	}
	e, ok := a.entries["CURRENT"]
	if !ok {
		if a.tables > 0 {
			return "", errors.New("there is no CURRENT, and tables")
		}
		return "", nil
	}
	f, err := st.Open(e)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 100))
	if err != nil {
		return "", err
	}
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok || !bytes.HasPrefix(line, []byte("MANIFEST-")) {
		return "", errors.New("its CURRENT names no MANIFEST")
	}
	return string(line), nil
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

// tableNumber is the number of a table by its name.
func tableNumber(name string) (uint64, bool) {
	for _, ext := range []string{".ldb", ".sst"} {
		if isTable(name, ext) {
			n, err := strconv.ParseUint(strings.TrimSuffix(name, ext), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
