package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/detect"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/uploader"
)

// written is `eddy config init`.
type written struct {
	File  string `json:"file"`
	ToFix int    `json:"placeholders"`    // values that are left to fill in
	Owner string `json:"owner,omitempty"` // of the file, where it is not who wrote it
	// Signer is the public key of the backups to come.
	Signer string `json:"signer,omitempty"`
}

func (written) MessageType() string { return "config_written" }

func (w written) Line() string {
	file := w.File
	if w.Owner != "" {
		file += " (of " + w.Owner + ", as whom eddy runs)"
	}
	signer := "\nbackups will be signed by " + w.Signer + "; keep this line with your recovery notes, a restore can ask for it: --signer"
	if w.ToFix == 0 {
		return "wrote " + file + "; see `eddy config check`" + signer
	}
	return fmt.Sprintf("wrote %s; fill in the %d values that say CHANGE-ME, then see `eddy config check`", file, w.ToFix) + signer
}

// foundValue is something that was found out about the node.
type foundValue struct {
	What  string `json:"what"`
	Value string `json:"value"`
	From  string `json:"from,omitempty"`
}

func (foundValue) MessageType() string { return "found" }

func (f foundValue) Line() string {
	line := fmt.Sprintf("found  %-11s %s", f.What, f.Value)
	if f.From != "" {
		line += "  (" + f.From + ")"
	}
	return line
}

// candidate is one of several nodes.
type candidate struct {
	Home      string `json:"home"`
	Unit      string `json:"unit,omitempty"`
	Container string `json:"container,omitempty"`
	Running   bool   `json:"running"`
}

func (candidate) MessageType() string { return "candidate" }

func (c candidate) Line() string {
	name := "--home " + c.Home
	switch {
	case c.Unit != "":
		name = "--unit " + c.Unit
	case c.Container != "":
		name = "--container " + c.Container
	}
	state := "stopped"
	if c.Running {
		state = "running"
	}
	return fmt.Sprintf("  %-32s %s, %s", name, c.Home, state)
}

// initFlags are what `eddy config init` is told.
type initFlags struct {
	v                 config.TemplateValues
	control, out      string
	unit, container   string
	from              string
	noDetect, offline bool
	force             bool
	nodeConfig, write bool
	peers             []string
}

func (a *app) configInit() *cobra.Command {
	var o initFlags
	c := &cobra.Command{
		Use: "init [HOME]", Short: "find the node, and write a commented eddy.yaml for it", Args: cobra.MaximumNArgs(1),
		Long: `Look for the chain node of this machine (services, containers, processes, its
home, its RPC and that of its peers) and write a commented eddy.yaml with every
key, to the file that --out or --config names. Every value that was found says
where. What was not found says CHANGE-ME, and config check names it. Flags win
over what is found. Of several nodes none is picked: they are listed. It knows chains
only: for a Swarm, ZooKeeper, etcd, Consul and others docs/ has a page each, with an
eddy.yaml of ten lines.

With --node-config it writes no eddy.yaml, but prints what to change in the node's
config.toml so that no other node lists this one: pex, seed_mode, laddr,
external_address, persistent_peers. --write makes the change and keeps the old
file beside.

--from reads the settings of Loom's backup.sh. Nothing in that file is run.`,
		Example: "  eddy config init --store s3://backups/eddy --region eu-west-1\n  eddy config init --unit gaiad.service --node-config\n  eddy config init -c ./eddy.yaml --no-detect --control exec",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if a.home != "" && a.home != args[0] {
					return hint.Add(errorsJoinUsage(errors.New("HOME and --home differ")), "name it once")
				}
				a.home = args[0]
			}
			if a.home != "" { // as typed, it is relative to here; as written down, it must not be
				abs, err := filepath.Abs(a.home)
				if err != nil {
					return err
				}
				if o.nodeConfig {
					a.home = abs
				}
			}
			if o.nodeConfig {
				return a.hideNode(cmd.Context(), o)
			}
			if o.write || len(o.peers) > 0 {
				return hint.Add(errorsJoinUsage(errors.New("--write and --peer belong to --node-config")), "add --node-config, or leave them out")
			}
			return a.initConfig(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.out, "out", "", "the file to write (default: the one that --config names)")
	f.StringVar(&o.unit, "unit", "", "the systemd service that is the node")
	f.StringVar(&o.container, "container", "", "the container that is the node")
	f.StringVar(&o.from, "from", "", "settings of Loom's backup.sh to take over")
	f.StringVar(&o.v.RPC, "rpc", "", "the node's RPC address")
	f.StringSliceVar(&o.v.Witnesses, "witness", nil, "RPC address of another node of the chain (repeatable)")
	f.StringVar(&o.control, "control", "", "how the node is stopped and started: supervise:SOCKET, systemd:UNIT, docker:CONTAINER or exec")
	f.StringVar(&o.v.Workdir, "workdir", "", "directory for eddy's own state (default /var/lib/eddy)")
	f.BoolVar(&o.noDetect, "no-detect", false, "look for nothing: fill in the flags only")
	f.BoolVar(&o.offline, "offline", false, "ask no RPC, neither the node's nor its peers'")
	f.BoolVar(&o.force, "force", false, "replace a file that is there")
	f.BoolVar(&o.nodeConfig, "node-config", false, "print what hides the node in its config.toml, instead of writing eddy.yaml")
	f.BoolVar(&o.write, "write", false, "with --node-config: make the change")
	f.StringSliceVar(&o.peers, "peer", nil, "with --node-config: id@host:port to stay connected to (repeatable)")
	return c
}

// lookAt finds the node that is meant, and what is to be known of it.
func (a *app) lookAt(ctx context.Context, o initFlags, script detect.Script) (detect.Found, error) {
	h := detect.Look(ctx)
	if o.offline {
		h.Chain = nil
	}
	want := detect.Choice{Unit: o.unit, Container: o.container}
	if a.home != "" {
		want.Home = detect.Fact{Value: a.home, From: "--home"}
	}
	c, several, err := h.Choose(script.Choice(h, want))
	for _, s := range several {
		line := candidate{Home: s.Home.Value, Running: s.Running}
		if s.Unit != nil {
			line.Unit = s.Unit.Name
		} else if s.Container != nil {
			line.Container = s.Container.Name
		}
		a.ui.Emit(line)
	}
	if errors.Is(err, detect.ErrSeveral) {
		err = errorsJoinUsage(err)
	}
	if err != nil {
		return detect.Found{}, err
	}
	return h.Inspect(ctx, c), nil
}

func (a *app) initConfig(ctx context.Context, o initFlags) error {
	v := &o.v
	v.Cluster, v.Home, v.Store, v.Region, v.Endpoint = a.cluster, a.home, a.store, a.region, a.endpoint
	if err := takeControl(v, o.control); err != nil {
		return err
	}
	var script detect.Script
	if o.from != "" {
		text, err := os.ReadFile(o.from)
		if err != nil {
			return err
		}
		if script, err = detect.ReadScript(filepath.Base(o.from), string(text)); err != nil {
			return errorsJoinUsage(err)
		}
	}
	var owner *detect.User
	if !o.noDetect {
		found, err := a.lookAt(ctx, o, script)
		switch {
		case errors.Is(err, detect.ErrNoNode) && o.unit == "" && o.container == "":
			a.ui.Emit(job.Warning{Text: err.Error(), Hint: hint.Of(err)})
		case err != nil:
			return err
		default:
			found.Fill(v)
			a.tell(found)
			owner = &found.User
		}
	}
	script.Fill(v)
	for _, n := range script.Notes {
		a.ui.Emit(job.Warning{Text: n})
	}
	return a.writeConfig(cmp.Or(o.out, a.configFile, config.DefaultFile), *v, o.force, owner)
}

// signingKeyBeside is where the key lies that goes with a configuration: beside it,
// and not in the workdir, which may not exist yet and may be thrown away.
func signingKeyBeside(file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(abs, filepath.Ext(abs)) + ".sign.pem", nil
}

// makeSigningKey makes the key where there is none, and returns its public half. One
// that is there stays: backups are signed with it.
func makeSigningKey(file string, put func(string, []byte) error) (signer string, err error) {
	key, err := readSigningKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = uploader.NewSigningKey(); err != nil {
			return "", err
		}
		var text []byte
		if text, err = key.PEM(); err == nil {
			err = put(file, text)
		}
	}
	if err != nil {
		return "", err
	}
	return key.Signer().String(), nil
}

func takeControl(v *config.TemplateValues, control string) error {
	how, what, _ := strings.Cut(control, ":")
	switch {
	case control == "":
	case how == "supervise":
		v.Supervise = cmp.Or(what, "/run/eddy/node.sock")
	case how == "systemd" && what != "":
		v.Unit = what
	case how == "docker" && what != "":
		v.Container = what
	case control == "exec":
		v.Exec = true
	default:
		return hint.Add(errorsJoinUsage(fmt.Errorf("--control %q", control)), "write supervise:SOCKET, systemd:UNIT, docker:CONTAINER or exec")
	}
	return nil
}

// tell shows what was found before anything is written.
func (a *app) tell(f detect.Found) {
	show := func(what string, x detect.Fact) {
		if x.Value != "" {
			a.ui.Emit(foundValue{what, x.Value, x.From})
		}
	}
	show("home", f.Home)
	show("chain", f.ChainID)
	show("rpc", f.RPC)
	for _, w := range f.Witnesses {
		show("witness", w)
	}
	if f.Unit != nil {
		show("unit", detect.Fact{Value: f.Unit.Name})
	}
	if f.Container != nil {
		show("container", detect.Fact{Value: f.Container.Name})
	}
	show("supervise", f.Supervise)
	for _, x := range f.Beside() {
		show(x.Name, x.Fact)
	}
	for _, n := range f.Notes {
		a.ui.Emit(job.Warning{Text: n})
	}
}

// writeConfig writes eddy.yaml. Only its owner may read it; written by root, it
// belongs to the node's user, as whom eddy runs.
func (a *app) writeConfig(file string, v config.TemplateValues, force bool, owner *detect.User) error {
	key, err := signingKeyBeside(file)
	if err != nil {
		return err
	}
	v.SignKey = key
	text, err := config.Template(v)
	if err != nil {
		return err
	}
	// What the flags say, and what was found, is checked before it is written down.
	if err := config.CheckTemplate(file, text); err != nil {
		return fmt.Errorf("nothing was written: %w", err)
	}
	switch _, err := os.Lstat(file); {
	case err == nil && !force:
		return hint.Add(fmt.Errorf("%s is there already: %w", file, job.ErrNotConfirmed), "say --force to replace it, or --out FILE to write another")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// The directory is for all to enter: the file itself is not for all to read.
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return hint.Add(err, "say --out FILE to write it elsewhere")
	}
	w := written{File: file}
	put := func(file string, text []byte) error { return fsx.WriteFileAtomic(file, text, 0o600) }
	if owner != nil && os.Geteuid() == 0 && owner.UID > 0 {
		w.Owner = owner.Name
		put = func(file string, text []byte) error {
			return fsx.WriteFileOwned(file, text, 0o600, owner.UID, owner.GID)
		}
	}
	if w.Signer, err = makeSigningKey(key, put); err != nil {
		return hint.Add(err, "say --out FILE to write it elsewhere")
	}
	if err = put(file, text); err != nil {
		return hint.Add(err, "say --out FILE to write it elsewhere")
	}
	var left *config.Error
	if _, err := config.Load(file, nil, config.Overrides{}, config.NeedRun); errors.As(err, &left) {
		w.ToFix = len(left.Problems)
	}
	return a.result(w)
}
