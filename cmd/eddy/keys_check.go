package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/roster"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// keysDiagnosis is the last line of `eddy keys check`.
type keysDiagnosis struct{ diagnosis }

func (keysDiagnosis) MessageType() string { return "keys_check" }

func (a *app) keysCheck() *cobra.Command {
	var f rosterFlags
	var k job.KeysCheck
	c := &cobra.Command{
		Use: "check [--node NODE] [--inventory FILE]", Short: "look whether a node's keys, configuration and data belong together", Args: cobra.NoArgs,
		Long: `Look, before the node with that --home starts, whether what lies there belongs together:
the node key and the lists of peers, who else has the same keys, who may read them,
genesis file and dump, which of data and configuration is newer, the program that
cosmovisor would start, and addresses of other machines. One line a check, as eddy
doctor has them. Nothing is changed, and no node is asked.`,
		Example: "  eddy keys check --home /var/lib/gaia --node val-1 --inventory nodes.yaml -i gaia-main.identity",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(config.NeedCatalog)
			if err != nil {
				return err
			}
			home, files, err := a.nodeFiles(cmd.Context(), f)
			if err != nil {
				return err
			}
			if k.Identities, err = a.readIdentities(); err != nil {
				return err
			}
			if k.Catalog, err = a.openTrusted(cmd.Context(), c, nil); err != nil {
				return err
			}
			k.Home, k.Events = home, a.ui
			k.Genesis = func() (string, string, error) {
				g, err := cometbft.ReadGenesis(home)
				return g.ChainID, g.Incarnation(), err
			}
			return a.judge(cmd.Context(), "do not start the node before each FAIL is looked at", func(show func(check.Finding)) {
				k.Run(cmd.Context(), show)
				a.checkFiles(cmd.Context(), f, home, files, show)
			}, func(sum diagnosis) ui.Event { return keysDiagnosis{sum} })
		},
	}
	f.add(c)
	c.Flags().StringVar(&k.Node, "node", "", "whose bundle belongs here (default: the node whose key is there)")
	c.Flags().StringVar(&k.Keys, "bundle", "latest", "the bundle that was restored")
	c.Flags().StringVar(&k.Data, "data", "latest", "the backup that was restored")
	c.Flags().StringVar(&k.Program, "program", "", "the program that would start (default: what cosmovisor's link leads to)")
	return c
}

// checkFiles compares the node's files with who the nodes are.
func (a *app) checkFiles(ctx context.Context, f rosterFlags, home string, files []roster.File, show func(check.Finding)) {
	bad := func(name string, err error) {
		show(check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: cmp.Or(hint.Of(err), "correct the inventory, or what it is compared with")})
	}
	members, notes, err := a.members(ctx, f)
	if err == nil {
		err = members.Validate()
	}
	if err != nil {
		bad("inventory", err)
		return
	}
	for _, n := range notes {
		show(check.Finding{Name: "inventory", Level: check.Warn, Said: n, Hint: "write down where it is, or that it is gone: `eddy keys list` shows whose bundles there are"})
	}
	l := roster.Look{Members: members}
	l.Self, _, err = bundle.NodeAt(home)
	if err == nil {
		l.Here, err = ownAddresses()
	}
	if err != nil {
		bad("peers", err)
		return
	}
	for _, found := range l.Findings(files) {
		show(found)
	}
}

// ownAddresses are those of this machine.
func ownAddresses() (out []netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("this machine's addresses: %w", err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}
