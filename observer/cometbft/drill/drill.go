package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft"
)

// Driller drills copies of one chain. Construct it with all fields set that have no
// default; one drill at a time in one scratch directory.
type Driller struct {
	From      string   // home of the live node, whose config is taken along
	RPC       string   // of the live node: a source of blocks, and the witness where there is no other
	Witnesses []string // RPCs of the living chain
	Command   []string // argv that runs a node; "{home}" in it stands for the copy
	Blocks    int      // to be executed
	Timeout   time.Duration
	Isolated  bool     // no peer but eddy's own; else Peers
	Peers     []string // id@host:port
	Check     []string // argv of the chain's own check, run when all blocks are executed; nil: none
}

var _ observer.Driller = (*Driller)(nil)

// Defaults of the fields.
const (
	DefaultBlocks  = 20
	DefaultTimeout = 30 * time.Minute
)

// homeWord in a command stands for the copy's home.
const homeWord = "{home}"

// Possible implements observer.Driller.
func (d *Driller) Possible(ctx context.Context, p observer.Position) error {
	if _, err := os.Stat(filepath.Join(d.From, "config", "config.toml")); errors.Is(err, fs.ErrNotExist) {
		return notPossible("a drill needs the configuration of a node of the chain: set `replica.home: DIR`; Loom homes cannot be drilled", "%s has no config/config.toml", d.From)
	}
	g, err := cometbft.ReadGenesis(d.From)
	if err != nil {
		return err
	}
	if p.Incarnation != "" && !g.OfChain(p.Incarnation) {
		return notPossible("set `replica.home: DIR` to the home of a node of that chain", "the backup is of another history than %s of the genesis file in %s", g.ChainID, d.From)
	}
	if len(d.Command) == 0 {
		return notPossible("set `drill.command: [PROGRAM, start, --home, \"{home}\"]`", "nothing says which program runs a node of the chain")
	}
	if _, err := exec.LookPath(d.Command[0]); err != nil {
		return notPossible("set `drill.command: [PROGRAM, start, --home, \"{home}\"]`", "the node's program cannot be run: %v", err)
	}
	if !d.Isolated && len(d.Peers) == 0 {
		return notPossible("set `drill.peers: [ID@HOST:PORT]`, or `drill.isolated: true`", "the copy would have no peers")
	}
	ref, err := d.reference()
	if err != nil {
		return err
	}
	all, why := ref.reaches(ctx, g.ChainID)
	if len(all) == 0 {
		return notPossible("a drill compares with the living chain: set `replica.witnesses: [URL]` to nodes that answer", "no node of the chain answers: %v", why)
	}
	_, err = d.kept(all, int64(p.Index))
	return err
}

// reference are those whom the copy is compared with.
func (d *Driller) reference() (witnesses, error) {
	raws := d.Witnesses
	if len(raws) == 0 && d.RPC != "" {
		raws = []string{d.RPC}
	}
	var all witnesses
	for _, raw := range raws {
		a, err := newAsker(raw, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// kept tells how far the chain is, and refuses where nobody has the blocks any more.
func (d *Driller) kept(all map[*asker]reach, from int64) (tip int64, err error) {
	lowest, have := int64(0), false
	for _, r := range all {
		tip = max(tip, r.tip)
		have = have || r.base <= from+1
		if lowest == 0 || r.base < lowest {
			lowest = r.base
		}
	}
	if !have {
		return tip, notPossible("drill soon after a backup, or set `replica.witnesses: [URL]` to a node that keeps more blocks (min-retain-blocks in its app.toml)",
			"no witness has block %d any more: the lowest that is kept is %d", from+1, lowest)
	}
	return tip, nil
}

// Sweep implements observer.Driller.
func (d *Driller) Sweep(ctx context.Context, scratch string) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	return killAll(ctx, filepath.Join(scratch, observer.DrillHome))
}

// Drill implements observer.Driller.
func (d *Driller) Drill(ctx context.Context, t observer.DrillTask) (rep observer.DrillReport, err error) {
	rep = observer.DrillReport{Wanted: d.Blocks, Isolated: d.Isolated, Network: "host", Executed: []observer.ExecutedBlock{}}
	if t.Say == nil {
		t.Say = func(string, string) {}
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	err = d.drill(ctx, t, &rep)
	switch {
	case err == nil:
		rep.Outcome = observer.DrillPassed
		return rep, nil
	case isFailed(err):
		rep.Outcome = observer.DrillFailed
	case isImpossible(err):
		rep.Outcome = observer.DrillNotPossible
	default:
		return rep, err
	}
	rep.Why, rep.Hint, rep.Late = err.Error(), hint.Of(err), errors.Is(err, errLate)
	lines, terr := tail(filepath.Join(t.Scratch, logName))
	rep.Log = lines
	return rep, terr
}

// logName is the node's log in the scratch directory.
const logName = "node.log"

func (d *Driller) drill(ctx context.Context, t observer.DrillTask, rep *observer.DrillReport) (err error) {
	if err := os.MkdirAll(filepath.Join(t.Scratch, "tmp"), 0o700); err != nil {
		return err
	}
	ref, err := d.reference()
	if err != nil {
		return err
	}
	for _, a := range ref {
		rep.Against = append(rep.Against, a.url)
	}
	if len(d.Witnesses) == 0 {
		rep.Warnings = append(rep.Warnings, "no witness is configured: the copy is compared with the very node that was backed up")
	}
	w, err := newWorld(d.Isolated)
	if err != nil {
		return err
	}
	defer w.end()
	if w.own {
		rep.Network = "own"
	}
	peers := d.Peers
	if d.Isolated {
		g, err := cometbft.ReadGenesis(d.From)
		if err != nil {
			return err
		}
		p, err := servePeer(w, g.ChainID, d.blocks(t))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.end()) }()
		peers = []string{p.addr}
	}
	free, close := freePorts(w.listen)
	h, err := d.prepare(ctx, t, free, peers)
	close()
	if err != nil {
		return err
	}
	rep.Cluster = h.chainID
	if w.as, err = handOver(t.Scratch); err != nil {
		return err
	}
	return d.live(ctx, t, w, h, ref, rep)
}

// live runs the copy until enough is known of it.
func (d *Driller) live(ctx context.Context, t observer.DrillTask, w *world, h home, ref witnesses, rep *observer.DrillReport) (err error) {
	argv := make([]string, len(d.Command))
	for i, a := range d.Command {
		argv[i] = strings.ReplaceAll(a, homeWord, h.dir)
	}
	rep.Command = d.Command
	env := environment(t.Scratch, h)
	begun := time.Now()
	t.Say("start", fmt.Sprintf("starting %s on the copy, with keys of its own", filepath.Base(argv[0])))
	c, err := w.start(argv, env, h.dir, filepath.Join(t.Scratch, logName))
	if err != nil {
		return notPossible("look at `drill.command`", "%w", err)
	}
	defer func() {
		c.stop()
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		err = errors.Join(err, killAll(kctx, h.dir))
	}()
	transport := &http.Transport{DialContext: w.dial}
	defer transport.CloseIdleConnections()
	node, err := newAsker("http://"+h.rpc, &http.Client{Transport: transport, Timeout: callTimeout})
	if err != nil {
		return err
	}
	watched := &watch{
		node: node, child: c, home: h, ref: ref, from: int64(t.Position.Index), wanted: d.Blocks,
		begun: begun, say: t.Say, rep: rep, refused: map[*asker]bool{},
	}
	if d.Isolated {
		b := d.blocks(t)
		watched.fetched = &b
	} else {
		q := new(pace)
		watched.comes = func(ctx context.Context, next int64) error {
			return d.comes(ctx, ref, h.chainID, watched.from, next, q)
		}
	}
	if err := watched.run(ctx); errors.Is(err, context.DeadlineExceeded) {
		return d.late(ctx, watched, err)
	} else if err != nil {
		return err
	}
	if len(d.Check) == 0 {
		return nil
	}
	return d.check(ctx, t, w, h, env)
}

// late says what a drill was waiting for when its time was over.
func (d *Driller) late(ctx context.Context, w *watch, cause error) error {
	if !d.Isolated { // else it had all that it needs
		if err := d.noBlocks(ctx, w); err != nil {
			return err
		}
	}
	return failed{hint.Add(fmt.Errorf("only %d of %d blocks were executed within %s: %w: %w", len(w.rep.Executed), d.Blocks, d.Timeout, errLate, cause), "its last lines are in the report; where the node is only slow, set `drill.timeout: 2h`")}
}

// noBlocks says why a copy with peers may have had no blocks; nil where it had.
func (d *Driller) noBlocks(ctx context.Context, w *watch) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	all, why := w.ref.reaches(ctx, w.home.chainID)
	if len(all) == 0 {
		return notPossible("name witnesses that answer for as long as a drill takes", "no node of the chain answers any more: %v", why)
	}
	tip, err := d.kept(all, w.from)
	if err != nil {
		return err
	}
	if tip < d.needs(w.from) {
		return d.notEnough(w.from, fmt.Sprintf("is at %d after %s", tip, d.Timeout))
	}
	if net, err := w.node.client.NetInfo(ctx); err == nil && net.NPeers == 0 && len(w.rep.Executed) == 0 {
		return notPossible("set `drill.peers: [ID@HOST:PORT]` to nodes that accept one more peer from this machine (allow_duplicate_ip), or `drill.isolated: true`", "the copy found no peer within %s", d.Timeout)
	}
	return nil
}

// check runs the chain's own check beside the living copy.
func (d *Driller) check(ctx context.Context, t observer.DrillTask, w *world, h home, env []string) error {
	t.Say("check", "running drill.check")
	log := filepath.Join(t.Scratch, "check.log")
	height := int64(t.Position.Index) + int64(d.Blocks)
	c, err := w.start(d.Check, append(slices.Clip(env), fmt.Sprintf("%s=%d", envHeight, height)), t.Scratch, log)
	if err != nil {
		return notPossible("look at `drill.check`", "%w", err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	ended := c.exited()
	c.stop()
	if ended && c.cmd.ProcessState.Success() {
		return nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	lines, err := tail(log)
	if err != nil {
		return err
	}
	said := strings.Join(lines, "; ")
	if !ended {
		return failed{hint.Add(fmt.Errorf("drill.check did not end within %s: %w: %s", d.Timeout, errLate, said), "where it is only slow, set `drill.timeout: 2h`")}
	}
	return failed{fmt.Errorf("drill.check says no: %s: %s", c.cmd.ProcessState, said)}
}
