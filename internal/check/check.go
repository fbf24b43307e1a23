// Package check is what somebody found who looked at one thing that a backup
// needs: a name, a verdict, what was seen, and what to do about it.
//
// It is a leaf: whoever can look at something (the store, the node, its manager,
// the disk) returns findings, `eddy doctor` collects and prints them. It refuses
// to know what is looked at. Its invariant: a finding that is not OK says what to
// do.
package check

import "context"

// Level is a verdict.
type Level string

// The verdicts, best first.
const (
	OK   Level = "OK"   // as it should be
	Warn Level = "WARN" // a backup works; something is weaker or dearer than it need be
	Fail Level = "FAIL" // a backup would fail, could not be restored, or what eddy promises does not hold
)

// Finding is what was seen of one thing.
type Finding struct {
	Name  string `json:"name"`           // of what was looked at, a few words
	Level Level  `json:"level"`          // the verdict
	Said  string `json:"said"`           // what was seen: one line, lower case, no full stop
	Hint  string `json:"hint,omitempty"` // what to do; "" only where Level is OK
}

// Checker is what can look at itself before a backup depends on it. A control
// that implements it answers: may I stop and start this node, will its manager
// leave it the time to stop, would anything start it while it is held.
type Checker interface {
	// Checks looks, and changes nothing: it stops, starts and writes nothing. What
	// cannot be looked at is a finding as well. It may be called at any time, also
	// while a backup runs.
	Checks(ctx context.Context) []Finding
}

// Good is a finding of something that is as it should be.
func Good(name, said string) Finding { return Finding{Name: name, Level: OK, Said: said} }

// Worst is the worst verdict of all; OK where there are none.
func Worst(all []Finding) Level {
	worst := OK
	for _, f := range all {
		if f.Level == Fail {
			return Fail
		}
		if f.Level == Warn {
			worst = Warn
		}
	}
	return worst
}
