package etcd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// Who may be backed up: the table is over what the members say.
func TestGate(t *testing.T) {
	voter := func(id string, leads, answers bool) observer.Member {
		return observer.Member{ID: id, Voter: true, Leader: leads, Reachable: answers}
	}
	at := func(index string) observer.Position {
		return observer.Position{Marks: map[string]string{markRaft: index}}
	}
	self := func(m observer.Member) observer.Member { m.Self, m.Reachable = true, true; return m }
	learner := self(observer.Member{ID: "4"})
	for name, c := range map[string]struct {
		members []observer.Member
		leader  string // its raft index; "": nobody leads
		no      string
		behind  bool
	}{
		"a learner":               {members: []observer.Member{learner, voter("1", true, true), voter("2", false, true), voter("3", false, true)}, leader: "100"},
		"one voter is away":       {members: []observer.Member{learner, voter("1", true, true), voter("2", false, true), voter("3", false, false)}, leader: "100"},
		"a follower":              {members: []observer.Member{self(voter("2", false, true)), voter("1", true, true), voter("3", false, true)}, leader: "100"},
		"as far behind as it may": {members: []observer.Member{learner, voter("1", true, true)}, leader: "110"},
		"alone":                   {members: []observer.Member{self(voter("1", true, true))}, leader: "100"},
		"the leader":              {members: []observer.Member{self(voter("1", true, true)), voter("2", false, true)}, leader: "100", no: "leads the cluster"},
		"nobody is known":         {no: "no voter answers"},
		"removed":                 {members: []observer.Member{voter("1", true, true)}, leader: "100", no: "no member of the cluster any more"},
		"the quorum is lost":      {members: []observer.Member{learner, voter("1", false, true), voter("2", false, false), voter("3", false, false)}, no: "the quorum is lost: 1 of 3 voters answer, 2 must"},
		"it led until now":        {members: []observer.Member{self(voter("1", true, true)), voter("2", false, false), voter("3", false, false)}, leader: "100", no: "the quorum is lost"},
		"nobody leads":            {members: []observer.Member{learner, voter("1", false, true)}, no: "nobody leads"},
		"too far behind":          {members: []observer.Member{learner, voter("1", true, true)}, leader: "111", no: "11 entries behind", behind: true},
	} {
		s := observer.State{Members: c.members, Position: at("100")}
		if c.leader != "" {
			p := at(c.leader)
			s.Leader = &p
		}
		err := New(Options{MaxLag: 10}).Gate(t.Context(), s)
		if (err == nil) != (c.no == "") || err != nil && (!strings.Contains(err.Error(), c.no) || !errors.Is(err, observer.ErrNotFit)) || errors.Is(err, observer.ErrBehind) != c.behind {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The tool must be of the dump's version, or one newer.
func TestToolFits(t *testing.T) {
	for _, c := range []struct {
		tool, dump string
		fits       bool
	}{
		{"3.6.16", "3.6.1", true},
		{"3.7.0", "3.6.16", true},
		{"3.6.0", "3.7.3", false},
		{"3.6.0", "3.4.23", false},
		{"4.6.0", "3.6.0", false},
		{"3.6.0", "", true}, // a salvage of a member that did not tell
	} {
		if err := (etcdutl{version: c.tool}).fits(c.dump); (err == nil) != c.fits {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// fake makes an etcdutl of a shell script; restore is what it does to make $dir.
func fake(t *testing.T, restore string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "etcdutl")
	must(t, os.WriteFile(file, []byte(`#!/bin/sh
case "$*" in
version) echo "etcdutl version: 3.6.16" ;;
*--help) echo "--bump-revision --mark-compacted" ;;
*) dir=$5; echo "$*" >"$0.said"; `+restore+` ;;
esac
`), 0o700))
	return file
}

// A restore keeps what was there, and one that fails changes nothing.
func TestRestoreOfOneMember(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	old := filepath.Join(data, "member", "old")
	must(t, os.MkdirAll(filepath.Dir(old), 0o700))
	must(t, os.WriteFile(old, nil, 0o600))
	must(t, os.MkdirAll(filepath.Join(data, freshDir, "member"), 0o700)) // of one that was killed
	dump := dumpDir(t, dumpBytes(t, "plain"))
	e := New(Options{
		Etcdutl: fake(t, `mkdir -p $dir/member/snap; echo half; echo "disk full" >&2; exit 1`),
		Restore: Target{Name: "m1", DataDir: data, InitialCluster: []string{"m1=http://127.0.0.1:1", "m2=http://127.0.0.1:2"}, Token: "t"},
	})
	task := observer.RestoreTask{Dir: dump}
	if _, err := e.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "holds a member's data") {
		t.Errorf("%v", err)
	}
	task.Overwrite = true
	if there, err := e.Target(t.Context(), task); err != nil || !strings.Contains(there, data) {
		t.Errorf("%q, %v", there, err)
	}
	if _, err := e.Restore(t.Context(), task); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("%v", err)
	}
	if names, err := os.ReadDir(data); err != nil || len(names) != 1 {
		t.Errorf("a failed restore left %v, %v", names, err)
	}
	if _, err := os.Stat(old); err != nil {
		t.Error(err)
	}

	e.o.Etcdutl = fake(t, `mkdir -p $dir/member/snap`)
	e.now = func() time.Time { return time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC) }
	next, err := e.Restore(t.Context(), task)
	must(t, err)
	if len(next) != 4 || !strings.Contains(next[0], "hosts of m2") || !strings.Contains(next[1], "start etcd 3.6 on all members together") {
		t.Errorf("%q", next)
	}
	if kept, err := filepath.Glob(filepath.Join(data, ".eddy-before-20261121T220000Z-*/member/old")); err != nil || len(kept) != 1 {
		t.Errorf("%q, %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(data, "member", "snap")); err != nil {
		t.Error(err)
	}
	said, err := os.ReadFile(e.o.Etcdutl + ".said")
	must(t, err)
	want := "snapshot restore " + dump + "/dump --data-dir " + data + "/.eddy-new --name m1 --initial-cluster m1=http://127.0.0.1:1,m2=http://127.0.0.1:2" +
		" --initial-cluster-token t --initial-advertise-peer-urls http://127.0.0.1:1 --bump-revision 1000000000 --mark-compacted"
	if got := strings.TrimSpace(string(said)); got != want {
		t.Errorf("%s\nnot\n%s", got, want)
	}

	// Whoever listens where a member would be ends it, before anything is done.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	e.o.Restore.InitialCluster[1] = "m2=http://" + l.Addr().String()
	for _, try := range []func() error{
		func() error { _, err := e.Target(t.Context(), task); return err },
		func() error { _, err := e.Restore(t.Context(), task); return err },
	} {
		if err := try(); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "somebody answers at http://"+l.Addr().String()) {
			t.Errorf("%v", err)
		}
	}
	e.o.Restore.Name = "m9"
	if _, err := e.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "m9 is no member") {
		t.Errorf("%v", err)
	}
}
