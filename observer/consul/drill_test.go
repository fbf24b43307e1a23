package consul

import (
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

func TestDrillsThatAreNone(t *testing.T) {
	for _, kind := range []string{Nomad, Vault} {
		s := source(t, kind, newStandin(t, kind).URL, rightToken, nil)
		if err := s.Possible(t.Context(), observer.Position{}); !errors.Is(err, observer.ErrNotPossible) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	s := source(t, Consul, "", rightToken, func(o *Options) { o.Drill.Command = []string{"/nonexistent/consul"} })
	if err := s.Possible(t.Context(), observer.Position{}); !errors.Is(err, observer.ErrNotPossible) || !strings.Contains(hint.Of(err), "drill.command") {
		t.Errorf("no program: %v", err)
	}
}

// A server that is none fails the drill, and is gone behind it.
func TestDrillThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		script, want string
		timeout      time.Duration
		late         bool
	}{
		"it ends":          {"echo no port left >&2; exit 1", "ended before it was ready", time.Minute, false},
		"it never answers": {"echo hello; exec sleep 300", "", 300 * time.Millisecond, true},
	} {
		s := source(t, Consul, newStandin(t, Consul).URL, rightToken, func(o *Options) {
			o.Drill = Drill{Command: []string{"sh", "-c", "test -r {home}/eddy.json || exit 9; " + c.script}, Timeout: c.timeout}
		})
		st, err := taken(t, s, false)
		if err != nil {
			t.Fatal(err)
		}
		scratch := t.TempDir()
		if err := os.Rename(st.Trees()[0].Dir, filepath.Join(scratch, observer.DrillHome)); err != nil {
			t.Fatal(err)
		}
		r, err := s.Drill(t.Context(), observer.DrillTask{Scratch: scratch})
		if err != nil || r.Outcome != observer.DrillFailed || r.Late != c.late || !strings.Contains(r.Why, c.want) || len(r.Log) == 0 || r.Network != "host" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if token, err := os.ReadFile(filepath.Join(scratch, "server", "token")); err != nil || strings.Contains(strings.Join(r.Command, " "), string(token)) || len(token) != 36 {
			t.Errorf("%s: the token %q stands in %q, %v", name, token, r.Command, err)
		}
	}
}

func TestTLS(t *testing.T) {
	plain := newStandin(t, Consul)
	srv := httptest.NewTLSServer(plain)
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		tls TLS
		ok  bool
	}{
		"its CA":               {TLS{CAFile: ca}, true},
		"a directory of CAs":   {TLS{CADir: filepath.Dir(ca)}, true},
		"its name":             {TLS{CAFile: ca, ServerName: "example.com"}, true},
		"another name":         {TLS{CAFile: ca, ServerName: "consul.internal"}, false},
		"nobody's":             {TLS{}, false},
		"whoever answers does": {TLS{SkipVerify: true}, true},
	} {
		plain.set(func() { plain.seen = "" })
		s := source(t, Consul, srv.URL, rightToken, func(o *Options) { o.TLS = c.tls })
		_, err := s.Describe(t.Context())
		if (err == nil) != c.ok || !c.ok && plain.seen != "" {
			t.Errorf("%s: %v, seen %q", name, err, plain.seen)
		}
	}
	if _, err := New(Options{Kind: Consul, TLS: TLS{CertFile: ca, KeyFile: ca}}); err == nil || hint.Of(err) == "" {
		t.Errorf("a certificate without its key: %v", err)
	}
}
