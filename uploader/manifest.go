package uploader

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

const (
	manifestFormat    = 1
	manifestMinReader = 1
	maxManifest       = 4 << 20 // bytes; a longer one is no manifest
)

// Manifest says what a backup is and how far it is proven. It is immutable and
// written last: with it, and every volume listed with its size, a backup is
// READY. Unknown fields are ignored; min_reader is for breaking changes.
type Manifest struct {
	Format      int       `json:"format"`
	MinReader   int       `json:"min_reader"`
	ID          string    `json:"id"`
	Label       string    `json:"label"`
	Class       string    `json:"class"` // "normal"
	Cluster     string    `json:"cluster"`
	Incarnation string    `json:"incarnation"`
	Node        Node      `json:"node"`
	System      string    `json:"system"`
	Versions    Versions  `json:"versions"`
	Position    Position  `json:"position"`
	Opened      string    `json:"opened"`   // "none": no database was opened and checked
	Attested    string    `json:"attested"` // "not possible": nobody was asked
	Stored      string    `json:"stored"`   // how the stored bytes were checked: checksum, sample, read-back
	Engines     []string  `json:"engines,omitempty"`
	Pruning     string    `json:"pruning,omitempty"`
	Indexer     string    `json:"indexer,omitempty"`
	Sizes       Sizes     `json:"sizes"`
	Times       Times     `json:"times"`
	HeldSeconds float64   `json:"held_seconds"`
	Volumes     []Volume  `json:"volumes"`
	Sums        *SumsRef  `json:"sums,omitempty"`
	Roots       []RootRef `json:"roots,omitempty"`
	LeftOut     []LeftOut `json:"left_out,omitempty"`
	Created     time.Time `json:"created"`
}

// Node is who was backed up.
type Node struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Host string `json:"host,omitempty"`
	Role string `json:"role,omitempty"`
}

// Versions are those of all that made the data and the archive.
type Versions struct {
	System  string `json:"system"`
	App     string `json:"app,omitempty"`
	Eddy    string `json:"eddy"`
	Encoder string `json:"encoder"`
	Go      string `json:"go"`
}

// Position is the point of the cluster's history that the backup holds.
type Position struct {
	Kind        string    `json:"kind"`
	Index       uint64    `json:"index"`
	Epoch       uint64    `json:"epoch,omitempty"`
	Hash        string    `json:"hash,omitempty"` // hex
	HashKind    string    `json:"hash_kind,omitempty"`
	Time        time.Time `json:"time"`
	Consistency string    `json:"consistency"`
}

// Sizes in bytes: of the source, read from it, sent, copied inside the bucket,
// and stored.
type Sizes struct {
	Source int64 `json:"source"`
	Read   int64 `json:"read"`
	Sent   int64 `json:"sent"`
	Copied int64 `json:"copied"`
	Stored int64 `json:"stored"`
	Files  int64 `json:"files"`
}

// Times of the phases.
type Times struct {
	Begun    time.Time `json:"begun"`
	Held     time.Time `json:"held"`
	Released time.Time `json:"released"`
	Uploaded time.Time `json:"uploaded"`
}

// Volume is one object of the archive.
type Volume struct {
	Name        string `json:"name"`
	Size        int64  `json:"size"`
	ETag        string `json:"etag"`
	CRC64NVME   string `json:"crc64nvme"`
	IndexSHA256 string `json:"index_sha256"`
	Frames      int64  `json:"frames"`
	Checked     string `json:"checked"`
}

// SumsRef names the list of all files' hashes.
type SumsRef struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// RootRef is a root of the replica and where it stands in the archive.
type RootRef struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix,omitempty"`
	Path   string `json:"path"`
}

// LeftOut is a name that was seen and not taken.
type LeftOut struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// DecodeManifest reads a manifest and refuses what could not have been written.
func DecodeManifest(b []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if m.MinReader > manifestFormat {
		return nil, hint.Add(fmt.Errorf("manifest of %s needs a reader of format %d", m.ID, m.MinReader), "use a newer eddy")
	}
	bad := func(what string) error { return fmt.Errorf("%w: manifest %q: %s", ErrDamaged, m.ID, what) }
	switch {
	case m.Format < 1 || m.MinReader < 1:
		return nil, bad("no format")
	case !validID(m.ID):
		return nil, bad("impossible id")
	case CheckName(m.Cluster) != nil:
		return nil, bad("impossible cluster name")
	case len(m.Volumes) == 0:
		return nil, bad("no volumes")
	}
	for i, v := range m.Volumes {
		if v.Name != VolumeName(i) || v.Size <= 0 {
			return nil, bad("impossible volume " + v.Name)
		}
	}
	return &m, nil
}

// Names in the bucket.
const (
	SumsName     = "SHA256SUMS.zst"
	manifestName = "manifest.json"
)

// VolumeName is the name of an archive's nth volume, from 0.
func VolumeName(n int) string { return fmt.Sprintf("vol-%04d.tar.zst", n) }

var (
	labelRule = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,25}$`)
	nameRule  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)
	idRule    = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-([A-Za-z0-9_.-]{3,25})-[0-9a-f]{6}$`)
)

// CheckLabel accepts 3 to 25 of [A-Za-z0-9_.-], not beginning with two dots.
func CheckLabel(s string) error {
	if !labelRule.MatchString(s) || strings.HasPrefix(s, "..") {
		return fmt.Errorf("label %q is not one", s)
	}
	return nil
}

// CheckName accepts cluster and node names: 1 to 63 of [A-Za-z0-9_.-], not "."
// or "..".
func CheckName(s string) error {
	if !nameRule.MatchString(s) || s == "." || s == ".." {
		return errors.New("a name is 1 to 63 of [A-Za-z0-9_.-], not . or ..")
	}
	return nil
}

func validID(s string) bool { return idRule.MatchString(s) }

// labelOf is the label inside an id, timeOf its time.
func labelOf(id string) string {
	if m := idRule.FindStringSubmatch(id); m != nil {
		return m[1]
	}
	return ""
}

func timeOf(id string) time.Time {
	if len(id) < 16 {
		return time.Time{}
	}
	t, err := time.Parse("20060102T150405Z", id[:16])
	if err != nil {
		return time.Time{}
	}
	return t
}
