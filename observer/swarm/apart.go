package swarm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/alone"
)

const (
	runDir = "/run"
	// socket is where the engine of a drill listens, in a file system that only it
	// has; from outside it is reached through its /proc/PID/root. No other engine has
	// one of that name: until all is mounted, this machine's own is to be seen there.
	socket     = runDir + "/eddy-drill.sock"
	stopWithin = 10 * time.Second
	drillName  = "eddy-drill"
	logLines   = 20       // of an engine that did not pass
	logTail    = 16 << 10 // bytes of its log that these are taken of
)

// apart are the words that keep an engine out of all that is this machine's. It needs
// no storage driver, as there is no image, and no firewall.
var apart = []string{
	"--host", "unix://" + socket, "--exec-root", runDir + "/docker", "--pidfile", runDir + "/docker.pid",
	"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs",
	"--bridge", "none", "--iptables=false", "--ip-forward=false", "--log-level", "warn",
}

// hidden is process 1 of a drill's namespaces. It hides the sockets of this machine's
// engine, of its plugins and of systemd, which lie in /run, and the plugins that
// /etc/docker names; what the engine writes into /etc, its key, goes with it.
const hidden = `
{
	mount --make-rprivate / &&
	mount -t proc proc /proc &&
	mount -t tmpfs -o mode=755 tmpfs /run &&
	mkdir /run/etc /run/work &&
	{ mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work overlay /etc || [ -d /etc/docker ]; } &&
	mkdir -p /etc/docker &&
	mount -t tmpfs -o mode=700 tmpfs /etc/docker
} || exit 1
exec "$@"
`

func (c *copied) logFile() string { return c.o.DataRoot + ".log" }

// env is what the engine, and a check beside it, get of eddy's environment. By the
// name of the home what a drill has left is known.
func (c *copied) env() []string {
	return append(alone.Bare(c.scratch), "EDDY_DRILL_HOME="+filepath.Join(c.scratch, observer.DrillHome))
}

// launch starts the engine in network, mount, uts, ipc and pid namespaces of its own.
// The kernel kills it when the thread ends that started it, which waits for it; and so
// when eddy does (PR_SET_PDEATHSIG in prctl(2)). ended is called when it has ended.
func (c *copied) launch(addrs []net.IP, ended func()) (pid int, err error) {
	out, err := os.OpenFile(c.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("sh", append([]string{"-c", hidden, drillName}, c.argv...)...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.env(), "/", out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setpgid: true, Pdeathsig: syscall.SIGKILL,
	}
	started := make(chan error)
	go func() {
		defer close(c.done)
		defer ended()
		defer out.Close()
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := isolate(addrs)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-started; err != nil {
		err = fmt.Errorf("an engine in namespaces of its own: %w", err)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) {
			err = hint.Add(fmt.Errorf("%w: %w", observer.ErrNotPossible, err), "drill on a host, as root: a container has not the rights")
		}
		<-c.done
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// isolate moves the thread into a new network, in which there is loopback only, with
// the addresses.
func isolate(addrs []net.IP) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(drillName)); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	up := unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: loopback, Flags: unix.IFF_UP, Change: unix.IFF_UP}
	if err := netlink(fd, unix.RTM_NEWLINK, 0, up); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	for _, ip := range addrs {
		if err := addAddress(fd, ip); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("put %s on loopback: %w", ip, err)
		}
	}
	return nil
}

// loopback is the first interface of every network (LOOPBACK_IFINDEX).
const loopback = 1

// addAddress puts one address on loopback, and none beside it: a whole prefix there
// would be the node's own, with the addresses of its peers.
func addAddress(fd int, ip net.IP) error {
	m := unix.IfAddrmsg{Family: unix.AF_INET6, Prefixlen: 128, Flags: unix.IFA_F_NODAD, Index: loopback}
	raw := ip.To16()
	if v4 := ip.To4(); v4 != nil {
		m.Family, m.Prefixlen, m.Flags, raw = unix.AF_INET, 32, 0, v4
	}
	attrs := append(attribute(unix.IFA_LOCAL, raw), attribute(unix.IFA_ADDRESS, raw)...)
	return netlink(fd, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, attrs)
}

// attribute is one of a request; all here have lengths that need no padding.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	return append(binary.NativeEndian.AppendUint16(b, kind), value...)
}

// netlink sends one request (rtnetlink(7)) and returns the kernel's answer to it.
func netlink(fd int, kind, flags uint16, parts ...any) error {
	var body, msg bytes.Buffer
	for _, p := range parts {
		if err := binary.Write(&body, binary.NativeEndian, p); err != nil {
			return err
		}
	}
	head := unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + body.Len()), Type: kind, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags}
	if err := binary.Write(&msg, binary.NativeEndian, head); err != nil {
		return err
	}
	if err := unix.Sendto(fd, append(msg.Bytes(), body.Bytes()...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer is none")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// addresses are those that the engine will look for among its own.
func (d *dump) addresses() (all []net.IP) {
	add := func(host string) {
		if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() && !ip.IsLoopback() {
			all = append(all, ip)
		}
	}
	add(d.advertised())
	l := d.Local
	for _, addr := range []string{l.LocalAddr, l.ListenAddr, l.AdvertiseAddr, l.DataPathAddr} {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			addr = host
		}
		add(addr)
	}
	return all
}

// tail is the end of the engine's log.
func (c *copied) tail() []string {
	f, err := os.Open(c.logFile())
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > logTail {
		_, _ = f.Seek(-logTail, io.SeekEnd) // else it is read from its beginning
	}
	b, err := io.ReadAll(io.LimitReader(f, logTail))
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.ToValidUTF8(string(bytes.TrimSpace(b)), "?"), "\n")
	return lines[max(0, len(lines)-logLines):]
}
