//go:build lab

package uploader

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/eddy-backup/eddy/internal/hint"
)

// mangle changes the body of an answer.
func mangle(f func(io.ReadCloser) io.ReadCloser) func(http.RoundTripper, *http.Request) (*http.Response, error) {
	return func(next http.RoundTripper, r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil {
			resp.Body = f(resp.Body)
		}
		return resp, err
	}
}

// cut ends an answer after n bytes, without and with an error.
func cut(n int64, err error) func(http.RoundTripper, *http.Request) (*http.Response, error) {
	return mangle(func(b io.ReadCloser) io.ReadCloser {
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(b, n), failing{err}), b}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// hang sends n bytes of an answer, and then nothing.
func hang(n int64) func(http.RoundTripper, *http.Request) (*http.Response, error) {
	return func(next http.RoundTripper, r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil {
			resp.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(resp.Body, n), hanging{r.Context()}), resp.Body}
		}
		return resp, err
	}
}

type hanging struct{ ctx context.Context }

func (h hanging) Read([]byte) (int, error) {
	<-h.ctx.Done()
	return 0, h.ctx.Err()
}

func TestOpenGoesOnWhereItBroke(t *testing.T) {
	b := content(11, 3<<20)
	for name, sc := range map[string]script{
		"cut short":            {"get": {cut(1000, io.EOF), cut(1, io.EOF), cut(1<<20, io.EOF)}},
		"reset":                {"get": {cut(1000, syscall.ECONNRESET), cut(0, syscall.ECONNRESET), reply(503, "SlowDown")}},
		"stalled":              {"get": {hang(100_000), stall, hang(0)}},
		"refused now and then": {"get": {reply(500, "InternalError"), reset, cut(5, io.ErrUnexpectedEOF), reset}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, count := troubled(t, sc, func(c *Config) { c.Slack = time.Second })
			o := mustPut(t, s, "vol", b)
			got, err := readRange(t, s, "vol", o.ETag, 5, int64(len(b)-10))
			if err != nil || !bytes.Equal(got, b[5:len(b)-5]) {
				t.Errorf("%d bytes of %d, %v", len(got), len(b)-10, err)
			}
			if n := count("get"); n != len(sc["get"])+1 {
				t.Errorf("%d requests, want %d", n, len(sc["get"])+1)
			}
		})
	}
}

func TestOpenFails(t *testing.T) {
	b := content(12, 1<<20)
	t.Run("no byte ever comes", func(t *testing.T) {
		t.Parallel()
		s, count := troubled(t, script{"get": repeat(100, cut(0, io.EOF))})
		mustPut(t, s, "vol", b)
		_, err := readRange(t, s, "vol", "", 0, 1000)
		if !errors.Is(err, ErrUnreachable) || !errors.Is(err, io.ErrUnexpectedEOF) || hint.Of(err) == "" {
			t.Errorf("%v, want ErrUnreachable and ErrUnexpectedEOF with a hint", err)
		}
		if n := count("get"); n > maxBroken+1 {
			t.Errorf("%d connections", n)
		}
	})
	t.Run("deleted while it is read", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, script{"get": {cut(1000, io.EOF)}})
		o := mustPut(t, s, "vol", b)
		r, err := s.Open(t.Context(), "vol", o.ETag, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := s.Delete(t.Context(), "vol"); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); !errors.Is(err, ErrNotFound) || !bytes.Equal(got, b[:1000]) {
			t.Errorf("%d bytes, %v; want 1000, ErrNotFound", len(got), err)
		}
	})
	t.Run("replaced where the reader has to connect again", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, script{"get": {cut(1000, io.EOF)}})
		mustPut(t, s, "vol", b)
		r, err := s.Open(t.Context(), "vol", "", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		mustPut(t, s, "vol", content(13, 1<<20))
		if got, err := io.ReadAll(r); !errors.Is(err, ErrDamaged) || !bytes.Equal(got, b[:1000]) {
			t.Errorf("%d bytes, %v; want the 1000 of before, ErrDamaged", len(got), err)
		}
	})
	t.Run("a store that ignores Range", func(t *testing.T) {
		t.Parallel()
		s, _ := troubled(t, nil)
		o := mustPut(t, s, "vol", b)
		s.api = ignoresRange{s.api}
		if _, err := s.Open(t.Context(), "vol", o.ETag, 1000, 10); !errors.Is(err, ErrRefused) {
			t.Errorf("other bytes than were asked for: %v, want ErrRefused", err)
		}
		if got, err := readRange(t, s, "vol", o.ETag, 0, 10); err != nil || !bytes.Equal(got, b[:10]) {
			t.Errorf("from the beginning: %d bytes, %v", len(got), err)
		}
	})
}

type ignoresRange struct{ s3API }

func (i ignoresRange) GetObject(ctx context.Context, in *s3.GetObjectInput, o ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	whole := *in
	whole.Range = nil
	return i.s3API.GetObject(ctx, &whole, o...)
}

// A slow consumer is no stalled connection.
func TestOpenWaitsForItsConsumer(t *testing.T) {
	t.Parallel()
	s, count := troubled(t, nil, func(c *Config) { c.Slack = 2 * time.Second })
	b := content(14, 16<<20)
	o := mustPut(t, s, "vol", b)
	r, err := s.Open(t.Context(), "vol", o.ETag, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := make([]byte, 1000)
	if _, err := io.ReadFull(r, first); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond)
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(first, rest...), b) {
		t.Errorf("%d bytes, %v", len(first)+len(rest), err)
	}
	if n := count("get"); n != 1 {
		t.Errorf("%d connections", n)
	}
}
