package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "write, check or show the configuration"}
	c.AddCommand(a.configInit(), a.configCheck(), a.configShow())
	return c
}

// written is `eddy config init`.
type written struct {
	File  string `json:"file"`
	ToFix int    `json:"placeholders"` // values that are left to fill in
}

func (written) MessageType() string { return "config_written" }

func (w written) Line() string {
	if w.ToFix == 0 {
		return "wrote " + w.File + "; see `eddy config check`"
	}
	return fmt.Sprintf("wrote %s; fill in the %d values that say CHANGE-ME, then see `eddy config check`", w.File, w.ToFix)
}

func (a *app) configInit() *cobra.Command {
	var v config.TemplateValues
	var control string
	var force bool
	c := &cobra.Command{
		Use: "init", Short: "write a commented eddy.yaml", Args: cobra.NoArgs,
		Long: `Write a commented eddy.yaml with every key, to the file that --config names.
--cluster, --home, --store, --region, --endpoint and the flags below fill it in;
what is left says CHANGE-ME. No other file is touched and nothing is asked of the
network.`,
		Example: "  eddy config init --cluster gaia-main --home /var/lib/gaia --store s3://backups/eddy\n  eddy config init -c ./eddy.yaml --control exec",
		RunE: func(*cobra.Command, []string) error {
			v.Cluster, v.Home, v.Store, v.Region, v.Endpoint = a.cluster, a.home, a.store, a.region, a.endpoint
			how, what, named := strings.Cut(control, ":")
			switch {
			case how == "supervise" && (what != "" || !named):
				v.Supervise = what
			case how == "docker" && what != "":
				v.Container = what
			case control == "exec":
				v.Exec = true
			default:
				return hint.Add(errorsJoinUsage(fmt.Errorf("--control %q", control)), "write supervise:SOCKET, docker:CONTAINER or exec")
			}
			return a.writeConfig(cmp.Or(a.configFile, config.DefaultFile), v, force)
		},
	}
	f := c.Flags()
	f.StringVar(&v.RPC, "rpc", "", "the node's RPC address (default http://127.0.0.1:26657)")
	f.StringSliceVar(&v.Witnesses, "witness", nil, "RPC address of another node of the chain (repeatable)")
	f.StringVar(&control, "control", "supervise", "how the node is stopped and started: supervise:SOCKET, docker:CONTAINER or exec")
	f.StringVar(&v.Workdir, "workdir", "", "directory for eddy's own state (default /var/lib/eddy)")
	f.BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

func (a *app) writeConfig(file string, v config.TemplateValues, force bool) error {
	text, err := config.Template(v)
	if err != nil {
		return err
	}
	// What the flags say is checked before it is written down.
	if err := config.CheckTemplate(file, text); err != nil {
		return fmt.Errorf("nothing was written: %w", err)
	}
	switch _, err := os.Lstat(file); {
	case err == nil && !force:
		return hint.Add(fmt.Errorf("%s is there already: %w", file, job.ErrNotConfirmed), "say --force to replace it, or -c FILE to write another")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// The directory is for all to enter: the file itself is not for all to read.
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return hint.Add(err, "say -c FILE to write it elsewhere")
	}
	if err := fsx.WriteFileAtomic(file, text, 0o600); err != nil {
		return hint.Add(err, "say -c FILE to write it elsewhere")
	}
	w := written{File: file}
	var left *config.Error
	if _, err := config.Load(file, nil, config.Overrides{}, config.NeedRun); errors.As(err, &left) {
		w.ToFix = len(left.Problems)
	}
	return a.result(w)
}

func (a *app) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "find every mistake in the configuration, without the network", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if _, err := a.load(config.NeedRun); err != nil {
				return err
			}
			return a.result(plain{Type: "config_ok", Text: "config: ok"})
		},
	}
}

// setting is a line of `eddy config show`.
type setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`  // YAML; of RPC addresses only scheme and host
	Origin string `json:"origin"` // file:line, a variable, a flag, or "default"
}

func (setting) MessageType() string { return "setting" }
func (s setting) Line() string      { return s.Key + ": " + s.Value + "  # " + s.Origin }

func (a *app) configShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "print what is in force, and where each value comes from", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.load(config.NeedNothing)
			if err != nil {
				return err
			}
			t := ui.Table("KEY", "VALUE", "FROM")
			for _, s := range c.Settings() {
				if a.json {
					if err := a.result(setting{Key: s.Key, Value: s.Value, Origin: s.Origin.String()}); err != nil {
						return err
					}
					continue
				}
				t.Row(s.Key, s.Value, s.Origin.String())
			}
			if !a.json {
				_, err = fmt.Fprint(a.out, t)
			}
			return err
		},
	}
}
