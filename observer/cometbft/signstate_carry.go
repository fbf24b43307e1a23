package cometbft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cometbft/cometbft/crypto"

	"github.com/eddy-backup/eddy/internal/hint"
)

// searchSigns is how far below a directory sign states are looked for.
const searchSigns = 4

// signCopy is a file with a sign state.
type signCopy struct {
	SignStatus
	raw []byte
}

// CarrySigns sees to it that every sign state of the home is the highest of itself,
// of all that lie below dirs (what was there before, and what has come), and of the
// copies that people and cosmovisor leave in a home, where those are known to be of
// its key. A sign state never goes down, and no key moves.
func (r *Replica) CarrySigns(ctx context.Context, dirs []string) error {
	var found []signCopy
	for _, dir := range dirs {
		f, err := signCopies(ctx, dir)
		if err != nil {
			return err
		}
		found = append(found, f...)
	}
	bases, err := readBases(r.layout.Home) // as they are by now
	if err != nil {
		return err
	}
	for _, b := range bases {
		if err := r.carry(b, found); err != nil {
			return err
		}
	}
	return nil
}

// signCopies finds the files below dir that are named as sign states and validator
// keys are. One that cannot be understood is an error.
func signCopies(ctx context.Context, dir string) (found []signCopy, err error) {
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if rel, _ := filepath.Rel(dir, p); e.IsDir() && strings.Count(rel, "/") >= searchSigns {
			return fs.SkipDir
		}
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), "priv_validator") {
			return nil
		}
		s, ok, err := readSignState(p)
		if err != nil || !ok {
			return err
		}
		raw, err := os.ReadFile(p)
		found = append(found, signCopy{s, raw})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for sign states: %w", err)
	}
	return found, nil
}

// carry raises one sign state.
func (r *Replica) carry(b base, found []signCopy) error {
	var own SignStatus
	var highest signCopy
	keyFile, err := os.ReadFile(b.key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hint.Add(fmt.Errorf("read the validator key: %w", err), "run eddy as the node's user"+ownerOf(b.key))
	}
	key := publicKey(keyFile)
	to := signsAt(b)
	for _, file := range []string{b.signState, b.key} {
		s, ok, err := readSignState(file)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if file == to {
			own = s
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		found = append(found, signCopy{s, raw})
	}
	beside, err := r.copiesBeside(b, key)
	if err != nil {
		return err
	}
	for _, c := range append(found, beside...) {
		if own.less(c.SignStatus) && highest.less(c.SignStatus) && !ofAnother(key, c.raw) {
			highest = c
		}
	}
	if highest.Path == "" {
		return nil
	}
	return r.writeSign(to, highest.raw, highest.SignStatus)
}

// signsAt is the file that the node keeps its sign state in.
func signsAt(b base) string {
	if b.signState == "" {
		return b.key
	}
	return b.signState
}

// ofAnother tells whether a file is known to be of another key: it holds that, or
// what it has signed was not signed by this one.
func ofAnother(key crypto.PubKey, raw []byte) bool {
	if its := publicKey(raw); its != nil && key != nil {
		return !its.Equals(key)
	}
	yes, known := signedBy(key, raw)
	return known && !yes
}

// copiesBeside are the copies that were left in a home: beside key and state, and in
// the data-backup-* of cosmovisor. They count where they are this key's beyond doubt;
// what cannot be read or understood is somebody's leavings.
func (r *Replica) copiesBeside(b base, key crypto.PubKey) (found []signCopy, err error) {
	if key == nil {
		return nil, nil
	}
	var files []string
	for _, dir := range []string{filepath.Dir(b.key), filepath.Dir(signsAt(b)), filepath.Join(b.dir, "data-backup-*"), filepath.Join(r.layout.Home, "data-backup-*")} {
		some, err := filepath.Glob(filepath.Join(dir, "*priv_validator*"))
		if err != nil { // a home with a bracket in its name
			continue
		}
		files = append(files, some...)
	}
	for _, file := range files {
		fi, err := os.Stat(file)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxSignState {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		s, ok, err := parseSignState(raw)
		if err != nil || !ok {
			continue
		}
		its := publicKey(raw)
		if yes, _ := signedBy(key, raw); yes || its != nil && its.Equals(key) {
			s.Path = file
			found = append(found, signCopy{s, raw})
		}
	}
	return found, nil
}

// writeSign makes s the sign state in file, which may hold a key, too. from is the
// file that s was read from; nil: it is no node's word.
func (r *Replica) writeSign(file string, from []byte, s SignStatus) error {
	old, err := os.ReadFile(file)
	var like fs.FileInfo
	switch {
	case err == nil:
		like, err = os.Stat(file)
	case errors.Is(err, fs.ErrNotExist):
		old = nil
		like, err = os.Stat(filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("read the sign state: %w", err)
	}
	b, err := signFile(old, from, s)
	if err != nil {
		return hint.Add(fmt.Errorf("the sign state in %s must become height %d, round %d, step %d: %w", file, s.Height, s.Round, s.Step, err), "write these by hand; the node must not sign below them")
	}
	// The node is down: what lies beside it is of a restore that was killed here.
	if err := r.o.FS.SweepTemp(file); err != nil {
		return err
	}
	if old == nil {
		like = secretFile{like}
	}
	return r.o.FS.WriteFileLike(file, b, like)
}

// secretFile is the owner of a directory with the mode of a file that only he reads.
type secretFile struct{ fs.FileInfo }

// Mode implements fs.FileInfo.
func (secretFile) Mode() fs.FileMode { return 0o600 }
