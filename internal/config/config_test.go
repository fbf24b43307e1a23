package config

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const good = `cluster: gaia-main
replica:
  home: /var/lib/gaia
  rpc: http://127.0.0.1:26657
  witnesses: [http://10.0.0.11:26657, http://10.0.0.12:26657]
  control: {supervise: /run/eddy/node.sock, timeout: 60s}
store: {url: "s3://backups/eddy", region: eu-west-1}
`

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "eddy.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// problems are what Load says, with the file's directory cut off.
func problems(t *testing.T, err error) []string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("no *Error but %v", err)
	}
	var out []string
	for _, p := range e.Problems {
		p.File = filepath.Base(p.File)
		if p.File == "." {
			p.File = ""
		}
		out = append(out, p.String())
	}
	return out
}

func origin(c *Config, key string) Origin {
	for _, s := range c.Settings() {
		if s.Key == key {
			return s.Origin
		}
	}
	return Origin{Name: "no such key: " + key}
}

func TestLoadFileAndDefaults(t *testing.T) {
	file := write(t, good)
	got, err := Load(file, nil, Overrides{}, NeedRun)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Cluster: "gaia-main",
		Replica: Replica{
			Kind: "cometbft", Home: "/var/lib/gaia", RPC: "http://127.0.0.1:26657",
			Witnesses: []string{"http://10.0.0.11:26657", "http://10.0.0.12:26657"},
			Control:   Control{Way: Way{Supervise: "/run/eddy/node.sock", Systemd: Systemd{Rights: "polkit"}}, Timeout: Duration(time.Minute), Deadline: Duration(10 * time.Minute)},
			App:       App{Control: Way{Systemd: Systemd{Rights: "polkit"}}},
			Command:   Command{Timeout: Duration(time.Hour), Expect: CommandExpect{Form: "any"}},
			Consul:    Consul{Mode: "auto", MaxLag: Duration(5 * time.Second)},
			Nomad:     Nomad{Mode: "auto", MaxLag: Duration(5 * time.Second)},
			Zookeeper: Zookeeper{AllowOutage: "false"},
			Etcd:      Etcd{Member: "first", MaxLag: 1000, Timeout: Duration(10 * time.Minute), Etcdutl: "etcdutl", Etcd: "etcd"},
			Swarm:     Swarm{DataRoot: "/var/lib/docker", AllowRunningTasks: "false"},
		},
		Store:     Store{URL: "s3://backups/eddy", Region: "eu-west-1", PathStyle: "auto"},
		Schedule:  "@daily",
		Workdir:   "/var/lib/eddy",
		Retention: Retention{By: "none"},
		Backup:    Backup{Level: 1, VolumeSize: 256 << 30, PerNode: "false", WhenBehind: WhenBehind{Action: "wait", For: 15 * time.Minute}, WhenBusy: WhenBehind{Action: "fail"}, WhenStopped: "refuse", Require: Require{Attested: 1, Opened: "possible"}},
		Verify:    Verify{Open: "true"},
		Drill:     Drill{Blocks: 20, Timeout: Duration(30 * time.Minute), Isolated: "true"},
		Keys:      Keys{Preset: "auto", ValidatorKey: "false", Keep: 10},
		Stage:     Stage{Fallback: "none"},
		Check:     Check{Memory: 1 << 30},
		Attest:    Attest{Wait: Duration(time.Minute), Trusted: Trusted{Period: Duration(336 * time.Hour)}},
		Catalog:   "none",
		LogFormat: "console",
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
	if o := origin(got, "replica.rpc"); o != (Origin{Source: FromFile, File: file, Line: 4}) {
		t.Errorf("origin of replica.rpc: %+v", o)
	}
	if o := origin(got, "schedule").String(); o != "default" {
		t.Errorf("origin of schedule: %s", o)
	}
}

func TestFlagsWinOverVariablesOverFile(t *testing.T) {
	file := write(t, good)
	env := []string{
		"EDDY_CLUSTER=from-env", "EDDY_STORE_REGION=env-1", "EDDY_STORE_PROFILE=", "HOME=/root",
		"EDDY_REPLICA_WITNESSES=http://a:1, http://b:2", "EDDY_ROOTS=x=/srv/x,y=/srv/y",
		`EDDY_INCLUDE=["a,b", c]`, "EDDY_BACKUP_VOLUME_SIZE=64MiB", "EDDY_BACKUP_WHEN_BEHIND=skip", "EDDY_BACKUP_LEVEL=3",
		"EDDY_CONFIG=" + file, "EDDY_LAB_BIN=/x", "EDDY_STORE_PORT=tcp://10.0.0.1:80", "EDDY_STORE_PORT_80_TCP_ADDR=10.0.0.1", "EDDY_STAGE_SERVICE_HOST=10.0.0.1",
	}
	c, err := Load("", env, Overrides{Cluster: "from-flag"}, NeedRun)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		key       string
		got, want any
		origin    string
	}{
		{"cluster", c.Cluster, "from-flag", "--cluster"},
		{"store.region", c.Store.Region, "env-1", "EDDY_STORE_REGION"},
		{"store.profile", c.Store.Profile, "", "default"},
		{"store.url", c.Store.URL, "s3://backups/eddy", file + ":7"},
		{"replica.witnesses", c.Replica.Witnesses, []string{"http://a:1", "http://b:2"}, "EDDY_REPLICA_WITNESSES"},
		{"roots", c.Roots, map[string]string{"x": "/srv/x", "y": "/srv/y"}, "EDDY_ROOTS"},
		{"include", c.Include, []string{"a,b", "c"}, "EDDY_INCLUDE"},
		{"backup.volume_size", c.Backup.VolumeSize.Bytes(), int64(64 << 20), "EDDY_BACKUP_VOLUME_SIZE"},
		{"backup.when_behind", c.Backup.WhenBehind.Skip(), true, "EDDY_BACKUP_WHEN_BEHIND"},
		{"backup.level", c.Backup.Level, 3, "EDDY_BACKUP_LEVEL"},
	} {
		if diff := cmp.Diff(x.want, x.got); diff != "" {
			t.Errorf("%s: %s", x.key, diff)
		}
		if o := origin(c, x.key).String(); o != x.origin {
			t.Errorf("origin of %s: %s, want %s", x.key, o, x.origin)
		}
	}
}

func TestVariablesThatAreWrong(t *testing.T) {
	for _, x := range []struct{ env, want string }{
		{"EDDY_STORE_URL=backups", "EDDY_STORE_URL: store.url: not a URL; write s3://bucket/prefix or file:///directory"},
		{"EDDY_STORE_URL=s3://k:hunter2@backups", "EDDY_STORE_URL: store.url: holds credentials; remove them: credentials come from the AWS chain (AWS_ACCESS_KEY_ID, a profile, a role)"},
		{"EDDY_REPLICA_RPC=http://me:hunter2@host", "EDDY_REPLICA_RPC: replica.rpc: holds credentials; put the address into a file of mode 0600 and name it in EDDY_REPLICA_RPC_FILE"},
		{"EDDY_BACKUP_LEVEL=high", `EDDY_BACKUP_LEVEL: backup.level: "high" is not a whole number; write it in digits`},
		{"EDDY_ROOTS=/srv/x", `EDDY_ROOTS: roots: "/srv/x" is not name=directory; write name=/dir,other=/dir2`},
		{"EDDY_ROOTS=a=/x,a=/y", `EDDY_ROOTS: roots: "a" is there twice; give each directory a name of its own`},
		{"EDDY_INCLUDE=[a", `EDDY_INCLUDE: include: begins with [ but is no list; write a,b or ["a", "b"]`},
		{"EDDY_STORE_ENDPIONT=x", "EDDY_STORE_ENDPIONT: unknown variable; did you mean EDDY_STORE_ENDPOINT?"},
		{"EDDY_CLUSTR=x", "EDDY_CLUSTR: unknown variable; did you mean EDDY_CLUSTER?"},
		{"EDDY_STORE=s3://x", "EDDY_STORE: unknown variable; did you mean EDDY_STORE_URL?"},
		{"EDDY_STORE_COLOUR=x", "EDDY_STORE_COLOUR: unknown variable; docs/config.md lists them all"},
		{"EDDY_CLUSTER_FILE=/x", "EDDY_CLUSTER_FILE: unknown variable; only what may hold a secret is read from a file: set EDDY_CLUSTER"},
		{"EDDY_REPLICA_RPC_FILE=/nonexistent", `EDDY_REPLICA_RPC_FILE: replica.rpc: "/nonexistent": open: no such file or directory; name a file that eddy's user may read`},
		{"EDDY_WORKDIR=work", `EDDY_WORKDIR: workdir: "work" is a relative path; write it from the root: the daemon starts elsewhere than you do`},
	} {
		_, err := Load(write(t, good), []string{x.env}, Overrides{}, NeedRun)
		if diff := cmp.Diff([]string{x.want}, problems(t, err)); diff != "" {
			t.Errorf("%s:\n%s", x.env, diff)
		}
	}
}

func TestFlagsThatAreWrong(t *testing.T) {
	_, err := Load(write(t, good), nil, Overrides{Store: "gs://x", Home: "here", LogFormat: "xml"}, NeedRun)
	want := []string{
		`--log-format: log_format: unknown value "xml"; write one of: console, json`,
		`--home: replica.home: "here" is a relative path; write it from the root: the daemon starts elsewhere than you do`,
		`--store: store.url: neither s3:// nor file://; write s3://bucket/prefix; a store's own address is store.endpoint`,
	}
	if diff := cmp.Diff(want, problems(t, err)); diff != "" {
		t.Error(diff)
	}
}

// A directory in place of the bucket is no contradiction to the bucket's keys
// where only a flag says so.
func TestFileStoreByFlag(t *testing.T) {
	c, err := Load(write(t, good), nil, Overrides{Store: "file:///mnt/copy"}, NeedCatalog)
	if err != nil || c.Store.URL != "file:///mnt/copy" {
		t.Errorf("%v", err)
	}
}

func TestSecretsFromFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "rpc")
	if err := os.WriteFile(secret, []byte("https://me:hunter2@rpc.example.com/v1/hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"EDDY_REPLICA_RPC_FILE=" + secret}
	c, err := Load(write(t, good), env, Overrides{}, NeedRun)
	if err != nil {
		t.Fatal(err)
	}
	if c.Replica.RPC != "https://me:hunter2@rpc.example.com/v1/hunter2" {
		t.Errorf("rpc is %q", c.Replica.RPC)
	}
	for _, s := range c.Settings() {
		if strings.Contains(s.Value, "hunter2") {
			t.Errorf("%s shows its secret", s.Key)
		}
		if s.Key == "replica.rpc" && (s.Value != "https://rpc.example.com/..." || s.Origin.String() != "EDDY_REPLICA_RPC_FILE") {
			t.Errorf("%s: %s from %s", s.Key, s.Value, s.Origin)
		}
	}
	_, err = Load(write(t, good), append(env, "EDDY_REPLICA_RPC=http://127.0.0.1:1"), Overrides{}, NeedRun)
	if got := problems(t, err); len(got) != 1 || !strings.HasPrefix(got[0], "EDDY_REPLICA_RPC_FILE: replica.rpc: set beside") {
		t.Errorf("%q", got)
	}
}

func TestWhichFile(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.yaml")
	flags := Overrides{Store: "file:///srv/b", Cluster: "c"}
	if _, err := Load("", []string{"EDDY_CONFIG=" + absent}, flags, NeedCatalog); err != nil {
		t.Errorf("flags suffice, but %v", err)
	}
	if _, err := Load(absent, []string{"EDDY_CONFIG=" + absent}, flags, NeedCatalog); err != nil {
		t.Errorf("flags suffice, but %v", err)
	}
	if _, err := Load("/dev/null", nil, flags, NeedCatalog); err != nil {
		t.Errorf("flags suffice, but %v", err)
	}
	_, err := Load(absent, nil, flags, NeedCatalog)
	if got := problems(t, err); len(got) != 1 || got[0] != "absent.yaml: no such file; write one with `eddy config init -c "+absent+"`" {
		t.Errorf("%q", got)
	}
	_, err = Load("", []string{"EDDY_CONFIG=" + absent}, Overrides{Store: "file:///srv/b"}, NeedCatalog)
	want := []string{"cluster: missing; say --cluster, or set EDDY_CLUSTER, or write " + absent + " with `eddy config init`"}
	if diff := cmp.Diff(want, problems(t, err)); diff != "" {
		t.Error(diff)
	}
	_, err = Load(t.TempDir(), nil, flags, NeedCatalog)
	if got := problems(t, err); len(got) != 1 || !strings.Contains(got[0], "is a directory") {
		t.Errorf("%q", got)
	}
	_, err = Load(write(t, strings.Repeat("# long\n", maxFile/7+1)), nil, flags, NeedCatalog)
	if got := problems(t, err); len(got) != 1 || got[0] != "eddy.yaml: larger than 1MiB" {
		t.Errorf("%q", got)
	}
}

func TestNeeds(t *testing.T) {
	for _, x := range []struct {
		need Need
		want []string
	}{
		{NeedNothing, nil},
		{NeedStore, []string{"store.url"}},
		{NeedCatalog, []string{"cluster", "store.url"}},
		{NeedReplica, []string{"replica.home", "replica.rpc", "replica.control"}},
		{NeedRun, []string{"cluster", "replica.home", "replica.rpc", "store.url", "replica.control"}},
	} {
		_, err := Load("/dev/null", nil, Overrides{}, x.need)
		var e *Error
		var got []string
		if errors.As(err, &e) {
			for _, p := range e.Problems {
				got = append(got, p.Key)
			}
		}
		if diff := cmp.Diff(x.want, got); diff != "" {
			t.Errorf("need %b: %s", x.need, diff)
		}
	}
	_, err := Load(write(t, good+"schedule: \"\"\nworkdir: \"\"\n"), nil, Overrides{}, NeedRun)
	if got := problems(t, err); len(got) != 2 || !strings.Contains(got[0], ":8: schedule: missing") || !strings.Contains(got[1], ":9: workdir: missing") {
		t.Errorf("%q", got)
	}
}

// A workdir that reaches the data by a symlink is found.
func TestWorkdirBehindSymlink(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	big := filepath.Join(dir, "big")
	for _, d := range []string{home, big} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(big, filepath.Join(home, "data")); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(good, "/var/lib/gaia", home, 1) + "workdir: " + filepath.Join(big, "work") + "\n"
	_, err := Load(write(t, text), nil, Overrides{}, NeedRun)
	if got := problems(t, err); len(got) != 1 || !strings.Contains(got[0], "workdir: lies in the node's data") {
		t.Errorf("%q", got)
	}
}

func TestSameNode(t *testing.T) {
	for _, x := range []struct {
		rpc, witness string
		same         bool
	}{
		{"http://127.0.0.1:26657", "http://localhost:26657/", true},
		{"http://[::1]:26657", "https://127.0.0.1:26657", true},
		{"http://A.example.com", "http://a.example.com:80", true},
		{"https://a.example.com", "http://a.example.com", false},
		{"http://127.0.0.1:26657", "http://127.0.0.1:26658", false},
		{"http://127.0.0.1:26657", "http://127.0.0.2:26657", false},
		{"http://gw.example.com/node-1", "http://gw.example.com/node-2", false},
	} {
		_, err := Load("/dev/null", []string{"EDDY_REPLICA_RPC=" + x.rpc, "EDDY_REPLICA_WITNESSES=" + x.witness}, Overrides{}, NeedNothing)
		if (err != nil) != x.same {
			t.Errorf("%s beside %s: %v", x.rpc, x.witness, err)
		}
	}
}

// Aliases are YAML's own and read as what they stand for.
func TestAliases(t *testing.T) {
	c, err := Load(write(t, "cluster: &name gaia\nreplica: {chain_id: *name}\n"), nil, Overrides{}, NeedNothing)
	if err != nil || c.Replica.ChainID != "gaia" {
		t.Errorf("%v", err)
	}
}

// What Settings prints is YAML that Load reads back to the same values.
func TestSettingsReadBack(t *testing.T) {
	text := strings.Replace(good, "supervise: /run/eddy/node.sock", `exec: {stop: [sh, -c, "a: b, #c"], start: ["null", ""], status: ["@x", y]}`, 1) +
		"roots: {x: /srv/a b, y: \"/srv/#\"}\ninclude: ['[a-z]*', \"it's\"]\n"
	first, err := Load(write(t, text), nil, Overrides{}, NeedNothing)
	if err != nil {
		t.Fatal(err)
	}
	var env []string
	var b strings.Builder
	for _, s := range first.Settings() {
		if s.Key == "retention.last" {
			continue // refused unless by: eddy stands beside it
		}
		if !strings.HasPrefix(s.Value, "{") {
			env = append(env, newLoader("").byKey[s.Key].env()+"="+strings.Trim(s.Value, `"`))
		} else {
			b.WriteString(s.Key + ": " + s.Value + "\n")
		}
	}
	second, err := Load(write(t, b.String()), env, Overrides{}, NeedNothing)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

func TestTemplate(t *testing.T) {
	for name, v := range map[string]TemplateValues{
		"nothing": {},
		"exec":    {Exec: true},
		"unit":    {Unit: "gaiad.service", ChainID: "gaia-1", Timeout: "300s", Deadline: "15m"},
		"docker":  {Container: "gaia"},
		"found": {
			Home: "/h", From: map[string]string{"replica.home": "--home of x\nworkdir: /tmp", "cluster": "not found"},
			Found: []string{"user gaia", "a\nstore: x\u2028y"},
		},
		"most": {Cluster: "gaia", Home: "/home/gaia/.gaia", RPC: "http://127.0.0.1:1", Store: "s3://b-b/e", Region: "eu-west-1", Endpoint: "https://s3.example.com", Workdir: "/srv/w", Witnesses: []string{}, Supervise: "/run/x.sock"},
		"file": {Store: "file:///srv/backups"},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := Template(v)
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckTemplate("eddy.yaml", text); err != nil {
				t.Errorf("mistakes beside the placeholders: %v", err)
			}
			// Every placeholder is named with its line.
			var left []int
			for i, line := range strings.Split(string(text), "\n") {
				if strings.Contains(line, "CHANGE-ME") && !strings.HasPrefix(line, "#") {
					left = append(left, i+1)
				}
			}
			_, err = Load(write(t, string(text)), nil, Overrides{}, NeedRun)
			if len(left) > 0 {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("placeholders pass: %v", err)
				}
				var lines []int
				for _, p := range e.Problems {
					lines = append(lines, p.Line)
				}
				if diff := cmp.Diff(left, lines); diff != "" {
					t.Error(diff)
				}
			}
			filled := strings.NewReplacer("cluster: CHANGE-ME", "cluster: gaia", "/CHANGE-ME", "/var/lib/gaia",
				"//CHANGE-ME/", "//backups/", "CHANGE-ME:26657", "10.0.0.11:26657", "[CHANGE-ME]", "[/usr/local/bin/ctl, x]").Replace(string(text))
			c, err := Load(write(t, filled), nil, Overrides{}, NeedRun)
			if err != nil {
				t.Fatal(err)
			}
			if v.Region != "" && (c.Store.Region != v.Region || c.Store.Endpoint != v.Endpoint || c.Replica.Home != v.Home || c.Workdir != v.Workdir || len(c.Replica.Witnesses) != 0) {
				t.Errorf("values got lost: %+v", c)
			}
		})
	}
	if err := CheckTemplate("eddy.yaml", []byte("cluster: a/b\n")); err == nil {
		t.Error("a wrong value passes")
	}
}

var commented = regexp.MustCompile(`(?m)^( *)#([a-z_]+:)`)

// Every key stands in the template, and taking all the # away changes nothing
// but what was given no default.
func TestTemplateHasEveryKey(t *testing.T) {
	text, err := Template(TemplateValues{Cluster: "g", Home: "/h", Store: "s3://backups", Witnesses: []string{"http://w:1"}})
	if err != nil {
		t.Fatal(err)
	}
	before, err := Load(write(t, string(text)), nil, Overrides{}, NeedRun)
	if err != nil {
		t.Fatal(err)
	}
	all := commented.ReplaceAllString(string(text), "$1$2")
	all = strings.Replace(all, "  by: none", "  by: eddy", 1)
	seen := map[string]bool{}
	// A node is controlled in one way: the file is read once with each.
	node := regexp.MustCompile(`(?m)^    (supervise|systemd|docker|exec):.*\n(      .*\n)*`)
	app := regexp.MustCompile(`(?m)^      (supervise|systemd|docker|exec):.*\n(        .*\n)*`)
	for _, way := range []string{"supervise", "systemd", "docker", "exec"} {
		only := func(block string) string {
			if strings.HasPrefix(strings.TrimSpace(block), way) {
				return block
			}
			return ""
		}
		text := app.ReplaceAllStringFunc(node.ReplaceAllStringFunc(all, only), only)
		after, err := Load(write(t, text), nil, Overrides{}, NeedRun)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for i, s := range after.Settings() {
			seen[s.Key] = seen[s.Key] || s.Origin.Source == FromFile
			was := before.Settings()[i]
			if was.Value != s.Value && !strings.HasPrefix(s.Key, "retention.") && !strings.HasPrefix(s.Key, "replica.control.") && !strings.HasPrefix(s.Key, "replica.app.") {
				t.Errorf("%s: the template shows %s, the default is %s", s.Key, s.Value, was.Value)
			}
		}
	}
	for key, there := range seen {
		section, _, _ := strings.Cut(strings.TrimPrefix(key, "replica."), ".")
		if kinds := sections[section]; kinds != nil && !slices.Contains(kinds, "cometbft") {
			continue // the template is a chain's
		}
		if !there {
			t.Errorf("%s is not in the template", key)
		}
	}
}

// What is no chain is backed up at night, unless somebody says when.
func TestScheduleOfTheKind(t *testing.T) {
	for text, want := range map[string]string{
		"replica: {kind: cometbft}\n":                       "@daily",
		"replica: {kind: command, command: {argv: [x]}}\n":  DefaultSchedule,
		"schedule: \"@hourly\"\nreplica: {kind: command}\n": "@hourly",
	} {
		c, err := Load(write(t, text), nil, Overrides{}, NeedNothing)
		if err != nil || c.Schedule != want {
			t.Errorf("%q: %v, %+v, want %s", text, err, c, want)
		}
	}
}

// docs/config.md has a row for every key: key, type, default, variable.
func TestDocsHaveEveryKey(t *testing.T) {
	docs, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(docs)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); strings.HasPrefix(line, "| `") && len(cells) == 5 {
			rows[strings.Trim(cells[0], "| `")] = cells
		}
	}
	kinds := map[string]string{"string": "text", "int": "number", "[]string": "list", "map[string]string": "map", "config.Duration": "duration", "config.Size": "size", "config.WhenBehind": "policy"}
	for _, f := range newLoader("").fields {
		row, ok := rows[f.key]
		if !ok {
			t.Errorf("%s is not in docs/config.md", f.key)
			continue
		}
		delete(rows, f.key)
		if kind := kinds[f.value.Type().String()]; f.enum == nil && !strings.HasPrefix(row[1], kind) {
			t.Errorf("%s: the type is %s, docs say %s", f.key, kind, row[1])
		}
		for _, word := range f.enum {
			if word != "" && !strings.Contains(row[1], "`"+word+"`") {
				t.Errorf("%s: docs do not have the word %s", f.key, word)
			}
		}
		if want := "`" + f.preset + "`"; f.preset != "" && row[2] != want {
			t.Errorf("%s: the default is %s, docs say %s", f.key, want, row[2])
		}
		if f.preset == "" && strings.Contains(row[2], "`") {
			t.Errorf("%s: there is no default, docs say %s", f.key, row[2])
		}
		if row[3] != "`"+f.env()+"`" && !(f.secret && row[3] == "`"+f.env()+"`, `"+f.env()+"_FILE`") {
			t.Errorf("%s: the variable is %s, docs say %s", f.key, f.env(), row[3])
		}
		if len(strings.Trim(row[4], " |")) < 15 {
			t.Errorf("%s: docs do not say what it is", f.key)
		}
	}
	for key := range rows {
		t.Errorf("docs/config.md has %s, which is no key", key)
	}
	// Every YAML block of the page is read.
	for i, block := range strings.Split(string(docs), "```yaml\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		if _, err := Load(write(t, text), nil, Overrides{}, NeedNothing); err != nil {
			t.Errorf("example %d: %v", i+1, err)
		}
	}
}

// A drill's command says where the copy is, in the words of its kind.
func TestDrillCommandsByKind(t *testing.T) {
	for kind, c := range map[string]struct{ right, wrong string }{
		"cometbft": {"[gaiad, --home, '{home}']", "[gaiad]"}, "consul": {"[consul, '{home}']", "[consul, '{config}']"},
		"zookeeper": {"[java, '{config}']", "[java]"}, "swarm": {right: "[/usr/bin/dockerd]"},
	} {
		for argv, want := range map[string]bool{c.right: false, c.wrong: true} {
			if argv == "" {
				continue
			}
			file := filepath.Join(t.TempDir(), "eddy.yaml")
			if err := os.WriteFile(file, []byte("cluster: x\nreplica: {kind: "+kind+"}\ndrill: {command: "+argv+"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(file, nil, Overrides{}, 0)
			if got := err != nil && strings.Contains(err.Error(), "says nowhere"); got != want {
				t.Errorf("%s of a %s: %v", argv, kind, err)
			}
		}
	}
}
