// Package demo plays the whole promise on one machine: a real chain of four
// validators, an observer beside it, backups while transactions flow, the loss
// of everything, a restore, and the proof that nothing is missing.
//
// It uses eddy the way a user does, by its command line, and refuses to look
// into its packages: what it proves, it proves through the nodes' RPC and with
// stock tools. Invariant: it leaves no process running and no file behind,
// however it ends.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/scripts"
)

// Options of a demonstration. All fields but Endpoint and Region are required.
type Options struct {
	Eddy       string // path of the eddy binary
	Dir        string // a directory of its own, which is removed at the end
	Store      string // file:// or s3:// URL
	Endpoint   string // of an S3 server that is not AWS
	Region     string
	Validators int
	Engine     string    // goleveldb or pebbledb
	VolumeSize string    // "" for the default
	Out        io.Writer // the story
	Keep       bool      // leave Dir for a look
}

// Demo is one demonstration. Its fields fill as the story goes on.
type Demo struct {
	o       Options
	procs   *processes
	homes   []home // validators first, the observer last
	loading *load
	config  string
	first   backup
	second  backup
	truth   truth
	rows    [][2]string
}

// backup is what `eddy backup --json` says of a backup in its summary.
type backup struct {
	MessageType string   `json:"message_type"`
	Outcome     string   `json:"outcome"`
	ID          string   `json:"id"`
	Position    int64    `json:"position"`
	Hash        string   `json:"hash"`
	Files       int64    `json:"files"`
	SourceBytes int64    `json:"source_bytes"`
	StoredBytes int64    `json:"stored_bytes"`
	Volumes     int      `json:"volumes"`
	Held        float64  `json:"held_seconds"`
	Stop        float64  `json:"stop_seconds"`
	Stage       float64  `json:"stage_seconds"`
	Start       float64  `json:"start_seconds"`
	Seconds     float64  `json:"seconds"`
	Stored      string   `json:"stored"`
	Warnings    []string `json:"warnings"`

	chainBefore, chainAfter int64 // a validator's height around it
}

const cluster = "eddy-demo"

// Run tells the story and returns nil when every step held. The last line on
// Out is "demo: PASS" or "demo: FAIL (why)".
func Run(ctx context.Context, o Options) (err error) {
	d := &Demo{o: o, procs: newProcesses()}
	defer func() {
		d.cleanup()
		if err != nil {
			fmt.Fprintf(o.Out, "demo: FAIL (%s)\n", oneLine(err))
			return
		}
		fmt.Fprintln(o.Out, "demo: PASS")
	}()
	for _, act := range []func(context.Context) error{
		d.startChain, d.startObserver, d.writeConfig, d.backups, d.rememberTruth,
		d.disaster, d.restore, d.prove, d.stockTools, d.table,
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *Demo) cleanup() {
	if d.loading != nil {
		d.loading.stop()
	}
	d.procs.killAll()
	if d.o.Keep {
		d.say("Everything is kept in %s.", d.o.Dir)
		return
	}
	if err := os.RemoveAll(d.o.Dir); err != nil {
		d.say("(could not remove %s: %v)", d.o.Dir, err)
	}
}

func (d *Demo) say(format string, args ...any) { fmt.Fprintf(d.o.Out, format+"\n", args...) }

func (d *Demo) row(what, format string, args ...any) {
	d.rows = append(d.rows, [2]string{what, fmt.Sprintf(format, args...)})
}

func (d *Demo) observer() home { return d.homes[len(d.homes)-1] }

func (d *Demo) startChain(ctx context.Context) (err error) {
	d.say("A chain first: %d validators, each a process of its own, on loopback.", d.o.Validators)
	d.homes, err = testnet(filepath.Join(d.o.Dir, "chain"), d.o.Validators, d.o.Engine)
	if err != nil {
		return err
	}
	for _, h := range d.homes[:d.o.Validators] {
		if err := d.procs.start(h.name, d.o.Dir, d.o.Eddy, "node", "run", "--home", h.dir); err != nil {
			return err
		}
	}
	if _, err := waitHeight(ctx, d.homes[0].rpc, 2, time.Minute); err != nil {
		return fmt.Errorf("the chain does not make blocks: %w%s", err, d.procs.tail(d.homes[0].name))
	}
	rpcs := make([]string, d.o.Validators)
	for i, h := range d.homes[:d.o.Validators] {
		rpcs[i] = h.rpc
	}
	d.loading = startLoad(rpcs)
	d.say("It makes blocks, and from now on transactions flow without a pause.")
	return nil
}

func (d *Demo) socket() string { return filepath.Join(d.o.Dir, "observer.sock") }

func (d *Demo) startObserver(ctx context.Context) error {
	h := d.observer()
	d.say("Beside it an observer: it follows the validators, they do not list it. Its parent is `eddy supervise`.")
	if err := d.procs.start(h.name, d.o.Dir, d.o.Eddy, "supervise", "--home", h.dir, "--socket", d.socket(), "--", d.o.Eddy, "node", "run", "--home", h.dir); err != nil {
		return err
	}
	tip, err := height(ctx, d.homes[0].rpc)
	if err != nil {
		return err
	}
	if _, err := waitHeight(ctx, h.rpc, tip, time.Minute); err != nil {
		return fmt.Errorf("the observer does not catch up: %w%s", err, d.procs.tail(h.name))
	}
	return nil
}

func (d *Demo) writeConfig(ctx context.Context) error {
	var b strings.Builder
	h := d.observer()
	fmt.Fprintf(&b, "cluster: %s\nreplica:\n  kind: cometbft\n  home: %s\n  rpc: %s\n  witnesses: [%s, %s]\n", cluster, h.dir, h.rpc, d.homes[0].rpc, d.homes[1].rpc)
	fmt.Fprintf(&b, "  control: {supervise: %s, timeout: 60s, deadline: 2m}\n", d.socket())
	fmt.Fprintf(&b, "store: {url: %q", d.o.Store)
	if d.o.Endpoint != "" {
		fmt.Fprintf(&b, ", endpoint: %q", d.o.Endpoint)
	}
	if d.o.Region != "" {
		fmt.Fprintf(&b, ", region: %q", d.o.Region)
	}
	fmt.Fprintf(&b, "}\nworkdir: %s\nschedule: \"@daily\"\n", filepath.Join(d.o.Dir, "work"))
	if d.o.VolumeSize != "" {
		fmt.Fprintf(&b, "backup: {volume_size: %s}\n", d.o.VolumeSize)
	}
	d.config = filepath.Join(d.o.Dir, "eddy.yaml")
	if err := os.WriteFile(d.config, []byte(b.String()), 0o600); err != nil {
		return err
	}
	_, err := d.eddy(ctx, "config", "check")
	return err
}

func (d *Demo) backups(ctx context.Context) (err error) {
	d.say("\nThe first backup. The node is held still for a moment, started again, and only then anything is sent.")
	if d.first, err = d.backup(ctx, "first"); err != nil {
		return err
	}
	d.say("The chain goes on. A little later, a second one.")
	if _, err := waitHeight(ctx, d.observer().rpc, d.first.Position+10, time.Minute); err != nil {
		return err
	}
	d.second, err = d.backup(ctx, "second")
	return err
}

func (d *Demo) backup(ctx context.Context, label string) (b backup, err error) {
	if b.chainBefore, err = height(ctx, d.homes[0].rpc); err != nil {
		return b, err
	}
	before := b.chainBefore
	if err := d.eddyJSON(ctx, "summary", &b, "backup", "--label", label); err != nil {
		return b, err
	}
	b.chainBefore = before
	if b.chainAfter, err = height(ctx, d.homes[0].rpc); err != nil {
		return b, err
	}
	switch {
	case b.Outcome != "ready":
		return b, fmt.Errorf("backup %s ended %q, want ready", label, b.Outcome)
	case b.chainAfter <= b.chainBefore:
		return b, errors.New("the chain stood still during the backup")
	}
	d.say("  %s: height %d, %d files, %s stored; node held %.2f s; meanwhile the chain went from block %d to %d.",
		b.ID, b.Position, b.Files, mib(b.StoredBytes), b.Held, b.chainBefore, b.chainAfter)
	return b, nil
}

func (d *Demo) rememberTruth(ctx context.Context) (err error) {
	// Header H+1 carries the app hash after block H, so one more block is needed.
	if _, err := waitHeight(ctx, d.homes[0].rpc, d.second.Position+1, time.Minute); err != nil {
		return err
	}
	d.truth, err = readTruth(ctx, d.homes[0].rpc, d.second.Position)
	if err != nil {
		return err
	}
	if len(d.truth.keys) < 100 {
		return fmt.Errorf("only %d transactions were written before the backup: too few to prove anything", len(d.truth.keys))
	}
	d.say("\nWhat a validator says of block %d, noted before the disaster: hash %.16s..., app hash %s, and %d keys written up to it.",
		d.second.Position, d.truth.blockHash, d.truth.appHash, len(d.truth.keys))
	return nil
}

func (d *Demo) disaster(context.Context) error {
	d.say("\nNow the disaster: every node is killed, and all data of all %d nodes is deleted.", len(d.homes))
	d.loading.stop()
	d.procs.killAll()
	for _, h := range d.homes {
		for _, sub := range []string{"data", ".eddy"} {
			if err := os.RemoveAll(filepath.Join(h.dir, sub)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Demo) restored() string { return filepath.Join(d.o.Dir, "restored") }

func (d *Demo) restore(ctx context.Context) error {
	d.say("What is left is the bucket:")
	out, err := d.eddy(ctx, "list")
	if err != nil {
		return err
	}
	d.say("%s", indent(out))
	d.say("One command brings it back, into an empty directory:\n  eddy restore latest --into %s", d.restored())
	begun := time.Now()
	if _, err := d.eddy(ctx, "restore", "latest", "--into", d.restored()); err != nil {
		return err
	}
	d.row("restore", "%.1f s, every file's hash compared", time.Since(begun).Seconds())
	return nil
}

// prove starts a node with fresh keys on the restored data, alone in the world,
// and asks it for everything that the truth holds.
func (d *Demo) prove(ctx context.Context) error {
	d.say("A node with fresh keys is started on it, with no peers, and asked.")
	genesis := filepath.Join(d.homes[0].dir, "config", "genesis.json")
	if _, err := d.run(ctx, d.o.Eddy, "node", "init", "--home", d.restored(), "--observer", "--chain-id", d.homes[0].chainID,
		"--engine", d.o.Engine, "--genesis", genesis); err != nil {
		return err
	}
	h, err := openHome(d.restored())
	if err != nil {
		return err
	}
	if err := d.procs.start("restored", d.o.Dir, d.o.Eddy, "node", "run", "--home", d.restored()); err != nil {
		return err
	}
	if _, err := waitHeight(ctx, h.rpc, d.second.Position, time.Minute); err != nil {
		return fmt.Errorf("the restored node does not serve: %w%s", err, d.procs.tail("restored"))
	}
	if err := d.truth.compare(ctx, h.rpc); err != nil {
		return err
	}
	d.say("  height %d, block hash, app hash and all %d keys are as the validator had said.", d.second.Position, len(d.truth.keys))
	return d.procs.stop("restored", 30*time.Second)
}

// stockTools restores the same archive with the script that needs no eddy, and
// compares the two file by file with a third restore, on which no node ran.
func (d *Demo) stockTools(ctx context.Context) error {
	d.say("\nAnd without eddy: the same archive with a shell script, zstd and tar.")
	script := filepath.Join(d.o.Dir, "restore-latest.sh")
	if err := os.WriteFile(script, scripts.RestoreLatest, 0o700); err != nil {
		return err
	}
	byScript, byEddy := filepath.Join(d.o.Dir, "by-script"), filepath.Join(d.o.Dir, "by-eddy")
	if err := os.Mkdir(byScript, 0o700); err != nil {
		return err
	}
	args := []string{script, "--store", d.o.Store, "--cluster", cluster, "--home", byScript}
	if d.o.Endpoint != "" {
		args = append(args, "--endpoint", d.o.Endpoint)
	}
	if _, err := d.run(ctx, "bash", args...); err != nil {
		return err
	}
	if _, err := d.eddy(ctx, "restore", "latest", "--into", byEddy); err != nil {
		return err
	}
	n, err := compareTrees(byEddy, byScript)
	if err != nil {
		return err
	}
	if n < int(d.second.Files) {
		return fmt.Errorf("%d files compared, the backup says %d", n, d.second.Files)
	}
	d.say("  %d files, equal to the byte.", n)
	d.row("stock tools", "%d files equal to the byte", n)
	return nil
}

func (d *Demo) table(context.Context) error {
	head := [][2]string{
		{"store", strings.SplitN(d.o.Store, "://", 2)[0]},
		{"engine", d.o.Engine},
	}
	for _, b := range []backup{d.first, d.second} {
		sent := b.Seconds - b.Held
		head = append(head,
			[2]string{b.ID, fmt.Sprintf("height %d", b.Position)},
			[2]string{"  held", fmt.Sprintf("%.2f s (stop %.2f, stage %.3f, start %.2f)", b.Held, b.Stop, b.Stage, b.Start)},
			[2]string{"  size", fmt.Sprintf("%d files, %s read, %s stored, %d volumes, %s", b.Files, mib(b.SourceBytes), mib(b.StoredBytes), b.Volumes, b.Stored)},
			[2]string{"  rate", fmt.Sprintf("%.1f MiB/s of source over %.1f s (rejoining included)", float64(b.SourceBytes)/(1<<20)/max(sent, 0.001), sent)},
		)
	}
	head = append(head,
		[2]string{"block hash", d.truth.blockHash},
		[2]string{"app hash", d.truth.appHash},
		[2]string{"keys read back", fmt.Sprint(len(d.truth.keys))},
	)
	d.say("")
	for _, r := range append(head, d.rows...) {
		d.say("  %-36s %s", r[0], r[1])
	}
	d.say("")
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
}
