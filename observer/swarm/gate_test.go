package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// managers: L leads, r is reachable, x is not; the one in upper case R or X, or l, is
// the replica.
func stateOf(role, managers string) observer.State {
	s := observer.State{Node: observer.Node{Role: role}}
	for i, c := range managers {
		s.Members = append(s.Members, observer.Member{
			ID: string(rune('a' + i)), Voter: true, Leader: strings.ContainsRune("Ll", c), Reachable: !strings.ContainsRune("xX", c), Self: strings.ContainsRune("lRX", c),
		})
	}
	return s
}

func TestMayStop(t *testing.T) {
	for _, c := range []struct{ role, managers, want string }{
		{roleManager, "LRr", ""},
		{roleManager, "LRrr", ""},
		{roleManager, "LRrrx", ""},
		{roleManager, "LRrxx", "3 of 5 managers are reachable, and 3 are needed"},
		{roleManager, "LRx", "2 of 3 managers are reachable"},
		{roleManager, "LRrx", "3 of 4 managers are reachable, and 3 are needed"},
		{roleManager, "LR", "a swarm with 2 managers"},
		{roleLeader, "l", "a swarm with 1 managers"},
		{roleLeader, "lrr", "leads the swarm"},
		{roleManager, "rRr", "has 0 leaders"},
		{roleManager, "LLRr", "has 2 leaders"},
		{roleManager, "LXr", "does not reach this manager"},
		{roleManager, "Lrr", "no manager"},
		{roleWorker, "", "no manager"},
		{roleLocked, "", "is locked"},
		{roleNone, "", "no member of a swarm"},
	} {
		err := mayStop(stateOf(c.role, c.managers))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !errors.Is(err, observer.ErrNotFit) || hint.Of(err) == "") {
			t.Errorf("%s %q: %v", c.role, c.managers, err)
		}
		if behind := errors.Is(err, observer.ErrBehind); behind != strings.Contains(c.managers, "X") {
			t.Errorf("%q: waiting helps: %t", c.managers, behind)
		}
	}
}

// fakeEngine answers what it is given by path; the rest is 404.
func fakeEngine(t *testing.T, answers map[string]any) *Replica {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if code, is := a.(int); is || !ok {
			w.WriteHeader(max(code, http.StatusNotFound))
			return
		}
		_ = json.NewEncoder(w).Encode(a)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	r, err := New(Options{Cluster: "c", DataRoot: dir, Host: "unix://" + filepath.Join(dir, "s"), Control: control.NewSupervise("/nonexistent")})
	must(t, err)
	return r
}

func TestGateAsksTheEngine(t *testing.T) {
	answers := map[string]any{"/containers/json": []any{}}
	r := fakeEngine(t, answers)
	in := unpacked(t, "locked")
	must(t, os.Rename(filepath.Join(in, stateDir), r.dir()))
	where := map[string]any{"DockerRootDir": r.o.DataRoot}
	answers["/info"] = where
	s := stateOf(roleManager, "LRr")
	gate := func(want string) {
		t.Helper()
		err := r.Gate(t.Context(), s)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !errors.Is(err, observer.ErrNotFit) || hint.Of(err) == "") {
			t.Errorf("not %q: %v, hint %q", want, err, hint.Of(err))
		}
		if err != nil && strings.Contains(err.Error()+hint.Of(err), unlockPrefix) {
			t.Error("a key is in the error")
		}
	}
	gate("no key opens this one's after a stop")
	answers["/swarm/unlockkey"] = map[string]string{"UnlockKey": unlockPrefix + strings.Repeat("A", 43)}
	gate("no key opens this one's after a stop")
	r.o.Keys = func(context.Context) ([]UnlockKey, error) { return heldKey(t), nil }
	gate("")
	if key, version, err := r.HeldKey(t.Context()); err != nil || key != heldKey(t)[0] || version != 35 {
		t.Errorf("version %d, %v", version, err)
	}
	answers["/containers/json"] = []any{
		map[string]any{"Id": strings.Repeat("a", 64), "Names": []string{"/web.1.x"}, "Labels": map[string]string{"com.docker.swarm.task.id": "x"}},
		map[string]any{"Id": strings.Repeat("b", 64)},
	}
	gate("stopping Docker stops these 2 containers, 1 of them tasks of the swarm: web.1.x, bbbbbbbbbbbb")
	r.o.AllowRunning = true
	gate("")
	where["DockerRootDir"] = "/srv/docker"
	gate("keeps its data in /srv/docker")
}

// An eddy in a container of the engine would stop itself. One in a container of another
// engine, or none, sees ids that this one does not know.
func TestGateInsideAContainer(t *testing.T) {
	own, layer := strings.Repeat("c0ffee00", 8), strings.Repeat("0123abcd", 8)
	proc := t.TempDir()
	must(t, os.WriteFile(filepath.Join(proc, "cgroup"), []byte("0::/\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(proc, "mountinfo"), []byte(
		"1 2 0:1 / / rw - overlay overlay rw,upperdir=/var/lib/docker/overlay2/"+layer+"/diff\n"+
			"3 1 8:1 /var/lib/docker/containers/"+own+"/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"), 0o600))
	ids := ownContainers(proc)
	if len(ids) != 2 {
		t.Fatalf("%q", ids)
	}
	answers := map[string]any{}
	r := fakeEngine(t, answers)
	must(t, r.outside(t.Context(), ids))
	answers["/containers/"+own+"/json"] = map[string]any{"Id": own}
	err := r.outside(t.Context(), ids)
	if !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "of the engine that it would stop") {
		t.Error(err)
	}
	answers["/containers/"+own+"/json"] = http.StatusInternalServerError
	if err := r.outside(t.Context(), ids); !errors.Is(err, observer.ErrNotFit) {
		t.Errorf("it is not known: %v", err)
	}
}

func TestRestoreWantsTheAddress(t *testing.T) {
	r := &Replica{}
	must(t, r.owns("127.0.0.1"))
	for _, addr := range []string{"203.0.113.7", "2001:db8::7", "manager2", ""} {
		err := r.owns(addr)
		if !errors.Is(err, observer.ErrNotFit) {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if err := r.owns("203.0.113.7"); !strings.Contains(hint.Of(err), "ip addr add 203.0.113.7/24") {
		t.Error(hint.Of(err))
	}
}

// While a manager of the dump answers, nothing is laid down.
func TestRestoreWantsTheOthersGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	d, err := readDump(t.Context(), unpacked(t, "plain"), nil)
	must(t, err)
	d.Log.Store, d.Peers = nil, []peer{{NodeID: "other", Addr: l.Addr().String()}}
	if err := nobodyLives(t.Context(), d); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "other at 127.0.0.1") {
		t.Error(err)
	}
	must(t, l.Close())
	must(t, nobodyLives(t.Context(), d))
}

// What is laid down is the dump's, what was there lies aside, and a locked one's key
// file needs no key.
func TestLay(t *testing.T) {
	dir := unpacked(t, "locked")
	r := &Replica{o: Options{DataRoot: t.TempDir()}}
	must(t, os.MkdirAll(filepath.Join(r.o.DataRoot, freshDir, "half"), 0o700)) // of a restore that died
	d, err := readDump(t.Context(), dir, heldKey(t))
	must(t, err)
	if aside, err := r.lay(t.Context(), dir, d); err != nil || aside != "" {
		t.Fatalf("%q, %v", aside, err)
	}
	got := &dump{}
	must(t, got.readState(t.Context(), r.dir(), nil))
	if got.Log.Commit != d.Log.Commit || got.Key.Locked {
		t.Errorf("%+v", got.Log)
	}
	said, err := r.there(t.Context())
	if err != nil || !strings.Contains(said, d.nodeID()) {
		t.Errorf("%q, %v", said, err)
	}
	aside, err := r.lay(t.Context(), dir, d)
	must(t, err)
	must(t, (&dump{}).readState(t.Context(), aside, nil))
	next := strings.Join(r.after(d), "\n")
	if !strings.Contains(next, "docker swarm update --autolock=true") {
		t.Error(next)
	}
}
