package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/uploader"
)

// kit is `eddy kit`.
type kit struct {
	Cluster string `json:"cluster"`
	Text    string `json:"text"`
}

func (kit) MessageType() string { return "kit" }
func (k kit) Line() string      { return strings.TrimSuffix(k.Text, "\n") }

func (a *app) kitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kit", Short: "print the recovery sheet, for paper", Args: cobra.NoArgs,
		Long: `Print what somebody needs to bring this cluster back who has lost everything else:
where the backups are, who can open the keys, and the commands, with eddy and without.
There is no secret on it. Print it again when the store or a recipient changes.`,
		Example: "  eddy kit | lpr",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, cat, err := a.keysCatalog(cmd.Context())
			if err != nil {
				return err
			}
			text, err := a.kitText(cmd.Context(), c, cat)
			if err != nil {
				return err
			}
			return a.result(kit{Cluster: c.Cluster, Text: text})
		},
	}
}

const kitHead = `RECOVERY SHEET of %s, printed %s by eddy %s

Keep it where neither the machines nor the store are needed to read it. There is no
secret on it. What is dotted is written in by hand.

THE STORE      %s%s
               who may read it: ..................................................
%s%s
THE ORDER      1. the data, into an empty home        2. keys and configuration
               3. the addresses in them, if the machines are others
               4. the sign state (below) before a validator is started
               5. start; of a whole cluster: all of them stopped, all restored, all started

`

// kitText says what there is; the rest is the store's own README.txt.
func (a *app) kitText(ctx context.Context, c *config.Config, cat *uploader.Catalog) (string, error) {
	var where strings.Builder
	for _, x := range [][2]string{{"region", c.Store.Region}, {"endpoint", c.Store.Endpoint}} {
		if x[1] != "" {
			fmt.Fprintf(&where, "\n               %s %s", x[0], x[1])
		}
	}
	marks, kept, err := a.kitStored(ctx, cat)
	if err != nil {
		return "", err
	}
	to, err := readRecipients(c.Encryption)
	if err != nil {
		a.ui.Emit(job.Warning{Text: err.Error(), Hint: hint.Of(err)})
	}
	for _, m := range to.Fingerprints() {
		marks[m] = true
	}
	var who strings.Builder
	who.WriteString("IDENTITIES     each alone opens all that was sealed for it; kept:\n")
	for _, m := range slices.Sorted(maps.Keys(marks)) {
		fmt.Fprintf(&who, "               %-28s ....................................\n", m)
	}
	if len(marks) == 0 {
		who.WriteString("               none: no keys are backed up, and nothing is encrypted\n")
	}
	signers := c.Signers
	if key, err := readSigningKey(c.Sign.KeyFile); err == nil && key != nil {
		signers = append(signers[:len(signers):len(signers)], key.Signer().String())
	}
	if len(signers) > 0 {
		fmt.Fprintf(&who, "SIGNERS        what is restored should be signed by one of them (--signer):\n")
		for _, s := range signers {
			fmt.Fprintf(&who, "               %s\n", s)
		}
	}
	head := fmt.Sprintf(kitHead, c.Cluster, time.Now().UTC().Format("2006-01-02"), version, cat.Store().URL(), where.String(), who.String(), kept)
	return head + cat.Readme(), nil
}

// kitStored says what is in the store just now, and for whom it was sealed.
func (a *app) kitStored(ctx context.Context, cat *uploader.Catalog) (marks map[string]bool, text string, err error) {
	marks = map[string]bool{}
	var b strings.Builder
	latest, err := cat.Latest(ctx)
	switch {
	case err == nil:
		fmt.Fprintf(&b, "DATA           newest: %s, %s\n", latest.ID, job.PositionOf(latest.Manifest))
		if e := latest.Manifest.Encryption; e != nil {
			for _, mark := range e.Recipients {
				marks[mark] = true
			}
		}
	case errors.Is(err, uploader.ErrNoSuchBackup):
		b.WriteString("DATA           no backup yet\n")
	default:
		return nil, "", err
	}
	nodes, err := cat.Nodes(ctx)
	if err != nil {
		return nil, "", err
	}
	b.WriteString("NODES          whose keys and configuration are kept:\n")
	for _, node := range nodes {
		k, err := cat.SelectBundle(ctx, node, "latest")
		if errors.Is(err, uploader.ErrNoSuchBackup) || errors.Is(err, uploader.ErrDamaged) || errors.Is(err, uploader.ErrNewer) {
			fmt.Fprintf(&b, "               %-20s none that can be read\n", node)
			continue
		}
		if err != nil {
			return nil, "", err
		}
		m := k.Manifest
		signs := "without the validator key"
		if m.Signs {
			signs = "WITH THE VALIDATOR KEY"
		}
		fmt.Fprintf(&b, "               %-20s %s on %s, %s, %s\n", node, cmp.Or(m.NodeID, "no node id"), m.Host, k.ID, signs)
		for _, mark := range m.Recipients {
			marks[mark] = true
		}
	}
	if len(nodes) == 0 {
		b.WriteString("               none\n")
	}
	return marks, b.String(), nil
}
