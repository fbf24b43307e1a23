package job

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// keysPlace puts the files of a bundle into their places. HOME/.eddy/keys.json is its
// journal: it is there from when all that comes lies beside its place, durable, until
// all of it is in its place. Whoever finds it goes on, without the bundle.
type keysPlace struct {
	fs      fsx.FS
	home    string
	journal string
	lock    *fsx.Lock
	made    []string // directories, to be removed where nothing came of it
}

type keysJournal struct {
	Format    int        `json:"format"`
	MinReader int        `json:"min_reader"`
	ID        string     `json:"id"`             // of the bundle
	Swap      string     `json:"swap,omitempty"` // the exchange of data that it is part of
	Moves     []keysMove `json:"moves"`
}

// keysMove is one file: what is at To becomes Saved ("": nothing is there), what is at
// From ("": nothing comes) becomes To.
type keysMove struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Saved string `json:"saved,omitempty"`
}

const (
	keysLock   = "keys.lock"     // in the StageDir of a home
	keysComing = ".eddy-coming-" // in the names of files that are to take a place
)

func placeOf(fsys fsx.FS, home string) *keysPlace {
	return &keysPlace{fs: fsys, home: home, journal: filepath.Join(home, snapshot.StageDir, "keys.json")}
}

// claimPlace admits one restore of keys into a home at a time, and makes it where it
// is absent.
func claimPlace(fsys fsx.FS, home string) (*keysPlace, error) {
	dir := filepath.Join(home, snapshot.StageDir)
	p := placeOf(fsys, home)
	if err := p.mkdir(dir); err != nil {
		return nil, hint.Add(fmt.Errorf("the node's home: %w", err), "run eddy as root, or as the node's user")
	}
	name := filepath.Join(dir, keysLock)
	lock, err := fsx.TryLock(name)
	if err == nil {
		// Who had it before has removed the file: only the one that is there counts.
		mine, merr := lock.File().Stat()
		there, terr := os.Lstat(name)
		if merr != nil || terr != nil || !os.SameFile(mine, there) {
			err = errors.Join(fsx.ErrLocked, lock.Unlock())
		}
	}
	if err != nil {
		return nil, hint.Add(fmt.Errorf("another restore of keys: %w", err), "wait until it has ended")
	}
	p.lock = lock
	return p, nil
}

// leave gives the home back; directories in which nothing came to lie go again.
func (p *keysPlace) leave() error {
	err := ignoreGone(p.fs.Remove(p.lock.File().Name()))
	err = errors.Join(err, p.lock.Unlock())
	for i := len(p.made) - 1; i >= 0; i-- {
		_ = p.fs.Rmdir(p.made[i]) // one that is not empty stays, as it should
	}
	return err
}

// mkdir makes a directory and its missing parents, 0700, each with its parent's owner.
func (p *keysPlace) mkdir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := p.mkdir(parent); err != nil {
			return err
		}
	}
	if err := makeLike(p.fs, dir); err != nil {
		return err
	}
	p.made = append(p.made, dir)
	return p.fs.SyncDir(filepath.Dir(dir))
}

// stage writes all that a plan names beside its places, and the journal that moves it
// in: by finish, or, where it has the id of a swap, once that has gone forward.
func (p *keysPlace) stage(ctx context.Context, d decided, swap string) (err error) {
	j := keysJournal{Format: stateFormat, MinReader: stateMinReader, ID: d.bundle.Contents.ID, Swap: swap}
	durable := false
	defer func() {
		for _, m := range j.Moves {
			if !durable {
				err = errors.Join(err, ignoreGone(p.fs.Remove(m.From)))
			}
		}
	}()
	write := func(f KeysFile, in io.Reader) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		m := keysMove{From: filepath.Join(filepath.Dir(f.To), "."+filepath.Base(f.To)+keysComing+j.ID), To: f.To, Saved: f.Saved}
		j.Moves = append(j.Moves, m)
		return p.write(f, m.From, in)
	}
	todo := map[string]KeysFile{}
	for _, f := range d.plan {
		switch {
		case !f.Writes():
		case f.data != nil:
			err = errors.Join(err, write(f, bytes.NewReader(f.data)))
		default:
			todo[f.Name] = f
		}
	}
	if err == nil {
		err = d.bundle.Each(func(e bundle.Entry, in io.Reader) error {
			f, ok := todo[e.Name]
			if !ok {
				return nil
			}
			return write(f, in)
		})
	}
	for _, m := range j.Moves { // the journal's word is that they are there
		if err == nil {
			err = p.fs.SyncDir(filepath.Dir(m.From))
		}
	}
	if err == nil && len(j.Moves) > 0 {
		err = p.keep(j)
	}
	if err != nil {
		return fmt.Errorf("nothing was replaced: %w", err)
	}
	durable = true
	return nil
}

func (p *keysPlace) keep(j keysJournal) error {
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return p.fs.WriteFileAtomic(p.journal, text, 0o600)
}

// write makes one file, whole and durable, under a name that nobody reads.
func (p *keysPlace) write(f KeysFile, name string, in io.Reader) (err error) {
	if err := p.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	// A name of a run that was killed before its journal was there.
	if err := ignoreGone(p.fs.Remove(name)); err != nil {
		return err
	}
	out, err := p.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return hint.Add(err, "run eddy as root, or as the node's user; or restore with --into DIR")
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, sum), in)
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != f.sum {
		err = fmt.Errorf("%w: %s came out otherwise than it was looked at", snapshot.ErrCorrupt, f.Name)
	}
	if err == nil && os.Geteuid() == 0 {
		err = out.Chown(f.uid, f.gid)
	}
	if err == nil {
		err = out.Chmod(bundle.Entry{Mode: f.Mode}.Perm())
	}
	if err == nil {
		err = out.Sync()
	}
	return err
}

// finish goes on where a journal says, and tells how many files it moved. One of a
// restore in place that is under way is not touched; of one that never got so far as
// to replace anything, what came goes again.
func (p *keysPlace) finish() (moved int, err error) {
	j, err := p.read()
	if err != nil || j == nil {
		return 0, err
	}
	if j.Swap == "" {
		if moved, err = p.move(j); err == nil {
			err = p.forget(p.journal)
		}
		return moved, err
	}
	s, err := snapshot.ReadSwap(p.fs, p.home)
	if err == nil && s != nil && s.ID == j.Swap {
		err = hint.Add(fmt.Errorf("%w: a restore in place has not ended", observer.ErrNotFit), "run that one again, or `eddy backup`: each goes on with it")
	}
	if err != nil {
		return 0, err
	}
	return 0, p.takeBack(j, p.journal)
}

// read reads the journal; nil where there is none.
func (p *keysPlace) read() (*keysJournal, error) {
	if err := p.fs.SweepTemp(p.journal); err != nil {
		return nil, err
	}
	return readKeysJournal(p.journal)
}

func readKeysJournal(file string) (*keysJournal, error) {
	st, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	// Whoever owns the home could write one that makes root rename what it likes.
	if err == nil && !ownFile(st) {
		return nil, hint.Add(fmt.Errorf("%w: %s was written by another user", observer.ErrNotFit, file), "run eddy as that user to finish what he has begun, or remove the file")
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	j := new(keysJournal)
	if err := json.Unmarshal(text, j); err != nil || j.MinReader > stateMinReader || j.MinReader < 1 {
		return nil, hint.Add(fmt.Errorf("%s cannot be read", file), "use the eddy that has written it")
	}
	return j, nil
}

// ownFile tells whether a file is one of who runs this.
func ownFile(st os.FileInfo) bool {
	return st.Mode().IsRegular() && int(st.Sys().(*syscall.Stat_t).Uid) == os.Geteuid()
}

// move puts what comes into its places. At every moment each place holds the file of
// before or the one that came. What is to be saved has a second name first.
func (p *keysPlace) move(j *keysJournal) (moved int, err error) {
	for _, m := range j.Moves {
		comes := m.From
		if m.From == "" { // nothing does: what is there is put aside
			comes = m.To
		}
		if _, err := os.Lstat(comes); errors.Is(err, fs.ErrNotExist) {
			continue // in its place already
		} else if err != nil {
			return moved, err
		}
		if m.Saved != "" {
			err := p.fs.Link(m.To, m.Saved)
			if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
				return moved, fmt.Errorf("save what is there: %w", err)
			}
			if err := p.fs.SyncDir(filepath.Dir(m.To)); err != nil {
				return moved, err
			}
		}
		if m.From == "" {
			err = p.fs.Remove(m.To)
		} else {
			err = p.fs.Rename(m.From, m.To)
		}
		if err != nil {
			return moved, fmt.Errorf("put %s into its place: %w", m.To, err)
		}
		if err := p.fs.SyncDir(filepath.Dir(m.To)); err != nil {
			return moved, err
		}
		moved++
	}
	return moved, nil
}

func (p *keysPlace) forget(file string) error {
	if err := p.fs.Remove(file); err != nil {
		return err
	}
	return p.fs.SyncDir(filepath.Dir(file))
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sameFile tells whether a file has these bytes.
func sameFile(name string, size int64, sum string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, size+1))
	return err == nil && n == size && hex.EncodeToString(h.Sum(nil)) == sum, err
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
