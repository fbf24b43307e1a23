package recovery

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// Backup is one that the store has.
type Backup struct {
	ID       string
	Node     string // id of the member that it was made of
	At       observer.Position
	Made     time.Time
	Salvage  bool // of a member that stood alone
	Verified bool // every byte was read back, or it was brought to life
	Failed   bool // a proof of it failed: it is not restored
}

// Situation is what is known of a cluster. Nothing in it need be complete.
type Situation struct {
	Kind    string // of the replica; "ucp" and "dtr" beside
	Cluster string
	Members []observer.Member
	Backups []Backup // in any order
	// Eddy are the words that a command of eddy begins with here, flags included.
	Eddy []string
	// Identity is the file that opens what is encrypted; "": EDDY_IDENTITY_FILE names
	// it.
	Identity string
	// Unit is the service that is a member; "": the one that its packages bring.
	Unit string
	// Image and Args are those of UCP and DTR.
	Image string
	Args  []string
	Now   time.Time
}

// The words for what a step does.
const (
	DoBackup  = "backup"     // make a backup
	DoLook    = "look"       // change nothing
	DoStart   = "bring back" // start what is down
	DoReplace = "replace"    // take a dead member out and another one in
	DoSalvage = "salvage"    // save what a member has
	DoVerify  = "verify"     // prove a backup
	DoForce   = "force"      // make the survivors the whole cluster
	DoRemove  = "remove"     // strike dead members off
	DoClear   = "clear"      // remove what a restore would meet
	DoRestore = "restore"    // bring a backup back
	DoJoin    = "join"       // members that are new, until their number is odd
	DoLock    = "lock"       // lock the managers' keys again
	DoSpread  = "rebalance"  // spread the tasks
)

// Command is a line for a shell.
type Command struct {
	On  string `json:"on,omitempty"` // the member on whose machine; "": here
	Run string `json:"run"`
}

// Step is one thing to do.
type Step struct {
	Do       string    `json:"do"`
	Title    string    `json:"title"`
	Why      string    `json:"why,omitempty"`
	Commands []Command `json:"commands"`
	Warning  string    `json:"warning,omitempty"`
	Optional bool      `json:"optional,omitempty"`
}

// The words for how a cluster is.
const (
	Healthy    = "healthy"     // one member may be stopped
	Tight      = "tight"       // it decides, and bears no loss
	Leaderless = "leaderless"  // enough members for a quorum, and nobody leads
	Split      = "split"       // more than one leads
	Lost       = "quorum lost" // some are there, and cannot decide
	Gone       = "gone"        // nobody is there
	Unknown    = "unknown"     // nothing is known of its members
)

// Plan is what to do, in order.
type Plan struct {
	State    string          `json:"state"`
	Said     string          `json:"said"`
	Quorum   observer.Quorum `json:"quorum"`
	Steps    []Step          `json:"steps"`
	Warnings []string        `json:"warnings,omitempty"`
	// Again: the steps end where more must be known, or what they find may change those
	// that follow. After them the cluster is to be looked at once more.
	Again bool `json:"again,omitempty"`
}

// Decide makes the plan.
func Decide(s Situation) Plan {
	if len(s.Eddy) == 0 {
		s.Eddy = []string{"eddy"}
	}
	d := decision{Situation: s, system: systemOf(s.Kind), q: observer.QuorumOf(s.Members)}
	for _, m := range s.Members {
		switch {
		case !m.Voter:
			d.listeners = append(d.listeners, m)
		case m.Reachable:
			d.up = append(d.up, m)
			if m.Leader {
				d.leaders = append(d.leaders, m)
			}
		default:
			d.down = append(d.down, m)
		}
	}
	// What somebody who is gone said last makes nobody a leader.
	d.q.Leaders = len(d.leaders)
	d.plan.Quorum = d.q
	d.plan.State = d.state()
	d.say()
	switch {
	case s.Kind == "cometbft":
		d.chain()
	case s.Kind == "command":
		d.program()
	case s.Kind == "dtr":
		d.registry()
	default:
		d.raft()
	}
	return d.plan
}

// decision is a plan in the making.
type decision struct {
	Situation
	system                       system
	q                            observer.Quorum
	up, down, leaders, listeners []observer.Member
	plan                         Plan
}

func (d *decision) state() string {
	switch {
	case d.q.Voters == 0:
		return Unknown
	case d.q.Leaders > 1:
		return Split
	case d.q.Reachable == 0:
		return Gone
	case d.q.Bears() < 0:
		return Lost
	case d.q.Leaders == 0 && d.Kind != "dtr": // its replicas do not tell
		return Leaderless
	case d.q.Bears() == 0:
		return Tight
	}
	return Healthy
}

// say describes the state, and warns of a number of voters that is no good.
func (d *decision) say() {
	q, p := d.q, &d.plan
	if d.Kind == "cometbft" || d.Kind == "command" {
		return
	}
	if q.Voters == 0 {
		p.Said = "nothing is known of its members"
		return
	}
	p.Said = fmt.Sprintf("%d of %d %s reachable, %d must be", q.Reachable, q.Voters, plural(q.Voters, d.system.member), q.Needed)
	switch p.State {
	case Healthy, Tight:
		p.Said += ": " + bears(q.Bears())
		if len(d.leaders) == 1 {
			p.Said += "; " + name(d.leaders[0]) + " leads"
		}
	case Leaderless:
		p.Said += ", and nobody leads"
	case Split:
		p.Said += ", and " + names(d.leaders) + " say each that they lead"
	case Lost:
		p.Said += ": nothing can be decided"
	}
	if w := OddWarning(q.Voters, d.system.member); w != "" {
		p.Warnings = append(p.Warnings, w)
	}
}

// bears says how many more voters may fail.
func bears(n int) string {
	if n == 0 {
		return "none may fail"
	}
	return fmt.Sprintf("%d more may fail", n)
}

// OddWarning is what to say of a number of voters that is even, "" of an odd one.
func OddWarning(voters int, member string) string {
	switch {
	case voters == 2:
		return "two " + member + "s bear no loss, as one does: without either of them nothing is decided; make them three"
	case voters > 0 && voters%2 == 0:
		return fmt.Sprintf("%d %ss bear no more losses than %d: make them %d, or %d", voters, member, voters-1, voters-1, voters+1)
	}
	return ""
}

func (d *decision) add(s Step) { d.plan.Steps = append(d.plan.Steps, s) }

// raft is for systems whose members agree by majority.
func (d *decision) raft() {
	switch d.plan.State {
	case Unknown:
		d.unknown()
	case Healthy:
		d.backup()
		d.bringBack("what is missing now is what it will not bear later")
		d.replace()
		d.look(d.q.Voters)
	case Tight:
		d.bringBack("stop nothing until they are back: with one less nothing is decided")
		if d.system.asked {
			d.dump()
		}
		d.replace()
		d.grow()
		d.look(max(3, d.q.Voters))
		d.plan.Again = !d.system.asked
	case Leaderless:
		d.wait()
	case Split:
		d.split()
	case Lost:
		d.lost()
	case Gone:
		d.gone()
	}
}

// furthest are the backups that may be restored, salvages or others, the furthest
// first.
func (d *decision) furthest(salvage bool) []Backup {
	var out []Backup
	for _, b := range d.Backups {
		if b.Salvage == salvage && !b.Failed {
			out = append(out, b)
		}
	}
	slices.SortStableFunc(out, func(a, b Backup) int { return -compare(a.At, b.At) })
	return out
}

// compare orders two positions of one history by the system's own rule: the term
// first, then the index.
func compare(a, b observer.Position) int {
	switch {
	case a.Epoch != b.Epoch && a.Epoch < b.Epoch, a.Epoch == b.Epoch && a.Index < b.Index:
		return -1
	case a.Epoch == b.Epoch && a.Index == b.Index:
		return 0
	}
	return 1
}

// salvages are those of now: the newest of each survivor, not made before the last
// backup. One that is older tells of another trouble. Ids tell seconds: both may have
// been begun in one.
func (d *decision) salvages() map[string]Backup {
	var since time.Time
	for _, b := range d.Backups {
		if !b.Salvage && !b.Failed && b.Made.After(since) {
			since = b.Made
		}
	}
	out := map[string]Backup{}
	for _, b := range d.Backups {
		if b.Salvage && !b.Failed && !b.Made.Before(since) && b.Made.After(out[b.Node].Made) {
			out[b.Node] = b
		}
	}
	return out
}

// name is what people call a member.
func name(m observer.Member) string {
	if m.Name != "" {
		return m.Name
	}
	return m.ID
}

func names(all []observer.Member) string {
	words := make([]string, len(all))
	for i, m := range all {
		words[i] = name(m)
	}
	if n := len(words); n > 1 {
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
	return strings.Join(words, "")
}

// where tells a member from all others: its name, its id, its address.
func where(m observer.Member) string {
	s := m.ID
	if m.Name != "" && m.Name != m.ID {
		s = m.Name + ", " + m.ID
	}
	if m.Address != "" {
		s += ", " + m.Address
	}
	return s
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// ago is how old something is, for people.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", max(0, int(d.Minutes())))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
