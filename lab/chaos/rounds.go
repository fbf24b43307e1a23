package chaos

import (
	"syscall"
	"time"
)

// round is one way to disturb one verb.
type round struct {
	name  string
	on    int      // of world.setups
	verb  []string // nil: backup
	fault fault
	// orphaned: nobody is left who could start the node before the next eddy does.
	orphaned bool
	dead     bool // the bucket is, from the stop on
	swap     bool // verb is of the live data
	past     bool // the cluster has backups of earlier days, which retention is about
}

const (
	supervised = 0
	plain      = 1 // exec control
)

// where is the control of the round's replica.
func (r round) where() string { return [...]string{"supervise", "exec"}[r.on] }

// rounds are all of them, in the order in which they are taken. The first five are
// what continuous integration has time for.
func rounds() []round {
	sending := state("uploading")
	restore := []string{"restore", "latest"}
	return []round{
		{name: "killed in the hold", fault: kill(held(), itself)},
		{name: "killed at 50 %", fault: kill(sentPercent(50), itself)},
		{name: "connections cut", fault: onWire(sentPercent(30), striking/2, cut)},
		{name: "workdir full", fault: full(sentPercent(20))},
		{name: "answer of Complete lost", fault: lies(sending, striking, func() lie { return on(opComplete, 1, lost) })},

		{name: "killed at gate", fault: kill(phase("gate"), itself)},
		{name: "killed when prepared", fault: kill(state("prepared"), itself)},
		{name: "killed before the stop", fault: kill(state("holding"), itself)},
		{name: "killed when released", fault: kill(state("released"), itself)},
		{name: "killed when sealed", fault: kill(state("sealed"), itself)},
		{name: "killed as uploading begins", fault: kill(sending, itself)},
		{name: "killed at 10 %", fault: kill(sentPercent(10), itself)},
		{name: "killed at 90 %", fault: kill(sentPercent(90), itself)},
		{name: "killed when uploaded", fault: kill(state("uploaded"), itself)},
		{name: "killed when committed", fault: kill(state("committed"), itself)},
		{name: "killed in the hold", on: plain, fault: kill(held(), itself)},
		{name: "guard killed in the hold", on: plain, fault: kill(held(), guard)},
		{name: "eddy and guard killed in the hold", on: plain, orphaned: true, fault: kill(held(), itself|guard)},
		{name: "frozen in the hold", fault: freeze(held(), 0)},
		{name: "frozen in the hold", on: plain, fault: freeze(held(), 0)},
		{name: "bucket refuses from the stop on", dead: true, fault: deadBucket(cut)},
		{name: "bucket silent from the stop on", dead: true, fault: deadBucket(toxic("timeout", map[string]int{"timeout": 0}))},
		{name: "bucket silent from the stop on", on: plain, dead: true, fault: deadBucket(toxic("timeout", map[string]int{"timeout": 0}))},

		{name: "SIGTERM in the hold", fault: term(held())},
		{name: "SIGTERM at 60 %", fault: term(sentPercent(60))},
		{name: "frozen at 40 %", fault: freeze(sentPercent(40), striking)},
		{name: "killed at 30 %, and again at 30 %", fault: twice(sentPercent(30), sentPercent(30))},
		{name: "killed sometime", fault: killSometime},
		{name: "killed sometime", on: plain, fault: killSometime},
		{name: "a second eddy", fault: atOnce(sending)},

		{name: "stalled", fault: onWire(sentPercent(30), striking, toxic("timeout", map[string]int{"timeout": 0}))},
		{name: "slow wire", fault: onWire(sentPercent(10), striking, toxic("bandwidth", map[string]int{"rate": 1000}))},
		{name: "connections reset", fault: onWire(sentPercent(20), striking, toxic("reset_peer", map[string]int{"timeout": 50}))},
		{name: "connections end after 3 MB", fault: onWire(sending, striking, toxic("limit_data", map[string]int{"bytes": 3e6}))},
		{name: "late answers", fault: onWire(state("gated"), striking, toxic("latency", map[string]int{"latency": 300, "jitter": 200}))},

		{name: "503 SlowDown", fault: lies(state("gated"), 2*striking, func() lie { return every(3, refuse(503, "SlowDown")) })},
		{name: "500 for parts", fault: lies(sending, striking, func() lie { return on(opPart, 5, refuse(500, "InternalError")) })},
		{name: "403 half-way", fault: lies(sentPercent(50), striking, func() lie { return refuse(403, "ExpiredToken") })},
		{name: "Complete refused below a 200", fault: lies(sending, striking, func() lie { return on(opComplete, 1, refuse(200, "InternalError")) })},
		{name: "Complete done, an error below a 200", fault: lies(sending, striking, func() lie { return on(opComplete, 1, doneBut("InternalError")) })},
		{name: "Complete with a wrong ETag", fault: lies(sending, striking, func() lie { return on(opComplete, 1, wrongETag) })},
		{name: "part with a wrong ETag", fault: lies(sending, striking, func() lie { return on(opPart, 1, wrongETag) })},
		{name: "part acknowledged and lost", fault: lies(sending, striking, func() lie { return on(opPart, 1, swallowed) })},
		{name: "uploads aborted by the bucket", fault: lifecycle(sentPercent(50))},
		{name: "answer for the manifest lost", fault: lies(sending, 2*striking, func() lie { return keyed("manifest.json", on(opPut, 1, lost)) })},
		{name: "answer for latest lost", fault: lies(sending, 2*striking, func() lie { return keyed("latest.json", on(opPut, 1, lost)) })},

		{name: "workdir full in the hold", fault: full(state("holding"))},
		{name: "home full", fault: badDisk(homeDisk, phase("gate"), failing(syscall.ENOSPC, 0, 1<<16))},
		{name: "stage cannot be read", fault: badDisk(homeDisk, state("sealed"), failing(0, syscall.EIO, 64<<20))},
		{name: "slow disk, killed sometime", fault: both(badDisk(homeDisk, state("sealed"), slow), killSometime)},

		{name: "killed", verb: restore, fault: kill(extracted(40e6), itself)},
		{name: "target full", verb: restore, fault: badDisk(intoDisk, phase("found"), failing(syscall.ENOSPC, 0, 80<<20))},
		{name: "answers cut short", verb: restore, fault: lies(phase("found"), striking, func() lie { return on(opGet, 3, truncated) })},
		{name: "a flipped bit", verb: restore, fault: lies(phase("found"), striking, func() lie { return on(opGet, 1, flipped) })},
		{name: "killed", verb: []string{"delete"}, fault: kill(after(30*time.Millisecond), itself)},
		{name: "503 SlowDown", verb: expiring, past: true, fault: lies(after(0), striking, func() lie { return every(2, refuse(503, "SlowDown")) })},

		{name: "killed as it extracts", swap: true, verb: inPlace, fault: kill(beside(50e6), itself)},
		{name: "connections cut", swap: true, verb: inPlace, fault: onWire(beside(30e6), striking/2, cut)},
		{name: "disk full beside", swap: true, verb: inPlace, fault: badDisk(homeDisk, phase("found"), failing(syscall.ENOSPC, 0, 80<<20))},
		{name: "killed as it stops the node", swap: true, orphaned: true, verb: inPlace, fault: kill(swapping("stopping"), itself)},
		{name: "killed at a rename", swap: true, orphaned: true, verb: inPlace, fault: atRename(0)},
		{name: "a rename fails", swap: true, verb: inPlace, fault: atRename(syscall.EIO)},
		{name: "killed before the start", swap: true, orphaned: true, verb: inPlace, fault: kill(toStart(), itself)},
		{name: "SIGTERM as it moves", swap: true, verb: inPlace, fault: term(swapping("moving"))},
		{name: "killed at a rename", swap: true, orphaned: true, verb: undo, fault: atRename(0)},
		{name: "a rename fails", swap: true, verb: undo, fault: atRename(syscall.EIO)},
		{name: "killed as it stops the node", on: plain, swap: true, orphaned: true, verb: inPlace, fault: kill(swapping("stopping"), itself)},
		{name: "killed as it moves", on: plain, swap: true, orphaned: true, verb: inPlace, fault: killMoving},
		{name: "killed before the start", on: plain, swap: true, orphaned: true, verb: inPlace, fault: kill(toStart(), itself)},
		{name: "killed as it stops the node", on: plain, swap: true, orphaned: true, verb: undo, fault: kill(swapping("stopping"), itself)},
		{name: "killed as it moves", on: plain, swap: true, orphaned: true, verb: undo, fault: killMoving},
		{name: "killed before the start", on: plain, swap: true, orphaned: true, verb: undo, fault: kill(toStart(), itself)},

		{name: "second ctrl-C in the hold", fault: interruptTwice(held())},
		{name: "second ctrl-C in the hold", on: plain, fault: interruptTwice(held())},
		{name: "second ctrl-C at 60 %", fault: interruptTwice(sentPercent(60))},
		{name: "SIGHUP in the hold", verb: daemon, fault: hangUp(held())},
		{name: "SIGHUP in the hold", on: plain, verb: daemon, fault: hangUp(held())},
		{name: "SIGHUP at 60 %", verb: daemon, fault: hangUp(sentPercent(60))},
		{name: "killed in the hold", verb: daemon, fault: kill(held(), itself)},
		{name: "eddy and guard killed in the hold", on: plain, verb: daemon, orphaned: true, fault: kill(held(), itself|guard)},
		{name: "killed at 60 %", verb: daemon, fault: kill(sentPercent(60), itself)},
		{name: "killed as it deletes", verb: daemon, past: true, fault: killDeleting},
		{name: "killed as it deletes", verb: expiring, past: true, fault: killDeleting},
		{name: "killed as it deletes, another goes on", verb: expiring, past: true, fault: killOneOfTwo},
		{name: "frozen as it deletes, another goes on", verb: expiring, past: true, fault: freezeOneOfTwo},
		{name: "killed at 50 %, another expires", past: true, fault: killBesideExpire},
	}
}
