//go:build crash

package crash

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/p2p"

	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// What a node's config.toml says: in its bundle, and now.
const (
	bundled = "moniker = \"bundled\"\n"
	current = "moniker = \"now\"\n"
)

// bundledToo is backups(1) and a bundle of keys and configuration, which is changed
// afterwards: one file of it is another, one is gone.
func bundledToo(t *testing.T, w *world) {
	secret, public, err := bundle.NewIdentity(false, time.Now())
	must(err)
	to, err := bundle.ParseRecipients("test", []string{public})
	must(err)
	w.keys, err = bundle.ParseIdentities("test", secret, nil)
	must(err)
	must(os.Remove(filepath.Join(w.home, "config/node_key.json")))
	_, err = p2p.LoadOrGenNodeKey(filepath.Join(w.home, "config/node_key.json"))
	must(err)
	w.node.write("config/config.toml", []byte(bundled))
	w.node.write("config/app.toml", []byte("pruning = \"nothing\"\n"))
	w.node.write("config/genesis.json", []byte("{}"))
	backups(1)(t, w)
	if _, err := w.clean(t, func(ctx context.Context, im *image) error {
		_, catalog := w.open(ctx, im)
		k := job.Keys{
			Catalog: catalog, Workdir: w.workdir(im), Cluster: chain, Node: "val-1", Host: "host", Version: "v1",
			Want: bundle.Want{Home: w.home}, To: to, Identities: w.keys, Events: silent{}, Now: time.Now,
		}
		_, err := k.Run(ctx)
		return done(err)
	}); err != nil {
		t.Fatal(err)
	}
	w.node.write("config/config.toml", []byte(current))
	must(os.Remove(filepath.Join(w.home, "config/app.toml")))
	w.node.moniker = current
}

// keysRestore is what --keys latest adds to a restore.
func (w *world) keysRestore(im *image) *job.KeysRestore {
	if w.keys == nil {
		return nil
	}
	_, catalog := w.open(context.Background(), im)
	return &job.KeysRestore{
		Catalog: catalog, Node: "val-1", Selector: "latest", Identities: w.keys, Root: filepath.Join(w.dir, "root"),
		Confirm: func([]job.KeysFile) error { return nil }, Events: silent{}, Now: time.Now, FS: im.fs(),
	}
}

// configured tells what is wrong with the configuration in a home, "" where it is the
// bundle's.
func configured(home string) string {
	for name, want := range map[string]string{"config.toml": bundled, "app.toml": "pruning = \"nothing\"\n", "genesis.json": "{}"} {
		if b, err := os.ReadFile(filepath.Join(home, "config", name)); string(b) != want {
			return name + " is not the bundle's: " + string(b) + errText(err)
		}
	}
	var left []string
	must(filepath.WalkDir(filepath.Join(home, "config"), func(p string, _ fs.DirEntry, err error) error {
		if strings.Contains(p, "eddy-coming") {
			left = append(left, filepath.Base(p))
		}
		return err
	}))
	return strings.Join(left, ", ")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// replacedWithKeys: data and configuration are the restored ones, and what was there is
// kept.
func (w *world) replacedWithKeys() {
	w.replaced()
	if wrong := configured(w.home); wrong != "" {
		w.broken("I8", "restored in place: %s", wrong)
	}
	kept, err := filepath.Glob(filepath.Join(w.home, "config", "config.toml.eddy-saved-*"))
	must(err)
	for _, k := range kept {
		if b, err := os.ReadFile(k); err == nil && bytes.Equal(b, []byte(current)) {
			return
		}
	}
	w.broken("I8", "restored in place: the config.toml of before is not kept")
}
