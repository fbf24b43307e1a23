package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Docker is a running dockerd with an empty store of its own, in namespaces of
// its own: it shares no network, no mounts and no /run with the machine, so that
// an engine which is there already is not touched. It is started again whenever
// it ends, as its manager would do it; tests that end it find its process by Dir,
// which is in its command line.
type Docker struct {
	// Host is for DOCKER_HOST. Paths of bind mounts are the machine's.
	Host string
	// Dir is where the engine keeps its images and containers.
	Dir string

	proc *Process
}

// dockerd runs as process 1 of its namespaces' shell: when that one is killed the
// kernel ends all containers. It goes on until it is told to stop.
const dockerd = `
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs run /run
ip link set lo up
trap 'stop=1; kill -TERM $pid' TERM
while [ -z "$stop" ]; do
	dockerd --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker.pid --host "unix://$1/docker.sock" \
		--exec-opt native.cgroupdriver=cgroupfs --log-level warn &
	pid=$!
	while kill -0 $pid; do wait $pid; done 2>/dev/null
	sleep 1
done
`

const dockerTimeout = time.Minute

// StartDocker starts an engine in a new directory below dir, the system's
// temporary one where dir is "", and returns when it answers. It needs root, and
// dockerd, ip and iptables in PATH. The caller stops it.
func StartDocker(ctx context.Context, dir string) (_ *Docker, err error) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		return nil, fmt.Errorf("%w (scripts/deps.sh docker installs it)", err)
	}
	d := &Docker{}
	if d.Dir, err = os.MkdirTemp(dir, "eddy-docker-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Stop())
		}
	}()
	d.Host = "unix://" + filepath.Join(d.Dir, "docker.sock")
	log := filepath.Join(d.Dir, "dockerd.log")
	cmd := exec.Command("/bin/sh", "-c", dockerd, "dockerd", d.Dir)
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if d.proc, err = startProcess(cmd, log); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	if err := d.proc.waitReady(ctx, d.ping); err != nil {
		said, _ := os.ReadFile(log) // whatever it printed, to explain err
		return nil, fmt.Errorf("dockerd: %w\n%s", err, said)
	}
	return d, nil
}

func (d *Docker) ping(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.Dir, "docker.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// Command is a program in the engine's namespaces: what is mounted, listens and
// runs there is a machine of its own, with this one's files.
func (d *Docker) Command(ctx context.Context, argv ...string) *exec.Cmd {
	pid := strconv.Itoa(d.proc.cmd.Process.Pid)
	return exec.CommandContext(ctx, "nsenter", append([]string{"--target", pid, "--mount", "--net", "--pid", "--uts", "--ipc", "--"}, argv...)...)
}

// Environ returns base with DOCKER_HOST, and EDDY_LAB_DOCKER for Dir.
func (d *Docker) Environ(base []string) []string {
	return append(base, "DOCKER_HOST="+d.Host, "EDDY_LAB_DOCKER="+d.Dir)
}

// Exited is closed when the engine is gone for good.
func (d *Docker) Exited() <-chan struct{} { return d.proc.Done() }

// Stop ends all containers and the engine and removes its directory.
func (d *Docker) Stop() error {
	var err error
	if d.proc != nil {
		err = d.proc.Stop(dockerTimeout)
	}
	return errors.Join(err, os.RemoveAll(d.Dir))
}
