//go:build root

package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests run beside a booted Debian: bin/lab systemd --root DIR -- go test ...
// (make e2e-systemd). This test binary is the eddy that is installed there.

// machine is that Debian.
type machine struct {
	root string // as seen from here
	home home
}

const gaia = 1000 // the node's user there

// look is how long the unit's guard may take to notice: 5 seconds, 1 of systemd's
// own accuracy, and what the start of a process takes on a busy machine.
const look = 10 * time.Second

func bootedMachine(t *testing.T) *machine {
	t.Helper()
	root := os.Getenv("EDDY_LAB_MACHINE_ROOT")
	if root == "" {
		t.Fatal("no machine: run make e2e-systemd")
	}
	return &machine{root: root, home: home(filepath.Join(root, "var/lib/gaia"))}
}

// init is the pid of the machine's init, another one after each reboot.
func (m *machine) init() int {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), "systemd-nspawn\x00") || !strings.Contains(string(b), "\x00-D\x00"+m.root+"\x00") {
			continue
		}
		manager, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		for _, pid := range children(manager) {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/private", pid)); err == nil {
				return pid
			}
		}
	}
	return 0
}

// command runs argv inside, as uid.
func (m *machine) command(uid int, argv ...string) *exec.Cmd {
	who := strconv.Itoa(uid)
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(m.init()), "-m", "-u", "-i", "-n", "-p", "-S", who, "-G", who, "--"}, argv...)...)
}

// reboot takes the power away, and waits for the next init.
func (m *machine) reboot(t *testing.T) {
	t.Helper()
	old := m.init()
	_, _ = m.try("systemctl", "reboot", "--force", "--force")
	eventually(t, 60*time.Second, "it boots", func() bool { pid := m.init(); return pid != 0 && pid != old })
}

func (m *machine) try(argv ...string) (string, error) {
	out, err := m.command(0, argv...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := m.try(argv...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return out
}

// write makes a file inside.
func (m *machine) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(m.root, name)); err != nil {
		t.Fatal(err)
	}
}

// deployed is a file of deploy/systemd as it is shipped.
func deployed(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../deploy/systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const nodeUnit = `[Service]
User=gaia
ExecStart=/usr/local/bin/eddy play-node /var/lib/gaia
Restart=always
RestartSec=1s
TimeoutStopSec=20s
[Install]
WantedBy=multi-user.target
`

// install brings the machine into the state that docs/systemd.md describes, with
// a node that runs. rights "" is root.
func (m *machine) install(t *testing.T, rights string) holderArgs {
	t.Helper()
	if _, err := os.Stat(filepath.Join(m.root, "usr/local/bin/eddy")); err != nil {
		in, err := os.Open(self())
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := os.OpenFile(filepath.Join(m.root, "usr/local/bin/eddy"), os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, in); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		m.run(t, "useradd", "-m", "-u", strconv.Itoa(gaia), "gaia")
	}
	_, _ = m.try("systemctl", "stop", "eddy.service", "gaiad.service", "eddy-guard@gaiad.timer", "eddy-guard@gaiad.service")
	for _, name := range []string{"gaiad.service.d", "gaiad.timer", "gaiad.service", "by.service", "eddy.service", "eddy-guard@gaiad.service.d"} {
		m.remove(t, "etc/systemd/system/"+name)
	}
	uid := map[bool]int{true: 0, false: gaia}[rights == ""]
	for _, dir := range []string{"var/lib/gaia", "var/lib/eddy"} {
		m.remove(t, dir)
		path := filepath.Join(m.root, dir)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		owner := uid
		if dir == "var/lib/gaia" {
			owner = gaia
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	m.write(t, "etc/systemd/system/gaiad.service", nodeUnit, 0o644)
	for _, name := range []string{"eddy-guard@.timer", "eddy-guard@.service"} {
		m.write(t, "etc/systemd/system/"+name, deployed(t, name), 0o644)
	}
	if uid == 0 {
		m.write(t, "etc/systemd/system/eddy-guard@gaiad.service.d/user.conf", "[Service]\nUser=\nGroup=\n", 0o644)
	}
	m.remove(t, "etc/polkit-1/rules.d/50-eddy.rules")
	m.remove(t, "etc/sudoers.d/eddy")
	switch rights {
	case RightsPolkit:
		m.write(t, "etc/polkit-1/rules.d/50-eddy.rules", deployed(t, "50-eddy.rules"), 0o644)
	case RightsSudo:
		m.write(t, "etc/sudoers.d/eddy", deployed(t, "sudoers"), 0o440)
	}
	m.run(t, "systemctl", "unmask", "gaiad.service")
	m.run(t, "systemctl", "daemon-reload")
	_, _ = m.try("systemctl", "reset-failed")
	m.run(t, "systemctl", "enable", "--now", "gaiad.service")
	eventually(t, 10*time.Second, "the node starts", func() bool { return m.home.starts() == 1 })
	if rights == RightsPolkit { // polkitd reads its rules when it notices them
		eventually(t, 10*time.Second, "polkit knows the rule", func() bool {
			return m.command(gaia, "systemctl", "--no-ask-password", "start", "gaiad.service").Run() == nil
		})
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.try("journalctl", "--no-pager", "-n", "60", "-o", "short-precise")
			guard, _ := os.ReadFile(filepath.Join(m.root, "var/lib/eddy/guard.log"))
			t.Logf("the machine's journal:\n%s\nguard.log:\n%s", out, guard)
		}
	})
	return holderArgs{
		Systemd: &SystemdConfig{Unit: "gaiad", Rights: rights, Dir: "/var/lib/eddy", SwapFile: "/var/lib/gaia/.eddy/swap.json", Linger: 5 * time.Second},
		Timeout: 15 * time.Second, Deadline: 5 * time.Minute,
	}
}

func (m *machine) uidOf(a holderArgs) int {
	if a.Systemd.Rights == "" {
		return 0
	}
	return gaia
}

// eddy is an eddy inside, in no service.
func (m *machine) eddy(t *testing.T, a holderArgs) *proc {
	t.Helper()
	p := spawnCmd(t, m.command(m.uidOf(a), "/usr/local/bin/eddy", "play-holder", string(marshal(t, a))))
	p.expect(t, "begin")
	return p
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// service is an eddy inside, as a service with the settings of deploy's that
// decide who dies with it.
func (m *machine) service(t *testing.T, a holderArgs, restart string) {
	t.Helper()
	args := strings.ReplaceAll(string(marshal(t, a)), `"`, `\"`)
	m.write(t, "etc/systemd/system/eddy.service", fmt.Sprintf(`[Service]
User=gaia
ExecStart=/usr/local/bin/eddy play-run "%s"
KillMode=mixed
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/var/lib/gaia /var/lib/eddy
ProtectProc=invisible
Restart=%s
RestartSec=1s
`, args, restart), 0o644)
	m.home.write("hold-once", "x")
	m.run(t, "systemctl", "daemon-reload")
	m.run(t, "systemctl", "start", "eddy.service")
	eventually(t, 20*time.Second, "it holds", func() bool { return m.home.read("held") != "" })
}

func (m *machine) show(t *testing.T, unit, property string) string {
	t.Helper()
	return m.run(t, "systemctl", "show", "--value", "-p", property, unit)
}

func (m *machine) journal() *Record {
	rec, _ := ReadHold(filepath.Join(m.root, "var/lib/eddy"))
	return rec
}

// back waits for the node's second start, a closed journal, and a guard that has
// ended itself. It returns how long the start took.
func (m *machine) back(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	took := eventually(t, within, "the node runs again", func() bool { return m.home.starts() >= 2 })
	eventually(t, 15*time.Second, "the journal is closed", func() bool { return m.journal() == nil })
	eventually(t, 15*time.Second, "the guard has ended itself", func() bool {
		return m.show(t, "eddy-guard@gaiad.timer", "ActiveState") == "inactive"
	})
	if st := m.show(t, "gaiad.service", "ActiveState"); st != "active" || m.home.starts() != 2 || m.home.read("double") != "" {
		t.Errorf("%s, %d starts", st, m.home.starts())
	}
	return took
}

// family are the children of parent that are an eddy and its guard.
func family(t *testing.T, parent int) (eddy, guard int) {
	t.Helper()
	for _, eddy = range children(parent) {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", eddy))
		if err != nil || !strings.HasPrefix(string(cmd), "/usr/local/bin/eddy\x00play-") || strings.Contains(string(cmd), "\x00play-node\x00") {
			continue
		}
		for _, guard = range children(eddy) {
			return eddy, guard
		}
	}
	t.Fatal("eddy has no guard")
	return 0, 0
}

func kill(t *testing.T, sig unix.Signal, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSystemdHold(t *testing.T) {
	m := bootedMachine(t)
	for _, rights := range []string{"", RightsPolkit, RightsSudo} {
		t.Run("rights="+rights, func(t *testing.T) {
			a := m.install(t, rights)
			out, err := m.command(m.uidOf(a), "/usr/local/bin/eddy", "play-checks", string(marshal(t, a))).Output()
			if err != nil || string(out) != "node's manager: OK\nstop time-out: FAIL\nguard: OK\nrestore in place: WARN\nright to stop: OK\n" {
				t.Errorf("checks: %v\n%s", err, out) // the node is given 20 seconds, and no condition
			}
			began := time.Now()
			p := m.eddy(t, a)
			p.expect(t, "held")
			stopped := time.Since(began)
			if st := m.show(t, "gaiad.service", "ActiveState"); st != "inactive" {
				t.Errorf("held: %s", st)
			}
			if st := m.show(t, "eddy-guard@gaiad.timer", "ActiveState"); st != "active" {
				t.Errorf("the guard is %s", st)
			}
			rec := m.journal()
			if rec == nil || rec.Control != controlSystemd || rec.Unit.Name != "gaiad.service" || rec.Unit.FileState != "enabled" || len(rec.Identity) != 32 {
				t.Errorf("journal: %+v", rec)
			}
			time.Sleep(7 * time.Second) // the guard looks, and leaves it alone
			if m.home.starts() != 1 {
				t.Error("started within the hold")
			}
			began = time.Now()
			p.in("release")
			p.expect(t, "released")
			t.Logf("held after %s, released after %s", stopped, time.Since(began))
			m.back(t, time.Second)
		})
	}
}

// What would not end well is refused before anything is stopped.
func TestSystemdRefusals(t *testing.T) {
	m := bootedMachine(t)
	for name, c := range map[string]struct {
		rights string
		spoil  func(t *testing.T, a *holderArgs)
		want   string
	}{
		"no rule": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.remove(t, "etc/polkit-1/rules.d/50-eddy.rules")
			m.run(t, "systemctl", "restart", "polkit.service")
		}, "not allowed"},
		"no sudoers": {RightsSudo, func(t *testing.T, _ *holderArgs) { m.remove(t, "etc/sudoers.d/eddy") }, "not allowed"},
		"only the unit": {RightsSudo, func(t *testing.T, _ *holderArgs) {
			m.write(t, "etc/sudoers.d/eddy", "gaia ALL=(root) NOPASSWD: /usr/bin/systemctl --no-ask-password --no-block * gaiad.service\n", 0o440)
		}, "eddy-guard@gaiad.timer: "},
		"no guard": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.remove(t, "etc/systemd/system/eddy-guard@.timer")
		}, "the guard eddy-guard@gaiad.timer is not there"},
		"another workdir": {RightsPolkit, func(t *testing.T, a *holderArgs) {
			a.Systemd.Dir = "/var/lib/gaia"
		}, "does not look into the workdir /var/lib/gaia"},
		"another user": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.write(t, "etc/systemd/system/eddy-guard@gaiad.service.d/user.conf", "[Service]\nUser=nobody\n", 0o644)
		}, "runs as nobody, this eddy as gaia"},
		"stopped": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.run(t, "systemctl", "stop", "gaiad.service")
		}, "the node is already stopped: gaiad.service is inactive"},
		"masked": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.remove(t, "etc/systemd/system/gaiad.service")
			m.run(t, "systemctl", "mask", "gaiad.service")
		}, "is masked"},
		"disabled": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.run(t, "systemctl", "disable", "gaiad.service")
		}, "is disabled"},
		"another unit requires it": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.write(t, "etc/systemd/system/by.service", "[Unit]\nRequires=gaiad.service\nAfter=gaiad.service\n[Service]\nExecStart=/bin/sleep infinity\n", 0o644)
			m.run(t, "systemctl", "daemon-reload")
			m.run(t, "systemctl", "start", "by.service")
		}, "by.service would be stopped with gaiad.service"},
		"a timer starts it": {RightsPolkit, func(t *testing.T, _ *holderArgs) {
			m.write(t, "etc/systemd/system/gaiad.timer", "[Timer]\nOnActiveSec=1h\n", 0o644)
			m.run(t, "systemctl", "daemon-reload")
			m.run(t, "systemctl", "start", "gaiad.timer")
		}, "gaiad.timer would start gaiad.service"},
		"no such unit": {RightsPolkit, func(t *testing.T, a *holderArgs) {
			a.Systemd.Unit = "gaia"
		}, "systemd knows no gaia.service"},
	} {
		t.Run(name, func(t *testing.T) {
			a := m.install(t, c.rights)
			c.spoil(t, &a)
			m.run(t, "systemctl", "daemon-reload")
			before := m.show(t, "gaiad.service", "ActiveState")
			p := m.eddy(t, a)
			select {
			case line := <-p.lines:
				if !strings.HasPrefix(line, "error ") || !strings.Contains(line, c.want) {
					t.Errorf("said %q, want %q", line, c.want)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it says nothing")
			}
			if st := m.show(t, "gaiad.service", "ActiveState"); st != before || m.home.starts() != 1 || m.journal() != nil {
				t.Errorf("%s before, %s now, %d starts, journal %v", before, st, m.home.starts(), m.journal())
			}
			_, _ = m.try("systemctl", "stop", "by.service", "gaiad.timer", "gaiad.service")
		})
	}
}

// A stop that ended in a kill, or in an exit status that nobody calls clean.
func TestSystemdTainted(t *testing.T) {
	m := bootedMachine(t)
	for name, c := range map[string]struct{ mode, dropIn, want string }{
		"killed":   {"ignore", "[Service]\nTimeoutStopSec=2s\n", "systemd killed it after 2s"},
		"exit 3":   {"exit 3", "", "exit-code, exit status 3"},
		"kills":    {"kill", "", "it died of SIGKILL"},
		"exit 143": {"exit 143", "", ""},
		"declared": {"exit 3", "[Service]\nSuccessExitStatus=3\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := m.install(t, RightsPolkit)
			m.write(t, "etc/systemd/system/gaiad.service.d/x.conf", c.dropIn, 0o644)
			m.run(t, "systemctl", "daemon-reload")
			m.home.write("mode", c.mode)
			p := m.eddy(t, a)
			select {
			case line := <-p.lines:
				if c.want == "" {
					if line != "held" {
						t.Fatalf("said %q", line)
					}
					p.in("release")
					p.expect(t, "released")
				} else if !strings.Contains(line, ErrKilled.Error()) || !strings.Contains(line, c.want) {
					t.Errorf("said %q, want %q", line, c.want)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it says nothing")
			}
			m.back(t, time.Second)
		})
	}
}

// Every way to lose an eddy inside a hold, and how long the node then stands
// still.
func TestSystemdLosses(t *testing.T) {
	m := bootedMachine(t)
	const deadline = 24 * time.Second
	for _, c := range []struct {
		name   string
		lose   func(t *testing.T, eddy, guard int)
		within time.Duration // of the loss
	}{
		{"kill -9 of eddy", func(t *testing.T, eddy, _ int) { kill(t, unix.SIGKILL, eddy) }, 2 * time.Second},
		{"kill -9 of both", func(t *testing.T, eddy, guard int) { kill(t, unix.SIGKILL, eddy, guard) }, look},
		{"kill -9 of the guard, then of eddy", func(t *testing.T, eddy, guard int) {
			kill(t, unix.SIGKILL, guard)
			time.Sleep(time.Second)
			kill(t, unix.SIGKILL, eddy)
		}, look},
		{"eddy frozen", func(t *testing.T, eddy, _ int) { kill(t, unix.SIGSTOP, eddy) }, deadline},
		{"both frozen", func(t *testing.T, eddy, guard int) { kill(t, unix.SIGSTOP, eddy, guard) }, deadline},
	} {
		for _, rights := range []string{RightsPolkit, RightsSudo} {
			t.Run(c.name+", "+rights, func(t *testing.T) {
				a := m.install(t, rights)
				a.Timeout, a.Deadline = 5*time.Second, deadline
				p := m.eddy(t, a)
				p.expect(t, "held")
				eddy, guard := family(t, p.Process.Pid)
				c.lose(t, eddy, guard)
				took := m.back(t, c.within)
				eventually(t, time.Second, "eddy is gone", func() bool { return ended(eddy) })
				t.Logf("the node ran again %s after the loss (deadline %s)", took.Round(10*time.Millisecond), deadline)
			})
		}
	}
}

// Where eddy is a service systemd kills its guard with it.
func TestSystemdLossesOfAService(t *testing.T) {
	m := bootedMachine(t)
	const deadline = 24 * time.Second
	for _, c := range []struct {
		name, restart string
		signal        unix.Signal
		both          bool
		within        time.Duration
	}{
		{"kill -9", "no", unix.SIGKILL, false, look}, // systemd kills the guard then
		{"kill -9, Restart=always", "always", unix.SIGKILL, false, look},
		{"frozen", "no", unix.SIGSTOP, false, deadline}, // its guard kills it, then systemd the guard
		{"both frozen", "no", unix.SIGSTOP, true, deadline},
		{"both frozen, Restart=always", "always", unix.SIGSTOP, true, deadline},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := m.install(t, RightsPolkit)
			a.Timeout, a.Deadline = 5*time.Second, deadline
			m.service(t, a, c.restart)
			eddy, guard := family(t, m.init())
			kill(t, c.signal, eddy)
			if c.both {
				kill(t, c.signal, guard)
			}
			took := m.back(t, c.within)
			t.Logf("the node ran again %s after the loss (deadline %s)", took.Round(10*time.Millisecond), deadline)
			_, _ = m.try("systemctl", "stop", "eddy.service")
		})
	}
}

// Somebody else decides over the held unit.
func TestSystemdOthers(t *testing.T) {
	m := bootedMachine(t)
	t.Run("started", func(t *testing.T) {
		p := m.eddy(t, m.install(t, RightsPolkit))
		p.expect(t, "held")
		m.run(t, "systemctl", "start", "gaiad.service")
		p.expect(t, "lost")
		p.in("release")
		p.expect(t, "released")
		m.back(t, time.Second)
	})
	t.Run("disabled", func(t *testing.T) {
		p := m.eddy(t, m.install(t, RightsPolkit))
		p.expect(t, "held")
		m.run(t, "systemctl", "disable", "gaiad.service")
		p.expect(t, "lost")
		p.in("release")
		p.expect(t, "error systemd gaiad.service: release: ")
		if st := m.show(t, "gaiad.service", "ActiveState"); st != "inactive" || m.journal() != nil {
			t.Errorf("%s, journal %v", st, m.journal())
		}
	})
	t.Run("its condition fails", func(t *testing.T) {
		p := m.eddy(t, m.install(t, RightsPolkit))
		p.expect(t, "held")
		m.write(t, "etc/systemd/system/gaiad.service.d/x.conf", "[Unit]\nConditionPathExists=/nowhere\n", 0o644)
		m.run(t, "systemctl", "daemon-reload")
		if err := unix.Kill(children(p.Process.Pid)[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the guard says why", func() bool {
			b, _ := os.ReadFile(filepath.Join(m.root, "var/lib/eddy/guard.log"))
			return strings.Contains(string(b), "ConditionPathExists=/nowhere does not hold")
		})
		m.remove(t, "etc/systemd/system/gaiad.service.d/x.conf")
		m.run(t, "systemctl", "daemon-reload")
		m.back(t, 40*time.Second)
	})
}

// A socket that starts the unit, as a container engine's does, is stopped and started
// with it: who connects while it is held is refused, and starts nothing.
func TestSystemdSockets(t *testing.T) {
	m := bootedMachine(t)
	a := m.install(t, "")
	const socket = "var/lib/gaiad.sock"
	m.write(t, "etc/systemd/system/gaiad.socket", "[Unit]\nPartOf=gaiad.service\n[Socket]\nListenStream=/"+socket+"\n", 0o644)
	m.write(t, "etc/systemd/system/gaiad.service.d/socket.conf", "[Unit]\nRequires=gaiad.socket\nAfter=gaiad.socket\n", 0o644)
	t.Cleanup(func() {
		_, _ = m.try("systemctl", "stop", "gaiad.socket", "gaiad.service")
		m.remove(t, "etc/systemd/system/gaiad.socket")
		m.remove(t, "etc/systemd/system/gaiad.service.d")
		_, _ = m.try("systemctl", "daemon-reload")
	})
	m.run(t, "systemctl", "daemon-reload")
	m.run(t, "systemctl", "restart", "gaiad.service")
	eventually(t, 10*time.Second, "it runs with its socket", func() bool {
		return m.home.starts() == 2 && m.show(t, "gaiad.socket", "ActiveState") == "active"
	})
	p := m.eddy(t, a)
	p.expect(t, "error systemd gaiad.service: hold: ") // nobody has said that it may be stopped
	a.Systemd.Sockets = true
	p = m.eddy(t, a)
	p.expect(t, "held")
	if rec := m.journal(); rec == nil || len(rec.Unit.Sockets) != 1 {
		t.Errorf("journal: %+v", rec)
	}
	for range 20 {
		if c, err := net.Dial("unix", filepath.Join(m.root, socket)); err == nil {
			c.Close()
			t.Error("somebody listens")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if m.home.starts() != 2 || m.show(t, "gaiad.service", "ActiveState") != "inactive" {
		t.Errorf("started within the hold: %d", m.home.starts())
	}
	// Its guard starts both, too.
	kill(t, unix.SIGKILL, children(p.Process.Pid)[0])
	eventually(t, 20*time.Second, "both run again", func() bool {
		return m.home.starts() == 3 && m.show(t, "gaiad.socket", "ActiveState") == "active" && m.show(t, "gaiad.service", "ActiveState") == "active"
	})
	c, err := net.Dial("unix", filepath.Join(m.root, socket))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// Power is lost inside the hold. This test is the last one: it reboots.
func TestSystemdZReboot(t *testing.T) {
	m := bootedMachine(t)
	a := m.install(t, RightsPolkit)
	p := m.eddy(t, a)
	p.expect(t, "held")
	began := time.Now()
	m.reboot(t)
	eventually(t, 60*time.Second, "the node runs again", func() bool { return m.home.starts() == 2 })
	t.Logf("the node ran again %s after the power was lost", time.Since(began).Round(10*time.Millisecond))
	if m.journal() == nil {
		t.Fatal("nobody could close the journal yet")
	}
	eventually(t, 30*time.Second, "the bus answers", func() bool {
		_, err := os.Stat(filepath.Join(fmt.Sprintf("/proc/%d/root", m.init()), "run/dbus/system_bus_socket"))
		return err == nil
	})
	next := m.eddy(t, a) // an earlier hold is still open: Recover is not Hold's
	next.expect(t, "error systemd gaiad.service: hold: an earlier hold is still open")
	out, err := m.command(gaia, "/usr/local/bin/eddy", "play-recover", string(marshal(t, a))).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "acted true" {
		t.Fatalf("recover: %v: %s", err, out)
	}
	m.back(t, time.Second)
}
