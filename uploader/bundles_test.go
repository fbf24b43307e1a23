package uploader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/hint"
)

func bundleAt(c *Catalog, node string, when time.Time) BundleManifest {
	return BundleManifest{
		ID: NewID(when, "keys"), Cluster: c.cluster, Node: node, NodeID: "ab12", Host: "h", Preset: "cosmos-sdk", Eddy: "v1", Created: when.UTC(),
		Recipients: []string{"age:0123456789abcdef"}, Files: []BundleFile{{Name: "home/config/node_key.json", Class: "node key", Size: 148, Mode: "0600"}},
	}
}

func putBundle(t *testing.T, c *Catalog, node string, when time.Time, sealed string) BundleManifest {
	t.Helper()
	m, err := c.PutBundle(t.Context(), bundleAt(c, node, when), []byte(sealed))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestBundlesAreListedAndSelected(t *testing.T) {
	c := NewCatalog(newFileStore(t.TempDir()), "test")
	first := putBundle(t, c, "val-1", t0, "first")
	second := putBundle(t, c, "val-1", t0.Add(48*time.Hour), "second")
	putBundle(t, c, "val-2", t0, "other")
	if nodes, err := c.Nodes(t.Context()); err != nil || !slices.Equal(nodes, []string{"val-1", "val-2"}) {
		t.Fatalf("%q, %v", nodes, err)
	}
	for sel, want := range map[string]string{"latest": second.ID, first.ID: first.ID, second.ID[:9]: second.ID, "before:" + t0.Add(24*time.Hour).Format(time.RFC3339): first.ID} {
		b, err := c.SelectBundle(t.Context(), "val-1", sel)
		if err != nil || b.ID != want {
			t.Errorf("%s: %s, %v", sel, b.ID, err)
		}
		sealed, err := c.GetBundle(t.Context(), b)
		if want := map[string]string{first.ID: "first", second.ID: "second"}[b.ID]; err != nil || string(sealed) != want {
			t.Errorf("%s: %q, %v", sel, sealed, err)
		}
	}
	for _, sel := range []string{"", "2019", first.ID[:2], "before:never", "before:2001-01-01"} {
		if _, err := c.SelectBundle(t.Context(), "val-1", sel); !errors.Is(err, ErrNoSuchBackup) || hint.Of(err) == "" {
			t.Errorf("%q: %v", sel, err)
		}
	}
	if _, err := c.SelectBundle(t.Context(), "val-3", "latest"); !errors.Is(err, ErrNoSuchBackup) {
		t.Error(err)
	}
	// Without a pointer, or with one that names nothing, the newest is the latest.
	for _, text := range []string{"{", `{"format":1,"min_reader":1,"id":"` + NewID(t0, "keys") + `"}`} {
		put(t, c, c.bundleLatestKey("val-1"), text)
		if b, err := c.SelectBundle(t.Context(), "val-1", "latest"); err != nil || b.ID != second.ID {
			t.Errorf("%s: %s, %v", text, b.ID, err)
		}
	}
}

// What somebody else has put in the place of a bundle, or of its manifest, is seen.
func TestForgedBundlesAreRefused(t *testing.T) {
	key, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := NewCatalog(newFileStore(dir), "test").With(Keys{Sign: key})
	m := putBundle(t, c, "val-1", t0, "sealed")
	at := func(name string) string { return filepath.Join(dir, "test", "keys", "val-1", m.ID, name) }
	get := func(c *Catalog) (Signature, error) {
		b, err := c.SelectBundle(t.Context(), "val-1", m.ID)
		if err != nil {
			return Signature{}, err
		}
		s, err := c.BundleSignature(t.Context(), b)
		if err == nil {
			_, err = c.GetBundle(t.Context(), b)
		}
		return s, err
	}
	if s, err := get(c); err != nil || !s.Known {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := get(c.With(Keys{Signers: []Signer{other.Signer()}})); !errors.Is(err, ErrUntrusted) {
		t.Errorf("another signer: %v", err)
	}
	manifest := read(t, at(manifestName))
	for name, harm := range map[string]func() error{
		"sealed":         func() error { return os.WriteFile(at(BundleName), []byte("SEALED"), 0o600) },
		"sealed shorter": func() error { return os.WriteFile(at(BundleName), []byte("seal"), 0o600) },
		"sealed gone":    func() error { return os.Remove(at(BundleName)) },
		"manifest": func() error {
			return os.WriteFile(at(manifestName), []byte(strings.Replace(manifest, "cosmos-sdk", "cosmos-sdx", 1)), 0o600)
		},
		"another's": func() error {
			return os.WriteFile(at(manifestName), []byte(strings.Replace(manifest, "val-1", "val-2", 1)), 0o600)
		},
		"no JSON":        func() error { return os.WriteFile(at(manifestName), []byte("{"), 0o600) },
		"signature gone": func() error { return os.Remove(at(signatureName)) },
	} {
		saved := t.TempDir()
		sh(t, dir, "cp -a test "+saved)
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if _, err := get(c); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		sh(t, dir, "rm -rf --one-file-system test; cp -a "+saved+"/test .")
	}
	// Unsigned, it is taken where no signer is named, and only there.
	plain := NewCatalog(newFileStore(t.TempDir()), "test")
	u := putBundle(t, plain, "val-1", t0, "sealed")
	b, err := plain.SelectBundle(t.Context(), "val-1", u.ID)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := plain.BundleSignature(t.Context(), b); err != nil || s.String() != "none" {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := plain.With(Keys{Signers: []Signer{key.Signer()}}).BundleSignature(t.Context(), b); !errors.Is(err, ErrUntrusted) {
		t.Errorf("unsigned where a signer is named: %v", err)
	}
}

// Whatever the bundles of a node are, an expiry leaves the last ones, the one that
// latest.json names, the newest with a validator key, and nothing goes before its
// time. And it lets go of the rest: else nothing would be bounded.
func TestExpiryOfBundles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := t0.Add(1000 * time.Hour)
		n, keep := rapid.IntRange(1, 30).Draw(t, "bundles"), rapid.IntRange(1, 12).Draw(t, "keep")
		latest := rapid.IntRange(0, n-1).Draw(t, "latest")
		var all []Bundle
		when := now
		for i := range n {
			when = when.Add(-time.Duration(rapid.IntRange(1, 100).Draw(t, "hours")) * time.Hour)
			b := Bundle{ID: fmt.Sprint(i), Node: "n", Status: rapid.SampledFrom([]Status{StatusReady, StatusReady, StatusReady, StatusIncomplete, StatusDamaged, StatusNewer}).Draw(t, "status"), Created: when, Latest: i == latest}
			if b.Status == StatusReady {
				b.Manifest = &BundleManifest{Signs: rapid.Bool().Draw(t, "signs")}
			}
			all = append(all, b)
		}
		gone := map[string]bool{}
		for _, x := range planBundles(all, keep, now) {
			gone[x.ID] = true
		}
		ready, signs := 0, 0
		var successor time.Time
		for _, b := range all {
			switch b.Status {
			case StatusReady:
				ready++
				if b.Manifest.Signs {
					signs++
				}
				must := ready <= keep || b.Latest || b.Manifest.Signs && signs == 1 || now.Sub(successor) < 72*time.Hour || now.Sub(b.Created) < 72*time.Hour
				if gone[b.ID] == must {
					t.Fatalf("bundle %s of %d: kept %v, must be %v", b.ID, n, !gone[b.ID], must)
				}
				successor = b.Created
			case StatusIncomplete:
				if gone[b.ID] && now.Sub(b.Created) <= 7*24*time.Hour {
					t.Fatalf("what may be being written goes: %s", b.ID)
				}
			default:
				if gone[b.ID] {
					t.Fatalf("what cannot be judged goes: %s", b.ID)
				}
			}
		}
	})
}

func TestExpiredBundlesGoWhole(t *testing.T) {
	key, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	c := NewCatalog(newFileStore(t.TempDir()), "test").With(Keys{Sign: key})
	for i := range 5 {
		putBundle(t, c, "val-1", t0.Add(time.Duration(i)*100*time.Hour), "x")
	}
	putBundle(t, c, "val-2", t0, "the only one")
	now := t0.Add(10_000 * time.Hour)
	plan, err := c.PlanExpireBundles(t.Context(), 2, now)
	if err != nil || len(plan) != 3 {
		t.Fatalf("%+v, %v", plan, err)
	}
	asked := 0
	may := func() error {
		if asked++; asked > 2 {
			return ErrLeaseLost
		}
		return nil
	}
	deleted := 0
	for range 2 {
		err = c.ApplyBundles(t.Context(), plan, 2, now, func(context.Context) error { return may() }, func(BundleExpiry) { deleted++ })
		if asked == 3 && !errors.Is(err, ErrLeaseLost) {
			t.Errorf("without the lease: %v", err)
		}
		asked = -10
	}
	var keys []string
	for o, err := range c.store.List(t.Context(), "test/keys/", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	if deleted != 3 || len(keys) != 3*3+2 { // three bundles of three objects, two pointers
		t.Errorf("%d deleted, there are %q", deleted, keys)
	}
}

// The commands of README.txt open a bundle that age has made.
func TestReadmeOpensKeysWithStockTools(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's a store")
	c := NewCatalog(newFileStore(dir), "test")
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `set -eo pipefail; age-keygen -o id 2>pub; mkdir -p x/home/config; echo secret >x/home/config/node_key.json
		tar -c -C x home | zstd -q | age -r "$(sed -n 's/Public key: //p' pub)" >sealed`)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	putBundle(t, c, "val-1", t0, "an older one")
	m := putBundle(t, c, "val-1", t0.Add(time.Hour), read(t, tmp, "sealed"))
	_, rest, ok := strings.Cut(read(t, dir, "test", readmeName), "#--8<-- keys from here\n")
	text, _, ok2 := strings.Cut(rest, "#--8<-- keys to here\n")
	if !ok || !ok2 {
		t.Fatal("no scissors around the keys")
	}
	out := t.TempDir()
	env := []string{"node=val-1", "identity=" + filepath.Join(tmp, "id")}
	if said, err := bash(t, out, text, env...); err != nil || read(t, out, "home", "config", "node_key.json") != "secret\n" {
		t.Fatalf("%v\n%s", err, said)
	}
	// A flipped bit is seen before anything is decrypted.
	p := filepath.Join(dir, "test", "keys", "val-1", m.ID, BundleName)
	b := []byte(read(t, p))
	b[len(b)/2] ^= 1
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	worse := t.TempDir()
	if said, err := bash(t, worse, text, env...); err == nil {
		t.Errorf("a damaged one was taken:\n%s", said)
	}
	if _, err := os.Stat(filepath.Join(worse, "home")); err == nil {
		t.Error("something of a damaged one came out")
	}
}

func FuzzDecodeBundleManifest(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"20261120T235500Z-keys-9f02c1","cluster":"c","node":"n","size":1,"sha256":"` + strings.Repeat("0", 64) + `","files":[{"name":"home/a"}]}`))
	f.Add([]byte(`{"format":1,"min_reader":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeBundleManifest(b)
		if err == nil && (m.Size <= 0 || m.Size > MaxBundle || !validID(m.ID) || CheckName(m.Node) != nil) {
			t.Fatalf("%+v", m)
		}
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
	})
}
