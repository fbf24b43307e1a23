package check

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// tree reads the IAVL tree of one store, in the form of IAVL 1 (nodes by version
// and number) and in the one before it (nodes by hash), which live side by side in
// a database that has come a long way.
//
//	s VERSION(8) NUMBER(4)   a node; number 1 is the version's root, or says which version's it is
//	n HASH(32)               a node of the older form
//	r VERSION(8)             the hash of the older form's root
//	f KEY                    where a node reads from: the newest value, with its version
//	m storage_version        of which version those are
type tree struct {
	db     engine.DB
	prefix string // of all its keys: s/k:NAME/
	fast   bool   // f is of the version that is checked
	proven int64  // nodes
}

// treeNode is a node that was read. hash is computed of a leaf, and what the node
// says of itself else.
type treeNode struct {
	height      int64
	size        int64 // leaves
	version     int64
	key, value  []byte
	hash        []byte
	left, right nodeRef
}

// nodeRef is the key of a node behind the store's prefix, with its s or n.
type nodeRef []byte

var (
	errNoVersion = errors.New("there is no such version")
	// emptyHash is the root of a tree without leaves.
	emptyHash = sha256.Sum256(nil)
)

// treeError is something wrong with a tree, in contrast to what an engine says.
type treeError struct{ error }

func isTree(err error) bool {
	var t treeError
	return errors.As(err, &t)
}

func treeErrorf(format string, args ...any) error { return treeError{fmt.Errorf(format, args...)} }

func newRef(version int64, number uint32) nodeRef {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64([]byte{'s'}, uint64(version)), number)
}

func oldRef(hash []byte) nodeRef { return append(nodeRef{'n'}, hash...) }

func (r nodeRef) String() string {
	if r[0] == 'n' {
		return fmt.Sprintf("node %X", []byte(r[1:]))
	}
	return fmt.Sprintf("node %d of version %d", binary.BigEndian.Uint32(r[9:]), binary.BigEndian.Uint64(r[1:]))
}

func (t *tree) get(key []byte) ([]byte, error) {
	return t.db.Get(append([]byte(t.prefix), key...))
}

// root reads the root of a version; nil: the tree is empty.
func (t *tree) root(version int64) (*treeNode, error) {
	ref := newRef(version, 1)
	value, err := t.get(ref)
	if err != nil {
		return nil, err
	}
	if value == nil {
		hash, err := t.get(binary.BigEndian.AppendUint64([]byte{'r'}, uint64(version)))
		switch {
		case err != nil:
			return nil, err
		case hash == nil:
			return nil, errNoVersion
		case len(hash) == 0:
			return nil, nil
		case len(hash) != sha256.Size:
			return nil, treeErrorf("its root has a hash of %d bytes", len(hash))
		}
		return t.load(oldRef(hash))
	}
	// A version in which nothing was changed refers to the one whose root it has.
	switch {
	case len(value) == 0:
		return nil, nil
	case value[0] != 's':
		return t.load(ref)
	case len(value) == len(ref):
		ref = nodeRef(value)
	case len(value) == len(ref)-4:
		ref = append(nodeRef(value), 0, 0, 0, 1)
	default:
		return nil, treeErrorf("its root refers to %X", value)
	}
	value, err = t.get(ref)
	if err != nil {
		return nil, err
	}
	if value == nil {
		ref = append(bytes.Clone(ref[:9]), 0, 0, 0, 0) // what pruning makes of a root that others refer to
		if value, err = t.get(ref); err != nil {
			return nil, err
		}
	}
	if value == nil {
		return nil, treeErrorf("its root refers to %s, which is not there", nodeRef(ref))
	}
	if len(value) == 0 {
		return nil, nil
	}
	return t.load(ref)
}

// load reads a node.
func (t *tree) load(ref nodeRef) (*treeNode, error) {
	value, err := t.get(ref)
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, treeErrorf("%s is not there", ref)
	}
	n, err := parseNode(ref, value)
	if err != nil {
		return nil, treeErrorf("%s: %w", ref, err)
	}
	return n, nil
}

// parseNode reads a node of either form.
func parseNode(ref nodeRef, value []byte) (*treeNode, error) {
	r := nodeReader{b: value}
	old := ref[0] == 'n'
	n := &treeNode{height: r.number(), size: r.number()}
	if old {
		n.version = r.number()
	} else {
		n.version = int64(binary.BigEndian.Uint64(ref[1:]))
	}
	n.key = r.bytes()
	switch {
	case n.height == 0:
		n.value = r.bytes()
		sum := sha256.Sum256(n.value)
		n.hash = n.hashOver(n.key, sum[:])
	case old:
		n.hash = ref[1:]
		n.left, n.right = oldRef(r.hash()), oldRef(r.hash())
	default:
		n.hash = r.hash()
		const oldLeft, oldRight = 1, 2
		mode := r.number()
		n.left, n.right = r.ref(mode&oldLeft != 0), r.ref(mode&oldRight != 0)
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(r.b) > 0:
		return nil, fmt.Errorf("%d bytes too many", len(r.b))
	case n.height < 0 || n.height > 127 || n.size < 1 || n.height == 0 && n.size != 1:
		return nil, fmt.Errorf("it is %d high and has %d leaves", n.height, n.size)
	case old && n.height == 0 && !bytes.Equal(n.hash, ref[1:]):
		return nil, fmt.Errorf("what it holds has hash %X", n.hash)
	}
	return n, nil
}

// hashOver is the hash of a node: over its numbers and the two things given, which
// are key and hash of the value of a leaf, and the children's hashes else.
func (n *treeNode) hashOver(a, b []byte) []byte {
	text := binary.AppendVarint(nil, n.height)
	text = binary.AppendVarint(text, n.size)
	text = binary.AppendVarint(text, n.version)
	for _, x := range [][]byte{a, b} {
		text = append(binary.AppendUvarint(text, uint64(len(x))), x...)
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

// nodeReader reads the parts of a node; the first error stays.
type nodeReader struct {
	b   []byte
	err error
}

var errShort = errors.New("it is cut short")

func (r *nodeReader) number() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.err, r.b = errShort, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *nodeReader) bytes() []byte {
	size, n := binary.Uvarint(r.b)
	if n <= 0 || size > uint64(len(r.b)-n) {
		r.err, r.b = errShort, nil
		return nil
	}
	out := r.b[n : n+int(size)]
	r.b = r.b[n+int(size):]
	return out
}

func (r *nodeReader) hash() []byte {
	b := r.bytes()
	if r.err == nil && len(b) != sha256.Size {
		r.err = fmt.Errorf("it has a hash of %d bytes", len(b))
	}
	return b
}

func (r *nodeReader) ref(old bool) nodeRef {
	if old {
		return oldRef(r.hash())
	}
	version, number := r.number(), r.number()
	if version < 0 || number < 0 || number > 1<<32-1 {
		r.err = fmt.Errorf("it refers to node %d of version %d", number, version)
	}
	return newRef(version, uint32(number))
}

// children reads the children of an inner node, which prove it: its hash is over
// theirs.
func (t *tree) children(n *treeNode) (left, right *treeNode, err error) {
	if left, err = t.load(n.left); err != nil {
		return nil, nil, err
	}
	if right, err = t.load(n.right); err != nil {
		return nil, nil, err
	}
	switch hash := n.hashOver(left.hash, right.hash); {
	case !bytes.Equal(hash, n.hash):
		return nil, nil, treeErrorf("an inner node has hash %X, its children make %X", n.hash, hash)
	case n.size != left.size+right.size || n.height != max(left.height, right.height)+1:
		return nil, nil, treeErrorf("an inner node is %d high and has %d leaves, its children %d and %d, %d and %d", n.height, n.size, left.height, right.height, left.size, right.size)
	}
	t.proven++
	return left, right, nil
}

// path goes down to one leaf, by its place among all.
func (t *tree) path(ctx context.Context, n *treeNode, at int64) error {
	for n.height > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		left, right, err := t.children(n)
		if err != nil {
			return err
		}
		if n = left; at >= left.size {
			n, at = right, at-left.size
		}
	}
	return t.leaf(n)
}

// all visits every node below n. The heights get smaller, so it ends.
func (t *tree) all(ctx context.Context, n *treeNode) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.height == 0 {
		return t.leaf(n)
	}
	left, right, err := t.children(n)
	if err != nil {
		return err
	}
	if err := t.all(ctx, left); err != nil {
		return err
	}
	return t.all(ctx, right)
}

// between visits the leaves with from <= key < to. The key of an inner node is the
// first one of its right side.
func (t *tree) between(ctx context.Context, n *treeNode, from, to []byte, visit func(*treeNode)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.height == 0 {
		if bytes.Compare(from, n.key) <= 0 && bytes.Compare(n.key, to) < 0 {
			visit(n)
			return t.leaf(n)
		}
		return nil
	}
	left, right, err := t.children(n)
	if err != nil {
		return err
	}
	if bytes.Compare(from, n.key) < 0 {
		if err := t.between(ctx, left, from, to, visit); err != nil {
			return err
		}
	}
	if bytes.Compare(n.key, to) < 0 {
		return t.between(ctx, right, from, to, visit)
	}
	return nil
}

// leaf sees that the node would read what the tree holds.
func (t *tree) leaf(n *treeNode) error {
	t.proven++
	if !t.fast {
		return nil
	}
	value, err := t.get(append([]byte{'f'}, n.key...))
	if err != nil {
		return err
	}
	r := nodeReader{b: value}
	r.number() // the version in which it was set
	switch got := r.bytes(); {
	case value == nil:
		return treeErrorf("the node would not find key %X, which is in the tree", short(n.key))
	case r.err != nil || !bytes.Equal(got, n.value):
		return treeErrorf("the node would read another value of key %X than the one in the tree", short(n.key))
	}
	return nil
}

func short(key []byte) []byte { return key[:min(len(key), 40)] }

// fastIndex tells whether the node reads from f without making it anew first: it is
// there and of that version (nodedb.go of IAVL, getStorageVersion).
func (t *tree) fastIndex(version int64) (bool, error) {
	value, err := t.get([]byte("mstorage_version"))
	return string(value) == fmt.Sprintf("1.1.0-%d", version), err
}

// fastCount sees that f has no more keys than the tree.
func (t *tree) fastCount(ctx context.Context, leaves int64) error {
	var n int64
	err := t.db.Each([]byte(t.prefix+"f"), []byte(t.prefix+"g"), func(_, _ []byte) error {
		n++
		return ctx.Err()
	})
	if err == nil && n != leaves {
		err = treeErrorf("the node would find %d keys, the tree has %d", n, leaves)
	}
	return err
}
