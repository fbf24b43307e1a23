package alarm

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestTextfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "eddy.prom")
	f := Figures{
		Cluster: `a"b\c`, LastSuccess: time.Unix(1763683200, 250e6), Position: 1 << 52, HeldSeconds: 2.5, Up: true,
		Failures: map[string]uint64{"gate": 0, "store": 3}, PinnedBytes: 4096, DrillPassed: new(bool),
	}
	if err := WriteTextfile(file, f); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var samples []string
	for line := range strings.Lines(string(got)) {
		if !strings.HasPrefix(line, "#") {
			samples = append(samples, strings.TrimSpace(line))
		}
	}
	want := []string{
		`eddy_backup_last_success_timestamp_seconds{cluster="a\"b\\c"} 1.76368320025e+09`,
		`eddy_backup_last_verified_timestamp_seconds{cluster="a\"b\\c"} 0`,
		`eddy_backup_last_drilled_timestamp_seconds{cluster="a\"b\\c"} 0`,
		`eddy_backup_position{cluster="a\"b\\c"} 4.503599627370496e+15`,
		`eddy_backup_failures_total{cluster="a\"b\\c",reason="gate"} 0`,
		`eddy_backup_failures_total{cluster="a\"b\\c",reason="store"} 3`,
		`eddy_replica_held_seconds{cluster="a\"b\\c"} 2.5`,
		`eddy_replica_up{cluster="a\"b\\c"} 1`,
		`eddy_drill_passed{cluster="a\"b\\c"} 0`,
		`eddy_stage_pinned_bytes{cluster="a\"b\\c"} 4096`,
	}
	if diff := cmp.Diff(want, samples); diff != "" {
		t.Error(diff)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("%v: node_exporter must be able to read it (%v)", st.Mode(), err)
	}
	parse(t, got)

	f.PinnedBytes = -1
	if err := WriteTextfile(file, f); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || bytes.Contains(got, []byte("pinned")) {
		t.Errorf("what is not known is left out: %v\n%s", err, got)
	}
	names, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(names) != 1 {
		t.Errorf("left beside it: %v %v", names, err)
	}
	err = WriteTextfile(filepath.Join(file, "x.prom"), f)
	if err == nil || hint.Of(err) == "" {
		t.Errorf("%v, hint %q", err, hint.Of(err))
	}
	if err = WriteTextfile(filepath.Join(t.TempDir(), "no", "x.prom"), f); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// parse reads a text as Prometheus does, into samples by "name label=value ...".
func parse(t *testing.T, text []byte) map[string]float64 {
	t.Helper()
	var p expfmt.TextParser
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	out := map[string]float64{}
	for name, f := range families {
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		for _, m := range f.Metric {
			key := name
			for _, l := range m.Label {
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			if m.Counter != nil {
				out[key] = m.Counter.GetValue()
			} else {
				out[key] = m.Gauge.GetValue()
			}
		}
	}
	return out
}

// What is written, Prometheus' own parser reads back.
func FuzzEncode(f *testing.F) {
	f.Add("gaia-main", "a reason", "help", 1.5)
	f.Add("a\\b\"c\nd", "", "two\nlines \\n", math.Inf(1))
	f.Add("\xff\x00", "}{,=", "# TYPE x", 1e300)
	f.Fuzz(func(t *testing.T, cluster, reason, help string, v float64) {
		if strings.TrimSpace(help) == "" {
			help = "none"
		}
		text := encode([]family{
			{"a_total", "counter", help, []sample{{[]label{{"cluster", cluster}, {"reason", reason}}, v}}},
			{"empty", "gauge", help, nil},
			{"b", "gauge", help, []sample{{[]label{{"cluster", cluster}}, 2}}},
		})
		got := parse(t, text)
		clean := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
		want := map[string]float64{"a_total cluster=" + clean(cluster) + " reason=" + clean(reason): v, "b cluster=" + clean(cluster): 2}
		for key, w := range want {
			if g, ok := got[key]; !ok || g != w && !(math.IsNaN(g) && math.IsNaN(w)) {
				t.Errorf("%q: %v, want %v\n%s", key, g, w, text)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d samples, want %d\n%s", len(got), len(want), text)
		}
	})
}
