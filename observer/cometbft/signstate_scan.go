package cometbft

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// minSecret is the length of the shortest sign state, bytes.
const minSecret = int64(len(`{"height":0,"round":0,"step":0}`))

// secretContent tells whether the bytes are a private key or a validator's sign
// state: JSON as CometBFT and Tendermint write it, an encrypted JSON key, PEM, or
// an age identity.
func secretContent(b []byte) bool {
	b = bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")))
	if bytes.HasPrefix(b, []byte("AGE-SECRET-KEY-")) || bytes.Contains(b, []byte("\nAGE-SECRET-KEY-")) {
		return true
	}
	if i := bytes.Index(b, []byte("-----BEGIN ")); i >= 0 {
		line, _, _ := bytes.Cut(b[i:], []byte("\n"))
		if bytes.Contains(line, []byte("PRIVATE KEY")) {
			return true
		}
	}
	if len(b) == 0 || b[0] != '{' && b[0] != '[' {
		return false
	}
	for d := json.NewDecoder(bytes.NewReader(b)); ; { // what stands before garbage counts
		var v json.RawMessage
		if d.Decode(&v) != nil {
			return false
		}
		if secretJSON(v, true, 8) {
			return true
		}
	}
}

// secretJSON looks for keys in a value and below it; a sign state counts only by
// itself: three numbers with such names stand in many a file of an app.
func secretJSON(v json.RawMessage, top bool, depth int) bool {
	var list []json.RawMessage
	var raw map[string]json.RawMessage
	if depth == 0 || json.Unmarshal(v, &list) != nil && json.Unmarshal(v, &raw) != nil {
		return false
	}
	keys := make(map[string]json.RawMessage, len(raw))
	for k, v := range raw {
		keys[strings.ToLower(k)] = v
	}
	for _, k := range []string{"priv_key", "privkey", "private_key", "privatekey", "mnemonic"} {
		if v, ok := keys[k]; ok && string(v) != "null" && string(v) != `""` {
			return true
		}
	}
	if c, ok := keys["crypto"]; ok && bytes.Contains(c, []byte("cipher")) { // a keystore: BLS, Ethereum
		return true
	}
	if top && isSignState(keys) {
		return true
	}
	for _, v := range raw {
		list = append(list, v)
	}
	return slices.ContainsFunc(list, func(v json.RawMessage) bool { return secretJSON(v, false, depth-1) })
}

// isSignState knows {height, round, step}, with or without a signature, and the
// last_* fields of the older file. A file with further fields is something else
// unless it holds a signature.
func isSignState(keys map[string]json.RawMessage) bool {
	has := func(names ...string) bool {
		for _, n := range names {
			if _, ok := keys[n]; !ok {
				return false
			}
		}
		return true
	}
	switch {
	case has("last_height", "last_round", "last_step"):
		return true
	case !has("height", "round", "step"):
		return false
	case has("signature") || has("signbytes"):
		return true
	default:
		return len(keys) == 3
	}
}
