package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a Debian with a systemd of its own, booted in a container: services,
// timers, the bus, polkit and sudo are the real ones. It has a network of its own
// with nothing but loopback, and may reboot.
type Machine struct {
	// Root is the container's root directory as this machine sees it. It names
	// the container: "-D Root" stands in the command line of its systemd-nspawn,
	// whose child is its init. Both are others after a reboot.
	Root string

	dir  string
	argv []string
	log  string
	done chan struct{} // closed when it has ended and boots no more

	mu   sync.Mutex
	proc *Process
	off  bool // it is to boot no more
}

// bootTimeout is for the boot, and shutdown for the end, of a machine that shares
// few cores with others.
const (
	bootTimeout = 60 * time.Second
	shutdown    = 30 * time.Second
)

// StartMachine boots a copy of the root directory base, which stays as it is, and
// returns when its bus answers. It needs root. The caller stops it.
func StartMachine(ctx context.Context, base string) (_ *Machine, err error) {
	if _, err := os.Stat(filepath.Join(base, "etc/debian_version")); err != nil {
		return nil, fmt.Errorf("no root directory of a Debian, make e2e-systemd makes one: %w", err)
	}
	dir, err := os.MkdirTemp("", "eddy-machine-")
	if err != nil {
		return nil, err
	}
	m := &Machine{Root: filepath.Join(dir, "root"), dir: dir, log: filepath.Join(dir, "boot.log"), done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Stop())
		}
	}()
	for _, d := range []string{"root", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, dir, dir)
	if err := unix.Mount("overlay", m.Root, "overlay", 0, layers); err != nil {
		return nil, fmt.Errorf("mount a copy of %s: %w", base, err)
	}
	m.argv = []string{
		"/usr/bin/systemd-nspawn", "--register=no", "--keep-unit", "--private-network", "--console=read-only",
		"--machine=" + filepath.Base(dir), "-D", m.Root, "-b",
	}
	if m.proc, err = StartProcess(m.argv, os.Environ(), m.log); err != nil {
		return nil, err
	}
	first := m.proc
	go m.run(first)
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := first.waitReady(ctx, func(context.Context) error { return booted(first) }); err != nil {
		tail, _ := os.ReadFile(m.log) // whatever it printed, to explain err
		return nil, fmt.Errorf("boot %s: %w\n%s", base, err, tail)
	}
	return m, nil
}

// rebooted is the exit status of a systemd-nspawn with --keep-unit whose container
// wants to boot again.
const rebooted = 133

// run boots the machine again for as long as it reboots.
func (m *Machine) run(p *Process) {
	defer close(m.done)
	for {
		<-p.Done()
		m.mu.Lock()
		again := !m.off && p.cmd.ProcessState.ExitCode() == rebooted
		if again {
			var err error
			if p, err = StartProcess(m.argv, os.Environ(), m.log); err != nil {
				again = false // Exited tells
			} else {
				m.proc = p
			}
		}
		m.mu.Unlock()
		if !again {
			return
		}
	}
}

// booted looks for the bus of the container's init.
func booted(p *Process) error {
	pid := p.cmd.Process.Pid
	list := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	b, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	for _, init := range strings.Fields(string(b)) {
		if _, err = os.Stat("/proc/" + init + "/root/run/dbus/system_bus_socket"); err == nil {
			return nil
		}
	}
	return errors.Join(errors.New("it has no system bus yet"), err)
}

// Environ returns base with the variable by which a test finds the machine.
func (m *Machine) Environ(base []string) []string {
	return append(base, "EDDY_LAB_MACHINE_ROOT="+m.Root)
}

// Exited is closed when the machine has ended by itself.
func (m *Machine) Exited() <-chan struct{} { return m.done }

// Stop shuts the machine down and removes its directory.
func (m *Machine) Stop() error {
	var err error
	m.mu.Lock()
	m.off = true
	p := m.proc
	m.mu.Unlock()
	if p != nil {
		err = p.Stop(shutdown)
		<-m.done
	}
	if uerr := unix.Unmount(m.Root, 0); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
		return errors.Join(err, fmt.Errorf("unmount %s: %w", m.Root, uerr)) // nothing is removed through a mount
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}
