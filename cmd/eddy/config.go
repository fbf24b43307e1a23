package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "write, check or show the configuration"}
	c.AddCommand(a.configInit(), a.configCheck(), a.configShow())
	return c
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
			var all []setting
			for _, s := range c.Settings() {
				all = append(all, setting{Key: s.Key, Value: s.Value, Origin: s.Origin.String()})
			}
			switch key, err := readSigningKey(c.Sign.KeyFile); {
			case err != nil:
				a.ui.Emit(job.Warning{Text: err.Error(), Hint: hint.Of(err)})
			case key != nil:
				all = append(all, setting{Key: "sign.public_key", Value: key.Signer().String(), Origin: c.Sign.KeyFile})
			}
			t := ui.Table("KEY", "VALUE", "FROM")
			for _, s := range all {
				if a.json {
					if err := a.result(s); err != nil {
						return err
					}
					continue
				}
				t.Row(s.Key, s.Value, s.Origin)
			}
			if !a.json {
				_, err = fmt.Fprint(a.out, t)
			}
			return err
		},
	}
}
