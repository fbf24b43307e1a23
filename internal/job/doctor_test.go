package job

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

func TestCost(t *testing.T) {
	const gb = 1_000_000_000
	ready := []uploader.Backup{{Status: uploader.StatusReady, Size: 100 * gb}, {Status: uploader.StatusReady, Size: 90 * gb}}
	for name, c := range map[string]struct {
		d     Doctor
		all   []uploader.Backup
		caps  uploader.Caps
		level check.Level
		said  string
	}{
		"eddy keeps seven of daily ones": {Doctor{RetentionBy: "eddy", Keep: 7, PerMonth: 30, GBMonth: 0.02, Currency: "USD"}, ready, uploader.Caps{}, check.OK, "7 are kept: " + ui.Bytes(700*gb) + " in the end (14.00 USD a month)"},
		"the grace keeps more":           {Doctor{RetentionBy: "eddy", Keep: 3, PerMonth: 720}, ready, uploader.Caps{}, check.OK, "73 are kept"},
		"a rule of the bucket":           {Doctor{RetentionBy: "lifecycle", PerMonth: 30}, ready, uploader.Caps{Lifecycle: []uploader.Rule{{ExpireDays: 14}}}, check.OK, "15 are kept"},
		"a rule that deletes nothing":    {Doctor{RetentionBy: "lifecycle", PerMonth: 30}, ready, uploader.Caps{Lifecycle: []uploader.Rule{{AbortDays: 14}}}, check.Warn, "nobody deletes"},
		"nobody":                         {Doctor{RetentionBy: "none", PerMonth: 30, GBMonth: 0.02}, ready, uploader.Caps{}, check.Warn, ui.Bytes(3000*gb) + " more each month (60.00"},
		"before the first": {Doctor{RetentionBy: "eddy", Keep: 2, PerMonth: 4, DataSize: func(context.Context) (int64, error) {
			return 10 * gb, nil
		}}, nil, uploader.Caps{}, check.OK, "about " + ui.Bytes(20*gb)},
		"a home that cannot be read": {Doctor{DataSize: func(context.Context) (int64, error) { return 0, errors.New("denied") }}, nil, uploader.Caps{}, check.Warn, "denied"},
		"nothing is known":           {Doctor{}, nil, uploader.Caps{}, check.OK, "after the first backup"},
	} {
		f := c.d.cost(t.Context(), c.all, c.caps)
		if f.Level != c.level || !strings.Contains(f.Said, c.said) || (f.Hint == "") != (c.level == check.OK) {
			t.Errorf("%s: %+v, want %s %q", name, f, c.level, c.said)
		}
	}
}

// Nothing of the doctor stays: not in a root, not in the store.
func TestDoctorLeavesNothing(t *testing.T) {
	root, bucket, work := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "not", "there")
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := uploader.Open(t.Context(), uploader.Config{URL: "file://" + bucket})
	if err != nil {
		t.Fatal(err)
	}
	d := Doctor{
		Roots: []snapshot.Root{{Path: root}, {Name: "own", Path: filepath.Join(work, "dump")}}, Workdir: Workdir{Dir: work}, Catalog: uploader.NewCatalog(store, "c"),
		RetentionBy: "eddy", Keep: 3, PerMonth: 30, Now: time.Now,
	}
	var all []check.Finding
	d.Run(t.Context(), func(f check.Finding) { all = append(all, f) })
	if check.Worst(all) == check.Fail || len(all) < 6 {
		t.Errorf("%+v", all)
	}
	for dir, want := range map[string]int{root: 1, bucket: 0, filepath.Dir(filepath.Dir(work)): 0} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".tmp-") { // the store's lock
				names = append(names, e.Name())
			}
		}
		if len(names) != want {
			t.Errorf("%s holds %v", dir, names)
		}
	}
}
