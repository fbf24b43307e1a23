package bundle

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/snapshot"
)

// hostile seals a tar that no eddy has made: whoever knows a recipient can.
func hostile(t testing.TB, to Recipients, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	enc, err := age.Encrypt(&out, to.all...)
	must(t, err)
	z, err := zstd.NewWriter(enc, zstd.WithEncoderConcurrency(1))
	must(t, err)
	_, err = z.Write(raw)
	must(t, err)
	must(t, z.Close())
	must(t, enc.Close())
	return out.Bytes()
}

// tarMember is one of a tar: a plain file, unless its header says otherwise.
type tarMember struct {
	tar.Header
	body string
}

func tarOf(t testing.TB, members ...tarMember) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if m.Typeflag == 0 {
			m.Typeflag = tar.TypeReg
		}
		m.Size = int64(len(m.body))
		must(t, w.WriteHeader(&m.Header))
		_, err := io.WriteString(w, m.body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func member(name, body string) tarMember {
	return tarMember{tar.Header{Name: name, Mode: 0o600}, body}
}

// odd is a member that is no plain file.
func odd(h tar.Header) tarMember { return tarMember{Header: h} }

func list(files ...Entry) tarMember {
	c := whose
	c.Format, c.MinReader, c.Files = 1, 1, files
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return member(ContentsName, string(b))
}

const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestHostileBundlesAreRefused(t *testing.T) {
	to, file := recipient(t, false)
	ids := identities(t, file)
	a := Entry{Name: "home/a", Class: Config, Mode: "0600", SHA256: empty}
	with := func(change func(*Entry)) Entry { e := a; change(&e); return e }
	newer := whose
	newer.Format, newer.MinReader = 9, 9
	newest, err := json.Marshal(newer)
	must(t, err)
	if _, err := Open(hostile(t, to, tarOf(t, member("home/a", ""), list(a))), ids); err != nil {
		t.Fatalf("a sound one: %v", err)
	}
	for name, raw := range map[string][]byte{
		"up":         tarOf(t, member("home/../../etc/passwd", ""), list(with(func(e *Entry) { e.Name = "home/../../etc/passwd" }))),
		"absolute":   tarOf(t, member("/etc/passwd", ""), list(with(func(e *Entry) { e.Name = "/etc/passwd" }))),
		"elsewhere":  tarOf(t, member("etc/passwd", ""), list(with(func(e *Entry) { e.Name = "etc/passwd" }))),
		"bare home":  tarOf(t, member("home", ""), list(with(func(e *Entry) { e.Name = "home" }))),
		"twice":      tarOf(t, member("home/a", ""), member("home/a", ""), list(a, a)),
		"symlink":    tarOf(t, odd(tar.Header{Name: "home/a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd", Mode: 0o600}), list(a)),
		"hard link":  tarOf(t, odd(tar.Header{Name: "home/a", Typeflag: tar.TypeLink, Linkname: "home/b", Mode: 0o600}), list(a)),
		"device":     tarOf(t, odd(tar.Header{Name: "home/a", Typeflag: tar.TypeChar, Mode: 0o600}), list(a)),
		"directory":  tarOf(t, odd(tar.Header{Name: "home/a/", Typeflag: tar.TypeDir, Mode: 0o700}), list(a)),
		"setuid":     tarOf(t, odd(tar.Header{Name: "home/a", Mode: 0o4755}), list(with(func(e *Entry) { e.Mode = "04755" }))),
		"other mode": tarOf(t, member("home/a", ""), list(with(func(e *Entry) { e.Mode = "0666" }))),
		"other hash": tarOf(t, member("home/a", "x"), list(with(func(e *Entry) { e.Size = 1 }))),
		"other size": tarOf(t, member("home/a", ""), list(with(func(e *Entry) { e.Size = 1 }))),
		"class":      tarOf(t, member("home/a", ""), list(with(func(e *Entry) { e.Class = "root" }))),
		"unlisted":   tarOf(t, member("home/a", ""), member("home/b", ""), list(a)),
		"missing":    tarOf(t, list(a)),
		"no list":    tarOf(t, member("home/a", "")),
		"two lists":  tarOf(t, member("home/a", ""), list(a), list(a)),
		"behind":     tarOf(t, list(a), member("home/a", "")),
		"no JSON":    tarOf(t, member(ContentsName, "{")),
		"null":       tarOf(t, member(ContentsName, "null")),
		"cut":        tarOf(t, member("home/a", strings.Repeat("x", 5000)), list(a))[:3000],
		"no tar":     []byte(strings.Repeat("no tar ", 1000)),
		"nothing":    nil,
	} {
		if _, err := Open(hostile(t, to, raw), ids); !errors.Is(err, snapshot.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(hostile(t, to, tarOf(t, member(ContentsName, string(newest)))), ids); !errors.Is(err, ErrNewer) {
		t.Errorf("newer: %v", err)
	}
	if _, err := Open([]byte("PK\x03\x04"), ids); !errors.Is(err, snapshot.ErrCorrupt) {
		t.Errorf("no age file: %v", err)
	}
}

// zeros go on for ever.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What decodes to more than anybody would put into a bundle is given up on the way.
func TestABombIsGivenUp(t *testing.T) {
	l := &layers{r: zeros{}, left: 1 << 20}
	if n, err := io.Copy(io.Discard, l); !errors.Is(err, snapshot.ErrCorrupt) || n > 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestRecipientsAndIdentitiesThatAreNone(t *testing.T) {
	_, secret := recipient(t, false)
	key := strings.TrimSpace(string(secret[bytes.LastIndexByte(bytes.TrimSpace(secret), '\n'):]))
	for name, line := range map[string]string{"identity": key, "small": strings.ToLower(key), "pem": "-----BEGIN OPENSSH PRIVATE KEY-----hunter2", "typo": "age1hunter2", "words": "hunter2", "ssh": "ssh-ed25519 hunter2", "dsa": "ssh-dss AAAA"} {
		if _, err := ParseRecipients("r", []string{line}); !errors.Is(err, ErrRecipient) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"empty": "", "recipient": "age1xyz", "broken": key[:40], "pem": "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----\n", "age": intro + "-> X25519 hunter2\n", "plugin": "AGE-PLUGIN-HUNTER2-1", "large": strings.Repeat("#", maxIdentity+1)} {
		_, err := ParseIdentities("f", []byte(text), func(string) ([]byte, error) { return []byte("p"), nil })
		if !errors.Is(err, ErrIdentity) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), key[:40]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	to, file := recipient(f, false)
	ids := identities(f, file)
	a := Entry{Name: "home/a", Class: Config, Mode: "0600", SHA256: empty}
	f.Add(tarOf(f, member("home/a", ""), list(a)))
	f.Add(tarOf(f, member("home/a", strings.Repeat("x", 2000))))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := Open(hostile(t, to, raw), ids)
		if err != nil {
			if !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, ErrNewer) {
				t.Fatalf("%v", err)
			}
			return
		}
		n := 0
		must(t, b.Each(func(e Entry, r io.Reader) error {
			n++
			if !validName(e.Name) {
				t.Fatalf("%q", e.Name)
			}
			_, err := io.Copy(io.Discard, r)
			return err
		}))
		if n != len(b.Contents.Files) {
			t.Fatalf("%d of %d files", n, len(b.Contents.Files))
		}
	})
}

func FuzzSealedBytes(f *testing.F) {
	_, file := recipient(f, false)
	ids := identities(f, file)
	f.Add([]byte(intro + "-> X25519 abc\nabc\n--- abc\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Open(b, ids); err == nil {
			t.Fatal("opened")
		}
	})
}

func FuzzDecodeContents(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"files":[{"name":"home/a","class":"config","mode":"0600","sha256":"` + empty + `"}]}`))
	f.Add([]byte(`{"format":1,"min_reader":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeContents(b)
		if err != nil {
			return
		}
		for _, e := range c.Files {
			if to := Place(e.Name, "/h", "/r"); !strings.HasPrefix(to, "/h/") && !strings.HasPrefix(to, "/r/") || e.Perm() > 0o777 {
				t.Fatalf("%q goes to %q with %o", e.Name, to, e.Perm())
			}
		}
	})
}

func FuzzParsers(f *testing.F) {
	f.Add("node_key_file = \"x\"\n[rpc]\na-b = \"c\"\n")
	f.Add("age1xyz")
	f.Add(`{"priv_key":{"type":"tendermint/PrivKeyEd25519","value":"AAAA"}}`)
	f.Add("-----BEGIN AGE ENCRYPTED FILE-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parseTOML(text); err != nil && len(err.Error()) > 60 {
			t.Fatalf("it quotes: %v", err)
		}
		classByContent([]byte(text))
		if id, err := NodeID([]byte(text)); err == nil && len(id) != 40 {
			t.Fatal(id)
		}
		if _, err := ParseRecipients("r", []string{text}); err != nil && !errors.Is(err, ErrRecipient) {
			t.Fatal(err)
		}
		if !strings.Contains(text, "age-encryption.org") && !strings.Contains(text, "AGE ENCRYPTED") { // scrypt takes its time
			if _, err := ParseIdentities("i", []byte(text), nobody); err != nil && !errors.Is(err, ErrIdentity) {
				t.Fatal(err)
			}
		}
	})
}
