package uploader

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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
	Class       string    `json:"class"`
	Cluster     string    `json:"cluster"`
	Incarnation string    `json:"incarnation"`
	Node        Node      `json:"node"`
	System      string    `json:"system"`
	Versions    Versions  `json:"versions"`
	Position    Position  `json:"position"`
	Opened      string    `json:"opened"` // how much of the dump was looked into: all, part, none
	Check       *Check    `json:"check,omitempty"`
	Attested    string    `json:"attested"` // how many witnesses agree: "n of m", "pending", "not possible"
	Attest      *Attest   `json:"attest,omitempty"`
	Stored      string    `json:"stored"` // how the stored bytes were checked: checksum, sample, read-back
	Engines     []string  `json:"engines,omitempty"`
	Pruning     string    `json:"pruning,omitempty"`
	Indexer     string    `json:"indexer,omitempty"`
	Sizes       Sizes     `json:"sizes"`
	Runs        []Worked  `json:"runs,omitempty"` // more than one where an upload was gone on with
	Times       Times     `json:"times"`
	HeldSeconds float64   `json:"held_seconds"`
	Volumes     []Volume  `json:"volumes"`
	Sums        *SumsRef  `json:"sums,omitempty"`
	Roots       []RootRef `json:"roots,omitempty"`
	LeftOut     []LeftOut `json:"left_out,omitempty"`
	LeftOutMore int64     `json:"left_out_more,omitempty"` // names beyond those in LeftOut
	Created     time.Time `json:"created"`
	// Encryption says how the volumes are encrypted; nil: they are not.
	Encryption *Encryption `json:"encryption,omitempty"`
	// Signer is the public key whose signature of these bytes is in manifest.sig.
	Signer string `json:"signer,omitempty"`
}

// Encryption is how an archive is encrypted: as one volume, whose plain form is a
// volume as any other.
type Encryption struct {
	Scheme     string   `json:"scheme"`     // "age"
	Recipients []string `json:"recipients"` // public keys
}

// The classes of backups.
const (
	ClassNormal = "normal"
	// ClassSalvage: what one member had when the cluster could not decide any more.
	// It is never the latest, and nothing deletes it but a human.
	ClassSalvage = "salvage"
)

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
	Level   int    `json:"level,omitempty"` // of the encoder
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
	// Marks are what others can be asked about, by names of the kind.
	Marks map[string]string `json:"marks,omitempty"`
}

// Check is the evidence behind Opened: what a look into the dump has shown before
// it was sent. The kind's own words are in Grade, the layers and Proven.
type Check struct {
	Opened     string           `json:"opened"`
	Grade      string           `json:"grade,omitempty"`
	Layers     []CheckedLayer   `json:"layers,omitempty"`
	Proven     map[string]int64 `json:"proven,omitempty"`
	Notes      []string         `json:"notes,omitempty"` // what could not be proven, a line each
	Seconds    float64          `json:"seconds"`
	Peak       int64            `json:"peak_bytes,omitempty"` // memory of the process that looked
	Unfinished string           `json:"unfinished,omitempty"` // why it was given up
}

// CheckedLayer is one part of a dump that was looked into by itself.
type CheckedLayer struct {
	Name   string `json:"name"`
	Engine string `json:"engine,omitempty"`
	Opened bool   `json:"opened"`
	Said   string `json:"said,omitempty"`
}

// Attest is the evidence behind Attested.
type Attest struct {
	Trust       string        `json:"trust,omitempty"`        // what a proof must lead back to
	NotPossible string        `json:"not_possible,omitempty"` // why nobody was asked
	Witnesses   []Attestation `json:"witnesses,omitempty"`
}

// Attestation is what one witness said of the position. Hashes are in hex.
type Attestation struct {
	Witness   string    `json:"witness"` // URL without credentials
	Height    uint64    `json:"height"`
	BlockHash string    `json:"block_hash,omitempty"`
	AppHash   string    `json:"app_hash,omitempty"`
	By        string    `json:"by,omitempty"` // what told the app hash: "header" (signed), "abci_info" (not)
	Verdict   string    `json:"verdict"`      // agrees, fork, liar, laggard, pending, pruned, unreachable, other chain
	Said      string    `json:"said,omitempty"`
	When      time.Time `json:"when"`
}

// Worked is what one run did for a backup. Of a run that was killed only what the
// next one could keep is known.
type Worked struct {
	Begun time.Time `json:"begun"`
	Eddy  string    `json:"eddy"`
	Read  int64     `json:"read"` // bytes of the source
	Sent  int64     `json:"sent"` // bytes of parts, each once
	// Copied are bytes that an earlier attempt had stored, copied inside the bucket.
	Copied int64 `json:"copied,omitempty"`
}

// Sizes in bytes: of the source, read from it, sent, copied inside the bucket,
// and stored. Read, sent and copied are the sums of all runs.
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
	IndexSHA256 string `json:"index_sha256,omitempty"` // none of an encrypted one
	SHA256      string `json:"sha256,omitempty"`       // of an encrypted one's stored bytes, hex
	Frames      int64  `json:"frames"`
	Checked     string `json:"checked"`
}

// SumsRef names the list of all files' hashes.
type SumsRef struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	// SHA256 is of its stored bytes, hex: with it sha256sum alone compares every file
	// with the manifest. Older manifests have none.
	SHA256 string `json:"sha256,omitempty"`
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

// ErrNewer: a newer eddy wrote it in a form that this one does not know.
var ErrNewer = errors.New("it was written by a newer eddy")

// readable refuses a state file that needs a newer reader. It is asked before
// anything else is decoded, because nothing else may be relied on.
func readable(what string, b []byte) error {
	var head struct {
		Format    int `json:"format"`
		MinReader int `json:"min_reader"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, what, err)
	}
	if head.Format < 1 || head.MinReader < 1 {
		return fmt.Errorf("%w: %s has no format", ErrDamaged, what)
	}
	if head.MinReader > manifestFormat {
		return hint.Add(fmt.Errorf("%s: %w: it needs a reader of format %d, this one knows %d", what, ErrNewer, head.MinReader, manifestFormat), "use a newer eddy")
	}
	return nil
}

// DecodeManifest reads a manifest of at most 4 MiB. Its error has ErrNewer in its
// chain where a newer reader is needed, ErrDamaged where no eddy can have written
// it. Fields that it does not know are ignored.
func DecodeManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: a manifest has at most %d bytes, this has %d", ErrDamaged, maxManifest, len(b))
	}
	if err := readable("manifest", b); err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if what := m.wrong(); what != "" {
		return nil, fmt.Errorf("%w: manifest %.80q: %s", ErrDamaged, m.ID, what)
	}
	return &m, nil
}

// wrong says what in a manifest cannot be, "" where all of it can.
func (m *Manifest) wrong() string {
	_, label, ok := ParseID(m.ID)
	switch s := m.Sizes; {
	case !ok:
		return "impossible id"
	case m.Label != label:
		return fmt.Sprintf("label %.40q is not that of its id", m.Label)
	case CheckName(m.Cluster) != nil:
		return "impossible cluster name"
	case len(m.Volumes) == 0:
		return "no volumes"
	case min(s.Source, s.Read, s.Sent, s.Copied, s.Stored, s.Files) < 0:
		return "a size below zero"
	case m.HeldSeconds < 0:
		return "held for less than no time"
	case m.LeftOutMore < 0:
		return "fewer than none left out"
	}
	if m.Encryption != nil && (m.Encryption.Scheme != "age" || len(m.Volumes) != 1 || len(m.Volumes[0].SHA256) != 64) {
		return "impossible encryption"
	}
	for i, v := range m.Volumes {
		want := VolumeName(i)
		if m.Encryption != nil && i == 0 {
			want = SealedName
		}
		if v.Name != want || v.Size <= 0 || v.Frames < 0 {
			return fmt.Sprintf("impossible volume %.80q of %d bytes", v.Name, v.Size)
		}
	}
	if s := m.Sums; s != nil && (s.Name != SumsName || s.Size <= 0) {
		return fmt.Sprintf("impossible list of hashes %.80q", s.Name)
	}
	for _, r := range m.Roots {
		if r.Prefix != "" && !fs.ValidPath(r.Prefix) {
			return fmt.Sprintf("root %.80q stands outside of the archive", r.Prefix)
		}
	}
	return ""
}

// A manifest is read whole, so what was left out is cut to what fits: a home with
// a million strange names must not cost a backup whose bytes are all stored.
const (
	maxLeftOut      = 1000
	maxLeftOutBytes = 256 << 10
)

// trim cuts the list of what was left out and counts the rest.
func (m *Manifest) trim() {
	bytes := 0
	for i, l := range m.LeftOut {
		if bytes += len(l.Name) + len(l.Reason); i == maxLeftOut || bytes > maxLeftOutBytes {
			m.LeftOutMore += int64(len(m.LeftOut) - i)
			m.LeftOut = m.LeftOut[:i]
			return
		}
	}
}
