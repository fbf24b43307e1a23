package swarm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"strconv"
)

// What the file of the node's key has in its headers (swarmkit: ca, manager/deks.go).
const (
	headVersion = "kek-version" // counts the unlock keys that there have been
	headKey     = "raft-dek"    // encrypts the raft log
	headPending = "raft-dek-pending"
)

// nodeKey is the file certificates/swarm-node.key: the node's TLS key, and in its
// headers the keys of the raft log. Of a locked swarm all three are encrypted with the
// unlock key; else whoever has the file reads every secret.
type nodeKey struct {
	block   *pem.Block
	Version uint64
	Locked  bool
}

func parseNodeKey(b []byte) (k nodeKey, err error) {
	block, rest := pem.Decode(b)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(b, []byte("-----BEGIN ")) {
		return k, errors.New("it is not one PEM block")
	}
	if k.Version, err = strconv.ParseUint(block.Headers[headVersion], 10, 64); err != nil && block.Headers[headVersion] != "" {
		return k, fmt.Errorf("its %s is no number", headVersion)
	}
	if block.Headers[headKey] == "" {
		return k, fmt.Errorf("it has no %s: no manager has written it", headKey)
	}
	var p8 encryptedKey
	rest, err = asn1.Unmarshal(block.Bytes, &p8)
	k.block, k.Locked = block, err == nil && len(rest) == 0 || block.Headers["DEK-Info"] != ""
	return k, nil
}

// opened are the secrets of the file.
type opened struct {
	der  []byte            // of the TLS key
	tls  crypto.PublicKey  // its public half
	logs map[string][]byte // by header: what opens the raft log
}

// keys open the records of the raft log: those after a change of key need the new one,
// those before it the old one.
func (o opened) keys() (all [][]byte) {
	for _, h := range []string{headKey, headPending} {
		if o.logs[h] != nil {
			all = append(all, o.logs[h])
		}
	}
	return all
}

// open takes the secrets out; without keys, of a swarm that is not locked. errKey is in
// the chain where none of the keys fits.
func (k nodeKey) open(keys []UnlockKey) (opened, error) {
	if !k.Locked {
		return k.openWith(nil)
	}
	err := errKey
	for _, key := range keys {
		var kek []byte
		if kek, err = key.bytes(); err != nil {
			return opened{}, err
		}
		var o opened
		if o, err = k.openWith(kek); err == nil {
			return o, nil
		}
	}
	return opened{}, err
}

func (k nodeKey) openWith(kek []byte) (o opened, err error) {
	o.der = k.block.Bytes
	if k.Locked {
		if o.der, err = decryptKey(k.block, kek); err != nil {
			return o, err
		}
	}
	if o.tls, err = publicOf(o.der); err != nil {
		if k.Locked {
			err = errKey
		}
		return o, err
	}
	var keks [][]byte
	if k.Locked {
		keks = append(keks, kek)
	}
	o.logs = map[string][]byte{}
	for _, h := range []string{headKey, headPending} {
		text := k.block.Headers[h]
		if text == "" {
			continue
		}
		record, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return o, fmt.Errorf("its %s is no base64", h)
		}
		if o.logs[h], err = open(record, keks); err != nil {
			return o, fmt.Errorf("its %s: %w", h, err)
		}
		if len(o.logs[h]) != keySize {
			return o, fmt.Errorf("its %s has %d bytes, a key has %d", h, len(o.logs[h]), keySize)
		}
	}
	return o, nil
}

// plain is the file as a manager writes it whose swarm is not locked: what an
// autolocked dump needs to be restored, as a locked manager waits for a quorum that
// cannot come (moby/moby#36852). The version goes up, for a manager that meets the old
// key again takes the newer one.
func (k nodeKey) plain(o opened) []byte {
	heads := maps.Clone(k.block.Headers)
	delete(heads, "DEK-Info")
	delete(heads, "Proc-Type")
	for h, key := range o.logs {
		heads[h] = base64.StdEncoding.EncodeToString(inClear(key))
	}
	heads[headVersion] = strconv.FormatUint(k.Version+1, 10)
	typ := "PRIVATE KEY"
	if _, err := x509.ParsePKCS8PrivateKey(o.der); err != nil {
		typ = "EC PRIVATE KEY"
	}
	return pem.EncodeToMemory(&pem.Block{Type: typ, Headers: heads, Bytes: o.der})
}

// publicOf is the public half of a private key. Where the file has that as well it must
// be the same: nothing else tells that those bytes are whole.
func publicOf(der []byte) (crypto.PublicKey, error) {
	damaged := errors.New("it holds no private key")
	inner := der
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		k, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, damaged
		}
		var ok bool
		if key, ok = k.(*ecdsa.PrivateKey); !ok {
			return nil, fmt.Errorf("it holds a key of another kind (%T)", k)
		}
		var p8 struct { // RFC 5958
			Version   int
			Algorithm pkix.AlgorithmIdentifier
			Key       []byte
		}
		if _, err := asn1.Unmarshal(der, &p8); err != nil {
			return nil, damaged
		}
		inner = p8.Key
	}
	var ec struct { // RFC 5915
		Version int
		Key     []byte
		Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
		Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
	}
	if rest, err := asn1.Unmarshal(inner, &ec); err != nil || len(rest) > 0 {
		return nil, damaged
	}
	own, err := key.PublicKey.Bytes()
	if err != nil || len(ec.Public.Bytes) > 0 && !bytes.Equal(own, ec.Public.Bytes) {
		return nil, damaged
	}
	return key.Public(), nil
}

// encryptedKey is EncryptedPrivateKeyInfo of RFC 5958, by PBES2 of RFC 8018.
type encryptedKey struct {
	Algorithm struct {
		ID     asn1.ObjectIdentifier
		Params struct {
			KDF struct {
				ID     asn1.ObjectIdentifier
				Params struct {
					Salt       []byte
					Iterations int
				}
			}
			Cipher pkix.AlgorithmIdentifier
		}
	}
	Data []byte
}

// The only ones that an engine uses.
var (
	oidPBES2     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidAES256CBC = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// maxIterations bounds the work that a foreign file can ask for; engines use 2048.
const maxIterations = 1 << 20

// decryptKey returns the DER of the private key. With a wrong key it fails, or returns
// what is no private key.
func decryptKey(b *pem.Block, kek []byte) ([]byte, error) {
	if b.Headers["DEK-Info"] != "" { // by old engines
		//lint:ignore SA1019 it is what those have written
		der, err := x509.DecryptPEMBlock(b, kek)
		if err != nil {
			return nil, errKey
		}
		return der, nil
	}
	var k encryptedKey
	if rest, err := asn1.Unmarshal(b.Bytes, &k); err != nil || len(rest) > 0 {
		return nil, errors.New("it is no encrypted key")
	}
	p := k.Algorithm.Params
	var iv []byte
	_, err := asn1.Unmarshal(p.Cipher.Parameters.FullBytes, &iv)
	switch n := p.KDF.Params.Iterations; {
	case !k.Algorithm.ID.Equal(oidPBES2) || !p.KDF.ID.Equal(oidPBKDF2) || !p.Cipher.Algorithm.Equal(oidAES256CBC):
		return nil, errors.New("it is encrypted as no engine does")
	case err != nil || len(iv) != aes.BlockSize || n < 1 || n > maxIterations || len(k.Data) == 0 || len(k.Data)%aes.BlockSize != 0:
		return nil, errors.New("its encryption is damaged")
	}
	key, err := pbkdf2.Key(sha1.New, string(kek), p.KDF.Params.Salt, p.KDF.Params.Iterations, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	der := make([]byte, len(k.Data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(der, k.Data)
	der, ok := unpad(der)
	if !ok {
		return nil, errKey
	}
	return der, nil
}
