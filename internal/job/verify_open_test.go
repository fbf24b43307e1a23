package job

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// gaze looks into what is read back: of the files that it needs it sees names and sizes.
type gaze struct {
	says  observer.Checked
	err   error
	saw   map[string]int
	heard []string
	at    observer.Position
}

func (g *gaze) Needs() observer.Needs { return g }
func (g *gaze) See(name string)       { g.heard = append(g.heard, name) }
func (g *gaze) Head(name string) (int64, bool) {
	return 1000, strings.HasSuffix(name, ".ldb")
}

func (g *gaze) Check(_ context.Context, trees []snapshot.Tree, at observer.Position) (observer.Checked, error) {
	g.saw, g.at = map[string]int{}, at
	names, err := os.ReadDir(trees[0].Dir)
	for _, n := range names {
		b, rerr := os.ReadFile(filepath.Join(trees[0].Dir, n.Name()))
		g.saw[n.Name()], err = len(strings.TrimRight(string(b), "\x00")), errors.Join(err, rerr)
	}
	return g.says, errors.Join(err, g.err)
}

// What was read back is looked into, where all of it was right; what is found then
// is a failed proof, and what could not be said gives no grade.
func TestWhatIsReadBackIsLookedInto(t *testing.T) {
	b := newBucket(t, "file")
	m := b.backupOf("c", 1, 10, nil)
	sound := observer.Checked{Opened: "all", Grade: "clean", Proven: map[string]int64{"blocks": 3}}
	for _, c := range []struct {
		name   string
		gaze   gaze
		by     string
		noOpen bool
		kind   string
		grade  string
		opened string
		err    error
	}{
		{"sound", gaze{says: sound}, uploader.ByReadData, false, "cometbft", uploader.GradeVerified, "all", nil},
		{"unsound", gaze{says: observer.Checked{Opened: "all", Grade: "broken", Findings: []string{"app: app-hash: x", "and more"}}}, uploader.ByReadData, false, "cometbft", uploader.GradeFailed, "all", ErrProof},
		{"given up", gaze{says: observer.Checked{Opened: "none", Unfinished: "too large", Hint: "more"}}, uploader.ByReadData, false, "cometbft", uploader.GradeVerified, "none", ErrWarnings},
		{"no answer", gaze{err: os.ErrPermission}, uploader.ByReadData, false, "cometbft", "", "", os.ErrPermission},
		{"not wanted", gaze{}, uploader.ByReadData, true, "cometbft", uploader.GradeVerified, "skipped", nil},
		{"of another kind", gaze{}, uploader.ByReadData, false, "etcd", uploader.GradeVerified, "none", nil},
		{"a sample", gaze{}, uploader.BySample, false, "cometbft", uploader.GradeSampled, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			g := c.gaze
			v := &Verify{
				Catalog: b.catalog("c"), Selector: m.ID, By: c.by, Share: 0.5, NoGrade: true, Events: &told{}, Now: time.Now,
				Lookers: map[string]observer.Looker{c.kind: &g}, NoOpen: c.noOpen, Scratch: Scratch{Dir: filepath.Join(dir, "scratch")},
			}
			out, err := v.Run(t.Context())
			if !errors.Is(err, c.err) || out.Grade != c.grade || out.Opened != c.opened {
				t.Fatalf("%s, opened %s, %v", out.Grade, out.Opened, err)
			}
			looked := c.by == uploader.ByReadData && !c.noOpen && c.kind == "cometbft"
			if looked != (g.saw != nil) || looked && (len(g.saw) != 7 || g.saw["00.ldb"] != 1000 || int64(len(g.heard)) != m.Sizes.Files || g.at.Index != 11) {
				t.Errorf("it saw %v at %v", g.saw, g.at)
			}
			if out.Grade == uploader.GradeFailed && (len(out.Findings) != 2 || out.Findings[0].Stage != "opened" || hint.Of(err) == "" || !errors.Is(err, observer.ErrUnsound)) {
				t.Errorf("%v, %v", out.Findings, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("it left %v, %v", left, err)
			}
		})
	}
	// Of what is damaged in the store nobody asks whether it is sound.
	v := victim{bucket: b, m: m}
	v.flip(uploader.VolumeName(1), func(b []byte) int { return len(b) / 2 })
	defer b.heal()
	var g gaze
	_, err := (&Verify{
		Catalog: b.catalog("c"), Selector: m.ID, By: uploader.ByReadData, NoGrade: true, Events: &told{}, Now: time.Now,
		Lookers: map[string]observer.Looker{"cometbft": &g}, Scratch: Scratch{Dir: t.TempDir()},
	}).Run(t.Context())
	if !errors.Is(err, uploader.ErrDamaged) || errors.Is(err, ErrProof) || g.saw != nil {
		t.Errorf("%v, saw %v", err, g.saw)
	}
}

// A scratch directory is gone when it is done with; one that was left by a process
// that is no more is swept, one that somebody holds stays, and so does all else.
func TestScratch(t *testing.T) {
	parent := t.TempDir()
	s := Scratch{Dir: filepath.Join(parent, "s")}
	dir, done, err := s.Take()
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Join(dir, "a/b"))
	put(filepath.Join(s.Dir, "eddy-scratch-dead/lock"))
	put(filepath.Join(s.Dir, "eddy-scratch-dead/data/x"))
	put(filepath.Join(s.Dir, "eddy-scratch-half/x"))
	put(filepath.Join(s.Dir, "theirs/x"))
	put(filepath.Join(s.Dir, "eddy-scratch-file"))
	held, err := fsx.TryLock(filepath.Join(s.Dir, "eddy-scratch-dead/lock"))
	if err != nil {
		t.Fatal(err)
	}
	names := func() (out []string) {
		all, err := os.ReadDir(s.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			if !slices.Contains([]string{filepath.Base(filepath.Dir(dir)), "theirs", "eddy-scratch-file"}, n.Name()) {
				out = append(out, n.Name())
			}
		}
		return out
	}
	again := func() {
		t.Helper()
		other, otherDone, err := s.Take()
		if err != nil || other == dir {
			t.Fatal(other, err)
		}
		if err := otherDone(); err != nil {
			t.Fatal(err)
		}
	}
	again()
	if left := names(); !slices.Equal(left, []string{"eddy-scratch-dead"}) {
		t.Errorf("there are %v", left)
	}
	if err := held.Unlock(); err != nil {
		t.Fatal(err)
	}
	again()
	if left := names(); len(left) > 0 {
		t.Errorf("there are %v", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "a/b")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(s.Dir, "theirs")), os.Remove(filepath.Join(s.Dir, "eddy-scratch-file")), done()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	if _, _, err := (Scratch{Dir: filepath.Join(parent, "no/s")}).Take(); err == nil || hint.Of(err) == "" {
		t.Error(err)
	}
}
