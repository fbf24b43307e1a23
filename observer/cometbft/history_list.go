package cometbft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
)

// rollbacksName is the file in the StageDir of a home that lists when its chain was
// taken back.
const rollbacksName = "rollbacks.json"

const rollbacksFormat = 1

// rollback is one entry of it.
type rollback struct {
	At     int64     `json:"at"`             // the height that the chain went on from
	Lost   int64     `json:"lost,omitempty"` // the last height given up; 0: it was told by a backup
	Time   time.Time `json:"time"`           // when it was done here
	Before string    `json:"before"`         // the directory in which lies what was there
}

type rollbacks struct {
	Format    int        `json:"format"`
	MinReader int        `json:"min_reader"`
	List      []rollback `json:"rollbacks"`
}

func rollbacksFile(home string) string { return filepath.Join(home, snapshot.StageDir, rollbacksName) }

// readRollbacks reads the list; a home without one was never taken back.
func readRollbacks(home string) ([]rollback, error) {
	file := rollbacksFile(home)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r rollbacks
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && r.MinReader > rollbacksFormat {
		err = fmt.Errorf("a newer eddy wrote it (min_reader %d)", r.MinReader)
	}
	if err != nil {
		return nil, hint.Add(fmt.Errorf("read which rollbacks the chain had, %s: %w", file, err), "write it as it is on another node of the chain; where there was no rollback, remove it")
	}
	return r.List, nil
}

func writeRollbacks(fsys fsx.FS, home string, list []rollback) error {
	file := rollbacksFile(home)
	if err := fsys.SweepTemp(file); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rollbacks{rollbacksFormat, rollbacksFormat, list}, "", "  ")
	if err != nil {
		return err
	}
	like, err := os.Stat(home)
	if err != nil {
		return err
	}
	return fsys.WriteFileLike(file, append(b, '\n'), secretFile{like})
}

// rollbackMark stands before each height in an incarnation.
const rollbackMark = "@"

// after is an incarnation with further rollbacks.
func after(incarnation string, list []rollback) string {
	for _, r := range list {
		incarnation += rollbackMark + strconv.FormatInt(r.At, 10)
	}
	return incarnation
}

// takenBack splits an incarnation into that of the genesis and the heights to which
// the chain was taken back. ok is false where it is none.
func takenBack(incarnation string) (genesis string, at []int64, ok bool) {
	words := strings.Split(incarnation, rollbackMark)
	for _, w := range words[1:] {
		h, err := strconv.ParseInt(w, 10, 64)
		if err != nil || h < 1 {
			return words[0], nil, false
		}
		at = append(at, h)
	}
	return words[0], at, true
}

// OfChain tells whether an incarnation is of the chain of a genesis file, whatever
// rollbacks that had.
func (g Genesis) OfChain(incarnation string) bool {
	of, _, ok := takenBack(incarnation)
	return ok && of == g.Incarnation()
}

// onHistory compares a backup's rollbacks with the home's. The backup fits where it
// had some of them and ends before the next one began to give up blocks, or where it
// had all of them and further ones, which the home then has missed.
func onHistory(home, backup []int64, height int64) error {
	n := min(len(home), len(backup))
	if !slices.Equal(home[:n], backup[:n]) {
		return fmt.Errorf("the backup is of a chain that was taken back to %s, the home's to %s", heights(backup), heights(home))
	}
	for _, at := range home[n:] {
		if height > at {
			return fmt.Errorf("the chain was taken back to height %d since: the backup, of height %d, is of blocks that were given up", at, height)
		}
	}
	return nil
}

func heights(list []int64) string {
	if len(list) == 0 {
		return "none"
	}
	words := make([]string, len(list))
	for i, h := range list {
		words[i] = strconv.FormatInt(h, 10)
	}
	return strings.Join(words, ", then ")
}

func heightsOf(list []rollback) (at []int64) {
	for _, r := range list {
		at = append(at, r.At)
	}
	return at
}
