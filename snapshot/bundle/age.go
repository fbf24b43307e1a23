package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/eddy-backup/eddy/internal/hint"
)

var (
	// ErrRecipient: what was named is no recipient, or none was.
	ErrRecipient = errors.New("no recipient")
	// ErrIdentity: what was named is no identity, none was, or none opens the bundle.
	ErrIdentity = errors.New("no identity that opens it")
)

// secretMark begins every age identity. A file that holds one is in no bundle: who
// has the bundle's own key needs none.
const secretMark = "AGE-SECRET-KEY-"

// Recipients are those who can open a bundle, each alone.
type Recipients struct {
	all   []age.Recipient
	marks []string
}

// Fingerprints name the recipients without being of use to those who have none of
// their keys: the kind, and the first 16 hex digits of sha256 over the recipient.
func (r Recipients) Fingerprints() []string { return r.marks }

// Len is how many there are.
func (r Recipients) Len() int { return len(r.all) }

// Fingerprint is that of one recipient as it is written, a comment behind it left out.
func Fingerprint(recipient string) string {
	kind, rest, _ := strings.Cut(recipient, " ")
	text := recipient
	switch {
	case strings.HasPrefix(recipient, "ssh-"):
		key, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		text = kind + " " + key
	case strings.HasPrefix(recipient, "age1pq1"):
		kind = "age-pq"
	default:
		kind = "age"
	}
	sum := sha256.Sum256([]byte(text))
	return kind + ":" + hex.EncodeToString(sum[:8])
}

// ParseRecipients reads recipients, one a line: age1..., age1pq1..., ssh-ed25519 and
// ssh-rsa keys. Empty lines and those that begin with # are passed over. from is
// what errors call the place; they quote nothing of a line, which may be a secret by
// mistake.
func ParseRecipients(from string, lines []string) (Recipients, error) {
	var out Recipients
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var r age.Recipient
		var err error
		switch {
		case strings.HasPrefix(strings.ToUpper(line), secretMark), strings.Contains(line, "PRIVATE KEY"):
			return Recipients{}, hint.Add(fmt.Errorf("%w: %s %d is an identity, which is secret", ErrRecipient, from, i+1), "take it off this machine, make a new one elsewhere with `eddy keys init`, and write its recipient here")
		case strings.HasPrefix(line, "age1pq1"):
			r, err = age.ParseHybridRecipient(line)
		case strings.HasPrefix(line, "age1"):
			r, err = age.ParseX25519Recipient(line)
		case strings.HasPrefix(line, "ssh-"):
			r, err = agessh.ParseRecipient(line)
		default:
			err = errors.New("unknown kind")
		}
		if err != nil {
			return Recipients{}, hint.Add(fmt.Errorf("%w: %s %d cannot be read", ErrRecipient, from, i+1), "write age1..., ssh-ed25519 AAAA... or ssh-rsa AAAA..., whole, as `eddy keys init` or ssh-keygen has printed it")
		}
		out.add(r, Fingerprint(line))
	}
	return out, nil
}

func (r *Recipients) add(to age.Recipient, mark string) {
	r.all, r.marks = append(r.all, to), append(r.marks, mark)
}

// Encrypt returns a writer of what all of them can open; Close ends it, and without
// it nothing opens.
func (r Recipients) Encrypt(w io.Writer) (io.WriteCloser, error) {
	if r.Len() == 0 {
		return nil, hint.Add(fmt.Errorf("%w: nobody could open it", ErrRecipient), "`eddy keys init` makes an identity; write its recipient into `encryption.recipients: [RECIPIENT]`")
	}
	enc, err := age.Encrypt(w, r.all...)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %w", ErrRecipient, err), "post-quantum recipients and others do not go together: take one kind")
	}
	return enc, nil
}

// Join is both.
func (r Recipients) Join(o Recipients) Recipients {
	return Recipients{append(r.all[:len(r.all):len(r.all)], o.all...), append(r.marks[:len(r.marks):len(r.marks)], o.marks...)}
}

// Identities open bundles.
type Identities []age.Identity

const maxIdentity = 1 << 20

// ParseIdentities reads a file of identities: of age, also one that age has encrypted
// with a passphrase, or an ssh private key. ask is called for a passphrase where one
// is needed, perhaps not before Open; name is what it and errors call the file. No
// error holds anything of it.
func ParseIdentities(name string, b []byte, ask func(prompt string) ([]byte, error)) (Identities, error) {
	no := func(why string) error {
		return hint.Add(fmt.Errorf("%w: %s %s", ErrIdentity, name, why), "name the file that `eddy keys init`, age-keygen or ssh-keygen has written, the secret half")
	}
	if len(b) > maxIdentity {
		return nil, no("is larger than an identity")
	}
	trimmed := bytes.TrimSpace(b)
	switch {
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN AGE ENCRYPTED FILE-----")), bytes.HasPrefix(b, []byte(intro)):
		plain, err := openIdentities(name, b, ask)
		if err != nil {
			return nil, err
		}
		return ParseIdentities(name, plain, ask)
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN")):
		id, err := agessh.ParseIdentity(trimmed)
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) && locked.PublicKey != nil {
			id, err = agessh.NewEncryptedSSHIdentity(locked.PublicKey, trimmed, func() ([]byte, error) { return ask("passphrase of " + name + ": ") })
			id = lockedKey{id, name}
		}
		if err != nil {
			return nil, no("is no ssh key that age can use")
		}
		return Identities{id}, nil
	case !bytes.Contains(b, []byte(secretMark)):
		return nil, no("holds no identity")
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, no("holds an identity that cannot be read")
	}
	return ids, nil
}

// lockedKey is an ssh key that has a passphrase: one that is wrong is no fault of the
// bundle.
type lockedKey struct {
	age.Identity
	name string
}

// Unwrap implements age.Identity.
func (k lockedKey) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	key, err := k.Identity.Unwrap(stanzas)
	if err != nil && !errors.Is(err, age.ErrIncorrectIdentity) {
		err = fmt.Errorf("%w: %s: %w", ErrIdentity, k.name, err)
	}
	return key, err
}

// openIdentities decrypts a file of identities by its passphrase.
func openIdentities(name string, b []byte, ask func(string) ([]byte, error)) ([]byte, error) {
	pass, err := ask("passphrase of " + name + ": ")
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(string(pass))
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %s: the passphrase is empty", ErrIdentity, name), "type the one that age has asked for when it was encrypted")
	}
	var in io.Reader = bytes.NewReader(b)
	if !bytes.HasPrefix(b, []byte(intro)) {
		in = armor.NewReader(in)
	}
	var plain []byte
	if in, err = age.Decrypt(in, id); err == nil {
		plain, err = io.ReadAll(io.LimitReader(in, maxIdentity))
	}
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %s does not open with this passphrase", ErrIdentity, name), "try again; it is the file's own passphrase")
	}
	if bytes.HasPrefix(plain, []byte(intro)) {
		return nil, fmt.Errorf("%w: %s is encrypted twice", ErrIdentity, name)
	}
	return plain, nil
}

// Decrypt returns a reader of what was encrypted. What it yields is provisional until
// its end. The error has ErrIdentity where none of the identities opens it,
// snapshot.ErrCorrupt where nobody has encrypted it.
func (ids Identities) Decrypt(r io.Reader) (io.Reader, error) {
	if len(ids) == 0 {
		return nil, hint.Add(fmt.Errorf("%w: none was named", ErrIdentity), "say -i FILE, the identity that one of its recipients belongs to")
	}
	plain, err := age.Decrypt(r, ids...)
	if err != nil {
		return nil, notOpened(err)
	}
	return plain, nil
}

// DecryptAt is Decrypt for what is read at any place; n is the length of the plain.
func (ids Identities) DecryptAt(r io.ReaderAt, size int64) (plain io.ReaderAt, n int64, err error) {
	if len(ids) == 0 {
		return nil, 0, hint.Add(fmt.Errorf("%w: none was named", ErrIdentity), "say -i FILE, the identity that one of its recipients belongs to")
	}
	if plain, n, err = age.DecryptReaderAt(r, size, ids...); err != nil {
		return nil, 0, notOpened(err)
	}
	return plain, n, nil
}

func notOpened(err error) error {
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return hint.Add(fmt.Errorf("%w: it was sealed for others", ErrIdentity), "the manifest has the fingerprints of its recipients, `eddy keys show latest` prints a bundle's, the recovery sheet says where their identities are; without one of them nobody can open it")
	case errors.Is(err, ErrIdentity):
		return hint.Add(err, "try again; it is the passphrase of the identity's file")
	default:
		return corrupt("its header: %w", err)
	}
}

// NewIdentity makes an identity as age-keygen writes one, and its recipient. With
// postQuantum it withstands computers that do not exist yet, and needs age 1.3 where
// it is opened without eddy.
func NewIdentity(postQuantum bool, now time.Time) (file []byte, recipient string, err error) {
	var secret string
	if postQuantum {
		id, gerr := age.GenerateHybridIdentity()
		if gerr != nil {
			return nil, "", fmt.Errorf("make an identity: %w", gerr)
		}
		secret, recipient = id.String(), id.Recipient().String()
	} else {
		id, gerr := age.GenerateX25519Identity()
		if gerr != nil {
			return nil, "", fmt.Errorf("make an identity: %w", gerr)
		}
		secret, recipient = id.String(), id.Recipient().String()
	}
	return fmt.Appendf(nil, "# created: %s\n# public key: %s\n%s\n", now.UTC().Format(time.RFC3339), recipient, secret), recipient, nil
}

// Marks are the fingerprints of the recipients that identities stand for. Of an ssh
// key none is known.
func (ids Identities) Marks() (marks []string) {
	for _, id := range ids {
		switch id := id.(type) {
		case *age.X25519Identity:
			marks = append(marks, Fingerprint(id.Recipient().String()))
		case *age.HybridIdentity:
			marks = append(marks, Fingerprint(id.Recipient().String()))
		}
	}
	return marks
}
