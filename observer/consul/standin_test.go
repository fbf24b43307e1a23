package consul

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

const rightToken = "11111111-2222-4333-8444-555555555555"

// realSnapshot is of a Consul 1.21.5 with ACLs.
func realSnapshot(t testing.TB) []byte {
	b, err := os.ReadFile("testdata/consul-1.21.5.snap")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// standin answers as a server of one of the three does, and lies on demand. The suite
// that it passes the real Consul passes, too.
type standin struct {
	kind string
	snap []byte
	*httptest.Server

	mu     sync.Mutex
	leader string // "": nobody leads
	lag    string // the header LastContact
	dead   int    // servers that are not there
	keys   []string
	mute   bool // it accepts calls and does not answer
	half   bool // of a snapshot, and then nothing
	fail   map[string]int
	asked  []string
	got    []byte // what was given back
	gotBy  string // method and path
	seen   string // the token of the last call
}

func newStandin(t *testing.T, kind string) *standin {
	s := &standin{kind: kind, leader: "10.0.0.1:8300", lag: "20", snap: realSnapshot(t), fail: map[string]int{}}
	if kind != Consul {
		sys, _ := systemOf(kind)
		s.snap = packed(t, sys, nil)
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.Server.CloseClientConnections(); s.Server.Close() })
	return s
}

func (s *standin) set(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *standin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	sys, _ := systemOf(s.kind)
	s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI())
	s.seen = r.Header.Get(sys.token)
	leader, lag, dead, keys, snap, fail := s.leader, s.lag, s.dead, s.keys, s.snap, s.fail[r.URL.Path]
	mute, half := s.mute, s.half
	s.mu.Unlock()
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	path := r.URL.Path
	switch {
	case mute:
		<-r.Context().Done()
	case fail != 0:
		http.Error(w, "no: "+r.Header.Get(sys.token), fail)
	case path == "/v1/status/leader":
		answer(leader)
	case path == "/v1/status/peers":
		answer([]string{"10.0.0.1:8300", "10.0.0.2:8300", "10.0.0.3:8300"})
	case path == "/v1/sys/health":
		answer(map[string]any{"initialized": true, "version": "1.20.0", "cluster_id": "c1"})
	case path == "/v1/sys/leader":
		answer(map[string]any{"ha_enabled": true, "is_self": leader != "", "leader_address": ""})
	case r.Header.Get(sys.token) != rightToken:
		http.Error(w, "Permission denied", http.StatusForbidden)
	case path == sys.snapshot || path == sys.snapshot+"-force":
		if r.Method == http.MethodGet {
			_, stale := r.URL.Query()["stale"]
			if leader == "" && !stale {
				http.Error(w, "No cluster leader", http.StatusInternalServerError)
				return
			}
			if sys.meta != "" {
				w.Header().Set(sys.meta+"KnownLeader", fmt.Sprint(leader != ""))
				w.Header().Set(sys.meta+"LastContact", lag)
				if !stale {
					w.Header().Set(sys.meta+"LastContact", "0")
				}
				if s.kind == Consul {
					w.Header().Set(sys.meta+"Index", "53")
				}
			}
			if half {
				_, _ = w.Write(snap[:len(snap)/2])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			_, _ = w.Write(snap)
			return
		}
		b, _ := io.ReadAll(r.Body)
		s.set(func() { s.got, s.gotBy = b, r.Method+" "+path })
	case path == "/v1/agent/self" && s.kind == Consul:
		answer(map[string]any{
			"Config": map[string]any{"Datacenter": "dc1", "NodeName": "n2", "NodeID": "id2", "Version": "1.21.5"},
			"Stats":  map[string]any{"raft": map[string]string{"state": "Follower", "term": "2", "commit_index": "53", "last_contact": "20ms"}},
		})
	case path == "/v1/agent/self":
		answer(map[string]any{"config": map[string]any{"Region": "global", "Version": map[string]string{"Version": "1.10.0"}}, "stats": map[string]any{}})
	case path == "/v1/operator/raft/configuration":
		var servers []map[string]any
		for i := 1; i <= 3; i++ {
			servers = append(servers, map[string]any{"ID": fmt.Sprint("id", i), "Node": fmt.Sprint("n", i), "Address": fmt.Sprintf("10.0.0.%d:8300", i), "Voter": true, "Leader": i == 1})
		}
		answer(map[string]any{"Servers": servers})
	case path == "/v1/agent/members":
		var members []map[string]any
		for i := 1; i <= 3; i++ {
			status := any(1)
			if i > 3-dead {
				status = 4
			}
			if s.kind == Nomad {
				status = map[any]string{1: "alive", 4: "failed"}[status]
			}
			members = append(members, map[string]any{"Addr": fmt.Sprint("10.0.0.", i), "Status": status, "Tags": map[string]string{"role": s.kind, "dc": "dc1", "port": "8300"}})
		}
		if s.kind == Nomad {
			answer(map[string]any{"Members": members})
			return
		}
		answer(members)
	case path == "/v1/sys/storage/raft/configuration":
		answer(json.RawMessage(`{"data": {"config": {"servers": [{"node_id": "a", "address": "10.0.0.1:8201", "leader": true, "voter": true}]}}}`))
	case path == "/v1/kv/" && len(keys) == 0:
		http.Error(w, "", http.StatusNotFound)
	case path == "/v1/kv/":
		answer(keys)
	case path == "/v1/catalog/services":
		answer(map[string][]string{"consul": {}})
	case path == "/v1/jobs":
		answer(make([]struct{}, len(keys)))
	case path == "/v1/sys/mounts":
		mounts := map[string]any{"sys/": 1, "identity/": 1, "cubbyhole/": 1}
		for _, k := range keys {
			mounts[k] = 1
		}
		answer(map[string]any{"data": mounts})
	case path == "/v1/acl/token/self":
		answer(json.RawMessage(`{"AccessorID": "acc", "Policies": [{"Name": "global-management"}]}`))
	default:
		http.NotFound(w, r)
	}
}

// packed is an archive of a system; change may spoil what it is made of.
func packed(t testing.TB, sys system, change func(members map[string][]byte)) []byte {
	state := []byte("state of " + sys.kind)
	members := map[string][]byte{
		metaName:  fmt.Appendf(nil, `{"Version":1,"ID":"2-53-1795297142507","Index":53,"Term":2,"Size":%d,"Configuration":{"Servers":[{"ID":"id1","Address":"10.0.0.1:8300"}]}}`, len(state)),
		stateName: state,
	}
	members[sumsName] = fmt.Appendf(nil, "%x  %s\n%x  %s\n", sha256.Sum256(members[metaName]), metaName, sha256.Sum256(state), stateName)
	for _, more := range sys.sums[1:] {
		members[more] = []byte("sealed")
	}
	if change != nil {
		change(members)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, name := range []string{metaName, stateName, sumsName, "SHA256SUMS.sealed", "more"} {
		body, ok := members[name]
		if !ok {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// source asks a server with what it wants.
func source(t *testing.T, kind, address, token string, change func(*Options)) *Source {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Kind: kind, Cluster: "unimatrix", Address: address, Named: true, Mode: Auto, MaxLag: time.Second, TokenFile: file}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// taken captures as a backup does, or salvages.
func taken(t *testing.T, s *Source, salvage bool) (*snapshot.Stage, error) {
	t.Helper()
	st, err := snapshot.CreateStage(fsx.FS{}, "20261120T235500Z-auto-0a1b2c", []snapshot.Root{{Path: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	if salvage {
		err = s.Salvage(t.Context(), st)
	} else {
		err = s.Capture(t.Context(), st)
	}
	if err == nil {
		err = st.Seal(t.Context())
	} else if _, serr := os.Stat(st.Place(observer.DumpName)); serr == nil {
		t.Error("something stays of a dump that is none")
	}
	return st, err
}

func (s *standin) calls(part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.asked {
		if strings.Contains(a, part) {
			n++
		}
	}
	return n
}
