package job

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

const gib = 1 << 30

// A disk that is nearly full is found before anything is begun.
func TestNoRoomToBegin(t *testing.T) {
	x := newBench(t)
	for _, c := range []struct {
		free, size int64
		fits       bool
	}{
		{leastFree - 1, 100 * gib, false},
		{leastFree, 100 * gib, true},
		{4 << 20, 100 << 20, false}, // a twentieth is the least on a small one
		{5 << 20, 100 << 20, true},
	} {
		b := &Backup{Replica: x.replica, Room: func(string) (int64, int64, error) { return c.free, c.size, nil }}
		err := b.hasRoom(t.Context(), []snapshot.Root{{Path: x.replica.home}})
		if (err == nil) != c.fits || !c.fits && (!errors.Is(err, observer.ErrNotFit) || hint.Of(err) == "") {
			t.Errorf("%d free of %d: %v", c.free, c.size, err)
		}
	}
}

// While the stage keeps what the node has removed, and the disk fills up, the
// attempt ends before the node finds no room: between two volumes where that is
// soon enough, at once where it is not. Without that the stage is no burden.
func TestRoomGetsLow(t *testing.T) {
	for what, c := range map[string]struct {
		free    int64
		compact bool // the node removes its files
		fails   bool
		volumes int // that are stored
	}{
		"plenty":              {low(100 * gib), true, false, 3},
		"low":                 {low(100*gib) - 1, true, true, 1},
		"very low":            {low(100*gib)/2 - 1, true, true, 0},
		"low, nothing pinned": {low(100*gib) - 1, false, false, 3},
	} {
		t.Run(what, func(t *testing.T) {
			x := newBenchOf(t, 1<<20) // less is not worth a look
			x.store.each = func(int) {
				// Not before the watch has had its first look.
				if !c.compact {
					return
				}
				names, err := filepath.Glob(filepath.Join(x.replica.home, "*.ldb"))
				if err != nil {
					t.Error(err)
				}
				for _, n := range names {
					if err := os.Remove(n); err != nil {
						t.Error(err)
					}
				}
			}
			sum, err := x.backup(func(b *Backup) {
				b.Room = func(string) (int64, int64, error) { return c.free, 100 * gib, nil }
				b.roomEvery = 1
			})
			if c.fails != errors.Is(err, errRoom) || c.fails != errors.Is(err, ErrStage) || !c.fails && err != nil {
				t.Fatalf("%+v, %v", sum, err)
			}
			if c.fails && (!strings.Contains(err.Error(), "kept by the stage only") || hint.Of(err) == "") {
				t.Errorf("%v", err)
			}
			stored := 0
			for i := range 3 {
				if _, err := x.store.Stat(t.Context(), x.catalog.ObjectKey(sum.ID, uploader.VolumeName(i))); err == nil {
					stored++
				}
			}
			if stored != c.volumes {
				t.Errorf("%d volumes are stored, want %d", stored, c.volumes)
			}
			x.leavings()
		})
	}
}

// What a stored volume was made of does not stay in the stage.
func TestStoredVolumesAreReleased(t *testing.T) {
	x := newBench(t)
	id := x.interrupt() // in the second volume; the first has three files
	stage := filepath.Join(x.replica.home, snapshot.StageDir, id)
	left, err := filepath.Glob(filepath.Join(stage, "*.ldb"))
	if err != nil || len(left) != 4 || filepath.Base(left[0]) != "03.ldb" {
		t.Fatalf("the stage has %v, %v", left, err)
	}
	if _, err := x.backup(nil); err != nil {
		t.Fatal(err)
	}
	x.restored(id)
	x.leavings()
}
