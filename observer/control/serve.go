package control

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// idleTimeout closes connections that neither ask nor hold.
const idleTimeout = 30 * time.Second

// maxSocketPath is what sun_path takes, less the character of the temporary name.
const maxSocketPath = 106

func newInstance() (string, error) {
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

// peer is one connection.
type peer struct {
	conn *net.UnixConn
	cred unix.Ucred
}

// event is what a connection brings to the loop: a request, why it is none, or
// its end.
type event struct {
	peer *peer
	req  request
	bad  error
	gone bool
}

// server is the socket and its goroutines.
type server struct {
	ln   *net.UnixListener
	lock *fsx.Lock
	path string
	wg   sync.WaitGroup

	mu     sync.Mutex
	conns  map[*net.UnixConn]bool
	closed bool
}

// listen opens the socket with its mode and group right from the start, in place
// of a stale one. A lock beside it tells stale from live.
func (s *supervisor) listen() (srv *server, err error) {
	path := s.o.Socket
	if len(path) > maxSocketPath {
		return nil, hint.Add(fmt.Errorf("supervise: the socket's path has %d bytes, %d are possible", len(path), maxSocketPath), "choose a shorter one, under /run")
	}
	lock, err := fsx.TryLock(path + ".lock")
	if err != nil {
		return nil, hint.Add(fmt.Errorf("supervise: lock the socket: %w", err), "another supervise uses this socket, or its directory is not writable")
	}
	defer func() {
		if err != nil {
			err = join(err, lock.Close())
		}
	}()
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 {
		return nil, hint.Add(fmt.Errorf("supervise: %s exists and is no socket", path), "choose another path for --socket")
	}
	tmp := path + "~"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if s.o.AllowGID != 0 {
		err = os.Chown(tmp, -1, s.o.AllowGID)
	}
	if err == nil {
		err = os.Chmod(tmp, 0o660)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, join(fmt.Errorf("supervise: %w", err), ln.Close(), os.Remove(tmp))
	}
	srv = &server{ln: ln, lock: lock, path: path, conns: map[*net.UnixConn]bool{}}
	srv.wg.Go(func() { s.accept(srv) })
	return srv, nil
}

// close ends all connections and waits for their goroutines. The loop must have
// closed s.done before, or they could wait for it.
func (v *server) close() error {
	err := join(os.Remove(v.path), v.ln.Close())
	v.mu.Lock()
	v.closed = true
	for c := range v.conns {
		c.Close()
	}
	v.mu.Unlock()
	v.wg.Wait()
	return join(err, v.lock.Close())
}

// add notes a connection; false when the server is closed already.
func (v *server) add(c *net.UnixConn) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.conns[c] = true
	}
	return !v.closed
}

func (v *server) drop(c *net.UnixConn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.conns, c)
	c.Close()
}

func (s *supervisor) accept(srv *server) {
	for {
		conn, err := srv.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: the node matters more
			select {
			case <-s.done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if !srv.add(conn) {
			conn.Close()
			return
		}
		srv.wg.Go(func() {
			defer srv.drop(conn)
			s.serve(conn)
		})
	}
}

// serve brings the lines of one connection to the loop, which answers them.
func (s *supervisor) serve(conn *net.UnixConn) {
	p := &peer{conn: conn}
	if err := s.admit(p); err != nil {
		p.refuse(codeDenied, err.Error(), "run eddy as the user that runs the node, or allow this one with --allow-uid or --allow-gid")
		return
	}
	defer s.send(event{peer: p, gone: true})
	in := bufio.NewReaderSize(conn, maxLine)
	holds := false
	for {
		idle := time.Now().Add(idleTimeout)
		if holds { // silence is what a hold looks like; its own deadline ends it
			idle = time.Time{}
		}
		_ = conn.SetReadDeadline(idle)
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		req, bad := parseRequest(line)
		if !s.send(event{peer: p, req: req, bad: bad}) {
			return
		}
		holds = bad == nil && req.Op == opHold || holds && (bad != nil || req.Op != opRelease)
	}
}

func (s *supervisor) send(e event) bool {
	select {
	case s.events <- e:
		return true
	case <-s.done:
		return false
	}
}

// admit reads the peer's credentials and checks them.
func (s *supervisor) admit(p *peer) error {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = join(err, cerr); err != nil {
		return fmt.Errorf("read the peer's credentials: %w", err)
	}
	p.cred = *cred
	uid, gid := int(cred.Uid), int(cred.Gid)
	if uid == 0 || uid == os.Geteuid() || slices.Contains(s.o.AllowUIDs, uid) || s.o.AllowGID != 0 && gid == s.o.AllowGID {
		return nil
	}
	return fmt.Errorf("user %d (group %d) may not use this socket", uid, gid)
}

// reply writes one line. The peer reads or it does not: nobody waits for it, a
// line is far smaller than the socket's buffer.
func (p *peer) reply(r response) {
	r.Format = protocolFormat
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain strings and numbers
	}
	_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = p.conn.Write(append(b, '\n'))
}

func (p *peer) refuse(code, why, todo string) {
	p.reply(response{Code: code, Error: why, Hint: todo})
}

// handle answers one event of a connection. It runs in the loop.
func (s *supervisor) handle(e event) {
	switch {
	case e.gone:
		s.gone(e.peer)
	case e.bad != nil:
		e.peer.refuse(codeUsage, e.bad.Error(), "")
	case e.req.Op == opStatus:
		e.peer.reply(s.answer())
	case e.req.Op == opHold:
		if code, why, todo := s.begin(e.peer, e.req); code != "" {
			e.peer.refuse(code, why, todo)
		}
	case e.req.Op == opRelease:
		s.release(e.peer)
	}
}

// begin starts a hold, or says why not. The answer to a hold that has begun
// comes from the loop when the node is down.
func (s *supervisor) begin(p *peer, r request) (code, why, todo string) {
	now := time.Now()
	deadline := time.Duration(r.DeadlineMS) * time.Millisecond
	timeout := time.Duration(r.StopTimeoutMS) * time.Millisecond
	if timeout == 0 {
		timeout = s.o.StopTimeout
	}
	used, restore := s.heldWithin(now), r.Purpose == purposeRestore
	switch {
	case s.hold != nil:
		return codeHeld, "it is held by process " + fmt.Sprint(s.hold.peer.cred.Pid), "wait for that backup to end"
	case s.exiting:
		return codeEnding, "supervise is being stopped", ""
	case s.state == stateBlocked:
		return codeBlocked, s.blockWhy, "finish the restore"
	case s.pid == 0:
		return codeStopped, "the node is not running", ""
	case restore && swapping(s.o.SwapFile) == nil:
		return codeNoSwap, "it sees no restore under way: it would start the node again at once", swapHint
	case restore: // no guard ends it, and no cap bounds it
	case deadline > s.o.MaxHold:
		return codeCapped, fmt.Sprintf("a hold of %s is longer than the %s that supervise allows", deadline, s.o.MaxHold), "ask for less, or raise --max-hold"
	case used+deadline > s.o.MaxHeldPerHour:
		return codeCapped, fmt.Sprintf("held for %s in the last hour, %s more would be over the %s allowed", used.Round(time.Millisecond), deadline, s.o.MaxHeldPerHour),
			"back up less often, or raise --max-held-per-hour"
	}
	h := &serverHold{peer: p, stage: r.Stage, restore: restore, began: now, deadline: now.Add(deadline), stopUntil: now.Add(min(timeout, deadline))}
	// The credentials name who connected; it is still there, as its connection
	// is, so its pid has not come to mean somebody else.
	if p.cred.Pid > 0 && int(p.cred.Pid) != os.Getpid() {
		if proc, err := openProcess(int(p.cred.Pid)); err == nil {
			if proc.mayKill() {
				h.holder = proc
			} else {
				proc.close()
			}
		}
	}
	if err := unix.Kill(s.pid, unix.SIGTERM); err != nil {
		if h.holder != nil {
			h.holder.close()
		}
		return codeTimeout, fmt.Sprintf("send SIGTERM to the node: %v", err), ""
	}
	s.hold, s.state, s.linger = h, stateStopping, false
	s.o.Log.Info().Str("stage", h.stage).Int32("holder", p.cred.Pid).Stringer("deadline", deadline).Msg("a hold begins")
	return "", "", ""
}

// release ends p's hold and starts the node.
func (s *supervisor) release(p *peer) {
	if s.hold == nil || s.hold.peer != p || s.state != stateHeld {
		p.refuse(codeNotHolder, "this connection holds nothing", "")
		return
	}
	held := time.Since(s.hold.began)
	s.endHold()
	s.startAgain()
	switch s.state {
	case stateRunning:
		s.o.Log.Info().Stringer("held", held).Msg("a hold was released")
		p.reply(s.answer())
	case stateBlocked:
		p.refuse(codeBlocked, s.blockWhy, "finish the restore")
	default:
		p.refuse(codeStopped, "the node could not be started; it is tried again", "look at the log of supervise")
	}
}

// gone ends what the peer held.
func (s *supervisor) gone(p *peer) {
	h := s.hold
	if h == nil || h.peer != p || h.gone {
		return
	}
	h.gone = true
	s.o.Log.Warn().Str("stage", h.stage).Msg("a holder's connection was closed; the node is started")
	if s.state == stateHeld {
		s.state, h.until = stateEnding, time.Now().Add(goneGrace)
	}
}

// answer is the state as a positive answer.
func (s *supervisor) answer() response {
	st := &wireStatus{
		State: s.state, Running: s.pid != 0, Held: s.hold != nil, PID: s.pid,
		Since: s.since(), Starts: s.starts, SwapFile: s.o.SwapFile,
	}
	if h := s.hold; h != nil {
		st.Purpose, st.Stage, st.Guard = purposeBackup, h.stage, "close"
		if h.restore {
			st.Purpose = purposeRestore
		}
		st.RemainingMS = max(0, time.Until(h.deadline).Milliseconds())
		if h.holder != nil {
			st.Guard = "kill"
		}
	}
	return response{OK: true, Status: st}
}
