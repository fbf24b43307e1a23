//go:build e2e

package raft

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// A Consul that listens by TLS only, and wants a certificate of its clients.
func TestConsulTLS(t *testing.T) {
	bin, dir := os.Getenv("EDDY_LAB_CONSUL"), t.TempDir()
	for _, args := range [][]string{{"ca", "create"}, {"cert", "create", "-server", "-additional-ipaddress=127.0.0.1"}, {"cert", "create", "-client"}} {
		cmd := exec.CommandContext(t.Context(), bin, append([]string{"tls"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	ca := file("consul-agent-ca.pem")
	var port [4]int
	for i := range port {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		port[i] = l.Addr().(*net.TCPAddr).Port
		must(t, l.Close())
	}
	conf, err := json.Marshal(map[string]any{
		"server": true, "bootstrap_expect": 1, "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "data_dir": file("data"), "node_name": "server-0",
		"ports":       map[string]int{"http": -1, "https": port[0], "server": port[1], "serf_lan": port[2], "serf_wan": port[3], "dns": -1, "grpc": -1, "grpc_tls": -1},
		"performance": map[string]int{"raft_multiplier": 1}, "connect": map[string]bool{"enabled": false}, "disable_update_check": true,
		"tls": map[string]any{"defaults": map[string]any{
			"ca_file": ca, "cert_file": file("dc1-server-consul-0.pem"), "key_file": file("dc1-server-consul-0-key.pem"), "verify_incoming": true, "verify_outgoing": true,
		}},
	})
	must(t, err)
	must(t, os.WriteFile(file("server.json"), conf, 0o600))
	p, err := lab.StartProcess([]string{bin, "agent", "-config-file=" + file("server.json")}, []string{"HOME=" + dir}, file("log"))
	must(t, err)
	t.Cleanup(func() { _ = p.Stop(0) }) // it says that it was killed

	yaml := fmt.Sprintf("cluster: unimatrix\nreplica:\n  kind: consul\n  consul: {address: \"https://127.0.0.1:%d\", tls: {ca_file: %s, cert_file: %s, key_file: %s}}\n",
		port[0], ca, file("dc1-client-consul-0.pem"), file("dc1-client-consul-0-key.pem"))
	o := newOperator(t, yaml)
	for until := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		cmd := exec.CommandContext(t.Context(), os.Getenv("EDDY"), "doctor")
		cmd.Env = []string{"HOME=" + o.dir, "EDDY_CONFIG=" + o.conf}
		if out, _ := cmd.CombinedOutput(); strings.Contains(string(out), ", 0 FAIL") { // else nobody leads yet
			break
		} else if time.Now().After(until) {
			t.Fatalf("%s", out)
		}
	}
	if out := o.run(0, "backup"); !strings.Contains(out, "READY") {
		t.Errorf("%s", out)
	}
	o.point(fmt.Sprintf(", cert_file: %s, key_file: %s", file("dc1-client-consul-0.pem"), file("dc1-client-consul-0-key.pem")), "")
	o.run(12, "backup") // without a certificate of its own
	o.point(", tls: {ca_file: "+ca+"}", "")
	if out := o.run(12, "backup"); !strings.Contains(out, "certificate") {
		t.Errorf("a server that nobody vouches for: %s", out)
	}
	fmt.Println("consul 1.21.5 by TLS: backed up with a client's certificate, refused without")
}
