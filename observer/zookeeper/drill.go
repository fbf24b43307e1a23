package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/secret"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/alone"
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
	ports, err := alone.Ports(1)
	if err != nil {
		return rep, err
	}
	home := filepath.Join(t.Scratch, observer.DrillHome)
	conf, port := filepath.Join(t.Scratch, "zoo.cfg"), strconv.Itoa(ports[0])
	addr := net.JoinHostPort("127.0.0.1", port)
	text := "# Of a drill: one server, alone.\ntickTime=2000\ndataDir=" + home + "\nclientPort=" + port +
		"\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=srvr,mntr\n"
	if err := (fsx.FS{}).WriteFileAtomic(conf, []byte(text), 0o600); err != nil {
		return rep, err
	}
	rep.Command = filled(argv, "{config}", conf, "{home}", home)
	say(t, "starting a server alone on %s", addr)
	begun := time.Now()
	p, err := alone.Start(alone.Command{Argv: rep.Command, Env: secret.Environ(), Dir: t.Scratch, Log: filepath.Join(t.Scratch, "server.log")})
	if err != nil {
		return rep, fmt.Errorf("start the copy: %w", err)
	}
	defer func() {
		err = errors.Join(err, p.Stop())
		if rep.Outcome == observer.DrillFailed {
			rep.Log = p.Tail()
		}
	}()
	s, err := serves(ctx, p, addr)
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
		if out, err := alone.Run(ctx, t.Scratch, append(secret.Environ(), "EDDY_DRILL_HOME="+home, "EDDY_DRILL_ADDRESS="+addr), d.Check...); err != nil {
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

// serves waits until the copy does.
func serves(ctx context.Context, c *alone.Server, addr string) (srvr, error) {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := askServer(ctx, addr)
		if err == nil {
			return s, nil
		}
		select {
		case <-c.Done():
			return s, fmt.Errorf("it ended: %w", errors.Join(c.Ended(), err))
		case <-ctx.Done():
			return s, fmt.Errorf("%w: last seen: %w", ctx.Err(), err)
		case <-t.C:
		}
	}
}
