package check

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cometbft/cometbft/crypto/merkle"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// storeInfo is what the SDK's list of stores says of one of them.
type storeInfo struct {
	name    string
	version int64 // of its tree
	hash    []byte
}

// sdk checks an application of the Cosmos SDK: the list of stores of its newest
// height makes the app hash, the trees have the roots that the list says, and
// below them some paths, or all, lead to what is stored.
func (c *checker) sdk(ctx context.Context, db engine.DB, name string, latest []byte) error {
	c.r.Kind = "sdk"
	for _, beside := range []string{"memiavl.db", "committer.db"} {
		_, err := os.Stat(filepath.Join(filepath.Dir(c.home.app.path), beside))
		if err == nil {
			c.said(false, "an application of the Cosmos SDK whose state is in %s, which this eddy cannot read", beside)
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return errFatal{err}
		}
	}
	height, err := parseLatest(latest)
	if err != nil {
		c.said(false, "an application of the Cosmos SDK that does not say its height")
		c.fail(StageApp, AppDamaged, name, "what it says of its height: %v", err)
		return nil
	}
	c.r.App = height
	c.said(true, "an application of the Cosmos SDK at height %d", height)
	value, err := db.Get(fmt.Appendf(nil, "s/%d", height))
	if err != nil {
		return err
	}
	if value == nil {
		c.fail(StageApp, CommitInfo, name, "the list of stores of height %d is not there", height)
		return nil
	}
	version, stores, err := parseCommitInfo(value)
	if err == nil && version != height {
		err = fmt.Errorf("it is of height %d", version)
	}
	if err != nil {
		c.fail(StageApp, CommitInfo, name, "the list of stores of height %d: %v", height, err)
		return nil
	}
	c.said(true, "an application of the Cosmos SDK at height %d, %d stores", height, len(stores))
	if err := c.appAt(name, height, hashOf(stores)); err != nil {
		return err
	}
	for _, s := range stores {
		if err := c.store(ctx, db, name, s); err != nil {
			return err
		}
	}
	return nil
}

// parseLatest reads s/latest: a protobuf Int64Value.
func parseLatest(value []byte) (height int64, err error) {
	err = fields(value, func(num protowire.Number, number uint64, _ []byte) error {
		if num == 1 {
			height = int64(number)
		}
		return nil
	})
	if err == nil && height <= 0 {
		err = fmt.Errorf("it is at height %d", height)
	}
	return height, err
}

// parseCommitInfo reads s/<height>: the SDK's CommitInfo (store/types, from 0.40
// to 0.55). The stores come back in the order of their names.
func parseCommitInfo(value []byte) (version int64, stores []storeInfo, err error) {
	err = fields(value, func(num protowire.Number, number uint64, text []byte) error {
		switch num {
		case 1:
			version = int64(number)
		case 2:
			var s storeInfo
			err := fields(text, func(num protowire.Number, _ uint64, text []byte) error {
				switch num {
				case 1:
					s.name = string(text)
				case 2:
					return fields(text, func(num protowire.Number, number uint64, text []byte) error {
						switch num {
						case 1:
							s.version = int64(number)
						case 2:
							s.hash = text
						}
						return nil
					})
				}
				return nil
			})
			if err != nil {
				return err
			}
			if s.name == "" {
				return errors.New("a store has no name")
			}
			stores = append(stores, s)
		}
		return nil
	})
	slices.SortFunc(stores, func(a, b storeInfo) int { return cmp.Compare(a.name, b.name) })
	for i := range stores {
		if i > 0 && stores[i].name == stores[i-1].name && err == nil {
			err = fmt.Errorf("store %s is in it twice", stores[i].name)
		}
	}
	return version, stores, err
}

// fields visits the fields of a protobuf message that are numbers or bytes. A
// value is a part of message.
func fields(message []byte, visit func(num protowire.Number, number uint64, text []byte) error) error {
	for len(message) > 0 {
		num, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var number uint64
		var text []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			text, n = protowire.ConsumeBytes(message)
		default:
			n = protowire.ConsumeFieldValue(num, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if kind == protowire.VarintType || kind == protowire.BytesType {
			if err := visit(num, number, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// hashOf is the app hash that stores make: the root of a merkle tree over their
// names, in order, each with the hash of its hash.
func hashOf(stores []storeInfo) []byte {
	var leaves [][]byte
	for _, s := range stores {
		sum := sha256.Sum256(s.hash)
		leaf := append(binary.AppendUvarint(nil, uint64(len(s.name))), s.name...)
		leaves = append(leaves, append(binary.AppendUvarint(leaf, uint64(len(sum))), sum[:]...))
	}
	return merkle.HashFromByteSlices(leaves)
}

// paths is how many leaves of each tree are looked at where not all are.
const paths = 4

// store checks one tree.
func (c *checker) store(ctx context.Context, db engine.DB, name string, s storeInfo) error {
	t := &tree{db: db, prefix: "s/k:" + s.name + "/"}
	where := name + " store " + s.name
	root, err := t.root(s.version)
	switch {
	case errors.Is(err, errNoVersion):
		empty := true
		err := db.Each([]byte(t.prefix), append([]byte(t.prefix), 0xFF), func(_, _ []byte) error { empty = false; return errStop })
		if err != nil && !errors.Is(err, errStop) {
			return err
		}
		if empty && len(s.hash) == 0 {
			c.note("store %s of %s has no hash: it is no tree", s.name, name)
			return nil
		}
		c.fail(StageApp, StoreRoot, where, "its tree of version %d is not there", s.version)
		return nil
	case isTree(err):
		c.fail(StageApp, TreeNode, where, "version %d: %v", s.version, err)
		return nil
	case err != nil:
		return err
	}
	hash := emptyHash[:]
	if root != nil {
		hash = root.hash
	}
	if !bytes.Equal(hash, s.hash) {
		c.fail(StageApp, StoreRoot, where, "the root of version %d has hash %X, the app hash was made with %X", s.version, hash, s.hash)
		return nil
	}
	c.r.Proven.Stores++
	if root == nil {
		return nil
	}
	if t.fast, err = t.fastIndex(s.version); err != nil {
		return err
	}
	if c.o.Deep {
		err = t.all(ctx, root)
		if err == nil && t.fast {
			err = t.fastCount(ctx, root.size)
		}
	} else {
		for i := range min(int64(paths), root.size) {
			// From the first leaf to the last, whatever their number.
			at := i * (root.size - 1) / max(1, min(int64(paths), root.size)-1)
			if err = t.path(ctx, root, at); err != nil {
				break
			}
		}
	}
	if err == nil && s.name == "wasm" {
		proven := t.proven // counted by those above
		err = t.between(ctx, root, codesFrom, codesTo, c.storedCode)
		t.proven = proven
	}
	c.r.Proven.Nodes += t.proven
	if isTree(err) {
		c.fail(StageApp, TreeNode, where, "version %d: %v", s.version, err)
		return nil
	}
	return err
}
