package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// Driller brings a copy to life. It implements observer.Driller.
type Driller struct {
	Cluster string
	// Command runs a server in the foreground; "{config}" in it stands for the zoo.cfg
	// that a drill has written, "{home}" for the copy. Empty: Debian's ZooKeeper.
	Command []string
	// Check must succeed beside the living copy, which it finds at EDDY_DRILL_ADDRESS.
	Check   []string
	Timeout time.Duration
}

var _ observer.Driller = (*Driller)(nil)

// Driller makes what drills the backups of this ensemble.
func (r *Replica) Driller() observer.Driller {
	d := r.o.Drill
	d.Cluster = r.o.Cluster
	return &d
}

// debian is how Debian's packages are run, without what logs into /var/log.
const debianJar = "/usr/share/java/zookeeper.jar"

var debian = []string{
	"java", "-Xmx512m", "-cp", "/etc/zookeeper/conf:" + debianJar + ":/usr/share/java/jetty9-server.jar:/usr/share/java/jetty9-servlet.jar",
	"org.apache.zookeeper.server.ZooKeeperServerMain", "{config}",
}

// drillCommand is the configured one, or Debian's.
func (d *Driller) command() ([]string, error) {
	if len(d.Command) > 0 {
		return d.Command, nil
	}
	if _, err := os.Stat(debianJar); err != nil {
		return nil, hint.Add(fmt.Errorf("%w: nothing says how a server is run: %w", observer.ErrNotPossible, err),
			"set `drill.command: [/opt/zookeeper/bin/zkServer.sh, start-foreground, \"{config}\"]`")
	}
	return debian, nil
}

// Possible implements observer.Driller.
func (d *Driller) Possible(context.Context, observer.Position) error {
	argv, err := d.command()
	if err != nil {
		return err
	}
	if _, err := exec.LookPath(argv[0]); err != nil {
		return hint.Add(fmt.Errorf("%w: %w", observer.ErrNotPossible, err), "install Java and ZooKeeper here, or set drill.command")
	}
	return nil
}

// Prepare implements observer.Driller: the copy needs nobody.
func (d *Driller) Prepare(context.Context, observer.DrillTask) error { return nil }

// Sweep implements observer.Driller: the kernel ends the copy with its eddy.
func (d *Driller) Sweep(context.Context, string) error { return nil }

// Drill implements observer.Driller: a server alone, on loopback, that knows no other,
// loads the snapshot and plays the log. It compares the digest of its tree with the
// one that the leader had after each transaction, and counts those that differ.
func (d *Driller) Drill(ctx context.Context, t observer.DrillTask) (rep observer.DrillReport, err error) {
	rep = observer.DrillReport{Outcome: observer.DrillFailed, Cluster: d.Cluster, Isolated: true, Network: "host", Executed: []observer.ExecutedBlock{}}
	argv, err := d.command()
	if err != nil {
		return rep, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	addr, err := freePort(ctx)
	if err != nil {
		return rep, err
	}
	home := filepath.Join(t.Scratch, observer.DrillHome)
	conf, log := filepath.Join(t.Scratch, "zoo.cfg"), filepath.Join(t.Scratch, "server.log")
	_, port, _ := net.SplitHostPort(addr)
	text := "# Of a drill: one server, alone.\ntickTime=2000\ndataDir=" + home + "\nclientPort=" + port +
		"\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=srvr,mntr\n"
	fsys := fsx.FS{}
	if err := fsys.WriteFileAtomic(conf, []byte(text), 0o600); err != nil {
		return rep, err
	}
	rep.Command = filled(argv, "{config}", conf, "{home}", home)
	say(t, "starting a server alone on %s", addr)
	begun := time.Now()
	p, err := start(fsys, rep.Command, t.Scratch, log)
	if err != nil {
		return rep, fmt.Errorf("start the copy: %w", err)
	}
	defer func() {
		p.kill()
		if rep.Outcome == observer.DrillFailed {
			rep.Log = lastLines(log)
		}
	}()
	s, err := p.serves(ctx, addr)
	rep.StartSeconds = time.Since(begun).Seconds()
	if err != nil {
		rep.Late = errors.Is(ctx.Err(), context.DeadlineExceeded)
		rep.Why = "the copy does not serve: " + err.Error()
		return rep, nil
	}
	rep.Version = s.version
	rep.Proved, rep.Why = prove(ctx, t, addr, s)
	if rep.Why != "" {
		return rep, nil
	}
	if len(d.Check) > 0 {
		say(t, "asking the copy: %s", hint.Command(d.Check...))
		cmd := exec.CommandContext(ctx, d.Check[0], d.Check[1:]...)
		cmd.Dir, cmd.Env, cmd.WaitDelay = t.Scratch, append(childEnv(), "EDDY_DRILL_HOME="+home, "EDDY_DRILL_ADDRESS="+addr), 5*time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			rep.Why = fmt.Sprintf("drill.check says no: %v: %.300s", err, strings.TrimSpace(string(out)))
			return rep, nil
		}
		rep.Proved += "; drill.check agrees"
	}
	rep.Outcome = observer.DrillPassed
	return rep, nil
}

func say(t observer.DrillTask, format string, args ...any) {
	if t.Say != nil {
		t.Say("drill", fmt.Sprintf(format, args...))
	}
}

// prove compares the living copy with what its backup says.
func prove(ctx context.Context, t observer.DrillTask, addr string, s srvr) (proved, why string) {
	// Sessions that ended with their cluster are closed by transactions of its own.
	if s.zxid < t.Position.Index {
		return "", fmt.Sprintf("it came up at zxid 0x%x, the backup is of %s", s.zxid, t.Position)
	}
	text, err := ask(ctx, addr, "mntr")
	if err != nil {
		return "", "mntr: " + err.Error()
	}
	m := monitor(text)
	differ, counted := m["zk_digest_mismatches_count"]
	if counted && differ != "0" {
		return "", differ + " transactions made another tree than the leader's: their digests differ"
	}
	proved = fmt.Sprintf("%d nodes serve, after the log was played to its end", s.nodes)
	if counted {
		proved += " with no digest that differs from the leader's"
	}
	return proved, ""
}

// monitor reads lines of a name and a value.
func monitor(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok {
			out[name] = value
		}
	}
	return out
}

func filled(argv []string, pairs ...string) []string {
	out := slices.Clone(argv)
	for i := range out {
		out[i] = strings.NewReplacer(pairs...).Replace(out[i])
	}
	return out
}

func freePort(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// childEnv is our environment without what is only for eddy.
func childEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "AWS_") || strings.HasPrefix(kv, "EDDY_")
	})
}

// child is a server that ends with this process at the latest.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // once done is closed
}

func start(fsys fsx.FS, argv []string, dir, log string) (*child, error) {
	out, err := fsys.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own descriptor
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, childEnv(), out.OS(), out.OS()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// kill ends it, and all that it started.
func (c *child) kill() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-c.done
}

// serves waits until the copy does.
func (c *child) serves(ctx context.Context, addr string) (srvr, error) {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := askServer(ctx, addr)
		if err == nil {
			return s, nil
		}
		select {
		case <-c.done:
			return s, fmt.Errorf("it ended: %w", errors.Join(c.err, err))
		case <-ctx.Done():
			return s, fmt.Errorf("%w: last seen: %w", ctx.Err(), err)
		case <-t.C:
		}
	}
}

// lastLines are the end of a log.
func lastLines(file string) []string {
	b, err := readSmall(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []string{err.Error()}
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		out = append(out, strconv.QuoteToGraphic(strings.TrimSpace(line)))
	}
	return out[max(0, len(out)-20):]
}
