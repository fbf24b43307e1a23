package check

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// sdkDump makes a home of what a real chain has left: testdata/wasmd-0.61.14.zst
// holds the pairs of its stores at its last height (SDK 0.53.6, IAVL 1.2.6; blocks
// and versions below are left out), each as database, key and value with their
// lengths before them.
func sdkDump(t testing.TB, backend dbm.BackendType) *dump {
	t.Helper()
	home, err := os.MkdirTemp("/dev/shm", "eddy-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(home)) })
	packed, err := os.ReadFile("testdata/wasmd-0.61.14.zst")
	must(t, err)
	z, err := zstd.NewReader(nil)
	must(t, err)
	defer z.Close()
	b, err := z.DecodeAll(packed, nil)
	must(t, err)
	next := func() []byte {
		size, n := binary.Uvarint(b)
		out := b[n : n+int(size)]
		b = b[n+int(size):]
		return out
	}
	dbs := map[string]dbm.DB{}
	for len(b) > 0 {
		name, key, value := string(next()), next(), next()
		if dbs[name] == nil {
			dbs[name], err = dbm.NewDB(name, backend, filepath.Join(home, "data"))
			must(t, err)
		}
		must(t, dbs[name].Set(key, value))
	}
	for _, db := range dbs {
		must(t, db.Close())
	}
	dir := filepath.Join(home, "wasm/wasm/state/wasm")
	must(t, os.MkdirAll(dir, 0o700))
	for i, ext := range programs {
		code := bytes.Repeat([]byte{0, 'a', 's', 'm', byte(i)}, 100_000)
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(code))+ext), code, 0o600))
	}
	return &dump{t, chain{id: "wasm-check-1"}, home, backend}
}

// programs are the extensions of those in an SDK chain's dump: what an older and a
// newer node has written.
var programs = []string{"", ".wasm"}

// program changes the program of a contract.
func program(ext string, change func([]byte) []byte) func(*dump, int64) {
	return func(d *dump, _ int64) {
		all, err := filepath.Glob(filepath.Join(d.home, "wasm/wasm/state/wasm", "*"))
		must(d, err)
		i := slices.IndexFunc(all, func(name string) bool { return filepath.Ext(name) == ext })
		d.rewrite(all[i], change)
	}
}

// The numbers of the chain in testdata.
const (
	sdkHeight = 161
	sdkStores = 22
)

func TestSoundSDK(t *testing.T) {
	for backend, kind := range backends() {
		for _, deep := range []bool{false, true} {
			r, err := Run(t.Context(), sdkDump(t, backend).home, Options{ChainID: "wasm-check-1", Deep: deep})
			must(t, err)
			p := r.Proven
			if !r.Sound() || r.Grade != Clean || r.Opened != All || r.Kind != "sdk" || r.App != sdkHeight || r.Height != sdkHeight || len(r.Notes) > 0 {
				t.Errorf("%s: %+v", kind, r)
			}
			if p.Stores != sdkStores || p.Nodes < 100 || deep && p.Nodes != 507 || p.Blocks != 6 || p.Headers != 6 || p.Commits != 6 || p.Programs != 2 {
				t.Errorf("%s: proven %+v", kind, p)
			}
		}
	}
}

// editTree changes one of the application's trees; the root is that of the last
// height.
func (d *dump) editTree(store string, change func(t *tree, root *treeNode, db dbm.DB)) {
	d.Helper()
	d.edit("application", func(db dbm.DB) {
		t := &tree{db: asEngine{db}, prefix: "s/k:" + store + "/"}
		root, err := t.root(sdkHeight)
		must(d, err)
		change(t, root, db)
	})
}

// asEngine reads a database that is open for writing.
type asEngine struct{ dbm.DB }

func (a asEngine) Each([]byte, []byte, func(_, _ []byte) error) error { panic("not used") }

var _ engine.DB = asEngine{}

// leafOf goes down to the first leaf, and says where it is.
func leafOf(t testing.TB, tr *tree, n *treeNode) (nodeRef, *treeNode) {
	t.Helper()
	for ref := nodeRef(nil); ; {
		if n.height == 0 {
			return ref, n
		}
		ref = n.left
		var err error
		n, err = tr.load(ref)
		must(t, err)
	}
}

func sdkHarms() []harm {
	info := fmt.Sprintf("s/%d", sdkHeight)
	onInfo := func(change func([]storeInfo) []storeInfo) func(*dump, int64) {
		return func(d *dump, _ int64) {
			d.set("application", info, func(b []byte) []byte {
				_, stores, err := parseCommitInfo(b)
				must(d, err)
				return commitInfoOf(sdkHeight, change(stores))
			})
		}
	}
	return []harm{
		{"a store's hash in the commit info is altered", onInfo(func(s []storeInfo) []storeInfo {
			s[3].hash = flip(bytes.Clone(s[3].hash))
			return s
		}), StageApp, AppHash, Options{}},
		{"a store is left out of the commit info", onInfo(func(s []storeInfo) []storeInfo { return s[1:] }), StageApp, AppHash, Options{}},
		{"a store is renamed in the commit info", onInfo(func(s []storeInfo) []storeInfo { s[3].name = "x"; return s }), StageApp, AppHash, Options{}},
		{"the commit info is empty", onInfo(func([]storeInfo) []storeInfo { return nil }), StageApp, AppHash, Options{}},
		{"a store is twice in the commit info", onInfo(func(s []storeInfo) []storeInfo { return append(s, s[0]) }), StageApp, CommitInfo, Options{}},
		{"the commit info is gone", func(d *dump, _ int64) { d.set("application", info, gone) }, StageApp, CommitInfo, Options{}},
		{"the commit info is cut short", func(d *dump, _ int64) {
			d.set("application", info, func(b []byte) []byte { return b[:len(b)-9] })
		}, StageApp, CommitInfo, Options{}},
		{"the commit info is of another height", func(d *dump, _ int64) {
			d.set("application", info, func(b []byte) []byte { _, s, _ := parseCommitInfo(b); return commitInfoOf(sdkHeight-1, s) })
		}, StageApp, CommitInfo, Options{}},
		{"the application does not know its height", func(d *dump, _ int64) {
			d.set("application", "s/latest", func([]byte) []byte { return []byte{0xFF} })
		}, StageApp, AppDamaged, Options{}},
		{"the application is two behind", moveSDK(-2), StageApp, AppBehind, Options{}},
		{"the application is ahead", moveSDK(1), StageApp, AppAhead, Options{}},
		{"the application is one behind, with another hash", moveSDK(-1), StageApp, AppHash, Options{}},
		{"a store's root is gone", func(d *dump, _ int64) {
			d.editTree("bank", func(_ *tree, _ *treeNode, db dbm.DB) {
				must(d, db.DeleteSync(append([]byte("s/k:bank/"), newRef(sdkHeight, 1)...)))
			})
		}, StageApp, StoreRoot, Options{}},
		{"a store is gone", func(d *dump, _ int64) { d.removeStore("staking") }, StageApp, StoreRoot, Options{}},
		{"a store is empty", func(d *dump, _ int64) {
			d.editTree("bank", func(_ *tree, _ *treeNode, db dbm.DB) {
				must(d, db.SetSync(append([]byte("s/k:bank/"), newRef(sdkHeight, 1)...), []byte{}))
			})
		}, StageApp, StoreRoot, Options{}},
		{"a store's root is another store's", func(d *dump, _ int64) {
			var from []byte
			root := string(newRef(sdkHeight, 1))
			d.set("application", "s/k:mint/"+root, func(b []byte) []byte { from = b; return b })
			d.set("application", "s/k:bank/"+root, func([]byte) []byte { return from })
		}, StageApp, StoreRoot, Options{}},
		{"an inner node is gone", func(d *dump, _ int64) {
			d.editTree("bank", func(_ *tree, root *treeNode, db dbm.DB) {
				must(d, db.DeleteSync(append([]byte("s/k:bank/"), root.right...)))
			})
		}, StageApp, TreeNode, Options{}},
		{"a bit of an inner node is flipped", func(d *dump, _ int64) {
			d.editTree("bank", func(_ *tree, root *treeNode, db dbm.DB) {
				key := append([]byte("s/k:bank/"), root.right...)
				b, err := db.Get(key)
				must(d, err, db.SetSync(key, flip(bytes.Clone(b))))
			})
		}, StageApp, TreeNode, Options{}},
		{"a value in the tree is altered", func(d *dump, _ int64) {
			d.editTree("bank", func(t *tree, root *treeNode, db dbm.DB) {
				ref, leaf := leafOf(d, t, root)
				leaf.value = append(leaf.value, '1')
				must(d, db.SetSync(append([]byte("s/k:bank/"), ref...), leafBytes(leaf)))
			})
		}, StageApp, TreeNode, Options{}},
		{"a value is altered where the node reads it, and not in the tree", func(d *dump, _ int64) {
			d.editTree("bank", func(t *tree, root *treeNode, db dbm.DB) {
				_, leaf := leafOf(d, t, root)
				key := append([]byte("s/k:bank/f"), leaf.key...)
				b, err := db.Get(key)
				must(d, err, db.SetSync(key, flip(bytes.Clone(b))))
			})
		}, StageApp, TreeNode, Options{Deep: true}},
		{"a value is gone where the node reads it, and not in the tree", func(d *dump, _ int64) {
			d.editTree("staking", func(t *tree, root *treeNode, db dbm.DB) {
				_, leaf := leafOf(d, t, root)
				must(d, db.DeleteSync(append([]byte("s/k:staking/f"), leaf.key...)))
			})
		}, StageApp, TreeNode, Options{}},
		{"a bit of a contract's program is flipped", program("", flip), StageApp, WasmHash, Options{}},
		{"a bit of a newer contract's program is flipped", program(".wasm", flip), StageApp, WasmHash, Options{}},
		{"a contract's program is cut short", program("", func(b []byte) []byte { return b[:len(b)-1] }), StageApp, WasmHash, Options{}},
		{"a contract's program is empty", program(".wasm", func([]byte) []byte { return nil }), StageApp, WasmHash, Options{}},
		{"a value too many where the node reads it", func(d *dump, _ int64) {
			d.edit("application", func(db dbm.DB) { must(d, db.SetSync([]byte("s/k:bank/f\x02mint"), []byte{2, 1, '9'})) })
		}, StageApp, TreeNode, Options{Deep: true}},
	}
}

// moveSDK makes the application say that it is at another height, with all that
// belongs to it but the right hash.
func moveSDK(by int64) func(d *dump, h int64) {
	return func(d *dump, h int64) {
		d.edit("application", func(db dbm.DB) {
			info, err := db.Get(fmt.Appendf(nil, "s/%d", h))
			must(d, err)
			_, stores, err := parseCommitInfo(info)
			must(d, err)
			must(d, db.SetSync(fmt.Appendf(nil, "s/%d", h+by), commitInfoOf(h+by, stores)))
			must(d, db.SetSync([]byte("s/latest"), protowire.AppendVarint([]byte{8}, uint64(h+by))))
		})
	}
}

func (d *dump) removeStore(store string) {
	d.Helper()
	d.edit("application", func(db dbm.DB) {
		prefix := "s/k:" + store + "/"
		it, err := db.Iterator([]byte(prefix), []byte(prefix+"\xff"))
		must(d, err)
		var keys [][]byte
		for ; it.Valid(); it.Next() {
			keys = append(keys, bytes.Clone(it.Key()))
		}
		must(d, it.Close())
		for _, k := range keys {
			must(d, db.Delete(k))
		}
	})
}

func commitInfoOf(version int64, stores []storeInfo) []byte {
	b := protowire.AppendVarint([]byte{8}, uint64(version))
	for _, s := range stores {
		id := protowire.AppendVarint([]byte{8}, uint64(s.version))
		id = protowire.AppendBytes(append(id, 0x12), s.hash)
		one := protowire.AppendString([]byte{0x0a}, s.name)
		one = protowire.AppendBytes(append(one, 0x12), id)
		b = protowire.AppendBytes(append(b, 0x12), one)
	}
	return b
}

// leafBytes is a leaf as IAVL 1 stores it.
func leafBytes(n *treeNode) []byte {
	b := binary.AppendVarint(binary.AppendVarint(nil, n.height), n.size)
	for _, x := range [][]byte{n.key, n.value} {
		b = append(binary.AppendUvarint(b, uint64(len(x))), x...)
	}
	return b
}

func TestDamageSDK(t *testing.T) {
	for backend, kind := range backends() {
		t.Run(string(kind), func(t *testing.T) {
			all := sdkHarms()
			table := make([]string, len(all))
			t.Run("all", func(t *testing.T) {
				for i, x := range all {
					t.Run(x.name, func(t *testing.T) {
						t.Parallel()
						table[i] = x.found(t, sdkDump(t, backend), sdkHeight)
					})
				}
			})
			t.Logf("%d kinds:\n%s", len(all), strings.Join(table, ""))
		})
	}
}

// A chain that has come a long way has trees, and parts of trees, in the form
// before IAVL 1. A tree has the same hash in either.
func TestOlderTrees(t *testing.T) {
	prefix := []byte("s/k:bank/")
	// older rewrites a node and all below it.
	var older func(d *dump, tr *tree, db dbm.DB, n *treeNode)
	older = func(d *dump, tr *tree, db dbm.DB, n *treeNode) {
		b := binary.AppendVarint(binary.AppendVarint(binary.AppendVarint(nil, n.height), n.size), n.version)
		parts := [][]byte{n.key, n.value}
		if n.height > 0 {
			left, right, err := tr.children(n)
			must(d, err)
			older(d, tr, db, left)
			older(d, tr, db, right)
			parts = [][]byte{n.key, left.hash, right.hash}
		}
		for _, x := range parts {
			b = append(binary.AppendUvarint(b, uint64(len(x))), x...)
		}
		must(d, db.Set(append(bytes.Clone(prefix), oldRef(n.hash)...), b))
	}
	for backend, kind := range backends() {
		d := sdkDump(t, backend)
		check := func(what string, deep, sound bool) {
			t.Helper()
			r, err := Run(t.Context(), d.home, Options{Deep: deep})
			if err != nil || r.Sound() != sound {
				t.Errorf("%s, %s: %v %v", kind, what, r.Findings, err)
			}
		}
		// The left half of it.
		d.editTree("bank", func(tr *tree, root *treeNode, db dbm.DB) {
			left, _, err := tr.children(root)
			must(t, err)
			older(d, tr, db, left)
			b := binary.AppendVarint(binary.AppendVarint(nil, root.height), root.size)
			for _, x := range [][]byte{root.key, root.hash} {
				b = append(binary.AppendUvarint(b, uint64(len(x))), x...)
			}
			b = binary.AppendVarint(b, 1)
			b = append(binary.AppendUvarint(b, 32), left.hash...)
			b = binary.AppendVarint(b, int64(binary.BigEndian.Uint64(root.right[1:])))
			b = binary.AppendVarint(b, int64(binary.BigEndian.Uint32(root.right[9:])))
			must(t, db.Delete(append(bytes.Clone(prefix), root.left...)), db.SetSync(append(bytes.Clone(prefix), newRef(sdkHeight, 1)...), b))
		})
		check("a half older", true, true)
		// All of it.
		d.editTree("bank", func(tr *tree, root *treeNode, db dbm.DB) {
			older(d, tr, db, root)
			must(t, db.Delete(append(bytes.Clone(prefix), newRef(sdkHeight, 1)...)))
			must(t, db.SetSync(binary.BigEndian.AppendUint64(append(bytes.Clone(prefix), 'r'), sdkHeight), root.hash))
		})
		check("all older", true, true)
		check("all older", false, true)
		d.editTree("bank", func(tr *tree, root *treeNode, db dbm.DB) {
			ref, _ := leafOf(d, tr, root)
			key := append(bytes.Clone(prefix), ref...)
			b, err := db.Get(key)
			must(t, err, db.SetSync(key, flip(bytes.Clone(b))))
		})
		check("an older leaf is flipped", false, false)
	}
}

// A version in which a store did not change refers to the one that has its root.
func TestReferredRoots(t *testing.T) {
	d := sdkDump(t, dbm.GoLevelDBBackend)
	root := append([]byte("s/k:bank/"), newRef(sdkHeight, 1)...)
	d.edit("application", func(db dbm.DB) {
		value, err := db.Get(root)
		must(t, err)
		for i, x := range []struct{ ref, at nodeRef }{
			{newRef(sdkHeight, 1), newRef(sdkHeight, 1)},
			{newRef(sdkHeight, 1)[:9], newRef(sdkHeight, 1)},
			{newRef(sdkHeight, 1), newRef(sdkHeight, 0)},
		} {
			must(t, db.Delete(root), db.Set(append([]byte("s/k:bank/"), x.at...), value), db.Set(append([]byte("s/k:bank/"), newRef(900, 1)...), x.ref))
			tr := &tree{db: asEngine{db}, prefix: "s/k:bank/"}
			n, err := tr.root(900)
			if err != nil || n == nil || n.size < 2 {
				t.Errorf("%d: %+v, %v", i, n, err)
			}
		}
		must(t, db.Delete(append([]byte("s/k:bank/"), newRef(sdkHeight, 0)...)))
		tr := &tree{db: asEngine{db}, prefix: "s/k:bank/"}
		if _, err := tr.root(900); !isTree(err) {
			t.Errorf("a root that refers to nothing: %v", err)
		}
	})
}

func TestStateInMemIAVL(t *testing.T) {
	d := sdkDump(t, dbm.GoLevelDBBackend)
	must(t, os.Mkdir(d.path("memiavl.db"), 0o700))
	r, err := Run(t.Context(), d.home, Options{})
	if err != nil || !r.Sound() || r.Opened != Part || r.Grade != Structure || !strings.Contains(r.Layers[2].Said, "memiavl.db") {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParseSDK(f *testing.F) {
	f.Add(commitInfoOf(7, []storeInfo{{"bank", 7, bytes.Repeat([]byte{1}, 32)}, {"acc", 7, nil}}))
	f.Add([]byte{8, 7})
	f.Add(leafBytes(&treeNode{size: 1, key: []byte("k"), value: []byte("v")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseLatest(b); err == nil && h <= 0 {
			t.Error(h)
		}
		if v, stores, err := parseCommitInfo(b); err == nil {
			again, same, err := parseCommitInfo(commitInfoOf(v, stores))
			if err != nil || again != v || len(same) != len(stores) || !bytes.Equal(hashOf(same), hashOf(stores)) {
				t.Errorf("%v: %v, %v", stores, same, err)
			}
		}
		for _, ref := range []nodeRef{newRef(3, 1), oldRef(make([]byte, 32))} {
			n, err := parseNode(ref, b)
			if err != nil {
				continue
			}
			if len(n.hash) != 32 || n.height == 0 != (n.left == nil) || n.size < 1 {
				t.Errorf("%+v", n)
			}
		}
	})
}
