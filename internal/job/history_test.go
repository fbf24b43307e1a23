package job

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

func TestHistoryOf(t *testing.T) {
	for incarnation, want := range map[string]struct {
		identity string
		again    int
	}{
		"dc1": {"dc1", 0}, "dc1+1": {"dc1", 1}, "dc1+12": {"dc1", 12}, "a+b+2": {"a+b", 2},
		"dc1+": {"dc1+", 0}, "dc1+x": {"dc1+x", 0}, "dc1+0": {"dc1+0", 0}, "dc1+-1": {"dc1+-1", 0}, "": {"", 0},
	} {
		identity, again := historyOf(incarnation)
		if identity != want.identity || again != want.again {
			t.Errorf("%q: %q, %d", incarnation, identity, again)
		}
	}
}

// A cluster that was brought back goes on below its newest backup. That must be said
// once; from then on its backups are of another history.
func TestAClusterThatWasBroughtBack(t *testing.T) {
	x, r := newPrints(t)
	run := func(change func(*Backup)) (Summary, error) {
		return x.backup(func(b *Backup) {
			x.sealing(r)(b)
			if change != nil {
				change(b)
			}
		})
	}
	if _, err := run(nil); err != nil {
		t.Fatal(err)
	}
	r.index = 3
	if _, err := run(nil); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(hint.Of(err), "--new-incarnation") {
		t.Errorf("it went back: %v", err)
	}
	again, err := run(func(b *Backup) { b.NewIncarn = true })
	if err != nil {
		t.Fatal(err)
	}
	r.index = 4
	next, err := run(nil)
	if err != nil {
		t.Fatal(err)
	}
	if sum, err := run(nil); err != nil || sum.Outcome != "unchanged" {
		t.Errorf("%+v, %v", sum, err)
	}
	latest, err := x.catalog.Latest(t.Context())
	if err != nil || latest.ID != next.ID || latest.Manifest.Incarnation != "e+1" {
		t.Errorf("the latest is %s of %s, %v", latest.ID, latest.Manifest.Incarnation, err)
	}
	r.index = 2
	if _, err := run(nil); !errors.Is(err, observer.ErrNotFit) {
		t.Errorf("it went back once more: %v", err)
	}

	// What is brought back is of the cluster as that knows itself.
	r.brings = func(task observer.RestoreTask) error {
		if task.Position.Incarnation != "e" || task.Position.Index != 3 {
			t.Errorf("%+v", task.Position)
		}
		return nil
	}
	b := &Bring{
		Restore: Restore{Store: x.store, Catalog: x.catalog, Selector: again.ID, Events: x.told, Now: time.Now, Unseal: unmask},
		Replica: r, Kind: "etcd", Workdir: x.workdir, Confirm: func(string, string) error { return nil },
	}
	if _, err := b.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// alone gives another dump when it is asked for what one member has.
type alone struct{ *prints }

func (a alone) Salvage(ctx context.Context, st *snapshot.Stage) error {
	err := st.Stream(ctx, "", observer.DumpName, func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, "alone")
		return err
	})
	return errors.Join(err, observer.Note{Position: a.position()}.Put(ctx, st))
}

func TestASalvageIsAskedForAsOne(t *testing.T) {
	x, r := newPrints(t)
	for _, salvage := range []bool{false, true} {
		sum, err := x.backup(func(b *Backup) { x.sealing(r)(b); b.Replica, b.Salvage = alone{r}, salvage })
		if err != nil {
			t.Fatal(err)
		}
		b, err := x.catalog.Select(t.Context(), sum.ID)
		if err != nil || (b.Manifest.Sizes.Source < 10_000) != salvage {
			t.Errorf("%s: salvage %t has %d bytes, %v", filepath.Base(b.ID), salvage, b.Manifest.Sizes.Source, err)
		}
	}
}
