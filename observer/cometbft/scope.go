package cometbft

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/snapshot"
)

// errNotDir is what lstat says of a path that goes through a file.
const errNotDir = unix.ENOTDIR

// Why things are left out. They stand in the manifest.
const (
	whyKey       = "key or sign state: belongs in the key bundle"
	whyConfig    = "configuration: belongs in the key bundle"
	whyAddresses = "addresses of peers"
	whyLock      = "lock file"
	whyCache     = "cache: made again by the node"
	whyTrash     = "being deleted, or temporary"
	whyCopy      = "looks like an earlier copy"
	whyBinaries  = "binaries: the manifest records versions"
	whySpecial   = "socket, device or pipe"
	whySnapshots = "state-sync snapshots: made again by the node"
	whyDot       = "dot-directory or dot-file of the home"
	whyFile      = "file at the top of the home: add it with include"
	whyDir       = "no database in it, and no configuration names it: add it with include"
	whySecret    = "looks like a key"
)

// scope is what a walk takes and leaves by path. Paths are canonical: symlinks
// resolved in all but the last component.
type scope struct {
	home      string
	take      map[string]bool   // directories that configuration names: whole
	deny      map[string]string // path to reason
	wal       map[string]string // directory of a consensus log to its head's name
	snapshots map[string]bool   // state-sync snapshots
	bases     map[string]bool   // CometBFT homes: their config is denied, their tops are not taken whole
	include   []string
	loom      bool
}

func newScope(home string, bases []base, include []string) scope {
	s := scope{
		home: home, take: map[string]bool{}, deny: map[string]string{}, wal: map[string]string{},
		snapshots: map[string]bool{}, bases: map[string]bool{}, include: include,
	}
	for _, b := range bases {
		s.bases[b.dir] = true
		s.loom = s.loom || b.rel == loomBase
		s.deny[filepath.Join(b.dir, "config")] = whyConfig
		for _, p := range []string{b.key, b.signState, b.nodeKey} {
			if p != "" {
				s.deny[canonical(p)] = whyKey
			}
		}
		s.deny[canonical(b.addrBook)] = whyAddresses
		s.deny[canonical(b.genesis)] = whyConfig
		s.wal[resolved(filepath.Dir(b.wal))] = filepath.Base(b.wal)
		s.snapshots[filepath.Join(resolved(b.data), "snapshots")] = true
	}
	return s
}

// denied tells why a name is never taken, wherever it stands. dir is the
// canonical path of the directory in which it stands, at that directory's name in
// the archive.
func (s *scope) denied(dir, at, name string, isDir bool) (why string, denied bool) {
	if why, ok := s.deny[filepath.Join(dir, name)]; ok {
		return why, true
	}
	lower := strings.ToLower(name)
	switch {
	case name == snapshot.StageDir:
		return "", true // our own, not worth a word
	case strings.HasPrefix(lower, "keyring-"), strings.Contains(lower, "mnemonic"),
		strings.Contains(lower, "priv_validator"), strings.Contains(lower, "node_key"),
		strings.Contains(lower, "bls_key"):
		return whyKey, true
	case strings.HasPrefix(lower, "addrbook"):
		return whyAddresses, true
	case name == "LOCK", strings.HasSuffix(name, ".lock"):
		return whyLock, true
	case strings.HasSuffix(name, ".trash"), strings.HasSuffix(name, "-tmp"):
		return whyTrash, true
	case strings.HasPrefix(name, "data-backup-"):
		return whyCopy, true
	case isDir && name == "cache" && inWasm(at):
		return whyCache, true
	}
	return "", false
}

// inWasm tells whether a directory is a wasm directory or lies in one, at
// whatever depth and under whatever chain's spelling ("wasm", "ibc_08-wasm").
func inWasm(at string) bool {
	return slices.ContainsFunc(strings.Split(at, "/"), func(c string) bool { return strings.Contains(c, "wasm") })
}

// deniedAtTop tells why a name at the top of a home, or of a CometBFT home in
// it, is never taken although it may hold databases.
func deniedAtTop(name string) (why string, denied bool) {
	switch {
	case name[0] == '.':
		return whyDot, true
	case name == "keys", name == "keystore", name == "transients":
		return whyKey, true
	case name == "cosmovisor":
		return whyBinaries, true
	case strings.HasSuffix(name, ".bak"), strings.HasSuffix(name, ".old"), strings.Contains(name, ".before"):
		return whyCopy, true
	}
	return "", false
}

// named tells whether the families' table names something that stands at the top
// of a home and is taken whole.
func (s *scope) named(name string) bool {
	switch name {
	case "data", "memiavl.db", "versiondb", "committer.db", "evmindexer.db", "state_store", "evm_ss", "receipts", "pebbledb":
		return true
	case "app.db", "evm.db", "receipts_db", "events.db", "block_index.db", "fnConsensus.db", "contracts":
		return s.loom
	}
	return strings.Contains(name, "wasm")
}

// included tells whether the operator added a path of the home; below tells
// whether something below it may have been.
func (s *scope) included(rel string) (included, below bool) {
	for _, p := range s.include {
		p = path.Clean(p)
		if ok, _ := path.Match(p, rel); ok { // the pattern was checked when it was given
			return true, false
		}
		if n := strings.Count(rel, "/") + 1; n <= strings.Count(p, "/") {
			head := strings.Join(strings.Split(p, "/")[:n], "/")
			if ok, _ := path.Match(head, rel); ok {
				below = true
			}
		}
	}
	return false, below
}

// takenBelow tells whether configuration names something below dir.
func (s *scope) takenBelow(dir string) bool {
	for p := range s.take {
		if _, ok := relBelow(dir, p); ok && p != dir {
			return true
		}
	}
	return false
}

// canonical resolves symlinks in all but the last component of a path. Where the
// directory does not exist the path stays as it is.
func canonical(p string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(p))
	if err != nil {
		return filepath.Clean(p)
	}
	return filepath.Join(dir, filepath.Base(p))
}

// resolved resolves all symlinks of a path that exists.
func resolved(p string) string {
	r, err := filepath.EvalSymlinks(p)
	if err != nil {
		return canonical(p)
	}
	return r
}

// relBelow returns p relative to dir, and whether it is dir or lies in it.
func relBelow(dir, p string) (string, bool) {
	if p == dir {
		return ".", true
	}
	if dir == "/" {
		return strings.TrimPrefix(p, "/"), true
	}
	rel, ok := strings.CutPrefix(p, dir+"/")
	return rel, ok
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// ownerOf says whose a path is, for a hint; "" where that cannot be told.
func ownerOf(p string) string {
	for ; ; p = filepath.Dir(p) {
		fi, err := os.Stat(p)
		if err == nil {
			return fmt.Sprintf(" (uid %d)", fi.Sys().(*syscall.Stat_t).Uid)
		}
		if p == filepath.Dir(p) {
			return ""
		}
	}
}

// isSpecial tells what no archive can hold.
func isSpecial(t fs.FileMode) bool {
	return t&(fs.ModeSocket|fs.ModeDevice|fs.ModeCharDevice|fs.ModeNamedPipe|fs.ModeIrregular) != 0
}
