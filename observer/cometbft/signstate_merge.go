package cometbft

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cometbft/cometbft/crypto"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/privval"
)

// The names of a sign state's fields: height, round, step, signature, what was
// signed. The second form stands in the priv_validator.json of old Tendermint and
// Loom, beside the key.
var (
	plainNames = [5]string{"height", "round", "step", "signature", "signbytes"}
	lastNames  = [5]string{"last_height", "last_round", "last_step", "last_signature", "last_signbytes"}
)

// signFields are the fields of a file with a sign state, or that is to get one.
// encoding/json takes their names in any case, and so does this.
type signFields struct {
	all   map[string]json.RawMessage
	names [5]string // in all, of the form that the file has
	last  bool      // the second form
}

func readSignFields(b []byte) (signFields, error) {
	f := signFields{all: map[string]json.RawMessage{}}
	if json.Unmarshal(b, &f.all) != nil {
		return f, errors.New("it is not the JSON that it should be")
	}
	has := map[string]string{}
	for name := range f.all {
		has[strings.ToLower(name)] = name
	}
	f.names = plainNames
	_, key := has["priv_key"]
	if _, plain := has["height"]; key || !plain && (has["last_height"] != "" || has["last_round"] != "" || has["last_step"] != "") {
		f.names, f.last = lastNames, true
	}
	for i, n := range f.names {
		if as, ok := has[n]; ok {
			f.names[i] = as
		}
	}
	return f, nil
}

// signFile is a file with the sign state s: a new one, or old with all else that
// stands in it, a key of the old form included. A signature is taken over from a
// file of the same form only; without one the node does not sign that very height,
// round and step again, which is safe. No error quotes either.
func signFile(old, from []byte, s SignStatus) ([]byte, error) {
	if old == nil {
		old = []byte("{}")
	}
	to, err := readSignFields(old)
	if err != nil {
		return nil, err
	}
	source := signFields{last: !to.last}
	if from != nil {
		if source, err = readSignFields(from); err != nil {
			return nil, err
		}
	}
	// Heights are quoted by all who write them, and the rest by some.
	for i, v := range []int64{s.Height, int64(s.Round), int64(s.Step)} {
		text := strconv.FormatInt(v, 10)
		if was, ok := to.all[to.names[i]]; ok && bytes.HasPrefix(was, []byte(`"`)) || !ok && i == 0 {
			text = strconv.Quote(text)
		}
		to.all[to.names[i]] = json.RawMessage(text)
	}
	for i := 3; i < len(to.names); i++ {
		delete(to.all, to.names[i])
		if v, ok := source.all[source.names[i]]; ok && source.last == to.last {
			to.all[to.names[i]] = v
		}
	}
	b, err := json.MarshalIndent(to.all, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write a sign state: %w", err)
	}
	// What was written must be what will be read.
	if back, ok, err := parseSignState(b); err != nil || !ok || back.less(s) || s.less(back) {
		return nil, errors.New("it cannot hold a sign state")
	}
	return append(b, '\n'), nil
}

// publicKey is that of a key file, nil where it has none that CometBFT knows.
func publicKey(b []byte) crypto.PubKey {
	var k privval.FilePVKey
	if cmtjson.Unmarshal(b, &k) != nil {
		return nil
	}
	return k.PubKey
}

// signedBy tells whether the signature that stands in a sign state of the first
// form is the key's. known is false where that cannot be said: a state with no
// signature, or of the second form, of which several encodings are about.
func signedBy(key crypto.PubKey, state []byte) (yes, known bool) {
	f, err := readSignFields(state)
	if err != nil || key == nil || f.last {
		return false, false
	}
	text := func(i int) string {
		var s string
		_ = json.Unmarshal(f.all[f.names[i]], &s) // what is no text is none
		return s
	}
	signature, err := base64.StdEncoding.DecodeString(text(3))
	signed, herr := hex.DecodeString(text(4))
	if err != nil || herr != nil || len(signature) == 0 || len(signed) == 0 {
		return false, false
	}
	return key.VerifySignature(signed, signature), true
}
