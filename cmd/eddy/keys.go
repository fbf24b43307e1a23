package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netresearch/go-cron"
	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/detect"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

func (a *app) keysCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "keys", Short: "back up a node's keys and configuration, apart and encrypted",
		Long: `The keys and the configuration of each node, in bundles that are encrypted for the
holders of an age identity: never in the archive of its data, and in no store in the
clear. docs/keys.md has the whole procedure.`,
	}
	c.AddCommand(a.keysInit(), a.keysBackup(), a.keysList(), a.keysShow(), a.keysRestore(), a.keysCheck(), a.keysPeers())
	return c
}

// identityMade is what `eddy keys init` prints.
type identityMade struct {
	File        string `json:"file"`
	Recipient   string `json:"recipient"`
	Fingerprint string `json:"fingerprint"`
}

func (identityMade) MessageType() string { return "identity" }

func (i identityMade) Line() string {
	return fmt.Sprintf(`recipient: %[1]s
%[2]s holds the identity, the secret half: whoever has it can open every bundle, and
without it nobody can. Bring it to where this host's loss, and a thief on this host,
do not reach it, in two places (a safe, a password store), and remove it here:

  shred -u %[2]s

Into the eddy.yaml of each node:

  encryption: {recipients: [%[1]s]}`, i.Recipient, i.File)
}

func (a *app) keysInit() *cobra.Command {
	var out string
	var pq bool
	c := &cobra.Command{
		Use: "init", Short: "make an age identity, whose holder can open bundles", Args: cobra.NoArgs,
		Long: `Make an age identity, 0600, in a file that must not exist, and print its recipient.
It asks neither the store nor a node: run it on another machine than those that are
backed up. age-keygen makes as good ones.`,
		Example: "  eddy keys init --out gaia-main.identity",
		RunE: func(*cobra.Command, []string) error {
			file, err := filepath.Abs(out)
			if err != nil {
				return err
			}
			secret, recipient, err := bundle.NewIdentity(pq, time.Now())
			if err != nil {
				return err
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, os.ErrExist) {
				return hint.Add(errorsJoinUsage(fmt.Errorf("%s is there already", file)), "an identity is never written over: name another file with --out")
			}
			if err != nil {
				return err
			}
			_, err = f.Write(secret)
			if err == nil {
				err = f.Sync()
			}
			if err = errors.Join(err, f.Close()); err == nil {
				err = fsx.SyncDir(filepath.Dir(file))
			}
			if err != nil {
				return fmt.Errorf("write the identity: %w", err)
			}
			return a.result(identityMade{File: file, Recipient: recipient, Fingerprint: bundle.Fingerprint(recipient)})
		},
	}
	c.Flags().StringVar(&out, "out", "eddy.identity", "the file to write")
	c.Flags().BoolVar(&pq, "post-quantum", false, "one that withstands quantum computers; age 1.3 or later opens it")
	return c
}

func (a *app) keysBackup() *cobra.Command {
	var node string
	var newKey bool
	c := &cobra.Command{
		Use: "backup", Short: "seal this node's keys and configuration, and store them", Args: cobra.NoArgs,
		Long: `Collect the node's configuration, its node key, and what defines its service; seal
them for encryption.recipients; store them and read them back. The node may be any,
also a validator, and is neither stopped nor asked. Nothing is written in the clear. A bundle that holds what the last
one holds is not stored, unless that is 30 days old.

The validator key stays out, unless keys.validator_key says otherwise.`,
		Example: "  eddy keys backup\n  eddy keys backup --node val-1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(config.NeedKeys)
			if err != nil {
				return err
			}
			extra, err := heldKeys(cmd.Context(), c)
			if err != nil {
				return err
			}
			out, err := a.backUpKeys(cmd.Context(), c, node, newKey, extra...)
			if err != nil && !errors.Is(err, job.ErrWarnings) {
				return err
			}
			return errors.Join(a.result(out), err)
		},
	}
	c.Flags().StringVar(&node, "node", "", "the node's name in the store (default: keys.node, else the host's name)")
	c.Flags().BoolVar(&newKey, "new-node-key", false, "accept that the node of this name has another node key since")
	return c
}

// backUpKeys makes one bundle by the configuration. extra are secrets that lie in no
// file.
func (a *app) backUpKeys(ctx context.Context, c *config.Config, node string, newKey bool, extra ...bundle.Source) (out job.KeysSaved, err error) {
	to, err := readRecipients(c.Encryption)
	if err != nil {
		return out, err
	}
	ids, err := a.readIdentities()
	if err != nil {
		return out, err
	}
	host, err := os.Hostname()
	if err != nil {
		return out, fmt.Errorf("host name: %w", err)
	}
	if node == "" {
		if node, err = nodeName(c); err != nil {
			return out, err
		}
	} else if err := uploader.CheckName(node); err != nil {
		return out, hint.Add(errorsJoinUsage(err), "1 to 63 of letters, digits, _ . -")
	}
	_, cat, err := a.openCatalog(ctx, c)
	if err != nil {
		return out, err
	}
	sign, err := readSigningKey(c.Sign.KeyFile)
	if err != nil {
		return out, err
	}
	home, err := homeOf(c)
	if err != nil {
		return out, err
	}
	if home == "" {
		return out, hint.Add(errorsJoinUsage(errors.New("nothing says where the data directory of this "+c.Replica.Kind+" is, beside which its keys lie")), "say --home DIR")
	}
	k := job.Keys{
		Catalog: cat.With(uploader.Keys{Sign: sign}), Workdir: job.Workdir{Dir: c.Workdir}, Cluster: c.Cluster, Node: node, Host: host, Version: version,
		Want: bundle.Want{
			Home: home, Preset: c.Keys.Preset, Include: c.Keys.Include, Exclude: c.Keys.Exclude, ValidatorKey: c.Keys.ValidatorKey == "true",
			Service: a.serviceFiles(ctx, c, home), Extra: extra,
		},
		To: to, Identities: ids, NewNodeKey: newKey, Events: a.ui, Now: time.Now,
	}
	return k.Run(ctx)
}

// nodeService are the files that define what runs the node: its unit's, its container's.
func nodeService(ctx context.Context, c *config.Config, home string) []string {
	lctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	h := detect.Look(lctx)
	files := h.ServiceFiles(detect.Choice{Home: detect.Fact{Value: home}})
	for _, way := range []config.Way{c.Replica.Control.Way, c.Replica.App.Control} {
		if way.Systemd.Unit != "" {
			files = append(files, h.ServiceFiles(detect.Choice{Unit: way.Systemd.Unit, Home: detect.Fact{Value: home}})...)
		}
		if way.Docker.Container != "" {
			files = append(files, h.ServiceFiles(detect.Choice{Container: way.Docker.Container, Home: detect.Fact{Value: home}})...)
		}
	}
	return files
}

// serviceFiles are what defines the node's service, and eddy's own.
func (a *app) serviceFiles(ctx context.Context, c *config.Config, home string) []string {
	files := append(nodeService(ctx, c, home), filepath.Dir(config.DefaultFile)) // /etc/eddy, whole
	if z := c.Replica.Zookeeper.Config; z != "" {
		files = append(files, z)
	}
	if file, err := filepath.Abs(a.configFile); a.configFile != "" && err == nil {
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() { // -c /dev/null is none
			files = append(files, file)
		}
	}
	return files
}

// keysTask gives the daemon its bundles, where the file asks for them.
func (a *app) keysTask(c *config.Config, t *teller, d *job.Daemon) error {
	if c.Keys.Schedule == "" {
		return nil
	}
	when, err := cron.ParseStandard(c.Keys.Schedule)
	if err != nil {
		return err // config has parsed it before
	}
	d.Tasks = append(d.Tasks, job.Task{Name: "keys", Schedule: when, Run: func(ctx context.Context) error {
		extra, err := heldKeys(ctx, c)
		if err != nil {
			return err
		}
		out, err := a.backUpKeys(ctx, c, "", false, extra...)
		if out.Outcome != "" {
			a.ui.Emit(out)
		}
		if errors.Is(err, job.ErrWarnings) {
			t.Warned(ctx, "bundle of "+out.Node+": "+strings.Join(out.Warnings, "; "), "`eddy keys backup` says it again; `keys.exclude: [GLOB]` leaves files out")
		}
		t.proved(ctx, "keys", err)
		return err
	}})
	return nil
}

// keysListed is a line of `eddy keys list`.
type keysListed struct {
	Node    string    `json:"node"`
	ID      string    `json:"id"`
	Status  string    `json:"status"`
	Latest  bool      `json:"latest"`
	Created time.Time `json:"created"`
	Size    int64     `json:"stored_bytes"`
	NodeID  string    `json:"node_id,omitempty"`
	Host    string    `json:"host,omitempty"`
	Preset  string    `json:"preset,omitempty"`
	Files   int       `json:"files"`
	Signs   bool      `json:"validator_key"`
	Text    string    `json:"text,omitempty"`
}

func (keysListed) MessageType() string { return "keys_bundle" }
func (keysListed) Line() string        { return "" } // the table shows it

func asKeysListed(b uploader.Bundle) keysListed {
	l := keysListed{Node: b.Node, ID: b.ID, Status: string(b.Status), Latest: b.Latest, Created: b.Created, Size: b.Size, Text: b.Text}
	if m := b.Manifest; m != nil {
		l.NodeID, l.Host, l.Preset, l.Files, l.Signs = m.NodeID, m.Host, m.Preset, len(m.Files), m.Signs
	}
	return l
}

func (a *app) keysList() *cobra.Command {
	return &cobra.Command{
		Use: "list [NODE]", Short: "list the bundles of all nodes, or of one", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, cat, err := a.keysCatalog(ctx)
			if err != nil {
				return err
			}
			nodes := args
			if len(nodes) == 0 {
				if nodes, err = cat.Nodes(ctx); err != nil {
					return err
				}
			}
			t := ui.Table("NODE", "ID", "STATUS", "FILES", "STORED", "CREATED", "AGE", "")
			for _, node := range nodes {
				all, err := cat.Bundles(ctx, node)
				if err != nil {
					return err
				}
				for _, b := range all {
					l := asKeysListed(b)
					if a.json {
						if err := a.result(l); err != nil {
							return err
						}
						continue
					}
					note := l.Text
					if l.Signs {
						note = strings.TrimSpace("with the validator key " + note)
					}
					if l.Latest {
						note = strings.TrimSpace("latest " + note)
					}
					t.Row(l.Node, l.ID, l.Status, fmt.Sprint(l.Files), ui.Bytes(l.Size), l.Created.Local().Format("2006-01-02 15:04"), ui.Ago(time.Since(l.Created)), note)
				}
			}
			if a.json {
				return nil
			}
			if t.Len() == 0 {
				fmt.Fprintf(a.err, "no bundles of %s in %s\n", c.Cluster, c.Store.URL)
				return nil
			}
			_, err = fmt.Fprint(a.out, t)
			return err
		},
	}
}

// keysShown is `eddy keys show`: the manifest as it stands in the store.
type keysShown struct {
	Status string `json:"status"`
	// Opens tells whether one of the identities at hand belongs to a recipient; of ssh
	// keys that is not known. Missing: no identity was named.
	Opens    *bool                    `json:"opens,omitempty"`
	Manifest *uploader.BundleManifest `json:"manifest"`
}

func (keysShown) MessageType() string { return "keys_show" }

func (s keysShown) Line() string {
	b, err := json.MarshalIndent(s.Manifest, "", "  ")
	if err != nil {
		panic(err) // plain values that came from JSON
	}
	return string(b)
}

func (a *app) keysShow() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use: "show SEL [--node NODE]", Short: "show what a bundle holds, without opening it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, cat, err := a.keysCatalog(cmd.Context())
			if err != nil {
				return err
			}
			if node, err = oneNode(cmd.Context(), cat, node); err != nil {
				return err
			}
			ids, err := a.readIdentities()
			if err != nil {
				return err
			}
			b, err := cat.SelectBundle(cmd.Context(), node, args[0])
			if err != nil {
				return err
			}
			s := keysShown{Status: string(b.Status), Manifest: b.Manifest}
			if len(ids) > 0 {
				opens := ids.Opens(b.Manifest.Recipients)
				s.Opens = &opens
				if !a.json { // stdout is the manifest
					fmt.Fprintln(a.err, map[bool]string{true: "the identity belongs to one of its recipients", false: "no identity that belongs to one of its recipients was named, or it is an ssh key"}[opens])
				}
			}
			return a.result(s)
		},
	}
	c.Flags().StringVar(&node, "node", "", "whose bundle (default: the only node that has any)")
	return c
}

// keysCatalog opens the store for verbs that need nothing else.
func (a *app) keysCatalog(ctx context.Context) (*config.Config, *uploader.Catalog, error) {
	c, err := a.load(config.NeedCatalog)
	if err != nil {
		return nil, nil, err
	}
	_, cat, err := a.openCatalog(ctx, c)
	return c, cat, err
}

// oneNode is the node that is meant: the one that was named, or the only one.
func oneNode(ctx context.Context, cat *uploader.Catalog, named string) (string, error) {
	if named != "" {
		if err := uploader.CheckName(named); err != nil {
			return "", errorsJoinUsage(err)
		}
		return named, nil
	}
	nodes, err := cat.Nodes(ctx)
	switch {
	case err != nil:
		return "", err
	case len(nodes) == 1:
		return nodes[0], nil
	case len(nodes) == 0:
		return "", hint.Add(fmt.Errorf("%w: no node of %s has a bundle in %s", uploader.ErrNoSuchBackup, cat.Cluster(), cat.Store().URL()), "`eddy keys backup` on the node makes one")
	}
	return "", hint.Add(errorsJoinUsage(fmt.Errorf("there are bundles of %d nodes", len(nodes))), "say whose it should be with --node: "+strings.Join(nodes, ", "))
}
