package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

type keysHeard struct{ lines []string }

func (h *keysHeard) Emit(e ui.Event) { h.lines = append(h.lines, e.Line()) }

func (h *keysHeard) says(text string) bool {
	return slices.ContainsFunc(h.lines, func(l string) bool { return strings.Contains(l, text) })
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, file, text string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Dir(file), 0o700))
	ok(t, os.WriteFile(file, []byte(text), 0o600))
}

func get(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	ok(t, err)
	return string(b)
}

// vault is a store with one node beside it.
type vault struct {
	home string
	id   string
	ids  bundle.Identities
	keys Keys
	said *keysHeard
	now  time.Time
}

func newVault(t *testing.T) *vault {
	t.Helper()
	dir := t.TempDir()
	v := &vault{home: filepath.Join(dir, "home"), said: &keysHeard{}, now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
	put(t, filepath.Join(v.home, "config", "config.toml"), "moniker = \"a\"\n")
	put(t, filepath.Join(v.home, "config", "app.toml"), "pruning = \"nothing\"\n")
	put(t, filepath.Join(v.home, "config", "genesis.json"), "{}")
	ok(t, os.MkdirAll(filepath.Join(v.home, "data"), 0o700))
	key, err := p2p.LoadOrGenNodeKey(filepath.Join(v.home, "config", "node_key.json"))
	ok(t, err)
	v.id = string(key.ID())
	privval.GenFilePV(filepath.Join(v.home, "config", "priv_validator_key.json"), filepath.Join(v.home, "data", "priv_validator_state.json")).Save()
	secret, public, err := bundle.NewIdentity(false, time.Now())
	ok(t, err)
	to, err := bundle.ParseRecipients("test", []string{public})
	ok(t, err)
	v.ids, err = bundle.ParseIdentities("test", secret, nil)
	ok(t, err)
	store, err := uploader.Open(t.Context(), uploader.Config{URL: "file://" + filepath.Join(dir, "bucket")})
	ok(t, err)
	v.keys = Keys{
		Catalog: uploader.NewCatalog(store, "gaia"), Workdir: Workdir{Dir: filepath.Join(dir, "state")}, Cluster: "gaia", Node: "val-1", Host: "h", Version: "v1",
		Want: bundle.Want{Home: v.home}, To: to, Identities: v.ids, Events: v.said, Now: func() time.Time { return v.now },
	}
	return v
}

func (v *vault) backup(t *testing.T) KeysSaved {
	t.Helper()
	out, err := v.keys.Run(t.Context())
	ok(t, err)
	return out
}

func (v *vault) restore(home string) *KeysRestore {
	return &KeysRestore{
		Catalog: v.keys.Catalog, Node: "val-1", Selector: "latest", Identities: v.ids, Home: home, Root: filepath.Join(filepath.Dir(home), "root"),
		Confirm: func([]KeysFile) error { return nil }, Events: v.said, Now: func() time.Time { return v.now },
	}
}

func TestKeysAreStoredWhenTheyChange(t *testing.T) {
	v := newVault(t)
	first := v.backup(t)
	if first.Outcome != "ready" || first.NodeID != v.id || !first.Opened || first.Signs || first.Files != 4 {
		t.Fatalf("%+v", first)
	}
	v.now = v.now.Add(24 * time.Hour)
	if again := v.backup(t); again.Outcome != "unchanged" || again.ID != first.ID {
		t.Errorf("%+v", again)
	}
	// The bundle that the note names must be there, and be the latest.
	sealed := v.keys.Catalog.BundleKey("val-1", first.ID)
	ok(t, v.keys.Catalog.Store().Delete(t.Context(), sealed))
	second := v.backup(t)
	if second.Outcome != "ready" {
		t.Errorf("after the only one was lost: %+v", second)
	}
	v.now = v.now.Add(29 * 24 * time.Hour)
	if again := v.backup(t); again.Outcome != "unchanged" {
		t.Errorf("29 days: %+v", again)
	}
	v.now = v.now.Add(2 * 24 * time.Hour)
	if again := v.backup(t); again.Outcome != "ready" {
		t.Errorf("31 days: %+v", again)
	}
	put(t, filepath.Join(v.home, "config", "app.toml"), "pruning = \"default\"\n")
	if again := v.backup(t); again.Outcome != "ready" {
		t.Errorf("changed: %+v", again)
	}
	ok(t, os.Remove(v.keys.Workdir.path(keysFile)))
	if again := v.backup(t); again.Outcome != "ready" {
		t.Errorf("without the note: %+v", again)
	}
	// The note's digest is nowhere in the store.
	for o, err := range v.keys.Catalog.Store().List(t.Context(), "", "") {
		ok(t, err)
		b, _, err := v.keys.Catalog.Store().GetSmall(t.Context(), o.Key, 1<<20)
		ok(t, err)
		var n keysNote
		_, err = v.keys.Workdir.read(keysFile, &n)
		ok(t, err)
		if bytes.Contains(b, []byte(n.Digest)) {
			t.Errorf("the digest is in %s", o.Key)
		}
	}
}

func TestTheValidatorKeyIsSaidLoudly(t *testing.T) {
	v := newVault(t)
	v.keys.Want.ValidatorKey = true
	if out := v.backup(t); !out.Signs || out.Files != 6 || !v.said.says("THE VALIDATOR KEY") {
		t.Errorf("%+v %q", out, v.said.lines)
	}
	m, err := v.keys.Catalog.SelectBundle(t.Context(), "val-1", "latest")
	if err != nil || !m.Manifest.Signs {
		t.Errorf("%+v, %v", m.Manifest, err)
	}
	// It is never restored by itself, whatever is asked for.
	home := filepath.Join(t.TempDir(), "home")
	for _, only := range [][]string{nil, {"priv_validator_key.json"}, {"home/*/*"}} {
		r := v.restore(home)
		r.Only = only
		out, err := r.Run(t.Context())
		ok(t, err)
		if len(out.LeftOut) < 2 {
			t.Errorf("%q: %+v", only, out)
		}
	}
	for _, name := range []string{"config/priv_validator_key.json", "data/priv_validator_state.json"} {
		if _, err := os.Lstat(filepath.Join(home, name)); err == nil {
			t.Errorf("%s was restored", name)
		}
	}
	// Who decides about what signs sees it first, may change it, add to it, or refuse.
	r := v.restore(home)
	r.Signs = func(_ context.Context, held []SigningFile) ([]SigningFile, error) {
		return nil, fmt.Errorf("%w: %d of them, the key signs elsewhere", observer.ErrNotFit, len(held))
	}
	if _, err := r.Run(t.Context()); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "2 of them") {
		t.Errorf("%v", err)
	}
	r.Signs = func(_ context.Context, held []SigningFile) ([]SigningFile, error) {
		var out []SigningFile
		for _, h := range held {
			if h.Class == bundle.SignState {
				h.Data = []byte("a floor")
			}
			out = append(out, h)
		}
		return append(out, SigningFile{Entry: bundle.Entry{Name: "home/data/other_state.json", Class: bundle.SignState, Mode: "0600"}, To: filepath.Join(home, "data", "other_state.json"), Data: []byte("another")}), nil
	}
	if _, err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if get(t, filepath.Join(home, "config/priv_validator_key.json")) != get(t, filepath.Join(v.home, "config/priv_validator_key.json")) ||
		get(t, filepath.Join(home, "data/priv_validator_state.json")) != "a floor" || get(t, filepath.Join(home, "data/other_state.json")) != "another" {
		t.Error("what was decided is not what was written")
	}
}

func TestTwoNodesOfOneNameAreRefused(t *testing.T) {
	v := newVault(t)
	v.backup(t)
	ok(t, os.Remove(filepath.Join(v.home, "config", "node_key.json")))
	_, err := p2p.LoadOrGenNodeKey(filepath.Join(v.home, "config", "node_key.json"))
	ok(t, err)
	if _, err := v.keys.Run(t.Context()); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(hint.Of(err), "--new-node-key") {
		t.Errorf("%v", err)
	}
	v.keys.NewNodeKey = true
	v.backup(t)
	v.keys.NewNodeKey = false
	v.backup(t)
}

func TestWhatIsMissingIsAWarning(t *testing.T) {
	v := newVault(t)
	v.keys.Want.Include = []string{"config/gone.conf"}
	out, err := v.keys.Run(t.Context())
	if !errors.Is(err, ErrWarnings) || out.Outcome != "ready" || len(out.Warnings) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err = v.keys.Run(t.Context()); !errors.Is(err, ErrWarnings) || out.Outcome != "unchanged" {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestKeysComeBack(t *testing.T) {
	v := newVault(t)
	outside := filepath.Join(filepath.Dir(v.home), "unit.service")
	put(t, outside, "[Service]\n")
	ok(t, os.Chmod(outside, 0o644))
	v.keys.Want.Service = []string{outside}
	v.backup(t)
	home := filepath.Join(t.TempDir(), "a", "home")
	r := v.restore(home)
	r.DryRun = true
	out, err := r.Run(t.Context())
	if err != nil || out.New != 5 {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := os.Lstat(filepath.Dir(home)); err == nil {
		t.Error("a dry run has made a directory")
	}
	r.DryRun = false
	if out, err = r.Run(t.Context()); err != nil || out.New != 5 || out.Changed != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, name := range []string{"config/config.toml", "config/node_key.json", "config/app.toml", "config/genesis.json"} {
		if get(t, filepath.Join(home, name)) != get(t, filepath.Join(v.home, name)) {
			t.Errorf("%s differs", name)
		}
	}
	if fi, err := os.Stat(filepath.Join(r.Root, outside)); err != nil || fi.Mode() != 0o644 {
		t.Errorf("%v, %v", fi, err)
	}
	// Again: nothing to do. Changed: the old one is kept beside. Only: nothing else.
	if out, err = r.Run(t.Context()); err != nil || out.Same != 5 {
		t.Errorf("%+v, %v", out, err)
	}
	put(t, filepath.Join(home, "config", "app.toml"), "mine")
	put(t, filepath.Join(home, "config", "config.toml"), "mine too")
	r.Only = []string{"config/app.*"}
	if out, err = r.Run(t.Context()); err != nil || out.Changed != 1 || len(out.LeftOut) != 4 {
		t.Errorf("%+v, %v", out, err)
	}
	if saved := get(t, filepath.Join(home, "config", "app.toml.eddy-saved-20261120T120000Z")); saved != "mine" {
		t.Errorf("saved: %q", saved)
	}
	// Once more in the same second: both are kept.
	put(t, filepath.Join(home, "config", "app.toml"), "mine again")
	if out, err = r.Run(t.Context()); err != nil || out.Changed != 1 {
		t.Errorf("%+v, %v", out, err)
	}
	for name, want := range map[string]string{"": "mine", "-2": "mine again"} {
		if saved := get(t, filepath.Join(home, "config", "app.toml.eddy-saved-20261120T120000Z"+name)); saved != want {
			t.Errorf("saved%s: %q", name, saved)
		}
	}
	if get(t, filepath.Join(home, "config", "config.toml")) != "mine too" {
		t.Error("--only has let something else through")
	}
	if left, err := os.ReadDir(filepath.Join(home, ".eddy")); err == nil {
		t.Errorf("left: %v", left)
	}
}

func TestRestoresOfKeysThatAreRefused(t *testing.T) {
	v := newVault(t)
	v.backup(t)
	home := filepath.Join(t.TempDir(), "home")
	put(t, filepath.Join(home, "config", "config.toml"), "mine")
	stranger, _, err := bundle.NewIdentity(false, time.Now())
	ok(t, err)
	strange, err := bundle.ParseIdentities("x", stranger, nil)
	ok(t, err)
	m, err := v.keys.Catalog.SelectBundle(t.Context(), "val-1", "latest")
	ok(t, err)
	for _, c := range []struct {
		name   string
		change func(r *KeysRestore)
		want   error
	}{
		{"no identity", func(r *KeysRestore) { r.Identities = nil }, bundle.ErrIdentity},
		{"wrong identity", func(r *KeysRestore) { r.Identities = strange }, bundle.ErrIdentity},
		{"no such node", func(r *KeysRestore) { r.Node = "val-9" }, uploader.ErrNoSuchBackup},
		{"not confirmed", func(r *KeysRestore) { r.Confirm = func([]KeysFile) error { return ErrNotConfirmed } }, ErrNotConfirmed},
		{"another node", func(r *KeysRestore) {
			_, err := p2p.LoadOrGenNodeKey(filepath.Join(r.Home, "config", "node_key.json"))
			ok(t, err)
		}, observer.ErrNotFit},
		{"symlink", func(r *KeysRestore) {
			ok(t, os.Symlink("/etc/passwd", filepath.Join(r.Home, "config", "app.toml")))
		}, observer.ErrNotFit},
		{"directory", func(r *KeysRestore) { ok(t, os.Mkdir(filepath.Join(r.Home, "config", "app.toml"), 0o700)) }, observer.ErrNotFit},
		{"manifest of another bundle", func(r *KeysRestore) {
			body, _, err := r.Catalog.Store().GetSmall(t.Context(), "gaia/keys/val-1/"+m.ID+"/manifest.json", 1<<20)
			ok(t, err)
			forged := strings.Replace(string(body), v.id, strings.Repeat("0", 40), 1)
			_, err = r.Catalog.Store().PutSmall(t.Context(), "gaia/keys/val-1/"+m.ID+"/manifest.json", []byte(forged), "", uploader.Condition{})
			ok(t, err)
		}, snapshot.ErrCorrupt},
	} {
		dir := filepath.Join(t.TempDir(), "home")
		ok(t, os.CopyFS(dir, os.DirFS(home)))
		r := v.restore(dir)
		c.change(r)
		_, err := r.Run(t.Context())
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if !errors.Is(err, ErrNotConfirmed) && hint.Of(err) == "" {
			t.Errorf("%s: no hint", c.name)
		}
		if get(t, filepath.Join(dir, "config", "config.toml")) != "mine" {
			t.Errorf("%s: something was replaced", c.name)
		}
		if all, err := filepath.Glob(dir + "/config/.*"); err != nil || len(all) > 0 {
			t.Errorf("%s: left %q", c.name, all)
		}
	}
}

// Who owns a home must not make root write elsewhere, or move what he likes.
func TestRootIsNotLedOutOfAHome(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can be led
	}
	v := newVault(t)
	v.backup(t)
	home := filepath.Join(t.TempDir(), "home")
	elsewhere := t.TempDir()
	ok(t, os.Mkdir(home, 0o700))
	ok(t, os.Symlink(elsewhere, filepath.Join(home, "config")))
	if _, err := v.restore(home).Run(t.Context()); !errors.Is(err, observer.ErrNotFit) {
		t.Errorf("%v", err)
	}
	ok(t, os.Remove(filepath.Join(home, "config")))
	ok(t, os.Mkdir(filepath.Join(home, ".eddy"), 0o700))
	from, to := filepath.Join(elsewhere, "from"), filepath.Join(elsewhere, "to")
	put(t, from, "mine")
	journal := filepath.Join(home, ".eddy", "keys.json")
	put(t, journal, fmt.Sprintf(`{"format":1,"min_reader":1,"id":"x","moves":[{"from":%q,"to":%q}]}`, from, to))
	ok(t, os.Chown(journal, 65534, 65534))
	if _, err := v.restore(home).Run(t.Context()); !errors.Is(err, observer.ErrNotFit) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(to); err == nil {
		t.Error("a journal of somebody else was followed")
	}
}

// A restored file belongs to whom it did, by name, and else to the home's owner.
func TestOwnersOfRestoredKeys(t *testing.T) {
	if os.Geteuid() != 0 {
		return // who is not root gives nothing away
	}
	v := newVault(t)
	ok(t, os.Chown(filepath.Join(v.home, "config", "app.toml"), 65534, 65534)) // nobody:nogroup
	ok(t, os.Chown(filepath.Join(v.home, "config", "genesis.json"), 54321, 54321))
	v.backup(t)
	home := filepath.Join(t.TempDir(), "home")
	ok(t, os.Mkdir(home, 0o700))
	ok(t, os.Chown(home, 1234, 1235))
	_, err := v.restore(home).Run(t.Context())
	ok(t, err)
	for name, want := range map[string][2]uint32{"app.toml": {65534, 65534}, "genesis.json": {1234, 1235}, "config.toml": {0, 0}, ".": {1234, 1235}} {
		fi, err := os.Stat(filepath.Join(home, "config", name))
		ok(t, err)
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s belongs to %d:%d, want %v", name, st.Uid, st.Gid, want)
		}
	}
}

// dies is a disk on which the nth change is not made, nor any after it.
type dies struct{ left int }

var errDied = errors.New("died")

func (d *dies) Do(_ fsx.Effect, do func() error) error {
	if d.left--; d.left < 0 {
		return errDied
	}
	return do()
}

// A restore that is killed at any of its changes leaves each file old or new, and the
// next one ends it: no file is lost, none is half, what was there is beside.
func TestARestoreOfKeysDiesAnywhere(t *testing.T) {
	v := newVault(t)
	v.backup(t)
	before := map[string]string{"config/config.toml": "mine", "config/app.toml": "mine too"}
	for n := 0; ; n++ {
		home := filepath.Join(t.TempDir(), "home")
		for name, text := range before {
			put(t, filepath.Join(home, name), text)
		}
		r := v.restore(home)
		r.FS = fsx.FS{Effects: &dies{n}}
		_, err := r.Run(t.Context())
		for name, text := range before {
			if now := get(t, filepath.Join(home, name)); now != text && now != get(t, filepath.Join(v.home, name)) {
				t.Fatalf("killed at %d: %s is neither old nor new", n, name)
			}
		}
		r.FS = fsx.FS{}
		if err != nil {
			if !errors.Is(err, errDied) {
				t.Fatalf("killed at %d: %v", n, err)
			}
			v.now = v.now.Add(time.Second) // another stamp than that of the killed one
			if _, err := r.Run(t.Context()); err != nil {
				t.Fatalf("after one that was killed at %d: %v", n, err)
			}
		}
		for name, text := range before {
			if get(t, filepath.Join(home, name)) != get(t, filepath.Join(v.home, name)) {
				t.Fatalf("killed at %d: %s is not restored", n, name)
			}
			saved, gerr := filepath.Glob(filepath.Join(home, name) + ".eddy-saved-*")
			if gerr != nil || len(saved) != 1 || get(t, saved[0]) != text {
				t.Fatalf("killed at %d: what was there is in %q, %v", n, saved, gerr)
			}
		}
		if left, gerr := filepath.Glob(home + "/config/.*"); gerr != nil || len(left) > 0 {
			t.Fatalf("killed at %d: left %q", n, left)
		}
		if err == nil {
			if n < 15 {
				t.Fatalf("only %d changes were seen", n)
			}
			return
		}
	}
}
