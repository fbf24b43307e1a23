package cometbft

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

const testID = "20261120T235500Z-auto-0a1b2c"

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, home string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(home, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644))
	}
}

// shm makes a directory on another filesystem than t.TempDir's.
func shm(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func layoutOf(t testing.TB, home string, roots map[string]string, include ...string) Layout {
	t.Helper()
	l, err := ReadLayout(home, roots, include)
	must(t, err)
	return l
}

// staged captures a home that stands still, with a Prepare before. What a survey
// says of it is held against what then was taken.
func staged(t testing.TB, l Layout) *snapshot.Stage {
	t.Helper()
	st, err := snapshot.CreateStage(fsx.FS{}, testID, l.Roots)
	must(t, err)
	survey, err := l.Survey(t.Context())
	must(t, err, l.Prepare(t.Context(), st), l.Capture(t.Context(), st), st.Seal(t.Context()))
	var links, others observer.Treated
	for _, r := range survey.Roots {
		links.Files, links.Bytes = links.Files+r.Linked.Files, links.Bytes+r.Linked.Bytes
		others.Files += r.Cloned.Files + r.Copied.Files
		others.Bytes += r.Cloned.Bytes + r.Copied.Bytes
		if !r.Writable || r.Free <= 0 {
			t.Errorf("survey of root %q: writable %t, %d bytes free", r.Name, r.Writable, r.Free)
		}
	}
	n := st.Stats()
	if want := (observer.Treated{Files: n.Linked, Bytes: n.LinkedBytes}); links != want {
		t.Errorf("survey: %+v to link, %+v were linked", links, want)
	}
	if want := (observer.Treated{Files: n.Cloned + n.Copied, Bytes: n.ClonedBytes + n.CopiedBytes}); others != want {
		t.Errorf("survey: %+v to clone or copy, %+v were", others, want)
	}
	same(t, "left out by the survey", leftOutOf(st.LeftOut()), leftOutOf(survey.LeftOut))
	return st
}

// taken lists a stage as "name treatment", sorted, directories and symlinks with
// "dir" and "symlink".
func taken(t testing.TB, st *snapshot.Stage) []string {
	t.Helper()
	var out []string
	for e, err := range st.Entries() {
		must(t, err)
		how := string(e.Type)
		if e.Type == snapshot.TypeFile {
			how = string(e.Treatment)
			if e.Treatment == snapshot.Cloned { // what the filesystem can do is not ours to test
				how = string(snapshot.Copied)
			}
		}
		out = append(out, e.Name+" "+how)
	}
	slices.Sort(out)
	return out
}

func leftOutOf(left []snapshot.LeftOut) []string {
	var out []string
	for _, l := range left {
		out = append(out, l.Name+": "+l.Reason)
	}
	slices.Sort(out)
	return out
}

func same(t testing.TB, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// level is a goleveldb that was closed cleanly, as far as names go.
func level(dir string) map[string]string {
	return map[string]string{
		dir + "/CURRENT": "MANIFEST-000001\n", dir + "/MANIFEST-000001": "m", dir + "/000001.ldb": "table", dir + "/000002.log": "log",
		dir + "/LOCK": "", dir + "/LOG": "log",
	}
}

func TestScopeOfACosmosHome(t *testing.T) {
	home := t.TempDir()
	for _, db := range []string{"data/application.db", "wasm/wasm/state/db", "data/snapshots/metadata.db", "custom.db", "nested/a/b/store", "nested/.hidden", "too/deep/for/us/db", "data.before-restore/x.db"} {
		put(t, home, level(db))
	}
	put(t, home, map[string]string{
		"config/config.toml":             "db_backend = \"goleveldb\"\n[tx_index]\nindexer = \"kv\"\n",
		"config/app.toml":                "pruning = \"nothing\"\n",
		"config/priv_validator_key.json": "{}", "config/genesis.json": "{}",
		"data/priv_validator_state.json": `{"height":"0","round":0,"step":0}`,
		"data/Priv_Validator_state.bak":  "x", "data/upgrade-info.json": "{}",
		"data/cs.wal/wal": "head", "data/cs.wal/wal.000": "old", "data/cs.wal/wal.0": "odd", "data/cs.wal/walrus.001": "odd",
		"data/pebble.db/OPTIONS-000003": "o", "data/pebble.db/CURRENT": "c", "data/pebble.db/000004.sst": "s", "data/pebble.db/000005.log": "l",
		"data/pebble.db/x.sst": "not a table", "data/pebble.db/marker.manifest.000001.MANIFEST-000001": "",
		"data/rocks.db/IDENTITY": "i", "data/rocks.db/OPTIONS-000003": "o", "data/rocks.db/CURRENT": "c", "data/rocks.db/000004.sst": "s", "data/rocks.db/LOCK": "",
		"data/badger/KEYREGISTRY": "k", "data/badger/000001.sst": "b", "data/badger/CURRENT": "odd", "data/badger/000001.vlog": "v",
		"data/unknown/000001.ldb": "no CURRENT beside it", "data/unknown/file": "u",
		"data/gone.trash": "t", "data/half-tmp/x": "t", "data/data-backup-2024/x": "t",
		"data/snapshots/100/3/0":              "chunk",
		"wasm/wasm/cache/modules/x":           "native code",
		"wasm/wasm/exclusive.lock":            "",
		"wasm/wasm/state/wasm/0a":             "code",
		"data/keyring-file/me.info":           "k",
		"data/addrbook.json":                  "a",
		"keyring-test/me.info":                "k",
		"my-Mnemonic.txt":                     "word word",
		".ssh/id_rsa":                         "k",
		".bashrc":                             "rc",
		"notes.txt":                           "n",
		"cosmovisor/genesis/bin/gaiad":        "b",
		"cosmovisor/genesis/data/CURRENT":     "c",
		"photos/1.jpg":                        "p",
		".eddy/20250101T000000Z-auto-abcdef/": "",
	})
	l := layoutOf(t, home, nil)
	if l.Backend != "goleveldb" || l.Indexer != "kv" || l.Pruning != "nothing" || len(l.Roots) != 1 {
		t.Errorf("backend %q, indexer %q, pruning %q, roots %v", l.Backend, l.Indexer, l.Pruning, l.Roots)
	}
	same(t, "engines", []string{"badger", "goleveldb", "pebble", "rocksdb"}, l.Engines())
	st := staged(t, l)
	db := func(d string) []string {
		return []string{d + " dir", d + "/000001.ldb link", d + "/000002.log copy", d + "/CURRENT copy", d + "/LOG copy", d + "/MANIFEST-000001 copy"}
	}
	want := slices.Concat(db("data/application.db"), db("wasm/wasm/state/db"), db("custom.db"), db("nested/a/b/store"), []string{
		"data dir", "data/upgrade-info.json copy", "data/cs.wal dir",
		"data/cs.wal/wal copy", "data/cs.wal/wal.000 link", "data/cs.wal/wal.0 copy", "data/cs.wal/walrus.001 copy",
		"data/pebble.db dir", "data/pebble.db/OPTIONS-000003 copy", "data/pebble.db/CURRENT copy", "data/pebble.db/000004.sst link",
		"data/pebble.db/000005.log copy", "data/pebble.db/x.sst copy", "data/pebble.db/marker.manifest.000001.MANIFEST-000001 copy",
		"data/rocks.db dir", "data/rocks.db/IDENTITY copy", "data/rocks.db/OPTIONS-000003 copy", "data/rocks.db/CURRENT copy", "data/rocks.db/000004.sst link",
		"data/badger dir", "data/badger/KEYREGISTRY copy", "data/badger/000001.sst copy", "data/badger/CURRENT copy", "data/badger/000001.vlog copy",
		"data/unknown dir", "data/unknown/000001.ldb copy", "data/unknown/file copy",
		"data/snapshots dir",
		"wasm dir", "wasm/wasm dir", "wasm/wasm/state dir", "wasm/wasm/state/wasm dir", "wasm/wasm/state/wasm/0a copy",
		"nested dir", "nested/a dir", "nested/a/b dir",
	})
	slices.Sort(want)
	same(t, "taken", want, taken(t, st))
	wantLeft := []string{
		".bashrc: " + whyDot, ".ssh: " + whyDot, "config: " + whyConfig, "cosmovisor: " + whyBinaries,
		"data.before-restore: " + whyCopy,
		"data/Priv_Validator_state.bak: " + whyKey, "data/addrbook.json: " + whyAddresses, "data/data-backup-2024: " + whyCopy,
		"data/gone.trash: " + whyTrash, "data/half-tmp: " + whyTrash, "data/keyring-file: " + whyKey,
		"data/priv_validator_state.json: " + whyKey, "data/snapshots/*: " + whySnapshots,
		"keyring-test: " + whyKey, "my-Mnemonic.txt: " + whyKey, "notes.txt: " + whyFile,
		"photos: " + whyDir, "too: " + whyDir, "wasm/wasm/cache: " + whyCache, "wasm/wasm/exclusive.lock: " + whyLock,
	}
	for _, d := range []string{"data/application.db", "wasm/wasm/state/db", "custom.db", "nested/a/b/store", "data/rocks.db"} {
		wantLeft = append(wantLeft, d+"/LOCK: "+whyLock)
	}
	slices.Sort(wantLeft)
	same(t, "left out by the layout", wantLeft, leftOutOf(l.LeftOut))
	same(t, "left out by the stage", wantLeft, leftOutOf(st.LeftOut()))
}

func TestScopeOptions(t *testing.T) {
	home := t.TempDir()
	put(t, home, level("data/state.db"))
	put(t, home, map[string]string{
		"data/snapshots/100/3/0": "chunk", "notes/a.txt": "a", "notes/b.bin": "b", "x/y/z/deep/file": "f", "x/other": "o",
		"notes/priv_validator_key.json": "k", "plans": "p",
	})
	l := layoutOf(t, home, nil, "notes/*.txt", "notes/*.json", "x/y/z/deep", "plans")
	l.KeepSnapshots = true
	st := staged(t, l)
	got := slices.DeleteFunc(taken(t, st), func(n string) bool { return strings.HasPrefix(n, "data/state.db") })
	same(t, "taken", []string{
		"data dir", "data/snapshots dir", "data/snapshots/100 dir", "data/snapshots/100/3 dir", "data/snapshots/100/3/0 copy",
		"notes dir", "notes/a.txt copy", "plans copy", "x dir", "x/y dir", "x/y/z dir", "x/y/z/deep dir", "x/y/z/deep/file copy",
	}, got)
}

func TestScopeFollowsTheConfiguration(t *testing.T) {
	home, far := t.TempDir(), shm(t)
	for _, db := range []string{"store/db/state.db", "ss/pebbledb"} {
		put(t, home, level(db))
	}
	put(t, far, level("evm/x.db"))
	put(t, far, map[string]string{"wal/thelog": "head", "wal/thelog.001": "old", "wasm/cache/x": "native", "wasm/state/0a": "code", "more/file": "m"})
	put(t, home, map[string]string{
		"config/config.toml": fmt.Sprintf("db_dir = \"store/db\"\npriv_validator_state_file = \"store/db/signed\"\nnode_key_file = \"store/db/id\"\n[consensus]\nwal_file = %q\n", far+"/wal/thelog"),
		"config/app.toml": fmt.Sprintf("[state-store]\nss-db-directory = \"ss\"\nevm-ss-db-directory = %q\n[wasm]\ndir = %q\n[state-sync]\nsnapshot-directory = \"snaps\"\n",
			far+"/evm", far+"/wasm"),
		"store/db/signed": "{}", "store/db/id": "{}", "snaps/1/1/0": "chunk",
	})
	l := layoutOf(t, home, map[string]string{"more": filepath.Join(far, "more")})
	same(t, "taken", []string{
		".eddy-root/evm-state-store dir", ".eddy-root/evm-state-store/x.db dir",
		".eddy-root/evm-state-store/x.db/000001.ldb link", ".eddy-root/evm-state-store/x.db/000002.log copy", ".eddy-root/evm-state-store/x.db/CURRENT copy",
		".eddy-root/evm-state-store/x.db/LOG copy", ".eddy-root/evm-state-store/x.db/MANIFEST-000001 copy",
		".eddy-root/more dir", ".eddy-root/more/file copy",
		".eddy-root/wal dir", ".eddy-root/wal/thelog copy", ".eddy-root/wal/thelog.001 link",
		".eddy-root/wasm dir", ".eddy-root/wasm/state dir", ".eddy-root/wasm/state/0a copy",
		"snaps dir", "ss dir", "ss/pebbledb dir", "ss/pebbledb/000001.ldb link", "ss/pebbledb/000002.log copy", "ss/pebbledb/CURRENT copy",
		"ss/pebbledb/LOG copy", "ss/pebbledb/MANIFEST-000001 copy", "store dir", "store/db dir", "store/db/state.db dir",
		"store/db/state.db/000001.ldb link", "store/db/state.db/000002.log copy", "store/db/state.db/CURRENT copy",
		"store/db/state.db/LOG copy", "store/db/state.db/MANIFEST-000001 copy",
	}, taken(t, staged(t, l)))
	left := strings.Join(leftOutOf(l.LeftOut), "\n")
	for _, n := range []string{"store/db/signed: " + whyKey, "store/db/id: " + whyKey, ".eddy-root/wasm/cache: " + whyCache, "snaps/*: " + whySnapshots} {
		if !strings.Contains(left, n) {
			t.Errorf("not left out: %s\n%s", n, left)
		}
	}
}

func TestScopeOfALoomHome(t *testing.T) {
	home := t.TempDir()
	for _, db := range []string{"chaindata/data/state.db", "chaindata/data/blockstore.db", "app.db", "receipts_db"} {
		put(t, home, level(db))
	}
	put(t, home, map[string]string{
		"chaindata/config/config.toml": "db_backend = \"goleveldb\"\n", "chaindata/config/priv_validator.json": `{"last_height":"7","last_round":"0","last_step":3,"priv_key":{}}`,
		"chaindata/data/cs.wal/wal": "w", "chaindata/data/cs.wal/wal.004": "w",
		"contracts/coin.so": "c", "loom.yml": "y", "genesis.json": "{}", "loom": "binary", "go/src/x.go": "package x",
		"chaindata/notes": "n",
	})
	l := layoutOf(t, home, nil)
	var got []string
	for _, n := range taken(t, staged(t, l)) {
		if !strings.Contains(n, "000") && !strings.Contains(n, "/CURRENT") && !strings.HasSuffix(n, "/LOG copy") {
			got = append(got, n)
		}
	}
	same(t, "taken", []string{
		"app.db dir", "chaindata dir", "chaindata/data dir", "chaindata/data/blockstore.db dir",
		"chaindata/data/cs.wal dir", "chaindata/data/cs.wal/wal copy", "chaindata/data/cs.wal/wal.004 link", "chaindata/data/state.db dir",
		"contracts dir", "contracts/coin.so copy", "receipts_db dir",
	}, got)
	left := leftOutOf(l.LeftOut)
	for _, n := range []string{"chaindata/config: " + whyConfig, "chaindata/notes: " + whyFile, "genesis.json: " + whyFile, "go: " + whyDir} {
		if !slices.Contains(left, n) {
			t.Errorf("not left out: %s\n%v", n, left)
		}
	}
	s, err := SignState(home)
	must(t, err)
	if s.Zero() || s.Height != 7 || s.Step != 3 || !s.Key {
		t.Errorf("sign state %+v, want height 7, step 3, a key", s)
	}
}

func TestSymlinks(t *testing.T) {
	home, far := t.TempDir(), shm(t)
	put(t, far, level("big/application.db"))
	put(t, far, map[string]string{"state.json": "{}"})
	put(t, home, level("data/state.db"))
	put(t, home, map[string]string{"data/memiavl.db/snapshot-7/kvs": "k", "elsewhere/tx_index.db/CURRENT": "c", "elsewhere/tx_index.db/000009.ldb": "t"})
	for link, target := range map[string]string{
		"data/application.db":            far + "/big/application.db",
		"data/memiavl.db/current":        "snapshot-7",
		"data/dangling":                  "nowhere",
		"data/tx_index.db":               "../elsewhere/tx_index.db",
		"data/priv_validator_state.json": far + "/state.json",
		"wasm":                           "data/memiavl.db",
		"somewhere":                      far,
	} {
		must(t, os.Symlink(target, filepath.Join(home, link)))
	}
	l := layoutOf(t, home, nil)
	var roots []string
	for _, r := range l.Roots[1:] {
		roots = append(roots, r.Name+" "+r.Prefix+" -> "+r.Target)
	}
	slices.Sort(roots)
	same(t, "roots", []string{
		"data-application.db data/application.db -> " + far + "/big/application.db",
		"data-tx_index.db data/tx_index.db -> ../elsewhere/tx_index.db",
	}, roots)
	st := staged(t, l)
	got := slices.DeleteFunc(taken(t, st), func(n string) bool { return strings.HasPrefix(n, "data/state.db") })
	same(t, "taken", []string{
		"data dir", "data/application.db dir", "data/application.db/000001.ldb link", "data/application.db/000002.log copy",
		"data/application.db/CURRENT copy", "data/application.db/LOG copy", "data/application.db/MANIFEST-000001 copy",
		"data/dangling symlink", "data/memiavl.db dir", "data/memiavl.db/current symlink", "data/memiavl.db/snapshot-7 dir", "data/memiavl.db/snapshot-7/kvs copy",
		"data/tx_index.db dir", "data/tx_index.db/000009.ldb link", "data/tx_index.db/CURRENT copy", "elsewhere dir", "wasm symlink",
	}, got)
	must(t, st.Remove())

	// The data directory itself, and a link that came after the layout was read.
	whole := t.TempDir()
	put(t, far, level("all/state.db"))
	must(t, os.Symlink(far+"/all", filepath.Join(whole, "data")))
	l = layoutOf(t, whole, nil)
	if len(l.Roots) != 2 || l.Roots[1].Prefix != "data" || l.Roots[1].Path != far+"/all" {
		t.Errorf("roots %+v, want one for data", l.Roots)
	}
	st = staged(t, l)
	must(t, st.Remove(), os.Symlink(far+"/big", far+"/all/late"))
	st, err := snapshot.CreateStage(fsx.FS{}, testID, l.Roots)
	must(t, err)
	if err := l.Capture(t.Context(), st); err == nil || hint.Of(err) == "" {
		t.Errorf("a symlink that came late was captured: %v", err)
	}
	must(t, os.Remove(far+"/all/late"), os.Symlink(far+"/state.json", far+"/all/file"))
	if _, err := ReadLayout(whole, nil, nil); err == nil || hint.Of(err) == "" {
		t.Errorf("a symlink to a file outside was accepted: %v", err)
	}
}

func TestReadLayoutSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{
		"empty/x": "", "file": "", "nodata/config/config.toml": "db_dir = \"gone\"\n",
		"broken/config/config.toml": "db_dir = \n", "broken/data/x": "", "good/data/x": "", "good/config/app.toml": "[wasm]\ndir = 7\n", "fine/data/x": "",
	})
	for name, c := range map[string]struct {
		home    string
		roots   map[string]string
		include []string
		want    string
	}{
		"missing":         {home: "none", want: "does not exist"},
		"a file":          {home: "file", want: "read the home"},
		"not a home":      {home: "empty", want: "neither data nor config"},
		"no data":         {home: "nodata", want: "has no data"},
		"broken toml":     {home: "broken", want: "config.toml"},
		"broken app.toml": {home: "good", want: "app.toml"},
		"relative root":   {home: "fine", roots: map[string]string{"x": "rel"}, want: "not an absolute path"},
		"bad root name":   {home: "fine", roots: map[string]string{"a/b": "/tmp"}, want: "no name for a root"},
		"missing root":    {home: "fine", roots: map[string]string{"x": dir + "/none"}, want: "roots.x"},
		"root above":      {home: "fine", roots: map[string]string{"x": dir}, want: "holds the home"},
		"include outside": {home: "fine", include: []string{"../x"}, want: "not below the home"},
		"bad pattern":     {home: "fine", include: []string{"[x"}, want: "include"},
	} {
		_, err := ReadLayout(filepath.Join(dir, c.home), c.roots, c.include)
		if err == nil || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %q, hint %q; want %q in one line, with a hint", name, err, hint.Of(err), c.want)
		}
	}
}

func TestSecretsUnderOtherNamesAreLeftOut(t *testing.T) {
	home := t.TempDir()
	key := `{"address":"A","pub_key":{"type":"tendermint/PubKeyEd25519","value":"x"},"priv_key":{"type":"tendermint/PrivKeyEd25519","value":"c2VjcmV0"}}`
	put(t, home, level("data/state.db"))
	put(t, home, map[string]string{
		"data/a.json": key, "data/state.db/000077.log": " \n" + key, "data/b": `{"priv_key":{"type":"tendermint/PrivKeyEd25519","value":"c2VjcmV0"}}`,
		"data/c.json": `{"height":"7","round":0,"step":3,"signature":"x","signbytes":"00"}`, "data/d": "note\n-----BEGIN TENDERMINT PRIVATE KEY-----\nkdf: bcrypt\n",
		"data/e":             "# created: x\nAGE-SECRET-KEY-1XXXX\n",
		"data/plan.json":     `{"name":"v18","height":700,"info":"the next upgrade of the chain"}`,
		"data/text":          "a private key is a secret: keep it well, whoever you are",
		"data/big-key.json":  key + strings.Repeat(" ", maxSecret),
		"data/round.json":    `{"height":7,"round":1,"step":2,"votes":["a","b"],"of":"the consensus"}`,
		"data/keystore.json": `{"version":4,"crypto":{"kdf":{},"cipher":{"function":"aes-128-ctr"}}}`,
	})
	st := staged(t, layoutOf(t, home, nil))
	var got []string
	for _, l := range leftOutOf(st.LeftOut()) {
		if name, ok := strings.CutSuffix(l, ": "+whySecret); ok {
			got = append(got, name)
		}
	}
	same(t, "left out as secrets", []string{
		"data/a.json", "data/b", "data/c.json", "data/d", "data/e", "data/keystore.json", "data/state.db/000077.log",
	}, got)
	must(t, filepath.WalkDir(filepath.Join(home, snapshot.StageDir), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "big-key.json" {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte("c2VjcmV0")) {
			t.Errorf("%s holds the key", p)
		}
		return err
	}))
}

func TestSpecialFilesAreLeftOut(t *testing.T) {
	home := t.TempDir()
	put(t, home, level("data/state.db"))
	must(t, unix.Mkfifo(filepath.Join(home, "data/pipe"), 0o600), unix.Mkfifo(filepath.Join(home, "pipe"), 0o600))
	st := staged(t, layoutOf(t, home, nil))
	left := leftOutOf(st.LeftOut())
	for _, n := range []string{"data/pipe: " + whySpecial, "pipe: " + whySpecial} {
		if !slices.Contains(left, n) {
			t.Errorf("not left out: %s\n%v", n, left)
		}
	}
}

// A survey leaves no trace: no name, no time of any directory or file changes.
func TestSurveyWritesNothing(t *testing.T) {
	home := t.TempDir()
	put(t, home, level("data/state.db"))
	put(t, home, map[string]string{"config/config.toml": "", "data/x": "x"})
	look := func() (out []string) {
		must(t, filepath.WalkDir(home, func(p string, d fs.DirEntry, err error) error {
			must(t, err)
			var st unix.Stat_t
			must(t, unix.Lstat(p, &st))
			out = append(out, fmt.Sprint(p, st.Ino, st.Size, st.Nlink, st.Mtim, st.Ctim))
			return nil
		}))
		return out
	}
	l := layoutOf(t, home, nil)
	before := look()
	_, err := l.Survey(t.Context())
	must(t, err)
	same(t, "the home", before, look())
}
