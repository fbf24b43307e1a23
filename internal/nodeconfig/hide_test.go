package nodeconfig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/hint"
)

const (
	idA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func TestHide(t *testing.T) {
	peers := []string{idA + "@10.0.0.1:26656"}
	for _, x := range []struct {
		name, text string
		peers      []string
		want       []Change
	}{
		{"a plain node", "[p2p]\nladdr = \"tcp://0.0.0.0:36656\"\npex = true\nseed_mode = true\nexternal_address = \"1.2.3.4:36656\"\npersistent_peers = \"" + peers[0] + "\"\n", nil, []Change{
			{"p2p.pex", false}, {"p2p.seed_mode", false}, {"p2p.laddr", "tcp://127.0.0.1:36656"}, {"p2p.external_address", "0.0.0.0:36656"},
		}},
		{"hidden already", "[p2p]\nladdr = \"tcp://127.0.0.1:1\"\npex = false\nseed_mode = false\nexternal_address = \"tcp://0.0.0.0:9\"\npersistent_peers = \"" + peers[0] + "\"\n", peers, nil},
		{"IPv6, keys that are missing", "[p2p]\nladdr = \"tcp://[::]:26656\"\npersistent_peers = \"x@y:1\"\n", nil, []Change{
			{"p2p.pex", false}, {"p2p.laddr", "tcp://127.0.0.1:26656"}, {"p2p.external_address", "0.0.0.0:26656"},
		}},
		{"peers are added, none twice", "[p2p]\nladdr = \":26656\"\npex = false\nexternal_address = \"0.0.0.0:26656\"\npersistent_peers = \"" + strings.ToUpper(idA) + "@a.example.com:26656, \"\n", []string{peers[0], idB + "@10.0.0.2:26656"}, []Change{
			{"p2p.laddr", "tcp://127.0.0.1:26656"}, {"p2p.persistent_peers", strings.ToUpper(idA) + "@a.example.com:26656," + idB + "@10.0.0.2:26656"},
		}},
		{"names with dashes", "mode = \"full\"\n[p2p]\nladdr = \"tcp://0.0.0.0:26656\"\npex = true\nexternal-address = \"\"\npersistent-peers = \"\"\n", peers, []Change{
			{"p2p.pex", false}, {"p2p.laddr", "tcp://127.0.0.1:26656"}, {"p2p.external-address", "0.0.0.0:26656"}, {"p2p.persistent-peers", peers[0]},
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			got, err := Hide(x.text, x.peers)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(x.want, got); diff != "" {
				t.Error(diff)
			}
			e, err := Edit(x.text, got)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Hide(e.String(), x.peers); err != nil || len(again) > 0 {
				t.Errorf("not hidden by it: %v %v", again, err)
			}
		})
	}
}

func TestHideRefuses(t *testing.T) {
	for _, x := range []struct{ text, peer, want string }{
		{"a = 1\n", "", "no table p2p"},
		{"[p2p]\nladdr = \"tcp://0.0.0.0\"\n", "", "no address with a port"},
		{"[p2p]\nladdr = \"tcp://0.0.0.0:99999\"\n", "", "no address with a port"},
		{"mode = \"seed\"\n[p2p]\n", "", "mode is seed"},
		{"[p2p]\n", "10.0.0.1:26656", "not id@host:port"},
		{"[p2p]\n", idA + "@h:1,x", "not id@host:port"},
		{"[p2p]\nladdr = \"tcp://0.0.0.0:26656\"\n", "", "names no persistent_peers"},
	} {
		var peers []string
		if x.peer != "" {
			peers = []string{x.peer}
		}
		if _, err := Hide(x.text, peers); err == nil || !strings.Contains(err.Error(), x.want) || hint.Of(err) == "" {
			t.Errorf("%q: %v", x.text, err)
		}
	}
	changes, err := Hide("[p2p]\n", nil)
	if !errors.Is(err, ErrNoPeers) || len(changes) != 3 {
		t.Errorf("%v, %v", changes, err)
	}
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(file, []byte("old"), 0o640))
	check(os.Chmod(file, 0o664))
	if os.Geteuid() == 0 {
		check(os.Chown(file, 12345, 23456))
	}
	before, err := os.Stat(file)
	check(err)
	at := time.Date(2026, 11, 20, 23, 55, 0, 0, time.UTC)
	if _, err := Replace(file, "other", "new", at); !errors.Is(err, ErrNotEdited) || !strings.Contains(err.Error(), "meanwhile") {
		t.Errorf("%v", err)
	}
	kept, err := Replace(file, "old", "new", at)
	check(err)
	if kept != file+".before-eddy-20261120T235500Z" {
		t.Errorf("kept as %s", kept)
	}
	for name, want := range map[string]string{file: "new", kept: "old"} {
		b, err := os.ReadFile(name)
		check(err)
		fi, err := os.Stat(name)
		check(err)
		was, is := before.Sys().(*syscall.Stat_t), fi.Sys().(*syscall.Stat_t)
		if string(b) != want || fi.Mode() != before.Mode() || was.Uid != is.Uid || was.Gid != is.Gid {
			t.Errorf("%s: %q %v %d:%d", name, b, fi.Mode(), is.Uid, is.Gid)
		}
	}
	if _, err := Replace(file, "new", "newer", at); !errors.Is(err, ErrNotEdited) || !strings.Contains(err.Error(), "there already") {
		t.Errorf("%v", err)
	}
	link := filepath.Join(dir, "link.toml")
	check(os.Symlink(file, link))
	if _, err := Read(link); !errors.Is(err, ErrNotEdited) || !strings.Contains(err.Error(), "symlink to "+file) {
		t.Errorf("%v", err)
	}
	if _, err := Replace(link, "new", "x", at); !errors.Is(err, ErrNotEdited) {
		t.Errorf("%v", err)
	}
	names, err := os.ReadDir(dir)
	check(err)
	if len(names) != 3 {
		t.Errorf("left behind: %v", names)
	}
}

// What Hide wants can be written down, and then nothing is left to want.
func FuzzHide(f *testing.F) {
	f.Add(realFile(f), idA+"@10.0.0.1:26656")
	f.Add("mode = \"full\"\n[p2p]\nexternal-address = \"x\"\nladdr = \"tcp://[::1]:0\"\n", idA+"@h:1")
	f.Fuzz(func(t *testing.T, text, peer string) {
		if s, err := Parse(text); err == nil {
			for _, p := range s.Peers {
				if p == "" || strings.Contains(p, ",") {
					t.Errorf("peer %q", p)
				}
			}
		}
		changes, err := Hide(text, []string{peer})
		if err != nil {
			return
		}
		e, err := Edit(text, changes)
		if errors.Is(err, ErrNotEdited) {
			return
		}
		if err != nil {
			t.Fatalf("no ErrNotEdited: %v", err)
		}
		if again, err := Hide(e.String(), []string{peer}); err != nil || len(again) > 0 {
			t.Errorf("%v: %v\n%q\n%q", err, again, text, e.String())
		}
	})
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Settings{
		"[rpc]\nladdr = \"tcp://0.0.0.0:1\"\n[p2p]\npersistent_peers = \"a@b:1, ,c@d:2\"\n": {"tcp://0.0.0.0:1", []string{"a@b:1", "c@d:2"}},
		"[p2p]\npersistent-peers = \"a@b:1\"\n":                                             {"", []string{"a@b:1"}},
		"rpc = 1\np2p = [1]\n":                                                              {},
	} {
		got, err := Parse(text)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
	if _, err := Parse("[p2p"); err == nil {
		t.Error("no TOML passes")
	}
}
