package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/uploader"
)

// listed is a line of `eddy list`.
type listed struct {
	ID       string    `json:"id"`
	Status   string    `json:"status"`
	Label    string    `json:"label"`
	Latest   bool      `json:"latest,omitempty"`
	Position uint64    `json:"position,omitempty"`
	At       string    `json:"at,omitempty"` // the position, for people
	Kind     string    `json:"kind,omitempty"`
	Size     int64     `json:"stored_bytes"`
	Volumes  int       `json:"volumes"`
	Created  time.Time `json:"created"`
	Text     string    `json:"text,omitempty"` // of an error, or the progress
	// Component is the system; Of, of a line that is a restore, the backup.
	Component string         `json:"component,omitempty"`
	Of        string         `json:"of,omitempty"`
	Pins      []uploader.Pin `json:"pins,omitempty"`
	graded
}

// graded is what proofs have said of a backup; zero times where there were none.
type graded struct {
	Sampled  time.Time `json:"sampled,omitzero"`
	Verified time.Time `json:"verified,omitzero"`
	Drilled  time.Time `json:"drilled,omitzero"`
	Attested time.Time `json:"attested,omitzero"` // later than by the backup
	Failed   time.Time `json:"failed,omitzero"`   // and nothing as strong has passed since
	Why      string    `json:"why,omitempty"`     // it failed
}

func gradedOf(b uploader.Backup) graded {
	g := graded{Sampled: b.Sampled, Verified: b.Verified, Drilled: b.Drilled, Attested: b.Attested}
	if f := b.Failed; f != nil {
		g.Failed, g.Why = f.Given, f.By+": "+f.Why()
	}
	return g
}

// proof is the grade for people: the failure, or what was proven, and how long ago.
// A sample says nothing beside every byte.
func (g graded) proof(now time.Time) string {
	ago := func(word string, t time.Time) string { return word + " " + ui.Ago(now.Sub(t)) }
	if !g.Failed.IsZero() {
		return ago("FAILED", g.Failed)
	}
	var all []string
	if !g.Drilled.IsZero() {
		all = append(all, ago("drilled", g.Drilled))
	}
	switch {
	case !g.Verified.IsZero():
		all = append(all, ago("verified", g.Verified))
	case !g.Sampled.IsZero():
		all = append(all, ago("sampled", g.Sampled))
	}
	if !g.Attested.IsZero() {
		all = append(all, ago("attested", g.Attested))
	}
	return strings.Join(all, ", ")
}

func (listed) MessageType() string { return "backup" }

func (l listed) Line() string { return "" } // the table shows it

func asListed(b uploader.Backup) listed {
	l := listed{ID: b.ID, Status: string(b.Status), Label: b.Label, Latest: b.Latest, Size: b.Size, Volumes: b.Volumes, Created: b.Created, Text: b.Text, Component: b.Component, Of: b.Of, Pins: b.Pins, graded: gradedOf(b)}
	if b.Manifest != nil {
		p := job.PositionOf(b.Manifest)
		l.Position, l.At, l.Kind = p.Index, p.String(), p.Kind
	}
	return l
}

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [LABEL]", Short: "list the backups in the store", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load(config.NeedStore)
			if err != nil {
				return err
			}
			_, cat, err := a.openCatalog(cmd.Context(), c)
			if err != nil {
				return err
			}
			if c.Cluster == "" {
				return a.listClusters(cmd.Context(), cat)
			}
			all, err := cat.List(cmd.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			column := "HEIGHT"
			for _, b := range all {
				if b.Manifest != nil && b.Manifest.System != "cometbft" {
					column = "POSITION"
				}
			}
			t := ui.Table("ID", "STATUS", column, "STORED", "CREATED", "PROOF", "")
			for _, b := range all {
				if len(args) == 1 && b.Label != args[0] {
					continue
				}
				l := asListed(b)
				if a.json {
					if err := a.result(l); err != nil {
						return err
					}
					continue
				}
				var notes []string
				if l.Latest {
					notes = append(notes, "latest")
				}
				if len(l.Pins) > 0 {
					notes = append(notes, "pinned ("+uploader.PinText(l.Pins)+")")
				}
				note := strings.TrimSpace(strings.Join(notes, ", ") + " " + cmp.Or(l.Text, l.Why))
				at := l.At
				if l.Kind == "cometbft" && column == "HEIGHT" {
					at = strings.TrimPrefix(at, "height ")
				}
				t.Row(l.ID, l.Status, at, ui.Bytes(l.Size), l.Created.Local().Format("2006-01-02 15:04"), l.proof(now), note)
			}
			if !a.json {
				if t.Len() == 0 {
					fmt.Fprintf(a.err, "no backups of %s in %s\n", c.Cluster, c.Store.URL)
					return nil
				}
				_, err = fmt.Fprint(a.out, t)
			}
			return err
		},
	}
}

func (a *app) listClusters(ctx context.Context, cat *uploader.Catalog) error {
	names, err := cat.Clusters(ctx)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		fmt.Fprintln(a.err, "no cluster has backups here")
	}
	for _, n := range names {
		if err := a.result(clusterName{Cluster: n}); err != nil {
			return err
		}
	}
	return nil
}

type clusterName struct {
	Cluster string `json:"cluster"`
}

func (clusterName) MessageType() string { return "cluster" }
func (c clusterName) Line() string      { return c.Cluster }

// shown is `eddy show`: the manifest as it stands in the bucket.
type shown struct {
	Status    string `json:"status"`
	Component string `json:"component,omitempty"`
	graded
	Pins     []uploader.Pin     `json:"pins,omitempty"`
	Restores []restoreRun       `json:"restores,omitempty"`
	Manifest *uploader.Manifest `json:"manifest"`
}

// restoreRun is a restore of a backup that runs, or failed.
type restoreRun struct {
	ID        string    `json:"id"`
	Component string    `json:"component"`
	Status    string    `json:"status"`
	Host      string    `json:"host"`
	Started   time.Time `json:"started"`
	Error     string    `json:"error,omitempty"`
}

func (shown) MessageType() string { return "show" }

func (s shown) Line() string {
	b, err := json.MarshalIndent(s.Manifest, "", "  ")
	if err != nil {
		panic(err) // a struct of plain values that came from JSON
	}
	return string(b)
}

// contents is `eddy show --contents`: what the check counted before it was sent.
type contents struct {
	ID     string           `json:"id"`
	System string           `json:"system"`
	At     string           `json:"at"`
	Opened string           `json:"opened"`
	Grade  string           `json:"grade,omitempty"`
	Counts map[string]int64 `json:"counts,omitempty"`
}

func (contents) MessageType() string { return "contents" }

func (c contents) Line() string {
	head := fmt.Sprintf("%s: %s at %s, opened: %s", c.ID, c.System, c.At, cmp.Or(c.Opened, "none"))
	if c.Grade != "" {
		head += ", " + c.Grade
	}
	if len(c.Counts) == 0 {
		return head + "; nothing was counted"
	}
	t := ui.Table("WHAT", "COUNT")
	for _, what := range slices.Sorted(maps.Keys(c.Counts)) {
		t.Row(what, strconv.FormatInt(c.Counts[what], 10))
	}
	return head + "\n" + strings.TrimSuffix(t.String(), "\n")
}

func contentsOf(m *uploader.Manifest) contents {
	c := contents{ID: m.ID, System: m.System, At: job.PositionOf(m).String(), Opened: m.Opened}
	if m.Check != nil {
		c.Grade, c.Counts = m.Check.Grade, m.Check.Proven
	}
	return c
}

func (a *app) showCommand() *cobra.Command {
	var counted bool
	c := &cobra.Command{
		Use: "show SEL [--contents]", Short: "show one backup's manifest, or what was counted in it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, cat, err := a.selected(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if b.Manifest == nil {
				return a.result(plain{Type: "show", Text: fmt.Sprintf("%s is %s: %s", b.ID, b.Status, b.Text)})
			}
			if counted {
				return a.result(contentsOf(b.Manifest))
			}
			g := gradedOf(b)
			if p := g.proof(time.Now()); p != "" && !a.json { // stdout is the manifest, to the byte
				fmt.Fprintln(a.err, strings.TrimSuffix(b.ID+" is "+p+": "+g.Why, ": "))
			}
			out := shown{Status: string(b.Status), Component: b.Component, graded: g, Pins: b.Pins, Manifest: b.Manifest}
			runs, err := cat.Restores(cmd.Context(), b.ID)
			if err != nil {
				return err
			}
			for _, r := range runs {
				out.Restores = append(out.Restores, restoreRun{r.ID, r.Component, string(r.Status), r.Host, r.Started, r.Error})
			}
			if !a.json {
				if p := uploader.PinText(b.Pins); p != "" {
					fmt.Fprintf(a.err, "%s is pinned by %s\n", b.ID, p)
				}
				for _, r := range out.Restores {
					fmt.Fprintln(a.err, strings.TrimSuffix(fmt.Sprintf("restore %s of %s on %s: %s: %s", r.ID, r.Component, r.Host, r.Status, r.Error), ": "))
				}
			}
			return a.result(out)
		},
	}
	c.Flags().BoolVar(&counted, "contents", false, "what was counted in it before it was sent: keys, services, nodes, by type")
	return c
}

// plain is a result that is one sentence.
type plain struct {
	Type string `json:"-"`
	Text string `json:"text"`
}

func (p plain) MessageType() string { return p.Type }
func (p plain) Line() string        { return p.Text }

func (a *app) selected(ctx context.Context, sel string) (uploader.Backup, *uploader.Catalog, error) {
	c, err := a.load(config.NeedCatalog)
	if err != nil {
		return uploader.Backup{}, nil, err
	}
	_, cat, err := a.openCatalog(ctx, c)
	if err != nil {
		return uploader.Backup{}, nil, err
	}
	b, err := cat.Select(ctx, sel)
	return b, cat, err
}

func (a *app) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete SEL", Short: "delete one backup", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, cat, err := a.selected(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.confirm(fmt.Sprintf("delete %s (%s, %s)", b.ID, b.Status, ui.Bytes(b.Size)), b.ID); err != nil {
				return err
			}
			err = a.alone(cat, "eddy delete").Do(cmd.Context(), func(ctx context.Context, _ func(context.Context) error) error {
				return cat.Delete(ctx, b.ID)
			})
			if err != nil {
				return err
			}
			return a.result(plain{Type: "deleted", Text: "deleted " + b.ID})
		},
	}
}

func (a *app) expireCommand() *cobra.Command {
	var apply bool
	var last int
	c := &cobra.Command{
		Use: "expire", Short: "delete what retention no longer keeps (a dry run without --apply)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(config.NeedCatalog)
			if err != nil {
				return err
			}
			_, cat, err := a.openCatalog(cmd.Context(), c)
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("last") {
				last = c.Retention.Last
			}
			if last < 1 {
				return hint.Add(errorsJoinUsage(errors.New("nothing says how many backups to keep")), "set retention.last in the configuration, or say --last N")
			}
			return a.expire(cmd.Context(), cat, uploader.Policy{Last: last}, c.Keys.Keep, apply)
		},
	}
	c.Flags().BoolVar(&apply, "apply", false, "really delete")
	c.Flags().IntVar(&last, "last", 0, "how many READY backups to keep (default: retention.last)")
	return c
}

// expired is a line of `eddy expire`.
type expired struct {
	ID     string `json:"id"`
	Node   string `json:"node,omitempty"` // of a bundle: whose
	Reason string `json:"reason"`
	Size   int64  `json:"stored_bytes"`
	Done   bool   `json:"deleted"`
}

func (expired) MessageType() string { return "expire" }

func (e expired) Line() string {
	verb := "would delete"
	if e.Done {
		verb = "deleted"
	}
	what := e.ID
	if e.Node != "" {
		what = "bundle " + e.ID + " of " + e.Node
	}
	return fmt.Sprintf("%s %s (%s): %s", verb, what, ui.Bytes(e.Size), e.Reason)
}

// alone is for verbs that change a cluster's part of the store.
func (a *app) alone(cat *uploader.Catalog, verb string) job.Alone {
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return job.Alone{Catalog: cat, Cluster: cat.Cluster(), Holder: verb + " on " + host, Events: a.ui}
}

// expire deletes, or names, what retention no longer keeps: of the data, and of the
// nodes' bundles, of which each keeps so many.
func (a *app) expire(ctx context.Context, cat *uploader.Catalog, p uploader.Policy, bundles int, apply bool) error {
	x := job.Expire{Alone: a.alone(cat, "eddy expire"), Policy: p, Bundles: bundles, Now: time.Now()}
	plan, err := x.Plan(ctx)
	if err != nil {
		return err
	}
	keys, err := x.PlanBundles(ctx)
	if err != nil {
		return err
	}
	if len(plan)+len(keys) == 0 {
		return a.result(plain{Type: "expire", Text: "nothing to expire"})
	}
	var printed error
	show := func(x uploader.Expiry) {
		printed = errors.Join(printed, a.result(expired{ID: x.ID, Reason: x.Reason, Size: x.Size, Done: apply}))
	}
	showKeys := func(x uploader.BundleExpiry) {
		printed = errors.Join(printed, a.result(expired{ID: x.ID, Node: x.Node, Reason: x.Reason, Size: x.Size, Done: apply}))
	}
	if apply {
		x.Deleted, x.DeletedBundle = show, showKeys
		return errors.Join(x.Run(ctx, plan, keys), printed)
	}
	for _, x := range plan {
		show(x)
	}
	for _, x := range keys {
		showKeys(x)
	}
	return printed
}
