package uploader

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrUntrusted: nothing shows that one of the signers who were named has made it.
var ErrUntrusted = errors.New("none of the signers has signed it")

const maxSignature = 1 << 10 // bytes; a longer one is none

// SigningKey is an ed25519 key that signs manifests.
type SigningKey struct{ private ed25519.PrivateKey }

// NewSigningKey makes a key.
func NewSigningKey() (*SigningKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return &SigningKey{private}, nil
}

// PEM is the key as `openssl genpkey -algorithm ed25519` writes one (PKCS #8).
func (k *SigningKey) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseSigningKey reads what PEM, or openssl, has written. Its error holds nothing
// of the key.
func ParseSigningKey(text []byte) (*SigningKey, error) {
	no := hint.Add(errors.New("no ed25519 key in PEM"), "`openssl genpkey -algorithm ed25519` makes one; so does `eddy config init`")
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, no
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, no
	}
	return &SigningKey{private}, nil
}

// Signer is the public half.
func (k *SigningKey) Signer() Signer { return Signer{k.private.Public().(ed25519.PublicKey)} }

// sign is the signature of the very bytes, 64 bytes, as RFC 8032 has it.
func (k *SigningKey) sign(b []byte) []byte { return ed25519.Sign(k.private, b) }

// Signer is a public key.
type Signer struct{ public ed25519.PublicKey }

// String is the key on one line: the body of its PEM file, base64 of a
// SubjectPublicKeyInfo (RFC 8410).
func (s Signer) String() string {
	der, err := x509.MarshalPKIXPublicKey(s.public)
	if err != nil {
		panic(err) // of another type of key only
	}
	return base64.StdEncoding.EncodeToString(der)
}

// ParseSigner reads a public key: one line as String writes it, or PEM.
func ParseSigner(text string) (Signer, error) {
	no := hint.Add(errors.New("no public ed25519 key"), "write it as `eddy config show` has it in sign.public_key, or name its PEM file")
	text = strings.TrimSpace(text)
	der, err := base64.StdEncoding.DecodeString(text)
	if block, _ := pem.Decode([]byte(text)); block != nil && block.Type == "PUBLIC KEY" {
		der, err = block.Bytes, nil
	}
	if err != nil {
		return Signer{}, no
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	public, ok := parsed.(ed25519.PublicKey)
	if err != nil || !ok {
		return Signer{}, no
	}
	return Signer{public}, nil
}

// is compares two keys in constant time.
func (s Signer) is(o Signer) bool { return subtle.ConstantTimeCompare(s.public, o.public) == 1 }

func (s Signer) signed(b, signature []byte) bool {
	return len(signature) == ed25519.SignatureSize && ed25519.Verify(s.public, b, signature)
}

// Keys are those that a catalog signs with, and those that it believes.
type Keys struct {
	Sign *SigningKey // nil: what is committed is not signed
	// Signers, where there are any, are the only ones whose backups are taken.
	Signers []Signer
}

// With is the same catalog with keys.
func (c *Catalog) With(k Keys) *Catalog {
	d := *c
	d.keys = k
	return &d
}

// knows tells whether a key is one that the catalog was told of.
func (c *Catalog) knows(s Signer) bool {
	known := false
	for _, t := range c.keys.Signers {
		known = s.is(t) || known
	}
	if c.keys.Sign != nil {
		known = s.is(c.keys.Sign.Signer()) || known
	}
	return known
}

// Signature is what is known of who made a backup.
type Signature struct {
	Signer string // his public key; "": the backup is not signed
	Known  bool   // the catalog was told of this key
}

// String is the signature for people and programs: "known", "unknown", "none".
func (s Signature) String() string {
	switch {
	case s.Signer == "":
		return "none"
	case s.Known:
		return "known"
	default:
		return "unknown"
	}
}

// Signature checks the signature of a backup's manifest, which Select has read. The
// error has ErrDamaged where the manifest says that it is signed and is not so: it
// was changed, or its signature was. It has ErrUntrusted where Keys.Signers are
// named and none of them has signed it, which says nothing against the backup.
func (c *Catalog) Signature(ctx context.Context, b Backup) (Signature, error) {
	if b.Manifest == nil || b.body == nil {
		return Signature{}, fmt.Errorf("signature of %s: its manifest was not read", b.ID)
	}
	return c.signature(ctx, signed{b.ID, "take another backup", c.ObjectKey(b.ID, signatureName), b.Manifest.Signer, b.body})
}

// signed is a manifest, of a backup or of a bundle, with the signer that it names.
type signed struct {
	id, other string // other: what to take where it cannot be believed
	key       string // of the signature
	signer    string // "": none
	body      []byte
}

func (c *Catalog) signature(ctx context.Context, s signed) (Signature, error) {
	refuse := func(said string) error {
		if len(c.keys.Signers) == 0 {
			return nil
		}
		return hint.Add(fmt.Errorf("%s %s: %w", s.id, said, ErrUntrusted), s.other+", or name the key that it should be signed with: `--signer KEY`")
	}
	if s.signer == "" {
		return Signature{}, refuse("is not signed")
	}
	out := Signature{Signer: s.signer}
	signer, err := ParseSigner(s.signer)
	if err != nil {
		return out, fmt.Errorf("%w: the manifest of %s names an impossible signer", ErrDamaged, s.id)
	}
	signature, _, err := c.store.GetSmall(ctx, s.key, maxSignature)
	switch {
	case errors.Is(err, ErrNotFound):
		return out, fmt.Errorf("%w: the manifest of %s is signed by %s, and its signature is gone", ErrDamaged, s.id, signer)
	case err != nil:
		return out, err
	case !signer.signed(s.body, signature):
		return out, fmt.Errorf("%w: the signature of the manifest of %s is not that of %s over these bytes", ErrDamaged, s.id, signer)
	}
	if out.Known = c.knows(signer); !out.Known || len(c.keys.Signers) > 0 && !c.named(signer) {
		return out, refuse("is signed by " + signer.String())
	}
	return out, nil
}

// named tells whether a key is one of Keys.Signers.
func (c *Catalog) named(s Signer) bool {
	named := false
	for _, t := range c.keys.Signers {
		named = s.is(t) || named
	}
	return named
}

// putSignature writes the signature of a manifest before the manifest itself, so
// that a backup that is READY has it. One that another run left, which died before
// its manifest was written, is written over.
func (c *Catalog) putSignature(ctx context.Context, id string, body []byte) error {
	if c.keys.Sign == nil {
		return nil
	}
	key, signature := c.ObjectKey(id, signatureName), c.keys.Sign.sign(body)
	_, err := c.store.PutSmall(ctx, key, signature, "application/octet-stream", Condition{IfAbsent: true})
	if !errors.Is(err, ErrPrecondition) {
		return err
	}
	have, o, gerr := c.store.GetSmall(ctx, key, maxSignature)
	switch {
	case gerr != nil:
		return gerr
	case bytes.Equal(have, signature):
		return nil
	}
	if _, serr := c.store.Stat(ctx, c.ObjectKey(id, manifestName)); !errors.Is(serr, ErrNotFound) {
		return errors.Join(err, serr)
	}
	_, err = c.store.PutSmall(ctx, key, signature, "application/octet-stream", Condition{IfMatch: o.ETag})
	return err
}

// signLatest signs latest.json, whose bytes this catalog has made.
func (c *Catalog) signLatest(ctx context.Context, body []byte) error {
	if c.keys.Sign == nil {
		return nil
	}
	_, err := c.store.PutSmall(ctx, c.latestSignatureKey(), c.keys.Sign.sign(body), "application/octet-stream", Condition{})
	return err
}

// How often, and after which pause, a pointer is read again whose signature is not
// that of its bytes: whoever moves it writes one behind the other.
const (
	latestTries = 3
	latestPause = 500 * time.Millisecond
)

// signedLatest is latest.json where one of the signers has signed it; why says what
// is wrong where none has.
func (c *Catalog) signedLatest(ctx context.Context) (p pointer, why string, err error) {
	for i := range latestTries {
		if i > 0 {
			if err := pause(ctx, latestPause); err != nil {
				return pointer{}, "", err
			}
		}
		b, _, err := c.store.GetSmall(ctx, c.latestKey(), maxPointer)
		if err != nil {
			return pointer{}, "", err
		}
		signature, _, err := c.store.GetSmall(ctx, c.latestSignatureKey(), maxSignature)
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
			return pointer{}, "", err
		}
		for _, s := range c.keys.Signers {
			if s.signed(b, signature) {
				p, err := decodePointer(b)
				return p, "", err
			}
		}
	}
	return pointer{}, latestName + " is signed by none of the signers", nil
}
