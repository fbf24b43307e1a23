package job

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
)

// workName is the directory inside the target in which a restore works until
// every hash has been found right. It lies on the target's own mount, so that
// what is in it can be moved into place by rename.
const workName = ".eddy"

// target is a directory that a restore may fill.
type target struct {
	fs      fsx.FS
	dir     string
	work    string // where the backup is extracted
	journal string // how far that is
	sealed  string // where an encrypted archive is fetched to
	placed  string // a file that is there once all of it is right: its names are moved out
	placing bool   // placed is there
	made    bool
	lock    *fsx.Lock
}

// claimTarget makes dir where it is absent and refuses it where anything but the
// leavings of an earlier restore is in it; one that was moving its names out of the
// work directory must be of the same backup.
func claimTarget(fsys fsx.FS, dir, id string) (*target, error) {
	own := filepath.Join(dir, workName)
	t := &target{fs: fsys, dir: dir, work: filepath.Join(own, "restore"), journal: filepath.Join(own, "restore.journal"), sealed: filepath.Join(own, "restore.sealed"), placed: filepath.Join(own, "restore.placed")}
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeLike(fsys, dir); err != nil {
			return nil, hint.Add(fmt.Errorf("make the target: %w", err), "name a directory that eddy's user may create")
		}
		t.made = true
	case err != nil:
		return nil, hint.Add(fmt.Errorf("look at the target: %w", err), "the target must be a directory, absent or empty")
	}
	moving, err := os.ReadFile(t.placed)
	if err == nil && string(moving) != id+"\n" {
		return nil, hint.Add(fmt.Errorf("%s: %w (a restore of %.40q into it was not finished)", dir, ErrNotEmpty, moving), "finish that one, or empty the directory")
	}
	t.placing = err == nil
	for _, n := range names {
		if !t.placing && n.Name() != workName && n.Name() != "lost+found" {
			return nil, hint.Add(fmt.Errorf("%s: %w (it holds %s)", dir, ErrNotEmpty, n.Name()), "name an empty or absent directory; nothing was touched")
		}
	}
	if old, err := os.ReadDir(filepath.Join(dir, workName)); err == nil && !t.placing {
		for _, n := range old {
			if !strings.HasPrefix(strings.TrimPrefix(n.Name(), "."), "restore") && n.Name() != keysLock {
				return nil, hint.Add(fmt.Errorf("%s: %w (it holds %s/%s, which no restore left)", dir, ErrNotEmpty, workName, n.Name()), "this looks like a live home; name an empty or absent directory")
			}
		}
	}
	if err := fsys.MkdirAll(filepath.Join(dir, workName), 0o700); err != nil {
		return nil, err
	}
	if t.lock, err = fsx.TryLock(filepath.Join(dir, workName, "restore.lock")); err != nil {
		return nil, hint.Add(err, "another restore fills this directory")
	}
	if err := fsys.Mkdir(t.work, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, errors.Join(err, t.lock.Unlock())
	}
	return t, nil
}

// makeLike makes dir and its missing parents, owned like the nearest parent that
// exists: what root restores below gaia's home is gaia's.
func makeLike(fsys fsx.FS, dir string) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := makeLike(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(parent)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return fsys.Chown(dir, int(sys.Uid), int(sys.Gid))
}

// commit moves what was extracted into place. Everything is right by now; a run
// that is killed between two renames is finished by the next one.
func (t *target) commit(id string) error {
	if err := t.fs.WriteFileAtomic(t.placed, []byte(id+"\n"), 0o600); err != nil {
		return err
	}
	names, err := os.ReadDir(t.work)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.fs.Rename(filepath.Join(t.work, n.Name()), filepath.Join(t.dir, n.Name())); err != nil {
			return fmt.Errorf("move the restored files into place: %w", err)
		}
	}
	return t.fs.SyncDir(t.dir)
}

// done ends the restore. Until then another run of it goes on.
func (t *target) done() error { return t.fs.RemoveAll(filepath.Join(t.dir, workName)) }

// abandon ends a restore that failed. What it has fetched stays for the next one,
// but where the archive is to blame.
func (t *target) abandon(cause error) error {
	names, err := os.ReadDir(t.work)
	if err == nil && len(names) > 0 && !errors.Is(cause, snapshot.ErrCorrupt) {
		return nil
	}
	err = t.fs.RemoveAll(filepath.Join(t.dir, workName))
	if t.made {
		err = errors.Join(err, t.fs.Remove(t.dir))
	}
	return err
}
