//go:build e2e

package raft

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
)

// plan is what `eddy recover` prints.
type plan struct {
	State, From string
	steps       []planStep
}

type planStep struct {
	Do       string
	Commands []planCommand
}

type planCommand struct{ On, Run string }

// plan asks eddy beside a server.
func (c *zks) plan(n int) plan {
	c.t.Helper()
	out, code := c.exits(c.on(n, "recover", "--json", "-i", filepath.Join(c.dir, "id"))...)
	if code != 0 && code != 3 { // it warns of a replica that does not answer
		c.t.Fatalf("recover: exit code %d\n%s", code, out)
	}
	lines := slices.DeleteFunc(strings.SplitAfter(out, "\n"), func(l string) bool { return !strings.HasPrefix(l, "{") }) // with stderr
	p, err := readPlan(strings.Join(lines, ""))
	c.must(err)
	return p
}

func (p plan) dos() (all []string) {
	for _, s := range p.steps {
		all = append(all, s.Do)
	}
	return all
}

func (p plan) step(do string) planStep {
	if i := slices.Index(p.dos(), do); i >= 0 {
		return p.steps[i]
	}
	return planStep{}
}

// follow does what a step says, on the machine that each command names. systemctl is
// the test's own.
func (c *zks) follow(s planStep) {
	c.t.Helper()
	for _, cmd := range s.Commands {
		id, _, _ := strings.Cut(cmd.On, ",")
		n, err := strconv.Atoi(id)
		if err != nil {
			c.t.Fatalf("%q is on no server", cmd.On)
		}
		switch words := strings.Fields(cmd.Run); {
		case strings.HasPrefix(cmd.Run, "systemctl stop"):
			c.kill(n)
		case strings.HasPrefix(cmd.Run, "systemctl start"):
			c.must(c.start(n))
		case words[0] == "eddy" && words[1] == "-c":
			words[2] = filepath.Join(c.home(n), "eddy.yaml") // each machine has its own
			if out, code := c.exits(append(words[1:], "--yes")...); code != 0 && code != 3 {
				c.t.Fatalf("%s: exit code %d\n%s", cmd.Run, code, out)
			}
		default:
			c.t.Fatalf("%q is for nobody", cmd.Run)
		}
	}
}

// What `eddy doctor` and `eddy recover` say of a living ensemble, of one that just
// decides, and of one that does not any more; and that following the steps, as they
// are printed, brings it back with every node.
func TestZookeeperRecover(t *testing.T) {
	c := newZks(t)
	begun := time.Now()
	leader, follower, third := c.begin()

	says := func(n, code int, want ...string) {
		t.Helper()
		out, got := c.exits(c.on(n, "doctor")...)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("server %d: doctor does not say %q\n%s", n, w, out)
			}
		}
		if got != code && (code != 0 || got != 3) { // a small disk is a warning
			t.Errorf("server %d: doctor's exit code is %d, want %d\n%s", n, got, code, out)
		}
	}
	says(4, 0, "members: 3 of 3 servers reachable, 2 must be: 1 more may fail", fmt.Sprintf("leader: %d, %s leads", leader, c.addr(leader)), "it only listens, and may be stopped now")
	says(follower, 0, "it votes, and may be stopped now")
	says(leader, 1, "its stop for a backup would cost an election")
	p := c.plan(4)
	if p.State != "healthy" || p.From != "live" || p.steps[0].Do != "backup" || !strings.HasPrefix(p.steps[0].Commands[0].On, "4,") {
		t.Fatalf("%+v", p)
	}
	c.follow(p.steps[0])
	c.leader(zkVoters + 1)

	// Two of three: nobody is stopped, the third is brought back.
	c.kill(third)
	says(follower, 1, "2 of 3 servers reachable, 2 must be: none may fail", "it may not be stopped now")
	p = c.plan(4)
	if p.State != "tight" || p.steps[0].Do != "bring back" || slices.Contains(p.dos(), "backup") || slices.Contains(p.dos(), "restore") {
		t.Fatalf("%+v", p)
	}
	c.follow(p.steps[0])
	c.leader(zkVoters + 1)

	// One of three, and the others are lost for good, disks and all. It has what no
	// backup has, and serves nobody.
	path := "/base/after-the-backup"
	conn := c.connect(follower)
	_, err := conn.Create(path, zkValue(path), 0, zk.WorldACL(zk.PermAll))
	c.must(err)
	conn.Close()
	for n := 1; n <= zkVoters+1; n++ {
		if n != follower {
			c.kill(n)
			c.must(os.RemoveAll(filepath.Join(c.home(n), "data", "version-2")))
			c.must(os.RemoveAll(filepath.Join(c.home(n), "log", "version-2")))
		}
	}
	for end := time.Now().Add(time.Minute); c.mode(follower) != "" && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	says(follower, 1, "the quorum is lost")
	p = c.plan(follower)
	if p.State != "gone" || p.steps[0].Do != "bring back" || p.steps[1].Do != "salvage" || slices.Index(p.dos(), "restore") < 1 {
		t.Fatalf("%+v", p)
	}
	// Its disk alone can be read.
	save := p.steps[1]
	save.Commands = slices.DeleteFunc(save.Commands, func(cmd planCommand) bool { return !strings.HasPrefix(cmd.On, fmt.Sprint(follower, ",")) })
	c.follow(save)
	salvaged := regexp.MustCompile(`(\S+-survivor-[0-9a-f]{6}) +SALVAGE`).FindStringSubmatch(c.run(c.on(follower, "list")...))
	if salvaged == nil {
		t.Fatal("no salvage is listed")
	}

	// Asked again, the plan is to restore just that, everywhere; and so it is done.
	p = c.plan(follower)
	restore := p.step("restore")
	if len(restore.Commands) != 3*zkVoters || !strings.Contains(restore.Commands[zkVoters].Run, salvaged[1]) {
		t.Fatalf("%+v, salvaged %s", p, salvaged[1])
	}
	c.follow(restore)
	c.must(c.start(4))
	c.leader(zkVoters + 1)
	var nodes int64
	for n := 1; n <= zkVoters+1; n++ {
		nodes = c.proven(n, 0)
		conn := c.connect(n)
		if b, _, err := conn.Get(path); err != nil || string(b) != string(zkValue(path)) {
			t.Errorf("server %d: what only the survivor knew is %q, %v", n, b, err)
		}
		conn.Close()
	}
	says(4, 0, "3 of 3 servers reachable")
	fmt.Printf("e2e recover: healthy, tight, lost: as doctor and the plan said; the steps, followed as printed, brought %d nodes back on 4 servers, one of them in no backup; %s in all\n", nodes+1, time.Since(begun).Round(time.Second))
}
