package swarm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// drilling is a drill of a dump of testdata, in its scratch directory.
func drilling(t *testing.T, name string, o Options) (observer.Driller, observer.DrillTask) {
	t.Helper()
	scratch := t.TempDir()
	must(t, os.Rename(unpacked(t, name), filepath.Join(scratch, observer.DrillHome)))
	o.Cluster, o.DataRoot, o.Drill.Timeout = "unimatrix", "/nowhere", 3*time.Minute
	r, err := New(o)
	must(t, err)
	return r.Driller(), observer.DrillTask{Scratch: scratch}
}

// What is wrong with a dump is known before anything is started.
func TestDrillOfADumpThatCannotBe(t *testing.T) {
	d, task := drilling(t, "locked", Options{})
	rep, err := d.Drill(t.Context(), task)
	must(t, err)
	if rep.Outcome != observer.DrillNotPossible || !strings.Contains(rep.Hint, "unlock_key") {
		t.Errorf("without its key: %+v", rep)
	}
	d, task = drilling(t, "plain", Options{})
	names, err := filepath.Glob(filepath.Join(task.Scratch, observer.DrillHome, stateDir, filepath.FromSlash(walDir), "*.wal"))
	must(t, err)
	b, err := os.ReadFile(names[0])
	must(t, err)
	b[len(b)/8] ^= 4
	must(t, os.WriteFile(names[0], b, 0o600))
	rep, err = d.Drill(t.Context(), task)
	must(t, err)
	if rep.Outcome != observer.DrillFailed || rep.Why == "" {
		t.Errorf("falsified: %+v", rep)
	}
}

func TestDrillCommand(t *testing.T) {
	d := drilled{&Replica{o: Options{Drill: Drill{Command: []string{"/opt/dockerd", "--data-root={home}"}}}}}
	c := d.copied("/scratch", "data")
	if !slices.Equal(c.argv[:4], []string{"/opt/dockerd", "--data-root=/scratch/data", "--config-file", "/scratch/daemon.json"}) {
		t.Errorf("%q", c.argv)
	}
	if d.command()[1] != "--data-root={home}" {
		t.Error("the configured words were changed")
	}
}

// The copy has the addresses of its node, and none that every host has.
func TestDrillAddresses(t *testing.T) {
	d := &dump{Log: &raftLog{Self: member{Addr: "10.99.0.2:2377"}}, Local: localState{
		ListenAddr: "0.0.0.0:2377", AdvertiseAddr: "10.99.0.2:2377", LocalAddr: "127.0.0.1", DataPathAddr: "fd00::2",
	}}
	var got []string
	for _, ip := range d.addresses() {
		got = append(got, ip.String())
	}
	if !slices.Equal(got, []string{"10.99.0.2", "10.99.0.2", "fd00::2"}) {
		t.Errorf("%q", got)
	}
}

// /run is hidden from the copy.
func TestDrillElsewhereThanRun(t *testing.T) {
	link := filepath.Join(t.TempDir(), "drill")
	must(t, os.Symlink("/run", link))
	err := drilled{}.Prepare(context.Background(), observer.DrillTask{Scratch: link})
	if err == nil || !strings.Contains(err.Error(), "hidden") {
		t.Errorf("%v", err)
	}
}
