package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// swapHome is a home with two roots, what is there and what comes, and the cover
// that goes with it: data/state is a sign state, config stays, the rest of data and
// wasm is replaced.
func swapHome(t *testing.T, base string) (s *Swap, cover Cover) {
	t.Helper()
	home, disk := filepath.Join(base, "home"), filepath.Join(base, "disk")
	for name, content := range map[string]string{
		"home/config/key": "key", "home/data/state": "signed", "home/data/a.db/1": "old a", "home/data/gone.db/1": "old gone",
		"home/data/file": "old file", "home/wasm/x": "old x", "home/notes": "mine", "home/sub/own": "mine", "home/sub/deep": "old deep",
		"disk/1": "old 1", "disk/2": "old 2",
		"home/.eddy/restore-x/data/a.db/1": "new a", "home/.eddy/restore-x/data/new\xff.db/1": "new", "home/.eddy/restore-x/data/file": "new file",
		"home/.eddy/restore-x/data/state": "unsigned", "home/.eddy/restore-x/wasm/x": "new x", "home/.eddy/restore-x/sub/deep": "new deep",
		"home/.eddy/restore-x/extra/y": "new y", "disk/.eddy/restore-x/1": "new 1", "disk/.eddy/restore-x/3": "new 3",
	} {
		write(t, filepath.Join(base, name), []byte(content))
	}
	s = &Swap{ID: "id", From: "restore-x", Roots: []Root{{Path: home}, {Name: "disk", Path: disk, Prefix: "disk"}}}
	return s, func(r Root, rel string, _ bool) Part {
		top, _, below := strings.Cut(rel, "/")
		switch {
		case r.Name == "disk", top == "wasm", top == "data" && below && rel != "data/state":
			return Replaced
		case rel == "data/state", top == "config":
			return Kept
		case rel == "data":
			return Partly
		}
		return Foreign
	}
}

// seen is all that lies in the live places.
func seen(t *testing.T, base string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == StageDir {
			return fs.SkipDir
		}
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(p)
		lines = append(lines, strings.TrimPrefix(p, base+"/")+"="+string(b)+"\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

var errCrash = errors.New("crash")

// crash stops at the nth side of an effect: before it is made, in the middle of it
// where there is one, or after it.
type crash struct{ n, seen int }

func (c *crash) Do(e fsx.Effect, do func() error) error {
	at := c.n - c.seen
	c.seen += 3
	switch {
	case at == 0 || at < 0:
		return errCrash // dead ever since
	case at == 1 && e.Half != nil:
		return errors.Join(errCrash, e.Half())
	}
	if err := do(); err != nil || at > 2 {
		return err
	}
	return errCrash
}

// swapOnce plays a whole swap, as far as it comes.
func swapOnce(s *Swap, cover Cover) error {
	if err := s.Begin(); err != nil {
		return err
	}
	if err := s.Plan(cover); err != nil {
		return err
	}
	if err := s.Forward(); err != nil {
		return err
	}
	return s.End()
}

// recoverSwap plays whoever comes next.
func recoverSwap(home string, effects fsx.Effects, back bool) error {
	s, err := ReadSwap(fsx.FS{Effects: effects}, home)
	if s == nil || err != nil {
		return err
	}
	switch {
	case s.Step == SwapMoving && !back:
		err = s.Forward()
	case s.Step != SwapStopping:
		err = s.Back()
	}
	if err != nil {
		return err
	}
	return s.End()
}

const swapBefore = `disk/1=old 1
disk/2=old 2
home/config/key=key
home/data/a.db/1=old a
home/data/file=old file
home/data/gone.db/1=old gone
home/data/state=signed
home/notes=mine
home/sub/deep=old deep
home/sub/own=mine
home/wasm/x=old x
`

const swapAfter = `disk/1=new 1
disk/3=new 3
home/config/key=key
home/data/a.db/1=new a
home/data/file=new file
` + "home/data/new\xff.db/1=new" + `
home/data/state=signed
home/extra/y=new y
home/notes=mine
home/sub/deep=new deep
home/sub/own=mine
home/wasm/x=new x
`

// TestASwapMayStopAnywhere stops a swap before and after each of its effects, and
// each recovery again at each of its own. While the live places are mixed the
// journal is there, so that nothing starts the node; in the end all is old or all
// is new, and the sign state is where it was.
func TestASwapMayStopAnywhere(t *testing.T) {
	for _, back := range []bool{false, true} {
		swaps := 0
		for n := 0; ; n++ {
			base := filepath.Join(fastDir(t), fmt.Sprint(n))
			s, cover := swapHome(t, base)
			home := s.Roots[0].Path
			if got := seen(t, base); got != swapBefore {
				t.Fatalf("before:\n%s", got)
			}
			s.FS.Effects = &crash{n: n}
			err := swapOnce(s, cover)
			if err != nil && !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			over, begun := err == nil, s.Step != SwapStopping
			want := swapAfter
			if left, err := ReadSwap(fsx.FS{}, home); err != nil {
				t.Fatal(err)
			} else if left != nil && (back || left.Step == SwapStopping) || left == nil && !begun {
				want = swapBefore
			}
			check := func(at string) {
				t.Helper()
				_, serr := os.Lstat(SwapFile(home))
				if got := seen(t, base); serr != nil && got != swapBefore && got != swapAfter {
					t.Fatalf("%s: the node may be started, with mixed data:\n%s", at, got)
				}
			}
			check(fmt.Sprintf("effect %d", n))
			for k := 0; ; k++ { // each recovery crashes one effect later than the one before
				err := recoverSwap(home, &crash{n: k}, back)
				check(fmt.Sprintf("effect %d, recovery %d", n, k))
				if err == nil {
					break
				}
				if !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
			}
			swaps++
			if got := seen(t, base); got != want {
				t.Fatalf("effect %d, back %t:\n%s", n, back, got)
			}
			if err := os.RemoveAll(base); err != nil {
				t.Fatal(err)
			}
			if over {
				break
			}
		}
		t.Logf("back %t: %d places to stop at", back, swaps)
	}
}

// A swap that went back keeps nothing: else the next undo would be of it, and not of
// the swap before it. What was put there by somebody is not removed.
func TestBackLeavesNothingKept(t *testing.T) {
	for _, mine := range []bool{false, true} {
		base := t.TempDir()
		s, cover := swapHome(t, base)
		for _, step := range []func() error{s.Begin, func() error { return s.Plan(cover) }, s.Forward} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		kept := filepath.Join(base, "home", StageDir, BeforePrefix+"id")
		if mine {
			write(t, filepath.Join(kept, "data", "mine"), []byte("mine"))
		}
		for range 2 {
			if err := s.Back(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.End(); err != nil {
			t.Fatal(err)
		}
		if got := seen(t, base); got != swapBefore {
			t.Fatalf("after it went back:\n%s", got)
		}
		for _, root := range s.Roots {
			want := mine && root.Name == ""
			if is, err := there(filepath.Join(root.Path, StageDir, BeforePrefix+"id")); is != want || err != nil {
				t.Errorf("%s keeps something: %t (%v), want %t", root.Path, is, err, want)
			}
		}
		if b, err := os.ReadFile(filepath.Join(kept, "data", "mine")); mine && string(b) != "mine" {
			t.Errorf("what was mine is %q, %v", b, err)
		}
	}
}

// TestAnUndoIsASwap brings back what a swap has put aside, by another one.
func TestAnUndoIsASwap(t *testing.T) {
	base := t.TempDir()
	s, cover := swapHome(t, base)
	if err := swapOnce(s, cover); err != nil {
		t.Fatal(err)
	}
	undo := &Swap{ID: "undo", From: BeforePrefix + "id", Roots: s.Roots}
	extra := func(r Root, rel string, isDir bool) Part {
		if strings.HasPrefix(rel, "extra") {
			return Replaced // the kind knows it by now
		}
		return cover(r, rel, isDir)
	}
	if err := swapOnce(undo, extra); err != nil {
		t.Fatal(err)
	}
	if got := seen(t, base); got != swapBefore {
		t.Fatalf("after the undo:\n%s", got)
	}
}

func TestTornSwapJournals(t *testing.T) {
	base := t.TempDir()
	s, cover := swapHome(t, base)
	if err := errors.Join(s.Begin(), s.Plan(cover)); err != nil {
		t.Fatal(err)
	}
	file := SwapFile(s.Roots[0].Path)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 3} {
		write(t, file, whole[:n])
		got, err := ReadSwap(fsx.FS{}, s.Roots[0].Path)
		if err != nil || got.Step != SwapMoving || len(got.Moves) != len(s.Moves) {
			t.Fatalf("the copy was not read: %+v, %v", got, err)
		}
	}
	write(t, file+"~", whole[:9])
	if _, err := ReadSwap(fsx.FS{}, s.Roots[0].Path); !errors.Is(err, ErrTornSwap) {
		t.Fatalf("both are torn: %v", err)
	}
}

func FuzzSwap(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"a","from":"b","step":"moving","roots":[{"name":"","path":"/h"}],"moves":[{"root":"","rel":"data/x","goes":true},{"root":"","rel":{"b64":"/w=="},"goes":false}]}`))
	f.Add([]byte(`{"format":1,"id":"..","from":"b","step":"back","roots":[{"path":"/h"}],"moves":[{"rel":"../x"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSwap(b, "/h")
		if err != nil {
			return
		}
		for _, m := range s.Moves {
			from, to := s.ends(m)
			for _, p := range []string{from, to} {
				root, _ := s.root(m.Root)
				if rel, err := filepath.Rel(root, p); filepath.IsAbs(root) && (err != nil || !filepath.IsLocal(rel) || rel == ".") {
					t.Fatalf("%q leads out of %q", p, root)
				}
			}
		}
	})
}
