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
)

// Scratch is a directory for what is needed only while something is proven.
type Scratch struct {
	FS fsx.FS
	// Dir may be used by others as well; it is made where it is not there. What is
	// made in it begins with eddy-scratch-.
	Dir string
}

const scratchPrefix = "eddy-scratch-"

// scratchLock in a scratch's own directory is held for as long as somebody needs it:
// one that is free was left by a process that was killed.
const scratchLock = "lock"

// Take makes an empty directory, and removes those that were left in Dir by
// processes of this user that are no more. done removes it again; it must be called.
func (s Scratch) Take() (dir string, done func() error, err error) {
	for range 100 {
		dir, done, err = s.take()
		if !errors.Is(err, fsx.ErrLocked) {
			break
		}
	}
	if err != nil {
		return "", nil, hint.Add(fmt.Errorf("make a scratch directory: %w", err), "`--scratch DIR` names another one; the one above it must be there")
	}
	return dir, done, nil
}

// take is Take; ErrLocked: a sweep of another process was faster.
func (s Scratch) take() (dir string, done func() error, err error) {
	err = s.FS.Mkdir(s.Dir, 0o700)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, err
	}
	if err := s.sweep(); err != nil {
		return "", nil, fmt.Errorf("remove what was left there: %w", err)
	}
	own, err := s.FS.MkdirTemp(s.Dir, scratchPrefix+"*")
	if err != nil {
		if made || errors.Is(err, fs.ErrNotExist) { // one that ended has removed Dir
			err = errors.Join(fsx.ErrLocked, err)
		}
		return "", nil, err
	}
	lock, err := fsx.TryLock(filepath.Join(own, scratchLock))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, fsx.ErrLocked
	}
	if err != nil {
		return "", nil, err
	}
	if !holds(own, lock) {
		return "", nil, errors.Join(fsx.ErrLocked, lock.Close())
	}
	done = func() error {
		err := errors.Join(s.FS.RemoveAll(own), lock.Close())
		if made {
			rerr := s.FS.Rmdir(s.Dir)
			if !errors.Is(rerr, syscall.ENOTEMPTY) && !errors.Is(rerr, fs.ErrNotExist) { // others are in it
				err = errors.Join(err, rerr)
			}
		}
		if err != nil {
			return fmt.Errorf("remove the scratch directory: %w", err)
		}
		return nil
	}
	dir = filepath.Join(own, "data")
	if err := s.FS.Mkdir(dir, 0o700); err != nil {
		return "", nil, errors.Join(err, done())
	}
	return dir, done, nil
}

// holds tells whether a lock is still the one that is found there.
func holds(own string, lock *fsx.Lock) bool {
	have, err := lock.File().Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(filepath.Join(own, scratchLock))
	return err == nil && os.SameFile(have, there)
}

// sweep removes what nobody holds. What another user made there is not looked at.
func (s Scratch) sweep() error {
	all, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range all {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), scratchPrefix) {
			continue
		}
		own := filepath.Join(s.Dir, e.Name())
		st, err := os.Lstat(own)
		if err != nil || !st.IsDir() || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		lock, err := fsx.TryLock(filepath.Join(own, scratchLock))
		if errors.Is(err, fsx.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(s.FS.RemoveAll(own), lock.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
