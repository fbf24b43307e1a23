package job

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// sight is a replica whose dumps are looked into.
type sight struct {
	*still
	says  observer.Checked
	err   error
	trees []snapshot.Tree
	at    observer.Position
}

func (r *sight) Locate(ctx context.Context, st *snapshot.Stage, before observer.State) (observer.Position, error) {
	if r.says.At != nil {
		return observer.Position{}, errors.New("the look had told it")
	}
	return r.still.Locate(ctx, st, before)
}

func (r *sight) Check(_ context.Context, trees []snapshot.Tree, at observer.Position) (observer.Checked, error) {
	r.trees, r.at = trees, at
	return r.says, r.err
}

// What a look into the dump has shown is in the manifest, and decides whether the
// backup becomes the latest.
func TestWhatWasOpenedDecidesOnLatest(t *testing.T) {
	all := observer.Checked{
		Opened: "all", Grade: "clean", Proven: map[string]int64{"blocks": 12}, Notes: []string{"a sample only"}, Seconds: 0.1, Peak: 1 << 20,
		Layers: []observer.CheckedLayer{{Name: "state", Engine: "goleveldb", Opened: true, Said: "after block 11"}},
	}
	part := observer.Checked{Opened: "part", Grade: "structure", Layers: []observer.CheckedLayer{{Name: "app", Engine: "rocksdb", Said: "cannot be opened"}}}
	none := observer.Checked{Opened: "none", Grade: "structure"}
	given := observer.Checked{Opened: "none", Unfinished: "it needed more than 1024 MiB", Hint: "give it more"}
	for _, c := range []struct {
		name   string
		says   observer.Checked
		need   string
		latest bool
	}{
		{"all", all, "", true},
		{"all, and all is demanded", all, OpenedAll, true},
		{"part", part, OpenedPossible, true},
		{"part, and all is demanded", part, OpenedAll, false},
		{"part is demanded", part, OpenedPart, true},
		{"none", none, OpenedPossible, true},
		{"none, and part is demanded", none, OpenedPart, false},
		{"none is demanded", given, OpenedNone, true},
		{"given up", given, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newBench(t)
			r := &sight{still: x.replica, says: c.says}
			sum, err := x.backup(func(b *Backup) { b.Replica, b.Opened = r, c.need })
			if sum.Outcome != "ready" || (err == nil) != (c.latest && c.says.Unfinished == "") || err != nil && !errors.Is(err, ErrWarnings) {
				t.Fatalf("%+v, %v", sum, err)
			}
			b, err := x.catalog.Select(t.Context(), sum.ID)
			if err != nil {
				t.Fatal(err)
			}
			if b.Latest != c.latest || b.Manifest.Opened != c.says.Opened {
				t.Errorf("latest: %v, opened: %s", b.Latest, b.Manifest.Opened)
			}
			if !c.latest && !x.told.has("latest stays where it is") {
				t.Errorf("nobody was told: %q", x.told.lines)
			}
			got := b.Manifest.Check
			if got == nil || got.Grade != c.says.Grade || got.Unfinished != c.says.Unfinished || got.Proven["blocks"] != c.says.Proven["blocks"] ||
				!slices.Equal(got.Notes, c.says.Notes) || len(got.Layers) != len(c.says.Layers) || len(got.Layers) > 0 && got.Layers[0] != uploader.CheckedLayer(c.says.Layers[0]) {
				t.Errorf("the manifest has %+v", got)
			}
			if len(r.trees) != 1 || !strings.HasPrefix(r.trees[0].Dir, x.replica.home) || r.at.Index != 0 {
				t.Errorf("it was asked about %+v at %+v", r.trees, r.at)
			}
			x.restored(sum.ID)
			x.leavings()
		})
	}
}

// Where the look tells where the dump is, nobody else is asked.
func TestTheLookTellsThePosition(t *testing.T) {
	x := newBench(t)
	at := observer.Position{Kind: "cometbft", Incarnation: "g", Index: 17, Hash: []byte{0xAB}, HashKind: "app_hash", Consistency: "stopped"}
	r := &sight{still: x.replica, says: observer.Checked{Opened: "all", Grade: "clean", At: &at}}
	sum, err := x.backup(func(b *Backup) { b.Replica = r })
	if err != nil || sum.Position != 17 || sum.Hash != "AB" || !x.told.has("the dump is at height 17") {
		t.Fatalf("%+v, %v, told %q", sum, err, x.told.lines)
	}
	b, err := x.catalog.Select(t.Context(), sum.ID)
	if err != nil || b.Manifest.Position.Index != 17 || b.Manifest.Position.Consistency != "stopped" {
		t.Errorf("%+v, %v", b.Manifest, err)
	}
}

// A dump that is not sound is not sent, and neither is one of which nothing can be
// said. Nothing of them stays.
func TestAnUnsoundDumpIsNotSent(t *testing.T) {
	broken := errors.New("no more processes")
	for name, r := range map[string]sight{
		"unsound":   {says: observer.Checked{Opened: "all", Grade: "broken", Findings: []string{"blocks: part-proof: height 9", "app: app-hash: height 9"}, Hint: "bring the node back"}},
		"no answer": {err: broken},
	} {
		t.Run(name, func(t *testing.T) {
			x := newBench(t)
			r.still = x.replica
			_, err := x.backup(func(b *Backup) { b.Replica = &r })
			if r.err == nil && (!errors.Is(err, ErrProof) || !errors.Is(err, observer.ErrUnsound) || hint.Of(err) != r.says.Hint || !x.told.has(r.says.Findings[1])) {
				t.Errorf("%v, hint %q, told %q", err, hint.Of(err), x.told.lines)
			}
			if r.err != nil && (!errors.Is(err, ErrStage) || !errors.Is(err, broken)) {
				t.Errorf("%v", err)
			}
			all, err := x.catalog.List(t.Context())
			if err != nil || len(all) != 1 || all[0].Status != uploader.StatusError || all[0].Size != 0 {
				t.Errorf("%+v, %v", all, err)
			}
			x.leavings()
		})
	}
}
