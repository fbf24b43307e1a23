package check

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"google.golang.org/protobuf/encoding/protowire"
)

// codeInfo is what wasmd stores of a program.
func codeInfo(code []byte) []byte {
	sum := sha256.Sum256(code)
	return protowire.AppendString(append(protowire.AppendBytes([]byte{0x0a}, sum[:]), 0x12), "wasm1creator")
}

// A program that the chain names and the dump lacks is said. The store here is one
// of three programs; its root is not the chain's, so that there is a finding beside.
func TestMissingPrograms(t *testing.T) {
	d := sdkDump(t, dbm.GoLevelDBBackend)
	kept := bytes.Repeat([]byte{0, 'a', 's', 'm', 0}, 100_000)
	leaf := func(key string, value []byte) *treeNode {
		n := &treeNode{size: 1, version: sdkHeight, key: []byte(key), value: value}
		sum := sha256.Sum256(value)
		n.hash = n.hashOver(n.key, sum[:])
		return n
	}
	leaves := []*treeNode{
		leaf("\x01\x00\x00\x00\x00\x00\x00\x00\x01", codeInfo(kept)),
		leaf("\x01\x00\x00\x00\x00\x00\x00\x00\x02", codeInfo([]byte("gone"))),
		leaf("\x02contract", codeInfo([]byte("no program"))),
	}
	inner := func(left, right *treeNode, key []byte, l, r uint32) (*treeNode, []byte) {
		n := &treeNode{height: max(left.height, right.height) + 1, size: left.size + right.size, version: sdkHeight, key: key}
		n.hash = n.hashOver(left.hash, right.hash)
		b := protowire.AppendVarint(protowire.AppendVarint(nil, uint64(2*n.height)), uint64(2*n.size)) // zigzag
		for _, x := range [][]byte{key, n.hash} {
			b = append(protowire.AppendVarint(b, uint64(len(x))), x...)
		}
		b = append(b, 0)
		for _, number := range []uint32{l, r} {
			b = protowire.AppendVarint(protowire.AppendVarint(b, 2*sdkHeight), 2*uint64(number))
		}
		return n, b
	}
	low, lowBytes := inner(leaves[0], leaves[1], leaves[1].key, 3, 4)
	root, rootBytes := inner(low, leaves[2], leaves[2].key, 2, 5)
	d.removeStore("wasm")
	d.edit("application", func(db dbm.DB) {
		for number, b := range map[uint32][]byte{1: rootBytes, 2: lowBytes, 3: leafBytes(leaves[0]), 4: leafBytes(leaves[1]), 5: leafBytes(leaves[2])} {
			must(t, db.Set(append([]byte("s/k:wasm/"), newRef(sdkHeight, number)...), b))
		}
		key := fmt.Appendf(nil, "s/%d", sdkHeight)
		b, err := db.Get(key)
		must(t, err)
		_, stores, err := parseCommitInfo(b)
		must(t, err)
		for i := range stores {
			if stores[i].name == "wasm" {
				stores[i].version, stores[i].hash = sdkHeight, root.hash
			}
		}
		must(t, db.SetSync(key, commitInfoOf(sdkHeight, stores)))
	})
	r, err := Run(t.Context(), d.home, Options{})
	must(t, err)
	if len(r.Findings) != 1 || r.Findings[0].What != AppHash {
		t.Errorf("%v", r.Findings)
	}
	if len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "1 of the 2 programs ") || r.Proven.Programs != 2 {
		t.Errorf("%q, %+v", r.Notes, r.Proven)
	}
	must(t, os.RemoveAll(filepath.Join(d.home, "wasm")))
	if r, err = Run(t.Context(), d.home, Options{}); err != nil || len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "2 of the 2 programs ") {
		t.Errorf("%q, %v", r.Notes, err)
	}
}

func TestProgramHash(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	for name, want := range map[string]string{
		"wasm/wasm/state/wasm/" + hash:                            hash,
		"data/wasm/state/wasm/" + strings.ToUpper(hash) + ".wasm": hash,
		"state/wasm/" + hash:                                      hash,
		".eddy-root/w/ibc/state/wasm/" + hash + ".wasm":           hash,
		"wasm/wasm/cache/modules/" + hash:                         "",
		"wasm/substate/wasm/" + hash:                              "",
		"wasm/state/wasm/" + hash[2:]:                             "",
		"wasm/state/wasm/" + hash + ".tmp":                        "",
		"wasm/state/wasm/x" + hash[1:]:                            "",
	} {
		if got := programHash(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
