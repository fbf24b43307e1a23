package alarm

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/hint"
)

// keeper is a dead man's switch that answers by what it is told to.
type keeper struct {
	*httptest.Server
	mu   sync.Mutex
	got  []string
	code func(n int) int
}

func newKeeper(t *testing.T, code func(n int) int) *keeper {
	t.Helper()
	k := &keeper{code: code}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		user, pass, _ := r.BasicAuth()
		k.got = append(k.got, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+user+pass))
		if c := k.code(len(k.got)); c >= 300 && c < 400 {
			http.Redirect(w, r, "/elsewhere", c)
		} else {
			w.WriteHeader(c)
		}
	}))
	t.Cleanup(k.Close)
	return k
}

func (k *keeper) ping(t *testing.T, path string) *Ping {
	t.Helper()
	p, err := NewPing(strings.Replace(k.URL, "http://", "http://me:hunter2@", 1) + path)
	if err != nil {
		t.Fatal(err)
	}
	p.pause = time.Millisecond
	return p
}

func always(code int) func(int) int { return func(int) int { return code } }

func TestPingAddresses(t *testing.T) {
	k := newKeeper(t, always(204))
	for _, path := range []string{"/t0ken", "/t0ken/", "/a%2Fb?x=1", ""} {
		p := k.ping(t, path)
		for _, how := range []func(context.Context) error{p.Start, p.Success, p.Fail} {
			if err := how(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	want := []string{
		"GET /t0ken/start", "GET /t0ken", "GET /t0ken/fail",
		"GET /t0ken/start", "GET /t0ken/", "GET /t0ken/fail",
		"GET /a%2Fb/start?x=1", "GET /a%2Fb?x=1", "GET /a%2Fb/fail?x=1",
		"GET /start", "GET /", "GET /fail",
	}
	for i := range want {
		want[i] += " mehunter2"
	}
	if diff := cmp.Diff(want, k.got); diff != "" {
		t.Error(diff)
	}
}

func TestPingIsTriedAgain(t *testing.T) {
	k := newKeeper(t, func(n int) int { return map[int]int{1: 503, 2: 429}[n] + map[int]int{3: 200}[n] })
	if err := k.ping(t, "/t0ken").Success(t.Context()); err != nil || len(k.got) != 3 {
		t.Errorf("%d calls: %v", len(k.got), err)
	}
	k = newKeeper(t, always(500))
	if err := k.ping(t, "/t0ken").Start(t.Context()); err == nil || len(k.got) != 1 {
		t.Errorf("a start is called %d times: %v", len(k.got), err)
	}
}

// No error has the address in it, whatever goes wrong.
func TestPingErrorsHideTheAddress(t *testing.T) {
	const secret = "/hunter2?key=hunter2"
	refused := newKeeper(t, always(200))
	refused.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, x := range []struct {
		name  string
		p     *Ping
		calls int
		want  string
	}{
		{"not found", newKeeper(t, always(404)).ping(t, secret), 1, "404 Not Found"},
		{"broken", newKeeper(t, always(500)).ping(t, secret), 3, "500 Internal"},
		{"redirect", newKeeper(t, always(302)).ping(t, secret), 1, "redirect (302)"},
		{"refused", refused.ping(t, secret), 0, "connection refused"},
		{"no host", must(NewPing("http://me:hunter2@nosuchhost.invalid" + secret)), 0, "nosuchhost.invalid"},
		{"no TLS", must(NewPing(strings.Replace(newKeeper(t, always(200)).URL, "http:", "https:", 1) + secret)), 0, "HTTP response to HTTPS"},
		{"silent", must(NewPing("http://" + silent.Addr().String() + secret)), 0, "no answer in time"},
	} {
		x.p.pause, x.p.client.Timeout = time.Millisecond, 500*time.Millisecond
		err := x.p.Fail(t.Context())
		if err == nil || !strings.Contains(err.Error(), x.want) || hint.Of(err) == "" {
			t.Errorf("%s: %v, hint %q", x.name, err, hint.Of(err))
			continue
		}
		if strings.Contains(err.Error()+hint.Of(err), "hunter2") {
			t.Errorf("%s: the address is in %q", x.name, err)
		}
	}
	for _, address := range []string{"ftp://h/hunter2", "hunter2", "http://", "http://%zz/hunter2"} {
		if _, err := NewPing(address); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", address, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newKeeper(t, always(200)).ping(t, secret).Success(ctx); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("cancelled: %v", err)
	}
}

// A proxy that cannot be read is told without its password.
func TestPingByAProxyThatIsNone(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://me:hunter2@%zz")
	err := must(NewPing("http://example.invalid/x")).Start(t.Context())
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func must(p *Ping, err error) *Ping {
	if err != nil {
		panic(err)
	}
	return p
}
