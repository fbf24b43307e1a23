package job

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/s3fake"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// unit is the size of a file on the fake, which takes small parts.
const unit = 512 << 10

// onBucket puts a bench before a bucket: 15 files of a size, in four volumes.
func onBucket(t *testing.T, s uploader.Store, size int) *bench {
	t.Helper()
	home := fastDir(t)
	for i := range 15 {
		fill(t, filepath.Join(home, string(rune('a'+i))+".ldb"), size)
	}
	store := &breaking{Store: s, after: -1}
	return &bench{
		t: t, replica: &still{home: home, height: 10}, store: store, workdir: Workdir{Dir: fastDir(t)},
		catalog: uploader.NewCatalog(store, "c"), told: &told{}, now: time.Now(), size: size,
	}
}

func fill(t *testing.T, name string, n int) {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// fakeBucket is a bucket that does what S3 does, but for its quirks.
func fakeBucket(t *testing.T, q s3fake.Quirks) (uploader.Store, *s3fake.Server) {
	t.Helper()
	q.SmallParts = true
	server := s3fake.New("bucket", q)
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	s, err := uploader.Open(t.Context(), uploader.Config{
		URL: "s3://bucket/eddy", Region: "us-east-1", Endpoint: web.URL, GiveUp: time.Second, PartSize: unit * 4 / 5, Transport: transport(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, server
}

func transport(t *testing.T) http.RoundTripper {
	wire := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(wire.CloseIdleConnections)
	return wire
}

func (x *bench) inFour(b *Backup) { b.VolumeSize = int64(4 * x.size) }

// losing makes an attempt that ends behind two of four volumes, and loses all that
// the host knows of it.
func (x *bench) losing() (id string) {
	x.t.Helper()
	x.store.err = errors.New("the line is dead")
	x.store.each = nil
	n := 0
	x.store.onPut = func(string) error {
		if n++; n > 2 {
			return x.store.err
		}
		return nil
	}
	sum, err := x.backup(x.inFour)
	if !errors.Is(err, x.store.err) {
		x.t.Fatal(err)
	}
	x.store.onPut = nil
	x.forgets()
	return sum.ID
}

// forgets loses workdir and stage.
func (x *bench) forgets() {
	x.t.Helper()
	for _, dir := range []string{x.workdir.Dir, filepath.Join(x.replica.home, snapshot.StageDir)} {
		if err := os.RemoveAll(dir); err != nil {
			x.t.Fatal(err)
		}
	}
	x.told.lines = nil
}

// change writes some of the files anew.
func (x *bench) change(names ...string) {
	x.t.Helper()
	for _, n := range names {
		fill(x.t, filepath.Join(x.replica.home, n), x.size)
	}
}

// extracted compares a restored backup with the replica's files, to the byte.
func (x *bench) extracted(id string) {
	x.t.Helper()
	r := &Restore{
		Store: x.store, Catalog: x.catalog, Selector: id, Into: filepath.Join(fastDir(x.t), "into"), Events: x.told, Now: time.Now,
	}
	if _, err := r.Run(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(x.replica.home, "*.ldb"))
	if err != nil || len(names) != 15 {
		x.t.Fatal(names, err)
	}
	for _, n := range names {
		want, err := os.ReadFile(n)
		if err != nil {
			x.t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(r.Into, filepath.Base(n))); err != nil || !bytes.Equal(got, want) {
			x.t.Errorf("%s was restored otherwise, %v", filepath.Base(n), err)
		}
	}
}

// served makes the backup behind an attempt that was lost, with two files changed,
// and returns its manifest.
func (x *bench) served(lost string) *uploader.Manifest {
	x.t.Helper()
	x.change("b.ldb", "n.ldb")
	sum, err := x.backup(x.inFour)
	if err != nil || sum.Outcome != "ready" || sum.ID == lost {
		x.t.Fatalf("%+v, %v", sum, err)
	}
	b, err := x.catalog.Select(x.t.Context(), sum.ID)
	if err != nil {
		x.t.Fatal(err)
	}
	m := b.Manifest
	r := m.Runs[0]
	if m.Sizes.Sent+m.Sizes.Copied != m.Sizes.Stored || r.Sent != m.Sizes.Sent || r.Copied != m.Sizes.Copied || r.Copied != sum.CopiedBytes {
		x.t.Errorf("runs %+v, sizes %+v, summary %+v", m.Runs, m.Sizes, sum)
	}
	return m
}

// wipe deletes all that the store has of an attempt: what copied from it must be
// whole without.
func (x *bench) wipe(id string) {
	x.t.Helper()
	for o, err := range x.store.List(x.t.Context(), "c/data/"+id+"/", "") {
		if err == nil {
			err = x.store.Delete(x.t.Context(), o.Key)
		}
		if err != nil {
			x.t.Fatal(err)
		}
	}
}

// testServesTheNext: an attempt that ended behind two of four volumes, of which
// the host knows nothing any more, serves the next one.
func testServesTheNext(t *testing.T, x *bench) *uploader.Manifest {
	t.Helper()
	lost := x.losing()
	m := x.served(lost)
	// Two of four volumes stand there, 8 of 15 files. One of them has changed, and
	// each border costs a part at most.
	if want := int64(5 * x.size); m.Sizes.Copied < want || m.Sizes.Sent > m.Sizes.Source-want || len(m.Volumes) != 4 {
		t.Errorf("sizes %+v", m.Sizes)
	}
	x.wipe(lost)
	x.extracted(m.ID)
	x.leavings()
	t.Logf("sizes %+v, stored %s", m.Sizes, m.Stored)
	return m
}

func TestLostAttemptServesTheNext(t *testing.T) {
	for name, q := range map[string]s3fake.Quirks{"as S3": {}, "as minio": {Copies: s3fake.CopiesRefused}, "as versitygw": {Copies: s3fake.CopiesWholeSum}} {
		t.Run(name, func(t *testing.T) {
			s, _ := fakeBucket(t, q)
			m := testServesTheNext(t, onBucket(t, s, unit))
			if want := map[bool]string{true: "checksum", false: "sample"}[q.Copies == 0]; m.Stored != want {
				t.Errorf("stored by %q, want %q", m.Stored, want)
			}
		})
	}
}

// A source that is deleted while it is copied from costs its bytes, nothing else.
func TestSourceGoesWhileItIsCopied(t *testing.T) {
	s, server := fakeBucket(t, s3fake.Quirks{})
	x := onBucket(t, s, unit)
	lost := x.losing()
	n := 0
	server.Fault = func(c s3fake.Call) *s3fake.Reply {
		if c.Op == "UploadPartCopy" && !strings.Contains(c.Key, "/probe/") {
			if n++; n == 3 {
				server.Remove("eddy/c/data/" + lost + "/vol-0000.tar.zst")
			}
		}
		return nil
	}
	m := x.served(lost)
	if m.Sizes.Copied == 0 || m.Sizes.Copied > 6*unit {
		t.Errorf("sizes %+v", m.Sizes)
	}
	x.extracted(m.ID)
	x.leavings()
}

// What has rotted in the bucket becomes part of no backup: it is sent, and the
// run says why.
func TestRottenSource(t *testing.T) {
	s, server := fakeBucket(t, s3fake.Quirks{})
	x := onBucket(t, s, unit)
	lost := x.losing()
	server.Rot("eddy/c/data/"+lost+"/vol-0001.tar.zst", 5*unit/2)
	x.change("b.ldb")
	sum, err := x.backup(x.inFour)
	if !errors.Is(err, ErrWarnings) || sum.Outcome != "ready" || !x.told.has("is not copied any more") {
		t.Fatalf("%+v, %v, %q", sum, err, x.told.lines)
	}
	x.extracted(sum.ID)
	x.leavings()
}

// An attempt that is known and cannot be gone on with is given up, and serves the
// next one as well.
func TestGivenUpAttemptServesTheNext(t *testing.T) {
	s, _ := fakeBucket(t, s3fake.Quirks{})
	x := onBucket(t, s, unit)
	n := 0
	x.store.err = errors.New("the line is dead")
	x.store.onPut = func(string) error {
		if n++; n > 2 {
			return x.store.err
		}
		return nil
	}
	first, err := x.backup(x.inFour)
	if !errors.Is(err, x.store.err) {
		t.Fatal(err)
	}
	x.store.onPut = nil
	x.now = x.now.Add(attemptKept + time.Hour)
	sum, err := x.backup(x.inFour)
	if !errors.Is(err, ErrWarnings) || sum.Outcome != "ready" || sum.ID == first.ID || sum.CopiedBytes < 5*unit || sum.Resumed {
		t.Fatalf("%+v, %v", sum, err)
	}
	// From then on it is of no use.
	plan, err := x.catalog.PlanExpire(t.Context(), uploader.Policy{Last: 3}, time.Now())
	if err != nil || len(plan) != 1 || plan[0].ID != first.ID {
		t.Errorf("%+v would go, %v", plan, err)
	}
	x.wipe(first.ID)
	x.extracted(sum.ID)
	x.leavings()
}

// What was made with another level, is too old, or is asked for afresh is not
// copied; nor is anything from an eddy that did not say what it has stored.
func TestWhatIsNotCopied(t *testing.T) {
	s, server := fakeBucket(t, s3fake.Quirks{})
	x := onBucket(t, s, unit)
	lost := x.losing()
	key := "c/runs/" + lost + ".json"
	record, _, err := s.GetSmall(t.Context(), key, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	put := func(change func(map[string]any)) {
		var r map[string]any
		if err := json.Unmarshal(record, &r); err != nil {
			t.Fatal(err)
		}
		change(r)
		b, err := json.Marshal(r)
		if err == nil {
			_, err = s.PutSmall(t.Context(), key, b, "application/json", uploader.Condition{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b := &Backup{Store: s, Catalog: x.catalog, Events: x.told, Now: func() time.Time { return x.now }}
	if _, err := x.catalog.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	look := func(id string) int {
		w, err := b.earlierWork(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if w == nil {
			return 0
		}
		return len(w.objects)
	}
	same := func(map[string]any) {}
	for name, c := range map[string]struct {
		record func(map[string]any)
		b      func()
		id     string
		want   int
	}{
		"all of it":            {same, func() {}, "", 2},
		"its own":              {same, func() {}, lost, 0},
		"another level":        {same, func() { b.Level = 3 }, "", 0},
		"another encoder":      {func(r map[string]any) { r["encoder"] = "klauspost/compress/zstd v0" }, func() {}, "", 0},
		"an older eddy":        {func(r map[string]any) { delete(r, "volumes") }, func() {}, "", 0},
		"afresh":               {same, func() { b.Fresh = true }, "", 0},
		"a month later":        {same, func() { x.now = x.now.Add(31 * 24 * time.Hour) }, "", 0},
		"a clock that was off": {same, func() { x.now = x.now.Add(-24 * time.Hour) }, "", 0},
		"another index":        {func(r map[string]any) { r["volumes"].([]any)[0].(map[string]any)["index_sha256"] = "00" }, func() {}, "", 1},
		"another object":       {func(r map[string]any) { r["volumes"].([]any)[1].(map[string]any)["etag"] = "00" }, func() {}, "", 1},
		"another checksum":     {func(r map[string]any) { r["volumes"].([]any)[1].(map[string]any)["crc64nvme"] = "AAAAAAAAAAA=" }, func() {}, "", 1},
		"a volume that is gone": {
			func(r map[string]any) { r["volumes"].([]any)[1].(map[string]any)["name"] = "vol-0007.tar.zst" }, func() {}, "", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			put(c.record)
			now := x.now
			c.b()
			if got := look(c.id); got != c.want {
				t.Errorf("%d volumes, want %d", got, c.want)
			}
			x.now, b.Level, b.Fresh = now, 0, false
		})
	}
	if slices.ContainsFunc(server.Keys(), func(k string) bool { return strings.Contains(k, "/probe/") }) {
		t.Error("the probe's objects are left")
	}
}
