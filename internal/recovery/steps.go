package recovery

import (
	"fmt"
	"slices"

	"github.com/eddy-backup/eddy/observer"
)

// eddy is a command of eddy.
func (d *decision) eddy(words ...string) string {
	return line(append(slices.Clone(d.Eddy), words...)...)
}

// of is a command of eddy that says of which cluster it is, for whoever has several.
func (d *decision) of(words ...string) string {
	run := d.eddy(words...)
	if !slices.Contains(d.Eddy, d.Cluster) {
		run += "   # of " + d.Cluster
	}
	return run
}

// opens is eddy with the identity that opens what is encrypted.
func (d *decision) opens(words ...string) string {
	if d.Identity != "" {
		words = append(words, "-i", d.Identity)
	}
	return d.eddy(words...)
}

func (d *decision) unit() string {
	if d.Unit != "" {
		return d.Unit
	}
	return d.system.unit
}

// on is the machine of a member; that of the replica itself is where one looks from.
func on(m observer.Member, run string) Command { return Command{On: where(m), Run: run} }

// onEach is one command on the machine of each.
func onEach(all []observer.Member, run func(observer.Member) string) (out []Command) {
	for _, m := range all {
		out = append(out, on(m, run(m)))
	}
	return out
}

// stopUnit stops a member and whatever would start it again.
func (d *decision) stopUnit() string {
	if d.unit() == "docker" {
		return "systemctl stop docker.socket docker"
	}
	return line("systemctl", "stop", d.unit())
}

func (d *decision) startUnit() string { return line("systemctl", "start", d.unit()) }

// whom chooses the member that a backup is made of: one that only listens, else a
// follower; the replica itself before others.
func (d *decision) whom() (m observer.Member, ok bool) {
	rank := func(m observer.Member) int {
		n := 0
		if m.Voter {
			n += 2
		}
		if !m.Self {
			n++
		}
		return n
	}
	for _, c := range slices.Concat(d.listeners, d.up) {
		if c.Reachable && (!c.Leader || len(d.up) == 1) && (!ok || rank(c) < rank(m)) {
			m, ok = c, true
		}
	}
	return m, ok
}

// backup is that of a cluster that is well.
func (d *decision) backup() {
	m, ok := d.whom()
	if !ok || d.Kind == "swarm" && !m.Voter { // a worker has nothing of the state
		if m, ok = d.follower(); !ok {
			return
		}
	}
	s := Step{Do: DoBackup, Title: "back up " + name(m), Commands: []Command{on(m, d.eddy("backup"))}}
	switch {
	case d.system.asked:
		s.Why = "it is asked for its dump; nothing is stopped"
	case !m.Voter:
		s.Why = "it only listens: that it stands still for a moment costs nothing"
	default:
		s.Why = fmt.Sprintf("it does not lead, and %d %s are enough while it stands still for a moment", d.q.Needed, d.system.member+"s")
	}
	d.add(s)
}

func (d *decision) follower() (observer.Member, bool) {
	best := -1
	for i, m := range d.up {
		if !m.Leader && (best < 0 || m.Self) {
			best = i
		}
	}
	if best < 0 {
		return observer.Member{}, false
	}
	return d.up[best], true
}

// dump is a backup by the API, where nothing may be stopped.
func (d *decision) dump() {
	m, ok := d.whom()
	if !ok {
		return
	}
	d.add(Step{Do: DoBackup, Title: "take a dump of " + name(m), Why: "it is asked for; nothing is stopped", Commands: []Command{on(m, d.eddy("backup"))}})
}

// bringBack starts whoever is down.
func (d *decision) bringBack(why string) {
	if len(d.down) == 0 {
		return
	}
	s := Step{
		Do: DoStart, Title: "bring " + names(d.down) + " back", Why: why,
		Warning:  "with the disks that they had: a " + d.system.member + " that comes back empty under an old name can outvote those that know something",
		Commands: onEach(d.down, func(observer.Member) string { return d.startUnit() }),
	}
	if d.Kind == "vault" {
		s.Why += "; unseal each"
	}
	d.add(s)
}

// replace takes the dead out of a cluster that decides, then others in.
func (d *decision) replace() {
	if len(d.down) == 0 || d.system.strike == nil {
		return
	}
	at := d.up[0]
	if len(d.leaders) > 0 {
		at = d.leaders[0]
	}
	s := Step{
		Do: DoReplace, Title: "replace those that cannot come back", Optional: true,
		Why:     "only the machines that are lost for good; take the dead one out first, then the new one in, one at a time",
		Warning: "a new one that joins before the dead one is out raises the number that must agree",
	}
	for _, m := range d.down {
		s.Commands = append(s.Commands, on(at, d.system.strike(m)))
	}
	run, said := d.system.join(at)
	s.Commands, s.Why = append(s.Commands, on(at, run)), s.Why+"; "+said
	d.add(s)
}

// grow adds members where all are there and none may fail.
func (d *decision) grow() {
	if len(d.down) > 0 || d.q.Voters >= 3 {
		return
	}
	d.join(fmt.Sprintf("%d bear no loss", d.q.Voters))
}

// join adds members until their number is odd, and three at least.
func (d *decision) join(why string) {
	at := d.up0()
	run, said := d.system.join(at)
	d.add(Step{
		Do: DoJoin, Title: "add " + d.system.member + "s until there are " + fmt.Sprint(odd(d.q.Voters)), Why: why + "; " + said,
		Commands: []Command{on(at, run)},
	})
}

// up0 is a member to go on from: the one that leads, else one that answers, else any.
func (d *decision) up0() observer.Member {
	for _, m := range slices.Concat(d.leaders, d.up, d.down) {
		return m
	}
	return observer.Member{ID: d.Cluster}
}

// odd is how many voters there should be where there were n.
func odd(n int) int { return max(3, n-1+n%2) }

// look compares the members with what they should be.
func (d *decision) look(members int) {
	at := d.up0()
	d.add(Step{
		Do: DoLook, Title: "look whether all is well",
		Why:      fmt.Sprintf("%d %ss, one leader, one cluster id: two of either are two clusters", members, d.system.member),
		Commands: []Command{on(at, d.system.look(at)), {Run: d.of("doctor")}},
	})
}

// wait is for a quorum without a leader: it elects one, or something is between them.
func (d *decision) wait() {
	d.add(Step{
		Do: DoLook, Title: "wait for an election, and look what keeps them apart",
		Why:      "enough are there to elect one within seconds; where they do not, look at the network between them, at full disks and at clocks, and at what each logs",
		Warning:  "force nothing, restore nothing: they have their data",
		Commands: onEach(d.up, d.system.look),
	})
	d.bringBack("each one more makes an election easier")
	if d.system.asked && d.Kind != "ucp" {
		d.salvage(d.up, "nothing is stopped for it, and it is there should worse come")
	}
	d.plan.Again = true
}

// split is for two leaders.
func (d *decision) split() {
	d.add(Step{
		Do: DoLook, Title: "look again, at each that leads",
		Why:      "for a moment two may say so: the one of the higher term leads, and the other finds out within an election's time. Two that both go on, or two cluster ids, are a split brain: two clusters under one name",
		Warning:  "split brain: what is written now is in one of them only. Let no client write, join nobody, restore nothing, before one of the two has been chosen",
		Commands: onEach(d.leaders, d.system.look),
	})
	d.bringBack("who is missing may lie on the other side of a cut: mend the network before anything else")
	if d.system.asked && d.Kind != "ucp" {
		d.salvage(d.leaders, "of each, so that what only one of them knows is not lost with it")
	}
	d.plan.Again = true
	d.plan.Warnings = append(d.plan.Warnings, "the side with the majority stays; the members of the other are stopped, emptied, and join it anew. Where neither has it, keep the one with the higher term and index")
}

// salvage saves what each of some members has.
func (d *decision) salvage(of []observer.Member, why string) {
	s := Step{
		Do: DoSalvage, Title: "save what " + names(of) + " " + have(len(of)), Why: why,
		Commands: onEach(of, func(observer.Member) string { return d.eddy("backup", "--salvage", "--label", "survivor") }),
	}
	if !d.system.asked {
		s.Warning = "each stands still for it, one after the other; nothing can be decided meanwhile anyway"
	}
	if d.Kind == "swarm" {
		s.Warning += ". With autolock a manager that was stopped comes back locked, and without a quorum it cannot be unlocked (moby#36852): then `eddy restore` of its salvage brings it back, which needs the unlock key, and not the next steps"
	}
	d.add(s)
}

func have(n int) string {
	if n == 1 {
		return "has"
	}
	return "have"
}

// unknown is for a cluster of which nobody tells anything.
func (d *decision) unknown() {
	words := append(slices.Clone(d.Eddy), "recover", "--kind", d.Kind)
	if !slices.Contains(d.Eddy, "--cluster") && d.Cluster != "" {
		words = append(words, "--cluster", d.Cluster)
	}
	d.add(Step{
		Do: DoLook, Title: "find out who its " + d.system.member + "s are, and which of them are up",
		Why:      "the replica does not tell: say it, one --member each, `,down` behind those that do not answer and `,leader` behind the one that leads",
		Commands: []Command{{Run: line(words...) + " --member ID=ADDRESS --member ID=ADDRESS,down"}},
	})
	d.add(Step{Do: DoLook, Title: "look what there is to restore", Commands: []Command{{Run: d.of("list")}}})
	d.plan.Again = true
}

// after is what follows once a cluster decides again.
func (d *decision) after(history bool) {
	words := []string{"backup", "--label", "after-recovery"}
	if history {
		words = append(words, "--new-incarnation")
	}
	at := d.up0()
	d.look(odd(d.q.Voters))
	if d.Kind == "swarm" || d.Kind == "ucp" {
		d.add(Step{
			Do: DoLock, Title: "lock the managers again, where they were locked", Optional: true,
			Why:      "a recovered Swarm starts without autolock; keep the new key where eddy finds it, or the next backup is refused",
			Commands: []Command{on(at, line("docker", "swarm", "update", "--autolock=true"))},
		})
	}
	d.add(Step{
		Do: DoBackup, Title: "make a new backup", Why: "those of before do not know the new members",
		Commands: []Command{{On: "a " + d.system.member + " that does not lead now", Run: d.of(words...)}},
	})
	if d.Kind == "swarm" || d.Kind == "ucp" {
		d.add(Step{
			Do: DoSpread, Title: "spread the tasks, if they must be", Optional: true,
			Why:      "tasks come back to new nodes by themselves as they end; this moves them at once",
			Warning:  "it starts every task of the service again: its clients are disturbed",
			Commands: []Command{on(at, "docker service ls -q | xargs -r -n 1 docker service update --force")},
		})
	}
}

// lacks tells what a backup cannot know.
func (d *decision) lacks(b Backup) string {
	return fmt.Sprintf("what was written since %s (%s ago) is lost", b.At, ago(d.Now.Sub(b.Made)))
}
