package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/recovery"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// recoverKinds are those that there is a procedure for.
var recoverKinds = []string{"cometbft", "swarm", "zookeeper", "etcd", "consul", "nomad", "vault", "ucp", "dtr", "command"}

// recoverWithin bounds how long the replica is asked.
const recoverWithin = 30 * time.Second

// recoverPlan is the first line of `eddy recover`.
type recoverPlan struct {
	Kind    string `json:"kind"`
	Cluster string `json:"cluster"`
	From    string `json:"from"` // who told of the members: live, told, nobody
	recovery.Plan
	Members []observer.Member `json:"members,omitempty"`
	Count   int               `json:"steps"` // of lines that follow
	Backup  string            `json:"backup,omitempty"`
}

func (recoverPlan) MessageType() string { return "recover" }

func (p recoverPlan) Line() string {
	s := strings.TrimSuffix(fmt.Sprintf("%s, %s: %s", p.Cluster, p.Kind, p.State), ": "+recovery.Unknown)
	if p.Said != "" {
		s += ": " + p.Said
	}
	if p.Backup != "" {
		s += "\nbackup: " + p.Backup
	}
	for _, w := range p.Warnings {
		s += "\nWARNING: " + w
	}
	return s
}

// recoverStep is a line of `eddy recover` for each step, in order.
type recoverStep struct {
	N int `json:"n"`
	recovery.Step
}

func (recoverStep) MessageType() string { return "recover_step" }

func (r recoverStep) Line() string {
	var b strings.Builder
	optional := ""
	if r.Optional {
		optional = " (optional)"
	}
	fmt.Fprintf(&b, "\n%d. %s%s\n", r.N, r.Title, optional)
	if r.Why != "" {
		fmt.Fprintf(&b, "   %s\n", r.Why)
	}
	if r.Warning != "" {
		fmt.Fprintf(&b, "   WARNING: %s\n", r.Warning)
	}
	on := ""
	for _, c := range r.Commands {
		if c.On != on && c.On != "" {
			fmt.Fprintf(&b, "     # on %s\n", c.On)
		}
		on = c.On
		fmt.Fprintf(&b, "     %s\n", c.Run)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (a *app) recoverCommand() *cobra.Command {
	var kind string
	var told []string
	c := &cobra.Command{
		Use: "recover", Short: "print the steps of recovery for the cluster as it is now; run nothing", Args: cobra.NoArgs,
		Long: `Look at the cluster and at its backups, and print what to do, in order, as commands
that can be pasted. Nothing is run and nothing is changed.

The replica of the configuration is asked who the members are and which of them
answer. Where it cannot be asked, or there is no configuration, say it: --kind, and a
--member for each. Only a store and a cluster's name are needed.`,
		Example: "  eddy recover\n  eddy recover --store s3://backups/eddy --cluster borg --kind swarm --member m1=10.0.0.1:2377 --member m2=10.0.0.2:2377,down --member m3=10.0.0.3:2377,down",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kind != "" && !slices.Contains(recoverKinds, kind) {
				return hint.Add(errorsJoinUsage(fmt.Errorf("--kind %.40q is not known", kind)), "one of "+strings.Join(recoverKinds, ", "))
			}
			members, err := parseMembers(told)
			if err != nil {
				return errorsJoinUsage(err)
			}
			c, err := a.load(config.NeedCatalog)
			if err != nil {
				return err
			}
			return a.recover(cmd.Context(), c, kind, members)
		},
	}
	c.Flags().StringVar(&kind, "kind", "", "what runs there: "+strings.Join(recoverKinds, ", ")+" (default: replica.kind, else that of the backups)")
	c.Flags().StringArrayVar(&told, "member", nil, "ID[=ADDRESS][,down][,leader][,listens]: a member, where the replica cannot be asked (repeatable)")
	return c
}

// parseMembers reads what --member says.
func parseMembers(told []string) ([]observer.Member, error) {
	var out []observer.Member
	for _, t := range told {
		words := strings.Split(t, ",")
		id, address, _ := strings.Cut(words[0], "=")
		m := observer.Member{ID: id, Address: address, Voter: true, Reachable: true}
		if id == "" || strings.HasPrefix(id, "-") || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return nil, hint.Add(fmt.Errorf("--member %.80q names nobody", t), "write ID=ADDRESS, with ,down behind one that does not answer")
		}
		for _, w := range words[1:] {
			switch w {
			case "down":
				m.Reachable = false
			case "leader":
				m.Leader = true
			case "listens":
				m.Voter = false
			default:
				return nil, hint.Add(fmt.Errorf("--member %.80q: %.40q is not known", t, w), "behind the address: down, leader, listens")
			}
		}
		if slices.ContainsFunc(out, func(o observer.Member) bool { return o.ID == id }) {
			return nil, hint.Add(fmt.Errorf("--member %s is there twice", id), "one --member for each")
		}
		out = append(out, m)
	}
	return out, nil
}

func (a *app) recover(ctx context.Context, c *config.Config, kind string, members []observer.Member) error {
	var silent []error // what could not be asked: the plan is made all the same
	var all []uploader.Backup
	_, cat, err := a.openCatalog(ctx, c)
	if err == nil {
		all, err = cat.List(ctx)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		silent = append(silent, hint.Add(fmt.Errorf("what there is to restore is not known: %w", err), hint.Or(err, "look at the store's settings")))
	}
	kind = cmp.Or(kind, a.kindOf(c, all))
	if kind == "" {
		return hint.Add(errorsJoinUsage(errors.New("nothing says what kind of cluster it is")), "say --kind, one of "+strings.Join(recoverKinds, ", "))
	}
	from := "told"
	if members == nil {
		from = "nobody"
		if members, err = a.membersNow(ctx, kind); err != nil {
			silent = append(silent, err)
		}
		if len(members) > 0 {
			from = "live"
		}
	}
	s := recovery.Situation{
		Kind: kind, Cluster: c.Cluster, Members: members, Eddy: a.words(c), Unit: c.Replica.Control.Systemd.Unit,
		Image: c.Replica.Command.Image, Args: c.Replica.Command.Args, Now: time.Now(),
	}
	if len(a.identities) > 0 {
		s.Identity = a.identities[0]
	}
	for _, b := range all {
		if m := b.Manifest; m != nil && (b.Status == uploader.StatusReady || b.Status == uploader.StatusSalvage) {
			s.Backups = append(s.Backups, recovery.Backup{
				ID: b.ID, Node: m.Node.ID, At: job.PositionOf(m), Made: b.Created, Salvage: b.Status == uploader.StatusSalvage,
				Verified: !b.Verified.IsZero() || !b.Drilled.IsZero(), Failed: b.Failed != nil,
			})
		}
	}
	p := recovery.Decide(s)
	out := recoverPlan{Kind: kind, Cluster: c.Cluster, From: from, Plan: p, Members: members, Count: len(p.Steps)}
	if i := slices.IndexFunc(all, func(b uploader.Backup) bool { return b.Status == uploader.StatusReady }); i >= 0 {
		b := asListed(all[i])
		out.Backup = strings.TrimSuffix(fmt.Sprintf("%s at %s, made %s, %s", b.ID, b.At, b.Created.UTC().Format(time.RFC3339), b.proof(time.Now())), ", ")
	}
	steps := out.Steps
	out.Steps = nil
	for _, err := range silent {
		a.ui.Emit(job.Warning{Text: err.Error(), Hint: hint.Of(err)})
	}
	if err := a.result(out); err != nil {
		return err
	}
	for i, step := range steps {
		if err := a.result(recoverStep{i + 1, step}); err != nil {
			return err
		}
	}
	if p.Again {
		if err := a.result(plain{Type: "recover_again", Text: "\nAsk again after these steps, whenever a member comes or goes, and when one was saved: what is to be done next depends on it. " + hint.Command(append(s.Eddy, "recover")...)}); err != nil {
			return err
		}
	}
	if len(silent) > 0 {
		return job.ErrWarnings
	}
	return nil
}

// kindOf is the kind that somebody has set, else that of the newest backup, "" where
// neither says it.
func (a *app) kindOf(c *config.Config, all []uploader.Backup) string {
	if preset := c.Replica.Command.Preset; preset != "" {
		return preset
	}
	if c.Origin("replica.kind").Source != config.FromDefault {
		return c.Replica.Kind
	}
	for _, b := range all {
		if b.Manifest != nil && slices.Contains(recoverKinds, b.Manifest.System) {
			return b.Manifest.System
		}
	}
	if c.Replica.Home != "" {
		return c.Replica.Kind
	}
	return ""
}

// membersNow asks the configured replica, where there is one and it is of that kind.
func (a *app) membersNow(ctx context.Context, kind string) ([]observer.Member, error) {
	c, err := a.load(config.NeedBackup)
	if err != nil || c.Replica.Kind != kind || kind == "cometbft" || kind == "command" {
		return nil, nil // none is configured that could tell; the plan says how to
	}
	src, err := a.newSource(c)
	if err != nil {
		return nil, fmt.Errorf("the replica cannot be asked: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	s, err := src.Describe(ctx)
	if err != nil {
		return s.Members, hint.Add(fmt.Errorf("the replica does not tell who its members are: %w", err), "say it, a `--member` for each: `eddy recover --member ID=ADDRESS,down`")
	}
	return s.Members, nil
}

// words are those that begin a command of eddy that means the same cluster.
func (a *app) words(c *config.Config) []string {
	out := []string{"eddy"}
	if a.configFile != "" && a.configFile != config.DefaultFile {
		out = append(out, "-c", a.configFile)
	}
	for _, f := range []struct{ flag, value string }{
		{"--store", a.store}, {"--region", a.region}, {"--endpoint", a.endpoint}, {"--cluster", a.cluster},
	} {
		if f.value != "" {
			out = append(out, f.flag, f.value)
		}
	}
	return out
}
