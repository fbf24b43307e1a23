package uploader

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Names in the bucket. FORMAT.md has them all.
const (
	// SumsName is the list of all files' hashes of a backup.
	SumsName = "SHA256SUMS.zst"
	// SealedName is the one volume of an encrypted archive.
	SealedName   = "vol-0000.tar.zst.age"
	manifestName = "manifest.json"
	// signatureName is the signature of the manifest's bytes.
	signatureName = "manifest.sig"
	latestName    = "latest.json"
	textName      = "latest.txt"
	readmeName    = "README.txt"
	leaseName     = "lease.json"
)

const idTime = "20060102T150405Z"

var (
	labelRule = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,25}$`)
	nameRule  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)
	idRule    = regexp.MustCompile(`^([0-9]{8}T[0-9]{6}Z)-([A-Za-z0-9_.-]{3,25})-[0-9a-f]{6}$`)
)

// NewID makes the id of a backup: its time, its label and six random digits. The
// label must have passed CheckLabel.
func NewID(now time.Time, label string) string {
	var b [3]byte
	rand.Read(b[:])
	return now.UTC().Format(idTime) + "-" + label + "-" + hex.EncodeToString(b[:])
}

// ParseID takes an id apart. ok is false for what NewID cannot have made.
func ParseID(id string) (when time.Time, label string, ok bool) {
	m := idRule.FindStringSubmatch(id)
	if m == nil || CheckLabel(m[2]) != nil {
		return time.Time{}, "", false
	}
	when, err := time.Parse(idTime, m[1])
	if err != nil {
		return time.Time{}, "", false
	}
	return when, m[2], true
}

func validID(id string) bool {
	_, _, ok := ParseID(id)
	return ok
}

// VolumeName is the name of an archive's nth volume, from 0.
func VolumeName(n int) string { return fmt.Sprintf("vol-%04d.tar.zst", n) }

// CheckLabel accepts 3 to 25 of [A-Za-z0-9_.-], not beginning with two dots.
func CheckLabel(s string) error {
	if !labelRule.MatchString(s) || strings.HasPrefix(s, "..") {
		return hint.Add(fmt.Errorf("label %q cannot be one", s), "a label is 3 to 25 of A-Z a-z 0-9 _ . - and does not begin with two dots")
	}
	return nil
}

// CheckName accepts cluster and node names: 1 to 63 of [A-Za-z0-9_.-], not "."
// or "..".
func CheckName(s string) error {
	if !nameRule.MatchString(s) || s == "." || s == ".." {
		return hint.Add(fmt.Errorf("%q cannot be a name", s), "a name is 1 to 63 of A-Z a-z 0-9 _ . - and not one or two dots")
	}
	return nil
}

// ObjectKey is the key of an object of a backup.
func (c *Catalog) ObjectKey(id, name string) string {
	return path.Join(c.cluster, "data", id, name)
}

// splitKey is the other way: it takes what follows <cluster>/data/ apart. ok is
// false for keys that eddy has not made. name may hold slashes (grades/...).
func splitKey(rest string) (id, name string, ok bool) {
	id, name, ok = strings.Cut(rest, "/")
	return id, name, ok && name != "" && validID(id)
}

func (c *Catalog) dataPrefix() string         { return c.cluster + "/data/" }
func (c *Catalog) runsPrefix() string         { return c.cluster + "/runs/" }
func (c *Catalog) latestKey() string          { return c.cluster + "/" + latestName }
func (c *Catalog) latestSignatureKey() string { return c.cluster + "/latest.sig" }
func (c *Catalog) textKey() string            { return c.cluster + "/" + textName }
func (c *Catalog) leaseKey() string           { return c.cluster + "/" + leaseName }
func (c *Catalog) readmeKey() string          { return c.cluster + "/" + readmeName }
func (c *Catalog) runKey(id string) string    { return c.runsPrefix() + id + ".json" }
