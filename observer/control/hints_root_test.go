//go:build root

package control

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
)

var typed = regexp.MustCompile("`([^`]+)`")

// findings are those of a name that are not OK.
func findings(all []check.Finding, name string) []check.Finding {
	return slices.DeleteFunc(all, func(f check.Finding) bool { return f.Name != name || f.Level == check.OK })
}

// Who does what doctor's hint says, to the letter, has no such finding any more.
func TestSystemdHints(t *testing.T) {
	m := bootedMachine(t)
	spoilUnit := func(dir, text string) func(*testing.T, *holderArgs) {
		return func(t *testing.T, _ *holderArgs) { m.write(t, "etc/systemd/system/"+dir+"/x.conf", text, 0o644) }
	}
	// shipped puts a file of deploy/systemd, match[1], to match[2], with a mode.
	shipped := func(t *testing.T, _ *holderArgs, match []string) {
		mode, err := strconv.ParseUint(match[3], 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		m.write(t, match[2], deployed(t, filepath.Base(match[1])), os.FileMode(mode))
	}
	for name, c := range map[string]struct {
		rights string
		spoil  func(*testing.T, *holderArgs)
		check  string
		// hint is the part that is followed: what stands there between backticks is
		// typed by root, after by has done what the prose says.
		hint string
		by   func(*testing.T, *holderArgs, []string)
	}{
		"no rule": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.remove(t, "etc/polkit-1/rules.d/50-eddy.rules")
			m.run(t, "systemctl", "restart", "polkit.service")
		}, "right to stop", `^install (deploy/systemd/\S+) as (\S+), mode (\d+),`, shipped},
		"no sudoers": {
			RightsSudo, func(t *testing.T, _ *holderArgs) { m.remove(t, "etc/sudoers.d/eddy") },
			"right to stop", `^install (deploy/systemd/\S+) as (\S+), mode (\d+),`, shipped,
		},
		"no guard": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.remove(t, "etc/systemd/system/eddy-guard@.timer")
			m.remove(t, "etc/systemd/system/eddy-guard@.service")
		}, "guard", "^install (deploy/systemd/\\S+) and (deploy/systemd/\\S+) in (\\S+), .* as root: `[^`]+`", func(t *testing.T, _ *holderArgs, match []string) {
			for _, f := range match[1:3] {
				m.write(t, filepath.Join(match[3], filepath.Base(f)), deployed(t, filepath.Base(f)), 0o644)
			}
		}},
		"guard of another workdir": {
			RightsPolkit, func(_ *testing.T, a *holderArgs) { a.Systemd.Dir = "/var/lib/gaia" },
			"guard", "^as root: `[^`]+`", nil,
		},
		"guard of another user": {
			RightsPolkit, spoilUnit("eddy-guard@gaiad.service.d", "[Service]\nUser=nobody\n"),
			"guard", "as root: `[^`]+`", nil,
		},
		"stopped": {
			RightsPolkit, func(t *testing.T, _ *holderArgs) { m.run(t, "systemctl", "stop", "gaiad.service") },
			"node's manager", "as root: `[^`]+`", nil,
		},
		"stopped, as the first line says": {
			RightsPolkit, func(t *testing.T, _ *holderArgs) { m.run(t, "systemctl", "stop", "gaiad.service") },
			"control", "^start it: `[^`]+`", nil,
		},
		"disabled": {
			RightsPolkit, func(t *testing.T, _ *holderArgs) { m.run(t, "systemctl", "disable", "gaiad.service") },
			"node's manager", "^as root: `[^`]+`", nil,
		},
		"disabled and stopped": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.run(t, "systemctl", "disable", "--now", "gaiad.service")
		}, "node's manager", "as root: `[^`]+`", nil},
		"killed by SIGKILL": {
			RightsPolkit, spoilUnit("gaiad.service.d", "[Service]\nKillSignal=SIGKILL\n"),
			"node's manager", "^as root: `[^`]+`", nil,
		},
		"not by hand": {
			RightsPolkit, spoilUnit("gaiad.service.d", "[Unit]\nRefuseManualStop=yes\n"),
			"node's manager", "^as root: `[^`]+`", nil,
		},
		"nothing keeps it down": {RightsPolkit, func(*testing.T, *holderArgs) {}, "restore in place", "^as root: `[^`]+`", nil},
		"20 seconds to stop":    {RightsPolkit, func(*testing.T, *holderArgs) {}, "stop time-out", "^as root: `[^`]+`", nil},
		"a timer starts it": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.write(t, "etc/systemd/system/gaiad.timer", "[Timer]\nOnActiveSec=1h\n", 0o644)
			m.run(t, "systemctl", "daemon-reload")
			m.run(t, "systemctl", "start", "gaiad.timer")
		}, "node's manager", "^as root: `[^`]+`", nil},
		"another unit requires it": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.write(t, "etc/systemd/system/by.service", "[Unit]\nRequires=gaiad.service\nAfter=gaiad.service\n[Service]\nExecStart=/bin/sleep infinity\n", 0o644)
			m.run(t, "systemctl", "daemon-reload")
			m.run(t, "systemctl", "start", "by.service")
		}, "node's manager", "^in the file of (\\S+) say (Wants=) instead of (Requires=).*as root: `[^`]+`", func(t *testing.T, _ *holderArgs, match []string) {
			m.run(t, "sed", "-i", "s/^"+match[3]+"/"+match[2]+"/", "/etc/systemd/system/"+match[1])
		}},
		"no such unit": {
			RightsPolkit, func(_ *testing.T, a *holderArgs) { a.Systemd.Unit = "gaia" },
			"node's manager", "^`([^`]+)` shows its name: set `replica.control.systemd.unit: (NAME)`", func(t *testing.T, a *holderArgs, match []string) {
				a.Systemd.Unit = regexp.MustCompile(`gaiad\S*`).FindString(m.run(t, "sh", "-c", match[1]))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := m.install(t, c.rights)
			t.Cleanup(func() { _, _ = m.try("systemctl", "stop", "by.service", "gaiad.timer", "gaiad.service") })
			c.spoil(t, &a)
			m.run(t, "systemctl", "daemon-reload")
			look := func() (all []check.Finding) {
				out, err := m.command(m.uidOf(a), "/usr/local/bin/eddy", "play-findings", string(marshal(t, a))).Output()
				if err == nil {
					err = json.Unmarshal(out, &all)
				}
				if err != nil {
					t.Fatal(err)
				}
				return findings(all, c.check)
			}
			sick := look()
			if len(sick) == 0 {
				t.Fatalf("%s is well", c.check)
			}
			hint := sick[0].Hint
			t.Logf("%s\n hint: %s", sick[0].Said, hint)
			match := regexp.MustCompile(c.hint).FindStringSubmatch(hint)
			if match == nil {
				t.Fatalf("the hint does not hold %s", c.hint)
			}
			if c.by != nil {
				c.by(t, &a, match)
			}
			for _, span := range typed.FindAllStringSubmatch(match[0], -1) {
				if !strings.HasPrefix(span[1], "replica.") {
					m.run(t, "sh", "-c", span[1])
				}
			}
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
				if sick = look(); len(sick) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("after the hint was followed: %+v", sick)
				}
			}
		})
	}
}

func testDockerHints(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		spoil  []string
		check  string
		hint   string
	}{
		"stopped":           {"unless-stopped", []string{"stop", "--time", "10"}, "control", "^start it: `([^`]+)`"},
		"paused":            {"unless-stopped", []string{"pause"}, "node's manager", "^`([^`]+)`$"},
		"no restart policy": {"no", nil, "node's manager", "^`([^`]+)`$"},
	} {
		t.Run(name, func(t *testing.T) {
			_, cfg := dockerNode(t, c.policy, "--stop-timeout", "180")
			if c.spoil != nil {
				dockerCLI(t, append(c.spoil, cfg.Container)...)
			}
			d := mustDocker(t, cfg)
			sick := findings(Checks(ctxOf(t), d, cfg.Dir, DefaultTimeout), c.check)
			if len(sick) == 0 {
				t.Fatalf("%s is well", c.check)
			}
			t.Logf("%s\n hint: %s", sick[0].Said, sick[0].Hint)
			match := regexp.MustCompile(c.hint).FindStringSubmatch(sick[0].Hint)
			if match == nil {
				t.Fatalf("the hint does not hold %s", c.hint)
			}
			if out, err := exec.Command("sh", "-c", match[1]).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", match[1], err, out)
			}
			if left := slices.DeleteFunc(Checks(ctxOf(t), d, cfg.Dir, DefaultTimeout), func(f check.Finding) bool { return f.Level == check.OK }); len(left) > 0 {
				t.Errorf("after the hint was followed: %+v", left)
			}
		})
	}
}
