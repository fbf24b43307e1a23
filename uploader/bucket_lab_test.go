//go:build lab

package uploader

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Answers that are wrong, though the store means well.
func TestAnswersThatLie(t *testing.T) {
	wrongETag := func(next http.RoundTripper, r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil {
			resp.Header.Set("ETag", `"00000000000000000000000000000000"`)
		}
		return resp, err
	}
	// The store says that it has the part, and never saw it.
	forget := func(_ http.RoundTripper, r *http.Request) (*http.Response, error) {
		resp, err := reply200("")(nil, r)
		resp.Header.Set("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
		return resp, err
	}
	for name, sc := range map[string]script{
		"a part with another ETag":                {"part 2": {wrongETag}},
		"a part that was acknowledged and is not": {"part 1": {forget}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := troubled(t, sc)
			r := request(t, "vol", content(9, 11<<20), 1<<20)
			_, err := s.Put(t.Context(), r)
			if !errors.Is(err, ErrRefused) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
				t.Errorf("%v; want an error that says so", err)
			}
			if _, err := s.Stat(t.Context(), "vol"); !errors.Is(err, ErrNotFound) {
				t.Errorf("an object is there: %v", err)
			}
			// The next run goes on with it, or begins anew, and is done.
			r.Pieces = request(t, "vol", content(9, 11<<20), 1<<20).Pieces
			o, err := s.Put(t.Context(), r)
			if errors.Is(err, ErrRefused) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound) {
				if err := s.Abandon(t.Context(), r.Journal); err != nil {
					t.Fatal(err)
				}
				o, err = s.Put(t.Context(), r)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readRange(t, s, "vol", o.ETag, 0, -1); err != nil || !bytes.Equal(got, content(9, 11<<20)) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
}

// A store that takes two requests at a time and answers 503 to more.
func TestAStoreWithALimitOfTwo(t *testing.T) {
	var busy, refused atomic.Int32
	s := lab(t, func(next http.RoundTripper) http.RoundTripper {
		return wire(func(r *http.Request) (*http.Response, error) {
			defer busy.Add(-1)
			if busy.Add(1) > 2 {
				refused.Add(1)
				return reply(503, "SlowDown")(next, r)
			}
			time.Sleep(20 * time.Millisecond)
			return next.RoundTrip(r)
		})
	}, func(c *Config) { c.PartSize, c.Concurrency = minPart, 8 })
	s.wait = 20 * time.Millisecond
	b := content(3, 12*minPart)
	o := mustPut(t, s, "vol", b)
	if refused.Load() == 0 {
		t.Error("nothing was refused: this tests nothing")
	}
	if got, err := readRange(t, s, "vol", o.ETag, 0, -1); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

// ownBucket is a bucket that nobody else uses.
func ownBucket(t *testing.T, lock bool) *s3Store {
	t.Helper()
	name := "own-" + strings.ToLower(rand.Text()[:12])
	client := lab(t, nil).api.(*s3.Client)
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock}); err != nil {
		t.Fatal(err)
	}
	return lab(t, nil, func(c *Config) { c.URL = "s3://" + name + "/eddy" })
}

// On a bucket that keeps old versions, what is replaced or deleted is gone from
// every list, and a name can be used again.
func TestAVersionedBucket(t *testing.T) {
	s := ownBucket(t, false)
	_, err := s.api.(*s3.Client).PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
		Bucket: &s.bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := NewCatalog(s, "gaia")
	caps, err := c.Probe(t.Context())
	if err != nil || caps.Versioning != Kept || caps.Delete != Kept || caps.Left {
		t.Fatalf("%+v, %v", caps, err)
	}
	latestModel(t, NewCatalog(s, "model"), 5)
	old, _ := largeBackup(t, c, "old", 1)
	fresh, body := largeBackup(t, c, "new", 2)
	if err := c.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	all, err := c.List(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != fresh || !all[0].Latest {
		t.Fatalf("%+v, %v", all, err)
	}
	if got, err := readRange(t, s, c.ObjectKey(fresh, VolumeName(0)), "", 0, -1); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	mustPutSmall(t, s, "again", "1", Condition{IfAbsent: true})
	if err := s.Delete(t.Context(), "again"); err != nil {
		t.Fatal(err)
	}
	// Behind a delete marker there is nothing; versitygw takes it for something.
	_, err = s.PutSmall(t.Context(), "again", []byte("2"), "", Condition{IfAbsent: true})
	if odd := os.Getenv("EDDY_LAB_S3_SERVER") == "versitygw"; odd != errors.Is(err, ErrPrecondition) || !odd && err != nil {
		t.Errorf("behind a delete marker: %v", err)
	}
	// A lease that somebody deleted is taken all the same.
	release(t, mustLease(t, c, LeaseOptions{Nonce: "a"}))
	if err := s.Delete(t.Context(), c.leaseKey()); err != nil {
		t.Fatal(err)
	}
	release(t, mustLease(t, c, LeaseOptions{Nonce: "b"}))
}

// On a bucket with object lock and a default retention everything is written as
// elsewhere. A deletion hides an object behind a marker, and does not free it.
func TestAnObjectLockBucket(t *testing.T) {
	s := ownBucket(t, true)
	client := s.api.(*s3.Client)
	_, err := client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{
		Bucket: &s.bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{
			ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule:              &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeGovernance, Days: aws.Int32(1)}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := NewCatalog(s, "gaia")
	caps, err := c.Probe(t.Context())
	if err != nil || caps.ObjectLock != Kept {
		t.Fatalf("%+v, %v", caps, err)
	}
	old, _ := largeBackup(t, c, "old", 1)
	fresh, body := largeBackup(t, c, "new", 2)
	l := mustLease(t, c, LeaseOptions{Nonce: "n"})
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, l)
	if got, err := readRange(t, s, c.ObjectKey(fresh, VolumeName(0)), "", 0, -1); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	derr := c.Delete(t.Context(), old)
	out, err := client.ListObjectVersions(context.Background(), &s3.ListObjectVersionsInput{Bucket: &s.bucket, Prefix: s.key(c.ObjectKey(old, VolumeName(0)))})
	if err != nil || !slices.ContainsFunc(out.Versions, func(v types.ObjectVersion) bool { return aws.ToInt64(v.Size) == 11<<20 }) {
		t.Errorf("a locked volume is gone: %v; deleting it said %v", err, derr)
	}
	if derr == nil {
		if _, err := c.one(t.Context(), old); !errors.Is(err, ErrNoSuchBackup) {
			t.Errorf("deleted, and %v", err)
		}
	} else if !errors.Is(derr, ErrRefused) {
		t.Errorf("deleting what is locked: %v", derr)
	}
}

// The lease on a real server.
func TestLeaseOnARealServer(t *testing.T) {
	s := lab(t, nil)
	one := mustLease(t, NewCatalog(s, "gaia"), LeaseOptions{Holder: "one", Nonce: "1", TTL: 2 * time.Second})
	if _, err := NewCatalog(s, "gaia").Lease(t.Context(), LeaseOptions{Holder: "two", Nonce: "2"}); err == nil || !strings.Contains(err.Error(), "one works on gaia") {
		t.Errorf("the second: %v", err)
	}
	release(t, one)
	two := mustLease(t, NewCatalog(s, "gaia"), LeaseOptions{Holder: "two", Nonce: "2", TTL: 2 * time.Second})
	if err := s.Delete(t.Context(), "gaia/lease.json"); err != nil {
		t.Fatal(err)
	}
	if err := two.Check(t.Context()); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("a lease that somebody removed: %v", err)
	}
}
