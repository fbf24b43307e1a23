package nodeconfig

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	cfg "github.com/cometbft/cometbft/config"
)

var wanted = []Change{
	{"p2p.pex", false},
	{"p2p.laddr", "tcp://127.0.0.1:26656"},
	{"p2p.external_address", "0.0.0.0:26656"},
}

// realFile is the file that CometBFT itself writes.
func realFile(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	cfg.WriteConfigFile(file, cfg.DefaultConfig())
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEdit(t *testing.T) {
	for _, x := range []struct{ name, text, want string }{
		{
			"values in place", "# head\nmoniker = \"x\"\n\n[p2p]\n  laddr   =  \"tcp://0.0.0.0:26656\"   # ours\npex=true#yes\nexternal_address = ''\n[rpc]\nladdr = \"tcp://0.0.0.0:26657\"\n",
			"# head\nmoniker = \"x\"\n\n[p2p]\n  laddr   =  \"tcp://127.0.0.1:26656\"   # ours\npex=false#yes\nexternal_address = \"0.0.0.0:26656\"\n[rpc]\nladdr = \"tcp://0.0.0.0:26657\"\n",
		},
		{
			"absent keys behind the last of the table", "[p2p]\n\tlist = [\n\t1,\n\t]\n# end\n\n[rpc]\n",
			"[p2p]\n\tlist = [\n\t1,\n\t]\n\tpex = false\n\tladdr = \"tcp://127.0.0.1:26656\"\n\texternal_address = \"0.0.0.0:26656\"\n# end\n\n[rpc]\n",
		},
		{
			"an empty table at the end without a line feed", "a = 1\n[p2p]",
			"a = 1\n[p2p]\npex = false\nladdr = \"tcp://127.0.0.1:26656\"\nexternal_address = \"0.0.0.0:26656\"\n",
		},
		{
			"no table", "a = 1\r\n",
			"a = 1\r\n\r\n[p2p]\r\npex = false\r\nladdr = \"tcp://127.0.0.1:26656\"\r\nexternal_address = \"0.0.0.0:26656\"\r\n",
		},
		{
			"line ends of Windows", "[p2p]\r\npex = true\r\nladdr = \"x\"\r\n",
			"[p2p]\r\npex = false\r\nladdr = \"tcp://127.0.0.1:26656\"\r\nexternal_address = \"0.0.0.0:26656\"\r\n",
		},
		{
			"what only looks like it", "note = \"\"\"\n[p2p]\npex = true\n\"\"\"\narr = [ \"[p2p]\", # ]\n'pex = true' ]\n[p2p]\n\"pex\" = true\n'laddr' = 'x'\n[p2p.sub]\npex = true\nexternal_address = 1\n",
			"note = \"\"\"\n[p2p]\npex = true\n\"\"\"\narr = [ \"[p2p]\", # ]\n'pex = true' ]\n[p2p]\n\"pex\" = false\n'laddr' = \"tcp://127.0.0.1:26656\"\nexternal_address = \"0.0.0.0:26656\"\n[p2p.sub]\npex = true\nexternal_address = 1\n",
		},
		{
			"dotted", "p2p.pex = true\np2p.laddr = \"x\"\np2p.external_address = \"\"\n",
			"p2p.pex = false\np2p.laddr = \"tcp://127.0.0.1:26656\"\np2p.external_address = \"0.0.0.0:26656\"\n",
		},
		{"nothing at all", "", "[p2p]\npex = false\nladdr = \"tcp://127.0.0.1:26656\"\nexternal_address = \"0.0.0.0:26656\"\n"},
	} {
		t.Run(x.name, func(t *testing.T) {
			e, err := Edit(x.text, wanted)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(x.want, e.String()); diff != "" {
				t.Error(diff)
			}
			patched(t, x.text, e)
			again, err := Edit(e.String(), wanted)
			if err != nil || again.Changed() || again.Diff("x") != "" {
				t.Errorf("a second edit changes something: %v\n%s", err, again.Diff("x"))
			}
		})
	}
}

// patched proves the diff by the tool that people would use.
func patched(t *testing.T, old string, e *Edited) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("patch", "--binary", "-s", file)
	cmd.Stdin = strings.NewReader(e.Diff(file))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("patch: %v\n%s\n%s", err, out, e.Diff(file))
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != e.String() {
		t.Errorf("patch gives another text: %v\n%s", err, cmp.Diff(e.String(), string(got)))
	}
}

func TestEditOfARealFile(t *testing.T) {
	text := realFile(t)
	changes, err := Hide(text, []string{strings.Repeat("a", 40) + "@10.0.0.1:26656"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Change{
		{"p2p.pex", false},
		{"p2p.laddr", "tcp://127.0.0.1:26656"},
		{"p2p.external_address", "0.0.0.0:26656"},
		{"p2p.persistent_peers", strings.Repeat("a", 40) + "@10.0.0.1:26656"},
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
	e, err := Edit(text, changes)
	if err != nil {
		t.Fatal(err)
	}
	patched(t, text, e)
	d := e.Diff("config.toml")
	if n := strings.Count(d, "\n-"); n != 4 {
		t.Errorf("%d lines go:\n%s", n, d)
	}
	if !strings.Contains(d, "\n pex") && !strings.Contains(d, "\n-pex = true\n+pex = false\n") {
		t.Error(d)
	}
}

func TestEditRefuses(t *testing.T) {
	for _, x := range []struct{ text, want string }{
		{"[p2p", "line 1 is no TOML"},
		{"[p2p]\npex = true\npex = false\n", "key pex is already defined"},
		{"p2p = {pex = true}\n", "form that eddy does not edit"},
		{"[[p2p]]\npex = true\n", "form that eddy does not edit"},
		{"[p2p]\nPEX = true\n", "line 2 writes p2p.PEX for p2p.pex"},
		{"[P2P]\npex = true\n", "line 2 writes P2P.pex for p2p.pex"},
		{"[p2p]\nladdr = \"\"\"\nx\"\"\"\n", "the value of p2p.laddr in line 2 goes over several lines"},
		{"[p2p]\npex = [\ntrue]\n", "the value of p2p.pex in line 2 goes over several lines"},
		{"[p2p.pex]\nx = 1\n", "form that eddy does not edit"},
		{strings.Repeat("# long\n", maxFile/7+1), "larger than"},
	} {
		_, err := Edit(x.text, wanted)
		if !errors.Is(err, ErrNotEdited) || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %v", x.text, err)
		}
	}
}

// Whatever the file, what comes out has the same keys apart from those that were
// to change, also for another parser; and every line that is gone held
// one of them.
func FuzzEdit(f *testing.F) {
	f.Add(realFile(f), "tcp://127.0.0.1:26656")
	for _, s := range []string{
		"[p2p]\npex=true\n", "p2p.pex = 1\n[p2p.x]\n", "x = '''\n[p2p]'''\r\n[p2p]", "a=[{b=1},\n# [p2p]\n]\n[ p2p ] # x\n\"pex\"=true",
		"[[p2p]]\n", "p2p={}\n", "\ufeff[p2p]\n", "[p2p]\n'laddr'=\"\\\"\"#\n", "[a.'b.c']\nx=\"\"\"\\\n\"\"\"\"\"\n", "d=1979-05-27 07:32:00 # t\n", "[p2p]\npex = true \r\n\t",
	} {
		f.Add(s, "a\"b\n\\")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		changes := []Change{{"p2p.pex", false}, {"p2p.laddr", value}, {"top", true}}
		e, err := Edit(text, changes)
		if err != nil {
			if !errors.Is(err, ErrNotEdited) {
				t.Fatalf("no ErrNotEdited: %v", err)
			}
			return
		}
		var before, after map[string]any
		if toml.Unmarshal([]byte(text), &before) != nil {
			return // the two parsers differ
		}
		if err := toml.Unmarshal([]byte(e.String()), &after); err != nil {
			t.Fatalf("%v\n%q\n%q", err, text, e.String())
		}
		if before == nil {
			before = map[string]any{}
		}
		_, had := before["p2p"]
		for _, c := range changes {
			got, ok := take(after, c.Key)
			if !ok || !reflect.DeepEqual(got, c.Value) {
				t.Fatalf("%s is %v\n%q\n%q", c.Key, got, text, e.String())
			}
			take(before, c.Key)
		}
		if p, _ := after["p2p"].(map[string]any); !had && len(p) == 0 {
			delete(after, "p2p")
		}
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("%v\n%v\n%q\n%q", before, after, text, e.String())
		}
		old := ""
		for _, o := range e.ops() {
			if o.kind != '+' {
				old += o.text
			}
			if o.kind == '-' && !strings.Contains(o.text, "pex") && !strings.Contains(o.text, "laddr") && !strings.Contains(o.text, "top") && strings.HasSuffix(o.text, "\n") {
				t.Fatalf("another line is gone: %q", o.text)
			}
		}
		if old != text {
			t.Fatalf("the diff is of another text: %q, %q", old, text)
		}
	})
}
