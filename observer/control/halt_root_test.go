//go:build root

package control

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

const haltedUnit = "gaiad.service"

// restore plays a verb of a restore's eddy inside, and returns what it says.
func (m *machine) restore(t *testing.T, a holderArgs, verb string) string {
	t.Helper()
	out, err := m.command(m.uidOf(a), "/usr/local/bin/eddy", "play-restore", string(marshal(t, a)), verb).CombinedOutput()
	said := strings.TrimSpace(string(out))
	if (err == nil) != (said == "ok") {
		t.Fatalf("%s: %v: %s", verb, err, said)
	}
	return said
}

func (m *machine) restores(t *testing.T, a holderArgs, verb string) {
	t.Helper()
	if said := m.restore(t, a, verb); said != "ok" {
		t.Fatalf("%s: %s", verb, said)
	}
}

// condition makes the unit fit to be halted, as the refusal's hint says.
func (m *machine) condition(t *testing.T, a holderArgs) {
	t.Helper()
	said := m.restore(t, a, "may")
	if !strings.Contains(said, ErrUnguarded.Error()) || !strings.Contains(said, "has no ConditionPathExists=!"+a.Systemd.SwapFile) {
		t.Fatalf("without the condition: %s", said)
	}
	_, todo, _ := strings.Cut(said, "\nhint ")
	match := typed.FindStringSubmatch(todo)
	if match == nil || !strings.HasPrefix(todo, "as root: `") {
		t.Fatalf("nothing to type: %s", said)
	}
	m.run(t, "sh", "-c", match[1])
	m.restores(t, a, "may")
	if st := m.show(t, haltedUnit, "ActiveState"); st != "active" || m.home.starts() != 1 {
		t.Fatalf("a question left it %s, with %d starts", st, m.home.starts())
	}
}

// swap makes the file that says that names are being exchanged.
func (m *machine) swap(t *testing.T) {
	t.Helper()
	m.write(t, "var/lib/gaia/.eddy/swap.json", "{}", 0o600)
	if err := os.Chown(filepath.Join(m.root, "var/lib/gaia/.eddy"), gaia, gaia); err != nil {
		t.Fatal(err)
	}
}

// staysDown tries to start the unit, and looks whether anybody else does.
func (m *machine) staysDown(t *testing.T, starts int) {
	t.Helper()
	for range 3 {
		m.run(t, "systemctl", "start", haltedUnit) // reports success
		time.Sleep(time.Second)
		if st := m.show(t, haltedUnit, "ActiveState"); st != "inactive" || m.show(t, haltedUnit, "MainPID") != "0" || m.home.starts() != starts {
			t.Fatalf("in the middle of a swap it is %s, with %d starts of %d", st, m.home.starts(), starts)
		}
	}
}

// comesBack ends the swap. Twice: a Start of what runs is no error.
func (m *machine) comesBack(t *testing.T, a holderArgs, starts int) {
	t.Helper()
	m.remove(t, "var/lib/gaia/.eddy/swap.json")
	for range 2 {
		m.restores(t, a, "start")
	}
	eventually(t, 2*time.Second, "the node runs", func() bool { return m.home.starts() == starts+1 })
	if st := m.show(t, haltedUnit, "ActiveState"); st != "active" || m.home.read("double") != "" {
		t.Fatalf("after the swap it is %s", st)
	}
}

// A unit that a restore has halted stays down, whoever starts it and whatever
// happens to the machine, until the swap is over.
func TestSystemdHalts(t *testing.T) {
	m := bootedMachine(t)
	for _, rights := range []string{"", RightsPolkit, RightsSudo} {
		t.Run("rights="+rights, func(t *testing.T) {
			a := m.install(t, rights)
			m.condition(t, a)
			if said := m.restore(t, a, "halt"); !strings.Contains(said, ErrUnguarded.Error()) || m.show(t, haltedUnit, "ActiveState") != "active" {
				t.Fatalf("halt without a swap file: %s", said)
			}
			m.swap(t)
			for range 2 { // one that is down is no error
				m.restores(t, a, "halt")
			}
			if got := m.home.read("signals"); got != "SIGTERM" {
				t.Errorf("signals %q", got)
			}
			m.staysDown(t, 1)
			early := *a.Systemd
			early.StartTimeout = time.Second
			if said := m.restore(t, holderArgs{Systemd: &early}, "start"); !strings.Contains(said, ErrRestoring.Error()) {
				t.Errorf("start in the middle of a swap: %s", said)
			}
			m.comesBack(t, a, 1)
		})
	}
	t.Run("a timer starts it", func(t *testing.T) {
		a := m.install(t, RightsPolkit)
		m.condition(t, a)
		m.write(t, "etc/systemd/system/gaiad.timer", "[Timer]\nOnActiveSec=1s\nOnUnitInactiveSec=1s\nAccuracySec=100ms\n", 0o644)
		m.run(t, "systemctl", "daemon-reload")
		m.run(t, "systemctl", "start", "gaiad.timer")
		t.Cleanup(func() { _, _ = m.try("systemctl", "stop", "gaiad.timer") })
		m.swap(t)
		m.restores(t, a, "halt")
		m.staysDown(t, 1)
		m.comesBack(t, a, 1)
	})
	t.Run("others go down with it", func(t *testing.T) {
		a := m.install(t, RightsPolkit)
		m.condition(t, a)
		for _, by := range []string{"Requires", "BindsTo", "PartOf"} {
			m.write(t, "etc/systemd/system/by.service", "[Unit]\n"+by+"="+haltedUnit+"\nAfter="+haltedUnit+"\n[Service]\nExecStart=/bin/sleep infinity\n", 0o644)
			m.run(t, "systemctl", "daemon-reload")
			m.run(t, "systemctl", "start", "by.service")
			t.Cleanup(func() { _, _ = m.try("systemctl", "stop", "by.service") })
			if said := m.restore(t, a, "may"); !strings.Contains(said, "by.service would be stopped with "+haltedUnit) || !strings.Contains(said, "say Wants=") {
				t.Errorf("%s=: %s", by, said)
			}
			m.run(t, "systemctl", "stop", "by.service")
			m.restores(t, a, "may") // it is down already
		}
	})
	t.Run("it dies before the halt", func(t *testing.T) {
		a := m.install(t, RightsPolkit)
		m.condition(t, a)
		m.swap(t)
		m.run(t, "systemctl", "kill", "--kill-who=main", "--signal=KILL", haltedUnit)
		eventually(t, 10*time.Second, "Restart= does not start it", func() bool { return m.show(t, haltedUnit, "ActiveState") == "inactive" })
		m.restores(t, a, "halt")
		m.staysDown(t, 1)
		m.comesBack(t, a, 1)
	})
	// The node whose data are to be replaced is often one that cannot start.
	t.Run("it dies again and again", func(t *testing.T) {
		a := m.install(t, RightsPolkit)
		m.condition(t, a)
		m.write(t, "etc/systemd/system/gaiad.service.d/x.conf", "[Service]\nRestartSec=1h\nExecStart=\nExecStart=/bin/false\n", 0o644)
		m.run(t, "systemctl", "daemon-reload")
		m.run(t, "systemctl", "restart", haltedUnit)
		eventually(t, 10*time.Second, "it waits for its next start", func() bool { return m.show(t, haltedUnit, "SubState") == "auto-restart" })
		m.restores(t, a, "may")
		m.swap(t)
		m.restores(t, a, "halt")
		m.staysDown(t, 1)
		m.remove(t, "etc/systemd/system/gaiad.service.d/x.conf") // other data would mend it
		m.run(t, "systemctl", "daemon-reload")
		m.comesBack(t, a, 1)
	})
	t.Run("power is lost", func(t *testing.T) {
		a := m.install(t, RightsPolkit)
		m.condition(t, a)
		m.swap(t)
		m.restores(t, a, "halt")
		m.reboot(t)
		eventually(t, 60*time.Second, "all that is enabled was started", func() bool {
			out, _ := m.try("systemctl", "is-active", "multi-user.target", "dbus.service")
			return out == "active\nactive"
		})
		if got := m.show(t, haltedUnit, "ConditionResult"); got != "no" {
			t.Errorf("the boot did not look at its condition: %s", got)
		}
		m.restores(t, a, "halt") // whoever goes on with the swap proves that it is down
		m.staysDown(t, 1)
		m.comesBack(t, a, 1)
	})
}

// The same for a container: no policy starts it, an engine's own start neither.
func testDockerHalts(t *testing.T) {
	halted := map[string]home{}
	configs := map[string]DockerConfig{}
	for _, policy := range []string{"always", "unless-stopped", "on-failure:7"} {
		h, c := dockerNode(t, policy)
		d := mustDocker(t, c)
		err := d.MayHalt(ctxOf(t), true)
		todo := typed.FindAllStringSubmatch(hint.Of(err), -1)
		if !errors.Is(err, ErrUnguarded) || len(todo) != 2 {
			t.Fatalf("restart policy %s: %v, hint %q", policy, err, hint.Of(err))
		}
		shell(t, todo[0][1])
		t.Cleanup(func() {
			shell(t, todo[1][1])
			if got := dockerCLI(t, "inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}{{with .HostConfig.RestartPolicy.MaximumRetryCount}}:{{.}}{{end}}", c.Container); got != policy {
				t.Errorf("after the restore the policy is %s, was %s", got, policy)
			}
		})
		if err := d.MayHalt(ctxOf(t), false); err != nil {
			t.Fatal(err)
		}
		if err := d.Halt(ctxOf(t), Request{}); !errors.Is(err, ErrUnguarded) || !containerRuns(t, c) {
			t.Fatalf("halt without a swap file: %v", err)
		}
		h.write("swap.json", "{}")
		for range 2 { // one that is down is no error
			if err := d.Halt(ctxOf(t), Request{Timeout: engineTime, Down: AllDown([]string{string(h)}, nil)}); err != nil {
				t.Fatal(err)
			}
		}
		halted[policy], configs[policy] = h, c
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		endEngine(t, sig)
		eventually(t, 60*time.Second, "the engine is back", engineAnswers)
		time.Sleep(2 * time.Second) // it starts what it wants to start
		for policy, h := range halted {
			if containerRuns(t, configs[policy]) || h.starts() != 1 {
				t.Fatalf("policy %s: started after %s of the engine", policy, unix.SignalName(sig))
			}
		}
	}
	for policy, h := range halted {
		d := mustDocker(t, configs[policy])
		if err := d.Halt(ctxOf(t), Request{}); err != nil { // whoever goes on with the swap
			t.Fatal(err)
		}
		if err := os.Remove(h.path("swap.json")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := d.Start(ctxOf(t)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, engineTime, "the node runs", func() bool { return h.starts() == 2 })
		if !containerRuns(t, configs[policy]) || h.read("signals") != "SIGTERM" || h.read("double") != "" {
			t.Errorf("policy %s: signals %q", policy, h.read("signals"))
		}
	}
}

func shell(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}
