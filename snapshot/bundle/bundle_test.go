package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, file, text string) string {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// home is one of a Cosmos SDK node, its keys made by CometBFT itself.
func home(t testing.TB) (dir, nodeID string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "gaia home [1]")
	write(t, filepath.Join(dir, "config", "config.toml"), "moniker = \"x\"\n[rpc]\nladdr = \"tcp://127.0.0.1:26657\"\n")
	write(t, filepath.Join(dir, "config", "app.toml"), "pruning = \"nothing\"\n")
	write(t, filepath.Join(dir, "config", "client.toml"), "chain-id = \"x\"\n")
	write(t, filepath.Join(dir, "config", "genesis.json"), `{"chain_id":"x"}`)
	write(t, filepath.Join(dir, "config", "addrbook.json"), `{"addrs":[]}`)
	write(t, filepath.Join(dir, "data", "upgrade-info.json"), `{"name":"v18","height":7}`)
	key, err := p2p.LoadOrGenNodeKey(filepath.Join(dir, "config", "node_key.json"))
	must(t, err)
	pv := privval.GenFilePV(filepath.Join(dir, "config", "priv_validator_key.json"), filepath.Join(dir, "data", "priv_validator_state.json"))
	pv.Save()
	return dir, string(key.ID())
}

// recipient is a fresh one, with the file of its identity.
func recipient(t testing.TB, pq bool) (Recipients, []byte) {
	t.Helper()
	file, public, err := NewIdentity(pq, time.Unix(1, 0))
	must(t, err)
	to, err := ParseRecipients("test", []string{"# a comment", "", public})
	must(t, err)
	return to, file
}

func identities(t testing.TB, file []byte) Identities {
	t.Helper()
	ids, err := ParseIdentities("id", file, nobody)
	must(t, err)
	return ids
}

func nobody(string) ([]byte, error) { return nil, errors.New("nobody was to be asked") }

func find(t testing.TB, w Want) Found {
	t.Helper()
	f, err := Find(t.Context(), w)
	must(t, err)
	return f
}

var whose = Contents{ID: "20261120T235500Z-keys-9f02c1", Cluster: "gaia", Node: "val-1", Host: "h", Eddy: "v1", Made: time.Unix(1_700_000_000, 0).UTC()}

func seal(t testing.TB, to Recipients, f Found) *Sealed {
	t.Helper()
	s, err := Seal(t.Context(), to, whose, f)
	must(t, err)
	return s
}

// names are what of a bundle is there, each with its class.
func names(f Found) (out []string) {
	for _, s := range f.Files {
		out = append(out, s.Name+": "+string(s.Class))
	}
	slices.Sort(out)
	return out
}

func TestABundleOpensForItsRecipientsAlone(t *testing.T) {
	dir, id := home(t)
	x, xFile := recipient(t, false)
	pq, pqFile := recipient(t, true)
	_, otherFile := recipient(t, false)
	edPub, edPriv, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rsaPriv, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	sshKey := func(public, private any) (string, []byte) {
		p, err := ssh.NewPublicKey(public)
		must(t, err)
		block, err := ssh.MarshalPrivateKey(private, "")
		must(t, err)
		return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(p))) + " somebody@host", pem.EncodeToMemory(block)
	}
	edText, edFile := sshKey(edPub, edPriv)
	rsaText, rsaFile := sshKey(&rsaPriv.PublicKey, rsaPriv)
	both, err := ParseRecipients("test", []string{edText, rsaText})
	must(t, err)
	f := find(t, Want{Home: dir})
	if f.NodeID != id {
		t.Errorf("node id %s, CometBFT says %s", f.NodeID, id)
	}
	for name, c := range map[string]struct {
		to    Recipients
		opens [][]byte
		not   [][]byte
	}{
		"x25519":       {x, [][]byte{xFile, append(slices.Clone(otherFile), xFile...)}, [][]byte{otherFile, edFile, pqFile}},
		"post-quantum": {pq, [][]byte{pqFile}, [][]byte{xFile, otherFile}},
		"three":        {x.Join(both), [][]byte{xFile, edFile, rsaFile}, [][]byte{otherFile}},
	} {
		s := seal(t, c.to, f)
		if !Encrypted(s.Bytes) || bytes.Contains(s.Bytes, []byte("moniker")) {
			t.Errorf("%s: it is no ciphertext", name)
		}
		for i, file := range c.opens {
			b, err := Open(s.Bytes, identities(t, file))
			if err != nil {
				t.Errorf("%s, identity %d: %v", name, i, err)
				continue
			}
			if diff := cmp.Diff(s.Contents, b.Contents); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		for i, file := range c.not {
			if _, err := Open(s.Bytes, identities(t, file)); !errors.Is(err, ErrIdentity) || hint.Of(err) == "" {
				t.Errorf("%s, wrong identity %d: %v", name, i, err)
			}
		}
		if _, err := Open(s.Bytes, nil); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s, no identity: %v", name, err)
		}
	}
	if _, err := Seal(t.Context(), x.Join(pq), whose, f); !errors.Is(err, ErrRecipient) {
		t.Errorf("both kinds at once: %v", err)
	}
	if _, err := Seal(t.Context(), Recipients{}, whose, f); !errors.Is(err, ErrRecipient) {
		t.Errorf("for nobody: %v", err)
	}
	if ids := identities(t, xFile); !ids.Opens(x.Fingerprints()) || ids.Opens(pq.Fingerprints()) {
		t.Error("fingerprints do not tell whose it is")
	}
	if a, b := Fingerprint(edText), Fingerprint(edText[:strings.LastIndex(edText, " ")]); a != b || !strings.HasPrefix(a, "ssh-ed25519:") {
		t.Errorf("%s, %s", a, b)
	}
}

// lockedSSH is what ssh-keygen -a 1 has made, with the passphrase "open sesame".
const (
	lockedSSH = `-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBVdVCQk2
e0ZQs/+f5swME7AAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAILUQgRdZdTHs0IHi
bvF/UM0tiany4OGOac9RmORzo8dGAAAAkPFCb8Qq+OXDCGB8jWzpxVpTXZQU9wNotFgiyZ
Av4dYzxw+R0N+ulwDyay/yuBCGCSe+wEdkqtVJHbw34aei/60SYcAI73pvzlYZbJPIIw7R
liEEro9uQnc4Pr7MH/gKYSFuHTlq+WtVScr+THBeJACiSv4BikyStABLARa6ADZP3h8lAu
544xyGbtiIz0RJQg==
-----END OPENSSH PRIVATE KEY-----
`
	lockedPub = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILUQgRdZdTHs0IHibvF/UM0tiany4OGOac9RmORzo8dG test"
)

func TestIdentitiesWithAPassphrase(t *testing.T) {
	dir, _ := home(t)
	to, err := ParseRecipients("test", []string{lockedPub})
	must(t, err)
	plainTo, plain := recipient(t, false)
	scrypt, err := age.NewScryptRecipient("open sesame")
	must(t, err)
	scrypt.SetWorkFactor(4)
	var locked, armored bytes.Buffer
	text := armor.NewWriter(&armored)
	for _, out := range []io.Writer{&locked, text} {
		w, err := age.Encrypt(out, scrypt)
		must(t, err)
		_, err = w.Write(plain)
		must(t, err)
		must(t, w.Close())
	}
	must(t, text.Close())
	f := find(t, Want{Home: dir})
	for kind, c := range map[string]struct {
		to   Recipients
		file []byte
	}{"ssh": {to, []byte(lockedSSH)}, "age": {plainTo, locked.Bytes()}, "armored": {plainTo, armored.Bytes()}} {
		s := seal(t, c.to, f)
		for pass, ok := range map[string]bool{"open sesame": true, "wrong": false} {
			asked := ""
			ids, err := ParseIdentities("key", c.file, func(prompt string) ([]byte, error) { asked = prompt; return []byte(pass), nil })
			if err == nil {
				_, err = Open(s.Bytes, ids)
			}
			if (err == nil) != ok || !ok && (!errors.Is(err, ErrIdentity) || errors.Is(err, snapshot.ErrCorrupt)) {
				t.Errorf("%s, %q: %v", kind, pass, err)
			}
			if asked != "passphrase of key: " {
				t.Errorf("%s: asked %q", kind, asked)
			}
		}
	}
}

// Every byte counts: of a bundle that was changed, cut or added to nothing comes out.
func TestATamperedBundleIsRefused(t *testing.T) {
	dir, _ := home(t)
	to, file := recipient(t, false)
	ids := identities(t, file)
	s := seal(t, to, find(t, Want{Home: dir}))
	refused := func(what string, b []byte) {
		t.Helper()
		if _, err := Open(b, ids); !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := 0; i < len(s.Bytes); i += 1 + len(s.Bytes)/97 {
		b := slices.Clone(s.Bytes)
		b[i] ^= 0x20
		refused("flipped", b)
		refused("cut", s.Bytes[:i])
	}
	refused("longer", append(slices.Clone(s.Bytes), 0))
	refused("twice", append(slices.Clone(s.Bytes), s.Bytes...))
}

func TestStockToolsOpenABundle(t *testing.T) {
	dir, _ := home(t)
	to, file := recipient(t, false)
	tmp := t.TempDir()
	write(t, filepath.Join(tmp, "id"), string(file))
	write(t, filepath.Join(tmp, "b"), string(seal(t, to, find(t, Want{Home: dir})).Bytes))
	must(t, os.Chmod(filepath.Join(dir, "config", "app.toml"), 0o640))
	write(t, filepath.Join(tmp, "c"), string(seal(t, to, find(t, Want{Home: dir})).Bytes))
	cmd := exec.CommandContext(t.Context(), "bash", "-c", "set -eo pipefail; umask 0; for b in b c; do mkdir x-$b; age -d -i id $b | zstd -dc | tar -xp -C x-$b; done; cd x-c; stat -c '%a %n' $(find . -type f | sort)")
	cmd.Dir = tmp
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "600 ./EDDY-BUNDLE.json\n640 ./home/config/app.toml\n600 ./home/config/client.toml\n600 ./home/config/config.toml\n600 ./home/config/genesis.json\n600 ./home/config/node_key.json\n600 ./home/data/upgrade-info.json\n"
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"config/node_key.json", "config/config.toml"} {
		a, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		b, err := os.ReadFile(filepath.Join(tmp, "x-b", "home", name))
		must(t, err)
		if !bytes.Equal(a, b) {
			t.Errorf("%s came out otherwise", name)
		}
	}
}

// The digest stays as long as nothing that is inside changes.
func TestDigest(t *testing.T) {
	dir, _ := home(t)
	to, _ := recipient(t, false)
	other, _ := recipient(t, false)
	w := Want{Home: dir}
	first := seal(t, to, find(t, w)).Digest
	must(t, os.Chtimes(filepath.Join(dir, "config", "app.toml"), time.Now(), time.Unix(5, 0)))
	if seal(t, to, find(t, w)).Digest != first {
		t.Error("a new time is no new content")
	}
	if seal(t, to.Join(other), find(t, w)).Digest == first {
		t.Error("another recipient is no change")
	}
	must(t, os.Chmod(filepath.Join(dir, "config", "app.toml"), 0o644))
	mode := seal(t, to, find(t, w)).Digest
	write(t, filepath.Join(dir, "config", "app.toml"), "pruning = \"default\"\n")
	if content := seal(t, to, find(t, w)).Digest; mode == first || content == mode {
		t.Error("a change was not seen")
	}
}

// A file that was not there for a moment is read again; one that stays away ends it.
func TestWhatChangesIsReadAgain(t *testing.T) {
	dir, _ := home(t)
	to, _ := recipient(t, false)
	f := find(t, Want{Home: dir})
	file := filepath.Join(dir, "config", "client.toml")
	synctest.Test(t, func(t *testing.T) {
		must(t, os.Remove(file))
		if _, err := Seal(t.Context(), to, whose, f); !errors.Is(err, ErrChanging) || hint.Of(err) == "" {
			t.Errorf("gone: %v", err)
		}
		go func() {
			time.Sleep(3 * sealPause)
			if err := os.WriteFile(file, []byte("back"), 0o600); err != nil {
				t.Error(err)
			}
		}()
		if _, err := Seal(t.Context(), to, whose, f); err != nil {
			t.Errorf("back again: %v", err)
		}
	})
}

// grower makes a file grow as soon as something of it was read.
type grower struct {
	t    *testing.T
	file string
	hdr  int
}

func (g *grower) Write(p []byte) (int, error) {
	if g.hdr++; g.hdr == 3 { // behind the two headers
		out, err := os.OpenFile(g.file, os.O_WRONLY|os.O_APPEND, 0)
		must(g.t, err)
		_, err = out.WriteString("more")
		must(g.t, errors.Join(err, out.Close()))
	}
	return len(p), nil
}

func TestAFileThatGrowsIsNoticed(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "f"), strings.Repeat("x", 1<<20))
	g := &grower{t: t, file: file}
	if _, err := pack(t.Context(), tar.NewWriter(g), Source{Path: file, Name: "home/f", Class: Config}); !errors.Is(err, ErrChanging) {
		t.Errorf("%v after %d writes", err, g.hdr)
	}
	if _, err := pack(t.Context(), tar.NewWriter(io.Discard), Source{Path: file, Name: "home/f", Class: Config}); err != nil {
		t.Errorf("still: %v", err)
	}
}

func TestWhatIsTooLarge(t *testing.T) {
	dir, _ := home(t)
	to, _ := recipient(t, false)
	noise := make([]byte, 2<<20)
	rand.Read(noise)
	write(t, filepath.Join(dir, "config", "genesis.json"), string(noise))
	_, err := sealOnce(t.Context(), to, whose, find(t, Want{Home: dir}), 1<<20)
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "genesis.json") || !strings.Contains(hint.Of(err), "keys.exclude") {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
	if _, err := sealOnce(t.Context(), to, whose, find(t, Want{Home: dir, Exclude: []string{"config/genesis.json"}}), 1<<20); err != nil {
		t.Error(err)
	}
}
