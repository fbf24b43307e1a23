package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
)

// Class says what a file is for, and so who may put it back.
type Class string

// The classes. Those that sign are restored by nobody who has not looked first
// whether the key signs elsewhere.
const (
	Config       Class = "config"        // of the node: config.toml, genesis.json, ...
	NodeKey      Class = "node key"      // who it is to its peers
	ValidatorKey Class = "validator key" // signs blocks; in old files with its state
	SignState    Class = "sign state"    // what that key has signed last
	Service      Class = "service"       // what runs it: unit, drop-ins, compose file, /etc/eddy
	Extra        Class = "extra"         // what the operator has named
)

// Signs tells the classes of which a wrong restore costs a validator its stake.
func (c Class) Signs() bool { return c == ValidatorKey || c == SignState }

func (c Class) known() bool {
	switch c {
	case Config, NodeKey, ValidatorKey, SignState, Service, Extra:
		return true
	}
	return false
}

// Where files stand in the tar: those of the home below homeDir, all others below
// rootDir by their absolute path.
const (
	homeDir = "home/"
	rootDir = "root/"
	// ContentsName is the last member: the list of all others.
	ContentsName = "EDDY-BUNDLE.json"
)

// Bounds of what is made and what is read.
const (
	// MaxSealed is how large a bundle may be, in bytes, sealed.
	MaxSealed = 64 << 20
	// maxPlain bounds what one decodes to, so that nothing small fills a disk.
	maxPlain    = 1 << 30
	maxFiles    = 10_000
	maxContents = 8 << 20
)

const (
	format    = 1
	minReader = 1
)

// ErrNewer: a newer eddy made it, in a form that this one does not know.
var ErrNewer = errors.New("it was made by a newer eddy")

// Entry is one file of a bundle.
type Entry struct {
	Name   string    `json:"name"` // in the tar: home/config/config.toml, root/etc/eddy/eddy.yaml
	Path   string    `json:"path"` // where it was
	Class  Class     `json:"class"`
	Size   int64     `json:"size"`
	Mode   string    `json:"mode"` // octal, the nine bits: 0600
	UID    int       `json:"uid"`
	GID    int       `json:"gid"`
	User   string    `json:"user,omitempty"`
	Group  string    `json:"group,omitempty"`
	MTime  time.Time `json:"mtime"`
	SHA256 string    `json:"sha256"` // hex
}

// Perm is Mode as a number.
func (e Entry) Perm() fs.FileMode {
	var perm fs.FileMode
	for _, c := range e.Mode { // checked to be octal
		perm = perm<<3 | fs.FileMode(c-'0')
	}
	return perm
}

// Contents is the list inside a bundle. It repeats whose bundle it is, so that one
// cannot be passed off as another's.
type Contents struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"`              // its name in the store
	NodeID    string    `json:"node_id,omitempty"` // of its node key, hex
	Host      string    `json:"host"`
	Preset    string    `json:"preset"`
	Home      string    `json:"home"`
	Made      time.Time `json:"made"`
	Eddy      string    `json:"eddy"`
	Files     []Entry   `json:"files"`
	LeftOut   []LeftOut `json:"left_out,omitempty"`
	// Cosmovisor is the layout of its directory, nil where there is none.
	Cosmovisor *Cosmovisor `json:"cosmovisor,omitempty"`
}

// LeftOut is a file that was seen and not taken.
type LeftOut struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
	// Expected tells what the operator has asked for, or has not, himself: nothing to
	// warn of.
	Expected bool `json:"expected,omitempty"`
}

// Cosmovisor is what its directory holds: the programs themselves are in no bundle.
type Cosmovisor struct {
	Dir string `json:"dir"`
	// Current is where the link "current" leads, relative to Dir: upgrades/v18.
	Current  string    `json:"current"`
	Programs []Program `json:"programs"`
}

// Program is one of cosmovisor's.
type Program struct {
	Dir     string `json:"dir"` // genesis, upgrades/v18
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Module  string `json:"module,omitempty"` // of a Go program: its path and version
	Commit  string `json:"commit,omitempty"` // and the commit that it was built from
	Version string `json:"go,omitempty"`     // by this Go
}

// Held tells whether a class is among the files.
func (c *Contents) Held(class Class) bool {
	for _, f := range c.Files {
		if f.Class == class {
			return true
		}
	}
	return false
}

var (
	modeRule = regexp.MustCompile(`^0[0-7]{3}$`)
	hashRule = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func corrupt(form string, args ...any) error {
	return fmt.Errorf("%w: "+form, append([]any{snapshot.ErrCorrupt}, args...)...)
}

// DecodeContents reads the list of a bundle. Its error has ErrNewer in its chain
// where a newer reader is needed, snapshot.ErrCorrupt where nobody can have written
// it. It quotes nothing but names.
func DecodeContents(b []byte) (*Contents, error) {
	if len(b) > maxContents {
		return nil, corrupt("the bundle's list has %d bytes", len(b))
	}
	var head struct {
		Format    int `json:"format"`
		MinReader int `json:"min_reader"`
	}
	if err := json.Unmarshal(b, &head); err != nil || head.Format < 1 || head.MinReader < 1 {
		return nil, corrupt("the bundle's list has no format")
	}
	if head.MinReader > format {
		return nil, hint.Add(fmt.Errorf("the bundle: %w: it needs a reader of format %d, this one knows %d", ErrNewer, head.MinReader, format), "use a newer eddy, or age, zstd and tar")
	}
	var c Contents
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, corrupt("the bundle's list is no such list")
	}
	seen := map[string]bool{}
	for _, f := range c.Files {
		switch {
		case !validName(f.Name):
			return nil, corrupt("the bundle lists %.80q, which leads elsewhere", f.Name)
		case seen[f.Name]:
			return nil, corrupt("the bundle lists %.80q twice", f.Name)
		case !f.Class.known():
			return nil, corrupt("the bundle lists %.80q as %.20q", f.Name, f.Class)
		case f.Size < 0 || !modeRule.MatchString(f.Mode) || !hashRule.MatchString(f.SHA256):
			return nil, corrupt("the bundle lists an impossible %.80q", f.Name)
		}
		seen[f.Name] = true
	}
	if len(c.Files) > maxFiles {
		return nil, corrupt("the bundle lists %d files", len(c.Files))
	}
	return &c, nil
}

// validName accepts what a file of a bundle may be called.
func validName(name string) bool {
	return fs.ValidPath(name) && !strings.ContainsAny(name, "\x00\\") &&
		(strings.HasPrefix(name, homeDir) || strings.HasPrefix(name, rootDir))
}

// Name is what a file is called in a bundle, by its absolute path and that of the
// home.
func Name(home, file string) string {
	if rel, ok := strings.CutPrefix(file, strings.TrimSuffix(home, "/")+"/"); ok {
		return homeDir + rel
	}
	return strings.TrimPrefix(path.Join(rootDir, file), "/")
}

// Place is where a file of a bundle belongs: below home, or below root, which is "/"
// on the machine itself.
func Place(name, home, root string) string {
	if rel, ok := strings.CutPrefix(name, homeDir); ok {
		return path.Join(home, rel)
	}
	return path.Join(root, strings.TrimPrefix(name, rootDir))
}

// InHome tells whether a file of a bundle belongs into the home.
func InHome(name string) bool { return strings.HasPrefix(name, homeDir) }
