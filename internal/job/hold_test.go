package job

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/s3fake"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// stubborn is a replica whose stop and start do not go as they should. Between
// them a request to the bucket is a broken promise.
type stubborn struct {
	*still
	down     *atomic.Bool
	holds    error         // of Hold; with ErrDown and ErrStopping it stands still then
	capture  error         // of Capture
	panics   bool          // in Capture
	lasts    time.Duration // the capture
	refusals int           // so many starts fail; negative: all
	lost     bool          // the guard has started it
	asked    func()        // called with each start; nil: nothing
	starts   int
}

var errStart = errors.New("no more processes")

func (r *stubborn) Hold(ctx context.Context, st *snapshot.Stage) (func(context.Context) error, error) {
	if r.holds != nil {
		r.down.Store(errors.Is(r.holds, observer.ErrDown) || errors.Is(r.holds, observer.ErrStopping))
		return nil, r.holds
	}
	if _, err := r.still.Hold(ctx, st); err != nil {
		return nil, err
	}
	r.down.Store(true)
	return func(context.Context) error {
		r.starts++
		if r.asked != nil {
			r.asked()
		}
		if r.refusals < 0 || r.starts <= r.refusals {
			return fmt.Errorf("%w: %w", observer.ErrDown, errStart)
		}
		r.down.Store(false)
		if r.lost {
			return observer.ErrLost
		}
		return nil
	}, nil
}

func (r *stubborn) Capture(ctx context.Context, st *snapshot.Stage) error {
	time.Sleep(r.lasts)
	if r.panics {
		panic("out of luck")
	}
	return errors.Join(r.capture, r.still.Capture(ctx, st))
}

// watched is a bucket that knows whether the replica stands still.
type watched struct {
	*s3fake.Server
	down  *atomic.Bool
	calls []string // while it did
}

func (s *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.down.Load() {
		s.calls = append(s.calls, r.Method+" "+r.URL.Path)
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// While the replica stands still nothing is asked of the bucket, whatever fails:
// it is started first. Where it cannot be, what the run has in the bucket ends by
// itself.
func TestNothingIsAskedOfTheBucketWhileTheReplicaStandsStill(t *testing.T) {
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(k, v)
	}
	broken := errors.New("a bad sector")
	for _, c := range []struct {
		name    string
		replica stubborn
		stop    bool // ctrl-C at the second start
		is, not error
		starts  int
		within  time.Duration // of the hold's end
		status  uploader.Status
	}{
		{name: "a hold that takes minutes", replica: stubborn{lasts: 9 * time.Minute}, starts: 1, status: uploader.StatusReady},
		{name: "a start that fails at first", replica: stubborn{refusals: 5}, starts: 6, within: time.Minute, status: uploader.StatusReady},
		{
			name: "a capture and then a start that fail", replica: stubborn{capture: broken, refusals: 3},
			is: broken, not: ErrStart, starts: 4, within: time.Minute, status: uploader.StatusError,
		},
		{
			name: "no start works", replica: stubborn{refusals: -1}, is: ErrStart,
			within: 11 * time.Minute, status: uploader.StatusBackingUp,
		},
		{
			name: "nothing works", replica: stubborn{capture: broken, lasts: 9 * time.Minute, refusals: -1}, is: ErrStart,
			within: 11 * time.Minute, status: uploader.StatusBackingUp,
		},
		{
			name: "a hold that outlasts its deadline", replica: stubborn{lasts: time.Hour, refusals: -1}, is: ErrStart,
			starts: 1, within: time.Hour + time.Minute, status: uploader.StatusBackingUp,
		},
		{
			name: "interrupted while it is started", replica: stubborn{refusals: -1}, stop: true, is: ErrStart,
			starts: 2, within: time.Minute, status: uploader.StatusBackingUp,
		},
		{
			name: "a panic", replica: stubborn{panics: true, refusals: -1}, is: errPanic,
			within: 11 * time.Minute, status: uploader.StatusBackingUp,
		},
		{name: "a stop that is refused", replica: stubborn{holds: broken}, is: broken, not: ErrStart, status: uploader.StatusError},
		{
			name: "a stop that fails, and then the start", replica: stubborn{holds: fmt.Errorf("%w: %w", observer.ErrDown, broken)},
			is: ErrStart, status: uploader.StatusBackingUp,
		},
		{
			name: "a stop that takes too long", replica: stubborn{holds: fmt.Errorf("%w: %w", broken, observer.ErrStopping)},
			is: broken, not: ErrStart, status: uploader.StatusBackingUp,
		},
		{
			name: "a hold that was lost", replica: stubborn{lost: true}, is: observer.ErrLost, not: ErrStart,
			starts: 1, status: uploader.StatusError,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			home, work := fastDir(t), fastDir(t)
			if err := os.WriteFile(filepath.Join(home, "1.ldb"), make([]byte, 5000), 0o600); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				r := c.replica
				r.still, r.down = &still{home: home, height: 10}, new(atomic.Bool)
				ctx, interrupt := context.WithCancel(t.Context())
				defer interrupt()
				r.asked = func() {
					if c.stop && r.starts == 2 {
						interrupt()
					}
				}
				bucket := &watched{Server: s3fake.New("bucket", s3fake.Quirks{}), down: r.down}
				store, err := uploader.Open(ctx, uploader.Config{URL: "s3://bucket/eddy", Region: "us-east-1", Endpoint: "http://store.invalid", Transport: bucket})
				if err != nil {
					t.Fatal(err)
				}
				told := &told{}
				run := func(ctx context.Context) (sum Summary, err error) {
					defer func() {
						if recover() != nil {
							err = errPanic
						}
					}()
					b := &Backup{
						Replica: &r, Store: store, Catalog: uploader.NewCatalog(store, "c"), Workdir: Workdir{Dir: work}, Cluster: "c",
						Label: "auto", Version: "v1", Host: "h", Events: told, Reason: func(error) string { return ReasonOther }, Now: time.Now,
					}
					return b.Run(ctx)
				}
				begun := time.Now()
				sum, err := run(ctx)
				took := time.Since(begun)
				if len(bucket.calls) > 0 {
					t.Errorf("asked of the bucket while the replica stood still: %q", bucket.calls)
				}
				if !errors.Is(err, c.is) || c.not != nil && errors.Is(err, c.not) || err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("the run ended with %v", err)
				}
				if c.starts != 0 && r.starts != c.starts || c.within != 0 && took > c.within {
					t.Errorf("%d starts in %v", r.starts, took)
				}
				if down := c.status == uploader.StatusBackingUp; r.down.Load() != down {
					t.Errorf("the replica stands still: %t", !down)
				}

				// What the run has left ends by itself.
				r.down.Store(false)
				catalog := uploader.NewCatalog(store, "c")
				only := func(want uploader.Status) {
					t.Helper()
					if all, err := catalog.List(t.Context()); err != nil || len(all) != 1 || all[0].Status != want {
						t.Errorf("in the bucket: %+v, %v; want %s", all, err, want)
					}
				}
				only(c.status)
				if c.status == uploader.StatusReady {
					return
				}
				last, lerr := Workdir{Dir: work}.Last()
				if lerr != nil || c.is != errPanic && (last.LastError != err.Error() || last.Open) {
					t.Errorf("%+v, %v", last, lerr)
				}
				if c.status == uploader.StatusBackingUp {
					time.Sleep(61 * time.Minute)
					only(uploader.StatusAbandoned)
				}
				r = stubborn{still: r.still, down: r.down}
				if sum, err = run(t.Context()); done(err) != nil || sum.Outcome != "ready" {
					t.Errorf("the next run: %+v, %v", sum, err)
				}
				l, err := catalog.Lease(t.Context(), uploader.LeaseOptions{Nonce: "another"})
				if err != nil {
					t.Fatalf("the lease is still somebody's: %v", err)
				}
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
				for _, dir := range []string{work, filepath.Join(home, snapshot.StageDir)} {
					names, err := os.ReadDir(dir)
					if err != nil {
						t.Fatal(err)
					}
					for _, n := range names {
						if n.Name() != "last.json" && n.Name() != "store.json" && !strings.HasSuffix(n.Name(), ".lock") {
							t.Errorf("left: %s", filepath.Join(dir, n.Name()))
						}
					}
				}
			})
		})
	}
}

var errPanic = errors.New("it panicked")

// done takes warnings for success.
func done(err error) error {
	if errors.Is(err, ErrWarnings) {
		return nil
	}
	return err
}

// The guard of a node that does not start has the hold lock. That is no run of
// another eddy to stand back for: the daemon tries again soon.
func TestDaemonTriesAgainWhileTheNodeStandsStill(t *testing.T) {
	for _, c := range []struct {
		err  error
		runs int64 // within the hour
	}{
		{fmt.Errorf("held: %w", fsx.ErrLocked), 1},
		{observer.Mark(observer.ErrDown, fmt.Errorf("held: %w", fsx.ErrLocked)), 4},
	} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			d, runs := daemon(t, dir, func(int64) error { return c.err })
			runFor(t, d, 59*time.Minute)
			if runs.Load() != c.runs {
				t.Errorf("%v: %d runs, want %d", c.err, runs.Load(), c.runs)
			}
		})
	}
}
