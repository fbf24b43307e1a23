package uploader

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

func TestFileStore(t *testing.T) {
	suite(t, func(t *testing.T) Store {
		// Not there yet, deep, and with characters that a URL escapes.
		s, err := Open(t.Context(), Config{URL: newFileStore(filepath.Join(t.TempDir(), "back ups", "100%")).URL(), unit: unit})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, 60)
}

func TestFileStoreRefusesKeysThatLeadOut(t *testing.T) {
	dir := t.TempDir()
	s := newFileStore(filepath.Join(dir, "store"))
	mustPutSmall(t, s, "inside", "x", Condition{})
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", ".", "..", "../outside", "a/../../outside", "/etc/passwd", "a//b", "a/", "./a", "a/..", ".tmp-lock", "a/.tmp-x/b", "a\x00b"} {
		_, put := s.PutSmall(t.Context(), key, []byte("x"), "", Condition{})
		_, large := s.Put(t.Context(), request(t, key, []byte("x"), 1))
		_, _, get := s.GetSmall(t.Context(), key, 10)
		_, stat := s.Stat(t.Context(), key)
		_, open := s.Open(t.Context(), key, "", 0, 1)
		for op, err := range map[string]error{"put": large, "put small": put, "get": get, "stat": stat, "open": open, "delete": s.Delete(t.Context(), key)} {
			if !errors.Is(err, ErrRefused) {
				t.Errorf("%s %q: %v, want ErrRefused", op, key, err)
			}
		}
	}
	for _, err := range s.List(t.Context(), "../", "") {
		if !errors.Is(err, ErrRefused) {
			t.Errorf("list ../: %v, want ErrRefused", err)
		}
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "mine" {
		t.Errorf("the file outside holds %q, %v", b, err)
	}
}

func TestFileStoreModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := newFileStore(dir)
	mustPutSmall(t, s, "a/b/small", "x", Condition{})
	mustPut(t, s, "a/c/large", content(1, 100))
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", p, st.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A store that was moved to another disk is the same store: its manifests hold
// ETags.
func TestFileStoreETagsSurviveACopy(t *testing.T) {
	dir := t.TempDir()
	s := newFileStore(filepath.Join(dir, "one"))
	before := []Object{mustPutSmall(t, s, "k", "x", Condition{}), mustPut(t, s, "vol", content(1, 1<<20))}
	if out, err := exec.CommandContext(t.Context(), "cp", "-r", filepath.Join(dir, "one"), filepath.Join(dir, "two")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	moved := newFileStore(filepath.Join(dir, "two"))
	for _, o := range before {
		if st, err := moved.Stat(t.Context(), o.Key); err != nil || st.ETag != o.ETag {
			t.Errorf("%s: ETag %s, %v; was %s", o.Key, st.ETag, err, o.ETag)
		}
	}
}

func TestFileStoreThroughASymlink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "disk"), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "backups")
	if err := os.Symlink("disk", link); err != nil {
		t.Fatal(err)
	}
	s := newFileStore(link)
	mustPutSmall(t, s, "a/k", "x", Condition{})
	if got := keysOf(t, s, "", ""); !slices.Equal(got, []string{"a/k"}) {
		t.Errorf("listed %q", got)
	}
}

// The root of a filesystem of its own has a directory that only root may read.
func TestFileStoreLeavesLostAndFoundAlone(t *testing.T) {
	dir := t.TempDir()
	s := newFileStore(dir)
	mustPutSmall(t, s, "a/k", "x", Condition{})
	if err := os.MkdirAll(filepath.Join(dir, "lost+found", "#123"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "lost+found", "#124"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "", "/"); !slices.Equal(got, []string{"a/"}) {
		t.Errorf("listed %q", got)
	}
}

func TestFileStoreTroubleHasAHint(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newFileStore(filepath.Join(dir, "file")) // a file where the directory should be
	_, err := s.PutSmall(t.Context(), "k", []byte("x"), "", Condition{})
	if !errors.Is(err, ErrRefused) || hint.Of(err) == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v (hint %q), want ErrRefused on one line with a hint", err, hint.Of(err))
	}
	// Nobody may write to it, root included.
	s = newFileStore("/proc/self/no-store")
	_, err = s.Put(t.Context(), request(t, "k", []byte("x"), 1))
	if err == nil || hint.Of(err) == "" && !errors.Is(err, ErrNotFound) {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
}

// A journal that names another file than one that is being written removes none.
func TestFileStoreAbandonRemovesNoObject(t *testing.T) {
	s := newFileStore(t.TempDir())
	mustPutSmall(t, s, "a/k", "x", Condition{})
	for _, id := range []string{"a/k", "../x", "/etc/passwd", "a/.tmp-none"} {
		path := filepath.Join(t.TempDir(), "journal")
		j, err := createJournal(fsx.FS{}, path, journalHead{Store: s.URL(), Key: "a/k", UploadID: id, PartSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		j.close()
		if err := s.Abandon(t.Context(), path); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		absent(t, path)
	}
	if b, _, err := s.GetSmall(t.Context(), "a/k", 10); err != nil || !bytes.Equal(b, []byte("x")) {
		t.Errorf("the object holds %q, %v", b, err)
	}
}
