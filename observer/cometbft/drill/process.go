package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// world is where a drill happens: a thread that the drilled node is started from,
// in a network namespace of its own where that can be had. What is dialled and
// listened on by the thread is in that namespace, as are its children.
type world struct {
	own  bool                // a network of its own
	as   *syscall.Credential // of what is started; nil: eddy's
	work chan func()
	done chan struct{}
}

// newWorld starts the thread. A node must be started from it, and the thread must
// outlive it: the node is to die when the thread that started it does
// (PR_SET_PDEATHSIG in prctl(2)), and eddy's death ends all threads.
func newWorld(isolated bool) (*world, error) {
	w := &world{own: isolated && os.Geteuid() == 0, work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(w.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if w.own {
			if err := ownNetwork(); errors.Is(err, unix.EPERM) { // root without the right, as in containers
				w.own = false
			} else if err != nil {
				ready <- err
				return
			}
		}
		ready <- nil
		for f := range w.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		<-w.done
		return nil, fmt.Errorf("a network of the drill's own: %w", err)
	}
	return w, nil
}

// ownNetwork moves the thread into a new network, in which there is loopback only.
func ownNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// do runs f on the thread.
func (w *world) do(f func() error) error {
	out := make(chan error)
	w.work <- func() { out <- f() }
	return <-out
}

func (w *world) end() { close(w.work); <-w.done }

func (w *world) listen(addr string) (l net.Listener, err error) {
	err = w.do(func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

func (w *world) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = w.do(func() error {
		c, err = (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// handOver gives all of a scratch directory to the directory's owner, and returns
// the credentials that what is started there gets: his, and no other group's. Only
// root can; what a node's user may write is not run as root because root drills. nil
// means eddy's own: it is not root, or the directory is root's.
func handOver(scratch string) (*syscall.Credential, error) {
	fi, err := os.Stat(scratch)
	if err != nil || os.Geteuid() != 0 {
		return nil, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if st.Uid == 0 {
		return nil, nil
	}
	root, err := os.OpenRoot(scratch) // he may write there: nothing outside is given away
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(name, int(st.Uid), int(st.Gid))
	})
	if err != nil {
		return nil, fmt.Errorf("give the copy to the owner of %s: %w", scratch, err)
	}
	return &syscall.Credential{Uid: st.Uid, Gid: st.Gid}, nil
}

// The variables by which everything that a drill started is known, and by which a
// check of the chain's own finds the node.
const (
	envHome   = "EDDY_DRILL_HOME"
	envRPC    = "EDDY_DRILL_RPC"
	envHeight = "EDDY_DRILL_HEIGHT"
)

// environment is what a drilled node gets: nothing of eddy's own, in which
// credentials are, and nothing by which the live node is configured.
func environment(scratch string, h home) []string {
	env := []string{
		"HOME=" + scratch, "TMPDIR=" + filepath.Join(scratch, "tmp"),
		envHome + "=" + h.dir, envRPC + "=http://" + h.rpc,
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if slices.Contains([]string{"PATH", "LD_LIBRARY_PATH", "TZ", "LANG"}, name) || strings.HasPrefix(name, "LC_") {
			env = append(env, kv)
		}
	}
	return env
}

// child is a process that a drill has started, with a process group of its own.
type child struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // valid after done
}

func (w *world) start(argv, env []string, dir, log string) (*child, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the child has its own descriptor
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, f, f
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL, Credential: w.as}
	if err := w.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	c := &child{cmd: cmd, log: log, done: make(chan struct{})}
	go func() { c.err = cmd.Wait(); close(c.done) }()
	return c, nil
}

// exited tells whether the process has ended.
func (c *child) exited() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// stopGrace is how long a drilled node may take to stop by itself. Its data are
// thrown away: a kill costs nothing.
const stopGrace = 10 * time.Second

// stop ends the process and its group.
func (c *child) stop() {
	pid := c.cmd.Process.Pid
	_ = unix.Kill(-pid, unix.SIGTERM) // gone already is what is wanted
	select {
	case <-c.done:
	case <-time.After(stopGrace):
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
	<-c.done
}

// killAll kills every process that was started for a home, however it has moved
// between groups and sessions since: its environment tells. It returns when they
// are gone.
func killAll(ctx context.Context, home string) error {
	want := []byte(envHome + "=" + home + "\x00")
	for {
		left, err := withEnvironment(want)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, pid := range left {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // gone, or its number is somebody else's: asked again
			}
			if has(pid, want) {
				err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			unix.Close(fd)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d, which a drill left: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes of the drill are left: %v: %w", left, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func withEnvironment(want []byte) (pids []int, err error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if pid, err := strconv.Atoi(n.Name()); err == nil && pid != os.Getpid() && has(pid, want) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// has tells whether a process has a variable. One that is a zombie has none.
func has(pid int, want []byte) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, b...), append([]byte{0}, want...))
}

const (
	lastLines = 12      // of the node's log, for the report
	maxTail   = 1 << 16 // bytes of it that are looked at
	maxLine   = 400
)

var (
	colours  = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")
	userinfo = regexp.MustCompile(`://[^/@\s"']+@`)
	secretly = regexp.MustCompile(`(?i)((?:password|passwd|secret|token|mnemonic|api[-_]?key|priv(?:ate)?[-_]?key|authorization)["']?\s*[:=]\s*)("[^"]*"|\S+)`)
)

// tail is the end of a log, without what may be secret in it.
func tail(file string) ([]string, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(fi.Size(), maxTail))
	if _, err := f.ReadAt(b, fi.Size()-int64(len(b))); err != nil {
		return nil, err
	}
	return clean(b), nil
}

func clean(b []byte) []string {
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(b), "?")) {
		line = strings.TrimSpace(colours.ReplaceAllString(line, ""))
		line = userinfo.ReplaceAllString(line, "://***@")
		line = secretly.ReplaceAllString(line, "${1}***")
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, line)
		if len(line) > maxLine {
			line = strings.ToValidUTF8(line[:maxLine], "") + " ..."
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-lastLines):]
}
