// Package secret keeps secrets where they belong: it reads the files that hold one,
// and makes an environment for child processes that has none of eddy's.
//
// What a secret is for it does not know, and it keeps none: a file may be exchanged
// while a daemon runs. No error of it has a byte of a file's content.
package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// most bounds a file with a secret, in bytes. Linux takes no variable of more than
// 128 KiB.
const most = 64 << 10

// ErrExposed: others than its owner may read the file, which was not read.
var ErrExposed = errors.New("may be read by others")

// Read reads a file that only its owner may read, without the line's end. what is
// the thing that a file with a zero byte, or of more than 64 KiB, is not.
func Read(file, what string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", hint.Add(err, "eddy's user must be able to read it")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", hint.Add(fmt.Errorf("%s %w (%04o)", file, ErrExposed, st.Mode().Perm()), hint.Command("chmod", "600", file))
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return "", err
	}
	if len(b) > most || bytes.IndexByte(b, 0) >= 0 {
		return "", fmt.Errorf("%s is no %s: it is larger than %d bytes, or has a zero in it", file, what, most)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// Environ is eddy's environment without what is only for eddy: the credentials of
// its bucket, and its own configuration.
func Environ() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "AWS_") || strings.HasPrefix(kv, "EDDY_")
	})
}
