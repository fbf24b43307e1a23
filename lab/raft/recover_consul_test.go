//go:build e2e

package raft

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Two of three servers are lost for good. The steps that `eddy recover` prints, followed
// as they are printed, make the third the whole cluster, with every key, and two new
// ones join it.
func TestConsulRecover(t *testing.T) {
	const token, left = "aaaaaaaa-1111-4111-8111-000000000003", 2
	begun := time.Now()
	c := newConsuls(t)
	c.fresh(token)
	keys := map[string]string{}
	for i := range 50 {
		keys[fmt.Sprintf("app/%03d", i)] = fmt.Sprint("value ", i)
	}
	for k, v := range keys {
		c.must(0, http.MethodPut, "/v1/kv/"+k, []byte(v))
	}
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	o := newOperator(t, fmt.Sprintf("cluster: unimatrix\nreplica:\n  kind: consul\n  consul: {address: %q, token_file: %s}\n", c.http[left], file))
	plan := func() (p plan) {
		t.Helper()
		out, err := o.recover()
		p, perr := readPlan(out)
		if perr != nil || err != nil && p.State == "" {
			t.Fatalf("%v, %v\n%s", err, perr, out)
		}
		return p
	}
	p := plan()
	for end := time.Now().Add(30 * time.Second); p.State != "healthy" && time.Now().Before(end); p = plan() {
		time.Sleep(500 * time.Millisecond) // autopilot has not looked yet
	}
	if p.State != "healthy" || p.From != "live" || p.steps[0].Do != "backup" {
		t.Fatalf("%+v", p)
	}

	for i := range left {
		c.kill(i)
		must(t, os.RemoveAll(filepath.Join(c.dir, fmt.Sprint("data", i))))
	}
	for end := time.Now().Add(time.Minute); p.State != "quorum lost" && time.Now().Before(end); p = plan() {
		time.Sleep(500 * time.Millisecond)
	}
	if want := []string{"bring back", "salvage", "force", "join", "look", "backup"}; p.State != "quorum lost" || !slices.Equal(p.dos(), want) {
		t.Fatalf("%+v", p)
	}
	for _, do := range []string{"salvage", "force"} {
		for _, cmd := range p.step(do).Commands {
			if !strings.Contains(cmd.On, strconv.Itoa(c.port[left][1])) {
				t.Fatalf("%q is not the survivor", cmd.On)
			}
			switch {
			case strings.HasPrefix(cmd.Run, "systemctl stop"):
				c.kill(left)
			case strings.HasPrefix(cmd.Run, "systemctl start"):
				c.start(left)
			case strings.HasPrefix(cmd.Run, "eddy "):
				o.run(0, strings.Fields(strings.TrimSuffix(cmd.Run, "   # of unimatrix"))[1:]...)
			default:
				sh := exec.CommandContext(t.Context(), "sh", "-c", cmd.Run)
				sh.Env = []string{"PATH=" + os.Getenv("PATH"), "CONSUL_DATA_DIR=" + filepath.Join(c.dir, fmt.Sprint("data", left))}
				if out, err := sh.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", cmd.Run, err, out)
				}
			}
		}
	}
	for end := time.Now().Add(time.Minute); c.leader(left) != fmt.Sprintf("127.0.0.1:%d", c.port[left][1]); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the survivor does not lead")
		}
	}
	proven := func(i int) {
		t.Helper()
		for k, v := range keys {
			if got := c.must(i, http.MethodGet, "/v1/kv/"+k+"?raw", nil); got != v {
				t.Fatalf("%s is %q, want %q", k, got, v)
			}
		}
	}
	proven(left)
	c.must(left, http.MethodPut, "/v1/kv/after", []byte("written"))
	for i := range left { // new machines, that join it
		c.start(i)
	}
	c.led()
	proven(0)
	for _, cmd := range p.step("backup").Commands {
		o.run(0, strings.Fields(strings.TrimSuffix(cmd.Run, "   # of unimatrix"))[1:]...)
	}
	fmt.Printf("e2e recover consul: 2 of 3 lost, the steps followed as printed: %d keys proven, writes taken, 3 servers again; %s in all\n", len(keys), time.Since(begun).Round(time.Second))
}

// recover is what `eddy recover --json` prints.
func (o *operator) recover() (string, error) {
	cmd := exec.CommandContext(o.t.Context(), os.Getenv("EDDY"), "recover", "--json")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + o.dir, "EDDY_CONFIG=" + o.conf}
	out, err := cmd.Output()
	return string(out), err
}

// readPlan reads what `eddy recover --json` has printed.
func readPlan(out string) (p plan, err error) {
	for line := range strings.Lines(out) {
		var kind struct {
			MessageType string `json:"message_type"`
		}
		if err := json.Unmarshal([]byte(line), &kind); err != nil {
			return p, err
		}
		switch kind.MessageType {
		case "recover":
			err = json.Unmarshal([]byte(line), &struct{ *plan }{&p})
		case "recover_step":
			var s planStep
			err = json.Unmarshal([]byte(line), &s)
			p.steps = append(p.steps, s)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}
