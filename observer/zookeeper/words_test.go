package zookeeper

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/observer"
)

// hold lets another process have a file open, until the function is called.
func hold(t *testing.T, f *os.File) (end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{f}
	must(t, cmd.Start(), f.Close())
	return func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed
	}
}

// answering is a server that answers words.
func answering(t *testing.T, words map[string]string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4)
			_, err = io.ReadFull(c, b)
			if err == nil {
				_, _ = io.WriteString(c, words[string(b)]) // who asked may be gone
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func saysMode(mode, zxid string) map[string]string {
	return map[string]string{"srvr": "Zookeeper version: 3.8.0-${mvngit.commit.id}, built on 2024-12-29 17:54 UTC\nLatency min/avg/max: 0/0.0/0\nZxid: " + zxid + "\nMode: " + mode + "\nNode count: 5\n"}
}

func TestAsk(t *testing.T) {
	addr := answering(t, map[string]string{
		"srvr": saysMode("observer", "0x100000080")["srvr"],
		"hash": "hash is not executed because it is not in the whitelist.\n",
		"stat": "This ZooKeeper instance is not currently serving requests\n",
	})
	s, err := askServer(t.Context(), addr)
	if err != nil || s != (srvr{version: "3.8.0", mode: "observer", zxid: 0x100000080, nodes: 5}) {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := ask(t.Context(), addr, "hash"); !errors.Is(err, errUnlisted) {
		t.Errorf("%v", err)
	}
	if _, err := ask(t.Context(), addr, "stat"); !errors.Is(err, errIdle) {
		t.Errorf("%v", err)
	}
	if _, err := ask(t.Context(), addr, "mntr"); err == nil {
		t.Error("nothing was taken for an answer")
	}
	if _, err := ask(t.Context(), refusing(t), "srvr"); err == nil {
		t.Error("nobody was taken for a server")
	}
	if _, err := parseSrvr("Mode: leader\nZxid: 0xnine\n"); err == nil {
		t.Error("a zxid that is none")
	}
}

func FuzzSrvr(f *testing.F) {
	f.Add(saysMode("leader", "0x0")["srvr"])
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseSrvr(text); err == nil && s.mode == "" {
			t.Errorf("%+v", s)
		}
	})
}

// The gate over who serves, who leads, and what this server is.
func TestGate(t *testing.T) {
	const me = "2"
	voter := func(id, mode string) observer.Member {
		return observer.Member{ID: id, Voter: true, Reachable: mode != "", Leader: mode == modeLeader, Self: id == me}
	}
	watch := func(id, mode string) observer.Member {
		m := voter(id, mode)
		m.Voter = false
		return m
	}
	all := func(m ...observer.Member) []observer.Member { return m }
	for name, c := range map[string]struct {
		mode    string
		members []observer.Member
		conf    Conf
		outage  bool
		behind  uint64
		want    string // of the error; "": fit
	}{
		"a follower of three":             {mode: modeFollower, members: all(voter("1", modeLeader), voter(me, modeFollower), voter("3", modeFollower))},
		"one of two that are left":        {mode: modeFollower, members: all(voter("1", modeLeader), voter(me, modeFollower), voter("3", "")), want: "2 of 3 voters serve"},
		"one of four that are left":       {mode: modeFollower, members: all(voter("1", modeLeader), voter(me, modeFollower), voter("3", modeFollower), voter("4", modeFollower), voter("5", ""))},
		"the leader":                      {mode: modeLeader, members: all(voter("1", modeFollower), voter(me, modeLeader), voter("3", modeFollower)), want: "it is the leader"},
		"an observer":                     {mode: modeObserver, members: all(voter("1", modeLeader), watch(me, modeObserver), voter("3", ""), voter("4", modeFollower))},
		"an observer of whom knows none":  {mode: modeObserver},
		"no leader":                       {mode: modeObserver, members: all(voter("1", ""), watch(me, modeObserver)), want: "0 of the servers"},
		"two leaders":                     {mode: modeObserver, members: all(voter("1", modeLeader), watch(me, modeObserver), voter("3", modeLeader)), want: "2 of the servers"},
		"a follower of whom knows none":   {mode: modeFollower, want: "nobody knows the other servers"},
		"a stranger":                      {mode: modeFollower, members: all(voter("1", modeLeader)), want: "not among those"},
		"votes with weights":              {mode: modeFollower, conf: Conf{Weighted: true}, members: all(voter("1", modeLeader), voter(me, modeFollower), voter("3", modeFollower)), want: "weights or groups"},
		"an observer, votes with weights": {mode: modeObserver, conf: Conf{Weighted: true}, members: all(voter("1", modeLeader), watch(me, modeObserver))},
		"behind":                          {mode: modeObserver, behind: maxBehind + 1, members: all(voter("1", modeLeader), watch(me, modeObserver)), want: "not caught up"},
		"a little behind":                 {mode: modeObserver, behind: 9, members: all(voter("1", modeLeader), watch(me, modeObserver))},
		"the only one":                    {mode: modeStandalone, want: "the only server"},
		"the only one, and may":           {mode: modeStandalone, outage: true},
		"alone by mistake":                {mode: modeStandalone, outage: true, members: all(voter("1", modeLeader), voter(me, modeStandalone)), want: "it runs alone"},
		"read-only":                       {mode: "read-only", want: `its mode is "read-only"`},
	} {
		r := &Replica{o: Options{Conf: c.conf, Outage: c.outage}}
		s := observer.State{Node: observer.Node{ID: me, Role: c.mode}, Members: c.members, Position: observer.Position{Kind: Kind, Index: 5<<32 | 7}}
		s.Leader = &observer.Position{Kind: Kind, Index: s.Position.Index + c.behind}
		err := r.Gate(t.Context(), s)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, observer.ErrBehind) != (name == "behind") {
			t.Errorf("%s may be cured by waiting: %v", name, err)
		}
	}
	if behind(4<<32|9, 5<<32) || !behind(4<<32|9, 5<<32|2000) || behind(5<<32, 4<<32|2000) {
		t.Error("a new epoch")
	}
}

// By srvr alone it is known who serves and who leads.
func TestDescribe(t *testing.T) {
	r, _ := server(t)
	r.o.Conf.Client = answering(t, saysMode("follower", "0x300000007"))
	r.o.Conf.Servers = []Server{
		{ID: "1", Client: answering(t, saysMode("leader", "0x300000009"))},
		{ID: "7", Client: "192.0.2.1:1"}, // by its number it is this one
		{ID: "8", Client: refusing(t)},
		{ID: "9", Client: refusing(t), Observer: true},
	}
	s, err := r.Describe(t.Context())
	must(t, err)
	q := observer.QuorumOf(s.Members)
	if q != (observer.Quorum{Voters: 3, Reachable: 2, Leaders: 1, Needed: 2}) || s.Self() == nil || s.Self().ID != "7" || s.Leader.Index != 0x300000009 || s.Node.Role != "follower" {
		t.Errorf("%+v, %+v", q, s)
	}
	// A list of addresses tells less: who does not answer may be one that votes.
	r.o.Conf.Servers = []Server{{Client: r.o.Conf.Client}, {Client: refusing(t)}, {Client: answering(t, saysMode("observer", "0x1"))}}
	s, err = r.Describe(t.Context())
	must(t, err)
	if q := observer.QuorumOf(s.Members); q.Voters != 2 || q.Reachable != 1 {
		t.Errorf("%+v", q)
	}
	r.o.Conf.Client = refusing(t)
	s, err = r.Describe(t.Context())
	if !errors.Is(err, observer.ErrNotFit) || s.Node.ID != "7" || s.System != Kind {
		t.Errorf("%+v, %v", s, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	r.o.Conf.Client = answering(t, saysMode("observer", "0x300000007"))
	must(t, r.Rejoined(ctx, observer.State{Position: observer.Position{Index: 0x300000007}}))
}

// Digests of others prove the history, or refute it.
func TestAttest(t *testing.T) {
	p := observer.Position{Kind: Kind, Index: 0x200000386, Marks: map[string]string{"0x200000300": "16", "0x200000380": "19"}}
	for name, c := range map[string]struct{ hash, verdict string }{
		"the same":         {"200000280: 1\n200000300: 16\n200000380: 19\n", observer.Agrees},
		"the older only":   {"200000300: 16\n", observer.Agrees},
		"another":          {"200000300: 16\n200000380: 20\n", observer.Fork},
		"not so far":       {"200000100: 3\n", observer.Laggard},
		"nothing yet":      {"no digest", observer.Laggard},
		"no longer":        {"300000080: 3\n", observer.Pruned},
		"it serves nobody": {"This ZooKeeper instance is not currently serving requests\n", observer.Unreachable},
	} {
		r, _ := server(t)
		other := answering(t, map[string]string{"hash": c.hash})
		silent := answering(t, map[string]string{"hash": "hash is not executed because it is not in the whitelist.\n"})
		r.o.Conf.Servers = []Server{{ID: "7"}, {ID: "1", Client: other}, {ID: "2", Client: silent}}
		e, err := r.Attest(t.Context(), p, observer.Evidence{}, 0)
		if err != nil || len(e.Of) != 1 || e.Of[0].Verdict != c.verdict || e.Of[0].Witness != other {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		r.o.Conf.Servers = r.o.Conf.Servers[2:]
		if e, err := r.Attest(t.Context(), p, observer.Evidence{}, 0); err != nil || e.Grade() != "not possible" {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestConf(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, myID), []byte("4\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "dyn"), []byte("server.4=[2001:db8::4]:2888:3888:observer;2184\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "zoo.cfg"), []byte(`# comment
 dataDir = `+dir+`
dataLogDir=/log
clientPortAddress=0.0.0.0
server.10=zk10:2888:3888:observer
server.1=zk1:2888:3888|zk1b:2888:3888
server.2=zk2:2888:3888:participant;0.0.0.0:2182
server.3=zk3:2888:3888;10.0.0.3:2183
dynamicConfigFile=`+dir+`/dyn
group.1=1:2
`), 0o600))
	got, err := ReadConf(filepath.Join(dir, "zoo.cfg"))
	must(t, err)
	want := Conf{DataDir: dir, LogDir: "/log", Client: "127.0.0.1:2184", Weighted: true, Servers: []Server{
		{ID: "1", Election: "zk1:3888"},
		{ID: "2", Client: "zk2:2182", Election: "zk2:3888"},
		{ID: "3", Client: "10.0.0.3:2183", Election: "zk3:3888"},
		{ID: "4", Client: "[2001:db8::4]:2184", Election: "[2001:db8::4]:3888", Observer: true},
		{ID: "10", Election: "zk10:3888", Observer: true},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"dataDir=x\n", "dataDir=/x\nserver.1=zk1\n", "dataDir=/x\ndataLogDir=y\n", "dataDir=/x\nserver.1=[::1:2:3\n"} {
		if c, err := parseConf(properties(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
	if _, err := ReadConf(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there")
	}
	if _, err := New(Options{Conf: Conf{DataDir: dir}}); err == nil {
		t.Error("nobody knows where it listens")
	}
}

func FuzzConf(f *testing.F) {
	f.Add("dataDir=/x\nclientPort=2181\nserver.1=[::1]:2888:3888|h:1:2:observer;[::]:2181\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConf(properties(text))
		if err == nil && !filepath.IsAbs(c.DataDir) {
			t.Errorf("%+v", c)
		}
	})
}
