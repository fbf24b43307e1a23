//go:build e2e

package raft

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Two of three members are lost for good. The survivor is saved, and the steps that
// `eddy recover` then prints, followed as they are printed, bring what it had onto
// three.
func TestEtcdRecover(t *testing.T) {
	begun := time.Now()
	c := newEtcds(t, "m1", "m2", "m3")
	for _, n := range c.names {
		c.start(n, "new", c.names...)
	}
	leader := c.leader(c.names...)
	left := c.names[(c.index(leader)+1)%3]
	third := c.names[(c.index(leader)+2)%3]
	configs := map[string]string{}
	for _, n := range c.names { // each asks itself first
		others := slices.DeleteFunc(slices.Clone(c.names), func(o string) bool { return o == n })
		configs[n] = c.config("recover-"+n, c.endpoints(append([]string{n}, others...)...)+fmt.Sprintf("\n    restore: {name: %s, data_dir: %s}", n, c.data(n)))
	}
	ask := func() plan {
		t.Helper()
		out := c.run(0, "-c", configs[left], "recover", "--json", "-i", c.identity())
		p, err := readPlan(out)
		c.must(err)
		return p
	}
	_, err := c.put(t.Context(), "m1", "early", etcdSecret)
	c.must(err)
	p := ask()
	if p.State != "healthy" || p.From != "live" || p.steps[0].Do != "backup" {
		t.Fatalf("%+v", p)
	}
	c.run(0, "-c", configs[left], "backup")
	_, err = c.put(t.Context(), "m1", "late", "in no backup")
	c.must(err)

	c.kill(third)
	if p = ask(); p.State != "tight" || p.steps[0].Do != "bring back" || slices.Contains(p.dos(), "restore") {
		t.Fatalf("%+v", p)
	}
	c.kill(leader)
	c.must(os.RemoveAll(c.data(leader)))
	c.must(os.RemoveAll(c.data(third)))
	p = ask()
	if want := []string{"bring back", "salvage", "look"}; p.State != "quorum lost" || !slices.Equal(p.dos(), want) {
		t.Fatalf("%+v", p)
	}
	name := func(cmd planCommand) string {
		t.Helper()
		n, _, _ := strings.Cut(cmd.On, ",")
		if configs[n] == "" {
			t.Fatalf("%q is on no member", cmd.On)
		}
		return n
	}
	follow := func(s planStep) {
		t.Helper()
		for _, cmd := range s.Commands {
			switch words := strings.Fields(strings.TrimSuffix(cmd.Run, "   # of unimatrix")); {
			case strings.HasPrefix(cmd.Run, "systemctl stop"):
				c.kill(name(cmd))
			case strings.HasPrefix(cmd.Run, "systemctl start"):
				c.start(name(cmd), "new", c.names...)
			case words[0] == "eddy" && words[1] == "-c":
				words[2] = configs[name(cmd)] // each machine has its own
				c.run(0, append(words[1:], "--yes")...)
			default:
				t.Fatalf("%q is for nobody", cmd.Run)
			}
		}
	}
	follow(p.step("salvage"))
	p = ask()
	if restore := p.step("restore"); len(restore.Commands) != 9 || !strings.Contains(restore.Commands[3].Run, "-survivor-") {
		t.Fatalf("%+v", p)
	}
	follow(p.step("restore"))
	c.leader(c.names...)
	for _, n := range c.names {
		if all := c.all(n); all["late"] != "in no backup" || all["early"] != etcdSecret {
			t.Errorf("%s has %q", n, all)
		}
	}
	_, err = c.put(t.Context(), leader, "after", "the recovery")
	c.must(err)
	last := p.step("backup").Commands[0]
	if last.On != "a member that does not lead now" {
		t.Errorf("%+v", last)
	}
	last.On = c.names[(c.index(c.leader(c.names...))+1)%3] + ","
	follow(planStep{Commands: []planCommand{last}})
	if p = ask(); p.State != "healthy" {
		t.Errorf("%+v", p)
	}
	fmt.Printf("etcd recover: 2 of 3 lost, the steps followed as printed: what only the survivor knew is on 3 members, writes accepted; %s in all\n", time.Since(begun).Round(time.Second))
}
