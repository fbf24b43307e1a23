package detect

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shown is what systemctl 252 prints of a unit with everything in it, of one that
// is only installed, and of one that is not there.
const shown = `ExecStart={ path=/usr/bin/cosmovisor ; argv[]=/usr/bin/cosmovisor run start --home ${DAEMON_HOME} ; ignore_errors=no ; start_time=[Sat 2026-11-21 08:00:00 UTC] ; stop_time=[n/a] ; pid=812 ; code=(null) ; status=0/0 }
Environment=DAEMON_NAME=gaiad "DAEMON_HOME=/srv/my gaia" "NOTE=a \"b\" \\ \$c" AWS_SECRET_ACCESS_KEY=hunter2
EnvironmentFiles=/etc/default/gaiad (ignore_errors=yes)
EnvironmentFiles=/etc/gone (ignore_errors=yes)
MainPID=812
FragmentPath=/etc/systemd/system/gaiad.service
DropInPaths="/etc/systemd/system/gaiad.service.d/a b.conf" /run/systemd/system/gaiad.service.d/x.conf
User=gaia
WorkingDirectory=!/home/gaia
Id=gaiad.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled

ExecStart={ path=/bin/true ; argv[]=/bin/true ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
MainPID=0
Id=b.service
LoadState=loaded
ActiveState=inactive
UnitFileState=disabled

Id=gaiad.service
LoadState=loaded

MainPID=0
Id=c.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
`

func TestParseUnits(t *testing.T) {
	read := func(name string) ([]byte, error) {
		if name != "/etc/default/gaiad" {
			return nil, os.ErrNotExist
		}
		return []byte("# c\nGAIAD_HOME='/srv/other' \nTOKEN=hunter2\nDAEMON_NAME=\"gaiad2\"\n"), nil
	}
	got := parseUnits(shown, read)
	want := []Unit{
		{
			Name: "gaiad.service", Load: "loaded", Active: "active", File: "enabled", User: "gaia", Dir: "/home/gaia", PID: 812,
			Argv:  []string{"/usr/bin/cosmovisor", "run", "start", "--home", "${DAEMON_HOME}"},
			Env:   map[string]string{"DAEMON_NAME": "gaiad2", "DAEMON_HOME": "/srv/my gaia", "GAIAD_HOME": "/srv/other"},
			Files: []string{"/etc/systemd/system/gaiad.service", "/etc/systemd/system/gaiad.service.d/a b.conf", "/run/systemd/system/gaiad.service.d/x.conf", "/etc/default/gaiad", "/etc/gone"},
		},
		{Name: "b.service", Load: "loaded", Active: "inactive", File: "disabled", Argv: []string{"/bin/true"}, Env: map[string]string{}},
		{Name: "c.service", Load: "not-found", Active: "inactive", Env: map[string]string{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestQuotedWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                        nil,
		"A=b C=d":                 {"A=b", "C=d"},
		`"A=b c" D= ""`:           {"A=b c", "D=", ""},
		`"a \"q\" \\ \$x" b`:      {`a "q" \ $x`, "b"},
		`"never ends`:             {"never ends"},
		`  a   b  `:               {"a", "b"},
		`ends with a backslash \`: {"ends", "with", "a", "backslash", `\`},
	} {
		if diff := cmp.Diff(want, quotedWords(in)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

func TestAssignments(t *testing.T) {
	got := assignments(strings.Join([]string{
		"A=plain # c", "export B='single # quoted'", `C="double \"q\" \\ x"`, `D="$A/x"`, "E=`date`", "F=$(date)", "  G=1; H=2", "I=a\\ b", "A=last",
		"if [ x = y ]; then", "not a line", "1X=no", "J=\"over", "several\"", "K=", `L='a'"b"c`, "M=~/x", "N=x\r", `O="back\`,
	}, "\n"))
	want := map[string]assignment{
		"A": {"last", false}, "B": {"single # quoted", false}, "C": {`double "q" \ x`, false}, "D": {"$A/x", true}, "E": {"`date`", true}, "F": {"$(date)", true},
		"G": {"1", false}, "I": {"a b", false}, "J": {"over", true}, "K": {"", false}, "L": {"abc", false}, "M": {"~/x", true}, "N": {"x", false}, "O": {`back\`, true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(assignment{})); diff != "" {
		t.Error(diff)
	}
}

func TestUnitOf(t *testing.T) {
	for in, want := range map[string]string{
		"0::/system.slice/gaiad.service\n":                                       "gaiad.service",
		"0::/system.slice/gaiad.service/inner\n":                                 "gaiad.service",
		"0::/system.slice/system-gaiad.slice/gaiad@1.service\n":                  "gaiad@1.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/g.service\n": "",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                       "",
		"9:name=systemd:/system.slice/g.service\n8:pids:/x.service\n0::/\n":      "g.service",
		"8:pids:/x.service\n":                                                    "",
		"nonsense":                                                               "",
		"0::/":                                                                   "",
	} {
		if got := unitOf(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	for _, in := range []string{"0::/system.slice/docker-0123.scope\n", "4:memory:/docker/0123\n", "0::/kubepods/besteffort/pod1/x\n", "0::/kubepods.slice/x\n", "0::/machine.slice/libpod-1.scope\n", "1:x:/lxc/a\n"} {
		if !contained.MatchString(in) {
			t.Errorf("%q is no container", in)
		}
	}
	for _, in := range []string{"0::/system.slice/gaiad.service", "0::/system.slice/docker.service\n", "0::/user.slice/x"} {
		if contained.MatchString(in) {
			t.Errorf("%q is a container", in)
		}
	}
}

func TestReadProcesses(t *testing.T) {
	m := machine{t, t.TempDir()}
	m.write("17/cmdline", "gaiad\x00start\x00--home\x00/srv/g\x00")
	m.write("17/environ", "HOME=/home/gaia\x00AWS_SECRET_ACCESS_KEY=hunter2\x00")
	m.write("17/cgroup", "0::/system.slice/gaiad.service\n")
	m.link("/srv", "17/cwd")
	m.write("18/cmdline", "")
	m.write("18/cgroup", "0::/\n")
	m.write("19/cmdline", "gaiad\x00start\x00")
	m.write("19/cgroup", "0::/system.slice/docker-0123.scope\n")
	m.write("20/cmdline", "x\x00")
	m.write("20/cgroup", "0::/\n")
	m.write("self/cmdline", "x\x00")
	got, err := readProcesses(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	uid := os.Geteuid()
	want := []Process{
		{PID: 17, UID: uid, Argv: []string{"gaiad", "start", "--home", "/srv/g"}, Env: map[string]string{"HOME": "/home/gaia"}, Dir: "/srv", Unit: "gaiad.service"},
		{PID: 20, UID: uid, Argv: []string{"x"}, Env: map[string]string{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The process that reads is one of those that it reads.
func TestReadOwnProcess(t *testing.T) {
	all, err := readProcesses("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.PID == os.Getpid() {
			if diff := cmp.Diff(os.Args, p.Argv); diff != "" {
				t.Error(diff)
			}
			return
		}
	}
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil && !contained.Match(b) {
		t.Error("not found")
	}
}

func TestReadContainers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]string{
		"/containers/json": `[{"Id":"0123"},{"Id":"4567"}]`,
		"/containers/0123/json": `{"Name":"/osmo","State":{"Running":true},
			"Config":{"User":"1025","WorkingDir":"/w","Entrypoint":["cosmovisor"],"Cmd":["run","start"],"Env":["DAEMON_NAME=osmosisd","TOKEN=hunter2"]},
			"HostConfig":{"NetworkMode":"compose_default"},
			"Mounts":[{"Type":"volume","Source":"/var/lib/docker/volumes/o/_data","Destination":"/o"},{"Type":"tmpfs","Source":"","Destination":"/t"}],
			"NetworkSettings":{"IPAddress":"","Networks":{"b":{"IPAddress":"172.19.0.3"},"a":{"IPAddress":"172.18.0.3"}},
				"Ports":{"26657/tcp":[{"HostIp":"0.0.0.0","HostPort":"16657"},{"HostIp":"::","HostPort":"16657"}],"26656/tcp":null,"1/udp":[{"HostIp":"","HostPort":"1"}]}}}`,
		"/containers/4567/json": `{"Name":"/x","State":{},"Config":{"Cmd":["x"]},"HostConfig":{"NetworkMode":"host"},"NetworkSettings":{}}`,
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || answers[r.URL.Path] == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, answers[r.URL.Path])
	})}}
	srv.Start()
	defer srv.Close()
	got, err := readContainers(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	want := []Container{
		{
			Name: "osmo", User: "1025", Dir: "/w", Argv: []string{"cosmovisor", "run", "start"}, Env: map[string]string{"DAEMON_NAME": "osmosisd"}, Running: true,
			Mounts: []Mount{{"/var/lib/docker/volumes/o/_data", "/o"}}, Addr: "172.18.0.3", Ports: map[string]string{"26657": "127.0.0.1:16657"},
		},
		{Name: "x", Argv: []string{"x"}, Env: map[string]string{}, Ports: map[string]string{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	delete(answers, "/containers/4567/json")
	if _, err := readContainers(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
	if _, err := readContainers(t.Context(), socket+"-none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestRPC(t *testing.T) {
	answers := map[string]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answers[r.URL.Path] == "redirect" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		fmt.Fprint(w, answers[r.URL.Path])
	}))
	defer srv.Close()
	rpc := RPC{Timeout: 5 * time.Second}
	for _, x := range []struct {
		answer, err string
		want        Status
	}{
		{`{"jsonrpc":"2.0","id":-1,"result":{"node_info":{"id":"ab","network":"gaia-1"}}}`, "", Status{"ab", "gaia-1"}},
		{`{"node_info":{"id":"ab","network":"sei-1"}}`, "", Status{"ab", "sei-1"}},
		{`{"result":{}}`, "does not say of which chain", Status{}},
		{`<html>`, "not what was expected", Status{}},
		{`[]`, "", Status{}},
		{"redirect", "302", Status{}},
		{`{"result":{"node_info":{"network":"` + strings.Repeat("x", maxAnswer) + `"}}}`, "not what was expected", Status{}},
	} {
		answers["/status"] = x.answer
		got, err := rpc.Status(t.Context(), srv.URL)
		if got != x.want || (x.want == Status{}) != (err != nil) || x.err != "" && !strings.Contains(err.Error(), x.err) {
			t.Errorf("%.60s: %v, %v", x.answer, got, err)
		}
	}
	answers["/net_info"] = `{"result":{"peers":[
		{"node_info":{"id":"aa","listen_addr":"tcp://0.0.0.0:26656","other":{"rpc_address":"tcp://0.0.0.0:26657"}},"is_outbound":true,"remote_ip":"10.0.0.1"},
		{"node_info":{"id":"bb","listen_addr":"evil:\n1","other":{}},"remote_ip":"10.0.0.2"},
		{"node_info":{"id":"cc"},"remote_ip":"evil.example.com/x"}]}}`
	peers, err := rpc.Peers(t.Context(), srv.URL)
	want := []Peer{{ID: "aa", IP: "10.0.0.1", Port: "26656", RPC: "tcp://0.0.0.0:26657", Outbound: true}, {ID: "bb", IP: "10.0.0.2"}}
	if diff := cmp.Diff(want, peers); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
}

// Nobody is asked but those who were configured and those who say that they are open.
func TestWitnessesAsked(t *testing.T) {
	chain := fakeChain{asked: make(chan string, 100)}
	connected := []Peer{
		{ID: idA, IP: "10.0.0.1", RPC: "tcp://0.0.0.0:1234"},
		{ID: idB, IP: "10.0.0.2", RPC: "tcp://127.0.0.1:26657"},
		{ID: idC, IP: "10.0.0.3", RPC: "unix:///x.sock"},
		{ID: "d", IP: "10.0.0.4", RPC: "tcp://0.0.0.0:99999"},
		{ID: "e", IP: "10.0.0.5"},
	}
	for i := range 40 {
		connected = append(connected, Peer{ID: fmt.Sprint(i), IP: fmt.Sprintf("10.1.0.%d", i), RPC: "tcp://[::]:26657"})
	}
	urls := rpcsOf([]string{idC + "@c.example.com:26656", idB + "@10.0.0.2:26656", "e@10.0.0.5:26656", "nonsense", "tcp://" + idA + "@10.9.9.9:1"}, connected, false)
	if got := witnesses(t.Context(), chain, "x-1", idSelf, urls); got != nil {
		t.Errorf("%v", got)
	}
	close(chain.asked)
	asked := map[string]bool{}
	for u := range chain.asked {
		asked[u] = true
	}
	if len(asked) != mostAsked || !asked["http://10.0.0.5:26657"] || !asked["http://10.0.0.1:1234"] || asked["http://10.0.0.2:26657"] || asked["http://c.example.com:26657"] {
		t.Errorf("%v", asked)
	}
	if got := witnesses(t.Context(), chain, "", idSelf, urls); got != nil {
		t.Errorf("%v", got)
	}
}

func TestGuesses(t *testing.T) {
	for _, x := range []struct {
		name string
		c    command
		want string // the first one
	}{
		{"flag before variable", command{argv: []string{"gaiad", "start", "--home", "/a"}, env: map[string]string{"GAIAD_HOME": "/b"}}, "/a"},
		{"variable before the usual place", command{argv: []string{"gaiad", "start"}, env: map[string]string{"GAIA_HOME": "/b"}, home: "/h"}, "/b"},
		{"the last flag counts", command{argv: []string{"gaiad", "--home=/a", "start", "--home=/b"}}, "/b"},
		{"relative to the working directory", command{argv: []string{"gaiad", "start", "--home", "x"}, dir: "/w"}, "/w/x"},
		{"relative to nothing", command{argv: []string{"gaiad", "start", "--home", "x"}}, ""},
		{"a variable of systemd", command{argv: []string{"gaiad", "start", "--home", "${DAEMON_HOME}"}, env: map[string]string{"DAEMON_HOME": "/d"}}, "/d"},
		{"an unknown variable", command{argv: []string{"gaiad", "start", "--home", "$X/y"}}, ""},
		{"a shell's tilde", command{argv: []string{"bash", "-lc", "exec gaiad start --home ~/x"}, home: "/h"}, "/h/x"},
		{"env in front", command{argv: []string{"/usr/bin/env", "A=b", "gaiad", "start"}, home: "/h"}, "/h/.gaiad"},
		{"supervise", command{argv: []string{"eddy", "supervise", "--socket=/s", "--", "sh", "-c", "gaiad start --home /a"}}, "/a"},
		{"the home that supervise guards", command{argv: []string{"eddy", "supervise", "--home", "/a", "--", "/x.sh"}}, "/a"},
		{"eddy's own verbs run no node", command{argv: []string{"eddy", "backup", "--home", "/a"}}, ""},
		{"cometbft", command{argv: []string{"cometbft", "node"}, env: map[string]string{"CMTHOME": "/c"}}, "/c"},
		{"nothing", command{}, ""},
		{"a flag without a value", command{argv: []string{"gaiad", "start", "--home"}, dir: "/w"}, "/w/true"},
	} {
		got := ""
		if all := x.c.guesses(); len(all) > 0 {
			got = all[0].dir
		}
		if got != x.want {
			t.Errorf("%s: %q, want %q", x.name, got, x.want)
		}
	}
}

func TestReadScript(t *testing.T) {
	s, err := ReadScript("f", "SERVICE_NAME=$X\nPORT=x\nSTOP_TIMEOUT=900\nS3BUCKET=s3://your-s3-bucket/\nS3BUCKET_REGION=us-east-2\nSTART_DIRECTORY=rel\nSHOULD_SHUTDOWN='true'\nBACKUP_CONFIG=\"x $Y\"\n")
	if err != nil {
		t.Fatal(err)
	}
	want := Script{
		Timeout: Fact{"900s", "STOP_TIMEOUT in f"}, Deadline: Fact{"1200s", "longer than the time-out"},
		Notes: []string{
			"SERVICE_NAME in f is computed by the shell: not taken",
			"START_DIRECTORY in f is no absolute path: not taken",
			"PORT in f is no port: not taken",
			"S3BUCKET in f is still the script's example: not taken",
			"SHOULD_SHUTDOWN was true: eddy does not shut the machine down",
			"what BACKUP_CONFIG lists is not used: eddy finds the databases itself; `eddy keys backup` keeps configuration and keys, encrypted",
		},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	if _, err := ReadScript("f", "S3BUCKET=https://u:hunter2@x\n"); err != nil {
		t.Error(err)
	}
}

// The old settings name a unit that this machine has, or not.
func TestScriptChoice(t *testing.T) {
	m := machine{t, t.TempDir()}
	h := Host{User: m.users, Units: []Unit{service("loom.service", "gaia", "/opt/run.sh")}}
	s := Script{Unit: Fact{"loom", "x"}, Home: Fact{"/srv/loom", "y"}}
	if diff := cmp.Diff(Choice{Unit: "loom", Home: s.Home}, s.Choice(h, Choice{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Choice{Home: s.Home}, s.Choice(Host{User: m.users}, Choice{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Choice{Container: "c"}, s.Choice(h, Choice{Container: "c"})); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseUnits(f *testing.F) {
	f.Add(shown)
	f.Add("Id=x\nExecStart={ argv[]= ; ignore_errors=\nEnvironment=\"\nMainPID=-\n\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, u := range parseUnits(text, func(string) ([]byte, error) { return []byte(text), nil }) {
			if u.Name == "" {
				t.Error("a unit without a name")
			}
			for name := range u.Env {
				if !kept(name) {
					t.Errorf("%q was kept", name)
				}
			}
			command{u.Argv, u.Env, u.Dir, "", u.Name}.guesses()
		}
	})
}

func FuzzAssignments(f *testing.F) {
	f.Add("A=b\nexport C=\"d\\\"\" # x\nE='f\nS3BUCKET=s3://x/\nSTOP_TIMEOUT=9")
	f.Fuzz(func(t *testing.T, text string) {
		for name := range assignments(text) {
			if !isName(name) {
				t.Errorf("%q is no name", name)
			}
		}
		s, err := ReadScript("f", text)
		if err == nil && s.Store.Value != "" && !strings.HasPrefix(s.Store.Value, "s3://") {
			t.Errorf("%q", s.Store.Value)
		}
	})
}

func FuzzGuesses(f *testing.F) {
	f.Add("eddy\x00supervise\x00--\x00sh\x00-c\x00exec gaiad start --home ~/x", "HOME=/h", "/w")
	f.Add("env\x00A=b\x00gaiad\x00--home=$X", "X=y", "")
	f.Fuzz(func(t *testing.T, argv, env, dir string) {
		c := command{strings.Split(argv, "\x00"), environ(strings.Split(env, "\x00")), dir, "", "x"}
		for _, g := range c.guesses() {
			if !filepath.IsAbs(g.dir) || filepath.Clean(g.dir) != g.dir {
				t.Errorf("%q", g.dir)
			}
		}
	})
}

func FuzzInspected(f *testing.F) {
	f.Add([]byte(`{"Name":"/x","NetworkSettings":{"Ports":{"1/tcp":[{"HostIp":"::","HostPort":"2"}]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d inspected
		if json.Unmarshal(data, &d) == nil {
			c := d.container()
			for _, at := range c.Ports {
				if host, _, err := net.SplitHostPort(at); err == nil && host == "0.0.0.0" {
					t.Error("an address to listen on is none to ask")
				}
			}
		}
	})
}

func FuzzTopLevel(f *testing.F) {
	f.Add("ChainID: \"x\"\nA: b # c\n  D: e\n'F': g\n")
	f.Fuzz(func(t *testing.T, text string) {
		for key, value := range topLevel(text) {
			if key == "" || strings.ContainsAny(key+value, "\n") {
				t.Errorf("%q: %q", key, value)
			}
		}
	})
}

func TestCommandElsewhere(t *testing.T) {
	dir := t.TempDir()
	for _, x := range []struct {
		c    command
		want string
		bad  bool
	}{
		{c: command{argv: []string{"/usr/bin/gaiad", "start", "--home", "/h", "--p2p.laddr=tcp://1:2", "--minimum-gas-prices", "0.1uatom", "--x-crisis-skip-assert-invariants", "--rpc.laddr", "tcp://0.0.0.0:1"}}, want: "/usr/bin/gaiad start --minimum-gas-prices 0.1uatom --x-crisis-skip-assert-invariants --home {home}"},
		{c: command{argv: []string{"/opt/cosmovisor", "run", "start"}, env: map[string]string{"DAEMON_NAME": "gaiad", "DAEMON_HOME": dir}}, want: dir + "/cosmovisor/current/bin/gaiad start --home {home}"},
		{c: command{argv: []string{"/x/eddy", "supervise", "--socket", "s", "--", "/x/eddy", "node", "run", "--home", "/h", "--app", "ledger"}}, want: "/x/eddy node run --app ledger --home {home}"},
		{c: command{argv: []string{"/usr/bin/gaiad", "keys", "list"}}},
		{c: command{argv: []string{"/home/x/run.sh", "start"}}},
		{c: command{argv: []string{"/usr/bin/cometbft", "node", "--proxy_app", "tcp://127.0.0.1:1"}}, bad: true},
	} {
		argv, err := x.c.elsewhere()
		if got := strings.Join(argv, " "); got != x.want || (err != nil) != x.bad {
			t.Errorf("%v: %q, %v", x.c.argv, got, err)
		}
	}
}
