//go:build crash

package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing/synctest"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/s3fake"
)

// variant says what becomes of the effect at which a run is disturbed.
type variant string

const (
	before  variant = "before"  // the process dies, and it was not done
	after   variant = "after"   // it was done, and the process dies
	torn    variant = "torn"    // half of it was done and the process dies; what has no halves was done, but its answer is lost
	refused variant = "refused" // not done, with an error; the process lives
	power   variant = "power"   // not done; the machine stops, and all that was not made durable is lost
)

var (
	errDead = errors.New("this process is dead")
	errLost = errors.New("the connection broke off")
)

// stop names an effect and what becomes of it. The zero value disturbs nothing.
type stop struct {
	effect string // kind, object and ordinal in the run
	how    variant
}

func (s stop) String() string { return fmt.Sprintf("%s %q", s.how, s.effect) }

// image is a process: all that it changes passes here.
type image struct {
	w      *world
	stop   stop
	chance *rand.Rand // seeded: decides the order of requests, and when to die
	dieAt  int        // seeded: the number of the effect; 0: never

	cancel context.CancelCauseFunc
	wake   chan struct{} // a request has come
	quit   chan struct{}
	idle   sync.WaitGroup

	mu      sync.Mutex // one effect at a time
	count   map[string]int
	seen    []string // names of the effects, in order
	dead    bool
	waiting []*arrival
	sent    int64 // bytes of parts that arrived whole
}

// arrival is a request on its way.
type arrival struct {
	name, object string
	call         s3fake.Call
	req          *http.Request
	body         []byte
	done         chan struct{}
	resp         *http.Response
	err          error
}

// start makes a process. Its end is exit.
func (w *world) start(ctx context.Context, s stop) (context.Context, *image) {
	im := &image{w: w, stop: s, wake: make(chan struct{}, 1), quit: make(chan struct{}), count: map[string]int{}}
	ctx, im.cancel = context.WithCancelCause(ctx)
	im.idle.Go(im.serve)
	return ctx, im
}

// exit is the end of the process, whichever it was.
func (im *image) exit() {
	close(im.quit)
	im.idle.Wait()
	im.cancel(errDead)
	im.w.ended(im)
}

// die ends the process in the middle of what it does. im.mu is held.
func (im *image) die() error {
	im.dead = true
	im.cancel(errDead)
	return errDead
}

// do makes an effect, or what the plan says instead.
func (im *image) do(kind, object string, half, do func() error) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.dead {
		return errDead
	}
	if p := im.w.planted.effect; p != nil {
		do = p(im.w, kind+" "+object, do)
	}
	key := kind + " " + object
	im.count[key]++
	name := fmt.Sprintf("%s %d", key, im.count[key])
	im.seen = append(im.seen, name)
	if im.dieAt > 0 && len(im.seen) == im.dieAt {
		switch im.chance.IntN(3) {
		case 0:
			_ = do()
		case 1:
			if half != nil {
				_ = half()
			}
		}
		im.flight()
		return im.die()
	}
	if name != im.stop.effect {
		return do()
	}
	switch {
	case im.stop.how == before, im.stop.how == power:
		return im.die()
	case im.stop.how == refused && kind == "request":
		return errRefused
	case im.stop.how == refused:
		return syscall.ENOSPC
	case im.stop.how == torn && half != nil:
		_ = half() // whatever it said, nobody hears it
		return im.die()
	case im.stop.how == torn:
		_ = do()
		return errLost
	default:
		_ = do()
		return im.die()
	}
}

// flight decides about the requests that are on their way when the process dies:
// any of them may have arrived. im.mu is held.
func (im *image) flight() {
	for _, a := range im.waiting {
		if im.chance.IntN(2) == 0 {
			im.w.serve(im, a)
		}
	}
}

// fs is how the process changes files.
func (im *image) fs() fsx.FS { return fsx.FS{Effects: im} }

// Do implements fsx.Effects.
func (im *image) Do(e fsx.Effect, do func() error) error {
	object := im.w.name(e.Path)
	switch e.Kind {
	case fsx.KindSymlink:
		object = im.w.name(e.To)
	case fsx.KindRename, fsx.KindLink, fsx.KindCopy:
		object += " -> " + im.w.name(e.To)
	}
	wrap := func(f func() error) func() error {
		if f == nil {
			return nil
		}
		return func() error { return im.w.disk.change(e, f) }
	}
	return im.do(string(e.Kind), object, wrap(e.Half), wrap(do))
}

// RoundTrip implements http.RoundTripper: requests arrive one after the other,
// each when nothing else in the process can go on, in an order that does not
// depend on the machine.
func (im *image) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body.Close()
	}
	_, call := s3fake.CallOf(req)
	object := im.w.normal(call.Key)
	if m := keyForm.FindSubmatch(body); object == "" && m != nil {
		object = im.w.normal(string(m[1]))
	}
	if call.Part > 0 {
		object += fmt.Sprintf(" part %d", call.Part)
	}
	a := &arrival{name: call.Op + " " + object, object: object, call: call, req: req, body: body, done: make(chan struct{})}
	im.mu.Lock()
	if im.dead {
		im.mu.Unlock()
		return nil, errDead
	}
	im.waiting = append(im.waiting, a)
	im.mu.Unlock()
	select {
	case im.wake <- struct{}{}:
	default:
	}
	select {
	case <-a.done:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if a.resp != nil {
		a.resp.Request = req
	}
	return a.resp, a.err
}

// keyForm finds the first key of a DeleteObjects.
var keyForm = regexp.MustCompile("<Key>([^<]*)</Key>")

// serve lets the requests arrive.
func (im *image) serve() {
	for {
		synctest.Wait()
		a := im.next()
		if a == nil {
			select {
			case <-im.wake:
				continue
			case <-im.quit:
				return
			}
		}
		im.arrive(a)
		close(a.done)
	}
}

func (im *image) next() *arrival {
	im.mu.Lock()
	defer im.mu.Unlock()
	if len(im.waiting) == 0 {
		return nil
	}
	i := 0
	if im.chance != nil {
		i = im.chance.IntN(len(im.waiting))
	} else {
		for j, a := range im.waiting {
			if a.name < im.waiting[i].name {
				i = j
			}
		}
	}
	a := im.waiting[i]
	im.waiting = slices.Delete(im.waiting, i, i+1)
	return a
}

// changing are the calls that change the bucket.
var changing = []string{
	"PutObject", "DeleteObject", "DeleteObjects", "PutObjectTagging", "CreateMultipartUpload", "UploadPart", "UploadPartCopy",
	"CompleteMultipartUpload", "AbortMultipartUpload",
}

var errRefused = errors.New("403")

func (im *image) arrive(a *arrival) {
	if a.req.Context().Err() != nil {
		a.err = a.req.Context().Err()
		return
	}
	act := func() error { im.w.serve(im, a); return nil }
	if !slices.Contains(changing, a.call.Op) {
		im.mu.Lock()
		defer im.mu.Unlock()
		if im.dead {
			a.err = errDead
			return
		}
		_ = act()
		return
	}
	switch err := im.do("request", a.name, nil, act); {
	case errors.Is(err, errRefused):
		a.resp = &http.Response{
			StatusCode: http.StatusForbidden, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
			Body: io.NopCloser(strings.NewReader("<Error><Code>AccessDenied</Code><Message>as the test wants it</Message></Error>")),
		}
	case err != nil:
		a.resp, a.err = nil, err
	}
}

// serve lets a request act on the bucket.
func (w *world) serve(im *image, a *arrival) {
	if w.node.held() {
		w.broken("I1", "a request to the bucket while the node stands still: %s", a.name)
	}
	r := a.req.Clone(context.Background())
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(a.body)), int64(len(a.body))
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, r)
	a.resp = rec.Result()
	if a.call.Op == "UploadPart" && a.resp.StatusCode == http.StatusOK {
		w.part(im, a)
	}
	if a.call.Op == "PutObject" && strings.HasSuffix(a.call.Key, "/latest.json") && a.resp.StatusCode == http.StatusOK {
		w.latestMoved()
	}
}
