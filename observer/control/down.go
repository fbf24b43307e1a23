package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// rootDepth is how deep below a root its directories are known by number, so
// that they are recognized under another name (a bind mount, a container). Three
// levels hold home/data/application.db.
const rootDepth = 2

// ownDir holds eddy's own stages in a root; the node has no business there.
const ownDir = ".eddy"

// errNoAnswer is in the chain where nothing shows that the node lives, but an
// address is one that nobody answers for.
var errNoAnswer = errors.New("nobody answers")

// AllDown makes the proof for Request.Down: nobody has a file open under roots,
// and each of addrs (host:port) refuses. What shows that the node lives is
// reported first.
//
// Where eddy runs in a container of its own it sees no process but its own: the
// proof by open files is then empty, and the manager's word stands for it.
func AllDown(roots, addrs []string) func(context.Context) error {
	return func(ctx context.Context) error {
		var silent error
		for _, a := range addrs { // cheap, and it says more
			err := PortRefuses(ctx, a)
			if errors.Is(err, errNoAnswer) {
				silent = err
			} else if err != nil {
				return err
			}
		}
		if err := NoOpenFiles(roots); err != nil {
			return err
		}
		return silent
	}
}

// PortRefuses returns nil when nobody listens on addr (host:port, TCP). A port
// that does not answer at all proves nothing.
func PortRefuses(ctx context.Context, addr string) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("%w: %s still answers", ErrNotDown, addr)
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case noAnswer(err):
		return fmt.Errorf("%w: %s: %w: %w", ErrNotDown, addr, errNoAnswer, err)
	default:
		return fmt.Errorf("%w: %s: %w", ErrNotDown, addr, err)
	}
}

// noAnswer tells whether the name is unknown, or no machine has the address: a
// stopped container leaves both behind.
func noAnswer(err error) bool {
	var name *net.DNSError
	var wait net.Error
	return errors.As(err, &name) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) ||
		errors.As(err, &wait) && wait.Timeout()
}

// NoOpenFiles returns nil when no process has a regular file open or mapped
// under roots, other than this one, those in except, and under a root's .eddy.
// Who has is named, up to a few of them.
//
// A file is recognized by the directories above it, as its process sees them, by
// device and inode: also through a bind mount or from within a container.
//
// A process whose descriptors we may not read makes the proof fail where it may
// be the node: it belongs to another user than ours who owns a root, or its
// command line names a root. All others that we may not read are passed over:
// every machine has some (PID 1 of a container has, for its own root, too), and
// the node is not among those that run as we do. Processes of another pid
// namespace are not seen, unless it is below ours.
func NoOpenFiles(roots []string, except ...int) error {
	scan, err := newScan(roots)
	if err != nil {
		return err
	}
	if len(scan.dirs) == 0 {
		return nil
	}
	names, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("%w: list the processes: %w", ErrNotDown, err)
	}
	for _, e := range names {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || slices.Contains(except, pid) {
			continue
		}
		scan.process(pid)
	}
	return scan.verdict()
}

type inode struct{ dev, ino uint64 }

type scan struct {
	dirs   map[inode]bool  // the roots and the directories near their top
	own    map[inode]bool  // .eddy of each root
	devs   map[uint64]bool // of the roots
	uids   map[uint32]bool // owners of the roots
	roots  []string
	users  []string         // findings: who has what open
	blind  []string         // findings: whom we may not look at
	parent map[string]inode // directories seen, of one process
}

func newScan(roots []string) (*scan, error) {
	s := &scan{
		dirs: map[inode]bool{}, own: map[inode]bool{}, devs: map[uint64]bool{},
		uids: map[uint32]bool{}, roots: roots,
	}
	for _, root := range roots {
		if err := s.root(root, rootDepth); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: look at %s: %w", ErrNotDown, root, err)
		}
	}
	return s, nil
}

func (s *scan) root(dir string, depth int) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	id := inode{st.Dev, st.Ino}
	if depth < rootDepth && filepath.Base(dir) == ownDir {
		s.own[id] = true
		return nil
	}
	s.dirs[id], s.devs[st.Dev] = true, true
	if depth == rootDepth {
		s.uids[st.Uid] = true
	}
	if depth == 0 {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// A directory with more entries is a database's: it has no directories worth
	// knowing, and listing millions of tables would be paid for in stopped time.
	entries, err := f.ReadDir(4096)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := s.root(filepath.Join(dir, e.Name()), depth-1); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
				return err
			}
		}
	}
	return nil
}

// process looks at one process. One that ends meanwhile has nothing open.
func (s *scan) process(pid int) {
	s.parent = map[string]inode{}
	base := "/proc/" + strconv.Itoa(pid)
	err := s.descriptors(base)
	if err == nil {
		err = s.maps(base)
	}
	var open *openFile
	switch {
	case errors.As(err, &open):
		s.users = append(s.users, fmt.Sprintf("%s (pid %d) has %s open", comm(base), pid, open.path))
	case errors.Is(err, fs.ErrPermission):
		if s.mayBeTheNode(base) {
			s.blind = append(s.blind, fmt.Sprintf("%s (pid %d)", comm(base), pid))
		}
	}
}

// mayBeTheNode judges a process that we may not look into.
func (s *scan) mayBeTheNode(base string) bool {
	var st unix.Stat_t
	if unix.Stat(base, &st) != nil || kernelThread(base) {
		return false
	}
	if s.uids[st.Uid] && st.Uid != uint32(os.Geteuid()) {
		return true
	}
	cmd, err := os.ReadFile(base + "/cmdline")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(s.roots, func(root string) bool {
		return len(root) > 1 && bytes.Contains(cmd, []byte(filepath.Clean(root)))
	})
}

type openFile struct{ path string }

func (o *openFile) Error() string { return o.path }

func (s *scan) descriptors(base string) error {
	dir, err := os.Open(base + "/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		fd := base + "/fd/" + name
		var st unix.Stat_t
		if err := unix.Stat(fd, &st); err != nil {
			if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
				return err
			}
			continue // closed meanwhile
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || !s.devs[st.Dev] {
			continue
		}
		target, err := os.Readlink(fd)
		if err == nil && s.under(base, target) {
			return &openFile{path: target}
		}
	}
	return nil
}

// maps looks for files that are mapped but no longer open.
func (s *scan) maps(base string) error {
	f, err := os.Open(base + "/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	last := ""
	for in.Scan() {
		name := mappedFile(in.Bytes())
		if name == "" || name == last {
			continue
		}
		last = name
		if s.under(base, name) {
			return &openFile{path: name}
		}
	}
	if err := in.Err(); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// mappedFile is the file of one line of /proc/PID/maps, "" where it maps none:
//
//	7f5e4c000000-7f5e4c021000 r--p 00000000 08:01 1835019    /usr/lib/libc.so.6
func mappedFile(line []byte) string {
	for range 5 {
		_, rest, ok := bytes.Cut(line, []byte(" "))
		if !ok {
			return ""
		}
		line = bytes.TrimLeft(rest, " ")
	}
	if len(line) == 0 || line[0] != '/' {
		return ""
	}
	return string(line)
}

// under tells whether a file that a process calls by this name lies under a root:
// one of the directories above it is one of ours.
func (s *scan) under(base, name string) bool {
	name = strings.TrimSuffix(name, " (deleted)")
	if !path.IsAbs(name) {
		return false
	}
	found := false
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		id, known := s.parent[dir]
		if !known {
			var st unix.Stat_t
			if unix.Stat(base+"/root"+dir, &st) == nil || unix.Stat(dir, &st) == nil {
				id = inode{st.Dev, st.Ino}
			}
			s.parent[dir] = id
		}
		if s.own[id] {
			return false
		}
		found = found || s.dirs[id]
		if dir == "/" || dir == "." {
			return found
		}
	}
}

func comm(base string) string {
	b, err := os.ReadFile(base + "/comm")
	if err != nil {
		return "a process"
	}
	return printable(string(b), 64)
}

// kernelThread reads the flags (field 9) of /proc/PID/stat. Kernel threads look
// like root's processes, and nobody but root may look at them.
func kernelThread(base string) bool {
	const pfKthread = 0x00200000
	b, err := os.ReadFile(base + "/stat")
	if err != nil {
		return false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(f[6]), 10, 64)
	return err == nil && flags&pfKthread != 0
}

func (s *scan) verdict() error {
	switch {
	case len(s.users) > 0:
		return hint.Add(fmt.Errorf("%w: %s", ErrNotDown, few(s.users)), "close it: while a file is open there the dump could be torn")
	case len(s.blind) > 0:
		return hint.Add(fmt.Errorf("%w: the open files of %s may not be read", ErrNotDown, few(s.blind)),
			"run eddy as the user that runs the node, or as root")
	default:
		return nil
	}
}

func few(list []string) string {
	const most = 3
	if n := len(list) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), n)
	}
	return strings.Join(list, ", ")
}
