package chaos

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// lie is one way not to serve a request. It returns false where it has left the
// request alone.
type lie func(l *liar, w http.ResponseWriter, r *http.Request, op, key string) bool

// liar is an HTTP proxy before the store. It counts the parts that arrive, and lies
// when it is told to.
type liar struct {
	upstream string // host:port
	server   *http.Server
	listener net.Listener
	done     chan error

	mu    sync.Mutex
	lie   lie
	told  int // lies, since the last tell
	parts map[partID]*sent
	bytes int64 // of all parts, since the start

	copied int64 // bytes of parts that the store was told to copy

	ages map[string]time.Duration // how much older what is below a prefix is said to be
}

// lengthOf is the length that a header `bytes=first-last` gives.
func lengthOf(header string) int64 {
	var first, last int64
	if n, _ := fmt.Sscanf(header, "bytes=%d-%d", &first, &last); n != 2 {
		return 0
	}
	return last - first + 1
}

// partID is a part of an object, whatever the upload.
type partID struct{ key, number string }

// sent is what has come of one part.
type sent struct {
	bytes int64 // of all requests, those that broke off included
	acked int64 // of those that the store has taken
	times int
}

func newLiar(endpoint string) (*liar, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &liar{upstream: u.Host, listener: ln, parts: map[partID]*sent{}, done: make(chan error, 1)}
	l.server = &http.Server{Handler: l, ReadHeaderTimeout: time.Minute}
	go func() { l.done <- l.server.Serve(ln) }()
	return l, nil
}

func (l *liar) addr() string { return l.listener.Addr().String() }

func (l *liar) close() error {
	err := l.server.Close()
	if serr := <-l.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// tell sets the lie; nil is the truth.
func (l *liar) tell(f lie) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie, l.told = f, 0
}

// lied is how many lies have been told since the last tell.
func (l *liar) lied() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

// tries tells the lie, and counts it however it ends.
func (l *liar) tries(f lie, w http.ResponseWriter, r *http.Request, op, key string) (told bool) {
	told = true
	defer func() {
		if told {
			l.mu.Lock()
			l.told++
			l.mu.Unlock()
		}
	}()
	told = f(l, w, r, op, key)
	return told
}

// received is how many bytes of parts have come since the start.
func (l *liar) received() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// stored is how many bytes of parts have come or were copied since the start.
func (l *liar) stored() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes + l.copied
}

// ledger is a copy of what has come of every part.
func (l *liar) ledger() map[partID]sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[partID]sent, len(l.parts))
	for id, s := range l.parts {
		out[id] = *s
	}
	return out
}

// forget drops what is known of the parts below a prefix.
func (l *liar) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.parts)
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	op, key, number := callOf(r)
	switch {
	case op == opPart && r.Header.Get("X-Amz-Copy-Source") != "":
		l.mu.Lock()
		l.copied += lengthOf(r.Header.Get("X-Amz-Copy-Source-Range"))
		l.mu.Unlock()
	case op == opPart:
		l.mu.Lock()
		s := l.parts[partID{key, number}]
		if s == nil {
			s = &sent{}
			l.parts[partID{key, number}] = s
		}
		s.times++
		l.mu.Unlock()
		r.Body = &counted{ReadCloser: r.Body, l: l, s: s}
	}
	l.mu.Lock()
	f, ages := l.lie, maps.Clone(l.ages)
	l.mu.Unlock()
	if f != nil && l.tries(f, w, r, op, key) {
		return
	}
	resp, err := l.forward(r)
	if err != nil {
		panic(http.ErrAbortHandler) // as if we were not there
	}
	defer resp.Body.Close()
	if c, ok := r.Body.(*counted); ok && resp.StatusCode == http.StatusOK {
		l.mu.Lock()
		c.s.acked += c.n
		l.mu.Unlock()
	}
	if len(ages) == 0 || r.URL.Query().Get("list-type") == "" {
		pass(w, resp, resp.Body)
		return
	}
	list, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	resp.Header.Del("Content-Length")
	pass(w, resp, bytes.NewReader(antedated(list, ages)))
}

// forward asks the store. The body of the answer is the caller's to close.
func (l *liar) forward(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", l.upstream, ""
	out.Header.Del("Expect") // answered by our own server
	return http.DefaultTransport.RoundTrip(out)
}

func pass(w http.ResponseWriter, resp *http.Response, body io.Reader) {
	for name, v := range resp.Header {
		w.Header()[name] = v
	}
	w.WriteHeader(resp.StatusCode)
	// One who has gone away hears nothing; half an answer must not look whole.
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// counted is the body of a part.
type counted struct {
	io.ReadCloser
	l *liar
	s *sent
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.l.mu.Lock()
	c.n += int64(n)
	c.s.bytes += int64(n)
	c.l.bytes += int64(n)
	c.l.mu.Unlock()
	return n, err
}

// on limits a lie to a call, and to its first n requests; 0: all.
func on(op string, n int, f lie) lie {
	var mu sync.Mutex
	left := n
	return func(l *liar, w http.ResponseWriter, r *http.Request, got, key string) bool {
		if got != op {
			return false
		}
		if n > 0 {
			mu.Lock()
			mine := left > 0
			left--
			mu.Unlock()
			if !mine {
				return false
			}
		}
		return f(l, w, r, got, key)
	}
}

// keyed limits a lie to keys with a text in them.
func keyed(text string, f lie) lie {
	return func(l *liar, w http.ResponseWriter, r *http.Request, op, key string) bool {
		return strings.Contains(key, text) && f(l, w, r, op, key)
	}
}

// every lies to each nth request of those that are its own.
func every(n int, f lie) lie {
	var mu sync.Mutex
	seen := 0
	return func(l *liar, w http.ResponseWriter, r *http.Request, op, key string) bool {
		mu.Lock()
		seen++
		mine := seen%n == 0
		mu.Unlock()
		return mine && f(l, w, r, op, key)
	}
}

func errorBody(code string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>chaos</Message><RequestId>1</RequestId></Error>`, code)
}

// refuse answers without asking the store.
func refuse(status int, code string) lie {
	return func(_ *liar, w http.ResponseWriter, r *http.Request, _, _ string) bool {
		_, _ = io.Copy(io.Discard, r.Body) // who is cut off while it sends does not hear the answer
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, errorBody(code))
		return true
	}
}

// doneBut does it, and says that it failed, in a body below a 200.
func doneBut(code string) lie {
	return func(l *liar, w http.ResponseWriter, r *http.Request, op, key string) bool {
		l.silently(r)
		return refuse(http.StatusOK, code)(l, w, r, op, key)
	}
}

// lost does it, and its answer is lost.
func lost(l *liar, _ http.ResponseWriter, r *http.Request, _, _ string) bool {
	l.silently(r)
	panic(http.ErrAbortHandler)
}

// silently does it, also when the one who asked has gone away.
func (l *liar) silently(r *http.Request) {
	resp, err := l.forward(r.WithContext(context.WithoutCancel(r.Context())))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

// swallowed takes a part, says so, and throws it away.
func swallowed(_ *liar, w http.ResponseWriter, r *http.Request, _, _ string) bool {
	h := md5.New()
	if _, err := io.Copy(h, r.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("ETag", `"`+hex.EncodeToString(h.Sum(nil))+`"`)
	w.WriteHeader(http.StatusOK)
	return true
}

const wrongMD5 = "0123456789abcdef0123456789abcdef"

// wrongETag does it, and gives another ETag than the store did.
func wrongETag(l *liar, w http.ResponseWriter, r *http.Request, op, _ string) bool {
	resp, err := l.forward(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if resp.Header.Get("ETag") != "" {
		resp.Header.Set("ETag", `"`+wrongMD5+`"`)
	}
	if i, j := bytes.Index(b, []byte("<ETag>")), bytes.Index(b, []byte("</ETag>")); op == opComplete && i >= 0 && j > i {
		b = append(append(bytes.Clone(b[:i+len("<ETag>")]), wrongMD5+"-2"...), b[j:]...)
		resp.Header.Del("Content-Length")
	}
	pass(w, resp, bytes.NewReader(b))
	return true
}

// truncated sends half of what was asked for, and hangs up.
func truncated(l *liar, w http.ResponseWriter, r *http.Request, _, _ string) bool {
	resp, err := l.forward(r)
	if err != nil || resp.ContentLength < 2 {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	pass(w, resp, io.LimitReader(resp.Body, resp.ContentLength/2))
	_ = http.NewResponseController(w).Flush() // else nothing of it would leave
	panic(http.ErrAbortHandler)
}

// flipped changes one bit in the middle of an answer.
func flipped(l *liar, w http.ResponseWriter, r *http.Request, _, _ string) bool {
	resp, err := l.forward(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	at := resp.ContentLength / 2
	head := io.LimitReader(resp.Body, at)
	one := readerFunc(func(p []byte) (int, error) {
		n, err := resp.Body.Read(p[:1])
		if n == 1 {
			p[0] ^= 0x10
		}
		return n, err
	})
	pass(w, resp, io.MultiReader(head, io.LimitReader(one, 1), resp.Body))
	return true
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
