package bundle

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Want says of which node a bundle is made, and of what.
type Want struct {
	// Home is the node's, absolute.
	Home string
	// Preset is one of PresetNames; "" or "auto": what the home looks like.
	Preset string
	// Service are files and directories of what runs the node.
	Service []string
	// Include and Exclude are patterns of what the operator adds and leaves out:
	// absolute, or below the home. Exclude wins.
	Include, Exclude []string
	// ValidatorKey takes the validator key along, and with it its sign state.
	ValidatorKey bool
	// Extra are secrets that lie in no file: their paths say where they would.
	Extra []Source
}

// Found is what a bundle will be made of.
type Found struct {
	Preset     string
	Home       string
	NodeID     string // "" where the node has no key yet
	Files      []Source
	LeftOut    []LeftOut
	Cosmovisor *Cosmovisor
}

// Source is a file that goes into a bundle.
type Source struct {
	Path  string // absolute
	Name  string // in the bundle
	Class Class
	// Data is its content where it is in memory only; then it is root's, of mode 0600.
	Data []byte
}

// ErrNoNode: the home is of no kind that is known.
var ErrNoNode = errors.New("no node is to be seen")

// Find looks which files belong into a bundle. It changes nothing, and reads no more
// than it needs to tell what signs.
func Find(ctx context.Context, w Want) (Found, error) {
	f := finder{ctx: ctx, w: w, taken: map[string]bool{}}
	p, ok := detect(w.Home)
	if w.Preset != "" && w.Preset != "auto" {
		i := slices.IndexFunc(presets, func(p preset) bool { return p.name == w.Preset })
		if ok = i >= 0; ok {
			p = presets[i]
		}
	}
	if _, err := os.ReadDir(w.Home); err != nil {
		return Found{}, hint.Add(fmt.Errorf("the node's home: %w", err), "set `replica.home: DIR`, and run eddy as root or as the node's user")
	}
	if !ok {
		return Found{}, hint.Add(fmt.Errorf("%s: %w", w.Home, ErrNoNode), "set `replica.home: DIR` to the directory that holds the node's config, or say of what kind it is: `keys.preset: PRESET`, one of "+strings.Join(PresetNames(), ", "))
	}
	f.out = Found{Preset: p.name, Home: w.Home}
	if err := f.comet(p); err != nil {
		return Found{}, err
	}
	rules := p.files
	for _, s := range w.Service {
		rules = append(rules[:len(rules):len(rules)], rule{escaped(s), Service})
	}
	for _, s := range w.Include {
		rules = append(rules[:len(rules):len(rules)], rule{s, Extra})
	}
	for _, r := range rules {
		if err := f.rule(r); err != nil {
			return Found{}, err
		}
	}
	if err := f.ctx.Err(); err != nil {
		return Found{}, context.Cause(ctx)
	}
	for _, s := range w.Extra {
		// The newer one of the same name: a file of it may have been put back once.
		f.out.Files = slices.DeleteFunc(f.out.Files, func(o Source) bool { return o.Path == s.Path })
		s.Name, s.Class = Name(w.Home, s.Path), Extra
		f.out.Files = append(f.out.Files, s)
	}
	if len(f.out.Files) == 0 {
		return Found{}, hint.Add(fmt.Errorf("nothing of %s can be taken", w.Home), "run eddy as root, or as the node's user")
	}
	slices.SortFunc(f.out.Files, func(a, b Source) int {
		// What changes with every block is read last, and once.
		return cmp.Or(cmp.Compare(last(a), last(b)), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(f.out.LeftOut, func(a, b LeftOut) int { return cmp.Compare(a.Path, b.Path) })
	f.out.Cosmovisor = cosmovisor(w.Home)
	return f.out, nil
}

func last(s Source) int {
	if s.Class == SignState {
		return 1
	}
	return 0
}

type finder struct {
	ctx   context.Context
	w     Want
	out   Found
	keys  comet
	taken map[string]bool // by path; also those that were left out
	key   bool            // a validator key is among the files
}

// comet takes the files that the node's own configuration names, wherever they are.
func (f *finder) comet(p preset) error {
	dir := f.w.Home
	switch p.name {
	case "loom":
		dir = filepath.Join(dir, "chaindata")
	case "cosmos-sdk", "cometbft":
	default:
		return nil
	}
	var err error
	if f.keys, err = cometFiles(dir, p.name == "loom"); err != nil {
		return err
	}
	for _, k := range []rule{{f.keys.validatorKey, ValidatorKey}, {f.keys.signState, SignState}, {f.keys.nodeKey, NodeKey}, {f.keys.genesis, Config}} {
		if k.glob == "" || !isFile(k.glob) {
			continue
		}
		if err := f.file(k.glob, k.class); err != nil {
			return err
		}
	}
	for _, t := range f.keys.tls {
		if err := f.file(t, Config); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(f.keys.nodeKey)
	switch {
	case errors.Is(err, fs.ErrNotExist): // not started yet
		return nil
	case err != nil:
		return hint.Add(fmt.Errorf("the node's key: %w", err), "run eddy as root, or as the node's user")
	}
	f.out.NodeID, err = NodeID(b)
	if err != nil {
		return fmt.Errorf("%s: %w", f.keys.nodeKey, err)
	}
	return nil
}

// rule takes what a pattern names. What is absent is no error: a preset names what
// there may be.
func (f *finder) rule(r rule) error {
	glob := r.glob
	if !filepath.IsAbs(glob) {
		glob = filepath.Join(escaped(f.w.Home), glob)
	}
	names, err := filepath.Glob(glob)
	if err != nil {
		return hint.Add(fmt.Errorf("keys.include: %q is no pattern", r.glob), "close the bracket, or write \\[ for one")
	}
	if len(names) == 0 && r.class == Extra {
		f.leave(r.glob, "nothing has that name", false)
	}
	for _, name := range names {
		if err := f.ctx.Err(); err != nil {
			return context.Cause(f.ctx)
		}
		fi, err := os.Stat(name)
		if err != nil {
			f.leave(name, bare(err), false)
			continue
		}
		if !fi.IsDir() {
			if err := f.file(name, r.class); err != nil {
				return err
			}
			continue
		}
		err = filepath.WalkDir(name+"/", func(p string, d fs.DirEntry, err error) error {
			p = filepath.Clean(p)
			if err != nil {
				f.leave(p, bare(err), false)
				return nil
			}
			if d.IsDir() {
				return context.Cause(f.ctx)
			}
			return f.file(p, r.class)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// escaped makes a pattern that fits the path only.
func escaped(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}

// file takes one file, unless something speaks against it.
func (f *finder) file(name string, class Class) error {
	if f.taken[name] {
		return nil
	}
	f.taken[name] = true
	fi, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.leave(name, "it is named, and not there", false)
		return nil
	case err != nil:
		f.leave(name, bare(err), false)
		return nil
	case !fi.Mode().IsRegular():
		if fi.Mode()&fs.ModeSocket == 0 {
			f.leave(name, "no plain file", false)
		}
		return nil
	case f.excluded(name):
		f.leave(name, "keys.exclude", true)
		return nil
	}
	inBundle := Name(f.w.Home, name)
	if !validName(inBundle) {
		f.leave(name, "its name", false)
		return nil
	}
	told, err := f.classOf(name, fi)
	if err != nil {
		f.leave(name, bare(err), false)
		return nil
	}
	switch {
	case told == secret:
		f.leave(name, "it holds an age identity: who has that opens every bundle; it does not belong on this host", false)
		return nil
	case told != "":
		class = told
	}
	switch {
	case class.Signs() && !f.w.ValidatorKey:
		f.leave(name, string(class)+": only with keys.validator_key", true)
		return nil
	case class == SignState && !f.key:
		f.leave(name, "the key that it belongs to is not here", true)
		return nil
	}
	f.key = f.key || class == ValidatorKey
	if len(f.out.Files) == maxFiles {
		return hint.Add(fmt.Errorf("%w: more than %d files", ErrTooLarge, maxFiles), "name less in `keys.include: [GLOB]`")
	}
	f.out.Files = append(f.out.Files, Source{Path: name, Name: inBundle, Class: class})
	return nil
}

func (f *finder) leave(name, why string, expected bool) {
	f.out.LeftOut = append(f.out.LeftOut, LeftOut{Path: name, Reason: why, Expected: expected})
}

// excluded tells what the operator does not want: by the whole path, by that below
// the home, or by a directory above.
func (f *finder) excluded(name string) bool {
	for _, glob := range f.w.Exclude {
		if !filepath.IsAbs(glob) {
			glob = filepath.Join(escaped(f.w.Home), glob)
		}
		for p := name; p != "/" && p != "."; p = path.Dir(p) {
			if ok, err := filepath.Match(glob, p); ok && err == nil { // config has tried the pattern
				return true
			}
		}
	}
	return false
}

// bare is an error without the path that is named beside it.
func bare(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// cosmovisor looks at the programs of a home; nil where there are none.
func cosmovisor(home string) *Cosmovisor {
	c := &Cosmovisor{Dir: filepath.Join(home, "cosmovisor")}
	if to, err := os.Readlink(filepath.Join(c.Dir, "current")); err == nil {
		if rel, err := filepath.Rel(c.Dir, to); filepath.IsAbs(to) && err == nil {
			to = rel
		}
		c.Current = to
	}
	for _, glob := range []string{"genesis/bin/*", "upgrades/*/bin/*"} {
		bins, err := filepath.Glob(filepath.Join(escaped(c.Dir), glob))
		if err != nil {
			continue // the pattern is right
		}
		for _, bin := range bins {
			fi, err := os.Stat(bin)
			if err != nil || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 {
				continue
			}
			rel, err := filepath.Rel(c.Dir, filepath.Dir(filepath.Dir(bin)))
			if err != nil {
				continue
			}
			p := Program{Dir: rel, Name: filepath.Base(bin), Size: fi.Size()}
			if b, err := buildinfo.ReadFile(bin); err == nil {
				p.Module, p.Version = strings.TrimSpace(b.Main.Path+" "+b.Main.Version), b.GoVersion
				for _, s := range b.Settings {
					if s.Key == "vcs.revision" {
						p.Commit = s.Value
					}
				}
			}
			c.Programs = append(c.Programs, p)
		}
	}
	if c.Current == "" && c.Programs == nil {
		return nil
	}
	return c
}

// inode names a file whatever path leads to it.
func inode(fi fs.FileInfo) [2]uint64 {
	st := fi.Sys().(*syscall.Stat_t)
	return [2]uint64{st.Dev, st.Ino}
}

// NodeAt is the id of the node whose key lies in a home, "" where none does. file is
// where its configuration has it, or its usual place where that cannot be read: a
// broken one may be why somebody asks.
func NodeAt(home string) (id, file string, err error) {
	dir := home
	p, _ := detect(home)
	if p.name == "loom" {
		dir = filepath.Join(home, "chaindata")
	}
	c, err := cometFiles(dir, p.name == "loom")
	if err != nil {
		c.nodeKey = filepath.Join(dir, "config", "node_key.json")
	}
	b, err := os.ReadFile(c.nodeKey)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return "", "", nil
	}
	if err == nil {
		id, err = NodeID(b)
	}
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", c.nodeKey, err)
	}
	return id, c.nodeKey, nil
}
