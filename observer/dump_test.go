package observer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/snapshot"
)

func TestANoteTravelsWithItsDump(t *testing.T) {
	home := t.TempDir()
	st, err := snapshot.CreateStage(fsx.FS{}, "20261120T235500Z-auto-0a1b2c", []snapshot.Root{{Path: home}})
	if err != nil {
		t.Fatal(err)
	}
	n := Note{State: State{Cluster: "c", Members: []Member{{ID: "1", Voter: true}}}, Position: Position{Kind: "etcd", Index: 7}, Facts: map[string]string{"version": "3.6"}}
	if err := n.Put(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if err := st.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := ReadNote(st.Trees()[0].Dir)
	n.Format, n.MinReader = 1, 1
	if diff := cmp.Diff(n, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	var names []string
	for e, err := range st.Entries() {
		if err != nil || e.Mode != 0o600 {
			t.Errorf("%+v, %v", e, err)
		}
		names = append(names, e.Name)
	}
	if diff := cmp.Diff([]string{NoteName}, names); diff != "" {
		t.Error(diff)
	}
}

func TestNotesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	for text, unsound := range map[string]bool{"": true, "{": true, `{"min_reader": 2}`: false, `{"min_reader": 1, "position": 5}`: true} {
		if err := os.WriteFile(filepath.Join(dir, NoteName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadNote(dir); err == nil || errors.Is(err, ErrUnsound) != unsound {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzNote(f *testing.F) {
	f.Add([]byte(`{"format": 1, "min_reader": 1, "position": {"kind": "etcd", "index": 7}}`))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseNote(b) })
}
