//go:build lab

package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/eddy-backup/eddy/internal/hint"
)

// wire is a RoundTripper that a test puts before the real server.
type wire func(*http.Request) (*http.Response, error)

func (w wire) RoundTrip(r *http.Request) (*http.Response, error) { return w(r) }

// call names the S3 call of a request.
func call(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "create"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "complete"
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return "part " + q.Get("partNumber")
	case r.Method == http.MethodPut:
		return "put"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "abort"
	default:
		return strings.ToLower(r.Method)
	}
}

// script is trouble in the order of its coming: the nth request of a call meets
// the nth step of that call; nil, and what is beyond the last step, passes.
type script map[string][]func(http.RoundTripper, *http.Request) (*http.Response, error)

// troubled opens the lab's store behind a script. count tells how often a call
// was made. Deadlines are short.
func troubled(t *testing.T, sc script, set ...func(*Config)) (s *s3Store, count func(string) int) {
	t.Helper()
	var mu sync.Mutex
	calls := map[string]int{}
	s = lab(t, func(next http.RoundTripper) http.RoundTripper {
		return wire(func(r *http.Request) (*http.Response, error) {
			name := call(r)
			mu.Lock()
			n := calls[name]
			calls[name]++
			mu.Unlock()
			if steps := sc[name]; n < len(steps) && steps[n] != nil {
				return steps[n](next, r)
			}
			return next.RoundTrip(r)
		})
	}, append([]func(*Config){func(c *Config) {
		c.Slack, c.MinRate, c.GiveUp, c.PartSize = 3*time.Second, 4<<20, 30*time.Second, minPart
	}}, set...)...)
	s.wait = 20 * time.Millisecond
	return s, func(name string) int {
		mu.Lock()
		defer mu.Unlock()
		return calls[name]
	}
}

// discard reads a request's body as a server would, and forgets it.
func discard(r *http.Request) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
}

func reply(status int, code string) func(http.RoundTripper, *http.Request) (*http.Response, error) {
	return func(_ http.RoundTripper, r *http.Request) (*http.Response, error) {
		discard(r)
		text := "<Error><Code>" + code + "</Code><Message>as the test says</Message></Error>"
		return &http.Response{
			Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Content-Type": {"application/xml"}}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)), Request: r,
		}, nil
	}
}

// stall answers nothing until the caller gives up.
func stall(_ http.RoundTripper, r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func reset(_ http.RoundTripper, r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
		_, _ = io.CopyN(io.Discard, r.Body, 100_000)
	}
	return nil, fmt.Errorf("write tcp 127.0.0.1: %w", syscall.ECONNRESET)
}

// lose lets the server do it and drops the answer.
func lose(next http.RoundTripper, r *http.Request) (*http.Response, error) {
	resp, err := next.RoundTrip(r)
	if err == nil {
		resp.Body.Close()
	}
	return nil, fmt.Errorf("read tcp 127.0.0.1: %w", errors.Join(err, syscall.ECONNRESET))
}

// flip changes one byte of the request's body on the way.
func flip(next http.RoundTripper, r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body.Close()
	b[len(b)/2] ^= 1
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(b))
	return next.RoundTrip(r)
}

type steps = []func(http.RoundTripper, *http.Request) (*http.Response, error)

func repeat(n int, step func(http.RoundTripper, *http.Request) (*http.Response, error)) (out steps) {
	for range n {
		out = append(out, step)
	}
	return out
}

func TestPutThroughTrouble(t *testing.T) {
	for name, sc := range map[string]script{
		"slow down, error, reset, stall":  {"part 2": {reply(503, "SlowDown"), reply(500, "InternalError"), reset, stall}},
		"a part's answer is lost":         {"part 1": {lose}},
		"a part is damaged on the way":    {"part 3": {flip}},
		"400 RequestTimeout":              {"part 1": {reply(400, "RequestTimeout")}, "create": {reply(400, "RequestTimeout")}},
		"create stalls":                   {"create": {stall, stall}},
		"complete's answer is lost":       {"complete": {lose}},
		"... and it is then 404":          {"complete": {lose, reply(404, "NoSuchUpload")}},
		"... and it is then 412":          {"complete": {lose, reply(412, "PreconditionFailed")}},
		"... and the first look fails":    {"complete": {lose, reply(404, "NoSuchUpload")}, "head": {reset}},
		"complete is 200 with an error":   {"complete": {reply(200, "InternalError")}},
		"complete is 200 with no answer":  {"complete": {reply200("")}},
		"complete is 200 without an ETag": {"complete": {reply200("<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")}},
		"the last look fails at first":    {"head": {reply(503, "SlowDown"), reset}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := troubled(t, sc)
			b := content(9, 11<<20)
			o, err := s.Put(t.Context(), request(t, "vol", b, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			if o.Checked != "checksum" {
				t.Errorf("checked by %q", o.Checked)
			}
			if got, err := readRange(t, s, "vol", o.ETag, 0, -1); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
}

func reply200(text string) func(http.RoundTripper, *http.Request) (*http.Response, error) {
	return func(next http.RoundTripper, r *http.Request) (*http.Response, error) {
		resp, err := reply(200, "")(next, r)
		resp.Body, resp.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
		return resp, err
	}
}

// What does not go away becomes an error that says what it is, in bounded time,
// and the upload can be abandoned.
func TestPutFails(t *testing.T) {
	for name, c := range map[string]struct {
		sc   script
		want error
		text string
		most int // calls of the one that fails
	}{
		"resets for ever":            {script{"part 2": repeat(100, reset)}, ErrUnreachable, "connection reset", 12},
		"a part is always damaged":   {script{"part 2": repeat(100, flip)}, ErrDamaged, "part 2", 3},
		"credentials expire":         {script{"part 2": repeat(100, reply(403, "ExpiredToken"))}, ErrRefused, "ExpiredToken", 1},
		"the upload was aborted":     {script{"part 2": repeat(100, reply(404, "NoSuchUpload"))}, ErrUploadGone, "NoSuchUpload", 1},
		"complete: aborted":          {script{"complete": repeat(100, reply(404, "NoSuchUpload"))}, ErrUploadGone, "NoSuchUpload", 1},
		"complete: errors with 200":  {script{"complete": repeat(100, reply(200, "InternalError"))}, ErrUnreachable, "InternalError", 12},
		"complete: refused":          {script{"complete": repeat(100, reply(403, "AccessDenied"))}, ErrRefused, "AccessDenied", 1},
		"complete: bytes are wrong":  {script{"complete": repeat(100, reply(400, "BadDigest"))}, ErrDamaged, "BadDigest", 3},
		"create: the bucket is gone": {script{"create": repeat(100, reply(404, "NoSuchBucket"))}, ErrRefused, "NoSuchBucket", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, count := troubled(t, c.sc, func(c *Config) { c.GiveUp = time.Second })
			r := request(t, "vol", content(9, 11<<20), 1<<20)
			begun := time.Now()
			_, err := s.Put(t.Context(), r)
			if !errors.Is(err, c.want) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.text)) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %v with %q", err, c.want, c.text)
			}
			for failing := range c.sc {
				if n := count(failing); n < 1 || n > c.most {
					t.Errorf("%s was tried %d times, want at most %d", failing, n, c.most)
				}
			}
			if d := time.Since(begun); d > 20*time.Second {
				t.Errorf("it took %s", d)
			}
			if _, err := s.Stat(t.Context(), "vol"); !errors.Is(err, ErrNotFound) {
				t.Errorf("an object is there: %v", err)
			}
			if err := s.Abandon(t.Context(), r.Journal); err != nil {
				t.Fatal(err)
			}
			if n := uploads(t, s); n != 0 {
				t.Errorf("%d uploads are left in the bucket", n)
			}
		})
	}
}

func TestPutToAStoreThatStallsForEver(t *testing.T) {
	t.Parallel()
	s, count := troubled(t, script{"part 1": repeat(100, stall)}, func(c *Config) { c.Slack, c.GiveUp = time.Second, time.Second })
	r := request(t, "vol", content(9, 1000), 100)
	begun := time.Now()
	_, err := s.Put(t.Context(), r)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no answer in time") || hint.Of(err) == "" {
		t.Errorf("%v, want ErrUnreachable, no answer in time, with a hint", err)
	}
	// As often as any call, though each attempt took as long as GiveUp.
	if n, d := count("part 1"), time.Since(begun); n != minTries || d > 15*time.Second {
		t.Errorf("%d attempts in %s", n, d)
	}
}

// uploads counts the unfinished uploads below the store's prefix.
func uploads(t *testing.T, s *s3Store) (n int) {
	t.Helper()
	for _, err := range s.Uploads(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestPutThatIsCancelledWhileTheStoreStalls(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, _ := troubled(t, script{"part 1": {func(next http.RoundTripper, r *http.Request) (*http.Response, error) {
		time.AfterFunc(100*time.Millisecond, cancel)
		return stall(next, r)
	}}}, func(c *Config) { c.Slack = time.Minute })
	r := request(t, "vol", content(9, 11<<20), 1<<20)
	begun := time.Now()
	_, err := s.Put(ctx, r)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("%v, want context.Canceled", err)
	}
	if d := time.Since(begun); d > 3*time.Second {
		t.Errorf("it took %s", d)
	}
	if n := uploads(t, s); n != 1 {
		t.Errorf("%d uploads wait for a resume, want 1", n)
	}
	if err := s.Abandon(t.Context(), r.Journal); err != nil {
		t.Fatal(err)
	}
	if n := uploads(t, s); n != 0 {
		t.Errorf("%d uploads are left in the bucket", n)
	}
}

func TestPutSmallThroughTrouble(t *testing.T) {
	put := func(s Store, body string, c Condition) error {
		_, err := s.PutSmall(t.Context(), "latest.json", []byte(body), "", c)
		return err
	}
	t.Run("the answer to a conditional write is lost", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, script{"put": {lose, nil, lose}})
		if err := put(s, "one", Condition{IfAbsent: true}); err != nil {
			t.Fatalf("we lost to ourselves: %v", err)
		}
		o, err := s.Stat(t.Context(), "latest.json")
		if err != nil {
			t.Fatal(err)
		}
		if err := put(s, "two", Condition{IfMatch: o.ETag}); err != nil {
			t.Fatalf("we lost to ourselves: %v", err)
		}
	})
	t.Run("the answer is lost, and another was first", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, script{"put": {nil, lose}})
		if err := put(s, "theirs", Condition{}); err != nil {
			t.Fatal(err)
		}
		if err := put(s, "ours", Condition{IfAbsent: true}); !errors.Is(err, ErrPrecondition) {
			t.Errorf("%v, want ErrPrecondition", err)
		}
	})
	t.Run("the same bytes were there before", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, script{"put": {nil, reply(409, "ConditionalRequestConflict")}})
		if err := put(s, "same", Condition{}); err != nil {
			t.Fatal(err)
		}
		if err := put(s, "same", Condition{IfAbsent: true}); !errors.Is(err, ErrPrecondition) {
			t.Errorf("%v, want ErrPrecondition", err)
		}
	})
	t.Run("trouble that passes", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, script{
			"put": {reply(503, "SlowDown"), reply(409, "ConditionalRequestConflict"), flip},
			"get": {reply(500, "InternalError"), cut(1, io.EOF), cut(0, syscall.ECONNRESET)},
		})
		if err := put(s, "one", Condition{IfAbsent: true}); err != nil {
			t.Fatal(err)
		}
		if b, _, err := s.GetSmall(t.Context(), "latest.json", 100); err != nil || string(b) != "one" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("an answer is damaged on the way", func(t *testing.T) {
		t.Parallel()
		damaged := mangle(func(b io.ReadCloser) io.ReadCloser {
			all, _ := io.ReadAll(b)
			all[0] ^= 1
			return io.NopCloser(bytes.NewReader(all))
		})
		s, _ := troubled(t, script{"get": append(steps{damaged}, append(steps{nil}, repeat(100, damaged)...)...)})
		if err := put(s, "one", Condition{}); err != nil {
			t.Fatal(err)
		}
		if b, _, err := s.GetSmall(t.Context(), "latest.json", 100); err != nil || string(b) != "one" {
			t.Errorf("once: %q, %v", b, err)
		}
		if b, _, err := s.GetSmall(t.Context(), "latest.json", 100); !errors.Is(err, ErrDamaged) {
			t.Errorf("always: %q, %v, want ErrDamaged", b, err)
		}
	})
}

// sumless is a store that knows no CRC64NVME: it says so when an upload begins,
// or only when the first part comes.
type sumless struct {
	s3API
	atCreate bool
	refused  *atomic.Int32
}

func (s sumless) refuse() error {
	s.refused.Add(1)
	return &smithy.GenericAPIError{Code: "InvalidRequest", Message: "The algorithm type you specified in x-amz-checksum- header is invalid."}
}

func (s sumless) CreateMultipartUpload(ctx context.Context, in *s3.CreateMultipartUploadInput, o ...func(*s3.Options)) (*s3.CreateMultipartUploadOutput, error) {
	if s.atCreate && in.ChecksumAlgorithm != "" {
		return nil, s.refuse()
	}
	c := *in
	c.ChecksumAlgorithm, c.ChecksumType = "", "" // ignored
	return s.s3API.CreateMultipartUpload(ctx, &c, o...)
}

func (s sumless) UploadPart(ctx context.Context, in *s3.UploadPartInput, o ...func(*s3.Options)) (*s3.UploadPartOutput, error) {
	if in.ChecksumCRC64NVME != nil {
		return nil, s.refuse()
	}
	if in.ContentMD5 == nil {
		return nil, errors.New("a part without any checksum")
	}
	return s.s3API.UploadPart(ctx, in, o...)
}

func (s sumless) HeadObject(ctx context.Context, in *s3.HeadObjectInput, o ...func(*s3.Options)) (*s3.HeadObjectOutput, error) {
	out, err := s.s3API.HeadObject(ctx, in, o...)
	if out != nil {
		out.ChecksumCRC64NVME = nil
	}
	return out, err
}

func TestPutToAStoreWithoutChecksums(t *testing.T) {
	for _, atCreate := range []bool{true, false} {
		for parts, checked := range map[int]string{2: "read-back", 5: "sample"} {
			t.Run(fmt.Sprintf("at create %v, %d parts", atCreate, parts), func(t *testing.T) {
				s, count := troubled(t, nil)
				s.api = sumless{s.api, atCreate, new(atomic.Int32)}
				b := content(15, parts*minPart)
				o, err := s.Put(t.Context(), request(t, "vol", b, 1<<20))
				if err != nil {
					t.Fatal(err)
				}
				if o.Checked != checked {
					t.Errorf("checked by %q, want %q", o.Checked, checked)
				}
				if n := count("get"); n != min(parts, 4) {
					t.Errorf("%d parts read back", n)
				}
				if got, err := readRange(t, s, "vol", o.ETag, 0, -1); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%d bytes came back, %v", len(got), err)
				}
			})
		}
	}
	t.Run("it stores other bytes", func(t *testing.T) {
		s, _ := troubled(t, script{"get": {nil, mangle(func(b io.ReadCloser) io.ReadCloser {
			return struct {
				io.Reader
				io.Closer
			}{io.MultiReader(strings.NewReader("\x00"), io.MultiReader(skip(b, 1))), b}
		})}})
		s.api = sumless{s.api, true, new(atomic.Int32)}
		b := content(16, 3*minPart)
		b[minPart] = 1
		if _, err := s.Put(t.Context(), request(t, "vol", b, 1<<20)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v, want ErrDamaged", err)
		}
	})
}

func skip(r io.Reader, n int64) io.Reader {
	_, _ = io.CopyN(io.Discard, r, n)
	return r
}

// Wrong credentials and a wrong bucket, from the server itself.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		set  func(*Config)
		text string
	}{
		"unknown key":  {env: map[string]string{"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, text: "access key"},
		"wrong secret": {env: map[string]string{"AWS_SECRET_ACCESS_KEY": "canary-secret"}, text: "SignatureDoesNotMatch"},
		"no bucket":    {set: func(c *Config) { c.URL = "s3://no-such-bucket-here/x" }, text: "NoSuchBucket"},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			s := lab(t, nil, func(conf *Config) {
				if c.set != nil {
					c.set(conf)
				}
			})
			r := request(t, "vol", content(1, 10), 10)
			_, put := s.Put(t.Context(), r)
			_, small := s.PutSmall(t.Context(), "k", []byte("x"), "", Condition{IfAbsent: true})
			_, _, get := s.GetSmall(t.Context(), "k", 10)
			var list error
			for _, list = range s.List(t.Context(), "", "") {
				break
			}
			for op, err := range map[string]error{"put": put, "put small": small, "get": get, "list": list, "delete": s.Delete(t.Context(), "k")} {
				if !errors.Is(err, ErrRefused) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.text)) || hint.Of(err) == "" {
					t.Errorf("%s: %v (hint %q), want ErrRefused with %s and a hint", op, err, hint.Of(err), c.text)
				}
				if strings.ContainsAny(err.Error(), "\n\r") || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "Signature=") {
					t.Errorf("%s: the error says too much: %v", op, err)
				}
			}
			if _, err := os.Stat(r.Journal); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s of an upload that never began: %v", filepath.Base(r.Journal), err)
			}
		})
	}
}
