package nodeconfig

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Read reads a configuration file.
func Read(file string) (string, error) {
	if err := plainFile(file); err != nil {
		return "", err
	}
	b, err := os.ReadFile(file)
	return string(b), err
}

// plainFile refuses what cannot be replaced by a rename without surprise.
func plainFile(file string) error {
	fi, err := os.Lstat(file)
	switch {
	case err != nil:
		return err
	case fi.Mode()&os.ModeSymlink != 0:
		to, err := os.Readlink(file)
		if err != nil {
			return err
		}
		return hint.Add(fmt.Errorf("%w: %s is a symlink to %s", ErrNotEdited, file, to), "something else manages it: change it there")
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%w: %s is no file", ErrNotEdited, file)
	case fi.Size() > maxFile:
		return fmt.Errorf("%w: %s is larger than %d bytes", ErrNotEdited, file, maxFile)
	}
	return nil
}

// Replace writes the new text in place of the old one, mode and owner kept, and
// the old one beside it. It returns that file's name. At every moment the file is
// either the old or the new one; a file that is no longer old is left alone.
func Replace(file, old, text string, now time.Time) (kept string, err error) {
	if err := plainFile(file); err != nil {
		return "", err
	}
	fi, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	there, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(there, []byte(old)) {
		return "", hint.Add(fmt.Errorf("%w: somebody else has changed %s meanwhile", ErrNotEdited, file), "look at it, and try again")
	}
	kept = Kept(file, now)
	if _, err := os.Lstat(kept); !errors.Is(err, os.ErrNotExist) {
		return "", errors.Join(fmt.Errorf("%w: %s is there already", ErrNotEdited, kept), err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{kept, there}, {file, []byte(text)}} {
		if err := fsx.WriteFileLike(f.name, f.data, fi); err != nil {
			return "", hint.Add(fmt.Errorf("%w: %w", ErrNotEdited, err), "run it as root, or as the file's owner")
		}
	}
	return kept, nil
}

// Kept is what Replace calls the old file.
func Kept(file string, now time.Time) string {
	return file + ".before-eddy-" + now.UTC().Format("20060102T150405Z")
}
