package zookeeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// server makes the directories of a server, dataDir and dataLogDir apart, with what
// the dump has, its logs as a server leaves them: longer than they need to be.
func server(t *testing.T) (*Replica, string) {
	t.Helper()
	dir := t.TempDir()
	data, logs := filepath.Join(dir, "data"), filepath.Join(dir, "log")
	must(t, os.MkdirAll(filepath.Join(data, stateDir), 0o750), os.MkdirAll(filepath.Join(logs, stateDir), 0o750))
	names, err := os.ReadDir(filepath.Join(lone, stateDir))
	must(t, err)
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(lone, stateDir, n.Name()))
		must(t, err)
		to := data
		if strings.HasPrefix(n.Name(), logPrefix) {
			to, b = logs, append(b, make([]byte, 100_000)...)
		}
		must(t, os.WriteFile(filepath.Join(to, stateDir, n.Name()), b, 0o640))
	}
	must(t, os.WriteFile(filepath.Join(data, myID), []byte("7\n"), 0o644))
	for _, name := range epochs {
		must(t, os.WriteFile(filepath.Join(data, stateDir, name), []byte("3"), 0o644))
	}
	r, err := New(Options{Cluster: "zk", Conf: Conf{DataDir: data, LogDir: logs, Client: refusing(t)}})
	must(t, err)
	return r, dir
}

// refusing is an address where nobody listens.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	return addr
}

func captured(t *testing.T, r *Replica) (*snapshot.Stage, error) {
	t.Helper()
	roots, err := r.Roots(t.Context())
	must(t, err)
	st, err := snapshot.CreateStage(fsx.FS{}, "20261121T235500Z-auto-00105a", roots)
	must(t, err)
	t.Cleanup(func() { must(t, st.Remove()) })
	must(t, r.Prepare(t.Context(), st))
	if err := r.Capture(t.Context(), st); err != nil {
		return st, err
	}
	return st, st.Seal(t.Context())
}

func staged(t *testing.T, st *snapshot.Stage) (names []string) {
	t.Helper()
	for _, f := range files(t, st.Place(stateDir)) {
		names = append(names, filepath.Base(f))
	}
	return names
}

// What is captured is sound, small, and has no myid.
func TestCapture(t *testing.T) {
	r, _ := server(t)
	// A snapshot that was being written when the server was stopped, and leavings.
	must(t, os.WriteFile(filepath.Join(r.o.DataDir, stateDir, "snapshot.1a"), []byte("ZKSN"), 0o600))
	must(t, os.WriteFile(filepath.Join(r.o.DataDir, stateDir, "snapshot.7"), []byte("\x00\x00\x00\x01/"), 0o600))
	must(t, os.WriteFile(filepath.Join(r.o.LogDir, stateDir, "log.1"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(r.o.LogDir, stateDir, "log.1b"), make([]byte, 9000), 0o600))
	st, err := captured(t, r)
	must(t, err)
	want := []string{"acceptedEpoch", "currentEpoch", "log.11", "log.1a", "log.9", "snapshot.18", "snapshot.f"}
	if got := staged(t, st); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if s := st.Stats(); s.Linked != 2 || s.PrelinkedKept != 2 {
		t.Errorf("%+v", s)
	}
	var left []string
	for _, l := range st.LeftOut() {
		left = append(left, l.Name+": "+l.Reason)
	}
	slices.Sort(left)
	if got := strings.Join(left, "\n"); got != `version-2/log.1: a log of before the snapshots that are taken
version-2/log.1b: a log without a transaction
version-2/snapshot.1a: a snapshot that was not finished
version-2/snapshot.7: an older snapshot` {
		t.Error(got)
	}
	c, err := r.Check(t.Context(), st.Trees(), observer.Position{})
	if err != nil || len(c.Findings) > 0 || c.At.Index != 0x1a {
		t.Errorf("%+v, %v", c, err)
	}
	if p, err := r.Locate(t.Context(), st, observer.State{}); err != nil || p.Index != 0x1a || p.Consistency != "stopped" {
		t.Errorf("%+v, %v", p, err)
	}
	survey, err := r.Survey(t.Context())
	if err != nil || survey.Roots[0].Linked.Files != 2 || survey.Roots[0].Copied.Files != 4 {
		t.Errorf("%+v, %v", survey, err)
	}
}

// A server that comes up with nothing behind its snapshot writes that file anew in
// place: it is copied, not linked.
func TestASnapshotOfTheLastTransactionIsCopied(t *testing.T) {
	r, _ := server(t)
	must(t, os.Remove(filepath.Join(r.o.LogDir, stateDir, "log.1a")))
	b, err := os.ReadFile(filepath.Join(r.o.LogDir, stateDir, "log.11"))
	must(t, err)
	end := 0
	_, err = readLog(t.Context(), strings.NewReader(string(b)), none, func(x txn) error {
		if x.zxid <= 0x18 {
			end += len(x.raw)
		}
		return nil
	})
	must(t, err, os.Truncate(filepath.Join(r.o.LogDir, stateDir, "log.11"), int64(logHeader+end)))
	st, err := captured(t, r)
	must(t, err)
	live := filepath.Join(r.o.DataDir, stateDir, "snapshot.18")
	must(t, os.WriteFile(live, []byte("written anew"), 0o600))
	if c, err := r.Check(t.Context(), st.Trees(), observer.Position{}); err != nil || len(c.Findings) > 0 || c.At.Index != 0x18 {
		t.Errorf("%+v, %v", c, err)
	}
}

// A log that is damaged is no backup if the newest snapshot needs it; if only the
// older one does, that one stays away.
func TestCaptureOfDamagedLogs(t *testing.T) {
	spoil := func(r *Replica, name string) {
		f := filepath.Join(r.o.LogDir, stateDir, name)
		b, err := os.ReadFile(f)
		must(t, err)
		b[100] ^= 4
		must(t, os.WriteFile(f, b, 0o640))
	}
	r, _ := server(t)
	spoil(r, "log.11")
	if _, err := captured(t, r); !errors.Is(err, observer.ErrUnsound) {
		t.Errorf("%v", err)
	}
	r, _ = server(t)
	spoil(r, "log.9")
	st, err := captured(t, r)
	must(t, err)
	if got := fmt.Sprint(staged(t, st)); got != "[acceptedEpoch currentEpoch log.11 log.1a snapshot.18]" {
		t.Error(got)
	}
	if c, err := r.Check(t.Context(), st.Trees(), observer.Position{}); err != nil || len(c.Findings) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestCaptureOfNothing(t *testing.T) {
	r, _ := server(t)
	must(t, os.RemoveAll(filepath.Join(r.o.DataDir, stateDir)))
	roots, err := r.Roots(t.Context())
	must(t, err)
	st, err := snapshot.CreateStage(fsx.FS{}, "20261121T235500Z-auto-00105a", roots)
	must(t, err)
	if err := r.Prepare(t.Context(), st); !errors.Is(err, observer.ErrNotFit) {
		t.Errorf("%v", err)
	}
	must(t, st.Remove())
}

// A state is put in place in both directories, with the server's own number; what was
// there is kept, and a second time does no harm.
func TestRestore(t *testing.T) {
	r, _ := server(t)
	dump := copied(t)
	for _, name := range epochs {
		must(t, os.WriteFile(filepath.Join(dump, stateDir, name), []byte("5"), 0o600))
	}
	r.o.Conf.Servers = []Server{{ID: "7", Client: r.o.Conf.Client}, {ID: "8", Client: refusing(t), Election: refusing(t)}}
	owner := os.Geteuid()
	if owner == 0 { // only root can tell
		owner = 12345
		for _, dir := range dirs(r.o) {
			must(t, os.Chown(dir, owner, owner))
		}
	}
	task := observer.RestoreTask{Dir: dump, Position: observer.Position{Kind: Kind, Index: 0x1a}}
	if _, err := r.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "not fresh") {
		t.Fatalf("a server with a state: %v", err)
	}
	task.Overwrite = true
	there, err := r.Target(t.Context(), task)
	if err != nil || !strings.Contains(there, "server 7 in") || !strings.Contains(there, "2 snapshots and 3 logs") {
		t.Fatalf("%q, %v", there, err)
	}
	for range 2 {
		next, err := r.Restore(t.Context(), task)
		must(t, err)
		if len(next) != 5 || !strings.Contains(next[0], "8 (127.0.0.1:") || !strings.Contains(next[1], "together") {
			t.Fatalf("%q", next)
		}
	}
	var names []string
	for _, dir := range dirs(r.o) {
		for _, f := range files(t, filepath.Join(dir, stateDir)) {
			names = append(names, filepath.Base(f))
			fi, err := os.Stat(f)
			must(t, err)
			if got := int(fi.Sys().(*syscall.Stat_t).Uid); got != owner {
				t.Errorf("%s belongs to %d, not to %d", f, got, owner)
			}
		}
		old, err := filepath.Glob(filepath.Join(dir, ".eddy", "before-*", stateDir))
		if err != nil || len(old) != 2 {
			t.Errorf("%q, %v", old, err)
		}
	}
	if got := fmt.Sprint(names); got != "[acceptedEpoch currentEpoch snapshot.18 snapshot.f log.11 log.1a log.9]" {
		t.Error(got)
	}
	if id, err := readMyID(r.o.DataDir); id != "7" || err != nil {
		t.Errorf("it is server %q now, %v", id, err)
	}
	if b, err := os.ReadFile(filepath.Join(r.o.DataDir, stateDir, "currentEpoch")); string(b) != "5" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// Nothing is restored while a server of the ensemble answers, at either of its ports,
// nor where nobody says which server it is.
func TestRestoreRefuses(t *testing.T) {
	r, _ := server(t)
	alive, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, alive.Close()) })
	live := alive.Addr().String()
	task := observer.RestoreTask{Dir: lone, Overwrite: true}
	for want, servers := range map[string][]Server{
		"server 8 still answers": {{ID: "7"}, {ID: "8", Client: live}},
		"server 9 still answers": {{ID: "7"}, {ID: "9", Client: refusing(t), Election: live}},
	} {
		r.o.Conf.Servers = servers
		if _, err := r.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := r.Restore(t.Context(), task); !errors.Is(err, observer.ErrNotFit) {
			t.Errorf("%s: restored: %v", want, err)
		}
	}
	r.o.Conf.Servers = []Server{{ID: "7"}, {ID: "8"}}
	f, err := os.Open(filepath.Join(r.o.LogDir, stateDir, "log.9"))
	must(t, err)
	child := hold(t, f)
	if _, err := r.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "open") {
		t.Errorf("somebody has a log open: %v", err)
	}
	child()
	must(t, os.Remove(filepath.Join(r.o.DataDir, myID)))
	if _, err := r.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "which server") {
		t.Errorf("without myid: %v", err)
	}
}
