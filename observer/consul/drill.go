package consul

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/alone"
	"github.com/eddy-backup/eddy/snapshot"
)

// Drill is how a snapshot is brought to life: in one throw-away server on loopback.
type Drill struct {
	// Command runs an agent; "{home}" in it stands for the directory with its
	// configuration. Empty: the consul of the PATH.
	Command []string
	Check   []string // must succeed beside the living copy; nil: none
	Timeout time.Duration
}

// Possible implements observer.Driller.
func (s *Source) Possible(context.Context, observer.Position) error {
	if s.sys.kind != Consul {
		return fmt.Errorf("%w: eddy starts no %s", observer.ErrNotPossible, s.sys.title)
	}
	if _, err := exec.LookPath(s.o.Drill.command("")[0]); err != nil {
		return hint.Add(fmt.Errorf("%w: no program of Consul is here: %w", observer.ErrNotPossible, err),
			`install the consul that the servers run, or say where it is: `+"`drill.command: [/DIR/consul, agent, \"-config-dir={home}\"]`")
	}
	return nil
}

// Prepare implements observer.Driller: the copy needs nothing of the cluster.
func (s *Source) Prepare(context.Context, observer.DrillTask) error { return nil }

// Sweep implements observer.Driller: the server dies with the eddy that started it.
func (s *Source) Sweep(context.Context, string) error { return nil }

func (d Drill) command(home string) []string {
	argv := slices.Clone(d.Command)
	if len(argv) == 0 {
		argv = []string{Consul, "agent", "-config-dir={home}"}
	}
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], "{home}", home)
	}
	return argv
}

// Drill implements observer.Driller: a fresh server with a token of its own takes the
// snapshot, gives back as many keys as that has, and takes a write.
func (s *Source) Drill(ctx context.Context, t observer.DrillTask) (r observer.DrillReport, err error) {
	say := t.Say
	if say == nil {
		say = func(string, string) {}
	}
	dump := filepath.Join(t.Scratch, observer.DrillHome)
	got, err := s.Check(ctx, []snapshot.Tree{{Dir: dump}}, observer.Position{})
	if err != nil {
		return r, err
	}
	r = observer.DrillReport{Outcome: observer.DrillFailed, Isolated: true, Network: "host"}
	if len(got.Findings) > 0 {
		r.Why = got.Findings[0]
		return r, nil
	}
	tctx, cancel := context.WithTimeout(ctx, s.o.Drill.Timeout)
	defer cancel()
	srv, err := s.launch(tctx, t.Scratch, got.At.Incarnation)
	if err != nil {
		return r, err
	}
	r.Command = srv.Argv()
	defer func() { err = errors.Join(err, srv.Stop()) }()
	began := s.now()
	err = srv.prove(tctx, dump, got, say, &r)
	r.StartSeconds = s.now().Sub(began).Seconds()
	switch {
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case err != nil:
		r.Why, r.Hint, r.Late, r.Log = err.Error(), hint.Of(err), tctx.Err() != nil, srv.Tail()
	default:
		r.Outcome = observer.DrillPassed
	}
	return r, nil
}

// server is a throw-away one.
type server struct {
	*Source // that asks it
	*alone.Server
	check []string
	env   []string // of the check
}

// launch starts a server that nobody else knows and that knows nobody: no peers, no
// mesh, no gossip but on loopback, in the datacenter of the dump.
func (s *Source) launch(ctx context.Context, scratch, dc string) (*server, error) {
	home := filepath.Join(scratch, "server")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	var secret [16]byte
	_, _ = rand.Read(secret[:]) // it never fails
	h := hex.EncodeToString(secret[:])
	token := strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	ports, err := alone.Ports(4)
	if err != nil {
		return nil, err
	}
	conf, err := json.Marshal(map[string]any{
		"server": true, "bootstrap_expect": 1, "datacenter": dc, "node_name": "eddy-drill",
		"bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "data_dir": filepath.Join(home, "data"),
		"ports":   map[string]int{"http": ports[0], "server": ports[1], "serf_lan": ports[2], "serf_wan": ports[3], "dns": -1, "grpc": -1, "grpc_tls": -1},
		"connect": map[string]bool{"enabled": false}, "peering": map[string]bool{"enabled": false}, "disable_update_check": true,
		"performance": map[string]int{"raft_multiplier": 1}, // it waits for nobody
		"acl":         map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]string{"initial_management": token, "agent": token}},
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(home, "token")
	if err := errors.Join(os.WriteFile(filepath.Join(home, "eddy.json"), conf, 0o600), os.WriteFile(file, []byte(token), 0o600)); err != nil {
		return nil, err
	}
	address := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	asks, err := New(Options{Kind: Consul, Cluster: s.o.Cluster, Address: address, Named: true, Mode: Consistent, TokenFile: file})
	if err != nil {
		return nil, err
	}
	env := alone.Bare(home)
	srv, err := alone.Start(alone.Command{Argv: s.o.Drill.command(home), Env: env, Dir: home, Log: filepath.Join(scratch, "server.log")})
	if err != nil {
		return nil, fmt.Errorf("start a server for the drill: %w", err)
	}
	return &server{Source: asks, Server: srv, check: s.o.Drill.Check, env: append(env, "CONSUL_HTTP_ADDR="+address, "CONSUL_HTTP_TOKEN_FILE="+file)}, nil
}

// prove brings the dump to life and compares it with what it should be.
func (v *server) prove(ctx context.Context, dump string, want observer.Checked, say func(phase, text string), r *observer.DrillReport) error {
	say("drill", "starting a server on "+v.api.base)
	if err := v.ready(ctx); err != nil {
		return err
	}
	st, err := v.Describe(ctx)
	if err != nil {
		return err
	}
	r.Version = st.Program()
	say("drill", "giving it the snapshot")
	if err := v.give(ctx, v.api, v.sys.snapshot, filepath.Join(dump, observer.DumpName)); err != nil {
		return err
	}
	if err := v.led(ctx, v.api); err != nil {
		return err
	}
	h, err := consulHolds(ctx, v.api)
	if err != nil {
		return err
	}
	r.Proved = h.what + " read from a server that lives on it"
	if n, ok := want.Proven["keys"]; ok || want.Opened == "all" {
		if int64(h.keys) != n {
			return fmt.Errorf("the copy has %d keys, the snapshot %d", h.keys, n)
		}
		r.Proved = h.what + " read from a server that lives on it, as many keys as the snapshot has"
	}
	const canary = "eddy-drill"
	resp, err := v.api.send(ctx, http.MethodPut, "/v1/kv/"+canary, nil, strings.NewReader("alive"), 5)
	if err != nil {
		return fmt.Errorf("it takes no write: %w", err)
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	r.Proved += "; it takes writes"
	if len(v.check) == 0 {
		return nil
	}
	if out, err := alone.Run(ctx, "", v.env, v.check...); err != nil {
		return hint.Add(fmt.Errorf("drill.check: %s: %w: %s", v.check[0], err, plain(string(out[:min(len(out), maxSaid)]), "")),
			"run it by hand: CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN_FILE tell it where the copy is")
	}
	r.Proved += "; drill.check succeeded"
	return nil
}

// ready waits until the server leads itself and takes its token.
func (v *server) ready(ctx context.Context) error {
	return backoff.Retry(func() error {
		select {
		case <-v.Done():
			return backoff.Permanent(errors.New("the server ended before it was ready"))
		default:
		}
		st, err := v.Describe(ctx)
		if err == nil {
			err = v.Gate(ctx, st)
		}
		if err == nil {
			_, err = consulHolds(ctx, v.api) // with a token that is known only when it leads
		}
		return err
	}, backoff.WithContext(backoff.NewConstantBackOff(200*time.Millisecond), ctx))
}
