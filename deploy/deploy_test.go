package deploy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/eddy-backup/eddy/internal/config"
)

// policy is the part of an IAM policy that is used here.
type policy struct {
	Version   string
	Statement []struct {
		Sid, Effect string
		Action      oneOrMore
		Resource    oneOrMore
		Condition   map[string]map[string]oneOrMore
	}
}

// oneOrMore is a string or a list of strings, as IAM writes them.
type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(b, []byte(`"`)) {
		*o = make(oneOrMore, 1)
		return json.Unmarshal(b, &(*o)[0])
	}
	return json.Unmarshal(b, (*[]string)(o))
}

func decode(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if d.More() {
		t.Errorf("%s: more than one value", name)
	}
}

// Each policy gives exactly the rights that its line in README.md promises.
func TestPolicies(t *testing.T) {
	for name, want := range map[string][]string{
		"policy-writer.json": {
			"s3:AbortMultipartUpload", "s3:GetLifecycleConfiguration", "s3:GetObject", "s3:ListBucket",
			"s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts", "s3:PutObject",
		},
		"policy-retention.json": {"s3:DeleteObject"},
		"policy-kms.json":       {"kms:Decrypt", "kms:GenerateDataKey"},
		"policy-restorer.json":  {"s3:GetObject", "s3:ListBucket"},
	} {
		var p policy
		decode(t, filepath.Join("s3", name), &p)
		if p.Version != "2012-10-17" {
			t.Errorf("%s: version %q", name, p.Version)
		}
		var got []string
		for _, s := range p.Statement {
			if s.Effect != "Allow" {
				t.Errorf("%s: %s: effect %q", name, s.Sid, s.Effect)
			}
			got = append(got, s.Action...)
			for _, r := range s.Resource {
				onObjects := strings.HasSuffix(r, "/eddy/*")
				if strings.HasPrefix(r, "arn:aws:s3:") && !onObjects && r != "arn:aws:s3:::BUCKET" {
					t.Errorf("%s: %s: resource %s reaches beyond the prefix", name, s.Sid, r)
				}
			}
			if slices.Contains(s.Action, "s3:ListBucket") && !slices.Equal(s.Condition["StringLike"]["s3:prefix"], []string{"eddy", "eddy/*"}) {
				t.Errorf("%s: %s lists the whole bucket", name, s.Sid)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s allows %q, want %q", name, got, want)
		}
	}
}

// The lifecycle rule must never delete an object, whatever is added to it.
func TestLifecycleOnlyAbortsUploads(t *testing.T) {
	var l struct {
		Rules []struct {
			ID, Status                     string
			Filter                         struct{ Prefix string }
			AbortIncompleteMultipartUpload struct{ DaysAfterInitiation int }
		}
	}
	decode(t, filepath.Join("s3", "lifecycle.json"), &l)
	if len(l.Rules) != 1 {
		t.Fatalf("%d rules, want 1", len(l.Rules))
	}
	r := l.Rules[0]
	if !strings.HasPrefix(r.ID, "eddy-") || r.Status != "Enabled" || r.Filter.Prefix != "eddy/" {
		t.Errorf("rule %+v", r)
	}
	if days := r.AbortIncompleteMultipartUpload.DaysAfterInitiation; days < 7 {
		t.Errorf("aborts after %d days: an upload may take longer, want 7 or more", days)
	}
}

// eddy and the node share user, home and process ids, and each comes back by
// itself; the configuration beside lacks nothing but its placeholders.
func TestComposeFile(t *testing.T) {
	var c struct {
		Services map[string]struct {
			User, Pid, Restart string
			Volumes            []string
			StopGracePeriod    string `yaml:"stop_grace_period"`
		}
	}
	b, err := os.ReadFile("compose/compose.yaml")
	if err == nil {
		err = yaml.Unmarshal(b, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	node, eddy := c.Services["node"], c.Services["eddy"]
	for _, volume := range []string{"./node:/node", "./run:/run/eddy"} {
		if !slices.Contains(node.Volumes, volume) || !slices.Contains(eddy.Volumes, volume) {
			t.Errorf("%s is not in both: %q, %q", volume, node.Volumes, eddy.Volumes)
		}
	}
	if node.User == "" || node.User != eddy.User || eddy.Pid != "service:node" {
		t.Errorf("users %q and %q, pid %q", node.User, eddy.User, eddy.Pid)
	}
	if node.Restart != "unless-stopped" || eddy.Restart != "always" || node.StopGracePeriod != "3m" || eddy.StopGracePeriod != "3m" {
		t.Errorf("restart %q and %q, stop_grace_period %q and %q", node.Restart, eddy.Restart, node.StopGracePeriod, eddy.StopGracePeriod)
	}
	b, err = os.ReadFile("compose/eddy.yaml")
	if err == nil {
		err = config.CheckTemplate("eddy.yaml", b)
	}
	if err != nil {
		t.Error(err)
	}
}

// unit returns the settings of a unit file by section and key.
func unit(t *testing.T, name string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	set := map[string][]string{}
	section := ""
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		key, value, found := strings.Cut(line, "=")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = strings.Trim(line, "[]")
		case found && section != "":
			set[section+"."+key] = append(set[section+"."+key], value)
		default:
			t.Errorf("%s:%d: %q", name, i+1, line)
		}
	}
	return set
}

func TestUnits(t *testing.T) {
	eddy, node := unit(t, "eddy.service"), unit(t, "node.service")
	for _, c := range []struct {
		set       map[string][]string
		key, want string
	}{
		{eddy, "Service.ReadWritePaths", "/var/lib/gaia"}, // one only: a second would be a second mount
		{eddy, "Service.CapabilityBoundingSet", ""},
		{eddy, "Service.AmbientCapabilities", ""},
		{eddy, "Service.NoNewPrivileges", "yes"},
		{eddy, "Service.ProtectSystem", "strict"},
		{eddy, "Service.KillMode", "mixed"},
		{eddy, "Service.TimeoutStopSec", "180s"},
		{eddy, "Service.Restart", "always"},
		{node, "Service.KillMode", "mixed"},
		{node, "Service.TimeoutStopSec", "180s"},
		{node, "Service.Restart", "always"},
		{node, "Unit.ConditionPathExists", "!/var/lib/gaia/.eddy/swap.json"},
	} {
		if got := c.set[c.key]; !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s = %q, want %q", c.key, got, c.want)
		}
	}
	timer, guard := unit(t, "eddy-guard@.timer"), unit(t, "eddy-guard@.service")
	for _, c := range []struct {
		set       map[string][]string
		key, want string
	}{
		{timer, "Unit.After", "%i.service"},
		{timer, "Timer.OnActiveSec", "5s"},
		{timer, "Timer.OnUnitInactiveSec", "5s"},
		{guard, "Unit.StartLimitIntervalSec", "0"},
		{guard, "Service.Type", "oneshot"},
		{guard, "Service.User", eddy["Service.User"][0]},
		{guard, "Service.ExecStart", "/usr/local/bin/eddy guard-unit --workdir /var/lib/eddy %i"},
	} {
		if got := c.set[c.key]; !slices.Equal(got, []string{c.want}) {
			t.Errorf("guard: %s = %q, want %q", c.key, got, c.want)
		}
	}
	if timer["Install.WantedBy"] != nil || guard["Install.WantedBy"] != nil {
		t.Error("the guard can be enabled: it is armed by eddy alone")
	}
	if u, v := eddy["Service.User"], node["Service.User"]; len(u) != 1 || !slices.Equal(u, v) || u[0] == "root" {
		t.Errorf("eddy runs as %q, the node as %q: must be one, and not root", u, v)
	}
	// These break eddy: it reads the boot id, and its own user's processes.
	for _, key := range []string{"Service.ProcSubset", "Service.PrivateUsers"} {
		if got := eddy[key]; got != nil {
			t.Errorf("%s = %q, want it unset", key, got)
		}
	}
}

// Where systemd is at hand it judges the units itself.
func TestUnitsBySystemd(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not here; TestUnits stands alone")
		return
	}
	dir := t.TempDir()
	for _, name := range []string{"eddy.service", "node.service", "eddy-guard@.service", "eddy-guard@.timer"} {
		b, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		// verify wants the programs to exist.
		text := strings.ReplaceAll(string(b), "=/usr/local/bin/eddy ", "=/bin/true ")
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
		if err != nil || strings.Contains(string(out), name) {
			t.Errorf("verify %s: %v\n%s", name, err, out)
		}
	}
	// 25 is an exposure of 2.5 on systemd's scale of 10, which it calls OK.
	out, err := exec.Command(analyze, "security", "--offline=yes", "--threshold=25", "--no-pager", filepath.Join(dir, "eddy.service")).CombinedOutput()
	if err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
}

// Rule and sudoers give the same rights, over one unit and its guard's timer.
func TestRights(t *testing.T) {
	sudoers, err := os.ReadFile("systemd/sudoers")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(sudoers)) {
		if line = strings.TrimRight(strings.TrimSpace(line), `, \`); strings.HasPrefix(line, "/") {
			got = append(got, strings.TrimPrefix(line, "/usr/bin/systemctl --no-ask-password --no-block "))
		}
	}
	want := []string{
		"stop gaiad.service", "start gaiad.service", "reset-failed gaiad.service",
		"stop eddy-guard@gaiad.timer", "start eddy-guard@gaiad.timer",
	}
	if !slices.Equal(got, want) || strings.Contains(string(sudoers), "*") {
		t.Errorf("sudoers allows %q, want %q", got, want)
	}
	rule, err := os.ReadFile("systemd/50-eddy.rules")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		`action.id != "org.freedesktop.systemd1.manage-units"`, `subject.user != "gaia"`,
		`unit == "gaiad.service" && (order || verb == "reset-failed")`, `unit == "eddy-guard@gaiad.timer" && order`,
	} {
		if !strings.Contains(string(rule), text) {
			t.Errorf("the rule lacks %s", text)
		}
	}
	if n := strings.Count(string(rule), "Result.YES"); n != 2 {
		t.Errorf("the rule says yes in %d places, want 2", n)
	}
}
