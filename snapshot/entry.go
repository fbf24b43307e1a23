package snapshot

import (
	"errors"
	"time"
)

// ErrCorrupt is in the chain of every error that means the archive itself is
// damaged, cut short or forged, as opposed to a disk or network that failed.
var ErrCorrupt = errors.New("archive is corrupt")

// Type is the kind of a name in an archive.
type Type string

// The types of names that an archive holds. Sockets, devices and fifos are left
// out and listed.
const (
	TypeFile    Type = "file"
	TypeDir     Type = "dir"
	TypeSymlink Type = "symlink"
)

// Treatment is how a file came into the stage.
type Treatment string

// Linked files share an inode with the replica's immutable file; cloned and
// copied ones are the stage's own.
const (
	Linked Treatment = "link"
	Cloned Treatment = "clone"
	Copied Treatment = "copy"
)

// Root is one directory of the replica. A home that is one mount is one root;
// every mount below it, and every directory outside that the configuration
// names, is a root of its own with a stage directory on its own mount.
type Root struct {
	// Name is "" for the home, a unique word for any other root.
	Name string `json:"name"`
	// Path is the absolute directory on this machine, symlinks resolved.
	Path string `json:"path"`
	// Prefix is where the root's files stand in the archive, slash-separated,
	// without a trailing slash: "" for the home, "data" for a mount or a
	// symlink's target that stands at HOME/data, ".eddy-root/<name>" for a
	// directory outside the home.
	Prefix string `json:"prefix,omitempty"`
	// Target is the symlink's text where HOME/Prefix is a symlink to Path.
	Target string `json:"target,omitempty"`
}

// Entry is one name of an archive: what lstat said of the original at capture.
type Entry struct {
	Name      string    `json:"name"` // path in the archive, slash-separated, relative; raw bytes of the filesystem
	Root      string    `json:"root"` // Root.Name
	Type      Type      `json:"type"`
	Treatment Treatment `json:"treatment,omitempty"` // files only
	Size      int64     `json:"size,omitempty"`      // bytes; files only
	Mode      uint32    `json:"mode"`                // permission bits and setuid, setgid, sticky, as in st_mode & 07777
	MTime     time.Time `json:"mtime"`
	UID       int       `json:"uid"`
	GID       int       `json:"gid"`
	Link      string    `json:"link,omitempty"`   // symlink target
	Sparse    bool      `json:"sparse,omitempty"` // had holes: st_blocks*512 < st_size
	Inode     uint64    `json:"inode,omitempty"`  // of the original
}

// LeftOut is a name that was seen and not taken, and why.
type LeftOut struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}
