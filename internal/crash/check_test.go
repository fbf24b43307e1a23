//go:build crash

package crash

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// This file judges. It reads the bucket and the disk with other people's code and
// asks nothing of the engine.

// manifest is as much of a manifest.json as a restore by hand needs.
type manifest struct {
	ID       string
	Position struct{ Index uint64 }
	Volumes  []struct {
		Name string
		Size int64
	}
}

// look checks what must hold at every moment: whatever has a manifest restores,
// and no good backup has gone.
func (w *world) look() {
	now := map[string]uint64{}
	for _, key := range w.server.Keys() {
		id, ok := strings.CutSuffix(strings.TrimPrefix(key, prefix+"data/"), "/manifest.json")
		if !ok || !strings.HasPrefix(key, prefix+"data/") {
			continue
		}
		b, tag := w.server.Object(key)
		m, err := w.restores(id, b, tag)
		if err != nil {
			w.broken("I2", "%s looks like a backup: %v", w.normal(id), err)
			continue
		}
		now[id] = m.Position.Index
	}
	newest := ""
	for id, at := range w.good {
		if newest == "" || at > w.good[newest] {
			newest = id
		}
	}
	for id := range w.good {
		if _, ok := now[id]; !ok && (!w.expired || id == newest) {
			w.broken("I3", "the good backup %s has gone", w.normal(id))
		}
	}
	w.good = now
	if b, _ := w.server.Object(prefix + "latest.json"); b != nil {
		var p struct{ ID string }
		if err := json.Unmarshal(b, &p); err != nil {
			w.broken("I3", "latest.json: %v", err)
		} else if _, ok := now[p.ID]; !ok {
			w.broken("I3", "latest.json names %s, which is no backup", w.normal(p.ID))
		}
	}
}

// restores unpacks a backup as somebody with tar and zstd does.
func (w *world) restores(id string, body []byte, tag string) (m manifest, err error) {
	if err := json.Unmarshal(body, &m); err != nil {
		return m, err
	}
	want := w.node.at[m.Position.Index]
	if m.ID != id || want == nil || len(m.Volumes) == 0 {
		return m, fmt.Errorf("its manifest is of %s at %d", m.ID, m.Position.Index)
	}
	var all []io.Reader
	known := tag
	for _, v := range m.Volumes {
		b, tag := w.server.Object(prefix + "data/" + id + "/" + v.Name)
		if int64(len(b)) != v.Size {
			return m, fmt.Errorf("%s has %d bytes, not %d", v.Name, len(b), v.Size)
		}
		all, known = append(all, bytes.NewReader(b)), known+tag
	}
	if w.sound[known] {
		return m, nil
	}
	got, err := unpack(io.MultiReader(all...))
	if err != nil {
		return m, err
	}
	if err := differ(got, want); err != nil {
		return m, err
	}
	w.sound[known] = true
	return m, nil
}

func unpack(r io.Reader) (content, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	got := content{}
	t := tar.NewReader(z)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, z) // to the last checksum
			return got, err
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		if bytes.Contains(b, []byte(secret)) {
			return nil, fmt.Errorf("%s holds key material (I5)", h.Name)
		}
		got[h.Name] = maphash.Bytes(hashing, b)
	}
}

// differ tells the first difference.
func differ(got, want content) error {
	for _, name := range sorted(want) {
		if sum, ok := got[name]; !ok {
			return fmt.Errorf("%s is missing", name)
		} else if sum != want[name] {
			return fmt.Errorf("%s has other bytes", name)
		}
	}
	for _, name := range sorted(got) {
		if _, ok := want[name]; !ok {
			return fmt.Errorf("%s should not be there", name)
		}
	}
	return nil
}

func skipDir(e fs.DirEntry) error {
	if e != nil && e.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// leftovers are the names that no process that is at rest leaves in a workdir.
var leftovers = regexp.MustCompile(`^(job\.json|hold\.json|attempt\.json|restart\.json|upload-.*\.journal|sums.*|\..*\.tmp-.*)$`)

// atRest checks what must hold whenever no process is at work that died: the node
// runs, and nobody will start it once more.
func (w *world) atRest(when string) {
	if !w.node.running && (when == afterNext || !w.restoring()) {
		w.broken("I1", "%s the node stands still", when)
	}
	if when == afterNext && w.holdJournal() {
		w.broken("I1", "%s the hold journal is open", when)
	}
}

// restoring tells whether a restore has stopped the node and says so: a stop for a
// restore may outlive it, until the next run.
func (w *world) restoring() bool {
	for _, p := range []string{filepath.Join(w.home, ".eddy", "swap.json"), filepath.Join(w.work, "restart.json")} {
		if _, err := os.Lstat(p); err == nil {
			return true
		}
	}
	return false
}

const (
	afterLife = "after a run that lived"
	afterNext = "after the next run"
)

// swept checks that what dead runs left is gone.
func (w *world) swept() {
	if n := w.server.Uploads(); n > 0 {
		w.broken("I4", "%d unfinished uploads are left", n)
	}
	names, err := os.ReadDir(w.work)
	must(err)
	for _, n := range names {
		if leftovers.MatchString(n.Name()) {
			w.broken("I4", "%s is left in the workdir", w.normal(n.Name()))
		}
	}
	must(filepath.WalkDir(filepath.Join(w.home, ".eddy"), func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.HasPrefix(e.Name(), "restore-") {
			return skipDir(e) // data that a later restore goes on with, or removes
		}
		if err == nil && (idForm.MatchString(p) || leftovers.MatchString(e.Name()) || strings.HasPrefix(e.Name(), "swap.json")) {
			w.broken("I4", "%s is left", w.name(p))
			return fs.SkipDir
		}
		return err
	}))
	for _, key := range w.server.Keys() {
		rest := strings.TrimPrefix(key, prefix)
		if strings.HasPrefix(rest, "keys/") { // a bundle stays
			continue
		}
		id := idForm.FindString(rest)
		_, good := w.good[id]
		if !good && id != "" || strings.HasPrefix(rest, "runs/") || !w.lax && strings.HasPrefix(rest, "probe/") {
			w.broken("I4", "%s is left in the bucket", w.normal(rest))
		}
	}
}

// backedUp: the newest state of the node that could be backed up is.
func (w *world) backedUp() {
	w.look()
	var newest, want uint64
	for _, at := range w.good {
		newest = max(newest, at)
	}
	for at := range maps.Keys(w.node.at) {
		want = max(want, at)
	}
	if newest == 0 || newest < want {
		w.broken("I6", "the newest backup is at %d, the node was last held at %d", newest, want)
	}
	if w.latest != newest {
		w.broken("I3", "latest is at %d, the newest backup at %d", w.latest, newest)
	}
}

// finished tells whether all of a restore is in place, and nothing of its work is
// left: a run that died there had nothing left to do.
func (w *world) finished() bool {
	if !w.only() {
		return false
	}
	for _, want := range w.node.at {
		if differ(read(filepath.Join(w.into, "data"), "data"), want) == nil {
			return true
		}
	}
	return false
}

// restored: the target holds what the backup did, and nothing else.
func (w *world) restored() {
	var newest uint64
	for _, at := range w.good {
		newest = max(newest, at)
	}
	if err := differ(read(filepath.Join(w.into, "data"), "data"), w.node.at[newest]); err != nil {
		w.broken("I8", "restored: %v", err)
	}
	if !w.only() {
		w.broken("I8", "restored: it does not hold the data, and nothing else")
	}
	if w.keys != nil {
		if wrong := configured(w.into); wrong != "" {
			w.broken("I8", "restored: %s", wrong)
		}
	}
}

// only tells whether the target holds the data, beside them the configuration
// where one is restored, and nothing else.
func (w *world) only() bool {
	want := []string{"data"}
	if w.keys != nil {
		want = []string{"config", "data"}
	}
	entries, err := os.ReadDir(w.into)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return err == nil && slices.Equal(names, want)
}

// replaced: the node was started with the newest backup, and runs.
func (w *world) replaced() {
	var newest uint64
	for _, at := range w.good {
		newest = max(newest, at)
	}
	if w.node.from != newest || !w.node.running {
		w.broken("I8", "restored in place: the node runs (%t) with the data of %d, the backup is at %d", w.node.running, w.node.from, newest)
	}
}

// onlyNewest: retention has kept one backup, the newest.
func (w *world) onlyNewest() {
	if len(w.good) != 1 {
		w.broken("I4", "%d backups after retention, not 1", len(w.good))
	}
	for _, at := range w.good {
		if at != w.latest {
			w.broken("I3", "retention kept the backup at %d, the newest was at %d", at, w.latest)
		}
	}
}
