package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// KeysRestore brings the files of a bundle back. Construct it with all fields set but
// those that may be nil or empty.
type KeysRestore struct {
	Catalog    *uploader.Catalog
	Node       string // its name in the store
	Selector   string
	Identities bundle.Identities
	// Home is where the files of the node's home go, Root is above all others: "/" on
	// the machine itself.
	Home, Root string
	// Only restores what one of these patterns fits; empty: everything.
	Only  []string
	Owner *snapshot.Owner // of all files; nil: as docs/keys.md says
	// OtherNode allows the bundle of a node over the files of another.
	OtherNode bool
	// DryRun makes the plan and changes nothing.
	DryRun bool
	// Signs decides about the files that sign blocks, a validator key and its sign
	// state: nil leaves them out. It is called before anything is written, with those of
	// the bundle that are wanted, and returns those that are to be written, perhaps with
	// another content; its error ends the restore.
	Signs func(ctx context.Context, held []SigningFile) ([]SigningFile, error)
	// Confirm is shown the plan, also of a dry run, and asked before anything is
	// written; an error is the answer no.
	Confirm func(plan []KeysFile) error
	Events  ui.Sink
	Now     func() time.Time
	FS      fsx.FS
}

// SigningFile is a file of a bundle that signs blocks, or says what was signed.
type SigningFile struct {
	bundle.Entry
	To   string // where it would go
	Data []byte
}

// KeysFile is what a restore does to one file.
type KeysFile struct {
	Name   string `json:"name"` // in the bundle
	Class  string `json:"class"`
	To     string `json:"to"`
	Action string `json:"action"` // new, replace, same, left out
	Why    string `json:"why,omitempty"`
	Saved  string `json:"saved,omitempty"` // where what is there goes
	Mode   string `json:"mode"`
	Owner  string `json:"owner,omitempty"`
	Size   int64  `json:"size"`

	uid, gid int
	sum      string
	data     []byte // of a signing file
}

// The actions of a plan.
const (
	keysNew     = "new"
	keysReplace = "replace"
	keysSame    = "same"
	keysLeft    = "left out"
)

// Writes tells whether the file is written.
func (f KeysFile) Writes() bool { return f.Action == keysNew || f.Action == keysReplace }

// MessageType implements ui.Event.
func (KeysFile) MessageType() string { return "keys_file" }

// Line implements ui.Event.
func (f KeysFile) Line() string {
	s := fmt.Sprintf("%-8s %s", f.Action, f.To)
	switch f.Action {
	case keysLeft, keysSame:
		return strings.TrimSuffix(fmt.Sprintf("%s (%s): %s", s, f.Class, f.Why), ": ")
	case keysReplace:
		return fmt.Sprintf("%s (%s, %s %s); what is there goes to %s", s, f.Class, f.Mode, f.Owner, path.Base(f.Saved))
	}
	return fmt.Sprintf("%s (%s, %s %s)", s, f.Class, f.Mode, f.Owner)
}

// KeysRestored is what a restore of a bundle has done.
type KeysRestored struct {
	ID      string    `json:"id"`
	Cluster string    `json:"cluster"`
	Node    string    `json:"node"`
	NodeID  string    `json:"node_id,omitempty"`
	Made    time.Time `json:"made"`
	Home    string    `json:"home"`
	Root    string    `json:"root"`
	DryRun  bool      `json:"dry_run"`
	New     int       `json:"new"`
	Changed int       `json:"replaced"`
	Same    int       `json:"same"`
	LeftOut []string  `json:"left_out,omitempty"` // names
	Next    []string  `json:"next,omitempty"`
}

// MessageType implements ui.Event.
func (KeysRestored) MessageType() string { return "keys_restored" }

// Line implements ui.Event.
func (k KeysRestored) Line() string {
	verb := "restored"
	if k.DryRun {
		verb = "would restore"
	}
	s := fmt.Sprintf("%s %s of %s, made %s: %d new, %d replaced, %d were the same, %d left out", verb, k.ID, k.Node, k.Made.UTC().Format(time.RFC3339), k.New, k.Changed, k.Same, len(k.LeftOut))
	for _, n := range k.Next {
		s += "\n  next: " + n
	}
	return s
}

// Run restores. Nothing is written before every byte of the bundle was compared with
// its list, and that with the manifest; then each file is replaced at once, and one
// after the other, by a journal that the next run goes on with.
func (r *KeysRestore) Run(ctx context.Context) (out KeysRestored, err error) {
	var place *keysPlace
	if !r.DryRun {
		if place, err = r.claim(); err != nil {
			return out, err
		}
		defer func() { err = errors.Join(err, place.leave()) }()
	}
	d, err := r.decide(ctx)
	if err != nil || r.DryRun {
		return d.out, err
	}
	if err := place.stage(ctx, d, ""); err != nil {
		return d.out, err
	}
	if _, err := place.finish(); err != nil {
		return d.out, err
	}
	return d.done(), nil
}

// claim admits this restore into the home, and finishes an earlier one.
func (r *KeysRestore) claim() (*keysPlace, error) {
	place, err := claimPlace(r.FS, r.Home)
	if err != nil {
		return nil, err
	}
	done, err := place.finish()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finish an earlier restore of keys: %w", err), place.leave())
	}
	if done > 0 {
		r.Events.Emit(Warning{Text: fmt.Sprintf("an earlier restore of keys was finished first: %d files", done)})
	}
	return place, nil
}

// decided is a restore that was looked into, and agreed to. Nothing of it is written.
type decided struct {
	bundle *bundle.Bundle
	plan   []KeysFile
	next   []string // once it is done
	out    KeysRestored
}

func (d decided) done() KeysRestored {
	d.out.Next = append(d.next, d.out.Next...)
	return d.out
}

// decide opens the bundle, makes the plan, and asks.
func (r *KeysRestore) decide(ctx context.Context) (d decided, err error) {
	if d.bundle, err = r.open(ctx); err != nil {
		return d, err
	}
	c := d.bundle.Contents
	if d.plan, err = r.plan(ctx, d.bundle); err != nil {
		return d, err
	}
	d.out = KeysRestored{ID: c.ID, Cluster: c.Cluster, Node: c.Node, NodeID: c.NodeID, Made: c.Made, Home: r.Home, Root: r.Root, DryRun: r.DryRun}
	signs := false
	for _, f := range d.plan {
		switch f.Action {
		case keysNew:
			d.out.New++
		case keysReplace:
			d.out.Changed++
		case keysSame:
			d.out.Same++
		case keysLeft:
			d.out.LeftOut = append(d.out.LeftOut, f.Name)
			signs = signs || bundle.Class(f.Class).Signs()
		}
	}
	if signs {
		d.out.Next = append(d.out.Next, "the validator key and its sign state were left in the bundle: a key that signs in two places costs its stake")
	}
	d.next = r.next(d.plan)
	return d, r.Confirm(d.plan)
}

// next is what is left to do by hand.
func (r *KeysRestore) next(plan []KeysFile) (next []string) {
	did := func(class bundle.Class) bool {
		return slices.ContainsFunc(plan, func(f KeysFile) bool {
			return f.Class == string(class) && f.Writes()
		})
	}
	if did(bundle.Service) && r.Root == "/" {
		next = append(next, "systemctl daemon-reload, as root: the service's definition may have changed")
	}
	if did(bundle.NodeKey) {
		next = append(next, "make sure that no other node runs with this node key: peers let in only one of two")
	}
	if did(bundle.Config) || did(bundle.NodeKey) {
		next = append(next, "look at the addresses in the configuration if this is another machine; a node that runs takes it up at its next start")
	}
	return next
}

// open selects the bundle, decrypts it, and compares it with what the store says of it.
func (r *KeysRestore) open(ctx context.Context) (*bundle.Bundle, error) {
	sel, err := r.Catalog.SelectBundle(ctx, r.Node, r.Selector)
	if err != nil {
		return nil, err
	}
	s, err := r.Catalog.BundleSignature(ctx, sel)
	if err != nil {
		return nil, err
	}
	if text := unknownSigner("bundle "+sel.ID, s); text != "" {
		r.Events.Emit(Warning{Text: text, Hint: "--signer KEY takes only what that key has signed"})
	}
	sealed, err := r.Catalog.GetBundle(ctx, sel)
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(sealed, r.Identities)
	if err != nil {
		return nil, fmt.Errorf("bundle %s of %s: %w", sel.ID, sel.Node, err)
	}
	if err := agree(sel.Manifest, b.Contents); err != nil {
		return nil, err
	}
	r.Events.Emit(Phase{ID: sel.ID, Phase: "found", Text: fmt.Sprintf("%s of %s (%s), made %s by %s on %s", sel.ID, sel.Node, b.Contents.Preset, b.Contents.Made.UTC().Format(time.RFC3339), b.Contents.Eddy, b.Contents.Host)})
	return b, nil
}

// agree compares a manifest, which anybody may have written who may write to the
// store, with the list inside the bundle.
func agree(m *uploader.BundleManifest, c *bundle.Contents) error {
	differs := func(what string) error {
		return hint.Add(fmt.Errorf("%w: the manifest of bundle %s and the list inside it differ in %s", snapshot.ErrCorrupt, m.ID, what), "somebody has exchanged one of the two: take another bundle, and look who may write to the store")
	}
	switch {
	case m.ID != c.ID:
		return differs("the id")
	case m.Cluster != c.Cluster || m.Node != c.Node:
		return differs("whose it is: inside it is " + c.Node + " of " + c.Cluster)
	case m.NodeID != c.NodeID:
		return differs("the node's id")
	case m.Preset != c.Preset || !m.Created.Equal(c.Made):
		return differs("when and of what it was made")
	case m.Signs != c.Held(bundle.ValidatorKey), len(m.Files) != len(c.Files):
		return differs("the files")
	}
	for i, f := range c.Files {
		if g := m.Files[i]; g.Name != f.Name || g.Class != string(f.Class) || g.Size != f.Size || g.Mode != f.Mode {
			return differs(fmt.Sprintf("%.80q", f.Name))
		}
	}
	return nil
}

// plan decides about each file of the bundle.
func (r *KeysRestore) plan(ctx context.Context, b *bundle.Bundle) ([]KeysFile, error) {
	if err := r.sameNode(b.Contents); err != nil {
		return nil, err
	}
	var signing []SigningFile
	wanted := func(e bundle.Entry) bool { return len(r.Only) == 0 || fits(r.Only, e) }
	if r.Signs != nil {
		err := b.Each(func(e bundle.Entry, in io.Reader) error {
			if !e.Class.Signs() || !wanted(e) {
				return nil
			}
			data, err := io.ReadAll(in)
			signing = append(signing, SigningFile{e, bundle.Place(e.Name, r.Home, r.Root), data})
			return err
		})
		if err == nil && len(signing) > 0 {
			signing, err = r.Signs(ctx, signing)
		}
		if err != nil {
			return nil, err
		}
	}
	now := r.Now()
	var plan []KeysFile
	for _, e := range b.Contents.Files {
		f := KeysFile{Name: e.Name, Class: string(e.Class), To: bundle.Place(e.Name, r.Home, r.Root), Mode: e.Mode, Size: e.Size, sum: e.SHA256}
		i := slices.IndexFunc(signing, func(s SigningFile) bool { return s.Name == e.Name })
		switch {
		case !wanted(e):
			f.Action, f.Why = keysLeft, "--only"
		case e.Class.Signs() && i < 0:
			f.Action, f.Why = keysLeft, "what signs blocks is not restored by this"
		default:
			if i >= 0 {
				f.data, f.To = signing[i].Data, signing[i].To
				f.Size, f.sum = int64(len(f.data)), hashOf(f.data)
			}
			if err := r.compare(&f, e, now); err != nil {
				return nil, err
			}
		}
		plan = append(plan, f)
	}
	for _, s := range signing { // what the bundle did not have: a sign state, made for its key
		if slices.ContainsFunc(plan, func(f KeysFile) bool { return f.Name == s.Name }) {
			continue
		}
		f := KeysFile{Name: s.Name, Class: string(s.Class), To: s.To, Mode: s.Mode, Size: int64(len(s.Data)), sum: hashOf(s.Data), data: s.Data}
		if err := r.compare(&f, s.Entry, now); err != nil {
			return nil, err
		}
		plan = append(plan, f)
	}
	return plan, nil
}

// sameNode refuses the bundle of another node than the one whose files are there.
func (r *KeysRestore) sameNode(c *bundle.Contents) error {
	if r.OtherNode || c.NodeID == "" {
		return nil
	}
	there, file, err := bundle.NodeAt(r.Home)
	if err != nil {
		return hint.Add(err, "say --other-node where that key may be replaced, or move the file away")
	}
	if there != "" && there != c.NodeID {
		return hint.Add(fmt.Errorf("%w: the bundle is of node %s (%s), %s is the key of node %s", observer.ErrNotFit, c.NodeID, c.Node, file, there),
			"take the bundle of that node, `eddy keys list` shows whose there are; where this home is to become "+c.Node+" say --other-node")
	}
	return nil
}

// compare looks at what is there.
func (r *KeysRestore) compare(f *KeysFile, e bundle.Entry, now time.Time) error {
	f.uid, f.gid = r.owner(e)
	f.Owner = ownerName(f.uid, f.gid)
	if err := r.stays(e.Name, f.To); err != nil {
		return err
	}
	st, err := os.Lstat(f.To)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		f.Action = keysNew
		return nil
	case err != nil:
		return hint.Add(err, "run eddy as root, or as the node's user")
	case st.Mode()&os.ModeSymlink != 0:
		return hint.Add(fmt.Errorf("%w: %s is a symlink", observer.ErrNotFit, f.To), "something else manages it: remove the link, or restore with --into DIR and put the file where it belongs")
	case !st.Mode().IsRegular():
		return hint.Add(fmt.Errorf("%w: %s is no file", observer.ErrNotFit, f.To), "move it away, or restore with --into DIR")
	}
	sys := st.Sys().(*syscall.Stat_t)
	same, err := sameFile(f.To, f.Size, f.sum)
	if err != nil {
		return hint.Add(err, "run eddy as root, or as the node's user")
	}
	if same && st.Mode().Perm() == e.Perm() && int(sys.Uid) == f.uid && int(sys.Gid) == f.gid {
		f.Action = keysSame
		return nil
	}
	f.Action, f.Saved = keysReplace, savedName(f.To, now)
	return nil
}

// savedName is a name that nothing has, for what is at to now.
func savedName(to string, now time.Time) string {
	saved := to + ".eddy-saved-" + now.UTC().Format("20060102T150405Z")
	for n, first := 2, saved; exists(saved); n++ { // twice in a second
		saved = fmt.Sprintf("%s-%d", first, n)
	}
	return saved
}

// stays refuses to let root write out of the home by a link that the home's owner has
// laid: what a bundle holds may be his as well.
func (r *KeysRestore) stays(name, to string) error {
	if os.Geteuid() != 0 || !bundle.InHome(name) {
		return nil
	}
	home, err := filepath.EvalSymlinks(r.Home)
	dir := filepath.Dir(to)
	for ; err == nil && len(dir) >= len(r.Home); dir = filepath.Dir(dir) {
		real, derr := filepath.EvalSymlinks(dir)
		if errors.Is(derr, os.ErrNotExist) {
			continue
		}
		if rel, rerr := filepath.Rel(home, real); derr != nil || rerr != nil || !filepath.IsLocal(rel) {
			return hint.Add(fmt.Errorf("%w: %s leads out of the home, to %s", observer.ErrNotFit, dir, real), "run eddy as the node's user, or restore with --into DIR and put the file where it belongs")
		}
		return nil
	}
	return nil // the home is not there yet
}

// owner is whom a file will belong to: who is not root gives nothing away. By name,
// because numbers are another machine's; a name that nobody has here is the home's
// owner, or root outside of it.
func (r *KeysRestore) owner(e bundle.Entry) (uid, gid int) {
	if r.Owner != nil {
		return r.Owner.UID, r.Owner.GID
	}
	if os.Geteuid() != 0 {
		return os.Geteuid(), os.Getegid()
	}
	if bundle.InHome(e.Name) {
		if st, err := os.Stat(r.Home); err == nil {
			sys := st.Sys().(*syscall.Stat_t)
			uid, gid = int(sys.Uid), int(sys.Gid)
		}
	}
	u, err := user.Lookup(cmp.Or(e.User, "-"))
	if err != nil {
		return uid, gid
	}
	uid, _ = strconv.Atoi(u.Uid) // numbers on every unix
	gid, _ = strconv.Atoi(u.Gid)
	if g, err := user.LookupGroup(cmp.Or(e.Group, "-")); err == nil {
		gid, _ = strconv.Atoi(g.Gid)
	}
	return uid, gid
}

// fits tells whether one of the patterns means a file: by its name in the bundle, by
// that below home or root, or by its last part.
func fits(globs []string, e bundle.Entry) bool {
	_, below, _ := strings.Cut(e.Name, "/")
	return slices.ContainsFunc(globs, func(glob string) bool {
		return slices.ContainsFunc([]string{e.Name, below, "/" + below, path.Base(e.Name), e.Path}, func(s string) bool {
			ok, err := path.Match(glob, s)
			return ok && err == nil
		})
	})
}

// Look opens the bundle and compares it with all that a restore compares it with. It
// asks no home, and writes nothing.
func (r *KeysRestore) Look(ctx context.Context) (*bundle.Bundle, error) { return r.open(ctx) }
