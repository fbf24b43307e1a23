package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Swarm is several machines with an engine each, on a network of their own. A machine
// is a network, a mount and a pid namespace: what kills its engine hard kills all that
// runs there, as a power cut does. All end with the process that started them.
type Swarm struct {
	Dir   string
	Hosts []*SwarmHost

	proc *Process
}

// SwarmHost is one of the machines.
type SwarmHost struct {
	Name string // sw1, ...
	Addr string // 10.99.0.1, ...
	Dir  string // data: the engine's root; docker.sock
	// Stop, Start and Status are commands for control.exec.
	Stop, Start, Status []string

	swarm *Swarm
}

// swarmMachines is process 1 of the namespaces around all: argv is a directory and how
// many. A machine is up while its file up is there.
const swarmMachines = `
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs run /run
ip link set lo up
ip link add swbr type bridge
ip addr add 10.99.0.254/24 dev swbr
ip link set swbr up
for i in $(seq "$2"); do
	ip netns add "sw$i"
	ip link add "v$i" type veth peer name eth0 netns "sw$i"
	ip link set "v$i" master swbr up
	ip -n "sw$i" addr add "10.99.0.$i/24" dev eth0
	ip -n "sw$i" link set lo up
	ip -n "sw$i" link set eth0 up
	ip -n "sw$i" route add default via 10.99.0.254
	sh "$1/machine" "$1/sw$i" "sw$i" &
done
touch "$1/ready"
wait
`

// swarmMachine is the power switch of one: argv is its directory and its name. What it
// runs cannot be told to stop by the shell's child, which is only its namespace's door.
const swarmMachine = `
cd "$1"
rm -f running
while :; do
	inside=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
	if [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then
		wait "$pid"
		pid= told=
		rm -f running kill up
	elif [ -n "$pid" ] && [ -e kill ] && [ -n "$inside" ]; then
		kill -KILL $inside
	elif [ -n "$pid" ] && [ ! -e up ] && [ -z "$told" ] && [ -n "$inside" ]; then
		kill -TERM $inside
		told=1
	elif [ -z "$pid" ] && [ -e up ]; then
		date +%s%N >running
		nsenter --net="/run/netns/$2" unshare --mount --uts --pid --fork --kill-child --mount-proc sh -c '
			hostname "$2"
			mkdir -p /run/docker /run/containerd
			mount -t tmpfs docker /run/docker
			mount -t tmpfs containerd /run/containerd
			exec dockerd --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker/pid --host "unix://$1/docker.sock" \
				--storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs --log-level warn' sh "$1" "$2" >>log 2>&1 &
		pid=$!
	fi
	sleep 0.05
done
`

// swarmSwitch is what an operator, or eddy, turns it by: argv is the machine's directory
// and a verb.
const swarmSwitch = `#!/bin/sh
cd "$1"
case $2 in
stop) rm -f up; while [ -e running ]; do sleep 0.05; done ;;
start) touch up; while [ ! -e running ]; do sleep 0.05; done ;;
kill) touch kill; while [ -e running ]; do sleep 0.05; done ;;
status) cat running 2>/dev/null || exit 3 ;;
esac
`

// StartSwarm starts n machines in a new directory below dir. Their engines answer when
// it returns; none is a member of a swarm. It needs root, and dockerd, ip and iptables in PATH.
// The caller stops it.
func StartSwarm(ctx context.Context, dir string, n int) (_ *Swarm, err error) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		return nil, fmt.Errorf("%w (scripts/deps.sh docker installs it)", err)
	}
	s := &Swarm{}
	if s.Dir, err = os.MkdirTemp(dir, "eddy-swarm-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	ctl := filepath.Join(s.Dir, "switch")
	err = errors.Join(os.WriteFile(filepath.Join(s.Dir, "machine"), []byte(swarmMachine), 0o600), os.WriteFile(ctl, []byte(swarmSwitch), 0o700))
	for i := range n {
		name := "sw" + strconv.Itoa(i+1)
		h := &SwarmHost{swarm: s, Name: name, Addr: "10.99.0." + strconv.Itoa(i+1), Dir: filepath.Join(s.Dir, name)}
		h.Stop, h.Start, h.Status = []string{ctl, h.Dir, "stop"}, []string{ctl, h.Dir, "start"}, []string{ctl, h.Dir, "status"}
		s.Hosts = append(s.Hosts, h)
		err = errors.Join(err, os.Mkdir(h.Dir, 0o700))
	}
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", swarmMachines, "machines", s.Dir, strconv.Itoa(n))
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	log := filepath.Join(s.Dir, "log")
	if s.proc, err = startProcess(cmd, log); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	err = s.proc.waitReady(ctx, func(context.Context) error {
		_, err := os.Stat(filepath.Join(s.Dir, "ready"))
		return err
	})
	for _, h := range s.Hosts {
		if err == nil {
			err = h.PowerOn(ctx)
		}
	}
	if err != nil {
		said, _ := os.ReadFile(log) // whatever it printed, to explain err
		return nil, fmt.Errorf("swarm: %w\n%s", err, said)
	}
	return s, nil
}

// Stop ends all machines and removes their directories.
func (s *Swarm) Stop() error {
	var err error
	if s.proc != nil {
		// A shell that is process 1 hears no SIGTERM, and nothing here needs an end in peace.
		_ = s.proc.signal(syscall.SIGKILL)
		<-s.proc.Done()
	}
	for range 50 { // of overlay mounts, which end with the last process
		if err = os.RemoveAll(s.Dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// Host is the engine's address.
func (h *SwarmHost) Host() string { return "unix://" + filepath.Join(h.Dir, "docker.sock") }

// PowerOn starts the machine and returns when its engine answers.
func (h *SwarmHost) PowerOn(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, h.Start[0], h.Start[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	d := &Docker{Dir: h.Dir}
	for d.ping(ctx) != nil {
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(filepath.Join(h.Dir, "log"))
			return fmt.Errorf("dockerd of %s: %w\n%s", h.Name, ctx.Err(), said)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// PowerOff kills all that runs there.
func (h *SwarmHost) PowerOff(ctx context.Context) error {
	return exec.CommandContext(ctx, h.Stop[0], h.Dir, "kill").Run()
}

// Docker runs the engine's command line and returns what it prints, without the last
// line's end.
func (h *SwarmHost) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"--host", h.Host()}, args...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("docker %s on %s: %w: %s", args[0], h.Name, err, exit.Stderr)
	}
	for len(out) > 0 && out[len(out)-1] == '\n' {
		out = out[:len(out)-1]
	}
	return string(out), err
}

// Command is a program on the machine, whether it is on or off: its network is the
// machine's, its files are this one's, and it sees the processes of all machines.
func (h *SwarmHost) Command(ctx context.Context, argv ...string) *exec.Cmd {
	pid := strconv.Itoa(h.swarm.proc.cmd.Process.Pid)
	return exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", pid, "--mount", "--net", "--pid", "--uts", "--ipc", "--",
		"nsenter", "--net=/run/netns/" + h.Name, "--",
	}, argv...)...)
}
