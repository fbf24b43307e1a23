package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// SwapName is the file in the StageDir of a home whose presence says that its data
// is being exchanged: nothing must start the node.
const SwapName = "swap.json"

// What the directories of a swap are called, in the StageDir of each root.
const (
	ComingPrefix = "restore-" // data that is to come, extracted and verified there
	BeforePrefix = "before-"  // data that was there before a swap
)

// The steps of a swap. Each is durable before what it names begins.
const (
	SwapStopping = "stopping" // nothing was moved; the node may run still
	SwapMoving   = "moving"   // it goes forward: what comes is verified, and lies beside
	SwapBack     = "back"     // it goes back
)

const swapFormat = 1

// ErrTornSwap is in the chain of ReadSwap's error where a swap is under way, and
// neither of its two journals can be read.
var ErrTornSwap = errors.New("the journal of a swap is torn")

// Swap is the journalled exchange of a replica's data for what lies beside it, by
// renames inside its roots. Whoever finds its journal goes on with it: Forward and
// Back may be stopped between any two effects and begun again.
type Swap struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`   // what goes lies in .eddy/before-ID of each root
	From      string    `json:"from"` // what comes lies in .eddy/FROM of each root
	What      string    `json:"what"` // comes, for messages
	Step      string    `json:"step"`
	BootID    string    `json:"boot_id"`
	Begun     time.Time `json:"begun"`
	NoStart   bool      `json:"no_start,omitempty"` // the node is to stay down at the end
	Roots     []Root    `json:"roots"`              // the home first
	Moves     []Move    `json:"moves,omitempty"`    // what goes before what comes
	// Words are for whoever ends the swap, of the replica's kind.
	Words json.RawMessage `json:"words,omitempty"`

	FS fsx.FS `json:"-"` // makes the changes
}

// Move is one name that is renamed as a whole.
type Move struct {
	Root string   `json:"root"`
	Rel  diskName `json:"rel"`  // below the root, and below the directory it goes to or comes from
	Goes bool     `json:"goes"` // away; else it comes
}

// diskName is a name as the filesystem has it, of any bytes.
type diskName string

// MarshalJSON writes bytes that are no text in base64.
func (n diskName) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(string(n))
	var back string
	if err == nil && json.Unmarshal(b, &back) == nil && back == string(n) {
		return b, nil
	}
	return json.Marshal(map[string][]byte{"b64": []byte(n)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *diskName) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*n = diskName(s)
		return nil
	}
	var raw struct {
		B64 []byte `json:"b64"`
	}
	err := json.Unmarshal(b, &raw)
	*n = diskName(raw.B64)
	return err
}

// SwapFile is the journal of a swap of home.
func SwapFile(home string) string { return filepath.Join(home, StageDir, SwapName) }

// twin is the second copy of a journal, written first.
func twin(file string) string { return file + "~" }

// ReadSwap reads the journal of the swap that is under way in a home; nil where
// there is none. It changes nothing; what the Swap changes goes through fsys.
func ReadSwap(fsys fsx.FS, home string) (*Swap, error) {
	file := SwapFile(home)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal of a swap: %w", err)
	}
	s, err := parseSwap(b, home)
	if errors.Is(err, ErrTornSwap) {
		if b, rerr := os.ReadFile(twin(file)); rerr == nil {
			if t, terr := parseSwap(b, home); !errors.Is(terr, ErrTornSwap) {
				s, err = t, terr
			}
		}
	}
	switch {
	case errors.Is(err, ErrTornSwap):
		return nil, hint.Add(err, "look into "+filepath.Dir(file)+": what was there lies in "+BeforePrefix+"*, what comes in "+ComingPrefix+"*; the node stays down until "+file+" is gone")
	case err != nil:
		return nil, err
	}
	s.FS = fsys
	return s, nil
}

// parseSwap reads a journal, and believes no name in it that leads out of a root.
func parseSwap(b []byte, home string) (*Swap, error) {
	s := new(Swap)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTornSwap, err)
	}
	switch {
	case s.MinReader > swapFormat:
		return nil, hint.Add(fmt.Errorf("a swap was begun by a newer eddy (min_reader %d)", s.MinReader), "finish it with that eddy")
	case s.Format == 0 || len(s.Roots) == 0 || s.Roots[0].Path != home:
		return nil, fmt.Errorf("%w: it is not of %s", ErrTornSwap, home)
	case !filepath.IsLocal(s.ID) || filepath.Base(s.ID) != s.ID || !filepath.IsLocal(s.From) || filepath.Base(s.From) != s.From:
		return nil, fmt.Errorf("%w: impossible names", ErrTornSwap)
	case s.Step != SwapStopping && s.Step != SwapMoving && s.Step != SwapBack:
		return nil, fmt.Errorf("%w: step %.20q", ErrTornSwap, s.Step)
	}
	for _, m := range s.Moves {
		if _, ok := s.root(m.Root); !ok || !filepath.IsLocal(string(m.Rel)) || m.Rel == "." {
			return nil, fmt.Errorf("%w: it moves %.100q of root %.40q", ErrTornSwap, m.Rel, m.Root)
		}
	}
	return s, nil
}

func (s *Swap) root(name string) (string, bool) {
	for _, r := range s.Roots {
		if r.Name == name {
			return r.Path, true
		}
	}
	return "", false
}

// Begin makes it durable that a swap is under way: from now on nothing starts the
// node. The fields but Format and Step are the caller's.
func (s *Swap) Begin() error {
	if old, err := ReadSwap(s.FS, s.Roots[0].Path); old != nil || err != nil {
		return errors.Join(fmt.Errorf("%s is there already", SwapFile(s.Roots[0].Path)), err)
	}
	var err error
	if s.BootID, err = fsx.BootID(); err != nil {
		return err
	}
	s.Format, s.MinReader = swapFormat, swapFormat
	if err := s.enter(SwapStopping); err != nil {
		return errors.Join(err, s.End())
	}
	return nil
}

func (s *Swap) enter(step string) error {
	s.Step = step
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	file := SwapFile(s.Roots[0].Path)
	for _, f := range []string{twin(file), file} {
		if err := s.FS.WriteFileAtomic(f, append(b, '\n'), 0o600); err != nil {
			return fmt.Errorf("journal of the swap: %w", err)
		}
	}
	return nil
}

// SweepSwap removes what is left of a swap whose journal is gone: the end of it
// was cut short. It needs the workdir's lock.
func SweepSwap(fsys fsx.FS, home string) error {
	file := SwapFile(home)
	if _, err := os.Lstat(file); err == nil {
		return nil
	}
	err := fsys.SweepTemp(file)
	if _, lerr := os.Lstat(twin(file)); lerr == nil {
		err = errors.Join(err, fsys.Remove(twin(file)))
	}
	return errors.Join(err, fsys.SweepTemp(twin(file)))
}

// End ends a swap that has gone forward, or back, or has not moved anything: the
// node may be started again. The copy goes last: alone it means nothing.
func (s *Swap) End() error {
	file := SwapFile(s.Roots[0].Path)
	// What killed writes left goes first: nobody looks for it once the journal is gone.
	if err := errors.Join(s.FS.SweepTemp(file), s.FS.SweepTemp(twin(file))); err != nil {
		return fmt.Errorf("end the swap: %w", err)
	}
	for _, f := range []string{file, twin(file)} {
		err := s.FS.Remove(f)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = s.FS.SyncDir(filepath.Dir(f))
		}
		if err != nil {
			return fmt.Errorf("end the swap: %w", err)
		}
	}
	return nil
}
