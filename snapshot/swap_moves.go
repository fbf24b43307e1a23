package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Part is what a swap does with a name of a replica.
type Part int

// The parts. A name that no archive brings, and that the replica's kind does not
// know for data, is Foreign: it stays, unless the archive has that very name.
const (
	Foreign  Part = iota
	Kept          // a key, a sign state, configuration, another root: never touched, never brought
	Replaced      // with all that is below it
	Partly        // a directory with both below it
)

// Cover tells what to do with a name, slash-separated below a root; it is also
// asked of names that are not there.
type Cover func(root Root, rel string, isDir bool) Part

// Plan decides what is moved, by what lies there now, and makes that durable: from
// now on the swap goes forward. The node must be down.
func (s *Swap) Plan(cover Cover) error {
	var goes, comes []Move
	for _, r := range s.Roots {
		p := planner{root: r, coming: filepath.Join(r.Path, StageDir, s.From), cover: cover}
		if err := p.dir("."); err != nil {
			return fmt.Errorf("plan the swap: %w", err)
		}
		goes, comes = append(goes, p.goes...), append(comes, p.comes...)
	}
	if len(comes) == 0 {
		return errors.New("plan the swap: there is nothing that could come")
	}
	s.Moves = append(goes, comes...)
	return s.enter(SwapMoving)
}

// planner compares one root with what comes to it.
type planner struct {
	root        Root
	coming      string
	cover       Cover
	goes, comes []Move
}

func listing(dir string) (map[string]fs.DirEntry, error) {
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out := make(map[string]fs.DirEntry, len(names))
	for _, n := range names {
		out[n.Name()] = n
	}
	return out, nil
}

func (p *planner) dir(rel string) error {
	live, err := listing(filepath.Join(p.root.Path, rel))
	if err != nil {
		return err
	}
	coming, err := listing(filepath.Join(p.coming, rel))
	if err != nil {
		return err
	}
	names := make([]string, 0, len(live)+len(coming))
	for n := range live {
		names = append(names, n)
	}
	for n := range coming {
		if live[n] == nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if rel == "." && name == StageDir {
			continue
		}
		if err := p.name(filepath.Join(rel, name), live[name], coming[name]); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) name(rel string, live, coming fs.DirEntry) error {
	isDir := live != nil && live.IsDir() || live == nil && coming.IsDir()
	part := p.cover(p.root, filepath.ToSlash(rel), isDir)
	both := live != nil && coming != nil
	switch {
	case part == Kept, part == Foreign && coming == nil:
		return nil
	case part == Partly && live != nil && live.IsDir():
		if coming != nil && !coming.IsDir() {
			return hint.Add(fmt.Errorf("%s holds what must stay, and would be replaced by a file", filepath.Join(p.root.Path, rel)), "look into it; nothing was moved")
		}
		return p.dir(rel)
	case part == Foreign && both && live.IsDir() && coming.IsDir():
		return p.dir(rel)
	}
	if live != nil {
		p.goes = append(p.goes, Move{Root: p.root.Name, Rel: diskName(rel), Goes: true})
	}
	if coming != nil {
		p.comes = append(p.comes, Move{Root: p.root.Name, Rel: diskName(rel)})
	}
	return nil
}

// ends are the two places of a move: before a swap, and after it.
func (s *Swap) ends(m Move) (from, to string) {
	root, _ := s.root(m.Root) // Plan and parseSwap see to it
	live := filepath.Join(root, string(m.Rel))
	if m.Goes {
		return live, filepath.Join(root, StageDir, BeforePrefix+s.ID, string(m.Rel))
	}
	return filepath.Join(root, StageDir, s.From, string(m.Rel)), live
}

// Forward moves what is there away, then what comes into its place. Between the
// two, and at the end, all is durable. On an error nothing is lost: it may be
// tried again, or Back.
func (s *Swap) Forward() error {
	if s.Step != SwapMoving {
		return fmt.Errorf("a swap that is %s does not go forward", s.Step)
	}
	for _, m := range s.Moves {
		from, to := s.ends(m)
		if before, after, err := where(from, to); err != nil {
			return err
		} else if !m.Goes && !before && !after {
			return fmt.Errorf("swap: %s is gone, and not in its place", from)
		}
	}
	for _, goes := range []bool{true, false} {
		for _, m := range s.Moves {
			if m.Goes != goes {
				continue
			}
			from, to := s.ends(m)
			before, after, err := where(from, to)
			if err != nil {
				return err
			}
			// One that has arrived is done: its old place may have a new one by now.
			if !before || m.Goes && after {
				continue
			}
			if err := s.rename(m, from, to); err != nil {
				return err
			}
		}
		if err := s.sync(); err != nil {
			return err
		}
	}
	return nil
}

// Back brings everything to where it was before, in the opposite order, and leaves
// nothing kept, which the next undo would take for what it is to bring back. Once
// it has begun the swap never goes forward again.
func (s *Swap) Back() error {
	if s.Step != SwapBack {
		if err := s.enter(SwapBack); err != nil {
			return err
		}
	}
	for _, goes := range []bool{false, true} {
		for _, m := range slices.Backward(s.Moves) {
			if m.Goes != goes {
				continue
			}
			from, to := s.ends(m)
			before, after, err := where(from, to)
			if err == nil && !m.Goes && after && !before {
				after, err = s.arrived(m)
			}
			if err != nil {
				return err
			}
			if before || !after {
				continue
			}
			if err := s.rename(m, to, from); err != nil {
				return err
			}
		}
		if err := s.sync(); err != nil {
			return err
		}
	}
	for _, r := range s.Roots {
		if err := s.rmdirs(filepath.Join(r.Path, StageDir, BeforePrefix+s.ID)); err != nil {
			return fmt.Errorf("swap: %w", err)
		}
	}
	return nil
}

// rmdirs removes a tree of nothing but directories. Where something else is in it,
// that and the directories above it stay.
func (s *Swap) rmdirs(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if !n.IsDir() {
			continue
		}
		if err := s.rmdirs(filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	if err := s.FS.Rmdir(dir); !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// arrived tells whether what stands in the place of m, which comes, is m, and not
// still what should go.
func (s *Swap) arrived(m Move) (bool, error) {
	for _, o := range s.Moves {
		if o.Goes && o.Root == m.Root && o.Rel == m.Rel {
			_, away := s.ends(o)
			return there(away)
		}
	}
	return true, nil
}

// where tells which places of a move have something in them.
func where(from, to string) (before, after bool, err error) {
	if before, err = there(from); err == nil {
		after, err = there(to)
	}
	return before, after, err
}

func there(p string) (bool, error) {
	_, err := os.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// rename moves a name to where nothing is.
func (s *Swap) rename(m Move, from, to string) error {
	root, _ := s.root(m.Root)
	if in, err := there(to); in || err != nil {
		return errors.Join(fmt.Errorf("swap: %s is in the way", to), err)
	}
	err := s.mkdirLike(root, filepath.Dir(to), filepath.Dir(from))
	if err == nil {
		err = s.FS.Rename(from, to)
	}
	if err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	return nil
}

// mkdirLike makes dir and its parents below root, with the owner and the mode of
// like and its parents.
func (s *Swap) mkdirLike(root, dir, like string) error {
	if in, err := there(dir); in || err != nil || dir == root {
		return err
	}
	if err := s.mkdirLike(root, filepath.Dir(dir), filepath.Dir(like)); err != nil {
		return err
	}
	st, err := os.Stat(like)
	if err != nil {
		return err
	}
	if err := s.FS.Mkdir(dir, st.Mode().Perm()|0o700); err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	if os.Geteuid() == 0 {
		err = s.FS.Chown(dir, int(sys.Uid), int(sys.Gid))
	}
	return err
}

// sync makes the renames of every root durable.
func (s *Swap) sync() error {
	for _, r := range s.Roots {
		if err := s.FS.SyncFS(r.Path); err != nil {
			return err
		}
	}
	return nil
}
