package uploader

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// Answer is what became of something that a store was asked for.
type Answer string

// The answers. The zero value means that the question was not put, or that the
// credentials may not put it.
const (
	Unknown Answer = ""
	Kept    Answer = "kept"    // done, and it does what it is for
	Refused Answer = "refused" // an error: eddy must not ask
	Ignored Answer = "ignored" // no error and no effect: eddy must not rely on it
	Absent  Answer = "absent"  // of what a bucket may have: this one has not
)

// Caps is what a store can do, found by trying. The zero value is not a store.
type Caps struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	Store     string    `json:"store"` // URL
	Endpoint  string    `json:"endpoint,omitempty"`
	Class     string    `json:"storage_class,omitempty"` // with which it was tried
	Probed    time.Time `json:"probed"`

	Conditions   Answer `json:"conditional_writes"` // If-Match and If-None-Match of small objects
	SmallSums    Answer `json:"object_checksums"`   // the SDK's CRC32 of a small object
	PartSums     Answer `json:"part_checksums"`     // CRC64NVME of parts
	WholeSum     Answer `json:"volume_checksum"`    // CRC64NVME of a whole volume, told by the store
	UnequalParts Answer `json:"unequal_parts"`
	PartCopy     Answer `json:"part_copy"` // a range of one object as a part of another
	// CopySums: the store keeps the checksums of parts and volume right where a part
	// is copied. Else a volume with copied parts is stored without.
	CopySums Answer `json:"copied_part_checksums"`
	// ListUploads: Ignored where a prefix finds none and only all of the bucket can
	// be listed.
	ListUploads   Answer `json:"list_uploads"`
	DeleteMany    Answer `json:"delete_many"`
	Delete        Answer `json:"delete"` // Refused: credentials without the right, or a lock
	Tags          Answer `json:"tags"`
	Versioning    Answer `json:"versioning"`     // Kept: deleted objects stay as old versions
	ObjectLock    Answer `json:"object_lock"`    // Kept: the bucket has it
	LifecycleRead Answer `json:"lifecycle_read"` // Kept: Lifecycle is what the bucket has
	Lifecycle     []Rule `json:"lifecycle,omitempty"`

	// Left says that the probe's own objects could not be removed.
	Left bool `json:"left,omitempty"`
}

// Rule is what eddy needs to know of a lifecycle rule that is in force. Days are
// 0 where the rule does no such thing; a fixed date counts as one day.
type Rule struct {
	ID          string `json:"id"`
	Prefix      string `json:"prefix"`           // keys of the bucket, not below the store's prefix
	Tagged      bool   `json:"tagged,omitempty"` // for objects with a tag only, which eddy's have not
	ExpireDays  int    `json:"expire_days,omitempty"`
	AbortDays   int    `json:"abort_days,omitempty"`
	ArchiveDays int    `json:"archive_days,omitempty"` // to a class that must be thawed before it can be read
	OldDays     int    `json:"old_days,omitempty"`     // expiry of old versions
}

const (
	capsFormat = 3 // 2: list_uploads; 3: copied_part_checksums
	// capsKept is how long a probe is believed: stores and buckets change.
	capsKept = 30 * 24 * time.Hour
)

// isArchived tells whether objects of a class must be brought back before anything
// can be read: hours at the moment when a restore is wanted.
func isArchived(class string) bool { return class == "GLACIER" || class == "DEEP_ARCHIVE" }

// Recall steers a store by what an earlier probe of it found. ok is false where
// the file has no such thing: none, of another store, older than 30 days, of
// another eddy, or unreadable. Then the store is probed again.
func Recall(s Store, file string, now time.Time) (caps Caps, ok bool) {
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &caps) != nil {
		return Caps{}, false
	}
	age := now.Sub(caps.Probed)
	if caps.Format != capsFormat || age < 0 || age > capsKept || !s.Use(caps) {
		return Caps{}, false
	}
	return caps, true
}

// Save keeps the result of a probe in a file.
func (c Caps) Save(fsys fsx.FS, file string) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("what the store can do: %w", err)
	}
	if err := fsys.WriteFileAtomic(file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("what the store can do: %w", err)
	}
	return nil
}

// Sweeps tells whether unfinished uploads can be listed, and so swept.
func (c Caps) Sweeps() bool { return c.ListUploads == Kept || c.ListUploads == Ignored }

// Unguarded says what a store without conditional writes costs, "" where it has
// them: then of two eddys that write at the same moment both may think that they
// were first.
func (c Caps) Unguarded() string {
	switch c.Conditions {
	case Refused:
		return "the store refuses conditional writes: eddy looks before it takes the lease or moves latest, and again after"
	case Ignored:
		return "the store ignores the conditions of writes: eddy looks before it takes the lease or moves latest, and again after"
	default:
		return ""
	}
}
