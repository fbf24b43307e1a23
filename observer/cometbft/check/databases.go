package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// database is one that was found.
type database struct {
	name   string // below the dump, with slashes
	path   string
	engine engine.Engine
}

const (
	stageDir = ".eddy" // of stages in progress: not part of a home
	maxDepth = 12
)

// find finds the databases, and the programs of wasm contracts, below a directory.
// It does not follow symlinks.
func find(ctx context.Context, trees []Tree) (out []database, blobs []blob, err error) {
	var visit func(name, at string, depth int) error
	visit = func(name, at string, depth int) error {
		var m engine.Marks
		var subs []string
		err := engine.EachName(at, func(e fs.DirEntry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			switch {
			case e.IsDir() && e.Name() != stageDir:
				subs = append(subs, e.Name())
			case e.Type().IsRegular():
				m.See(e.Name())
				if full := path.Join(name, e.Name()); programHash(full) != "" {
					blobs = append(blobs, blob{full, filepath.Join(at, e.Name())})
				}
				if !strings.HasSuffix(e.Name(), ".db") {
					return nil
				}
				file := filepath.Join(at, e.Name())
				if bolt, err := engine.IsBolt(file); err != nil {
					return err
				} else if bolt {
					out = append(out, database{path.Join(name, e.Name()), file, engine.Bolt})
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if kind := m.Engine(); kind != engine.Unknown {
			out = append(out, database{name, at, kind})
			return nil
		}
		slices.Sort(subs)
		for _, s := range subs {
			if depth >= maxDepth {
				break
			}
			if err := visit(path.Join(name, s), filepath.Join(at, s), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	for _, t := range trees {
		if err == nil {
			err = visit(t.Name, t.Dir, 0)
		}
	}
	slices.SortFunc(out, func(a, b database) int { return strings.Compare(a.name, b.name) })
	return out, blobs, err
}

// home says which databases are which layer; nil: there is none.
type home struct {
	data               string // the directory of the first two
	blocks, state, app *database
}

// choose finds the layers. Where more than one directory has a block store and a
// state store, the usual place goes first.
func choose(dbs []database) home {
	byName := map[string]*database{}
	dirs := map[string]int{}
	for i := range dbs {
		d := &dbs[i]
		byName[d.name] = d
		switch path.Base(d.name) {
		case "blockstore.db", "blockstore", "state.db", "state":
			dirs[path.Dir(d.name)]++
		}
	}
	var h home
	best := 0
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		score := 4 * dirs[dir]
		switch dir {
		case "data":
			score += 2
		case "chaindata/data":
			score++
		}
		if score > best {
			best, h.data = score, dir
		}
	}
	pick := func(names ...string) *database {
		for _, n := range names {
			if d := byName[path.Clean(n)]; d != nil {
				return d
			}
		}
		return nil
	}
	h.blocks = pick(h.data+"/blockstore.db", h.data+"/blockstore")
	h.state = pick(h.data+"/state.db", h.data+"/state")
	h.app = pick(h.data+"/application.db", h.data+"/application", "app.db", h.data+"/kvstore.db", "data/application.db")
	for i := range dbs { // of an application with a root of its own
		if base := path.Base(dbs[i].name); h.app == nil && (base == "application.db" || base == "kvstore.db") {
			h.app = &dbs[i]
		}
	}
	return h
}

// tables sees that the tables are there that a database's MANIFEST names.
func (c *checker) tables(ctx context.Context, d database) error {
	if d.engine != engine.GoLevelDB && d.engine != engine.Pebble {
		return nil
	}
	var about []string
	tables := false
	err := engine.EachName(d.path, func(e fs.DirEntry) error {
		_, table := engine.TableNumber(e.Name())
		tables = tables || table
		if engine.NamesManifest(e.Name()) {
			about = append(about, e.Name())
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	open := func(name string) (io.ReadCloser, error) { return os.Open(filepath.Join(d.path, name)) }
	name, err := engine.CurrentManifest(slices.Values(about), tables, open)
	if err != nil {
		c.fail(StageDatabases, ManifestDamaged, d.name, "%v", err)
		return nil
	}
	if name == "" {
		return nil
	}
	f, err := os.Open(filepath.Join(d.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		c.fail(StageDatabases, ManifestDamaged, d.name, "there is no %s, which is its list of tables", name)
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	want, err := engine.ReadManifest(f)
	switch {
	case errors.Is(err, engine.ErrManifestForm):
		c.note("%s: %v: its tables were not counted", d.name, err)
		return nil
	case err != nil:
		c.fail(StageDatabases, ManifestDamaged, d.name, "%v", err)
		return nil
	}
	for _, t := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		size, err := tableSize(d.path, t.Num)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			c.fail(StageDatabases, TableMissing, d.name, "its MANIFEST names table %06d, which is not there", t.Num)
		case err != nil:
			return err
		case size != t.Size:
			c.fail(StageDatabases, TableSize, d.name, "table %06d has %d bytes, its MANIFEST says %d", t.Num, size, t.Size)
		default:
			c.r.Proven.Tables++
		}
	}
	return nil
}

func tableSize(dir string, num uint64) (uint64, error) {
	var fi fs.FileInfo
	var err error
	for _, ext := range []string{".ldb", ".sst"} {
		if fi, err = os.Stat(filepath.Join(dir, fmt.Sprintf("%06d", num)+ext)); err == nil {
			return uint64(fi.Size()), nil
		}
	}
	return 0, err
}

// readAll reads every pair of a database, and with it every table and checksum.
func (c *checker) readAll(ctx context.Context, d database) error {
	if !engine.CanOpen(d.engine) {
		return nil
	}
	return c.guard(StageDatabases, d.name, func() error {
		db, err := engine.Open(d.engine, d.path)
		if errors.Is(err, engine.ErrNewer) {
			return nil // said where it is a layer
		}
		if err != nil {
			return err
		}
		err = db.Each(nil, nil, func(_, _ []byte) error {
			c.r.Proven.Pairs++
			return ctx.Err()
		})
		return errors.Join(err, db.Close())
	})
}

// errFatal is an error that ends the check, in contrast to what an engine says of
// the dump.
type errFatal struct{ error }

func (e errFatal) Unwrap() error { return e.error }

// guard makes findings of what an engine, or a decoder, says or panics about the
// dump. Only the context's end comes back as an error.
func (c *checker) guard(stage Stage, where string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.fail(stage, Panicked, where, "%v", p)
			err = nil
		}
	}()
	err = f()
	var fatal errFatal
	if err == nil || errors.As(err, &fatal) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	c.fail(stage, Damaged, where, "%v", err)
	return nil
}

// with opens the database of a layer, notes the layer, and hands it to check. The
// database stays open until close is called, which never is nil.
func (c *checker) with(ctx context.Context, stage Stage, d *database, check func(context.Context, engine.DB) error) (close func(), err error) {
	l := Layer{Stage: stage}
	at := len(c.r.Layers)
	defer func() {
		if len(c.r.Layers) == at { // check has its own word
			c.r.Layers = append(c.r.Layers, l)
		}
	}()
	if d == nil {
		l.Said = "there is none"
		return func() {}, nil
	}
	l.Name, l.Engine = d.name, string(d.engine)
	if !engine.CanOpen(d.engine) {
		l.Said = fmt.Sprintf("a %s database, which this eddy cannot open", d.engine)
		return func() {}, nil
	}
	if err := c.log(stage, *d); err != nil {
		return func() {}, err
	}
	var db engine.DB
	l.Said = "its engine cannot open it"
	err = c.guard(stage, d.name, func() (err error) {
		db, err = engine.Open(d.engine, d.path)
		if errors.Is(err, engine.ErrNewer) {
			l.Said = err.Error()
			return nil
		}
		return err
	})
	if db == nil || err != nil {
		return func() {}, err
	}
	close = func() {
		_ = c.guard(stage, d.name, func() error { return db.Close() })
	}
	l.Opened = true
	c.r.Layers = append(c.r.Layers, l)
	return close, c.guard(stage, d.name, func() error { return check(ctx, db) })
}

// layer is the layer that is being looked at.
func (c *checker) layer() *Layer { return &c.r.Layers[len(c.r.Layers)-1] }

// said notes what a layer is.
func (c *checker) said(opened bool, format string, args ...any) {
	l := c.layer()
	l.Opened, l.Said = opened, fmt.Sprintf(format, args...)
}

// log checks the logs of a database before its engine makes the best of them.
func (c *checker) log(stage Stage, d database) error {
	if err := engine.CheckLog(d.engine, d.path); err != nil {
		c.fail(stage, WALTorn, d.name, "%v", err)
	}
	return nil
}
