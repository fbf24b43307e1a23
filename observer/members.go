package observer

import "slices"

// Member is one server of a cluster that keeps its state by a quorum.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
	Address string `json:"address,omitempty"`
	// Voter: it counts for the quorum. Others listen: a learner, an observer, a
	// nonvoter, a worker.
	Voter     bool `json:"voter"`
	Leader    bool `json:"leader,omitempty"`
	Reachable bool `json:"reachable"`
	Self      bool `json:"self,omitempty"` // the replica that is backed up
}

// Quorum is what the members of a cluster can decide.
type Quorum struct {
	Voters    int `json:"voters"`
	Reachable int `json:"reachable"` // of the voters
	Leaders   int `json:"leaders"`
	Needed    int `json:"needed"` // voters that must be reachable
}

// QuorumOf counts members. Of nobody it is the zero value.
func QuorumOf(members []Member) (q Quorum) {
	for _, m := range members {
		if m.Leader {
			q.Leaders++
		}
		if !m.Voter {
			continue
		}
		q.Voters++
		if m.Reachable {
			q.Reachable++
		}
	}
	if q.Voters > 0 {
		q.Needed = q.Voters/2 + 1
	}
	return q
}

// Bears is how many more voters may fail; below zero the quorum is lost.
func (q Quorum) Bears() int { return q.Reachable - q.Needed }

// MayStop tells whether the cluster goes on deciding while the member stands still.
// A voter that is not reachable counts for nothing already.
func (q Quorum) MayStop(m Member) bool {
	if !m.Voter || !m.Reachable {
		return q.Bears() >= 0
	}
	return q.Bears() >= 1
}

// Self is the replica among the members; nil where it is none of them.
func (s State) Self() *Member {
	i := slices.IndexFunc(s.Members, func(m Member) bool { return m.Self })
	if i < 0 {
		return nil
	}
	return &s.Members[i]
}
