package job

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// warned collects the texts of warnings.
type warned struct{ texts []string }

func (h *warned) Emit(e ui.Event) {
	if w, ok := e.(Warning); ok {
		h.texts = append(h.texts, w.Text)
	}
}

// A dump that lost more than half is refused, unless something explains it or
// somebody says so.
func TestNoUnexplainedShrink(t *testing.T) {
	store, err := uploader.Open(t.Context(), uploader.Config{URL: "file://" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cat := uploader.NewCatalog(store, "gaia")
	m := uploader.Manifest{
		ID: uploader.NewID(time.Now(), "auto"), Label: "auto", Cluster: "gaia", Incarnation: "aa", Created: time.Now(),
		Engines: []string{"goleveldb", "wal"}, Pruning: "default", Sizes: uploader.Sizes{Source: 1000},
	}
	o, err := store.PutSmall(t.Context(), cat.ObjectKey(m.ID, uploader.VolumeName(0)), []byte("x"), "", uploader.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	m.Volumes = []uploader.Volume{{Name: uploader.VolumeName(0), Size: o.Size}}
	b := &Backup{Catalog: cat}
	if err := b.shrunk(t.Context(), &m, 1); err != nil {
		t.Errorf("the first of all: %v", err)
	}
	if err := cat.Commit(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		source  int64
		change  func(*uploader.Manifest)
		accept  bool
		refused bool
		says    string
	}{
		"as large":         {source: 1000},
		"half":             {source: 500},
		"less":             {source: 499, refused: true},
		"nothing":          {refused: true},
		"engines reversed": {source: 1, change: func(m *uploader.Manifest) { m.Engines = []string{"wal", "goleveldb"} }, refused: true},
		"other engines":    {source: 1, change: func(m *uploader.Manifest) { m.Engines = []string{"pebble"} }},
		"another history":  {source: 1, change: func(m *uploader.Manifest) { m.Incarnation = "bb" }},
		"other pruning":    {source: 1, change: func(m *uploader.Manifest) { m.Pruning = "everything" }, says: `pruning was "default" then and is "everything" now`},
		"accepted":         {source: 1, accept: true, says: "which is accepted"},
	} {
		t.Run(name, func(t *testing.T) {
			now, said := m, &warned{}
			if c.change != nil {
				c.change(&now)
			}
			b := &Backup{Catalog: cat, AcceptShrink: c.accept, Events: said}
			err := b.shrunk(t.Context(), &now, c.source)
			if c.refused != errors.Is(err, ErrProof) || !c.refused && err != nil || c.refused && !strings.Contains(hint.Of(err), "--accept-shrink") {
				t.Errorf("%v (%s)", err, hint.Of(err))
			}
			if !strings.Contains(strings.Join(said.texts, ";"), c.says) || c.says == "" && len(said.texts) > 0 {
				t.Errorf("said %q, want %q", said.texts, c.says)
			}
		})
	}
}

// audits is a replica whose audit says what a test wants.
type audits struct {
	Replica
	unread []string
	err    error
}

func (a audits) Audit(context.Context, *snapshot.Stage) ([]string, error) { return a.unread, a.err }

func TestAnUnsoundDumpIsNoBackup(t *testing.T) {
	said := &warned{}
	gone := errors.New("disk error")
	for _, c := range []struct {
		replica Replica
		want    error
	}{
		{nil, nil},
		{audits{}, nil},
		{audits{unread: []string{"data/x.db"}}, nil},
		{audits{err: observer.ErrUnsound}, ErrProof},
		{audits{err: gone}, ErrStage},
	} {
		b := &Backup{Replica: c.replica, Events: said}
		if err := b.audit(t.Context(), nil); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%+v: %v, want %v", c.replica, err, c.want)
		}
	}
	if len(said.texts) != 1 || !strings.Contains(said.texts[0], "data/x.db") {
		t.Errorf("said %q", said.texts)
	}
}
