package recovery

import (
	"fmt"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/observer"
)

// Checks are what `eddy doctor` says of a cluster's members: how many there are and
// may fail, who leads, and whether the replica may be backed up now. held tells that
// it is stopped for its backup. Of a cluster that names nobody there is nothing to
// say.
func Checks(s observer.State, held bool) []check.Finding {
	q := observer.QuorumOf(s.Members)
	if q.Voters == 0 {
		return nil
	}
	out := append([]check.Finding{membersCheck(s, q)}, leaderCheck(s, q))
	return append(out, selfCheck(s, q, held))
}

const advice = "`eddy recover` prints what to do, in order"

func membersCheck(s observer.State, q observer.Quorum) check.Finding {
	word := systemOf(s.System).member
	f := check.Good("members", fmt.Sprintf("%d of %d %s reachable, %d must be", q.Reachable, q.Voters, plural(q.Voters, word), q.Needed))
	var down []observer.Member
	for _, m := range s.Members {
		if m.Voter && !m.Reachable {
			down = append(down, m)
		}
	}
	switch odd := OddWarning(q.Voters, word); {
	case q.Bears() < 0:
		f.Level, f.Hint = check.Fail, advice
		f.Said += ": the quorum is lost, nothing can be decided"
	case len(down) > 0:
		f.Level, f.Hint = check.Warn, "bring "+names(down)+" back before anything else: "+advice
		f.Said += ": " + bears(q.Bears()) + "; " + names(down) + verb(len(down), " does not answer", " do not answer")
	case odd != "":
		f.Level, f.Hint = check.Warn, odd
		f.Said += ": " + bears(q.Bears())
	case q.Voters == 1:
		f.Level, f.Hint = check.Warn, "one "+word+" bears no loss: three do"
		f.Said += ": " + bears(0)
	default:
		f.Said += ": " + bears(q.Bears())
	}
	return f
}

func leaderCheck(s observer.State, q observer.Quorum) check.Finding {
	const name = "leader"
	var leaders []observer.Member
	for _, m := range s.Members {
		if m.Leader && m.Reachable {
			leaders = append(leaders, m)
		}
	}
	switch {
	case len(leaders) > 1:
		return check.Finding{Name: name, Level: check.Fail, Said: names(leaders) + " say each that they lead: a split brain, where they both go on", Hint: "let nobody write; " + advice}
	case len(leaders) == 1:
		return check.Good(name, where(leaders[0])+" leads")
	case q.Bears() < 0:
		return check.Finding{Name: name, Level: check.Fail, Said: "nobody leads, and nobody can be elected", Hint: advice}
	}
	return check.Finding{Name: name, Level: check.Fail, Said: "nobody leads, though enough are there to elect one", Hint: "wait a minute, then look at the network between them: " + advice}
}

func selfCheck(s observer.State, q observer.Quorum, held bool) check.Finding {
	const name = "this member"
	m := s.Self()
	if m == nil {
		if !held {
			return check.Good(name, "whoever is asked for the dump; nothing is stopped for it")
		}
		return check.Finding{Name: name, Level: check.Warn, Said: "the replica is none of the members that it names", Hint: "look at `replica` in eddy.yaml: eddy runs on the machine of the member that it backs up"}
	}
	role := "it votes"
	switch {
	case m.Leader:
		role = "it leads"
	case !m.Voter:
		role = "it only listens"
	}
	said := where(*m) + ": " + role
	switch {
	case !held:
		return check.Good(name, said+"; nothing is stopped for its dump")
	case m.Leader:
		return check.Finding{Name: name, Level: check.Fail, Said: said + ": its stop for a backup would cost an election", Hint: "run eddy on a member that does not lead, or let another one lead"}
	case !q.MayStop(*m):
		return check.Finding{Name: name, Level: check.Fail, Said: said + ": it may not be stopped now, the quorum needs it", Hint: advice}
	}
	return check.Good(name, said+", and may be stopped now")
}

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
