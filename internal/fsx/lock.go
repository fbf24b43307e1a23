package fsx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned by TryLock when another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// Lock is an flock(2): it is held by the open file description, so it dies with
// the last process that has it open, and a child that inherits the descriptor
// keeps it after its parent was killed.
type Lock struct{ f *os.File }

// TryLock takes path exclusively without waiting and creates the file (0600)
// where there is none. The file is never removed: removing a lock file lets two
// processes hold "the" lock.
func TryLock(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	return &Lock{f: f}, nil
}

// dying is how long LockSoon waits. A process that is killed in the middle of
// starting another leaves a child behind that has all of its descriptors until it
// is the other program: 0.2 s on a machine with far too much to do (measured).
const dying = 2 * time.Second

// LockSoon is TryLock, also where the lock's last holder was killed just now: one
// that lives is waited for as long as one that may be dying.
func LockSoon(ctx context.Context, path string) (*Lock, error) {
	until := time.Now().Add(dying)
	for {
		l, err := TryLock(path)
		if !errors.Is(err, ErrLocked) || !time.Now().Before(until) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Inherited wraps a locked descriptor that this process was given by its parent.
func Inherited(f *os.File) *Lock { return &Lock{f: f} }

// File is the locked descriptor, to be passed on in exec.Cmd.ExtraFiles.
func (l *Lock) File() *os.File { return l.f }

// Unlock gives the lock up for every process that shares the descriptor. Close
// closes only this process's copy.
func (l *Lock) Unlock() error {
	err := unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
	return errors.Join(err, l.f.Close())
}

// Close closes this process's descriptor; the lock stays held while another
// process has it open.
func (l *Lock) Close() error { return l.f.Close() }
