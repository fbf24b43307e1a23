package uploader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/s3fake"
)

// begin leaves an unfinished upload at a key and returns its id.
func begin(t testing.TB, s *s3Store, key string) string {
	t.Helper()
	u := s.newUpload(PutRequest{Key: key})
	if err := u.create(t.Context()); err != nil {
		t.Fatal(err)
	}
	return u.id
}

// Of all that nobody has finished only that goes which is surely ours and surely
// dead.
func TestSweepUploads(t *testing.T) {
	for name, q := range map[string]s3fake.Quirks{"by prefix": {}, "by key": {UploadsByKey: true}} {
		t.Run(name, func(t *testing.T) {
			s, server := fake(t, q)
			c := NewCatalog(s, "gaia")
			caps, err := c.Probe(t.Context())
			if want := map[bool]Answer{false: Kept, true: Ignored}[q.UploadsByKey]; err != nil || caps.ListUploads != want || !caps.Sweeps() {
				t.Fatalf("lists: %q, %v; want %q", caps.ListUploads, err, want)
			}
			dead, alive, resumed, failed := NewID(t0, "dead"), NewID(t0, "alive"), NewID(t0, "mine"), NewID(t0, "failed")
			gone := []string{
				begin(t, s, c.ObjectKey(dead, VolumeName(0))), begin(t, s, c.ObjectKey(dead, VolumeName(1))),
				begin(t, s, c.ObjectKey(failed, VolumeName(0))), begin(t, s, c.ObjectKey(dead, VolumeName(2)+".age")),
				begin(t, s, c.probeUnder()+"large"), begin(t, s, c.probeUnder()+"copy"),
			}
			mine := begin(t, s, c.ObjectKey(resumed, VolumeName(0)))
			kept := []string{
				mine,
				begin(t, s, c.ObjectKey(alive, VolumeName(0))),
				begin(t, s, c.ObjectKey(dead, "vol-0.tar.zst")), begin(t, s, c.ObjectKey(dead, "grades/x")),
				begin(t, s, "gaia/data/no-id/vol-0000.tar.zst"), begin(t, s, "gaia/probe/large/x"), begin(t, s, "gaia/other"),
				begin(t, s, "gaia2/data/"+dead+"/vol-0000.tar.zst"),
			}
			for i := range 1100 { // more than a page of somebody else's
				kept = append(kept, begin(t, s, fmt.Sprintf("a/%d", i)))
			}
			server.Age(25 * time.Hour)
			kept = append(kept, begin(t, s, c.ObjectKey(dead, VolumeName(3)))) // begun a moment ago
			if err := c.StartRun(t.Context(), Run{ID: alive, Host: "h"}); err != nil {
				t.Fatal(err)
			}
			if err := c.FailRun(t.Context(), failed, errors.New("x")); err != nil {
				t.Fatal(err)
			}
			n, err := c.SweepUploads(t.Context(), func(u Upload) bool { return u.ID == mine })
			if err != nil || n != len(gone) {
				t.Errorf("%d swept, %v; want %d", n, err, len(gone))
			}
			left := map[string]bool{}
			for u, err := range s.Uploads(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				left[u.ID] = true
			}
			for _, id := range gone {
				if left[id] {
					t.Errorf("%s is left", id)
				}
			}
			for _, id := range kept {
				if !left[id] {
					t.Errorf("%s is gone", id)
				}
			}
			if n, err := c.SweepUploads(t.Context(), func(u Upload) bool { return u.ID == mine }); n != 0 || err != nil {
				t.Errorf("a second sweep: %d, %v", n, err)
			}
		})
	}
}

// A host whose clock is years ahead sweeps nothing that is young by the store's.
func TestSweepGoesByTheStoresClock(t *testing.T) {
	s, server := fake(t, s3fake.Quirks{})
	c := NewCatalog(s, "gaia")
	begin(t, s, c.ObjectKey(NewID(t0, "young"), VolumeName(0)))
	mustPutSmall(t, s, c.leaseKey(), "{}", Condition{})
	server.Age(1000 * time.Hour) // to this store it is long ago
	if n, err := c.SweepUploads(t.Context(), func(Upload) bool { return false }); n != 0 || err != nil {
		t.Errorf("%d swept, %v", n, err)
	}
}

func TestSweepOfAStoreThatListsNone(t *testing.T) {
	s, _ := fake(t, s3fake.Quirks{Refuses: lacks("ListMultipartUploads")})
	c := NewCatalog(s, "gaia")
	caps, err := c.Probe(t.Context())
	if err != nil || caps.ListUploads != Refused || caps.Sweeps() {
		t.Fatalf("%+v, %v", caps, err)
	}
	if _, err := c.SweepUploads(t.Context(), func(Upload) bool { return false }); !errors.Is(err, ErrRefused) {
		t.Errorf("asked in spite of it: %v", err)
	}
}

// A directory has such leavings, too.
func TestSweepOfADirectory(t *testing.T) {
	s := newFileStore(t.TempDir())
	c := NewCatalog(s, "gaia")
	r := request(t, c.ObjectKey(NewID(t0, "dead"), VolumeName(0)), nil)
	r.Pieces = anew(func(yield func(Piece, error) bool) { yield(Piece{}, errProducer) })
	if _, err := s.Put(t.Context(), r); !errors.Is(err, errProducer) {
		t.Fatal(err)
	}
	for u, err := range s.Uploads(t.Context(), "gaia/") {
		if err != nil || !JournalOf(r.Journal, u) || JournalOf(filepath.Join(t.TempDir(), "none"), u) {
			t.Errorf("%+v, %v: it is in the journal", u, err)
		}
	}
	for i, ahead := range []time.Duration{time.Hour, 30 * time.Hour} {
		mustPutSmall(t, s, c.leaseKey(), "{}", Condition{})
		p, err := s.path("touch", c.leaseKey())
		if err == nil {
			err = os.Chtimes(p, time.Time{}, time.Now().Add(ahead))
		}
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.SweepUploads(t.Context(), func(Upload) bool { return false })
		if err != nil || n != i {
			t.Errorf("after %s: %d swept, %v", ahead, n, err)
		}
	}
	for u := range s.Uploads(t.Context(), "") {
		t.Errorf("left: %v", u)
	}
}
