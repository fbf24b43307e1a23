package recovery

import (
	"fmt"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/observer"
)

// What doctor says of each cluster agrees with what may be done to it.
func TestChecksOfAllClusters(t *testing.T) {
	for n := 1; n <= 7; n++ {
		for up := 0; up <= n; up++ {
			for leaders := 0; leaders <= min(2, n); leaders++ {
				for self := range n {
					for _, held := range []bool{true, false} {
						s := observer.State{System: "swarm", Members: cluster(n, up, leaders)}
						for i := range s.Members {
							s.Members[i].Self = i == self
						}
						q, m := observer.QuorumOf(s.Members), s.Members[self]
						got := Checks(s, held)
						wrong := func(what string) {
							t.Errorf("%d of %d, %d lead, %d is asked, held %t: %s\n%+v", up, n, leaders, self, held, what, got)
						}
						if len(got) != 3 {
							wrong("not three rows")
							continue
						}
						for _, f := range got {
							if f.Level != check.OK && f.Hint == "" || f.Said == "" || strings.HasSuffix(f.Said, ".") {
								wrong(f.Name + " does not say what to do")
							}
						}
						if (got[0].Level == check.Fail) != (q.Bears() < 0) {
							wrong("members")
						}
						if got[0].Level == check.OK && (up < n || n%2 == 0 || n == 1) {
							wrong("members: no warning")
						}
						if q.Bears() >= 0 && !strings.Contains(got[0].Said, bears(q.Bears())) {
							wrong("members: how many may fail")
						}
						if leads := min(up, leaders); (got[1].Level == check.OK) != (leads == 1) {
							wrong("leader")
						}
						if may := q.MayStop(m) && !m.Leader; (got[2].Level == check.OK) != (may || !held) {
							wrong("may it be stopped")
						}
					}
				}
			}
		}
	}
	if got := Checks(observer.State{}, true); got != nil {
		t.Error(got)
	}
	s := observer.State{System: "zookeeper", Members: append(cluster(3, 3, 0)[1:], observer.Member{ID: "9", Self: true, Reachable: true})}
	if got := Checks(s, true)[2]; got.Level != check.OK || !strings.Contains(got.Said, "only listens") {
		t.Error(got)
	}
	if got := fmt.Sprint(Checks(observer.State{System: "consul", Members: cluster(3, 3, 1)}, true)); !strings.Contains(got, "3 servers") {
		t.Error(got)
	}
}
