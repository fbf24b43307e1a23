package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/recovery"
	"github.com/eddy-backup/eddy/observer"
)

// Every command of eddy that a plan of recovery prints is one that eddy takes, with
// members as --member reads them back.
func TestPlansNameWhatThereIs(t *testing.T) {
	now := time.Now()
	seen := map[string]bool{}
	for _, kind := range recoverKinds {
		for n := range 6 {
			for up := range n + 1 {
				for leaders := range 3 {
					var members []observer.Member
					for i := range n {
						members = append(members, observer.Member{ID: fmt.Sprint("m", i), Address: "10.0.0.1:1", Voter: i < 5, Reachable: i < up, Leader: i < leaders})
					}
					for _, b := range [][]recovery.Backup{nil, {{ID: "20261118T030000Z-auto-0a0a0a", Node: "m0", Made: now}}} {
						p := recovery.Decide(recovery.Situation{Kind: kind, Cluster: "borg", Members: members, Backups: b, Identity: "id", Eddy: []string{"eddy", "-c", "f", "--cluster", "borg"}, Now: now})
						for _, s := range p.Steps {
							for _, c := range s.Commands {
								if i := strings.Index(c.Run, "eddy "); i >= 0 {
									seen[c.Run[i:]] = true
								}
							}
						}
					}
				}
			}
		}
	}
	for run := range seen {
		words := strings.Fields(run)
		if err := tryWords(words[1:]); err != nil {
			t.Errorf("%s: %v", run, err)
		}
		var told []string
		for i, w := range words {
			if w == "--member" {
				told = append(told, words[i+1])
			}
		}
		if _, err := parseMembers(told); err != nil && !strings.Contains(run, "ID=ADDRESS --member ID=ADDRESS,down") {
			t.Errorf("%s: %v", run, err)
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d commands", len(seen))
	}
}
