//go:build pebbledb

package engine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/record"

	"github.com/cockroachdb/pebble"
)

// CheckLog sees that the logs of a database can be read to their ends. A
// goleveldb's are when it is opened; pebble takes damage in the newest for the end
// that a crash has left, and what stood behind it is lost in silence (open.go,
// replayWAL).
func CheckLog(e Engine, dir string) error {
	if e != Pebble {
		return nil
	}
	var logs []string
	err := EachName(dir, func(e fs.DirEntry) error {
		if n, ok := strings.CutSuffix(e.Name(), ".log"); ok && allDigits(n) {
			logs = append(logs, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(logs)
	for _, n := range logs {
		if err := checkLog(filepath.Join(dir, n+".log"), n); err != nil {
			return fmt.Errorf("%s.log: %w", n, err)
		}
	}
	return nil
}

func checkLog(file, number string) error {
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := record.NewReader(f, pebble.FileNum(n))
	for {
		one, err := r.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, one)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, record.ErrZeroedChunk) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
