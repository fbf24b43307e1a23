package job

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// keeper is a node that is held for its dump, which holds secrets.
type keeper struct {
	*still
	steps   []string
	resting bool  // somebody else has stopped it
	gates   error // of the second question
	check   func(dir string)
	damage  string // what a look into the dump finds
}

func (r *keeper) did(step string) { r.steps = append(r.steps, step) }

func (r *keeper) Gate(context.Context, observer.State) error {
	r.did("gate")
	if slices.Contains(r.steps, "prepare") {
		return r.gates
	}
	return nil
}

func (r *keeper) Prepare(context.Context, *snapshot.Stage) error {
	r.did("prepare")
	return nil
}

func (r *keeper) Hold(context.Context, *snapshot.Stage) (func(context.Context) error, error) {
	r.did("hold")
	return func(context.Context) error {
		r.did("release")
		return nil
	}, nil
}

func (r *keeper) Capture(ctx context.Context, st *snapshot.Stage) error {
	r.did("capture")
	return r.still.Capture(ctx, st)
}

func (r *keeper) Check(_ context.Context, trees []snapshot.Tree, _ observer.Position) (observer.Checked, error) {
	r.did("check")
	r.check(trees[0].Dir)
	out := observer.Checked{Opened: "all", Grade: "clean"}
	if r.damage != "" {
		out.Findings = []string{r.damage}
	}
	return out, nil
}

func (r *keeper) Rejoined(context.Context, observer.State) error {
	r.did("rejoined")
	return nil
}

func (r *keeper) Still(context.Context) error {
	if r.resting {
		return nil
	}
	return errors.New("it runs")
}

func newKeeper(t *testing.T) (*bench, *keeper) {
	t.Helper()
	x := newBench(t)
	if err := os.WriteFile(filepath.Join(x.replica.home, "secrets"), secret, 0o600); err != nil {
		t.Fatal(err)
	}
	return x, &keeper{still: x.replica, check: func(string) {}}
}

func keeping(r *keeper) func(*Backup) {
	return func(b *Backup) { b.Replica, b.Sealing = r, masked() }
}

// What a held node kept is looked at in the plain, and sent encrypted, with the node
// running and counted again; of the stage nothing stays.
func TestAHeldNodesSecretsAreSentEncrypted(t *testing.T) {
	x, r := newKeeper(t)
	r.check = func(dir string) {
		if got := plain(t, dir); len(got) != 1 {
			t.Errorf("the check was shown %q", got)
		}
	}
	sum, err := x.backup(keeping(r))
	if err != nil || sum.Outcome != "ready" {
		t.Fatalf("%+v, %v", sum, err)
	}
	// It is waited for until the node counts while the dump is sent.
	if want := []string{"gate", "prepare", "gate", "hold", "capture", "release", "check", "rejoined"}; !slices.Equal(r.steps, want) {
		t.Errorf("%q", r.steps)
	}
	if got := plain(t, storeDir(x), x.workdir.Dir, filepath.Join(r.home, snapshot.StageDir)); len(got) > 0 {
		t.Errorf("it lies in the plain in %q", got)
	}
}

// A dump of a held node that is not sound is not sent; nothing of it stays, and the
// node runs.
func TestAHeldNodesDamageIsNotSent(t *testing.T) {
	x, r := newKeeper(t)
	r.damage = "a record has another checksum"
	if _, err := x.backup(keeping(r)); !errors.Is(err, ErrProof) || !slices.Contains(r.steps, "release") {
		t.Fatalf("%v, %q", err, r.steps)
	}
	if got := plain(t, storeDir(x), x.workdir.Dir, filepath.Join(r.home, snapshot.StageDir)); len(got) > 0 {
		t.Errorf("it lies in the plain in %q", got)
	}
}

// The second question comes before the stop, and leaves nothing either.
func TestAHeldNodeIsAskedForTwice(t *testing.T) {
	x, r := newKeeper(t)
	r.gates = observer.ErrNotFit
	if _, err := x.backup(keeping(r)); !errors.Is(err, observer.ErrNotFit) || slices.Contains(r.steps, "hold") {
		t.Errorf("%v, %q", err, r.steps)
	}
	if got := plain(t, storeDir(x), x.workdir.Dir, filepath.Join(r.home, snapshot.StageDir)); len(got) > 0 {
		t.Errorf("it lies in the plain in %q", got)
	}
}

// Of a cluster that is lost a node is taken as it is: one that is down stays down,
// one that runs is held, and nobody waits until it counts.
func TestSalvageOfAHeldNode(t *testing.T) {
	for resting, want := range map[bool][]string{
		true: {"capture", "check"}, false: {"prepare", "hold", "capture", "release", "check"},
	} {
		x, r := newKeeper(t)
		r.resting, r.dead = resting, true
		sum, err := x.backup(func(b *Backup) { keeping(r)(b); b.Salvage = true })
		if !errors.Is(err, ErrWarnings) || sum.Outcome != "salvaged" || !slices.Equal(r.steps, want) {
			t.Errorf("resting %t: %+v, %v, %q", resting, sum, err, r.steps)
		}
		b, err := x.catalog.Select(t.Context(), sum.ID)
		if err != nil || b.Status != uploader.StatusSalvage {
			t.Errorf("%s, %v", b.Status, err)
		}
	}
}
