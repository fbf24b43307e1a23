package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

// app is what all verbs share: the streams, the global flags and the renderer.
type app struct {
	in       io.Reader
	out, err io.Writer

	configFile, store, region, endpoint, cluster, home string
	identities                                         []string
	json, quiet, verbose, yes                          bool
	logFormat                                          string

	ui *ui.Renderer
}

// run is main without the process: it returns the exit code.
func run(args []string, in io.Reader, out, errs io.Writer) int {
	// The first signal ends the work in order; a second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), ends()...)
	defer stop()
	context.AfterFunc(ctx, stop)

	a := &app{in: in, out: out, err: errs}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	code := exitCode(ctx, err)
	var child childExit
	var check verdict
	if err != nil && !errors.As(err, &child) && !errors.As(err, &check) && !errors.Is(err, job.ErrWarnings) {
		a.fail(err, code)
	}
	if a.ui != nil {
		a.ui.Close()
	}
	return code
}

// ends are the signals that end the work. A terminal that is closed ends what runs
// on it, unless that was started by nohup.
func ends() []os.Signal {
	all := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		all = append(all, syscall.SIGHUP)
	}
	return all
}

// failure is the last message of a verb that failed.
type failure struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Code  int    `json:"code"`
}

func (failure) MessageType() string { return "error" }

func (f failure) Line() string {
	s := "eddy: " + f.Error
	if f.Hint != "" {
		s += "\n hint: " + f.Hint
	}
	return s
}

func (a *app) fail(err error, code int) {
	text := err.Error()
	if code == exitInterrupted {
		text = "interrupted"
	}
	f := failure{Error: text, Hint: hint.Of(err), Code: code}
	if a.ui != nil {
		a.ui.Emit(f)
		return
	}
	fmt.Fprintln(a.err, f.Line())
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "eddy",
		Short: "the backup node beside a cluster",
		Long: `eddy holds an observer node still for a moment, stages its files, starts it
again, and streams them to object storage as archives that zstd and tar restore.
Nodes of chains, a manager of a Docker Swarm, a server of ZooKeeper are held so; etcd,
Consul, Nomad, Vault, or a program give their dump while they run. What is no chain
is encrypted before it is sent.`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			mode := ui.Plain
			switch {
			case a.json:
				mode = ui.JSON
			case a.quiet:
				mode = ui.Quiet
			case ui.IsTerminal(a.err):
				mode = ui.Terminal
			}
			a.ui = ui.New(mode, a.out, a.err)
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return hint.Add(fmt.Errorf("%w: %w", errUsage, err), "see `"+cmd.CommandPath()+" --help`")
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config", "c", os.Getenv("EDDY_CONFIG"), "configuration file (default /etc/eddy/eddy.yaml)")
	f.StringVar(&a.store, "store", "", "where backups are kept: s3://bucket/prefix or file:///directory")
	f.StringVar(&a.region, "region", "", "region of the bucket")
	f.StringVar(&a.endpoint, "endpoint", "", "S3 endpoint, for stores other than AWS")
	f.StringVar(&a.cluster, "cluster", "", "name of the cluster in the store")
	f.StringVar(&a.home, "home", "", "the node's home directory")
	f.StringArrayVarP(&a.identities, "identity", "i", nil, "file of an age identity or an ssh key that opens what is encrypted (repeatable)")
	f.BoolVar(&a.json, "json", false, "print one JSON object a line (docs/json.md)")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print results and errors only")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log what eddy does to stderr")
	f.StringVar(&a.logFormat, "log-format", "", "console (the default) or json")
	f.BoolVar(&a.yes, "yes", false, "answer yes to every question")
	root.AddGroup(&cobra.Group{ID: "backup", Title: "Backups:"}, &cobra.Group{ID: "keys", Title: "Keys and configuration:"}, &cobra.Group{ID: "node", Title: "The node:"}, &cobra.Group{ID: "other", Title: "Other:"})
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("backup", a.backupCommand(), a.runCommand(), a.listCommand(), a.showCommand(), a.verifyCommand(), a.restoreCommand(), a.drillCommand(), a.recoverCommand(), a.deleteCommand(), a.expireCommand(),
		a.pinCommand("pin", "keep a backup: retention does not delete it", true, pin),
		a.pinCommand("unpin", "take a pin back", false, unpin), a.statusCommand())
	group("keys", a.keysCommand(), a.kitCommand())
	group("node", a.doctorCommand(), newSuperviseCommand(), a.installCommand(), newNodeCommand())
	group("other", a.demoCommand(), a.configCommand(), a.versionCommand())
	root.AddCommand(newGuardCommand(), newUnitGuardCommand(), newCheckCommand())
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
	usageErrors(root)
	return root
}

// memoryLimit bounds what the verbs that move backups keep in memory, in bytes:
// their buffers take about 130 MiB at any size of backup, the rest is the
// runtime's. It leaves room below the promised 256 MiB.
const memoryLimit = 200 << 20

// boundMemory makes the runtime collect garbage before memoryLimit is passed.
// GOMEMLIMIT, where it is set, stands.
func boundMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// usageErrors makes a wrong argument a usage error (exit 2) on every verb, and
// an unknown verb as well.
func usageErrors(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil && cmd.HasSubCommands() {
		check = cobra.NoArgs
		cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return hint.Add(fmt.Errorf("%w: %w", errUsage, err), "see `"+c.CommandPath()+" --help`")
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		usageErrors(c)
	}
}

// versionInfo is what `eddy version` prints.
type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	Commit  string `json:"commit,omitempty"`
}

func (versionInfo) MessageType() string { return "version" }

func (v versionInfo) Line() string {
	return strings.TrimSpace(fmt.Sprintf("eddy %s (%s) %s", v.Version, v.Go, v.Commit))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{Version: version}
			if bi, ok := debug.ReadBuildInfo(); ok {
				v.Go = bi.GoVersion
				for _, s := range bi.Settings {
					if s.Key == "vcs.revision" {
						v.Commit = s.Value
					}
				}
			}
			return a.result(v)
		},
	}
}

// result prints what a verb was asked for: the one thing that goes to stdout.
func (a *app) result(e ui.Event) error { return a.ui.Result(e) }
