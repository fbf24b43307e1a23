package roster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

func TestFindings(t *testing.T) {
	l := Look{Self: id("a"), Members: four, Here: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
	for _, x := range []struct {
		form nodeconfig.Form
		text string
		want []string // level and a part of what is said, of what is not OK
	}{
		{nodeconfig.Service, "ExecStart=x --peers " + id("b") + "@10.1.0.2:1," + id("5") + "@x.example.com:1\n", nil},
		{nodeconfig.Service, "ExecStart=x --peers " + id("7") + "@10.1.0.2:1\n", []string{"FAIL f:1 --peers calls 10.1.0.2:1 by the id 7777"}},
		{nodeconfig.Service, "ExecStart=x --peers " + id("b") + "@10.0.0.2:1\n", []string{"FAIL f:1 --peers has b at 10.0.0.2:1, the inventory at 10.1.0.2"}},
		{nodeconfig.Service, "ExecStart=x --peers " + id("a") + "@10.1.0.1:1," + id("0") + "@10.1.0.9:1\n", []string{"WARN f:1 --peers names the node itself; f:1 --peers names o, an observer"}},
		{nodeconfig.Service, "ExecStart=x --peers $X\n", []string{"WARN f:1 --peers: it is written with a variable"}},
		{nodeconfig.Loom, "Redis: \"redis://10.0.0.7:6379\"\nB: [fd00::9]:1\n# 10.0.0.8\nC: 127.0.0.1 0.0.0.0 10.1.0.1 10.1.0.2 10.0.0.0/8 1.2.3.4.5 v1.2.3.4 300.1.1.1\n", []string{"WARN neither this machine's nor of a node that is known: 10.0.0.7 (f:1); fd00::9 (f:2)"}},
		{nodeconfig.Loom, "A: http://10.0.0.7/path\n", []string{"WARN neither this machine's nor of a node that is known: 10.0.0.7 (f:1)"}},
	} {
		lists, err := nodeconfig.Lists(x.form, x.text)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range l.Findings([]File{{Path: "/x/f", Form: x.form, Text: x.text, Lists: lists}}) {
			if f.Level != check.OK {
				got = append(got, fmt.Sprint(f.Level, " ", f.Said))
				if f.Hint == "" {
					t.Errorf("no hint: %+v", f)
				}
			}
		}
		if len(got) != len(x.want) || len(got) > 0 && !strings.HasPrefix(got[0], x.want[0]) {
			t.Errorf("%q: %q", x.text, got)
		}
	}
}
