package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/secret"
	"github.com/eddy-backup/eddy/observer"
)

// limits are the deadlines of calls.
type limits struct {
	ask     time.Duration // a question
	answer  time.Duration // until a snapshot begins: the server writes it to its disk first
	stall   time.Duration // without a byte of a snapshot
	restore time.Duration // to give a snapshot back, and until the leader has it
	led     time.Duration // until the servers have a leader again
}

func defaultLimits() limits {
	return limits{ask: 10 * time.Second, answer: 10 * time.Minute, stall: time.Minute, restore: time.Hour, led: 2 * time.Minute}
}

const (
	maxAnswer = 32 << 20 // bytes of the answer to a question
	maxSaid   = 300      // bytes of an error's text
)

// TLS is what a connection needs beside the system's own certificates.
type TLS struct {
	CAFile, CADir     string
	CertFile, KeyFile string
	ServerName        string
	// SkipVerify takes whoever answers for the server.
	SkipVerify bool
}

// api speaks to one server.
type api struct {
	o    *Options
	sys  system
	http *http.Client
	base string // scheme://host
	max  limits
}

// status is an answer that is no success.
type status struct {
	code int
	said string
}

func (s *status) Error() string {
	return strings.TrimRight(fmt.Sprintf("%d %s: %s", s.code, http.StatusText(s.code), s.said), ": ")
}

// code is the HTTP status in the chain of an error; 0: there is none.
func code(err error) int {
	var s *status
	if errors.As(err, &s) {
		return s.code
	}
	return 0
}

func newAPI(o *Options, sys system, max limits) (*api, error) {
	a := &api{o: o, sys: sys, max: max}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: max.ask}).DialContext,
		TLSHandshakeTimeout: max.ask, DisableKeepAlives: true,
		// A snapshot is compressed, and Consul would compress it once more.
		DisableCompression: true,
	}
	scheme, rest, ok := strings.Cut(o.Address, "://")
	switch {
	case !ok:
		scheme, rest = "http", o.Address
	case scheme == "unix":
		path := rest
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: max.ask}).DialContext(ctx, "unix", path)
		}
		scheme, rest = "http", "localhost"
	}
	u, err := url.Parse(scheme + "://" + strings.TrimRight(rest, "/"))
	if err != nil || u.Host == "" || u.User != nil || scheme != "http" && scheme != "https" {
		return nil, hint.Add(errors.New("the address of the server is none"), "set "+sys.set("address", "http://HOST:PORT"))
	}
	a.base = u.String()
	if t.TLSClientConfig, err = o.TLS.config(); err != nil {
		return nil, err
	}
	a.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return a, nil
}

func (t TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.SkipVerify}
	files := []string{}
	if t.CAFile != "" {
		files = append(files, t.CAFile)
	} else if t.CADir != "" {
		var err error
		if files, err = filepath.Glob(filepath.Join(t.CADir, "*")); err != nil {
			return nil, err
		}
	}
	if len(files) > 0 {
		c.RootCAs = x509.NewCertPool()
		found := false
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, hint.Add(fmt.Errorf("read the servers' CA: %w", err), "eddy's user must be able to read it")
			}
			found = c.RootCAs.AppendCertsFromPEM(b) || found
		}
		if !found {
			return nil, fmt.Errorf("no certificate in %s", strings.Join(files, ", "))
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, hint.Add(fmt.Errorf("read the client's certificate: %w", err), "eddy's user must be able to read both files")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// token is read for every call: it may be exchanged while a daemon runs.
func (o *Options) token() (string, error) {
	if o.TokenFile == "" {
		return o.Token, nil
	}
	text, err := secret.Read(o.TokenFile, "token")
	if errors.Is(err, secret.ErrExposed) {
		return "", fmt.Errorf("%w: the token's file %w", observer.ErrNotFit, err)
	}
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(text)
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s is no file of a token: it holds more than one word", o.TokenFile)
	}
	return token, nil
}

// send makes a call; whoever gets an answer without an error closes its body. The
// call ends with ctx.
func (a *api) send(ctx context.Context, method, path string, q url.Values, body io.Reader, size int64) (*http.Response, error) {
	if q == nil {
		q = url.Values{}
	}
	for k, v := range a.o.query(a.sys) {
		q.Set(k, v)
	}
	target := a.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.ContentLength = size
	}
	token, err := a.o.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set(a.sys.token, token)
	}
	if a.o.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", a.o.Namespace)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, hint.Add(fmt.Errorf("ask %s for %s: %w", a.base, path, err), "look whether "+a.sys.title+" listens there: "+a.sys.set("address", "http://HOST:PORT"))
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, maxSaid)) // what is lacking of it is lacking
	return nil, a.refused(path, &status{resp.StatusCode, plain(string(said), token)}, token)
}

// refused says what to do about an answer that is no success.
func (a *api) refused(path string, s *status, token string) error {
	err := fmt.Errorf("%s of %s: %w", path, a.base, s)
	if s.code == http.StatusForbidden {
		err = observer.Mark(observer.ErrNotFit, err)
	}
	switch {
	case s.code == http.StatusForbidden && token == "":
		return hint.Add(err, "it wants a token: "+a.sys.set("token_file", "/FILE")+", of mode 0600")
	case s.code == http.StatusForbidden:
		return hint.Add(err, "the token needs "+a.sys.rights)
	}
	return err
}

// plain makes one printable line of what a server said, without the token.
func plain(text, token string) string {
	if token != "" {
		text = strings.ReplaceAll(text, token, "(token)")
	}
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
}

// ask makes a question and decodes the answer.
func (a *api) ask(ctx context.Context, path string, q url.Values, into any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.max.ask, fmt.Errorf("no answer within %s", a.max.ask))
	defer cancel()
	resp, err := a.send(ctx, http.MethodGet, path, q, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(b) > maxAnswer {
		err = fmt.Errorf("more than %d bytes", maxAnswer)
	}
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("the answer of %s to %s: %w", a.base, path, err)
	}
	return nil
}

// flow is the body of an answer that ends when no byte comes for too long.
type flow struct {
	*http.Response
	within time.Duration
	stall  *time.Timer
	cancel context.CancelCauseFunc
}

// open asks for a snapshot. Nothing of its body has been read when it returns.
func (a *api) open(ctx context.Context, q url.Values) (*flow, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &flow{cancel: cancel, within: a.max.stall}
	f.stall = time.AfterFunc(a.max.answer, func() { cancel(fmt.Errorf("no answer within %s", a.max.answer)) })
	resp, err := a.send(ctx, http.MethodGet, a.sys.snapshot, q, nil, 0)
	if err != nil {
		f.stall.Stop()
		cancel(nil)
		return nil, err
	}
	f.Response = resp
	f.stall.Stop()
	f.stall = time.AfterFunc(f.within, func() { cancel(fmt.Errorf("no byte of the snapshot within %s", f.within)) })
	return f, nil
}

func (f *flow) Read(b []byte) (int, error) {
	n, err := f.Body.Read(b)
	f.stall.Reset(f.within)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(f.Request.Context()); cause != nil {
			err = cause
		}
		err = fmt.Errorf("read the snapshot: %w", err)
	}
	return n, err
}

func (f *flow) Close() error {
	f.stall.Stop()
	f.cancel(nil)
	return f.Body.Close()
}
