package zookeeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// The directory of a server's state in its data and in its log directory, and what
// is in it.
const (
	stateDir   = "version-2"
	snapPrefix = "snapshot."
	logPrefix  = "log."
	myID       = "myid"
)

// epochs are two small files beside the snapshots: the newest epoch that the server
// has promised to follow, and the one that it is in.
var epochs = []string{"acceptedEpoch", "currentEpoch"}

// zxidName is a file that is called by a transaction.
type zxidName struct {
	name string
	zxid uint64
}

// named lists the files of a directory that a prefix and a zxid name, oldest first.
// A directory that is not there has none.
func named(dir, prefix string) (out []zxidName, err error) {
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if errors.Is(err, fs.ErrPermission) {
			err = hint.Add(err, "run eddy as the user whose ZooKeeper's files are")
		}
		return nil, err
	}
	for _, e := range all {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		number, form, _ := strings.Cut(rest, ".")
		zxid, err := strconv.ParseUint(number, 16, 64)
		if err != nil || prefix == logPrefix && form != "" || form != "" && form != "gz" && form != "snappy" {
			continue
		}
		out = append(out, zxidName{e.Name(), zxid})
	}
	slices.SortFunc(out, func(a, b zxidName) int {
		if a.zxid == b.zxid {
			return strings.Compare(a.name, b.name)
		}
		if a.zxid < b.zxid {
			return -1
		}
		return 1
	})
	return out, nil
}

// plan is what of a server's files makes up its state.
type plan struct {
	newest zxidName  // the snapshot that a server would begin with
	older  *zxidName // the one before, for a reader whom the newest fails
	logs   []zxidName
	extra  []zxidName // logs that only the older one needs
	left   []leftOut
}

type leftOut struct{ name, why string }

// planOf chooses: the newest finished snapshot, the one before, and the logs from the
// one that has the transaction behind each of them, as FileTxnLog.getLogFiles does.
func planOf(dataDir, logDir string) (p plan, err error) {
	snaps, err := named(filepath.Join(dataDir, stateDir), snapPrefix)
	if err != nil {
		return p, err
	}
	logs, err := named(filepath.Join(logDir, stateDir), logPrefix)
	if err != nil {
		return p, err
	}
	have := 0
	for _, s := range slices.Backward(snaps) {
		if have == 2 {
			p.left = append(p.left, leftOut{s.name, "an older snapshot"})
			continue
		}
		whole, err := finished(filepath.Join(dataDir, stateDir, s.name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // purged meanwhile
		case err != nil:
			return p, err
		case !whole:
			p.left = append(p.left, leftOut{s.name, "a snapshot that was not finished"})
		case have == 0:
			p.newest, have = s, 1
		default:
			p.older, have = &s, 2
		}
	}
	if have == 0 {
		return p, hint.Add(fmt.Errorf("%w: no finished snapshot in %s", observer.ErrNotFit, filepath.Join(dataDir, stateDir)),
			"look whether this is the server's dataDir, and whether it has ever joined its ensemble")
	}
	p.logs = from(logs, p.newest.zxid)
	rest := logs[:len(logs)-len(p.logs)]
	if p.older != nil {
		p.extra = from(rest, p.older.zxid)
	}
	for _, l := range rest[:len(rest)-len(p.extra)] {
		p.left = append(p.left, leftOut{l.name, "a log of before the snapshots that are taken"})
	}
	return p, nil
}

// from are the logs that can hold what is behind a snapshot.
func from(logs []zxidName, zxid uint64) []zxidName {
	first := 0
	for i, l := range logs {
		if l.zxid <= zxid {
			first = i
		}
	}
	return logs[first:]
}
