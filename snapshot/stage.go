package snapshot

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// StageDir is the directory in every root in which stages lie. Nothing in it is
// ever staged. The stage's own records lie in a directory of this name inside
// the first root's stage, where for that reason no staged file can stand.
const StageDir = ".eddy"

// Stage is the directory, one on the mount of each root, in which the files of a
// held replica are gathered and from which the archive is made. Below ROOT/.eddy/ID
// the names mirror the root's.
//
// It is filled by Prelink while the replica runs and by Link, Copy, Dir and
// Symlink while it stands still, all from many goroutines where that helps; every
// name is taken once. Then it is sealed, and from there on only read.
type Stage struct {
	fs      fsx.FS
	id      string
	roots   []Root
	copyAll bool

	mu        sync.Mutex
	prelinked map[string]*prelinks // by directory of the stage
	seed      maphash.Seed         // of their marks
	batch     []Entry              // taken and not yet spooled
	runs      []string             // sorted batches on disk
	left      []LeftOut
	stats     StageStats
	digest    string // "" until sealed
}

// StageStats counts what a capture did, files and bytes by treatment.
type StageStats struct {
	Dirs          int64 `json:"dirs"`
	Symlinks      int64 `json:"symlinks"`
	Linked        int64 `json:"linked"`
	Cloned        int64 `json:"cloned"`
	Copied        int64 `json:"copied"`
	LinkedBytes   int64 `json:"linked_bytes"`
	ClonedBytes   int64 `json:"cloned_bytes"`
	CopiedBytes   int64 `json:"copied_bytes"`   // sizes of the copied files
	CopyRead      int64 `json:"copy_read"`      // bytes that were read to copy them: without holes
	PrelinkedKept int64 `json:"prelinked_kept"` // of Linked: made before the hold,
	LinkedLate    int64 `json:"linked_late"`    // and during it
}

// CreateStage makes an empty stage: ROOT/.eddy/ID in every root. It refuses a
// root whose .eddy is not on the root's own mount, because links fail there.
func CreateStage(fsys fsx.FS, id string, roots []Root) (*Stage, error) {
	if err := checkStage(id, roots); err != nil {
		return nil, err
	}
	s := &Stage{fs: fsys, id: id, roots: slices.Clone(roots), prelinked: map[string]*prelinks{}, seed: maphash.MakeSeed()}
	for i, r := range s.roots {
		dir := filepath.Join(r.Path, StageDir)
		if err := fsys.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, errors.Join(cannotMake(err, r.Path, r.Path), s.removeFirst(i))
		}
		if err := sameMount(r.Path, dir); err != nil {
			return nil, errors.Join(err, s.removeFirst(i))
		}
		if err := fsys.Mkdir(s.dir(r), 0o700); err != nil {
			return nil, errors.Join(cannotMake(err, r.Path, dir), s.removeFirst(i))
		}
		if err := sameMount(r.Path, s.dir(r)); err != nil {
			return nil, errors.Join(err, s.removeFirst(i+1))
		}
	}
	if err := fsys.Mkdir(s.record(""), 0o700); err != nil {
		return nil, errors.Join(cannotMake(err, s.roots[0].Path, s.dir(s.roots[0])), s.Remove())
	}
	return s, nil
}

func checkStage(id string, roots []Root) error {
	if id == "" || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("make the stage: %q is no id", id)
	}
	if len(roots) == 0 {
		return errors.New("make the stage: no roots")
	}
	names := map[string]bool{}
	for _, r := range roots {
		if names[r.Name] {
			return fmt.Errorf("make the stage: two roots are called %q", r.Name)
		}
		names[r.Name] = true
		if !filepath.IsAbs(r.Path) {
			return fmt.Errorf("make the stage: root %s is not absolute", r.Path)
		}
		// Records of roots are JSON, which holds no other bytes. Names inside a root
		// may be any bytes.
		if !utf8.ValidString(r.Path + r.Prefix + r.Target) {
			return hint.Add(fmt.Errorf("make the stage: the path of root %q is not UTF-8", r.Path), "rename the directory, or mount it at another path")
		}
	}
	return nil
}

// cannotMake says what to do where a root, or the stages' directory in it, takes no
// directory.
func cannotMake(err error, root, where string) error {
	advice := "run eddy as the node's user" + whose(root) + ": it needs to write to " + where
	uid, known := owner(root)
	theirs, also := owner(where)
	switch {
	case errors.Is(err, fs.ErrPermission) && known && also && uid != theirs: // made by an eddy of somebody else
		advice = "as root: " + hint.Command("chown", "-R", fmt.Sprint(uid), where) + ", and run eddy as that user, whose the node's files are"
	case errors.Is(err, unix.EROFS):
		advice = "the filesystem is mounted read-only; eddy links files inside it, so it must be able to write to " + where
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		advice = "make room on the filesystem of " + where
	case errors.Is(err, fs.ErrExist):
		advice = "a backup's id is used once"
	}
	return hint.Add(fmt.Errorf("make the stage: %w", err), advice)
}

func sameMount(root, dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	rst, err := os.Lstat(root)
	if err != nil {
		return err
	}
	a, err := fsx.MountID(root)
	if err != nil {
		return err
	}
	b, err := fsx.MountID(dir)
	if err != nil {
		return err
	}
	if a != b || !st.IsDir() || st.Sys().(*syscall.Stat_t).Dev != rst.Sys().(*syscall.Stat_t).Dev {
		return hint.Add(fmt.Errorf("the stage %s is on another mount than %s, so nothing can be linked into it", dir, root),
			removeStageDir(st, dir)+": eddy makes a plain directory there")
	}
	return nil
}

// removeStageDir is the command that makes room for a plain directory. Nothing is
// lost: what is in dir are stages.
func removeStageDir(st fs.FileInfo, dir string) string {
	if st.IsDir() { // on another mount, so one is mounted on it
		return "as root: " + hint.Command("umount", dir)
	}
	return hint.Command("rm", dir)
}

// owner is the user to whom a path belongs.
func owner(path string) (uid uint32, known bool) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return st.Sys().(*syscall.Stat_t).Uid, true
}

// whose names the owner for a hint; "" where that cannot be told.
func whose(path string) string {
	if uid, ok := owner(path); ok {
		return fmt.Sprintf(" (uid %d)", uid)
	}
	return ""
}

// dir is the stage's directory on the mount of a root.
func (s *Stage) dir(r Root) string { return filepath.Join(r.Path, StageDir, s.id) }

// record is the path of one of the stage's own records.
func (s *Stage) record(name string) string {
	return filepath.Join(s.dir(s.roots[0]), StageDir, name)
}

func (s *Stage) root(name string) (Root, error) {
	i := slices.IndexFunc(s.roots, func(r Root) bool { return r.Name == name })
	if i < 0 {
		return Root{}, fmt.Errorf("stage: no root %q", name)
	}
	return s.roots[i], nil
}

// ID is the backup's id, and the name of the stage's directories.
func (s *Stage) ID() string { return s.id }

// Roots are the roots of the stage.
func (s *Stage) Roots() []Root { return slices.Clone(s.roots) }

// Tree is what a sealed stage has of one root, as files that nobody may change.
type Tree struct {
	Name string // where it stands in the archive; "" for the home
	Dir  string
}

// Trees are where a sealed stage's files lie, a directory for each root. They go
// as Drop takes them.
func (s *Stage) Trees() []Tree {
	var out []Tree
	for _, r := range s.roots {
		out = append(out, Tree{r.Prefix, s.dir(r)})
	}
	return out
}

// Place is where a directory of the archive lies in a sealed stage, whether there
// is one or not. Nobody may change what is there.
func (s *Stage) Place(name string) string {
	at, best := "", -1
	for _, t := range s.Trees() {
		rel, inside := strings.CutPrefix(name, t.Name+"/")
		switch {
		case t.Name == "":
			rel, inside = name, true
		case name == t.Name:
			rel, inside = "", true
		}
		if inside && len(t.Name) > best {
			at, best = filepath.Join(t.Dir, filepath.FromSlash(rel)), len(t.Name)
		}
	}
	return at
}

// Digest is the sha256 of a sealed stage's listing, in hex; "" before.
func (s *Stage) Digest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.digest
}

// Stats tells what the capture did.
func (s *Stage) Stats() StageStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// LeftOut lists what was seen and not taken.
func (s *Stage) LeftOut() []LeftOut {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.left)
}

// CopyAll makes the stage clone or copy what it is asked to link. It is for who
// accepts a long hold where links cannot be made, and is called before anything
// is taken.
func (s *Stage) CopyAll() { s.copyAll = true }

// ProbeLinks links one file of each root into the stage and removes the link
// again: mount and right (protected_hardlinks) are tried, not guessed, before
// anything is stopped.
func (s *Stage) ProbeLinks() error {
	for _, r := range s.roots {
		src, own, err := s.probe(r)
		if err != nil {
			return fmt.Errorf("probe whether %s can be linked: %w", r.Path, err)
		}
		dst := s.dir(r) + ".probe-link"
		err = linkError(s.fs.Link(src, dst), r.Path)
		if err == nil {
			err = s.fs.Remove(dst)
		}
		if own {
			err = errors.Join(err, s.fs.Remove(src))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TryRoot finds out whether a stage of one root can be made, and files linked into
// it, by doing so. It leaves nothing behind; what a kill leaves goes with
// SweepStages, since id is one of a backup that is never made.
func TryRoot(fsys fsx.FS, id string, r Root) (err error) {
	dir := filepath.Join(r.Path, StageDir)
	if _, serr := os.Lstat(dir); errors.Is(serr, fs.ErrNotExist) {
		// Where a backup began meanwhile it is not empty, and stays.
		defer func() { _ = fsys.Remove(dir) }()
	}
	s, err := CreateStage(fsys, id, []Root{r})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	return s.ProbeLinks()
}

// probe chooses the file for a trial link: one that belongs to whom the root
// belongs, because that is whose the data is and a stray file of somebody else
// would give a false alarm; else a file that is made for it (own).
func (s *Stage) probe(r Root) (file string, own bool, err error) {
	st, err := os.Stat(r.Path)
	if err != nil {
		return "", false, err
	}
	look := 4096 // names; a root that shows no file by then is judged by our own
	file, err = fileOf(r.Path, st.Sys().(*syscall.Stat_t).Uid, &look)
	if err != nil || file != "" {
		return file, false, err
	}
	file = s.dir(r) + ".probe"
	f, err := s.fs.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", false, err
	}
	return file, true, f.Close()
}

// fileOf finds a regular file of a user below dir, "" where it finds none.
func fileOf(dir string, uid uint32, look *int) (string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer d.Close()
	var subs []string
	for *look > 0 {
		names, err := d.ReadDir(min(*look, 256))
		*look -= len(names)
		for _, e := range names {
			p := filepath.Join(dir, e.Name())
			if e.IsDir() && e.Name() != StageDir {
				subs = append(subs, p)
			}
			if !e.Type().IsRegular() {
				continue
			}
			if st, err := os.Lstat(p); err == nil && st.Sys().(*syscall.Stat_t).Uid == uid {
				return p, nil
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	for _, sub := range subs {
		if p, err := fileOf(sub, uid, look); err != nil || p != "" {
			return p, err
		}
	}
	return "", nil
}

// linkError says what to do about a link that failed.
func linkError(err error, root string) error {
	if err == nil {
		return nil
	}
	advice := ""
	switch {
	case errors.Is(err, unix.EXDEV):
		advice = "stage and data must lie on one mount: let " + filepath.Join(root, StageDir) + " be a plain directory, and name mounts below the data under roots"
	case errors.Is(err, fs.ErrPermission):
		advice = "run eddy as the user who owns the files" + whose(root) + ": only he may link them (fs.protected_hardlinks)"
	case errors.Is(err, unix.EMLINK):
		advice = "too many links to one file: remove old stages: " + hint.Command("ls", filepath.Join(root, StageDir))
	case errors.Is(err, unix.EOPNOTSUPP):
		advice = "this filesystem has no hard links: set `stage.fallback: copy` and expect longer holds"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		advice = "make room on the filesystem of " + root
	}
	err = fmt.Errorf("files of %s cannot be linked: %w", root, err)
	if advice == "" {
		return err
	}
	return hint.Add(err, advice)
}

// Remove deletes the stage and what was made beside it. One that is gone is no
// error. A removal that is cut short leaves nothing that opens as a sealed stage.
func (s *Stage) Remove() error { return s.removeFirst(len(s.roots)) }

func (s *Stage) removeFirst(n int) error {
	var errs []error
	for _, r := range s.roots[:n] {
		errs = append(errs, removeStage(s.fs, r, func(name string) bool { return name == s.id || strings.HasPrefix(name, s.id+".") }))
	}
	return errors.Join(errs...)
}

// SweepStages deletes all stages of the roots but the one with id keep. Only
// directories that look like a backup's id are touched: .eddy holds other things
// as well.
func SweepStages(fsys fsx.FS, roots []Root, keep string) error {
	var errs []error
	for _, r := range roots {
		errs = append(errs, removeStage(fsys, r, func(name string) bool { return name != keep && looksLikeID(name) }))
	}
	return errors.Join(errs...)
}

func removeStage(fsys fsx.FS, r Root, which func(name string) bool) error {
	dir := filepath.Join(r.Path, StageDir)
	if st, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return nil // a symlink is not ours to follow
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if !which(n.Name()) {
			continue
		}
		p := filepath.Join(dir, n.Name())
		if err := fsys.Remove(filepath.Join(p, StageDir, sealName)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, err)
		}
		errs = append(errs, fsys.RemoveAll(p))
	}
	return errors.Join(errs...)
}

// looksLikeID knows a backup's id by its time: 20261120T235500Z-...
func looksLikeID(s string) bool {
	if len(s) < 17 || s[16] != '-' {
		return false
	}
	_, err := time.Parse("20060102T150405Z", s[:16])
	return err == nil
}
