package consul

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// Check implements observer.Checker: the archive is read to its last byte, its
// hashes are compared, and it is still what came from the server.
func (s *Source) Check(ctx context.Context, trees []snapshot.Tree, at observer.Position) (out observer.Checked, err error) {
	begun := time.Now()
	defer func() { out.Seconds = time.Since(begun).Seconds() }()
	out = observer.Checked{Opened: "none"}
	unfit := func(text string) (observer.Checked, error) {
		out.Findings, out.Hint = []string{text}, "make the backup once more; where that comes again, look at the server's disk and at its log"
		return out, nil
	}
	note, err := observer.ReadNote(trees[0].Dir)
	if errors.Is(err, observer.ErrUnsound) {
		return unfit(err.Error())
	}
	if err != nil {
		return out, err
	}
	f, err := os.Open(filepath.Join(trees[0].Dir, observer.DumpName))
	if err != nil {
		return out, err
	}
	defer f.Close()
	sum := sha256.New()
	a, err := s.sys.readArchive(ctx, io.TeeReader(f, sum))
	var u unsound
	switch {
	case errors.As(err, &u):
		return unfit("dump: " + u.Error())
	case err != nil:
		return out, err
	case hex.EncodeToString(sum.Sum(nil)) != note.Facts[factSum]:
		// What gzip's own sum does not cover: its header.
		return unfit("dump: it has another sha256 than what came from the server")
	}
	is := note.Position
	is.Kind, is.Epoch, is.Index = s.sys.kind, a.meta.Term, a.meta.Index
	taken, ok := a.meta.taken()
	switch {
	case !ok:
		return unfit(fmt.Sprintf("dump: its id %.60q fits to no index %d of term %d", a.meta.ID, is.Index, is.Epoch))
	case s.sys.records && note.Position.Index != 0 && note.Position.Index != is.Index:
		return unfit(fmt.Sprintf("dump: it is at index %d, the server said %d", is.Index, note.Position.Index))
	case at.Index != 0 && (at.Index != is.Index || at.Epoch != is.Epoch):
		return unfit(fmt.Sprintf("dump: it is at %s, it should be at %s", is, at))
	}
	is.Time = taken
	out.At, out.Opened, out.Grade = &is, "part", "hashes"
	out.Proven = map[string]int64{"servers": int64(len(a.meta.Configuration.Servers)), "bytes of state": a.state}
	if a.records != nil {
		out.Opened, out.Grade = "all", "records"
		for name, n := range a.records {
			out.Proven[name] = n
		}
	}
	if a.unread != "" {
		out.Notes = append(out.Notes, "its records were not counted: "+a.unread)
	}
	said := fmt.Sprintf("snapshot %s, every hash right", a.meta.ID)
	out.Layers = []observer.CheckedLayer{{Name: "state", Engine: "raft snapshot", Opened: true, Said: said}}
	if is.Consistency == Unbounded {
		out.Notes = append(out.Notes, "nobody knows how old it was when it was taken")
	}
	return out, nil
}
