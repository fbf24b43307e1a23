package observer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
)

// The names in the archive of a system that prints its dump.
const (
	DumpName = "dump"
	NoteName = "dump.json"
)

const (
	noteFormat = 1
	maxNote    = 4 << 20 // bytes
)

// Note is dump.json: what was known of the cluster when a dump was taken. It travels
// with the dump, encrypted as it is, for whoever restores it.
type Note struct {
	Format    int      `json:"format"`
	MinReader int      `json:"min_reader"`
	State     State    `json:"state"`    // asked before
	Position  Position `json:"position"` // of the dump, as the system said when it gave it
	// Facts are what a restore needs of the system's own settings, by names of the kind.
	Facts map[string]string `json:"facts,omitempty"`
}

// Put writes the note into a stage.
func (n Note) Put(ctx context.Context, st *snapshot.Stage) error {
	n.Format, n.MinReader = noteFormat, noteFormat
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	return st.Stream(ctx, "", NoteName, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// ReadNote reads the note of a dump that lies in dir.
func ReadNote(dir string) (n Note, err error) {
	f, err := os.Open(filepath.Join(dir, NoteName))
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err != nil {
		return n, err
	}
	return parseNote(b)
}

func parseNote(b []byte) (n Note, err error) {
	var head struct {
		MinReader int `json:"min_reader"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return n, fmt.Errorf("%w: %s: %w", ErrUnsound, NoteName, err)
	}
	if head.MinReader > noteFormat {
		return n, hint.Add(fmt.Errorf("%s was written by a newer eddy (min_reader %d)", NoteName, head.MinReader), "use a newer eddy")
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("%w: %s: %w", ErrUnsound, NoteName, err)
	}
	return n, nil
}

// RestoreTask is a dump that is to be brought back into a cluster.
type RestoreTask struct {
	Dir       string   // the dump in the plain, every hash right; nobody may change it
	Position  Position // of it
	Node      Node     // of whom it was taken
	Overwrite bool     // what lives may be replaced; else the target must be fresh
	NoStart   bool     // bring the files into place and start nothing
	// Say tells a person how far the restore is. It may be nil.
	Say func(phase, text string)
}

// Restorer is a system that a dump can be brought back into.
type Restorer interface {
	// Target says in a line what is there and would be replaced. ErrNotFit is in the
	// chain of the error where it must not be: members that are alive, a target that
	// is not fresh. Read-only.
	Target(ctx context.Context, t RestoreTask) (there string, err error)
	// Restore brings the dump back. What is there is saved first. Its steps may be
	// repeated: after an error, or a kill, the next call goes on or begins anew. next
	// is what is left to do, in order.
	Restore(ctx context.Context, t RestoreTask) (next []string, err error)
}
