package recovery

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

var (
	now   = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	kinds = []string{"swarm", "zookeeper", "etcd", "consul", "nomad", "vault", "ucp", "dtr"}
)

// cluster makes n voters, the last of which are down, and the leaders first. Ids are
// told apart from all other words of a plan.
func cluster(n, up, leaders int) []observer.Member {
	var out []observer.Member
	for i := range n {
		out = append(out, observer.Member{
			ID: fmt.Sprintf("id%d-w9l904", i), Name: fmt.Sprintf("node-%d", i), Address: fmt.Sprintf("10.99.0.%d:2377", i+1),
			Voter: true, Reachable: i < up, Leader: i < leaders, Self: i == 0,
		})
	}
	return out
}

func at(index uint64) observer.Position {
	return observer.Position{Kind: "swarm", Epoch: 3, Index: index}
}

// backups are the four that a store may have, by a word.
func backups(word string, members []observer.Member) []Backup {
	old := Backup{ID: "20261118T030000Z-auto-0a0a0a", Node: "id0-w9l904", At: at(100), Made: now.Add(-57 * time.Hour)}
	switch word {
	case "old":
		return []Backup{old}
	case "verified":
		old.Verified = true
		return []Backup{old}
	case "failed":
		old.Failed = true
		return []Backup{old}
	case "salvage":
		all := []Backup{old}
		for i, m := range members {
			if m.Reachable || i == 0 {
				all = append(all, Backup{ID: fmt.Sprintf("20261120T11000%dZ-survivor-b0b0b0", i), Node: m.ID, At: at(200 + uint64(i)), Made: now.Add(-time.Hour), Salvage: true})
			}
		}
		return all
	}
	return nil
}

func (p Plan) index(do string) int {
	return slices.IndexFunc(p.Steps, func(s Step) bool { return s.Do == do })
}

func (p Plan) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", p.State, p.Said)
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%d %s %q\n", i, s.Do, s.Title)
		for _, c := range s.Commands {
			fmt.Fprintf(&b, "    [%s] %s\n", c.On, c.Run)
		}
	}
	return b.String()
}

// destroys are the steps after which something is no more.
var destroys = []string{DoForce, DoClear, DoRestore}

// stops tells whether a step makes a member stand still.
func stops(s Step, kind string) bool {
	held := kind == "swarm" || kind == "zookeeper"
	for _, c := range s.Commands {
		if strings.Contains(c.Run, "systemctl stop") || held && (s.Do == DoBackup || s.Do == DoSalvage) && strings.Contains(c.Run, " backup") {
			return true
		}
	}
	return false
}

// Every cluster of up to seven voters, whoever is reachable, whoever leads, whatever
// there is to restore: the invariants hold in each plan.
func TestAllClusters(t *testing.T) {
	shells := map[string]bool{}
	cases := 0
	for _, kind := range kinds {
		for n := 1; n <= 7; n++ {
			for up := 0; up <= n; up++ {
				for leaders := 0; leaders <= min(2, n); leaders++ {
					for _, word := range []string{"none", "old", "verified", "failed", "salvage"} {
						members := cluster(n, up, leaders)
						s := Situation{Kind: kind, Cluster: "borg-7", Members: members, Backups: backups(word, members), Now: now, Image: "docker/x:3.1.0"}
						before := fmt.Sprint(s)
						p := Decide(s)
						cases++
						for _, wrong := range violations(s, p) {
							t.Errorf("%s, %d of %d, %d lead, %s: %s\n%s", kind, up, n, leaders, word, wrong, p.text())
						}
						if fmt.Sprint(s) != before {
							t.Errorf("%s, %d of %d: what was seen was changed", kind, up, n)
						}
						for _, step := range p.Steps {
							for _, c := range step.Commands {
								shells[c.Run] = true
							}
						}
						if t.Failed() {
							return
						}
					}
				}
			}
		}
	}
	// All lines are ones that a shell can read.
	script := "set -n\n"
	for run := range shells {
		script += run + "\n"
	}
	cmd := exec.Command("sh")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a shell does not read them: %v: %s", err, out)
	}
	t.Logf("%d clusters, %d different commands", cases, len(shells))
}

// violations are the invariants that a plan breaks.
func violations(s Situation, p Plan) (wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	q := observer.QuorumOf(s.Members)
	up, leaders := q.Reachable, 0
	for _, m := range s.Members {
		if m.Reachable && m.Leader {
			leaders++
		}
	}
	stands, missing := q.Bears() >= 0, up < q.Voters
	start, restore, force := p.index(DoStart), p.index(DoRestore), p.index(DoForce)

	if len(p.Steps) == 0 {
		bad("nothing is to be done")
	}
	if (stands || leaders > 1) && (force >= 0 || restore >= 0 || p.index(DoClear) >= 0) {
		bad("it gives up a cluster that lives")
	}
	if leaders > 1 && (p.State != Split || !strings.Contains(fmt.Sprint(p), "split brain")) {
		bad("no warning of a split brain")
	}
	if missing && start < 0 {
		bad("nobody is brought back")
	}
	for _, do := range destroys {
		if i := p.index(do); i >= 0 && (start < 0 || start > i) {
			bad("%s before those that are missing were looked for", do)
		}
	}
	if missing && p.index(DoReplace) >= 0 && p.index(DoReplace) < start {
		bad("a member is replaced before it was brought back")
	}
	// What is given up was saved, where somebody is left to save it from.
	salvaged := func(before int) bool {
		saved := 0
		for _, m := range s.Members {
			if slices.ContainsFunc(s.Backups, func(b Backup) bool { return b.Salvage && b.Node == m.ID && m.Reachable }) {
				saved++
				continue
			}
			i := slices.IndexFunc(p.Steps[:before], func(st Step) bool {
				return st.Do == DoSalvage && slices.ContainsFunc(st.Commands, func(c Command) bool { return strings.Contains(c.On, m.ID) })
			})
			if i >= 0 {
				saved++
			}
		}
		return saved == up || s.Kind == "dtr" && saved > 0 || s.Kind == "ucp"
	}
	for _, do := range destroys {
		if i := p.index(do); i >= 0 && up > 0 && !salvaged(i) {
			bad("%s before the survivors were saved", do)
		}
	}
	lone := slices.ContainsFunc(s.Members, func(m observer.Member) bool {
		return !slices.ContainsFunc(s.Backups, func(b Backup) bool { return b.Salvage && b.Node == m.ID })
	})
	if i := p.index(DoSalvage); up == 0 && lone && restore >= 0 && (s.Kind == "swarm" || s.Kind == "zookeeper") && (i < 0 || i > restore) {
		bad("no disk is saved before a restore")
	}
	if s.Kind == "ucp" && restore >= 0 && (len(p.Steps[restore].Commands) != 1 || p.index(DoClear) < 0) {
		bad("UCP is restored on one manager, where there is none")
	}
	if s.Kind == "ucp" && p.index(DoClear) >= 0 && restore < p.index(DoClear) {
		bad("UCP is removed, and nothing is there to restore")
	}
	if stands && q.Bears() == 0 || leaders == 0 && stands && s.Kind != "dtr" || leaders > 1 {
		for _, st := range p.Steps {
			if stops(st, s.Kind) {
				bad("%q stops somebody while none may fail", st.Title)
			}
		}
	}
	if b := p.index(DoBackup); b >= 0 && stands && (s.Kind == "swarm" || s.Kind == "zookeeper") {
		for _, m := range s.Members {
			if strings.Contains(p.Steps[b].Commands[0].On, m.ID) && (m.Leader || !q.MayStop(m)) {
				bad("%s is stopped for a backup", m.ID)
			}
		}
	}
	for i, st := range p.Steps {
		if len(st.Commands) == 0 || st.Title == "" {
			bad("step %d is empty: %+v", i, st)
		}
		named := false
		for _, c := range st.Commands {
			if strings.TrimSpace(c.Run) == "" || strings.Contains(c.Run, "\n") {
				bad("command %q", c.Run)
			}
			for _, b := range s.Backups {
				named = named || strings.Contains(c.Run, b.ID)
				if b.Failed && strings.Contains(c.Run, b.ID) {
					bad("%q takes a backup that failed its proof", c.Run)
				}
			}
			for _, m := range s.Members {
				named = named || strings.Contains(c.On+c.Run, m.ID)
			}
			named = named || strings.Contains(c.Run, s.Cluster)
		}
		if !named && !strings.HasPrefix(st.Commands[0].Run, "docker node ls ||") {
			bad("step %d %q names nobody: %+v", i, st.Title, st.Commands)
		}
		if slices.Contains(destroys, st.Do) && st.Warning == "" {
			bad("%q is not warned of", st.Title)
		}
	}
	if i := p.index(DoSpread); i >= 0 && (i != len(p.Steps)-1 || !p.Steps[i].Optional || p.Steps[i].Warning == "") {
		bad("rebalancing is neither last nor optional")
	}
	if q.Voters%2 == 0 && !slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "make them") }) {
		bad("an even number is not warned of")
	}
	// A plan ends well or says that it must be asked again.
	if (force >= 0 || restore >= 0) && (p.index(DoLook) < 0 && s.Kind != "dtr") {
		bad("nobody looks whether all is well")
	}
	if force >= 0 && p.index(DoJoin) < force {
		bad("the survivors stay alone")
	}
	if (force >= 0 || restore >= 0 && s.Kind != "dtr") && p.index(DoBackup) < max(force, restore) {
		bad("no new backup")
	}
	if !stands && leaders < 2 && restore < 0 && force < 0 && !p.Again {
		bad("it ends nowhere")
	}
	return wrong
}

// The survivor that knows most is taken, by term before index.
func TestTheFurthestSurvivor(t *testing.T) {
	members := cluster(5, 2, 0)
	salvage := func(i int, term, index uint64) Backup {
		return Backup{ID: fmt.Sprintf("20261120T11000%dZ-survivor-b0b0b0", i), Node: members[i].ID, At: observer.Position{Epoch: term, Index: index}, Made: now.Add(-time.Minute), Salvage: true}
	}
	ready := Backup{ID: "20261118T030000Z-auto-0a0a0a", Node: "x", At: observer.Position{Epoch: 3, Index: 50}, Made: now.Add(-50 * time.Hour), Verified: true}
	just := ready // in the second of the salvages
	just.Made = now.Add(-time.Minute)
	for _, c := range []struct {
		kind    string
		backups []Backup
		want    string // in the commands of the step that gives up
		do      string
	}{
		{"swarm", []Backup{salvage(0, 3, 100), salvage(1, 3, 101)}, "--advertise-addr 10.99.0.2:2377", DoForce},
		{"swarm", []Backup{salvage(0, 4, 10), salvage(1, 3, 101)}, "--advertise-addr 10.99.0.1:2377", DoForce},
		{"etcd", []Backup{salvage(0, 3, 100), salvage(1, 3, 101), ready}, salvage(1, 3, 101).ID, DoRestore},
		{"zookeeper", []Backup{salvage(0, 3, 102), salvage(1, 3, 101)}, salvage(0, 0, 0).ID, DoRestore},
		{"swarm", []Backup{salvage(0, 3, 10), salvage(1, 3, 11), ready}, ready.ID, DoRestore},
		{"etcd", []Backup{salvage(0, 3, 100), salvage(1, 3, 101), just}, salvage(1, 3, 101).ID, DoRestore},
		{"consul", nil, "id0-w9l904", DoForce},
	} {
		p := Decide(Situation{Kind: c.kind, Cluster: "borg-7", Members: members, Backups: c.backups, Now: now})
		i := p.index(c.do)
		if i < 0 || !strings.Contains(fmt.Sprint(p.Steps[i].Commands), c.want) {
			t.Errorf("%s: no %s with %s in\n%s", c.kind, c.do, c.want, p.text())
		}
	}
	// What Consul's recovery wants are ids.
	nameless := []observer.Member{{ID: "10.0.0.1:8300", Address: "10.0.0.1:8300", Voter: true, Reachable: true}, {ID: "10.0.0.2:8300", Address: "10.0.0.2:8300", Voter: true}}
	if p := Decide(Situation{Kind: "consul", Cluster: "borg-7", Members: nameless, Now: now}); p.index(DoForce) >= 0 || !p.Again || !strings.Contains(p.text(), "/node-id") {
		t.Error(p.text())
	}
	// One that has not been saved yet could know more.
	p := Decide(Situation{Kind: "swarm", Cluster: "borg-7", Members: members, Backups: []Backup{salvage(0, 3, 100)}, Now: now})
	if p.index(DoForce) >= 0 || !p.Again || !strings.Contains(p.Steps[p.index(DoSalvage)].Commands[0].On, members[1].ID) {
		t.Error(p.text())
	}
	// Salvages of an earlier trouble say nothing.
	old := salvage(0, 3, 100)
	old.Made = now.Add(-100 * time.Hour)
	p = Decide(Situation{Kind: "swarm", Cluster: "borg-7", Members: members, Backups: []Backup{old, salvage(1, 3, 90), ready}, Now: now})
	if !p.Again || !strings.Contains(p.Steps[p.index(DoSalvage)].Commands[0].On, members[0].ID) {
		t.Error(p.text())
	}
}

// DTR: more than half, some, none.
func TestThreeCasesOfDTR(t *testing.T) {
	for _, c := range []struct {
		up   int
		want []string
	}{
		{5, []string{DoBackup}},
		{3, []string{DoLook, DoBackup, DoStart, DoReplace, DoJoin, DoBackup}},
		{2, []string{DoLook, DoStart, DoSalvage, DoForce, DoJoin, DoBackup}},
		{0, []string{DoLook, DoStart, DoRestore}},
	} {
		p := Decide(Situation{
			Kind: "dtr", Cluster: "registry", Members: cluster(5, c.up, 0), Now: now, Image: "docker/dtr:2.6.0", Backups: backups("verified", nil),
			Args: []string{"--ucp-url", "https://ucp", "--existing-replica-id", "5eb9459a7832", "--ucp-username", "admin"},
		})
		var got []string
		for _, s := range p.Steps {
			got = append(got, s.Do)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d of 5: %v, want %v\n%s", c.up, got, c.want, p.text())
		}
		if strings.Contains(p.text(), "5eb9459a7832") {
			t.Errorf("a replica that is not the one meant is named:\n%s", p.text())
		}
	}
	p := Decide(Situation{Kind: "dtr", Cluster: "registry", Members: cluster(5, 3, 0), Now: now, Image: "docker/dtr:2.6.0"})
	if want := "docker run -it --rm docker/dtr:2.6.0 remove --existing-replica-id id0-w9l904 --replica-ids id3-w9l904,id4-w9l904"; !strings.Contains(p.text(), want) || !strings.Contains(fmt.Sprint(p), "split brain") {
		t.Errorf("no %s in\n%s", want, p.text())
	}
}

// A chain and a program are pointed to what there is for them; what is known of
// nobody is asked for.
func TestOthers(t *testing.T) {
	p := Decide(Situation{Kind: "cometbft", Cluster: "gaia", Backups: backups("verified", nil), Now: now})
	if p.index(DoStart) != 0 || p.index(DoRestore) < 1 || !strings.Contains(fmt.Sprint(p), "chain-rollback.md") {
		t.Error(p.text())
	}
	p = Decide(Situation{Kind: "command", Cluster: "orders", Backups: backups("old", nil), Now: now, Identity: "/root/id", Eddy: []string{"eddy", "-c", "/etc/eddy/orders.yaml"}})
	if i := p.index(DoRestore); i < 0 || i < p.index(DoSalvage) || p.Steps[i].Commands[0].Run != "eddy -c /etc/eddy/orders.yaml restore 20261118T030000Z-auto-0a0a0a -i /root/id" {
		t.Error(p.text())
	}
	for _, kind := range kinds {
		p := Decide(Situation{Kind: kind, Cluster: "borg-7", Backups: backups("verified", nil), Now: now})
		if p.State != Unknown || !p.Again || p.index(DoRestore) >= 0 || !strings.Contains(p.text(), "--cluster borg-7") {
			t.Error(kind, p.text())
		}
	}
}

// Who only listens is backed up before others, and counts for nothing.
func TestListeners(t *testing.T) {
	listener := observer.Member{ID: "learner-1", Address: "10.99.0.9:2379", Reachable: true}
	p := Decide(Situation{Kind: "zookeeper", Cluster: "borg-7", Members: append(cluster(3, 3, 1), listener), Now: now})
	if p.Quorum.Voters != 3 || !strings.Contains(p.Steps[0].Commands[0].On, "learner-1") {
		t.Error(p.text())
	}
	p = Decide(Situation{Kind: "swarm", Cluster: "borg-7", Members: append(cluster(3, 3, 1), listener), Now: now})
	if strings.Contains(p.Steps[0].Commands[0].On, "learner-1") { // a worker
		t.Error(p.text())
	}
}
