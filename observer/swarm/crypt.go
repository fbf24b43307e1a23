package swarm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/nacl/secretbox"
	"google.golang.org/protobuf/encoding/protowire"
)

// UnlockKey is the key that a locked manager asks for, as `docker swarm unlock-key`
// shows it; "": none. It is a secret.
type UnlockKey string

const unlockPrefix = "SWMKEY-1-"

// String keeps it out of whatever prints it.
func (UnlockKey) String() string { return "(an unlock key)" }

// GoString is String.
func (k UnlockKey) GoString() string { return k.String() }

// ParseUnlockKeys reads keys, one a line; other lines are passed over, so that what
// `docker swarm unlock-key` prints can be given as it is.
func ParseUnlockKeys(text string) ([]UnlockKey, error) {
	var keys []UnlockKey
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, unlockPrefix) {
			continue
		}
		k := UnlockKey(line)
		if _, err := k.bytes(); err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no unlock key is in it: one begins with %s", unlockPrefix)
	}
	return keys, nil
}

// bytes is the key that encrypts others: nil of an empty one.
func (k UnlockKey) bytes() ([]byte, error) {
	if k == "" {
		return nil, nil
	}
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimPrefix(string(k), unlockPrefix))
	if err != nil || len(b) != keySize {
		return nil, fmt.Errorf("what begins with %s is no unlock key", unlockPrefix)
	}
	return b, nil
}

const keySize = 32

// errKey: none of the keys opens it.
var errKey = errors.New("no key that is held opens it")

// How a record is encrypted (api.MaybeEncryptedRecord).
const (
	inTheClear = 0
	byNACL     = 1
	byFernet   = 2
)

// open decrypts a record with the first of the keys that fits; without any it must be
// in the clear.
func open(record []byte, keys [][]byte) ([]byte, error) {
	var algorithm uint64
	var data, nonce []byte
	err := scan(record, map[protowire.Number]*uint64{1: &algorithm}, map[protowire.Number]*[]byte{2: &data, 3: &nonce})
	if err != nil {
		return nil, fmt.Errorf("an encrypted record: %w", err)
	}
	if len(keys) == 0 {
		if algorithm != inTheClear {
			return nil, errKey
		}
		return data, nil
	}
	for _, key := range keys {
		var plain []byte
		ok := false
		switch {
		case len(key) != keySize:
		case algorithm == byNACL && len(nonce) == 24:
			plain, ok = secretbox.Open(nil, data, (*[24]byte)(nonce), (*[keySize]byte)(key))
		case algorithm == byFernet:
			plain, ok = openFernet(data, key)
		}
		if ok {
			return plain, nil
		}
	}
	return nil, errKey
}

// inClear is a record that is not encrypted.
func inClear(data []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), data)
}

// openFernet opens a token of an engine in FIPS mode: version, time, IV, AES-128-CBC,
// HMAC-SHA256 (github.com/fernet/spec).
func openFernet(token, key []byte) ([]byte, bool) {
	b, err := base64.URLEncoding.DecodeString(string(token))
	const head, mac = 1 + 8 + aes.BlockSize, sha256.Size
	if err != nil || len(b) < head+aes.BlockSize+mac || b[0] != 0x80 || (len(b)-head-mac)%aes.BlockSize != 0 {
		return nil, false
	}
	signed, sum := b[:len(b)-mac], b[len(b)-mac:]
	h := hmac.New(sha256.New, key[:16])
	h.Write(signed)
	if !hmac.Equal(h.Sum(nil), sum) {
		return nil, false
	}
	block, err := aes.NewCipher(key[16:])
	if err != nil {
		return nil, false
	}
	plain := make([]byte, len(signed)-head)
	cipher.NewCBCDecrypter(block, signed[9:head]).CryptBlocks(plain, signed[head:])
	return unpad(plain)
}

// unpad takes the padding of PKCS #7 off.
func unpad(b []byte) ([]byte, bool) {
	if len(b) == 0 {
		return nil, false
	}
	n := int(b[len(b)-1])
	if n == 0 || n > aes.BlockSize || n > len(b) {
		return nil, false
	}
	for _, c := range b[len(b)-n:] {
		if int(c) != n {
			return nil, false
		}
	}
	return b[:len(b)-n], true
}
