package deploy

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/eddy-backup/eddy/internal/alarm"
	"github.com/eddy-backup/eddy/internal/job"
)

// Every metric that a rule names is one that eddy writes, and every metric that
// eddy writes is watched by a rule. What stands in annotations exists as well.
func TestRules(t *testing.T) {
	text, err := os.ReadFile("prometheus/eddy.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}

	written := map[string]bool{} // name -> a rule watches it
	labels := []string{"instance"}
	for name, l := range textfile(t) {
		written[name] = false
		labels = append(labels, l...)
	}
	metric := regexp.MustCompile(`\beddy_[a-z_]+\b`)
	label := regexp.MustCompile(`\$labels\.([a-z_]+)`)
	reason := regexp.MustCompile(`reason!?=~?"([^"]*)"`)
	duration := regexp.MustCompile(`^[0-9]+[mh]$`)
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || seen[r.Alert] || r.Expr == "" {
				t.Errorf("%q: no name of its own, or no expression", r.Alert)
			}
			seen[r.Alert] = true
			names := metric.FindAllString(r.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s looks at no metric of eddy's", r.Alert)
			}
			for _, name := range names {
				if _, ok := written[name]; !ok {
					t.Errorf("%s: eddy writes no %s", r.Alert, name)
				}
				written[name] = true
			}
			for _, m := range reason.FindAllStringSubmatch(r.Expr, -1) {
				if !slices.Contains(job.Reasons(), m[1]) {
					t.Errorf("%s: %q is no reason", r.Alert, m[1])
				}
			}
			if r.For != "" && !duration.MatchString(r.For) {
				t.Errorf("%s: for: %s", r.Alert, r.For)
			}
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: no summary, or no description", r.Alert)
			}
			for _, a := range r.Annotations {
				for _, m := range label.FindAllStringSubmatch(a, -1) {
					if !slices.Contains(labels, m[1]) {
						t.Errorf("%s: no label %s", r.Alert, m[1])
					}
				}
			}
		}
	}
	for name, watched := range written {
		if !watched {
			t.Errorf("no rule watches %s", name)
		}
	}
}

// textfile are the metrics that eddy writes, with the labels of each.
func textfile(t *testing.T) map[string][]string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "eddy.prom")
	if err := alarm.WriteTextfile(file, alarm.Figures{DrillPassed: new(bool), Cluster: "c", Failures: map[string]uint64{"gate": 1}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, "{")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		for _, m := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(rest, -1) {
			out[name] = append(out[name], m[1])
		}
	}
	return out
}
