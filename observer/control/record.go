package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// The files of a hold, in the workdir.
const (
	recordFile    = "hold.json"  // the journal: there while a node may have to be started
	lockFile      = "hold.lock"  // flock: who has it owns the journal
	startLockFile = "start.lock" // flock: who has it runs the start command
	guardLogFile  = "guard.log"  // what the last guard said
)

const (
	recordFormat   = 1
	kindHold       = "hold"
	controlExec    = "exec"
	controlDocker  = "docker"
	controlSystemd = "systemd"
)

// ErrTorn is in the chain of ReadHold's error where a journal is there that says
// nothing: it was cut short by a crash of the machine.
var ErrTorn = errors.New("the hold journal is torn")

// Record is the hold journal. Its fields are read by every version for ever: a
// field may be added, none may change its meaning, and min_reader is only there
// to be told to people.
type Record struct {
	Format    int          `json:"format"`
	MinReader int          `json:"min_reader"`
	Kind      string       `json:"kind"`    // "hold"
	Control   string       `json:"control"` // "exec", "docker" or "systemd"; then it has
	Argv      Argv         `json:"argv,omitzero"`
	Container ContainerRef `json:"container,omitzero"`
	Unit      UnitRef      `json:"unit,omitzero"`
	BootID    string       `json:"boot_id"`
	Started   time.Time    `json:"started"`  // before the stop was asked for
	Deadline  time.Time    `json:"deadline"` // after it the guard starts the node
	StopMS    int64        `json:"stop_timeout_ms"`
	Purpose   string       `json:"purpose"` // "backup", or "restore": then only the restore may start the node
	Stage     string       `json:"stage"`
	Identity  string       `json:"identity"` // what the manager said of the run that was stopped, "" where it says nothing
	PID       int          `json:"pid"`      // of the eddy that holds, for messages only
}

// Argv are the commands of a node, each run without a shell.
type Argv struct {
	Stop   []string `json:"stop"`
	Start  []string `json:"start"`
	Status []string `json:"status"`
}

// String is the record as an operator would say it.
func (r Record) String() string {
	return fmt.Sprintf("held by process %d for a %s since %s, until %s at the latest",
		r.PID, r.Purpose, r.Started.Local().Format(time.DateTime), r.Deadline.Local().Format(time.DateTime))
}

// ReadHold reads the hold journal of a workdir, nil where none is open. It takes
// no lock, starts nothing and changes nothing: it is for verbs that only look.
func ReadHold(workdir string) (*Record, error) {
	b, err := os.ReadFile(filepath.Join(workdir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the hold journal: %w", err)
	}
	r, err := parseRecord(b)
	return &r, err
}

// parseRecord takes each known field on its own, so that a record of a later
// version is read as far as it is understood. Only what is no JSON object at all
// is ErrTorn.
func parseRecord(b []byte) (Record, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil || m == nil {
		return Record{}, fmt.Errorf("%w (%d bytes)", ErrTorn, len(b))
	}
	var r Record
	for name, dst := range map[string]any{
		"format": &r.Format, "min_reader": &r.MinReader, "kind": &r.Kind, "control": &r.Control,
		"boot_id": &r.BootID, "started": &r.Started, "deadline": &r.Deadline, "stop_timeout_ms": &r.StopMS,
		"purpose": &r.Purpose, "stage": &r.Stage, "identity": &r.Identity, "pid": &r.PID,
	} {
		_ = json.Unmarshal(m[name], dst) // absent, or of another type one day: the zero value
	}
	r.Unit = unitRefOf(m["unit"])
	var a map[string]json.RawMessage
	_ = json.Unmarshal(m["argv"], &a)
	r.Container = containerOf(m["container"])
	r.Argv = Argv{Stop: argvOf(a["stop"]), Start: argvOf(a["start"]), Status: argvOf(a["status"])}
	return r, nil
}

// containerOf is a container that can be asked for, or the zero value.
func containerOf(raw json.RawMessage) ContainerRef {
	var c ContainerRef
	if json.Unmarshal(raw, &c) != nil || !hexID(c.ID) || c.Name == "" || c.Name != printable(c.Name, maxWord) {
		return ContainerRef{}
	}
	if _, err := newEngine(c.Host); err != nil {
		return ContainerRef{}
	}
	return c
}

// unitRefOf is a unit that can be asked for, or the zero value.
func unitRefOf(raw json.RawMessage) UnitRef {
	var u UnitRef
	if json.Unmarshal(raw, &u) != nil || checkUnit(u) != nil {
		return UnitRef{}
	}
	return u
}

// argvOf is a command that can be run, or nil.
func argvOf(raw json.RawMessage) []string {
	var argv []string
	if json.Unmarshal(raw, &argv) != nil || checkArgv(argv) != nil {
		return nil
	}
	return argv
}

func checkArgv(argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return errors.New("no command")
	}
	for _, a := range argv {
		if strings.ContainsRune(a, 0) {
			return errors.New("a NUL character in a command")
		}
	}
	return nil
}

// write makes the record durable.
func (r Record) write(workdir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the hold journal: %w", err)
	}
	// Who holds the node writes it, so what lies beside it is a dead process's.
	file := filepath.Join(workdir, recordFile)
	if err := errors.Join(fsx.FS{}.SweepTemp(file), fsx.WriteFileAtomic(file, append(b, '\n'), 0o600)); err != nil {
		return fmt.Errorf("write the hold journal: %w", err)
	}
	return nil
}

// removeRecord closes the journal for good.
func removeRecord(workdir string) error {
	err := os.Remove(filepath.Join(workdir, recordFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = fsx.SyncDir(workdir)
	}
	if err != nil {
		return fmt.Errorf("close the hold journal: %w", err)
	}
	return nil
}
