package cometbft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
)

// Layout says where a node keeps its files and which of them make a backup. It
// is read from the node's own configuration and from the disk; no live node is
// needed. The directories are walked anew by Prepare and by Capture, because
// databases come and go; roots are fixed when the layout is read.
type Layout struct {
	// Home is the node's home, absolute, symlinks resolved.
	Home string
	// Roots are the home and every mount, symlink's target and configured
	// directory beyond it, the home first.
	Roots []snapshot.Root
	// Databases are the directories and files in which an engine was recognised,
	// by archive name.
	Databases []Database
	// LeftOut lists what is seen and not taken, and why, by archive name. Files
	// that look like keys are found only when they are read, in Capture.
	LeftOut []snapshot.LeftOut
	// Backend, Pruning and Indexer are what config.toml and app.toml say; "" where
	// they say nothing. The engines are detected, never believed.
	Backend, Pruning, Indexer string
	// KeepSnapshots takes the state-sync snapshots too. They can be made again and
	// can be as large as the databases, so the default is an empty directory.
	KeepSnapshots bool

	scope scope
	bases []base
}

// Database is a place where an engine was recognised.
type Database struct {
	Name   string // in the archive: "data/state.db"
	Path   string // on this machine
	Engine Engine
}

// Engines names the engines of the databases, each once, in order.
func (l Layout) Engines() []string {
	seen := map[string]bool{}
	for _, d := range l.Databases {
		if d.Engine != WAL {
			seen[string(d.Engine)] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// base is a CometBFT home: the directory with config/config.toml. On a Cosmos
// chain it is the home itself, on a Loom chain HOME/chaindata.
type base struct {
	rel       string // below the home: "" or "chaindata"
	dir       string // absolute
	data      string // db_dir, absolute, not resolved
	wal       string // the head of the consensus log
	genesis   string
	key       string // validator key
	signState string // "" where the key file holds it (before Tendermint 0.25)
	nodeKey   string
	addrBook  string
	remote    string // priv_validator_laddr: somebody else signs
	walGiven  bool
	backend   string
	indexer   string
}

// cometConfig are the keys of config.toml that say where files are.
type cometConfig struct {
	DBBackend   string `toml:"db_backend"`
	DBDir       string `toml:"db_dir"`
	DBPath      string `toml:"db_path"` // until Tendermint 0.22
	Genesis     string `toml:"genesis_file"`
	Key         string `toml:"priv_validator_key_file"`
	SignState   string `toml:"priv_validator_state_file"`
	KeyAndState string `toml:"priv_validator_file"` // until Tendermint 0.25
	SignerAddr  string `toml:"priv_validator_laddr"`
	NodeKey     string `toml:"node_key_file"`
	P2P         struct {
		AddrBook string `toml:"addr_book_file"`
	} `toml:"p2p"`
	Consensus struct {
		WAL string `toml:"wal_file"`
	} `toml:"consensus"`
	TxIndex struct {
		Indexer string `toml:"indexer"`
	} `toml:"tx_index"`
}

// appConfig are the keys of app.toml that say where files are.
type appConfig struct {
	Pruning    string `toml:"pruning"`
	StateStore struct {
		Dir    string `toml:"ss-db-directory"`
		EVMDir string `toml:"evm-ss-db-directory"`
	} `toml:"state-store"`
	StateCommit struct {
		Dir string `toml:"sc-directory"`
	} `toml:"state-commit"`
	StateSync struct {
		Snapshots string `toml:"snapshot-directory"`
	} `toml:"state-sync"`
	Wasm struct {
		Dir string `toml:"dir"`
	} `toml:"wasm"`
}

const (
	loomBase = "chaindata" // where a Loom home keeps its Tendermint home
	outside  = ".eddy-root"
)

// ReadLayout finds out where the node of home keeps its files. extraRoots names
// directories that no configuration file mentions; include adds files and
// directories of the home, by path or pattern relative to it.
func ReadLayout(home string, extraRoots map[string]string, include []string) (Layout, error) {
	home, err := resolveHome(home)
	if err != nil {
		return Layout{}, err
	}
	for _, p := range include {
		if _, err := path.Match(p, ""); err != nil {
			return Layout{}, hint.Add(fmt.Errorf("include %q: %w", p, err), "write a path or a pattern relative to the home, like notes/*.txt")
		}
		if filepath.IsAbs(p) || strings.HasPrefix(path.Clean(p), "..") {
			return Layout{}, hint.Add(fmt.Errorf("include %q is not below the home", p), "name a directory outside the home under roots")
		}
	}
	bases, err := readBases(home)
	if err != nil {
		return Layout{}, err
	}
	var app appConfig
	if err := readTOML(filepath.Join(home, "config", "app.toml"), &app); err != nil {
		return Layout{}, err
	}
	l := Layout{
		Home: home, Roots: []snapshot.Root{{Path: home}},
		Backend: bases[0].backend, Indexer: bases[0].indexer, Pruning: app.Pruning,
		bases: bases, scope: newScope(home, bases, include),
	}
	if err := l.name(app, extraRoots); err != nil {
		return Layout{}, err
	}
	s := walker{l: &l, discover: true, live: true}
	if err := s.walk(context.Background()); err != nil {
		return Layout{}, err
	}
	if err := l.checkPrefixes(); err != nil {
		return Layout{}, err
	}
	l.Databases, l.LeftOut = s.databases, s.leftOut()
	return l, nil
}

const rightHome = "set `replica.home: DIR` to the directory that holds the node's config and data"

func resolveHome(home string) (string, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(home)
	if err == nil {
		_, err = os.ReadDir(dir)
	}
	switch {
	case err == nil:
		return dir, nil
	case errors.Is(err, fs.ErrNotExist):
		return "", hint.Add(fmt.Errorf("the home %s does not exist", home), rightHome)
	default:
		return "", hint.Add(fmt.Errorf("read the home: %w", err), "run eddy as the node's user"+ownerOf(home))
	}
}

// readBases finds the CometBFT homes: the home itself, or chaindata below it.
func readBases(home string) ([]base, error) {
	var bases []base
	for _, rel := range []string{"", loomBase} {
		dir := filepath.Join(home, rel)
		found := false
		for _, p := range []string{"config/config.toml", "data"} {
			_, err := os.Lstat(filepath.Join(dir, p))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotDir) {
				return nil, hint.Add(fmt.Errorf("read the home: %w", err), "run eddy as the node's user"+ownerOf(dir))
			}
			found = found || err == nil
		}
		if !found {
			continue
		}
		b, err := readBase(dir, rel)
		if err != nil {
			return nil, err
		}
		bases = append(bases, b)
	}
	if len(bases) == 0 {
		return nil, hint.Add(fmt.Errorf("the home %s has neither data nor config/config.toml, nor a chaindata", home),
			rightHome)
	}
	for _, b := range bases {
		if _, err := os.ReadDir(b.data); errors.Is(err, fs.ErrNotExist) {
			return nil, hint.Add(fmt.Errorf("the home %s has no data: %s does not exist", home, b.data), "start the node once, or correct db_dir in its config.toml")
		} else if err != nil {
			return nil, hint.Add(fmt.Errorf("read the data directory: %w", err), "run eddy as the node's user"+ownerOf(b.data))
		}
	}
	return bases, nil
}

func readBase(dir, rel string) (base, error) {
	var c cometConfig
	if err := readTOML(filepath.Join(dir, "config", "config.toml"), &c); err != nil {
		return base{}, err
	}
	at := func(values ...string) string {
		p := filepath.FromSlash(cmp.Or(values...))
		if filepath.IsAbs(p) {
			return filepath.Clean(p)
		}
		return filepath.Join(dir, p)
	}
	b := base{
		rel: rel, dir: dir, backend: c.DBBackend, indexer: c.TxIndex.Indexer, remote: c.SignerAddr,
		data:      at(c.DBDir, c.DBPath, "data"),
		genesis:   at(c.Genesis, "config/genesis.json"),
		key:       at(c.Key, "config/priv_validator_key.json"),
		signState: at(c.SignState, "data/priv_validator_state.json"),
		nodeKey:   at(c.NodeKey, "config/node_key.json"),
		addrBook:  at(c.P2P.AddrBook, "config/addrbook.json"),
		walGiven:  c.Consensus.WAL != "",
	}
	b.wal = at(c.Consensus.WAL, "data/cs.wal/wal")
	if !b.walGiven {
		b.wal = filepath.Join(b.data, "cs.wal", "wal")
	}
	old := at(c.KeyAndState, "config/priv_validator.json")
	if c.KeyAndState != "" || (rel == loomBase && c.Key == "" && exists(old)) {
		b.key, b.signState = old, ""
	}
	return b, nil
}

// name enters the directories that app.toml and eddy's configuration name.
func (l *Layout) name(app appConfig, extraRoots map[string]string) error {
	configured := []struct{ name, dir, whole string }{
		{"state-store", app.StateStore.Dir, "app.toml state-store.ss-db-directory"},
		{"evm-state-store", app.StateStore.EVMDir, "app.toml state-store.evm-ss-db-directory"},
		{"state-commit", app.StateCommit.Dir, "app.toml state-commit.sc-directory"},
		{"snapshots", app.StateSync.Snapshots, "app.toml state-sync.snapshot-directory"},
		{"wasm", app.Wasm.Dir, "app.toml wasm.dir"},
	}
	for i, b := range l.bases {
		suffix := ""
		if i > 0 {
			suffix = "-" + b.rel
		}
		if err := l.take("db"+suffix, b.data); err != nil {
			return err
		}
		if err := l.take("wal"+suffix, filepath.Dir(b.wal)); b.walGiven && err != nil {
			return err
		}
	}
	for _, c := range configured {
		if c.dir == "" {
			continue
		}
		dir := c.dir
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(l.Home, dir)
		}
		if c.name == "snapshots" {
			l.scope.snapshots[canonical(dir)] = true
		}
		if err := l.take(c.name, dir); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(extraRoots)) {
		dir := extraRoots[name]
		if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
			return hint.Add(fmt.Errorf("roots: %q is no name for a root", name), "use letters and digits")
		}
		if !filepath.IsAbs(dir) {
			return hint.Add(fmt.Errorf("roots.%s: %s is not an absolute path", name, dir), "write the whole path")
		}
		if _, err := os.ReadDir(dir); err != nil {
			return hint.Add(fmt.Errorf("roots.%s: %w", name, err), fmt.Sprintf("set `roots.%s: DIR`, or run eddy as the user who may read it%s", name, ownerOf(dir)))
		}
		if err := l.take(name, dir); err != nil {
			return err
		}
	}
	return nil
}

// take makes a directory part of the backup: as a part of the home where it lies
// in it, as a root of its own elsewhere. One that does not exist (yet) is left to
// the walks to find.
func (l *Layout) take(name, dir string) error {
	rel, below := relBelow(l.Home, filepath.Clean(dir))
	resolved, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if below {
			l.scope.take[canonical(dir)] = true
		}
		return nil
	}
	if err != nil {
		return hint.Add(fmt.Errorf("read %s: %w", dir, err), "run eddy as the node's user"+ownerOf(filepath.Dir(dir)))
	}
	at := canonical(dir)
	if _, ok := relBelow(l.Home, at); ok {
		if at == l.Home {
			return nil
		}
		l.scope.take[at] = true // the walk finds it, also where its last component is a symlink
		return nil
	}
	for _, r := range l.Roots[1:] {
		if _, ok := relBelow(r.Path, resolved); ok {
			return nil
		}
	}
	if _, ok := relBelow(resolved, l.Home); ok {
		return hint.Add(fmt.Errorf("%s holds the home %s itself", dir, l.Home), "name a directory that is no part of the way to the home")
	}
	prefix := path.Join(outside, name)
	if below { // reached through a symlink of the home
		prefix = filepath.ToSlash(rel)
	}
	return l.addRoot(name, resolved, prefix, "")
}

// addRoot adds a root unless its directory is one already.
func (l *Layout) addRoot(name, dir, prefix, target string) error {
	if i := slices.IndexFunc(l.Roots, func(r snapshot.Root) bool { return r.Path == dir }); i >= 0 {
		r := &l.Roots[i]
		if i > 0 && strings.HasPrefix(r.Prefix, outside+"/") { // a link of the home leads to a directory that was named as well
			r.Prefix, r.Target = prefix, target
		}
		return nil
	}
	unique := name
	for n := 2; slices.ContainsFunc(l.Roots, func(r snapshot.Root) bool { return r.Name == unique }); n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	if _, err := os.ReadDir(dir); err != nil {
		return hint.Add(fmt.Errorf("read %s: %w", prefix, err), "run eddy as the node's user"+ownerOf(dir))
	}
	l.Roots = append(l.Roots, snapshot.Root{Name: unique, Path: dir, Prefix: prefix, Target: target})
	return nil
}

// checkPrefixes refuses a layout in which two directories would stand at one
// place of the archive.
func (l *Layout) checkPrefixes() error {
	seen := map[string]string{}
	for _, r := range l.Roots {
		if other, ok := seen[r.Prefix]; ok {
			return hint.Add(fmt.Errorf("%s and %s would both be stored as %q", other, r.Path, r.Prefix), "give the roots other names")
		}
		seen[r.Prefix] = r.Path
	}
	return nil
}

// root returns the root with that name.
func (l *Layout) root(name string) snapshot.Root {
	i := slices.IndexFunc(l.Roots, func(r snapshot.Root) bool { return r.Name == name })
	return l.Roots[i] // a name that is not there is a bug of this package
}

// readTOML reads a configuration file; one that is not there leaves v as it is.
func readTOML(file string, v any) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return nil
	}
	if err != nil {
		return hint.Add(fmt.Errorf("read the node's configuration: %w", err), "run eddy as the node's user"+ownerOf(file))
	}
	if _, err := toml.Decode(string(b), v); err != nil {
		return hint.Add(fmt.Errorf("read %s: %w", file, err), "the node itself would not start with this file; correct it")
	}
	return nil
}
