package uploader

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func mustKey(t testing.TB) *SigningKey {
	t.Helper()
	k, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A key goes out and in again, as PEM and as a line, and openssl takes it: it
// verifies what eddy signed, and eddy takes the keys that it makes.
func TestOpenSSLVerifiesWhatIsSigned(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is needed: ", err)
	}
	k := mustKey(t)
	private, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseSigningKey(private)
	if err != nil || !again.Signer().is(k.Signer()) {
		t.Fatal(err)
	}
	line := k.Signer().String()
	public := "-----BEGIN PUBLIC KEY-----\n" + line + "\n-----END PUBLIC KEY-----\n"
	for _, text := range []string{line, line + "\n", public} {
		if s, err := ParseSigner(text); err != nil || !s.is(k.Signer()) {
			t.Fatalf("%q: %v", text, err)
		}
	}
	c := testCatalog(t).With(Keys{Sign: k})
	id := mustBackup(t, c, t0, "signed", 1)
	dir := c.Store().(*fileStore).dir
	pub := filepath.Join(t.TempDir(), "pub.pem")
	if err := os.WriteFile(pub, []byte(public), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func(file, signature string) ([]byte, error) {
		return exec.Command(openssl, "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", pub, "-in", filepath.Join(dir, file), "-sigfile", filepath.Join(dir, signature)).CombinedOutput()
	}
	for file, signature := range map[string]string{c.ObjectKey(id, manifestName): c.ObjectKey(id, signatureName), c.latestKey(): c.latestSignatureKey()} {
		if out, err := verify(file, signature); err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
	if out, err := verify(c.latestKey(), c.ObjectKey(id, signatureName)); err == nil {
		t.Errorf("openssl takes any signature: %s", out)
	}
	made, err := exec.Command(openssl, "genpkey", "-algorithm", "ed25519").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseSigningKey(made); err != nil {
		t.Errorf("a key that openssl made: %v", err)
	}
}

func TestWhoseBackupsAreTaken(t *testing.T) {
	ours, theirs := mustKey(t), mustKey(t)
	for name, c := range map[string]struct {
		sign    *SigningKey
		keys    Keys
		said    string
		refused error
		harm    func(c *Catalog, id string) error
	}{
		"unsigned":              {said: "none"},
		"unsigned, ours named":  {keys: Keys{Signers: []Signer{ours.Signer()}}, said: "none", refused: ErrUntrusted},
		"signed, nobody named":  {sign: ours, said: "unknown"},
		"signed, own key":       {sign: ours, keys: Keys{Sign: ours}, said: "known"},
		"signed, ours named":    {sign: ours, keys: Keys{Signers: []Signer{theirs.Signer(), ours.Signer()}}, said: "known"},
		"signed, theirs named":  {sign: ours, keys: Keys{Signers: []Signer{theirs.Signer()}}, said: "unknown", refused: ErrUntrusted},
		"own key, theirs named": {sign: ours, keys: Keys{Sign: ours, Signers: []Signer{theirs.Signer()}}, said: "known", refused: ErrUntrusted},
		"signature gone":        {sign: ours, said: "unknown", refused: ErrDamaged, harm: func(c *Catalog, id string) error { return c.store.Delete(t.Context(), c.ObjectKey(id, signatureName)) }},
		"signature of something": {sign: ours, said: "unknown", refused: ErrDamaged, harm: func(c *Catalog, id string) error {
			return putRaw(t, c, c.ObjectKey(id, signatureName), ours.sign([]byte("x")))
		}},
		"signature too long": {sign: ours, said: "unknown", refused: ErrDamaged, harm: func(c *Catalog, id string) error {
			return putRaw(t, c, c.ObjectKey(id, signatureName), make([]byte, 2*maxSignature))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := testCatalog(t).With(Keys{Sign: c.sign})
			id := mustBackup(t, w, t0, "who", 1)
			if c.harm != nil {
				if err := c.harm(w, id); err != nil {
					t.Fatal(err)
				}
			}
			r := w.With(c.keys)
			b, err := r.Select(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			s, err := r.Signature(t.Context(), b)
			if !errors.Is(err, c.refused) || c.refused == nil && err != nil || s.String() != c.said {
				t.Fatalf("%s, %v; want %s, %v", s, err, c.said, c.refused)
			}
		})
	}
}

func putRaw(t *testing.T, c *Catalog, key string, b []byte) error {
	_, err := c.store.PutSmall(t.Context(), key, b, "", Condition{})
	return err
}

// Where signers are named, latest.json counts only with their signature; without it
// the list tells which is the newest, and that is said.
func TestAForgedPointerIsPassedOver(t *testing.T) {
	k := mustKey(t)
	w := testCatalog(t).With(Keys{Sign: k})
	old := mustBackup(t, w, t0, "old", 1)
	forged, _, err := w.store.GetSmall(t.Context(), w.latestKey(), maxPointer)
	if err != nil {
		t.Fatal(err)
	}
	newest := mustBackup(t, w, t0.Add(time.Hour), "new", 2)
	r := w.With(Keys{Signers: []Signer{k.Signer()}})
	if b, err := r.Latest(t.Context()); err != nil || b.ID != newest || b.Warning != "" {
		t.Fatalf("%s, %q, %v", b.ID, b.Warning, err)
	}
	if err := putRaw(t, w, w.latestKey(), forged); err != nil {
		t.Fatal(err)
	}
	b, err := r.Latest(t.Context())
	if err != nil || b.ID != newest || !strings.Contains(b.Warning, "signed by none") {
		t.Fatalf("a pointer back to %s gives %s, %q, %v", old, b.ID, b.Warning, err)
	}
}

// A commit that breaks off anywhere and is repeated ends with signatures that hold.
func TestASignedCommitThatBreaksOffCanBeRepeated(t *testing.T) {
	k := mustKey(t)
	everyFault(t, func(wrap func(Store) *faulty) error {
		c := testCatalog(t).With(Keys{Sign: k})
		m := manifestAt(t, c, t0, "signed", 2)
		err := NewCatalog(wrap(c.Store()), "test").With(Keys{Sign: k}).Commit(t.Context(), m, false)
		if err := c.Commit(t.Context(), m, false); err != nil {
			t.Fatalf("again: %v", err)
		}
		r := c.With(Keys{Signers: []Signer{k.Signer()}})
		b, lerr := r.Latest(t.Context())
		if lerr != nil || b.ID != m.ID || b.Warning != "" {
			t.Fatalf("%s, %q, %v", b.ID, b.Warning, lerr)
		}
		if _, serr := r.Signature(t.Context(), b); serr != nil {
			t.Fatal(serr)
		}
		return err
	})
}

func FuzzSigner(f *testing.F) {
	f.Add(mustKey(f).Signer().String())
	f.Add("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
	f.Add("MCowBQYDK2VwAyEA")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSigner(text); err == nil {
			if again, err := ParseSigner(s.String()); err != nil || !again.is(s) {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}
