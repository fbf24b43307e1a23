package check

import (
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// Needs finds out what Run reads of a dump, so that the rest of a large one need not
// be fetched: the databases of the three layers, the programs of contracts, and of
// every other database its list of tables and their sizes. Deep reads more. The zero
// value knows no file yet. It is not for many goroutines.
type Needs struct {
	marks  map[string]*engine.Marks // of each directory that is a database
	layers map[string]bool          // those that are opened; nil: not chosen yet
}

// See takes in the name of a file of the dump, with slashes.
func (n *Needs) See(name string) {
	dir, file := path.Split(name)
	if dir = path.Clean(dir); !marks(file) {
		return
	}
	if n.marks == nil {
		n.marks = map[string]*engine.Marks{}
	}
	if n.marks[dir] == nil {
		n.marks[dir] = new(engine.Marks)
	}
	n.marks[dir].See(file)
	n.layers = nil
}

// marks tells whether a file's name says which engine its directory is of.
func marks(file string) bool {
	var m engine.Marks
	m.See(file)
	return m.Engine() != engine.Unknown
}

// Head is how many bytes of a file's beginning are read; of what is behind them its
// size counts. ok is false where nothing asks even for its name. All files of the
// dump have been seen.
func (n *Needs) Head(name string) (bytes int64, ok bool) {
	const whole = math.MaxInt64
	if n.layers == nil {
		n.choose()
	}
	dir, file := path.Split(name)
	dir = path.Clean(dir)
	m := n.marks[dir]
	switch {
	case m == nil && programHash(name) != "":
		return whole, true
	case m == nil:
		return engine.BoltHead, strings.HasSuffix(file, ".db") // it may be a bolt's file
	case !engine.CanOpen(m.Engine()):
		return 0, marks(file)
	case n.layers[dir], engine.NamesManifest(file):
		return whole, true
	}
	_, table := engine.TableNumber(file)
	return 0, table || marks(file)
}

func (n *Needs) choose() {
	n.layers = map[string]bool{}
	var dbs []database
	for _, dir := range slices.Sorted(maps.Keys(n.marks)) {
		dbs = append(dbs, database{name: dir, engine: n.marks[dir].Engine()})
	}
	h := choose(dbs)
	for _, d := range []*database{h.blocks, h.state, h.app} {
		if d != nil {
			n.layers[d.name] = true
		}
	}
}
