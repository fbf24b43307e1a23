package recovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/observer"
)

// lost is for survivors that are too few.
func (d *decision) lost() {
	d.bringBack("the best way by far: as soon as " + fmt.Sprint(d.q.Needed) + " are there, everything goes on where it was. Go on with the next step only when that is out of the question")
	if d.Kind == "ucp" {
		d.controlPlane()
		return
	}
	saved := d.salvages()
	var todo []observer.Member
	for _, m := range d.up {
		if _, ok := saved[m.ID]; !ok {
			todo = append(todo, m)
		}
	}
	if len(todo) > 0 {
		d.salvage(todo, "what they know is in no backup; they are compared by it")
	}
	peers := d.Kind == "consul" || d.Kind == "nomad" || d.Kind == "vault"
	// Who is taken must be known, and his salvage too where it is what is restored.
	if len(todo) > 0 && (len(d.up) > 1 && !peers || d.Kind == "etcd" || d.Kind == "zookeeper") {
		d.add(Step{
			Do: DoLook, Title: "compare their terms and indexes", Why: "the survivor with the highest term, then the highest index, knows most; it is named when eddy is asked again",
			Commands: []Command{{Run: d.of("list")}, {Run: d.again()}},
		})
		d.plan.Again = true
		return
	}
	best, at := d.best(saved)
	ready := d.furthest(false)
	switch {
	case len(ready) > 0 && at.ID != "" && compare(ready[0].At, at.At) > 0:
		d.plan.Warnings = append(d.plan.Warnings, fmt.Sprintf("backup %s at %s is further than any survivor (%s): it is restored instead", ready[0].ID, ready[0].At, at.At))
		d.verified(ready)
		d.restore(ready[0], "it knows more than any survivor")
		d.afterRestore()
		return
	case peers && !d.identified():
		return
	case peers:
		d.peers()
	case d.Kind == "swarm":
		d.forceSwarm(best, at)
	default:
		d.restore(at, fmt.Sprintf("the salvage of %s, at %s, is the furthest of all survivors", name(best), at.At))
		d.after(true)
		return
	}
	d.join("what is one member now bears no loss")
	d.after(false)
}

// best is the survivor that knows most, and his salvage where there is one.
func (d *decision) best(saved map[string]Backup) (best observer.Member, at Backup) {
	for _, m := range d.up {
		b, ok := saved[m.ID]
		if best.ID == "" || ok && (at.ID == "" || compare(b.At, at.At) > 0) {
			best, at = m, b
		}
	}
	return best, at
}

// again is the command that looks at it once more.
func (d *decision) again() string {
	words := []string{"recover", "--kind", d.Kind}
	for _, m := range d.Members {
		words = append(words, "--member", spell(m))
	}
	return d.eddy(words...)
}

// spell writes a member as --member takes it.
func spell(m observer.Member) string {
	s := m.ID
	if m.Address != "" {
		s += "=" + address(m)
	}
	for _, w := range []struct {
		is   bool
		word string
	}{{!m.Reachable, "down"}, {m.Leader && m.Reachable, "leader"}, {!m.Voter, "listens"}} {
		if w.is {
			s += "," + w.word
		}
	}
	return s
}

// forceSwarm makes one manager the whole Swarm.
func (d *decision) forceSwarm(best observer.Member, at Backup) {
	why := "it is the only one left"
	if len(d.up) > 1 {
		why = fmt.Sprintf("it knows most: %s", at.At)
	}
	if ready := d.furthest(false); at.ID == "" && len(ready) > 0 {
		why += fmt.Sprintf(" (look at its salvage first: where that is behind backup %s, at %s, ask again, and restore)", ready[0].ID, ready[0].At)
	}
	var rest []observer.Member
	for _, m := range d.up {
		if m.ID != best.ID {
			rest = append(rest, m)
		}
	}
	s := Step{
		Do: DoForce, Title: "make " + name(best) + " the whole Swarm", Why: why + "; services, secrets and workers stay",
		Warning: "only when the others are lost for good: one that comes back later is another Swarm under the same name. The address must be the one that it always had, and this machine must own it",
	}
	s.Commands = onEach(rest, func(observer.Member) string { return d.stopUnit() })
	s.Commands = append(s.Commands, on(best, line("docker", "swarm", "init", "--force-new-cluster", "--advertise-addr", address(best))))
	d.add(s)
	var gone []observer.Member
	for _, m := range d.Members {
		if m.Voter && m.ID != best.ID {
			gone = append(gone, m)
		}
	}
	d.remove(best, gone)
}

// remove strikes managers off that are listed and will not come back.
func (d *decision) remove(at observer.Member, gone []observer.Member) {
	if len(gone) == 0 {
		return
	}
	d.add(Step{
		Do: DoRemove, Title: "strike " + names(gone) + " off", Why: "they stand in the list as managers that are unknown; those that still have a machine leave first and join anew",
		Commands: onEach1(at, gone, func(m observer.Member) string { return line("docker", "node", "rm", "--force", m.ID) }),
	})
}

// onEach1 is a command for each member, all on one machine.
func onEach1(at observer.Member, all []observer.Member, run func(observer.Member) string) (out []Command) {
	for _, m := range all {
		out = append(out, on(at, run(m)))
	}
	return out
}

// identified tells whether raft's ids of the survivors are known. Who may not see the
// cluster's configuration is told addresses only.
func (d *decision) identified() bool {
	var todo []observer.Member
	for _, m := range d.up {
		if m.ID == m.Address {
			todo = append(todo, m)
		}
	}
	if len(todo) == 0 || d.Kind == "vault" { // whose ids are names
		return true
	}
	file, _ := peersFile(d.Kind, nil)
	file = strings.TrimSuffix(file, "/raft/peers.json") + "/node-id"
	d.add(Step{
		Do: DoLook, Title: "find out the ids of the survivors", Why: "addresses alone are known of them; ask again with `--member ID=ADDRESS` for each: their recovery needs both",
		Commands: append(onEach(todo, func(observer.Member) string { return "cat " + file }), Command{Run: d.again()}),
	})
	d.plan.Again = true
	return false
}

// peers makes the survivors of Consul, Nomad and Vault the whole cluster.
func (d *decision) peers() {
	file, text := peersFile(d.Kind, d.up)
	s := Step{
		Do: DoForce, Title: "make " + names(d.up) + " the whole cluster", Why: "with all of them stopped, raft's own recovery takes the members from a file; who of them knows most is elected",
		Warning: "only when the others are lost for good. Every survivor must be stopped before the first is started again",
	}
	s.Commands = onEach(d.up, func(observer.Member) string { return d.stopUnit() })
	s.Commands = append(s.Commands, onEach(d.up, func(observer.Member) string {
		return line("printf", `%s\n`, text) + " > " + file + " && chown --reference=" + file[:len(file)-len("/peers.json")] + " " + file
	})...)
	s.Commands = append(s.Commands, onEach(d.up, func(observer.Member) string { return d.startUnit() })...)
	d.add(s)
}

// gone is for a cluster of which nobody answers.
func (d *decision) gone() {
	d.bringBack("nobody answers, which a network may do as well as a fire: a disk that still turns knows more than any backup. Go on only when all are lost for good")
	ready, saved := d.furthest(false), d.furthest(true)
	newer := d.salvages()
	if d.Kind == "ucp" && len(ready)+len(saved) > 0 {
		d.controlPlane()
		return
	}
	d.disks(newer)
	saved = slices.DeleteFunc(saved, func(b Backup) bool { return newer[b.Node].ID != b.ID })
	switch {
	case len(saved) > 0 && (len(ready) == 0 || compare(saved[0].At, ready[0].At) > 0):
		b := saved[0]
		d.plan.Warnings = append(d.plan.Warnings, fmt.Sprintf("salvage %s at %s is further than every backup: it is restored", b.ID, b.At))
		d.restore(b, "it is the furthest that there is: what a survivor had when the quorum was lost")
		d.afterRestore()
	case len(ready) > 0:
		d.verified(ready)
		d.restore(ready[0], "nobody is left who knows more")
		d.afterRestore()
	default:
		d.plan.Warnings = append(d.plan.Warnings, "there is no backup that could be restored: what is left is on the disks of "+names(d.down))
		d.add(Step{
			Do: DoLook, Title: "keep the disks, and look whether a backup lies elsewhere",
			Why:      "another prefix, another bucket, another name of the cluster; a copy of one member's data directory is enough to go on from",
			Commands: []Command{{Run: d.of("list")}},
		})
		d.plan.Again = true
	}
}

// disks saves what lies on the disks of those that do not serve: a member that is held
// for its backup is files. One that has lost its quorum may well run and serve nobody.
func (d *decision) disks(saved map[string]Backup) {
	var todo []observer.Member
	for _, m := range d.down {
		if _, ok := saved[m.ID]; !ok {
			todo = append(todo, m)
		}
	}
	if d.system.asked || len(todo) == 0 {
		return
	}
	d.salvage(todo, "of each whose disk can still be read, whether it runs or not: it may know more than any backup. Leave out those that are lost, and ask again when one was saved: what is restored may be another one then")
	last := &d.plan.Steps[len(d.plan.Steps)-1]
	last.Optional = true
	d.plan.Again = true
}

// verified proves the backup that is about to be restored, where nobody has.
func (d *decision) verified(ready []Backup) {
	if ready[0].Verified {
		return
	}
	s := Step{Do: DoVerify, Title: "read the backup back", Why: "nobody has read every byte of it yet", Commands: []Command{{Run: d.opens("verify", ready[0].ID, "--read-data")}}}
	if i := slices.IndexFunc(ready, func(b Backup) bool { return b.Verified }); i >= 0 {
		s.Why += "; should it fail, " + ready[i].ID + " at " + ready[i].At.String() + " is the newest that is verified"
	}
	d.add(s)
}

// restore brings a backup back, whoever is still there stopped before.
func (d *decision) restore(b Backup, why string) {
	s := Step{Do: DoRestore, Title: "restore " + b.ID, Why: why, Warning: d.lacks(b)}
	if b.Salvage {
		s.Warning = "it is a salvage: the newest writes may be missing in it"
	}
	stop := onEach(d.up, func(observer.Member) string { return d.stopUnit() })
	voters := slices.Concat(d.up, d.down)
	switch d.Kind {
	case "swarm":
		at := d.owner(b, voters)
		s.Why += "; on one machine that owns the old address of " + where(at)
		s.Warning += ". No old manager may be reachable from there: it dials them at once. Where the address is another machine's now, add it first: `ip addr add`"
		s.Commands = append(stop,
			on(at, d.stopUnit()), on(at, d.opens("restore", b.ID, "--overwrite-live")), on(at, d.startUnit()),
			on(at, line("docker", "swarm", "init", "--force-new-cluster", "--advertise-addr", address(at))))
		d.add(s)
		d.remove(at, slices.DeleteFunc(slices.Clone(voters), func(m observer.Member) bool { return m.ID == at.ID }))
		return
	case "consul", "nomad", "vault":
		s.Why += "; once, into a new cluster that has a leader"
		at := voters[0]
		s.Commands = append(stop, on(at, d.startUnit()), on(at, d.system.look(at)), on(at, d.opens("restore", b.ID)))
		s.Warning += ". Set the new servers up empty first, as many as there were; the tokens of the backup count afterwards"
		if len(d.up) > 0 {
			s.Warning += "; the survivors' data directories are moved away, not started from"
		}
	default:
		s.Why += "; on the machine of every " + d.system.member + ", or the one that takes its place: all stopped, all restored, then all started"
		stop = onEach(voters, func(observer.Member) string { return d.stopUnit() })
		s.Commands = append(stop, onEach(voters, func(observer.Member) string { return d.opens("restore", b.ID, "--overwrite-live") })...)
		s.Commands = append(s.Commands, onEach(voters, func(observer.Member) string { return d.startUnit() })...)
	}
	d.add(s)
}

// owner is the member that a backup was made of, where it is still known.
func (d *decision) owner(b Backup, all []observer.Member) observer.Member {
	if i := slices.IndexFunc(all, func(m observer.Member) bool { return m.ID == b.Node }); i >= 0 {
		return all[i]
	}
	return all[0]
}

// afterRestore is what follows a restore of the whole cluster.
func (d *decision) afterRestore() {
	if d.Kind == "swarm" {
		d.join("what is one manager now bears no loss")
	}
	d.after(d.Kind != "swarm")
}
