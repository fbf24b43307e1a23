package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

const (
	listingName = "listing.ndjson"
	sealName    = "seal.json"

	// batchEntries is how many entries are kept before they go to disk as a sorted
	// run: about 20 MB. Most replicas stay below it, so that nothing is written to
	// the listing while they stand still.
	batchEntries = 1 << 16

	sealFormat = 1
)

// ErrNotSealed is returned by OpenStage for a stage whose capture was not
// finished, or is gone: its files are worth nothing.
var ErrNotSealed = errors.New("the stage is not sealed")

// seal is the record that makes a stage a sealed one. It is written last.
type seal struct {
	Format    int        `json:"format"`
	MinReader int        `json:"min_reader"`
	ID        string     `json:"id"`
	BootID    string     `json:"boot_id"`
	Digest    string     `json:"digest"`
	Roots     []Root     `json:"roots"`
	Stats     StageStats `json:"stats"`
	LeftOut   []leftLine `json:"left_out"`
}

// add takes an entry into the listing.
func (s *Stage) add(e Entry, count func(*StageStats)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.digest != "" {
		return errors.New("stage: sealed")
	}
	count(&s.stats)
	s.batch = append(s.batch, e)
	if len(s.batch) < batchEntries {
		return nil
	}
	return s.spool()
}

// spool writes the batch as a sorted run. s.mu is held.
func (s *Stage) spool() error {
	run := s.record(fmt.Sprintf("run-%06d.ndjson", len(s.runs)))
	slices.SortFunc(s.batch, archiveOrder)
	err := writeLines(s.fs, run, func(yield func(Entry, error) bool) {
		for _, e := range s.batch {
			if !yield(e, nil) {
				return
			}
		}
	}, io.Discard)
	if err != nil {
		return fmt.Errorf("spool the stage's listing: %w", err)
	}
	s.runs, s.batch = append(s.runs, run), s.batch[:0]
	return nil
}

// Seal makes the stage durable and fixes its listing. It is called after the
// replica was started again: a sync in the hold would cost held time.
func (s *Stage) Seal(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.digest != "" {
		return errors.New("stage: sealed already")
	}
	boot, err := fsx.BootID()
	if err != nil {
		return fmt.Errorf("seal the stage: %w", err)
	}
	if err := s.dropUntaken(ctx); err != nil {
		return fmt.Errorf("seal the stage: %w", err)
	}
	digest, err := s.writeListing(ctx)
	if err != nil {
		return fmt.Errorf("seal the stage: %w", err)
	}
	for _, r := range s.roots {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.fs.SyncFS(s.dir(r)); err != nil {
			return fmt.Errorf("seal the stage: %w", err)
		}
	}
	rec := seal{Format: sealFormat, MinReader: sealFormat, ID: s.id, BootID: boot, Digest: digest, Roots: s.roots, Stats: s.stats}
	for _, l := range s.left {
		rec.LeftOut = append(rec.LeftOut, leftLineOf(l))
	}
	b, err := json.Marshal(rec)
	if err == nil {
		err = s.fs.WriteFileAtomic(s.record(sealName), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("seal the stage: %w", err)
	}
	s.digest, s.prelinked = digest, nil
	return nil
}

// dropUntaken removes the links made before the hold whose files the replica had
// removed by the time it was held: they would pin disk space for nothing.
func (s *Stage) dropUntaken(ctx context.Context) error {
	for dir, p := range s.prelinked {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.find(0) // sorts, where nothing was taken
		if !slices.Contains(p.taken, false) {
			continue
		}
		names, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var gone []string
		for {
			batch, err := names.ReadDir(1024)
			for _, e := range batch {
				st, err := os.Lstat(filepath.Join(dir, e.Name()))
				if err != nil {
					names.Close()
					return err
				}
				if i, ok := p.find(s.mark(e.Name(), st.Sys().(*syscall.Stat_t).Ino)); ok && !p.taken[i] {
					gone = append(gone, filepath.Join(dir, e.Name()))
				}
			}
			if err != nil {
				if err = errors.Join(notEOF(err), names.Close()); err != nil {
					return err
				}
				break
			}
		}
		for _, g := range gone {
			if err := s.fs.Remove(g); err != nil {
				return err
			}
		}
	}
	return nil
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// writeListing merges the runs and what is left of the batch into the listing
// and returns its sha256. It never holds more than a batch.
func (s *Stage) writeListing(ctx context.Context) (digest string, err error) {
	slices.SortFunc(s.batch, archiveOrder)
	sources := []iter.Seq2[Entry, error]{func(yield func(Entry, error) bool) {
		for _, e := range s.batch {
			if !yield(e, nil) {
				return
			}
		}
	}}
	for _, run := range s.runs {
		sources = append(sources, readLines(run, nil))
	}
	h := sha256.New()
	if err := writeLines(s.fs, s.record(listingName), checked(ctx, merge(sources)), h); err != nil {
		return "", err
	}
	for _, run := range s.runs {
		if err := s.fs.Remove(run); err != nil {
			return "", err
		}
	}
	s.batch, s.runs = nil, nil
	return hex.EncodeToString(h.Sum(nil)), nil
}

// OpenStage opens the sealed stage of that id again, after a crash or a reboot.
// Only the first of roots is used, to find the seal: the roots of the stage are
// those it was sealed with.
func OpenStage(fsys fsx.FS, id string, roots []Root) (*Stage, error) {
	if err := checkStage(id, roots); err != nil {
		return nil, err
	}
	s := &Stage{fs: fsys, id: id, roots: roots}
	b, err := os.ReadFile(s.record(sealName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("stage %s: %w", id, ErrNotSealed)
	}
	if err != nil {
		return nil, fmt.Errorf("open the stage: %w", err)
	}
	rec, err := parseSeal(b)
	if err != nil {
		return nil, fmt.Errorf("open the stage %s: %w", id, err)
	}
	if rec.ID != id || rec.Roots[0].Path != roots[0].Path {
		return nil, fmt.Errorf("open the stage %s: its seal is of stage %s in %s", id, rec.ID, rec.Roots[0].Path)
	}
	s.roots, s.stats, s.digest = rec.Roots, rec.Stats, rec.Digest
	for _, l := range rec.LeftOut {
		s.left = append(s.left, l.leftOut())
	}
	for _, r := range s.roots {
		if st, err := os.Lstat(s.dir(r)); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("open the stage %s: its part in %s is gone: %w", id, r.Path, cmp.Or(err, error(unix.ENOTDIR)))
		}
	}
	return s, nil
}

func parseSeal(b []byte) (seal, error) {
	var rec seal
	if err := json.Unmarshal(b, &rec); err != nil {
		return seal{}, fmt.Errorf("its seal: %w", err)
	}
	switch {
	case rec.MinReader > sealFormat:
		return seal{}, hint.Add(fmt.Errorf("its seal has format %d, this eddy reads %d", rec.Format, sealFormat), "a newer eddy made it; use that one")
	case rec.Format < 1, len(rec.Digest) != 2*sha256.Size:
		return seal{}, errors.New("its seal is incomplete")
	}
	return rec, checkStage(rec.ID, rec.Roots)
}

// Entries yields the names of a sealed stage in archive order. What it yields is
// provisional until it ends without an error: then the listing was the one that
// was sealed.
func (s *Stage) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		digest := s.Digest()
		if digest == "" {
			yield(Entry{}, ErrNotSealed)
			return
		}
		h := sha256.New()
		for e, err := range readLines(s.record(listingName), h) {
			if !yield(e, err) || err != nil {
				return
			}
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != digest {
			yield(Entry{}, fmt.Errorf("stage %s: the listing is not the one that was sealed", s.id))
		}
	}
}

// Path is where a staged file or directory lies on this machine.
func (s *Stage) Path(e Entry) (string, error) {
	r, err := s.root(e.Root)
	if err != nil {
		return "", err
	}
	rel := e.Name
	if r.Prefix != "" {
		var ok bool
		if rel, ok = strings.CutPrefix(e.Name, r.Prefix); !ok || rel != "" && rel[0] != '/' {
			return "", fmt.Errorf("stage: %q is not in root %q", e.Name, e.Root)
		}
		rel = strings.TrimPrefix(rel, "/")
	}
	if !filepath.IsLocal(rel) && rel != "" {
		return "", fmt.Errorf("stage: %q leads out of root %q", e.Name, e.Root)
	}
	return filepath.Join(s.dir(r), rel), nil
}

// Open opens a staged file and refuses one that is not what was staged.
func (s *Stage) Open(e Entry) (*os.File, error) {
	p, err := s.Path(e)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s changed in the stage: it is no file", e.Name)
	case st.Size() != e.Size:
		err = fmt.Errorf("%s changed in the stage: it has %d bytes, %d were staged", e.Name, st.Size(), e.Size)
	case e.Treatment == Linked && st.Sys().(*syscall.Stat_t).Ino != e.Inode:
		err = fmt.Errorf("%s changed in the stage: it is another file", e.Name)
	case e.Treatment == Linked && !st.ModTime().Equal(e.MTime):
		err = fmt.Errorf("%s changed in the stage: somebody wrote to it at %s", e.Name, st.ModTime())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Drop removes a staged file that is not needed any more. One that is gone
// already is no error.
func (s *Stage) Drop(e Entry) error {
	p, err := s.Path(e)
	if err != nil {
		return err
	}
	if err := s.fs.Unlink(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leftLine is a LeftOut in the seal.
type leftLine struct {
	LeftOut
	NameB64 []byte `json:"name_b64,omitempty"`
}

func leftLineOf(l LeftOut) leftLine {
	if !utf8.ValidString(l.Name) {
		return leftLine{LeftOut: LeftOut{Reason: l.Reason}, NameB64: []byte(l.Name)}
	}
	return leftLine{LeftOut: l}
}

func (l leftLine) leftOut() LeftOut {
	if l.NameB64 != nil {
		l.Name = string(l.NameB64)
	}
	return l.LeftOut
}
