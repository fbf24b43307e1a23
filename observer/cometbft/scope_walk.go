package cometbft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/snapshot"
)

// searchDepth is how far below a directory at the top of a home databases are
// looked for when nothing names that directory.
const searchDepth = 3

// walker finds the directories of a backup. One walk lists names and directories
// only; files are handled when their directory is captured.
type walker struct {
	l *Layout
	// discover adds the roots it comes upon (mounts, symlinks that lead away).
	// Without it such a thing is an error: it came after the stage was made.
	discover bool
	// live means that the node runs: names that vanish are normal.
	live bool

	dirs      []directory
	databases []Database
	left      []leftOut
}

// directory is one that the backup holds.
type directory struct {
	root, rel string
	engine    Engine
	head      string // of a consensus log
	// only, where not nil, are the names to take; nil takes all that is not denied.
	only []string
	// part is for a directory that is there for what lies below it, or must exist
	// but stay empty.
	part bool
}

type leftOut struct{ root, rel, why string }

func (w *walker) leave(root, rel, why string) {
	if why != "" {
		w.left = append(w.left, leftOut{root, rel, why})
	}
}

func (w *walker) leftOut() []snapshot.LeftOut {
	var out []snapshot.LeftOut
	for _, l := range w.left {
		out = append(out, snapshot.LeftOut{Name: path.Join(w.l.root(l.root).Prefix, l.rel), Reason: l.why})
	}
	slices.SortFunc(out, func(a, b snapshot.LeftOut) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (w *walker) walk(ctx context.Context) error {
	for i := 0; i < len(w.l.Roots); i++ { // discovery appends
		r := w.l.Roots[i]
		var err error
		if i == 0 {
			err = w.top(ctx, r, ".")
		} else {
			err = w.whole(ctx, r, ".", fsID{})
		}
		if err != nil {
			return err
		}
	}
	slices.SortFunc(w.databases, func(a, b Database) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// top walks the top of a home, or of the CometBFT home in it, where only what is
// known to be data is taken: it may be somebody's login directory.
func (w *walker) top(ctx context.Context, r snapshot.Root, rel string) error {
	dir := filepath.Join(r.Path, rel)
	id, err := fsIDOf(dir)
	if err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return hint.Add(fmt.Errorf("walk the home: %w", err), "run eddy as the node's user"+ownerOf(dir))
	}
	only := []string{}
	for _, e := range names {
		name, at := e.Name(), filepath.Join(rel, e.Name())
		full := filepath.Join(dir, name)
		isDir, link, err := w.kind(e, full)
		if err != nil {
			return err
		}
		if why, denied := w.l.scope.denied(dir, path.Join(r.Prefix, rel), name, isDir); denied {
			w.leave(r.Name, at, why)
			continue
		}
		if isDir && !link && w.l.scope.bases[full] {
			if err := w.top(ctx, r, at); err != nil {
				return err
			}
			continue
		}
		included, below := w.l.scope.included(at)
		take := included || w.l.scope.take[full] || w.l.scope.named(name)
		if why, denied := deniedAtTop(name); denied && !take && !below && !w.l.scope.takenBelow(full) {
			w.leave(r.Name, at, why)
			continue
		}
		switch {
		case isSpecial(e.Type()):
			w.leave(r.Name, at, whySpecial)
		case !isDir:
			if !take && !link {
				if take, err = w.bolt(r, at); err != nil {
					return err
				}
			}
			if !take {
				w.leave(r.Name, at, whyFile)
				continue
			}
			if link {
				if err := w.link(r, at); err != nil {
					return err
				}
			}
			only = append(only, name)
		default:
			found, err := w.search(ctx, r, at, id, take, link, searchDepth+1)
			if err != nil {
				return err
			}
			if found && link && !w.isRoot(path.Join(r.Prefix, at)) {
				only = append(only, name) // a symlink to what is taken anyway
			}
			if !found {
				w.leave(r.Name, at, whyDir)
			}
		}
	}
	w.dirs = append(w.dirs, directory{root: r.Name, rel: rel, only: only})
	return nil
}

// kind tells whether a name is a directory, or a symlink to one.
func (w *walker) kind(e fs.DirEntry, full string) (isDir, link bool, err error) {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.IsDir(), false, nil
	}
	fi, err := os.Stat(full)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, errNotDir) {
			return false, true, nil // it leads nowhere that we could follow
		}
		return false, true, err
	}
	return fi.IsDir(), true, nil
}

// search takes a directory at or below the top of a home: whole where it is
// named or is a database itself, else the databases below it. depth counts the
// levels that are looked at, this one included.
func (w *walker) search(ctx context.Context, r snapshot.Root, rel string, parent fsID, take, link bool, depth int) (found bool, err error) {
	full := filepath.Join(r.Path, rel)
	if !take {
		kind, err := engine.Detect(full)
		if err != nil {
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
				return false, nil // not the node's: the node could not read it either
			}
			return false, err
		}
		take = kind != Unknown
	}
	if take && link {
		return true, w.link(r, rel)
	}
	if take {
		return true, w.descend(ctx, r, rel, parent)
	}
	if _, below := w.l.scope.included(rel); link || depth == 1 && !below && !w.l.scope.takenBelow(full) {
		return false, nil
	}
	names, err := os.ReadDir(full)
	if err != nil {
		return false, err
	}
	only := []string{}
	for _, e := range names {
		at, p := filepath.Join(rel, e.Name()), filepath.Join(full, e.Name())
		isDir, link, err := w.kind(e, p)
		if err != nil {
			return false, err
		}
		if why, denied := w.l.scope.denied(full, path.Join(r.Prefix, rel), e.Name(), isDir); denied {
			w.leave(r.Name, at, why)
			continue
		}
		included, _ := w.l.scope.included(at)
		take := included || w.l.scope.take[p]
		if !isDir {
			if take && link {
				if err := w.link(r, at); err != nil {
					return false, err
				}
			}
			if take && !isSpecial(e.Type()) {
				only, found = append(only, e.Name()), true
			}
			continue
		}
		if e.Name()[0] == '.' && !take {
			continue
		}
		ok, err := w.search(ctx, r, at, parent, take, link, max(depth-1, 1))
		if err != nil {
			return false, err
		}
		if ok && link && !w.isRoot(path.Join(r.Prefix, at)) {
			only = append(only, e.Name())
		}
		found = found || ok
	}
	if found {
		w.dirs = append(w.dirs, directory{root: r.Name, rel: rel, only: only})
	}
	return found, nil
}

// descend walks a directory whole, unless it is on another filesystem or mount:
// nothing can be linked from there to the stage of this root, so it is a root of
// its own.
func (w *walker) descend(ctx context.Context, r snapshot.Root, rel string, parent fsID) error {
	full := filepath.Join(r.Path, rel)
	if slices.ContainsFunc(w.l.Roots, func(o snapshot.Root) bool { return o.Path == full }) {
		return nil // it is walked as a root
	}
	id, err := fsIDOf(full)
	if err != nil {
		return w.vanished(err)
	}
	if id != parent {
		return w.newRoot(path.Join(r.Prefix, rel), full, "")
	}
	return w.whole(ctx, r, rel, id)
}

// whole takes a directory with all that is not denied.
func (w *walker) whole(ctx context.Context, r snapshot.Root, rel string, id fsID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir := filepath.Join(r.Path, rel)
	if id == (fsID{}) {
		var err error
		if id, err = fsIDOf(dir); err != nil {
			return err
		}
	}
	if w.l.scope.snapshots[dir] && !w.l.KeepSnapshots {
		w.leave(r.Name, filepath.Join(rel, "*"), whySnapshots)
		w.dirs = append(w.dirs, directory{root: r.Name, rel: rel, part: true})
		return nil
	}
	var subs []string
	var m engine.Marks
	err := engine.EachName(dir, func(e fs.DirEntry) error {
		name, at := e.Name(), filepath.Join(rel, e.Name())
		if why, denied := w.l.scope.denied(dir, path.Join(r.Prefix, rel), name, e.IsDir()); denied {
			w.leave(r.Name, at, why)
			return nil
		}
		switch {
		case e.IsDir():
			subs = append(subs, name)
			return nil
		case isSpecial(e.Type()):
			w.leave(r.Name, at, whySpecial)
			return nil
		case e.Type()&fs.ModeSymlink != 0:
			m.See(name)
			return w.link(r, at)
		}
		m.See(name)
		if strings.HasSuffix(name, ".db") {
			_, err := w.bolt(r, at)
			return err
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = hint.Add(err, "run eddy as the node's user"+ownerOf(dir))
		}
		return w.vanished(err)
	}
	d := directory{root: r.Name, rel: rel, engine: m.Engine()}
	if head, ok := w.l.scope.wal[dir]; ok && d.engine == Unknown {
		d.engine, d.head = WAL, head
	}
	w.dirs = append(w.dirs, d)
	if d.engine != Unknown {
		w.databases = append(w.databases, Database{Name: path.Join(r.Prefix, rel), Path: dir, Engine: d.engine})
	}
	slices.Sort(subs)
	for _, s := range subs {
		if err := w.descend(ctx, r, filepath.Join(rel, s), id); err != nil {
			return err
		}
	}
	return nil
}

// bolt notes a file that is a bolt database.
func (w *walker) bolt(r snapshot.Root, rel string) (bool, error) {
	full := filepath.Join(r.Path, rel)
	ok, err := engine.IsBolt(full)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return false, nil // whoever captures it says so
		}
		return false, w.vanished(err)
	}
	if ok {
		w.databases = append(w.databases, Database{Name: path.Join(r.Prefix, rel), Path: full, Engine: Bolt})
	}
	return ok, nil
}

// link decides about a symlink that is to be taken. One that leads to what is
// taken anyway, or nowhere, stays a symlink. One that leads to another directory
// makes that a root, stored under the link's name. One that leads to another
// file would be an archive without that file's content, and is refused.
func (w *walker) link(r snapshot.Root, rel string) error {
	full := filepath.Join(r.Path, rel)
	name := path.Join(r.Prefix, rel)
	to, err := filepath.EvalSymlinks(full)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return nil
	}
	if err != nil {
		return hint.Add(fmt.Errorf("follow the symlink %s: %w", full, err), "run eddy as the node's user"+ownerOf(full))
	}
	if w.isRoot(name) || w.covered(to) {
		return nil
	}
	fi, err := os.Stat(to)
	if err != nil {
		return w.vanished(err)
	}
	if !fi.IsDir() {
		return hint.Add(fmt.Errorf("%s is a symlink to %s, which no root holds", full, to),
			"put the file in its place, or name its directory under roots")
	}
	target, err := os.Readlink(full)
	if err != nil {
		return w.vanished(err)
	}
	return w.newRoot(name, to, target)
}

func (w *walker) newRoot(prefix, dir, target string) error {
	if !w.discover {
		return hint.Add(fmt.Errorf("%s (%s) has become a mount or a symlink since the backup began", prefix, dir), "run the backup again")
	}
	return w.l.addRoot(strings.ReplaceAll(prefix, "/", "-"), dir, prefix, target)
}

// isRoot tells whether a name of the archive is the place of a root.
func (w *walker) isRoot(name string) bool {
	return slices.ContainsFunc(w.l.Roots[1:], func(r snapshot.Root) bool { return r.Prefix == name })
}

// covered tells whether a resolved path is part of the backup anyway: in another
// root, or in what is taken of the home.
func (w *walker) covered(p string) bool {
	for _, r := range w.l.Roots[1:] {
		if _, ok := relBelow(r.Path, p); ok {
			return true
		}
	}
	if _, ok := relBelow(w.l.Home, p); !ok {
		return false
	}
	for dir := range w.l.scope.take {
		if _, ok := relBelow(dir, p); ok {
			return true
		}
	}
	rel, _ := relBelow(w.l.Home, p)
	first, _, _ := strings.Cut(rel, "/")
	ok, _ := w.l.scope.included(first)
	return ok || w.l.scope.named(first)
}

// vanished forgives what a running node removes, and says what it means when a
// held one does.
func (w *walker) vanished(err error) error {
	gone := errors.Is(err, fs.ErrNotExist)
	switch {
	case gone && w.live:
		return nil
	case errors.Is(err, ErrMoving):
		return err
	case gone, errors.Is(err, snapshot.ErrChanged):
		return hint.Add(fmt.Errorf("%w: %w", ErrMoving, err), "something else writes to the home: check that replica.control stops the node that uses it")
	default:
		return err
	}
}

// fsID tells filesystems and mounts apart: links work only where both agree.
// Subvolumes of one btrfs mount differ in the device alone, bind mounts of one
// filesystem in the mount alone.
type fsID struct{ dev, mount uint64 }

func fsIDOf(dir string) (fsID, error) {
	fi, err := os.Lstat(dir)
	if err != nil {
		return fsID{}, err
	}
	m, err := fsx.MountID(dir)
	if err != nil {
		return fsID{}, err
	}
	return fsID{fi.Sys().(*syscall.Stat_t).Dev, m}, nil
}
