package observer

import "testing"

// members makes n voters of which the first reachable answer, the first leads, and
// one learner.
func members(n, reachable int) []Member {
	out := []Member{{ID: "learner", Reachable: true}}
	for i := range n {
		out = append(out, Member{ID: string(rune('a' + i)), Voter: true, Reachable: i < reachable, Leader: i == 0 && reachable > n/2})
	}
	return out
}

// All clusters of up to seven voters: who may be stopped, and what they bear.
func TestQuorum(t *testing.T) {
	for n := 1; n <= 7; n++ {
		for up := 0; up <= n; up++ {
			m := members(n, up)
			q := QuorumOf(m)
			alive := up > n/2
			if q.Voters != n || q.Reachable != up || q.Needed != n/2+1 || (q.Leaders == 1) != alive || (q.Bears() >= 0) != alive {
				t.Errorf("%d of %d: %+v", up, n, q)
			}
			if got := q.MayStop(m[0]); got != alive {
				t.Errorf("%d of %d: a learner may be stopped: %t", up, n, got)
			}
			if up == 0 {
				continue
			}
			if got, want := q.MayStop(m[1]), up-1 > n/2; got != want {
				t.Errorf("%d of %d: a voter may be stopped: %t, want %t", up, n, got, want)
			}
			if up < n {
				if got := q.MayStop(m[n]); got != alive {
					t.Errorf("%d of %d: a voter that is gone: %t", up, n, got)
				}
			}
		}
	}
	if q := QuorumOf(nil); q != (Quorum{}) {
		t.Errorf("of nobody: %+v", q)
	}
}
