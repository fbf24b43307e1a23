package bundle

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// secret is what classOf says of a file that belongs into no bundle.
const secret Class = "identity"

// sniffed is how much of a file is looked at to tell what it is, in bytes: key files
// are small.
const sniffed = 1 << 20

// classOf tells what a file is where its place, its name or its content does: "" where
// none does. A copy of a validator key under another name is one as well.
func (f *finder) classOf(name string, fi fs.FileInfo) (Class, error) {
	for _, known := range []rule{{f.keys.validatorKey, ValidatorKey}, {f.keys.signState, SignState}, {f.keys.nodeKey, NodeKey}} {
		if known.glob == "" {
			continue
		}
		if k, err := os.Stat(known.glob); err == nil && inode(k) == inode(fi) {
			return known.class, nil
		}
	}
	class := classByName(filepath.Base(name))
	if fi.Size() > sniffed {
		return class, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	if told := classByContent(b); told != "" {
		return told, nil
	}
	return class, nil
}

func classByName(base string) Class {
	lower := strings.ToLower(base)
	switch {
	case strings.Contains(lower, "priv_validator_state"):
		return SignState
	case strings.Contains(lower, "priv_validator"), strings.Contains(lower, "bls_key"):
		return ValidatorKey
	case strings.Contains(lower, "node_key"):
		return NodeKey
	}
	return ""
}

// classByContent knows the JSON forms of CometBFT and of Tendermint before it, and
// age's identities.
func classByContent(b []byte) Class {
	if bytes.Contains(b, []byte(secretMark)) {
		return secret
	}
	var f map[string]json.RawMessage
	if json.Unmarshal(b, &f) != nil {
		return ""
	}
	has := func(names ...string) bool {
		for _, n := range names {
			if _, ok := f[n]; !ok {
				return false
			}
		}
		return true
	}
	switch {
	case has("priv_key", "pub_key"), has("priv_key", "address"), has("priv_key", "last_height"):
		return ValidatorKey
	case has("priv_key"):
		return NodeKey
	case has("height", "round", "step"):
		return SignState
	}
	return ""
}

// errNodeKey quotes nothing of a file that is a key.
var errNodeKey = errors.New("it is no node key that is known: an ed25519 one in JSON")

// NodeID is who a node is to its peers, by its node_key.json: the first 20 bytes of
// sha256 over the public key, hex.
func NodeID(nodeKey []byte) (string, error) {
	var k struct {
		Priv struct {
			Value []byte `json:"value"`
		} `json:"priv_key"`
	}
	if err := json.Unmarshal(nodeKey, &k); err != nil || len(k.Priv.Value) != ed25519.PrivateKeySize {
		return "", errNodeKey
	}
	sum := sha256.Sum256(ed25519.PrivateKey(k.Priv.Value).Public().(ed25519.PublicKey))
	return hex.EncodeToString(sum[:20]), nil
}
