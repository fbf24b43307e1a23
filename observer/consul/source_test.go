package consul

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// suite is what every server of a kind must pass, a stand-in as a real one: it has a
// leader, and the token has the rights.
func suite(t *testing.T, kind, address, token string) {
	for _, mode := range []string{Auto, Consistent, Stale} {
		s := source(t, kind, address, token, func(o *Options) { o.Mode = mode })
		state, err := s.Describe(t.Context())
		if err != nil || state.System != kind || state.Version == "" || state.Position.Incarnation == "" || len(state.Members) == 0 {
			t.Fatalf("%s: %+v, %v", mode, state, err)
		}
		if err := s.Gate(t.Context(), state); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		st, err := taken(t, s, false)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		got, err := s.Check(t.Context(), st.Trees(), observer.Position{})
		if err != nil || len(got.Findings) > 0 || len(got.Notes) > 0 || got.At == nil || got.At.Index == 0 || got.At.Epoch == 0 || got.At.Incarnation != state.Position.Incarnation {
			t.Errorf("%s: %+v, %v", mode, got, err)
		}
		want := map[string]string{Auto: Bounded, Consistent: Linearizable, Stale: Bounded}[mode]
		if kind == Vault {
			want = Bounded
		}
		if got.At.Consistency != want {
			t.Errorf("%s: %s", mode, got.At.Consistency)
		}
		at, err := s.Locate(t.Context(), st, state)
		if err != nil || at.Consistency != want {
			t.Errorf("%s: %+v, %v", mode, at, err)
		}
	}
	for _, c := range refusedOnes(t, kind, address, token) {
		st, err := c.s.Describe(t.Context())
		if err == nil {
			_, err = taken(t, c.s, false)
		}
		if !errors.Is(err, observer.ErrNotFit) || hint.Of(err) == "" || strings.Contains(err.Error(), c.token) && c.token != "" {
			t.Errorf("%s: %v, hint %q (%+v)", c.name, err, hint.Of(err), st)
		}
	}
}

type wrongOne struct {
	name, token string
	s           *Source
}

// refusedOnes are sources that must get nothing.
func refusedOnes(t *testing.T, kind, address, token string) []wrongOne {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte(token), 0o644); err != nil {
		t.Fatal(err)
	}
	const other = "99999999-2222-4333-8444-555555555555"
	return []wrongOne{
		{"no token", "", source(t, kind, address, "", func(o *Options) { o.TokenFile = "" })},
		{"a wrong token", other, source(t, kind, address, other, nil)},
		{"a token that others may read", token, source(t, kind, address, "", func(o *Options) { o.TokenFile = open })},
		{"a token's file that is not there", "", source(t, kind, address, "", func(o *Options) { o.TokenFile += "-not" })},
		{"nobody there", "", source(t, kind, "http://127.0.0.1:1", token, nil)},
	}
}

func TestSuiteOnStandins(t *testing.T) {
	for _, kind := range []string{Consul, Nomad, Vault} {
		t.Run(kind, func(t *testing.T) {
			s := newStandin(t, kind)
			suite(t, kind, s.URL, rightToken)
		})
	}
}

// The headers tell what an answer is worth, before a byte of it counts.
func TestHowOldAnAnswerIs(t *testing.T) {
	for name, c := range map[string]struct {
		mode     string
		leader   bool
		lag      string
		salvage  bool
		want     string // consistency; "": refused
		refusals int    // calls for a snapshot
	}{
		"near":                     {Auto, true, "999", false, Bounded, 1},
		"too far, so the leader":   {Auto, true, "1001", false, Linearizable, 2},
		"no number, so the leader": {Auto, true, "soon", false, Linearizable, 2},
		"negative":                 {Stale, true, "-1", false, "", 1},
		"huge":                     {Stale, true, "99999999999999999999", false, "", 1},
		"too far":                  {Stale, true, "1001", false, "", 1},
		"strict":                   {Consistent, true, "5000", false, Linearizable, 1},
		"nobody leads":             {Auto, false, "6238", false, "", 0},
		"salvage of what is alone": {Auto, false, "6238", true, Unbounded, 1},
		"salvage of what is well":  {Consistent, true, "10", true, Bounded, 1},
		"salvage of what is far":   {Auto, true, "1001", true, Unbounded, 1},
	} {
		srv := newStandin(t, Consul)
		srv.set(func() {
			if srv.lag = c.lag; !c.leader {
				srv.leader = ""
			}
		})
		s := source(t, Consul, srv.URL, rightToken, func(o *Options) { o.Mode = c.mode })
		st, err := taken(t, s, c.salvage)
		if n := srv.calls("/v1/snapshot"); n != c.refusals {
			t.Errorf("%s: asked %d times for a snapshot", name, n)
		}
		if c.want == "" {
			if !errors.Is(err, observer.ErrNotFit) || hint.Of(err) == "" {
				t.Errorf("%s: %v, hint %q", name, err, hint.Of(err))
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := s.Check(t.Context(), st.Trees(), observer.Position{})
		if err != nil || len(got.Findings) > 0 || got.At.Consistency != c.want || (c.want == Unbounded) != (len(got.Notes) > 0) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// It led when it was asked, and does not when it answers.
	srv := newStandin(t, Consul)
	s := source(t, Consul, srv.URL, rightToken, nil)
	state, err := s.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	srv.set(func() { srv.leader = "" })
	if err := s.Gate(t.Context(), state); err != nil {
		t.Errorf("by what was known: %v", err)
	}
	if _, _, err := s.answer(t.Context(), false); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(hint.Of(err), "--salvage") {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
}

func TestGate(t *testing.T) {
	for name, c := range map[string]struct {
		dead   int
		leader string
		want   string
	}{
		"all there":     {0, "10.0.0.1:8300", ""},
		"one is dead":   {1, "10.0.0.1:8300", ""},
		"two are dead":  {2, "10.0.0.1:8300", "1 of 3 servers are reachable, 2 are needed"},
		"nobody leads":  {0, "", "no server leads, 3 of 3 are reachable"},
		"a strange one": {0, "10.9.9.9:8300", "no server leads"},
	} {
		for _, kind := range []string{Consul, Nomad} {
			srv := newStandin(t, kind)
			srv.set(func() { srv.dead, srv.leader = c.dead, c.leader })
			s := source(t, kind, srv.URL, rightToken, nil)
			state, err := s.Describe(t.Context())
			if err == nil {
				err = s.Gate(t.Context(), state)
			}
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "") {
				t.Errorf("%s %s: %v", kind, name, err)
			}
		}
	}
}

// A token that may take snapshots and nothing else is enough.
func TestWhatATokenMayNotSee(t *testing.T) {
	srv := newStandin(t, Consul)
	for _, p := range []string{"/v1/agent/self", "/v1/agent/members", "/v1/operator/raft/configuration"} {
		srv.fail[p] = http.StatusForbidden
	}
	s := source(t, Consul, srv.URL, rightToken, nil)
	state, err := s.Describe(t.Context())
	if err != nil || len(state.Members) != 3 || observer.QuorumOf(state.Members).Reachable != 3 {
		t.Fatalf("%+v, %v", state, err)
	}
	if err := s.Gate(t.Context(), state); err != nil {
		t.Error(err)
	}
	if _, err := taken(t, s, false); err != nil {
		t.Error(err)
	}
}

// Nothing hangs, and a server that says the token back does not put it into an error.
func TestServersThatMisbehave(t *testing.T) {
	srv := newStandin(t, Consul)
	s := source(t, Consul, srv.URL, rightToken, nil)
	s.api.max = limits{ask: 50 * time.Millisecond, answer: 50 * time.Millisecond, stall: 50 * time.Millisecond}
	srv.set(func() { srv.mute = true })
	if _, err := s.Describe(t.Context()); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("mute: %v", err)
	}
	if _, err := s.api.open(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("mute: %v", err)
	}
	srv.set(func() { srv.mute, srv.half = false, true })
	s.api.max.ask = 10 * time.Second
	if _, err := taken(t, s, false); err == nil || !strings.Contains(err.Error(), "no byte of the snapshot within 50ms") {
		t.Errorf("half: %v", err)
	}
	srv.set(func() { srv.half, srv.snap = false, nil })
	if _, err := taken(t, s, false); err == nil || !strings.Contains(err.Error(), "empty snapshot") {
		t.Errorf("empty: %v", err)
	}
	srv.set(func() { srv.fail["/v1/snapshot"] = http.StatusBadGateway })
	_, err := taken(t, s, false)
	if err == nil || !strings.Contains(err.Error(), "502") || strings.Contains(err.Error(), rightToken) || !strings.Contains(err.Error(), "(token)") {
		t.Errorf("a proxy that says the token back: %v", err)
	}
	srv.set(func() { srv.fail = map[string]int{"/v1/status/leader": http.StatusTemporaryRedirect} })
	if _, err := s.Describe(t.Context()); !errors.Is(err, observer.ErrNotFit) {
		t.Errorf("a redirection is not followed: %v", err)
	}
}

// kept is a file in memory.
type kept struct {
	bytes.Buffer
	path string
	how  string
}

func (k *kept) Commit() (string, error) { k.how = "commit"; return k.path, nil }
func (k *kept) Abort() error            { k.how = "abort"; return nil }

func TestRestore(t *testing.T) {
	for _, kind := range []string{Consul, Nomad, Vault} {
		srv := newStandin(t, kind)
		var aside *kept
		s := source(t, kind, srv.URL, rightToken, func(o *Options) {
			o.Save = func(name string) (Kept, error) { aside = &kept{path: name}; return aside, nil }
		})
		st, err := taken(t, s, false)
		if err != nil {
			t.Fatal(err)
		}
		at, err := s.Locate(t.Context(), st, observer.State{})
		if err != nil {
			t.Fatal(err)
		}
		task := observer.RestoreTask{Dir: st.Trees()[0].Dir, Position: at}
		there, err := s.Target(t.Context(), task)
		if err != nil || !strings.Contains(there, srv.URL) || !strings.Contains(there, "led by") {
			t.Errorf("%s: %q, %v", kind, there, err)
		}
		next, err := s.Restore(t.Context(), task)
		sys := s.sys
		if err != nil || !bytes.Equal(srv.got, srv.snap) || srv.gotBy != sys.method+" "+sys.snapshot || len(next) == 0 || aside != nil {
			t.Errorf("%s: %q by %s, %v", kind, next, srv.gotBy, err)
		}

		// What lives is replaced only when that is said, and kept first.
		srv.set(func() { srv.keys, srv.got = []string{"kv/"}, nil })
		if _, err := s.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(hint.Of(err), "--overwrite-live") {
			t.Errorf("%s: not fresh: %v", kind, err)
		}
		task.Overwrite = true
		if _, err := s.Target(t.Context(), task); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		next, err = s.Restore(t.Context(), task)
		if err != nil || aside == nil || aside.how != "commit" || !bytes.Equal(aside.Bytes(), srv.snap) || !strings.Contains(strings.Join(next, "\n"), aside.path) || srv.got == nil {
			t.Errorf("%s: %q, %+v, %v", kind, next, aside, err)
		}
		// What cannot be kept is not replaced.
		srv.set(func() { srv.got, srv.snap = nil, srv.snap[:len(srv.snap)-9] })
		if _, err := s.Restore(t.Context(), task); err == nil || aside.how != "abort" || srv.got != nil {
			t.Errorf("%s: what was kept is not whole: %v", kind, err)
		}

		srv.set(func() { srv.leader, srv.keys = "", nil })
		if _, err := s.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) {
			t.Errorf("%s: nobody leads: %v", kind, err)
		}
	}
}

func TestRestoreWantsItsTargetNamed(t *testing.T) {
	srv := newStandin(t, Consul)
	s := source(t, Consul, srv.URL, rightToken, func(o *Options) { o.Named = false })
	if _, err := s.Target(t.Context(), observer.RestoreTask{Overwrite: true}); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(hint.Of(err), "replica.consul.address: "+srv.URL) {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
	s = source(t, Consul, srv.URL, rightToken, nil)
	task := observer.RestoreTask{Position: observer.Position{Incarnation: "dc2"}}
	if _, err := s.Target(t.Context(), task); !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), `"dc2"`) {
		t.Errorf("another datacenter: %v", err)
	}
	// Vault: a dump of another cluster is forced in.
	srv = newStandin(t, Vault)
	s = source(t, Vault, srv.URL, rightToken, nil)
	st, err := taken(t, s, false)
	if err != nil {
		t.Fatal(err)
	}
	next, err := s.Restore(t.Context(), observer.RestoreTask{Dir: st.Trees()[0].Dir, Position: observer.Position{Incarnation: "another"}})
	if err != nil || !strings.HasSuffix(srv.gotBy, "/snapshot-force") || !strings.Contains(strings.Join(next, " "), "unseal keys of the backup's cluster") {
		t.Errorf("%q by %s, %v", next, srv.gotBy, err)
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"": "http://127.0.0.1:8500", "10.0.0.1:8500": "http://10.0.0.1:8500", "https://c.example.com:8501/": "https://c.example.com:8501",
		"unix:///run/consul.sock": "http://localhost", "http://u:p@c:1": "", "ftp://c": "", "http://": "",
	} {
		s, err := New(Options{Kind: Consul, Address: text})
		if (err == nil) != (want != "") || err == nil && s.api.base != want || err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := New(Options{Kind: Consul, TLS: TLS{CAFile: "/nonexistent/ca.pem"}}); err == nil || hint.Of(err) == "" {
		t.Errorf("no CA: %v", err)
	}
	if _, err := New(Options{Kind: "etcd"}); err == nil {
		t.Error("any kind does")
	}
}

func TestChecks(t *testing.T) {
	levels := func(srv *standin, change func(*Options)) (out []check.Level) {
		for _, f := range source(t, Consul, srv.URL, rightToken, change).Checks(t.Context()) {
			out = append(out, f.Level)
			if f.Level != check.OK && f.Hint == "" {
				t.Errorf("%s: %s: no hint", f.Name, f.Said)
			}
		}
		return out
	}
	srv := newStandin(t, Consul)
	if got := levels(srv, nil); len(got) != 1 || got[0] != check.OK {
		t.Errorf("%v", got)
	}
	if got := levels(srv, func(o *Options) { o.TLS.SkipVerify = true }); len(got) != 2 || got[1] != check.Warn {
		t.Errorf("whoever answers: %v", got)
	}
	srv.set(func() { srv.fail["/v1/acl/token/self"] = 403 })
	if got := levels(srv, nil); got[0] != check.Fail {
		t.Errorf("a token that nobody knows: %v", got)
	}
}
