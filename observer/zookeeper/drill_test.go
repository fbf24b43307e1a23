package zookeeper

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// scratch is a drill's directory with the real dump in it.
func scratch(t *testing.T) observer.DrillTask {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(filepath.Join(dir, observer.DrillHome), os.DirFS(lone)))
	return observer.DrillTask{Scratch: dir, Position: observer.Position{Kind: Kind, Index: 0x1a}}
}

// A copy that does not come up is a drill that failed, with the end of its log; what
// cannot be run is none.
func TestDrillOfWhatDoesNotServe(t *testing.T) {
	for name, c := range map[string]struct {
		argv []string
		why  string
		late bool
	}{
		"it ends":    {argv: []string{"sh", "-c", "grep clientPort= {config} && ls {home}; exit 3"}, why: "it ended: exit status 3"},
		"it is mute": {argv: []string{"sleep", "60"}, why: "deadline exceeded", late: true},
	} {
		d := &Driller{Cluster: "zk", Command: c.argv, Timeout: 500 * time.Millisecond}
		must(t, d.Possible(t.Context(), observer.Position{}))
		rep, err := d.Drill(t.Context(), scratch(t))
		if err != nil || rep.Outcome != observer.DrillFailed || !strings.Contains(rep.Why, c.why) || rep.Late != c.late {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		if log := strings.Join(rep.Log, "\n"); name == "it ends" && (!strings.Contains(log, "clientPort=") || !strings.Contains(log, "version-2")) {
			t.Errorf("%s: its log is %q", name, log)
		}
	}
	d := &Driller{Command: []string{"/nowhere/zkServer.sh"}}
	if err := d.Possible(t.Context(), observer.Position{}); !errors.Is(err, observer.ErrNotPossible) {
		t.Errorf("%v", err)
	}
}

// What the living copy says decides.
func TestDrillProves(t *testing.T) {
	task := observer.DrillTask{Position: observer.Position{Kind: Kind, Index: 0x1a}}
	for name, c := range map[string]struct {
		mntr, why string
		zxid      uint64
	}{
		"sound":           {mntr: "zk_znode_count\t27\nzk_digest_mismatches_count\t0\n", zxid: 0x1b},
		"no digests":      {mntr: "zk_znode_count\t27\n", zxid: 0x1a},
		"another tree":    {mntr: "zk_digest_mismatches_count\t2\n", zxid: 0x1a, why: "their digests differ"},
		"not to the end":  {zxid: 0x19, why: "it came up at zxid 0x19"},
		"does not answer": {zxid: 0x1a, why: "mntr"},
	} {
		proved, why := prove(t.Context(), task, answering(t, map[string]string{"mntr": c.mntr}), srvr{zxid: c.zxid, nodes: 27})
		if (c.why == "") != (why == "") || !strings.Contains(why, c.why) || (proved == "") == (why == "") {
			t.Errorf("%s: %q, %q", name, proved, why)
		}
	}
}
