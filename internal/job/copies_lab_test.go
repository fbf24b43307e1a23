//go:build lab

package job

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/uploader"
)

// overheard is a transport that is asked before each request.
type overheard struct {
	http.RoundTripper
	before func(*http.Request)
}

func (a *overheard) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.before != nil {
		a.before(r)
	}
	return a.RoundTripper.RoundTrip(r)
}

// labBucket opens the real S3 server that the environment names.
func labBucket(t *testing.T) (uploader.Store, *overheard) {
	t.Helper()
	env := func(name string) string {
		v := os.Getenv(name)
		if v == "" {
			t.Fatalf("%s is not set: run these tests by `make test`", name)
		}
		return v
	}
	env("AWS_ACCESS_KEY_ID")
	wire := &overheard{RoundTripper: transport(t)}
	s, err := uploader.Open(t.Context(), uploader.Config{
		URL: "s3://" + env("EDDY_LAB_S3_BUCKET") + "/copies-" + rand.Text(), Region: env("AWS_REGION"), Endpoint: env("EDDY_LAB_S3_ENDPOINT"), Transport: wire,
		GiveUp: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, wire
}

// On real servers, with parts and files of their real sizes. Neither keeps the
// checksum of a part that is copied into an upload with one, so that volumes with
// copied parts are uploaded without: versitygw then makes its own of the whole,
// minio has none, and parts are read back.
func TestLabLostAttemptServesTheNext(t *testing.T) {
	s, _ := labBucket(t)
	m := testServesTheNext(t, onBucket(t, s, 10<<20))
	want := "checksum"
	if os.Getenv("EDDY_LAB_S3_SERVER") == "minio" {
		want = "sample"
	}
	if m.Stored != want {
		t.Errorf("stored by %q, want %q", m.Stored, want)
	}
}

// The source is deleted between two copies.
func TestLabSourceGoes(t *testing.T) {
	s, wire := labBucket(t)
	x := onBucket(t, s, 10<<20)
	lost := x.losing()
	var copies atomic.Int32
	wire.before = func(r *http.Request) {
		if r.Header.Get("x-amz-copy-source") != "" && !strings.Contains(r.URL.Path, "/probe/") && copies.Add(1) == 3 {
			if err := s.Delete(t.Context(), x.catalog.ObjectKey(lost, uploader.VolumeName(0))); err != nil {
				t.Error(err)
			}
		}
	}
	m := x.served(lost)
	if m.Sizes.Copied == 0 || m.Sizes.Copied >= 64<<20 {
		t.Errorf("sizes %+v by %d copies", m.Sizes, copies.Load())
	}
	x.extracted(m.ID)
	x.leavings()
}

// A bit flips on the server's disk. versitygw copies it, and its checksum of the
// whole tells; minio hashes what it reads and refuses.
func TestLabRottenSource(t *testing.T) {
	s, _ := labBucket(t)
	x := onBucket(t, s, 10<<20)
	lost := x.losing()
	var name string
	var most int64
	err := filepath.WalkDir(os.Getenv("EDDY_LAB_S3_DATA"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(p, lost) || !strings.Contains(p, uploader.VolumeName(1)) {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() > most {
			name, most = p, st.Size()
		}
		return err
	})
	if err != nil || name == "" {
		t.Fatal(name, err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, most/2)
	if b[0] ^= 1; err == nil {
		_, err = f.WriteAt(b, most/2)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	sum, err := x.backup(x.inFour)
	if err != nil && !errors.Is(err, ErrWarnings) || sum.Outcome != "ready" {
		t.Fatalf("%+v, %v", sum, err)
	}
	t.Logf("%s in %s: %v; %d bytes copied, %q", uploader.VolumeName(1), name, err, sum.CopiedBytes, x.told.lines)
	x.extracted(sum.ID)
	x.leavings()
}
