package nodeconfig

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const unitText = `[Unit]
# ExecStart=/usr/bin/loom run --peers ` + idA + `@9.9.9.9:1
[Service]
Environment="GAIAD_P2P_PERSISTENT_PEERS=` + idA + `@10.0.0.1:26656" X=1
ExecStart=/usr/bin/loom run --persistent-peers tcp://` + idA + `@10.0.0.1:46656,tcp://` + idB + `@10.0.0.2:46656 \
  --p2p.private_peer_ids="` + idA + `" --p2p.seeds '` + idB + `@s.example.com:1' \
  --peers \
  tcp://` + idB + `@10.0.0.2:46656
Restart=always
`

// texts are files of each form with the lists in them.
var texts = []struct {
	form Form
	text string
	want []string // key, use, line, value, odd
}{
	{Service, unitText, []string{
		"GAIAD_P2P_PERSISTENT_PEERS dial 4 " + idA + "@10.0.0.1:26656 ",
		"--persistent-peers dial 5 tcp://" + idA + "@10.0.0.1:46656,tcp://" + idB + "@10.0.0.2:46656 ",
		"--p2p.private_peer_ids ids 6 " + idA + " ",
		"--p2p.seeds seed 6 " + idB + "@s.example.com:1 ",
		"--peers dial 7 tcp://" + idB + "@10.0.0.2:46656 ",
	}},
	{Service, "command: [\"--p2p.persistent_peers\", \"" + idA + "@h:1\"]\n", []string{"--p2p.persistent_peers dial 1  its value stands elsewhere"}},
	{Service, "command:\n  - --peers\n  - " + idA + "@h:1\n", []string{"--peers dial 2  its value stands elsewhere"}},
	{Service, "ExecStart=gaiad start --p2p.persistent_peers $PEERS\n", []string{"--p2p.persistent_peers dial 1 $PEERS it is written with a variable"}},
	{Service, "ExecStart=gaiad --peers " + idA + "@h:1, --home /x\n", []string{"--peers dial 1 " + idA + "@h:1, it goes on behind a blank"}},
	{Service, "ExecStart=gaiad --peers --home /x\n", []string{"--peers dial 1 --home it holds what is no peer"}},
	{Service, "ExecStart=gaiad --peersonal x --xpeers y\n", nil},
	{Loom, "# Peers: \"x\"\nPeers: \"tcp://" + idA + "@h:46656\" # all\nPersistentPeers: ''\nRedis: 10.0.0.7\n", []string{
		"Peers dial 2 tcp://" + idA + "@h:46656 ", "PersistentPeers dial 3  ",
	}},
	{Loom, "peers: " + idA + "@h:46656\r\nx: 1\r\n", []string{"peers dial 1 " + idA + "@h:46656 "}},
	{Loom, "Peers:\n  - a\n", []string{"Peers dial 1  its value is not text on the same line"}},
	{Loom, "Peers: |\n  a\n", []string{"Peers dial 1 | it holds what is no peer"}},
	{Loom, "Peers: [a, b]\n", []string{"Peers dial 1  its value is not text on the same line"}},
	{TOML, "moniker = 1\n[p2p]\nseeds = \"\"\nprivate_peer_ids = \"" + idB + "\"\n", []string{
		"p2p.persistent_peers dial 0  ", "p2p.seeds seed 3  ", "p2p.private_peer_ids ids 4 " + idB + " ",
	}},
	{TOML, "[p2p]\npersistent-peers = \"" + idA + "@h:1\"\n", []string{"p2p.persistent-peers dial 2 " + idA + "@h:1 "}},
	{TOML, "pruning = \"default\"\n", nil},
}

func TestLists(t *testing.T) {
	for _, x := range texts {
		all, err := Lists(x.form, x.text)
		if err != nil {
			t.Fatalf("%q: %v", x.text, err)
		}
		var got []string
		for _, l := range all {
			got = append(got, fmt.Sprint(l.Key, " ", l.Use, " ", l.Line, " ", l.Value, " ", l.Odd))
		}
		if diff := cmp.Diff(x.want, got); diff != "" {
			t.Errorf("%q: %s", x.text, diff)
		}
	}
}

func TestRelist(t *testing.T) {
	const peer = "tcp://" + idB + "@10.9.9.9:1"
	for _, x := range texts {
		e, err := Relist(x.form, x.text, func(l List) string {
			if l.Use == IDs {
				return idB
			}
			return peer
		})
		if err != nil {
			if x.form == Loom && strings.Contains(x.text, "''") {
				continue
			}
			t.Fatalf("%q: %v", x.text, err)
		}
		after, err := Lists(x.form, e.String())
		if err != nil || len(after) != len(x.want) {
			t.Fatalf("%q: %v %v", x.text, after, err)
		}
		for i, l := range after {
			if want := map[bool]string{true: idB, false: peer}[l.Use == IDs]; l.Odd == "" && l.Value != want {
				t.Errorf("%q: %d is %q", x.text, i, l.Value)
			}
		}
	}
	e, err := Relist(Service, unitText, func(l List) string { return l.Value })
	if err != nil || e.Changed() {
		t.Errorf("%v, changed: %v", err, e.Changed())
	}
	e, err = Relist(Service, unitText, func(l List) string { return strings.ReplaceAll(l.Value, "10.0.0.1", "10.1.0.1") })
	if err != nil || e.String() != strings.ReplaceAll(unitText, "10.0.0.1", "10.1.0.1") {
		t.Errorf("%v %s", err, e)
	}
	for _, bad := range []string{"", idA + "@h:1 x", "$(reboot)", "%i"} {
		if _, err := Relist(Service, "ExecStart=x --peers "+idA+"@h:1\n", func(List) string { return bad }); !errors.Is(err, ErrNotEdited) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestReplaceHost(t *testing.T) {
	const text = "# 10.0.0.7\nRedis: \"redis://10.0.0.7:6379\"\nOther: 10.0.0.70 110.0.0.7 a10.0.0.7 10.0.0.7.x\nBoth: 10.0.0.7,10.0.0.7\n"
	const want = "# 10.0.0.7\nRedis: \"redis://10.1.0.9:6379\"\nOther: 10.0.0.70 110.0.0.7 a10.0.0.7 10.0.0.7.x\nBoth: 10.1.0.9,10.1.0.9\n"
	e, err := Relist(Loom, text, func(l List) string { return l.Value })
	if err != nil {
		t.Fatal(err)
	}
	e.ReplaceHost("10.0.0.7", "10.1.0.9")
	if diff := cmp.Diff(want, e.String()); diff != "" {
		t.Error(diff)
	}
}

// Whatever a file holds: no panic, and lists that are set are what was asked for.
func FuzzRelist(f *testing.F) {
	for _, x := range texts {
		f.Add(string(x.form), x.text, idA+"@10.0.0.9:1")
	}
	f.Fuzz(func(t *testing.T, form, text, value string) {
		e, err := Relist(Form(form), text, func(List) string { return value })
		if err != nil {
			if !errors.Is(err, ErrNotEdited) {
				t.Errorf("no ErrNotEdited: %v", err)
			}
			return
		}
		after, err := Lists(Form(form), e.String())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range after {
			if l.Odd == "" && l.Value != value {
				t.Errorf("%q: %+v", e, l)
			}
		}
	})
}
