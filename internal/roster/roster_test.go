package roster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

// id is a node's id that people can tell from others.
func id(c string) string { return strings.Repeat(c, 40) }

func TestParseInventory(t *testing.T) {
	got, err := ParseInventory("---\n# nodes\nval-1: 10.0.0.1\nval-2 n2.example.com:36656 # second\n\nval-3: \"" + strings.ToUpper(id("c")) + "@[fd00::3]:26656\"\nobs: fd00::4 observer\n")
	if err != nil {
		t.Fatal(err)
	}
	want := Members{
		{Name: "val-1", Host: "10.0.0.1"},
		{Name: "val-2", Host: "n2.example.com", Port: "36656"},
		{Name: "val-3", ID: id("c"), Host: "fd00::3", Port: "26656"},
		{Name: "obs", Host: "fd00::4", Observer: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"val-1", "val-1 a b c", "val-1 a Observer", "v/1 a", "v x@a:1", "v a:0", "v a:99999", "v :1", "v a,b", "v -a", "v a$", "v fe80::1%eth0", "v ::%,00"} {
		if _, err := ParseInventory("ok 10.0.0.1\n" + bad + "\n"); !errors.Is(err, ErrInventory) || !strings.Contains(err.Error(), "line 2") || hint.Of(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseInventory(f *testing.F) {
	f.Add("---\nval-1: 10.0.0.1\nval-2 h:1 observer # x\nv: " + id("a") + "@[::1]:2\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParseInventory(text)
		if err != nil {
			return
		}
		for _, m := range all {
			if _, _, err := splitAddr(m.addr("26656")); err != nil || strings.ContainsAny(m.Host, ",@ ") {
				t.Errorf("%+v: %v", m, err)
			}
		}
	})
}

func TestValidate(t *testing.T) {
	for want, all := range map[string]Members{
		"twice":        {{Name: "a", Host: "1.1.1.1"}, {Name: "a", Host: "1.1.1.2"}},
		"same node id": {{Name: "a", ID: id("a")}, {Name: "b", ID: id("a")}},
		"same address": {{Name: "a", Host: "h", Port: "1"}, {Name: "b", Host: "H", Port: "1"}},
	} {
		if err := all.Validate(); !errors.Is(err, ErrInventory) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// four nodes at new addresses, and an observer; a is the one whose files they are.
var four = Members{
	{Name: "a", ID: id("a"), Host: "10.1.0.1"},
	{Name: "b", ID: id("b"), Host: "10.1.0.2"},
	{Name: "c", ID: id("c"), Host: "10.1.0.3", Port: "36656"},
	{Name: "d", ID: id("d"), Host: "d.example.com"},
	{Name: "o", ID: id("0"), Host: "10.1.0.9", Observer: true},
}

func plan(t *testing.T, r Rewrite, form nodeconfig.Form, text string) (string, []string) {
	t.Helper()
	lists, err := nodeconfig.Lists(form, text)
	if err != nil {
		t.Fatal(err)
	}
	edits, notes, err := r.Plan([]File{{Path: "f", Form: form, Text: text, Lists: lists}})
	if err != nil {
		t.Fatal(err)
	}
	now := edits[0].New.String()
	lists, err = nodeconfig.Lists(form, now)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := r.Plan([]File{{Path: "f", Form: form, Text: now, Lists: lists}})
	if err != nil || again[0].New.Changed() {
		t.Errorf("a second run changes something again: %v\n%s", err, again[0].New)
	}
	return now, notes
}

func TestPlan(t *testing.T) {
	const p = "@10.0.0.1:26656"
	toml := func(peers string) string { return "# mine\n[p2p]\npersistent_peers = \"" + peers + "\" # all\n" }
	everybody := id("b") + "@10.1.0.2:26656," + id("c") + "@10.1.0.3:36656," + id("d") + "@d.example.com:26656"
	for _, x := range []struct {
		name, before, after string
		change              func(*Rewrite)
		note                string
	}{
		{"nobody before", toml(""), toml(everybody), nil, ""},
		{"itself goes, order stays", toml(id("d") + p + "," + id("a") + p), toml(id("d") + "@d.example.com:26656," + id("b") + "@10.1.0.2:26656," + id("c") + "@10.1.0.3:36656"), nil, ""},
		{"entries keep their port", toml(id("b") + "@10.0.0.1:1, " + id("c") + "@10.0.0.1:2," + id("d") + "@10.0.0.1:3"), toml(id("b") + "@10.1.0.2:1," + id("c") + "@10.1.0.3:36656," + id("d") + "@d.example.com:3"), nil, ""},
		{"ids of before the keys came", toml(id("7") + "@10.1.0.2:26656," + id("8") + "@d.example.com:26656," + id("9") + "@10.1.0.3:36656," + id("6") + "@10.1.0.1:26656"), toml(id("b") + "@10.1.0.2:26656," + id("d") + "@d.example.com:26656," + id("c") + "@10.1.0.3:36656"), nil, ""},
		{"strangers stay", toml(id("5") + "@x.example.com:1," + everybody), toml(id("5") + "@x.example.com:1," + everybody), nil, "nobody that is known, and stays"},
		{"strangers go", toml(id("5") + "@x.example.com:1," + everybody), toml(everybody), func(r *Rewrite) { r.DropOthers = true }, ""},
		{"an observer goes", toml(everybody + "," + id("0") + "@10.0.0.9:26656"), toml(everybody), nil, "o is an observer"},
		{"an observer comes, where it is said", toml(""), toml(everybody + "," + id("0") + "@10.1.0.9:26656"), func(r *Rewrite) { r.ListObservers = true }, ""},
		{"the observer's own", toml(""), toml(id("a") + "@10.1.0.1:26656," + everybody), func(r *Rewrite) { r.Self = id("0") }, ""},
		{
			"lists of ids and seeds", "[p2p]\npersistent_peers = \"" + id("7") + "@10.1.0.2:26656\"\nseeds = \"" + id("d") + p + "," + id("5") + p + "\"\nprivate_peer_ids = \"" + id("7") + "," + id("0") + "," + id("a") + "\"\nunconditional_peer_ids = \"" + id("c") + "\"\n",
			"[p2p]\npersistent_peers = \"" + everybody + "\"\nseeds = \"" + id("d") + "@d.example.com:26656," + id("5") + p + "\"\nprivate_peer_ids = \"" + id("b") + "," + id("0") + "\"\nunconditional_peer_ids = \"" + id("c") + "\"\n", nil, "",
		},
		{"an address elsewhere", "[p2p]\npersistent_peers = \"" + everybody + "\"\nexternal_address = \"10.0.0.7:26656\"\n", "[p2p]\npersistent_peers = \"" + everybody + "\"\nexternal_address = \"10.1.0.7:26656\"\n", func(r *Rewrite) { r.Hosts = [][2]string{{"10.0.0.7", "10.1.0.7"}} }, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := Rewrite{Self: id("a"), Members: four}
			if x.change != nil {
				x.change(&r)
			}
			got, notes := plan(t, r, nodeconfig.TOML, x.before)
			if diff := cmp.Diff(x.after, got); diff != "" {
				t.Error(diff)
			}
			if said := strings.Join(notes, "\n"); !strings.Contains(said, x.note) || x.note == "" && said != "" {
				t.Errorf("notes: %s", said)
			}
		})
	}
	got, _ := plan(t, Rewrite{Self: id("a"), Members: four}, nodeconfig.Service, "ExecStart=/bin/loom run --peers tcp://"+id("7")+"@10.1.0.2:46656,tcp://"+id("8")+"@10.1.0.3:36656\n")
	if want := "ExecStart=/bin/loom run --peers tcp://" + id("b") + "@10.1.0.2:46656,tcp://" + id("c") + "@10.1.0.3:36656,tcp://" + id("d") + "@d.example.com:46656\n"; got != want {
		t.Errorf("unit: %s", got)
	}
	_, notes := plan(t, Rewrite{Self: id("a"), Members: four}, nodeconfig.Service, "ExecStart=gaiad start --p2p.persistent_peers $PEERS\n")
	if len(notes) != 1 || !strings.Contains(notes[0], "f:1: --p2p.persistent_peers is left as it is: it is written with a variable") {
		t.Errorf("%q", notes)
	}
}

func TestPlanRefuses(t *testing.T) {
	text := "[p2p]\npersistent_peers = \"" + id("7") + "@10.9.9.9:26656\"\n"
	lists, err := nodeconfig.Lists(nodeconfig.TOML, text)
	if err != nil {
		t.Fatal(err)
	}
	for want, m := range map[string]Member{
		"the node id of b is not known": {Name: "b", Host: "10.0.0.1"},
		"nothing says where b is dialled; the lists name 10.9.9.9:26656 by ids of nobody": {Name: "b", ID: id("b")},
	} {
		_, _, err := Rewrite{Self: id("a"), Members: Members{m}}.Plan([]File{{Path: "f", Form: nodeconfig.TOML, Text: text, Lists: lists}})
		if !errors.Is(err, ErrInventory) || !strings.Contains(err.Error(), want) || hint.Of(err) == "" {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestReadALoomHome(t *testing.T) {
	home := t.TempDir()
	unit := filepath.Join(home, "loom.service")
	for name, text := range map[string]string{
		"loom.service":                 "ExecStart=loom run --peers tcp://" + id("b") + "@10.0.0.2:46656\n",
		"loom.yml":                     "Peers: \"tcp://" + id("b") + "@10.0.0.3:46656\"\nPersistentPeers: \"tcp://" + id("c") + "@10.0.0.4:46656\"\n",
		"chaindata/config/config.toml": "[p2p]\npersistent_peers = \"\"\n",
		"config/config.toml":           "not it",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(home, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := Read(home, []string{unit, unit})
	if err != nil || len(files) != 3 {
		t.Fatalf("%v %v", files, err)
	}
	all, notes := Members{{Name: "b", ID: id("b")}, {Name: "c", ID: id("c")}, {Name: "d", ID: id("d")}}.Located(files)
	if all[0].Host != "10.0.0.2" || all[1].Host != "10.0.0.4" || all[2].Host != "" || len(notes) != 1 || !strings.Contains(notes[0], "10.0.0.3") {
		t.Errorf("%+v %q", all, notes)
	}
	edits, _, err := Rewrite{Self: id("a"), Members: all[:2]}.Plan(files)
	if err != nil || edits[2].New.Changed() {
		t.Errorf("an empty list beside one that is used was filled: %v", err)
	}
	if _, err := Read(t.TempDir(), nil); err == nil || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
}
