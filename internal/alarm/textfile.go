package alarm

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Figures are what the metrics say of one cluster. A zero time means never.
type Figures struct {
	Cluster      string
	LastSuccess  time.Time
	LastVerified time.Time
	LastDrilled  time.Time // passed
	DrillPassed  *bool     // the newest drill; nil: there was none, or it was not possible
	Position     uint64
	HeldSeconds  float64           // of the last hold
	Up           bool              // the node runs, and its manager says so
	Failures     map[string]uint64 // by reason
	PinnedBytes  int64             // negative: not known, and left out
}

// WriteTextfile replaces the file at path, whole. It is for all to read, for
// node_exporter runs as a user of its own.
func WriteTextfile(path string, f Figures) error {
	if err := fsx.WriteFileAtomic(path, encode(f.families()), 0o644); err != nil {
		return hint.Add(fmt.Errorf("write the metrics: %w", err), "the directory of notify.textfile must exist, and eddy's user must be able to write to it")
	}
	return nil
}

// family is one metric with its samples.
type family struct {
	name, kind, help string
	samples          []sample
}

type sample struct {
	labels []label
	value  float64
}

type label struct{ name, value string }

func (f Figures) families() []family {
	cluster := label{"cluster", f.Cluster}
	one := func(name, help string, v float64) family {
		return family{name, "gauge", help, []sample{{[]label{cluster}, v}}}
	}
	up := 0.0
	if f.Up {
		up = 1
	}
	failures := family{"eddy_backup_failures_total", "counter", "Runs that failed, by reason.", nil}
	for _, reason := range slices.Sorted(maps.Keys(f.Failures)) {
		failures.samples = append(failures.samples, sample{[]label{cluster, {"reason", reason}}, float64(f.Failures[reason])})
	}
	out := []family{
		one("eddy_backup_last_success_timestamp_seconds", "When the last run ended with a READY backup of the newest position, 0 for never.", seconds(f.LastSuccess)),
		one("eddy_backup_last_verified_timestamp_seconds", "When a backup was last read back whole, 0 for never.", seconds(f.LastVerified)),
		one("eddy_backup_last_drilled_timestamp_seconds", "When a backup last passed a drill of this eddy, 0 for never.", seconds(f.LastDrilled)),
		one("eddy_backup_position", "Position (height) of the last successful backup.", float64(f.Position)),
		failures,
		one("eddy_replica_held_seconds", "How long the last backup held the node still.", f.HeldSeconds),
		one("eddy_replica_up", "1 while the node runs, 0 when it does not or its manager cannot say.", up),
	}
	if f.DrillPassed != nil {
		passed := 0.0
		if *f.DrillPassed {
			passed = 1
		}
		out = append(out, one("eddy_drill_passed", "1 when the newest drill passed, 0 when it failed.", passed))
	}
	if f.PinnedBytes >= 0 {
		out = append(out, one("eddy_stage_pinned_bytes", "Disk space that only the stage of a backup keeps from being freed.", float64(f.PinnedBytes)))
	}
	return out
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// encode writes families in Prometheus' text format 0.0.4.
// (https://prometheus.io/docs/instrumenting/exposition_formats/)
func encode(families []family) []byte {
	help := strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	value := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	var b bytes.Buffer
	for _, f := range families {
		if len(f.samples) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.name, help.Replace(f.help), f.name, f.kind)
		for _, s := range f.samples {
			words := make([]string, len(s.labels))
			for i, l := range s.labels {
				words[i] = l.name + `="` + value.Replace(strings.ToValidUTF8(l.value, "\uFFFD")) + `"`
			}
			fmt.Fprintf(&b, "%s{%s} %s\n", f.name, strings.Join(words, ","), strconv.FormatFloat(s.value, 'g', -1, 64))
		}
	}
	return b.Bytes()
}
