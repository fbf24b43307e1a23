package job

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// prints is a system that gives its dump while it lives.
type prints struct {
	dir    string // where stages are made
	index  uint64
	dump   []byte
	gate   error
	damage string // what a look into the dump finds
	check  func(dir string)
	brings func(t observer.RestoreTask) error
}

func (r *prints) Describe(context.Context) (observer.State, error) {
	return observer.State{System: "etcd", Cluster: "k8s", Node: observer.Node{ID: "n"}, Position: r.position()}, nil
}

func (r *prints) position() observer.Position {
	return observer.Position{Kind: "etcd", Incarnation: "e", Epoch: 2, Index: r.index, Time: time.Unix(1, 0)}
}

func (r *prints) Roots(context.Context) ([]snapshot.Root, error) {
	return []snapshot.Root{{Path: r.dir}}, nil
}

func (r *prints) Capture(ctx context.Context, st *snapshot.Stage) error {
	err := st.Stream(ctx, "", observer.DumpName, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(r.dump)
		return err
	})
	return errors.Join(err, observer.Note{Position: r.position()}.Put(ctx, st))
}

func (r *prints) Locate(context.Context, *snapshot.Stage, observer.State) (observer.Position, error) {
	return r.position(), nil
}
func (r *prints) Gate(context.Context, observer.State) error { return r.gate }
func (r *prints) Recover(context.Context) (bool, error)      { return false, nil }
func (r *prints) Facts(context.Context) (Facts, error)       { return Facts{Engines: []string{"bbolt"}}, nil }

func (r *prints) Check(_ context.Context, trees []snapshot.Tree, _ observer.Position) (observer.Checked, error) {
	if r.check != nil {
		r.check(trees[0].Dir)
	}
	c := observer.Checked{Opened: "all", Grade: "clean"}
	if r.damage != "" {
		c.Findings = []string{r.damage}
	}
	return c, nil
}

func (r *prints) Target(context.Context, observer.RestoreTask) (string, error) { return "nothing", nil }

func (r *prints) Restore(_ context.Context, t observer.RestoreTask) ([]string, error) {
	return []string{"start all"}, r.brings(t)
}

// mask is a cipher for tests: each byte is turned over. An archive of it can be read
// at any place, as one of age can.
type mask struct {
	io.Writer
	io.ReaderAt
}

func turn(b []byte) []byte {
	out := slices.Clone(b)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

func (m mask) Write(b []byte) (int, error) { return m.Writer.Write(turn(b)) }
func (m mask) Close() error                { return nil }
func (m mask) ReadAt(b []byte, off int64) (int, error) {
	n, err := m.ReaderAt.ReadAt(b, off)
	copy(b, turn(b[:n]))
	return n, err
}

func masked() *Sealing {
	return &Sealing{Scheme: "age", Recipients: []string{"age:0123456789abcdef"}, Seal: func(w io.Writer) (io.WriteCloser, error) { return mask{Writer: w}, nil }}
}

func unmask(r io.ReaderAt, size int64) (io.ReaderAt, int64, error) {
	return mask{ReaderAt: r}, size, nil
}

// secret is in every dump of these tests, and must lie nowhere in the plain.
var secret = []byte("Seven of Nine, tertiary adjunct of Unimatrix 01")

func newPrints(t *testing.T) (*bench, *prints) {
	t.Helper()
	x := newBench(t)
	r := &prints{dir: filepath.Join(x.workdir.Dir, "dump"), index: 7, dump: append(bytes.Repeat([]byte("key=value "), 300_000), secret...)}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return x, r
}

func (x *bench) sealing(r *prints) func(*Backup) {
	return func(b *Backup) { b.Replica, b.Sealing = r, masked() }
}

// plain looks for the secret below dirs.
func plain(t *testing.T, dirs ...string) (found []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(p)
			if bytes.Contains(b, secret) {
				found = append(found, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func storeDir(x *bench) string { return strings.TrimPrefix(x.store.URL(), "file://") }

// A dump is taken, checked in the plain, encrypted, sent, read back and restored;
// the plain is gone before the first byte is sent.
func TestADumpIsSentEncrypted(t *testing.T) {
	x, r := newPrints(t)
	looked := false
	r.check = func(dir string) {
		looked = len(plain(t, dir)) == 1
	}
	x.store.onPut = func(string) error {
		if found := plain(t, x.workdir.Dir); len(found) > 0 {
			t.Errorf("in the plain while it is sent: %q", found)
		}
		return nil
	}
	sum, err := x.backup(x.sealing(r))
	if err != nil || sum.Outcome != "ready" || !looked || sum.At != "revision 7" {
		t.Fatalf("%+v, looked %t, %v", sum, looked, err)
	}
	if found := plain(t, x.workdir.Dir, storeDir(x)); len(found) > 0 {
		t.Errorf("in the plain: %q", found)
	}
	b, err := x.catalog.Latest(t.Context())
	if err != nil || b.ID != sum.ID {
		t.Fatal(b.ID, err)
	}
	m := b.Manifest
	if m.Encryption == nil || m.Volumes[0].Name != uploader.SealedName || len(m.Roots) > 0 || m.Sizes.Source <= int64(len(r.dump)) || m.Stored == "" {
		t.Errorf("%+v", m)
	}
	into := filepath.Join(fastDir(t), "into")
	restore := &Restore{Store: x.store, Catalog: x.catalog, Selector: "latest", Into: into, Events: x.told, Now: time.Now}
	if _, err := restore.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is encrypted") {
		t.Errorf("without a key: %v", err)
	}
	restore.Unseal = unmask
	if _, err := restore.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(into, observer.DumpName)); err != nil || !bytes.Equal(got, r.dump) {
		t.Errorf("another dump came back: %d bytes, %v", len(got), err)
	}
	x.leavingsBut("dump")
	if sum, err := x.backup(x.sealing(r)); err != nil || sum.Outcome != "unchanged" {
		t.Errorf("once more: %+v, %v", sum, err)
	}
}

// leavingsBut is leavings, for a workdir that holds the stages' directory as well.
func (x *bench) leavingsBut(name string) {
	x.t.Helper()
	if err := os.RemoveAll(filepath.Join(x.workdir.Dir, name, snapshot.StageDir)); err != nil {
		x.t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(x.workdir.Dir, name)); err != nil {
		x.t.Error(err)
	}
	x.leavings()
	if err := os.Mkdir(filepath.Join(x.workdir.Dir, name), 0o700); err != nil {
		x.t.Fatal(err)
	}
}

// What breaks off is gone on with, from the encrypted file; a file that is gone or
// cut short begins anew.
func TestAnEncryptedUploadGoesOn(t *testing.T) {
	for name, harm := range map[string]func(file string) error{
		"as it was": func(string) error { return nil },
		"gone":      os.Remove,
		"cut short": func(f string) error { return os.Truncate(f, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			x, r := newPrints(t)
			x.store.after, x.store.err = 0, errors.New("the line is dead")
			first, err := x.backup(x.sealing(r))
			if !errors.Is(err, x.store.err) {
				t.Fatal(err)
			}
			if found := plain(t, x.workdir.Dir); len(found) > 0 {
				t.Errorf("in the plain: %q", found)
			}
			x.store.after = -1
			if err := harm(x.workdir.path(sealedName)); err != nil {
				t.Fatal(err)
			}
			sum, err := x.backup(x.sealing(r))
			same := sum.ID == first.ID
			if sum.Outcome != "ready" || same != (name == "as it was") || same != (err == nil) || err != nil && !errors.Is(err, ErrWarnings) {
				t.Fatalf("%+v, %v", sum, err)
			}
			if _, err := os.Stat(x.workdir.path(sealedName)); !errors.Is(err, os.ErrNotExist) {
				t.Error("the encrypted file stays:", err)
			}
		})
	}
}

// A dump that is not sound is not sent, and nothing of it stays.
func TestADumpThatIsNotSoundIsNotSent(t *testing.T) {
	x, r := newPrints(t)
	r.damage = "the trailer is not the hash of what is before it"
	if _, err := x.backup(x.sealing(r)); !errors.Is(err, ErrProof) {
		t.Fatal(err)
	}
	if found := plain(t, x.workdir.Dir, storeDir(x)); len(found) > 0 {
		t.Errorf("in the plain: %q", found)
	}
}

// Every byte of an encrypted archive counts, and needs no key to be looked at.
func TestAnEncryptedArchiveIsReadBack(t *testing.T) {
	x, r := newPrints(t)
	sum, err := x.backup(x.sealing(r))
	if err != nil {
		t.Fatal(err)
	}
	verify := func(by string) (Verified, error) {
		v := &Verify{Catalog: x.catalog, Selector: sum.ID, By: by, Share: 0.5, Version: "v1", Events: x.told, Now: time.Now}
		return v.Run(t.Context())
	}
	if out, err := verify(uploader.ByReadData); err != nil || out.Grade != uploader.GradeVerified {
		t.Fatalf("%+v, %v", out, err)
	}
	file := filepath.Join(storeDir(x), x.catalog.ObjectKey(sum.ID, uploader.SealedName))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(uploader.ByReadData); !errors.Is(err, uploader.ErrDamaged) || out.Grade != uploader.GradeFailed {
		t.Errorf("%+v, %v", out, err)
	}
	restore := &Restore{Store: x.store, Catalog: x.catalog, Selector: sum.ID, AcceptFailed: true, Into: filepath.Join(fastDir(t), "into"), Events: x.told, Now: time.Now, Unseal: unmask}
	if _, err := restore.Run(t.Context()); !errors.Is(err, snapshot.ErrCorrupt) {
		t.Errorf("a damaged archive was restored: %v", err)
	}
}

// What is salvaged is no latest, moves none, is restored by its id only, and stays.
func TestSalvage(t *testing.T) {
	x, r := newPrints(t)
	good, err := x.backup(x.sealing(r))
	if err != nil {
		t.Fatal(err)
	}
	r.gate, r.index = observer.ErrNotFit, 9
	if _, err := x.backup(x.sealing(r)); !errors.Is(err, observer.ErrNotFit) {
		t.Fatal(err)
	}
	sum, err := x.backup(func(b *Backup) { x.sealing(r)(b); b.Salvage = true })
	if err != nil || sum.Outcome != "salvaged" || !strings.HasPrefix(sum.Line(), "SALVAGED ") {
		t.Fatalf("%+v, %v", sum, err)
	}
	latest, err := x.catalog.Latest(t.Context())
	if err != nil || latest.ID != good.ID {
		t.Errorf("the latest is %s, %v", latest.ID, err)
	}
	b, err := x.catalog.Select(t.Context(), sum.ID)
	if err != nil || b.Status != uploader.StatusSalvage {
		t.Errorf("%s, %v", b.Status, err)
	}
	plan, err := x.catalog.PlanExpire(t.Context(), uploader.Policy{Last: 1}, time.Now().Add(10_000*time.Hour))
	if err != nil || slices.ContainsFunc(plan, func(e uploader.Expiry) bool { return e.ID == sum.ID }) {
		t.Errorf("%+v, %v", plan, err)
	}
	restore := &Restore{Store: x.store, Catalog: x.catalog, Selector: sum.ID, Into: filepath.Join(fastDir(t), "into"), Events: x.told, Now: time.Now, Unseal: unmask}
	if _, err := restore.Run(t.Context()); err != nil || !x.told.has("is a salvage") {
		t.Error(err)
	}
}

// A dump is brought back from a directory of the workdir, of which nothing stays.
func TestBring(t *testing.T) {
	x, r := newPrints(t)
	sum, err := x.backup(x.sealing(r))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		brings  error
		damage  string
		confirm error
		kind    string
		want    error
	}{
		"brought back": {kind: "etcd"},
		"it breaks":    {kind: "etcd", brings: broken, want: broken},
		"not sound":    {kind: "etcd", damage: "flipped", want: ErrProof},
		"not wanted":   {kind: "etcd", confirm: ErrNotConfirmed, want: ErrNotConfirmed},
		"another kind": {kind: "consul", want: observer.ErrNotFit},
	} {
		t.Run(name, func(t *testing.T) {
			brought := false
			r.damage = c.damage
			r.brings = func(task observer.RestoreTask) error {
				got, err := os.ReadFile(filepath.Join(task.Dir, observer.DumpName))
				brought = bytes.Equal(got, r.dump) && task.Position.Index == 7
				return errors.Join(err, c.brings)
			}
			b := &Bring{
				Restore: Restore{Store: x.store, Catalog: x.catalog, Selector: sum.ID, Events: x.told, Now: time.Now, Unseal: unmask},
				Replica: r, Kind: c.kind, Workdir: x.workdir, Confirm: func(string, string) error { return c.confirm },
			}
			out, err := b.Run(t.Context())
			if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) || brought != (c.want == nil || c.brings != nil) {
				t.Fatalf("%+v, brought %t, %v", out, brought, err)
			}
			if err == nil && !slices.Equal(out.Next, []string{"start all"}) {
				t.Errorf("%+v", out)
			}
			if found := plain(t, x.workdir.Dir); len(found) > 0 {
				t.Errorf("in the plain: %q", found)
			}
		})
	}
}
