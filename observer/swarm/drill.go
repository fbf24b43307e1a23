package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/alone"
	"github.com/eddy-backup/eddy/observer/control"
)

// Drill is how a dump is brought to life: by an engine of its own, as root, in
// namespaces where there is no network.
type Drill struct {
	// Command runs an engine in the foreground; "{home}" in it stands for its data
	// root, and all else that keeps it apart is appended. Empty: dockerd in PATH.
	Command []string
	// Check must succeed beside the living copy, which it finds at DOCKER_HOST.
	Check   []string
	Canary  string // the name of a config or a secret that must be there; "": none
	Timeout time.Duration
}

const (
	// settleTime is how long a swarm that leads itself may take to list all it has.
	settleTime = 30 * time.Second
	maxCheck   = 300 // bytes of what a check has printed, in an error
)

// drilled implements observer.Driller.
type drilled struct{ r *Replica }

// Driller makes what drills the backups of this swarm.
func (r *Replica) Driller() observer.Driller { return drilled{r} }

func (d drilled) command() []string {
	if len(d.r.o.Drill.Command) > 0 {
		return d.r.o.Drill.Command
	}
	return []string{"dockerd", "--data-root", "{home}"}
}

// Possible implements observer.Driller.
func (d drilled) Possible(context.Context, observer.Position) error {
	if os.Geteuid() != 0 {
		return hint.Add(fmt.Errorf("%w: only root can run an engine apart from the network", observer.ErrNotPossible), "run `eddy drill` as root, on any machine with Docker")
	}
	for _, name := range []string{d.command()[0], "sh", "mount"} {
		if _, err := exec.LookPath(name); err != nil {
			return hint.Add(fmt.Errorf("%w: %w", observer.ErrNotPossible, err), "install Docker here, of the managers' version, or set `drill.command: [/usr/bin/dockerd, --data-root, \"{home}\"]`")
		}
	}
	return nil
}

// Prepare implements observer.Driller: the copy needs nothing of the swarm.
func (d drilled) Prepare(_ context.Context, t observer.DrillTask) error {
	real, err := filepath.EvalSymlinks(t.Scratch)
	if err == nil && strings.HasPrefix(real+"/", runDir+"/") {
		err = hint.Add(fmt.Errorf("%w: %s is hidden from the copy, as all of %s", observer.ErrNotPossible, t.Scratch, runDir), "set `drill.dir: DIR` to another place")
	}
	return err
}

// Sweep implements observer.Driller: the kernel ends the copy with its eddy, and
// nothing that it has mounted is seen outside.
func (d drilled) Sweep(context.Context, string) error { return nil }

// Drill implements observer.Driller: an engine takes the dump as a restore lays it down,
// makes a swarm of it, and must list what the dump was found to hold. It has the
// recorded addresses, and nobody else is there: the node dials its old peers at once.
func (d drilled) Drill(ctx context.Context, t observer.DrillTask) (rep observer.DrillReport, err error) {
	rep = observer.DrillReport{Outcome: observer.DrillFailed, Cluster: d.r.o.Cluster, Isolated: true, Network: "own", Executed: []observer.ExecutedBlock{}}
	say := t.Say
	if say == nil {
		say = func(string, string) {}
	}
	keys, err := d.r.keys(ctx)
	if err != nil {
		return rep, err
	}
	home := filepath.Join(t.Scratch, observer.DrillHome)
	of, err := readDump(ctx, home, keys)
	var bad damage
	switch {
	case errors.Is(err, errKey) && of.Log != nil:
		rep.Outcome, rep.Why = observer.DrillNotPossible, err.Error()
		rep.Hint = "the key lies in the bundle that was made with the backup: `eddy keys restore latest`; then set `replica.swarm.unlock_key: {file: FILE}`"
		return rep, nil
	case errors.As(err, &bad):
		rep.Why = bad.Error()
		return rep, nil
	case err != nil:
		return rep, err
	}
	tctx, cancel := context.WithTimeoutCause(ctx, d.r.o.Drill.Timeout, fmt.Errorf("it took longer than %s (drill.timeout)", d.r.o.Drill.Timeout))
	defer cancel()
	begun := time.Now()
	scratch, err := filepath.EvalSymlinks(t.Scratch)
	if err != nil {
		return rep, err
	}
	c := d.copied(scratch, "data")
	_, err = c.lay(tctx, home, of)
	if err == nil {
		err = c.settle(of)
	}
	if err == nil {
		say("drill", "starting an engine without a network, at "+of.advertised())
		err = c.run(tctx, of, say, &rep)
	}
	rep.Command, rep.StartSeconds = c.argv, time.Since(begun).Seconds()
	switch {
	case ctx.Err() != nil:
		return rep, context.Cause(ctx)
	case err == nil:
		rep.Outcome = observer.DrillPassed
		return rep, nil
	case errors.Is(err, errNotUp) && tctx.Err() == nil:
		// Of an engine that runs with no state either, nothing is to be learned.
		if perr := d.copied(scratch, "probe").probe(tctx, of); perr != nil {
			err = hint.Add(fmt.Errorf("%w: no engine runs apart here, nor does one without a swarm: %w", observer.ErrNotPossible, perr), "look at the log, or drill on another machine")
		}
	}
	if errors.Is(err, observer.ErrNotPossible) {
		rep.Outcome = observer.DrillNotPossible
	}
	rep.Why, rep.Hint, rep.Late, rep.Log = err.Error(), hint.Of(err), tctx.Err() != nil, c.tail()
	return rep, nil
}

// run brings the laid down state to life and compares it with what it was.
func (c *copied) run(ctx context.Context, of *dump, say func(phase, text string), rep *observer.DrillReport) (err error) {
	ctx, stop, err := c.start(ctx, of)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if rep.Version, err = c.up(ctx); err != nil {
		return err
	}
	// An engine gives up waiting after a time of its own, and goes on.
	if err := c.begin(ctx, of, say); err != nil && !strings.Contains(err.Error(), "in the background") {
		return because(ctx, err)
	}
	if err := until(ctx, func() error { return c.leads(ctx, of) }); err != nil {
		return fmt.Errorf("the copy is not what the dump was: %w", err)
	}
	say("drill", "comparing it with the dump")
	sctx, cancel := context.WithTimeoutCause(ctx, settleTime, errors.New("it stays so"))
	defer cancel()
	if err := until(sctx, func() (err error) { rep.Proved, err = c.same(sctx, of); return err }); err != nil {
		return fmt.Errorf("the copy is not what the dump was: %w", err)
	}
	if name := c.o.Drill.Canary; name != "" {
		if err := c.canary(ctx, name); err != nil {
			return because(ctx, fmt.Errorf("the canary: %w", err))
		}
		rep.Proved += "; the canary is there"
	}
	wrote := map[string]any{"Name": fmt.Sprintf("eddy-drill-%d", time.Now().UnixNano()), "Data": []byte("alive")}
	if err := c.engine.Call(ctx, http.MethodPost, "/configs/create", wrote, nil); err != nil {
		return because(ctx, fmt.Errorf("it takes no write: %w", err))
	}
	rep.Proved += "; it takes writes"
	if len(c.o.Drill.Check) == 0 {
		return nil
	}
	say("drill", "asking the copy: "+hint.Command(c.o.Drill.Check...))
	if err := c.check(ctx); err != nil {
		return because(ctx, err)
	}
	rep.Proved += "; drill.check succeeded"
	return nil
}

// probe starts an engine on nothing at all.
func (c *copied) probe(ctx context.Context, of *dump) (err error) {
	ctx, stop, err := c.start(ctx, of)
	if err != nil {
		return err
	}
	_, err = c.up(ctx)
	return errors.Join(err, stop())
}

// until asks again until there is no error, or says the last one with ctx's cause.
func until(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return because(ctx, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// because adds why ctx was done to an error that followed from it.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// compared are the kinds of objects that an engine lists as the log has them. Tasks are
// made anew.
var compared = []string{"services", "networks", "configs", "secrets", "nodes"}

// predefined are networks in the log which no listing shows.
var predefined = []string{"bridge", "host", "none", "default"}

// same compares the ids of all objects, and counts them.
func (c *copied) same(ctx context.Context, of *dump) (string, error) {
	var counts []string
	for _, kind := range compared {
		path := "/" + kind
		if kind == "networks" {
			path = swarmNetworks
		}
		var all []struct{ ID string }
		if err := c.engine.get(ctx, path, &all); err != nil {
			return "", fmt.Errorf("list the %s: %w", kind, err)
		}
		have := map[string]bool{}
		for _, o := range all {
			if _, ok := of.Log.Store.objects[kind][o.ID]; !ok {
				return "", fmt.Errorf("%s is among its %s, and not in the dump", o.ID, kind)
			}
			have[o.ID] = true
		}
		for id, name := range of.Log.Store.objects[kind] {
			if !have[id] && (kind != "networks" || !slices.Contains(predefined, name)) {
				return "", fmt.Errorf("%s is not among its %s", id, kind)
			}
		}
		counts = append(counts, fmt.Sprintf("%d %s", len(have), kind))
	}
	return strings.Join(counts, ", ") + ", those of the dump, in a swarm that lives on it", nil
}

// canary finds a config, of which the engine shows the content, or a secret.
func (c *copied) canary(ctx context.Context, name string) error {
	for _, kind := range []string{"configs", "secrets"} {
		var o struct {
			Spec struct {
				Name string
				Data []byte
			}
		}
		err := c.engine.get(ctx, "/"+kind+"/"+url.PathEscape(name), &o)
		var no *control.Refusal
		switch {
		case errors.As(err, &no) && no.Code == http.StatusNotFound:
		case err != nil:
			return err
		case o.Spec.Name != name: // found by a part of its id
		case kind == "configs" && len(o.Spec.Data) == 0:
			return errors.New("the config is empty")
		default:
			return nil
		}
	}
	return errors.New("no config and no secret has its name")
}

// check runs the operator's own.
func (c *copied) check(ctx context.Context) error {
	argv := c.o.Drill.Check
	if out, err := alone.Run(ctx, c.scratch, append(c.env(), "DOCKER_HOST="+c.engine.Host()), argv...); err != nil {
		return hint.Add(fmt.Errorf("drill.check: %s: %w: %q", argv[0], err, out[max(0, len(out)-maxCheck):]), "run it by hand: DOCKER_HOST tells it where the copy is")
	}
	return nil
}

// copied is a state that an engine of its own lives on.
type copied struct {
	*Replica
	scratch string
	argv    []string
	done    chan struct{} // closed when the engine has ended
}

func (d drilled) copied(scratch, data string) *copied {
	o := d.r.o
	o.DataRoot = filepath.Join(scratch, data)
	c := &copied{Replica: &Replica{o: o}, scratch: scratch, done: make(chan struct{})}
	c.argv = slices.Clone(d.command())
	for i := range c.argv {
		c.argv[i] = strings.ReplaceAll(c.argv[i], "{home}", o.DataRoot)
	}
	c.argv = append(c.argv, "--config-file", c.conf())
	c.argv = append(c.argv, apart...)
	return c
}

func (c *copied) conf() string { return filepath.Join(c.scratch, "daemon.json") }

// settle tells the engine its own address, which it would else look for by a way to
// another manager: there is none.
func (c *copied) settle(of *dump) error {
	file := filepath.Join(c.dir(), localFile)
	all := map[string]any{}
	if err := readJSON(file, &all); err != nil {
		return err
	}
	all["LocalAddr"] = of.advertised()
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return fsx.FS{}.WriteFileAtomic(file, b, 0o600)
}

// up waits until the engine answers, and returns its version.
func (c *copied) up(ctx context.Context) (version string, err error) {
	err = until(ctx, func() error {
		i, err := c.engine.info(ctx)
		if err == nil && i.DockerRootDir != c.o.DataRoot { // nothing is asked of another one
			err = fmt.Errorf("what answers has its data in %s", i.DockerRootDir)
		}
		version = "docker " + i.ServerVersion
		return err
	})
	if err != nil {
		err = fmt.Errorf("%w: %w", errNotUp, err)
	}
	return version, err
}

// errNotUp: the engine does not even answer.
var errNotUp = errors.New("the copy's engine does not answer")

// start starts the engine. The ctx that it returns ends with it; stop ends it, and
// returns when all of it is gone.
func (c *copied) start(ctx context.Context, of *dump) (_ context.Context, stop func() error, err error) {
	fsys := fsx.FS{}
	if err := errors.Join(fsys.MkdirAll(c.o.DataRoot, 0o711), fsys.WriteFileAtomic(c.conf(), []byte("{}\n"), 0o600)); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	pid, err := c.launch(of.addresses(), func() { cancel(errors.New("the copy's engine has ended")) })
	if err != nil {
		return nil, nil, err
	}
	stop = func() error {
		_ = syscall.Kill(pid, syscall.SIGKILL) // the first of its namespace: all there die with it
		select {
		case <-c.done:
			return nil
		case <-time.After(stopWithin):
			return fmt.Errorf("the drill's engine (pid %d) does not end", pid)
		}
	}
	e, err := control.NewEngine(fmt.Sprintf("unix:///proc/%d/root%s", pid, socket))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	c.engine = engine{e}
	return ctx, stop, nil
}
