package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
	"github.com/eddy-backup/eddy/internal/roster"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// rosterFlags say who the nodes of the cluster are, and which files name them.
type rosterFlags struct {
	inventory       string
	nodeKeys, files []string
}

func (f *rosterFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.inventory, "inventory", "", "file that says who is where: lines `NAME: host[:port] [observer]`")
	c.Flags().StringArrayVar(&f.nodeKeys, "node-key", nil, "NAME=FILE: a node_key.json, or its id itself, instead of the node's bundle (repeatable)")
	c.Flags().StringArrayVar(&f.files, "file", nil, "another file in which the node's peers stand: a unit, an environment or compose file, a script (repeatable)")
}

// peersEdit is a file that `eddy keys peers` changes, or would.
type peersEdit struct {
	File    string `json:"file"`
	Diff    string `json:"diff"`
	Written bool   `json:"written"`
	Kept    string `json:"kept,omitempty"` // where the old file is
}

func (peersEdit) MessageType() string { return "keys_peers_file" }

func (p peersEdit) Line() string {
	if p.Written {
		return "wrote " + p.File + ", the old one is " + path.Base(p.Kept)
	}
	return strings.TrimSuffix(p.Diff, "\n")
}

// peersDone is the last line of `eddy keys peers`.
type peersDone struct {
	NodeID  string   `json:"node_id"`
	Members []string `json:"members"` // names of those that are known
	Changes int      `json:"changes"` // files
	Written bool     `json:"written"`
	Notes   []string `json:"notes,omitempty"`
	Next    []string `json:"next,omitempty"`
}

func (peersDone) MessageType() string { return "keys_peers" }

func (p peersDone) Line() string {
	s := "the files say this already"
	switch {
	case p.Changes > 0 && p.Written:
		s = fmt.Sprintf("%d files changed", p.Changes)
	case p.Changes > 0:
		s = fmt.Sprintf("%d files would change: --write changes them", p.Changes)
	}
	for _, n := range p.Notes {
		s += "\n  note: " + n
	}
	for _, n := range p.Next {
		s += "\n  next: " + n
	}
	return s
}

func (a *app) keysPeers() *cobra.Command {
	var f rosterFlags
	var hosts []string
	var r roster.Rewrite
	var write bool
	c := &cobra.Command{
		Use: "peers [--inventory FILE] [--write]", Short: "write the cluster's node ids and addresses into a node's files", Args: cobra.NoArgs,
		Long: `Write into the files of the node with that --home who the other nodes of its cluster
are and where: persistent_peers, private_peer_ids and unconditional_peer_ids of config.toml,
the peers of loom.yml, and those of the command in its unit. The addresses come from
the inventory, else from the lists themselves; the ids from the bundles in the store,
or from --node-key. The node leaves itself out. An observer comes into no list.

The change is shown as a diff; --write makes it. Comments and formatting stay, the old
file is kept beside.`,
		Example: "  eddy keys peers --home /var/lib/gaia --inventory nodes.yaml\n  eddy keys peers --home /var/lib/gaia --inventory nodes.yaml --write\n  eddy keys peers --home /var/lib/loom --replace 10.0.0.7=10.1.0.7",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, h := range hosts {
				old, now, ok := strings.Cut(h, "=")
				if !ok || old == "" || now == "" || strings.ContainsAny(h, " \t\r\n\"'\\$#") {
					return errorsJoinUsage(fmt.Errorf("--replace %q is not OLD=NEW, two addresses or names", h))
				}
				r.Hosts = append(r.Hosts, [2]string{old, now})
			}
			done, err := a.rewritePeers(cmd.Context(), f, r, write)
			if err != nil {
				return err
			}
			return a.result(done)
		},
	}
	f.add(c)
	c.Flags().StringArrayVar(&hosts, "replace", nil, "OLD=NEW: write another address or name, wherever it stands in those files (repeatable)")
	c.Flags().BoolVar(&r.DropOthers, "drop-others", false, "take out peers that nobody knows")
	c.Flags().BoolVar(&r.ListObservers, "list-observers", false, "put observers into the lists, too")
	c.Flags().BoolVar(&write, "write", false, "change the files")
	return c
}

func (a *app) rewritePeers(ctx context.Context, f rosterFlags, r roster.Rewrite, write bool) (done peersDone, err error) {
	home, files, err := a.nodeFiles(ctx, f)
	if err != nil {
		return done, err
	}
	var keyFile string
	if r.Self, keyFile, err = bundle.NodeAt(home); err != nil {
		return done, err
	}
	only := f.inventory == "" && len(f.nodeKeys) == 0 && len(r.Hosts) > 0 // nothing but --replace
	var notes []string
	if !only {
		if r.Self == "" {
			return done, hint.Add(fmt.Errorf("%w: %s has no node key: which of the nodes it is nobody can say", observer.ErrNotFit, home), "bring it back first: `eddy keys restore latest --node NAME --home DIR`")
		}
		if r.Members, notes, err = a.members(ctx, f); err != nil {
			return done, err
		}
		if f.inventory == "" {
			var more []string
			r.Members, more = located(r.Members, files, r.Self)
			notes = append(notes, more...)
		}
		if _, known := r.Members.ByID(r.Self); !known {
			notes = append(notes, fmt.Sprintf("this node, %s by %s, is none of them: its lists name them all", r.Self, keyFile))
		}
	}
	edits, more, err := r.Plan(files)
	if errors.Is(err, roster.ErrInventory) {
		return done, errorsJoinUsage(err)
	}
	if err != nil {
		return done, err
	}
	done = peersDone{NodeID: r.Self, Members: []string{}, Written: write, Notes: append(notes, more...)}
	for _, m := range r.Members {
		done.Members = append(done.Members, m.Name)
	}
	var changed []roster.Edit
	for _, e := range edits {
		if e.New.Changed() {
			changed = append(changed, e)
			if err := a.result(peersEdit{File: e.Path, Diff: e.New.Diff(e.Path)}); err != nil {
				return done, err
			}
		}
	}
	done.Changes = len(changed)
	if !write || len(changed) == 0 {
		return done, nil
	}
	now := time.Now() // or the next second in which no old file was kept: two runs follow each other quickly
	for slices.ContainsFunc(changed, func(e roster.Edit) bool {
		_, err := os.Lstat(nodeconfig.Kept(e.Path, now))
		return err == nil
	}) {
		now = now.Add(time.Second)
	}
	for _, e := range changed {
		if err := ctx.Err(); err != nil {
			return done, context.Cause(ctx)
		}
		kept, err := nodeconfig.Replace(e.Path, e.Text, e.New.String(), now)
		if err != nil {
			return done, fmt.Errorf("%s: %w", e.Path, err)
		}
		if err := a.result(peersEdit{File: e.Path, Diff: e.New.Diff(e.Path), Written: true, Kept: kept}); err != nil {
			return done, err
		}
	}
	if slices.ContainsFunc(changed, func(e roster.Edit) bool { return e.Form == nodeconfig.Service }) {
		done.Next = append(done.Next, "systemctl daemon-reload, as root: what defines the service has changed (of a container: docker compose up -d)")
	}
	done.Next = append(done.Next, "a node that runs takes it up at its next start", "the same on every other node, each with its own --home: each leaves itself out")
	return done, nil
}

// nodeFiles reads the files of the node that is meant in which peers stand.
func (a *app) nodeFiles(ctx context.Context, f rosterFlags) (home string, files []roster.File, err error) {
	c, err := a.load(config.NeedNothing)
	if err != nil {
		return "", nil, err
	}
	if c.Replica.Home == "" {
		return "", nil, hint.Add(errorsJoinUsage(errors.New("nothing says where the node's home is")), "say --home DIR")
	}
	if home, err = filepath.Abs(c.Replica.Home); err != nil {
		return "", nil, err
	}
	var service []string
	for _, n := range f.files {
		if n, err = filepath.Abs(n); err != nil {
			return "", nil, err
		}
		if _, err := os.Stat(n); err != nil {
			return "", nil, errorsJoinUsage(err)
		}
		service = append(service, n)
	}
	files, err = roster.Read(home, append(service, nodeService(ctx, c, home)...))
	return home, files, err
}

// members are the nodes of the cluster: of the inventory, or without one those that
// have bundles. Where an identity is at hand, the bundles are opened.
func (a *app) members(ctx context.Context, f rosterFlags) (all roster.Members, notes []string, err error) {
	if f.inventory != "" {
		text, err := os.ReadFile(f.inventory)
		if err == nil {
			all, err = roster.ParseInventory(string(text))
		}
		if err != nil {
			return nil, nil, errorsJoinUsage(fmt.Errorf("%s: %w", f.inventory, err))
		}
	}
	set := func(name, id string) error {
		i := slices.IndexFunc(all, func(m roster.Member) bool { return m.Name == name })
		if i < 0 {
			all = append(all, roster.Member{Name: name})
			i = len(all) - 1
		}
		if all[i].ID != "" && all[i].ID != id {
			return errorsJoinUsage(fmt.Errorf("%w: %s has node id %s, and elsewhere %s", roster.ErrInventory, name, all[i].ID, id))
		}
		all[i].ID = id
		return nil
	}
	for _, k := range f.nodeKeys {
		name, file, ok := strings.Cut(k, "=")
		if !ok || uploader.CheckName(name) != nil {
			return nil, nil, errorsJoinUsage(fmt.Errorf("--node-key %q is not NAME=FILE", k))
		}
		id := strings.ToLower(file)
		if !nodeconfig.ValidID(id) {
			b, err := os.ReadFile(file)
			if err == nil {
				id, err = bundle.NodeID(b)
			}
			if err != nil {
				return nil, nil, errorsJoinUsage(fmt.Errorf("%s: %w", file, err))
			}
		}
		if err := set(name, id); err != nil {
			return nil, nil, err
		}
	}
	missing := slices.ContainsFunc(all, func(m roster.Member) bool { return m.ID == "" })
	if missing || len(all) == 0 {
		if notes, err = a.bundled(ctx, f.inventory != "", &all, set); err != nil {
			return nil, nil, err
		}
	}
	return all, notes, nil
}

// located are the members whose address a list of this node names, and the node itself.
func located(all roster.Members, files []roster.File, self string) (named roster.Members, notes []string) {
	all, notes = all.Located(files)
	for _, m := range all {
		if m.Host != "" || m.ID == self {
			named = append(named, m)
			continue
		}
		notes = append(notes, m.Name+" is in no list of this node, and stays out: --inventory says who is to be in")
	}
	return named, notes
}

// bundled takes the ids of nodes from their newest bundles.
func (a *app) bundled(ctx context.Context, inventory bool, all *roster.Members, set func(name, id string) error) (notes []string, err error) {
	c, err := a.load(config.NeedCatalog)
	var cat *uploader.Catalog
	if err == nil {
		cat, err = a.openTrusted(ctx, c, nil)
	}
	if err != nil {
		return nil, hint.Add(err, "ids come from the bundles in the store; or write them into the inventory, `NAME: id@host:port`, or say --node-key NAME=FILE")
	}
	ids, err := a.readIdentities()
	if err != nil {
		return nil, err
	}
	nodes, err := cat.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		i := slices.IndexFunc(*all, func(m roster.Member) bool { return m.Name == node })
		if inventory && i < 0 {
			notes = append(notes, node+" has bundles, and is not in the inventory: it comes into no list")
			continue
		}
		if i >= 0 && (*all)[i].ID != "" {
			continue
		}
		b, err := cat.SelectBundle(ctx, node, "latest")
		if err != nil {
			return nil, fmt.Errorf("the bundle of %s: %w", node, err)
		}
		id := b.Manifest.NodeID
		if len(ids) > 0 {
			hides, err := a.looksHidden(ctx, cat, node, ids)
			if err != nil {
				return nil, err
			}
			if hides && inventory && !(*all)[i].Observer {
				return nil, hint.Add(errorsJoinUsage(fmt.Errorf("%w: %s hides from other nodes, by its config.toml: it is an observer, and the inventory does not say so", roster.ErrInventory, node)),
					"write ` observer` behind its address; other nodes must not list it")
			}
		}
		if id == "" {
			continue
		}
		if err := set(node, id); err != nil {
			return nil, err
		}
	}
	return notes, nil
}

// looksHidden opens the newest bundle of a node and tells whether its config.toml is
// one that hides it.
func (a *app) looksHidden(ctx context.Context, cat *uploader.Catalog, node string, ids bundle.Identities) (hides bool, err error) {
	r := job.KeysRestore{Catalog: cat, Node: node, Selector: "latest", Identities: ids, Events: a.ui, Now: time.Now}
	b, err := r.Look(ctx)
	if err != nil {
		return false, err
	}
	err = b.Each(func(e bundle.Entry, in io.Reader) error {
		if path.Base(e.Name) != "config.toml" || !bundle.InHome(e.Name) || strings.Contains(e.Name, "cosmovisor") {
			return nil
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		changes, err := nodeconfig.Hide(string(text), nil)
		hides = hides || (err == nil || errors.Is(err, nodeconfig.ErrNoPeers)) && len(changes) == 0
		return nil
	})
	return hides, err
}
