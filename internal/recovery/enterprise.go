package recovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/observer"
)

// swarmFirst is the step before UCP and DTR: what they run on.
func (d *decision) swarmFirst(command string) {
	d.add(Step{
		Do: DoLook, Title: "the Swarm first", Why: "the order is Swarm, UCP, DTR: each stands on the one before. Where this does not list the nodes, recover the Swarm by its own plan, which saves the managers before it gives any up",
		Commands: []Command{{Run: "docker node ls || " + command}},
	})
}

func (d *decision) image(product string) string {
	if d.Image != "" {
		return d.Image
	}
	return "docker/" + product + ":VERSION"
}

// controlPlane is for UCP whose managers have lost their quorum, the Swarm's.
func (d *decision) controlPlane() {
	sw := *d
	sw.Kind, sw.Eddy = "swarm", []string{"eddy"}
	d.swarmFirst(sw.again())
	at := d.up0()
	ready := d.furthest(false)
	if len(ready) == 0 {
		d.plan.Warnings = append(d.plan.Warnings, "there is no backup of UCP: what the remaining manager has is dumped when the Swarm is one manager; services and settings may be missing in it")
		d.add(Step{
			Do: DoSalvage, Title: "dump UCP from the manager that is left", Why: "the Swarm of one manager has what that one knew",
			Commands: []Command{on(at, d.eddy("backup", "--salvage", "--label", "survivor"))},
		})
		d.add(Step{
			Do: DoLook, Title: "then remove UCP, and restore that dump", Why: "its id is named when eddy is asked again",
			Commands: []Command{{Run: d.of("list")}, {Run: d.again()}},
		})
		if b := d.furthest(true); len(b) == 0 {
			d.plan.Again = true
			return
		}
		ready = d.furthest(true)
		d.plan.Steps = d.plan.Steps[:len(d.plan.Steps)-2]
	}
	d.restoreUCP(at, ready)
}

// restoreUCP removes what is installed and brings a dump back.
func (d *decision) restoreUCP(at observer.Member, ready []Backup) {
	if !ready[0].Salvage {
		d.verified(ready)
	}
	b := ready[0]
	d.add(Step{
		Do: DoClear, Title: "remove UCP from the Swarm", Why: "a restore wants none; on new machines there is none",
		Warning:  "it is removed from every node; the backup that is restored next is what is left of it",
		Commands: []Command{on(at, line("docker", "run", "--rm", "-it", "--name", "ucp", "-v", "/var/run/docker.sock:/var/run/docker.sock", d.image("ucp"), "uninstall-ucp", "--interactive"))},
	})
	d.add(Step{
		Do: DoRestore, Title: "restore " + b.ID, Why: "on one manager, with the version that made it", Warning: d.lacks(b),
		Commands: []Command{on(at, d.opens("restore", b.ID))},
	})
	if len(d.down) > 0 {
		d.remove(at, d.down)
	}
	d.join("what is one manager now bears no loss")
	d.after(true)
}

// registry is for DTR, whose replicas keep a database by majority.
func (d *decision) registry() {
	run := func(verb string, own ...string) string {
		argv := append([]string{"docker", "run", "-it", "--rm", d.image("dtr"), verb}, own...)
		for i := 0; i < len(d.Args); i++ {
			if d.Args[i] == "--existing-replica-id" { // named by whoever calls
				i++
				continue
			}
			if !strings.HasPrefix(d.Args[i], "--existing-replica-id=") {
				argv = append(argv, d.Args[i])
			}
		}
		return line(argv...)
	}
	switch d.plan.State {
	case Unknown:
		d.unknown()
		return
	case Split:
		d.split()
		return
	case Healthy, Tight:
		if len(d.down) == 0 {
			d.backup()
			return
		}
	}
	d.swarmFirst("eddy recover --kind swarm")
	ids := make([]string, len(d.down))
	for i, m := range d.down {
		ids[i] = m.ID
	}
	switch d.plan.State {
	case Gone:
		d.bringBack("a replica whose volumes are there can be repaired, which loses less than any backup")
		if d.restorable() {
			ready := d.furthest(false)
			d.verified(ready)
			d.add(Step{
				Do: DoRestore, Title: "restore " + ready[0].ID, Why: "no replica is left; into the same UCP, with the version that made it",
				Warning:  d.lacks(ready[0]) + ". A dump has no images: they are where the registry's storage is, and no users: those are UCP's",
				Commands: []Command{{Run: d.opens("restore", ready[0].ID)}},
			})
		}
	case Lost:
		at := d.up[0]
		d.bringBack("with more than half of them nothing need be repaired")
		d.salvage(d.up[:1], "where it still gives a dump; where it does not, go on")
		d.add(Step{
			Do: DoForce, Title: "repair from " + at.ID, Why: "its volumes are there: DTR becomes this one replica. Where it fails, try another one's id; a backup is the last resort",
			Warning:  "all other replicas are given up",
			Commands: []Command{{Run: run("emergency-repair", "--existing-replica-id", at.ID)}},
		})
		d.joinReplicas(run, at.ID)
	default:
		at := d.up[0].ID
		d.backup()
		d.bringBack("one that comes back need not be replaced")
		d.add(Step{
			Do: DoReplace, Title: "remove " + strings.Join(ids, ", "), Why: "those that do not come back, before any new one joins",
			Warning:  "split brain: a replica that joins while the dead ones are listed may come to lie in the smaller part of a cut network, which then is a majority as well; both parts accept writes, and drift apart",
			Commands: []Command{{Run: run("remove", "--existing-replica-id", at, "--replica-ids", strings.Join(ids, ","))}},
		})
		d.joinReplicas(run, at)
	}
	if d.plan.State != Gone {
		d.add(Step{Do: DoBackup, Title: "make a new backup", Commands: []Command{{Run: d.of("backup", "--label", "after-recovery")}}})
	}
}

func (d *decision) joinReplicas(run func(string, ...string) string, id string) {
	d.add(Step{
		Do: DoJoin, Title: fmt.Sprintf("join replicas until there are %d", odd(d.q.Voters)), Why: "one at a time; it asks for what it needs, --ucp-node says where",
		Commands: []Command{{Run: run("join", "--existing-replica-id", id)}},
	})
}

// restorable tells whether there is a backup, and says it where there is none.
func (d *decision) restorable() bool {
	if len(d.furthest(false)) > 0 {
		return true
	}
	d.plan.Warnings = append(d.plan.Warnings, "there is no backup that could be restored")
	d.plan.Again = true
	return false
}

// program is for a system that prints its dump, of which nothing else is known.
func (d *decision) program() {
	d.plan.Said = "a program that prints its dump: who its members are is not known"
	ready := d.furthest(false)
	if len(ready) == 0 {
		d.plan.Warnings = append(d.plan.Warnings, "there is no backup that could be restored")
		d.add(Step{Do: DoBackup, Title: "make a backup", Commands: []Command{{Run: d.of("backup")}}})
		return
	}
	d.add(Step{Do: DoLook, Title: "look whether it lives", Commands: []Command{{Run: d.of("doctor")}}})
	d.verified(ready)
	d.add(Step{
		Do: DoSalvage, Title: "save what is there", Why: "before it is replaced; skip it where nothing answers",
		Commands: []Command{{Run: d.of("backup", "--label", "before-restore")}},
	})
	d.add(Step{Do: DoRestore, Title: "restore " + ready[0].ID, Warning: d.lacks(ready[0]), Commands: []Command{{Run: d.opens("restore", ready[0].ID)}}})
}

// chain is for a CometBFT chain: its members decide by voting power, and its
// procedures are pages of their own.
func (d *decision) chain() {
	d.plan.State, d.plan.Said = Unknown, "a chain: its validators decide by voting power, and every node has all blocks"
	ready := d.furthest(false)
	d.add(Step{
		Do: DoStart, Title: "start the node, and look", Why: "where one node of the chain still has the blocks, start that one and let the others follow it: nothing is lost then",
		Commands: []Command{{Run: d.of("status")}, {Run: d.eddy("doctor")}},
	})
	if len(ready) == 0 {
		d.plan.Warnings = append(d.plan.Warnings, "there is no backup that could be restored: let the node synchronise from others")
		return
	}
	b := ready[0]
	if i := slices.IndexFunc(ready, func(b Backup) bool { return b.Verified }); i > 0 {
		d.plan.Warnings = append(d.plan.Warnings, ready[i].ID+" is the newest that is verified")
	}
	d.verified(ready)
	d.add(Step{
		Do: DoRestore, Title: "restore this node's data", Why: "keys, configuration and sign state stay; what was there is kept, and the node follows the chain from there (docs/restore.md)",
		Commands: []Command{{Run: d.eddy("restore", b.ID)}},
	})
	d.add(Step{
		Do: DoRestore, Optional: true, Title: "or the whole chain, where no node has its blocks any more", Why: "docs/runbooks/whole-cluster.md and docs/runbooks/chain-rollback.md, on every node, in their order",
		Warning:  d.lacks(b) + ", on the whole chain; validators that sign heights again that they have signed are punished",
		Commands: []Command{{Run: d.eddy("restore", b.ID, "--rollback-chain", fmt.Sprint(b.At.Index))}},
	})
}
