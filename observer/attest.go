package observer

import (
	"context"
	"fmt"
	"time"
)

// The verdicts on what a witness says of a position.
const (
	// Agrees: it has the same, and proves it.
	Agrees = "agrees"
	// Fork: it has another, and proves it by those whom we trust. Either the cluster
	// has two histories, or what we hold is not the cluster's.
	Fork = "fork"
	// Liar: it has another and cannot prove it. It is named, and counts for nothing.
	Liar = "liar"
	// Laggard: it has not come that far.
	Laggard = "laggard"
	// Pending: it has the same, but nothing stands upon it yet that proves the rest.
	Pending = "pending"
	// Pruned: it has it no longer.
	Pruned = "pruned"
	// Unreachable: it does not answer, or not as a member of a cluster does.
	Unreachable = "unreachable"
	// OtherChain: it is of another cluster, or of another history of the same name.
	OtherChain = "other chain"
)

// Attestation is what one witness said of a position. Hashes are in hex.
type Attestation struct {
	Witness   string    `json:"witness"` // URL without credentials
	Height    uint64    `json:"height"`
	BlockHash string    `json:"block_hash,omitempty"` // the witness's
	AppHash   string    `json:"app_hash,omitempty"`   // the witness's
	By        string    `json:"by,omitempty"`         // what told the app hash, see the kind's package
	Verdict   string    `json:"verdict"`
	Said      string    `json:"said,omitempty"` // why it does not agree
	When      time.Time `json:"when"`
}

// Settled tells that asking again would change nothing.
func (a Attestation) Settled() bool { return a.Verdict == Agrees || a.Verdict == Fork }

// Evidence is what the witnesses said, each by itself.
type Evidence struct {
	// Trust is what a proof must lead back to.
	Trust string
	// NotPossible says why nobody could be asked; "" where they were.
	NotPossible string
	// Refuted says why the dump is not of the history that is trusted, whatever the
	// witnesses say; "": nothing speaks against it.
	Refuted string
	Of      []Attestation
}

// Count is how many witnesses have this verdict.
func (e Evidence) Count(verdict string) (n int) {
	for _, a := range e.Of {
		if a.Verdict == verdict {
			n++
		}
	}
	return n
}

// Grade is the evidence in a word: "n of m", "pending" where nobody agrees and
// time may cure that, "not possible".
func (e Evidence) Grade() string {
	n := e.Count(Agrees)
	switch {
	case e.NotPossible != "" || len(e.Of) == 0:
		return "not possible"
	case n == 0 && e.Count(Pending)+e.Count(Laggard) > 0:
		return "pending"
	default:
		return fmt.Sprintf("%d of %d", n, len(e.Of))
	}
}

// Attester is a replica whose position other members can be asked about.
type Attester interface {
	// Attest asks every witness by itself whether the cluster's history has p as the
	// dump has it, until one agrees and none is pending, for at most wait; with wait
	// 0 each is asked once. Who was Settled in before is not asked again. It needs no
	// replica, changes none, and may be called at any time. What a witness says is no
	// error.
	Attest(ctx context.Context, p Position, before Evidence, wait time.Duration) (Evidence, error)
}
