//go:build e2e

package zookeeper

import (
	"bytes"
	"encoding/binary"
	"hash/adler32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// A real server comes up from the dump; and one whose log tells another tree, with
// every checksum right, is found by the digests.
func TestE2EDrill(t *testing.T) {
	d := &Driller{Cluster: "zk", Timeout: time.Minute}
	must(t, d.Possible(t.Context(), observer.Position{}))
	task := scratch(t)
	rep, err := d.Drill(t.Context(), task)
	if err != nil || rep.Outcome != observer.DrillPassed || !strings.Contains(rep.Proved, "29 nodes serve") {
		t.Fatalf("%+v, %v", rep, err)
	}
	task = scratch(t)
	file := filepath.Join(task.Scratch, observer.DrillHome, stateDir, "log.1a")
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, lies(t, b), 0o600))
	rep, err = d.Drill(t.Context(), task)
	if err != nil || rep.Outcome != observer.DrillFailed || !strings.Contains(rep.Why, "digests differ") {
		t.Errorf("%+v, %v", rep, err)
	}
}

// lies makes a log whose last transaction tells another digest.
func lies(t *testing.T, b []byte) []byte {
	var out, last []byte
	_, err := readLog(t.Context(), bytes.NewReader(b), func(h []byte) error { out = append(out, h...); return nil }, func(x txn) error {
		out, last = append(out, last...), bytes.Clone(x.raw)
		return nil
	})
	must(t, err)
	body := last[recHead : len(last)-1]
	body[len(body)-1] ^= 1
	binary.BigEndian.PutUint64(last, uint64(adler32.Checksum(body)))
	return append(out, last...)
}
