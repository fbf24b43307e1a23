package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// Attest implements observer.Attester: the other servers are asked for the digests
// that they keep of the tree (`hash`), one of each 128 transactions. The dump's log
// has the digest of each. Same zxid and same digest: the same history up to there.
func (r *Replica) Attest(ctx context.Context, p observer.Position, before observer.Evidence, _ time.Duration) (observer.Evidence, error) {
	e := observer.Evidence{}
	if len(p.Marks) == 0 {
		e.NotPossible = "the dump has no digest of a transaction that servers keep one of"
		return e, ctx.Err()
	}
	id, err := readMyID(r.o.DataDir)
	if err != nil {
		id = "" // it says nothing of the others
	}
	var others []Server
	for _, s := range r.o.Conf.Servers {
		if !r.isSelf(s, id) {
			others = append(others, s)
		}
	}
	all := make([]observer.Attestation, len(others))
	unlisted := make([]bool, len(others))
	var wg sync.WaitGroup
	for i, s := range others {
		for _, old := range before.Of {
			if old.Witness == s.Client && old.Settled() {
				all[i] = old
			}
		}
		if all[i].Witness != "" {
			continue
		}
		wg.Go(func() {
			text, err := ask(ctx, s.Client, "hash")
			unlisted[i] = errors.Is(err, errUnlisted)
			all[i] = judge(p, text, err)
			all[i].Witness, all[i].When = s.Client, time.Now().UTC()
		})
	}
	wg.Wait()
	for i, a := range all {
		if !unlisted[i] {
			e.Of = append(e.Of, a)
		}
	}
	if len(e.Of) == 0 {
		e.NotPossible = "no other server has hash in its 4lw.commands.whitelist"
		if len(others) == 0 {
			e.NotPossible = "no other server is known"
		}
	}
	return e, ctx.Err()
}

// judge compares what a server says with the marks of a position.
func judge(p observer.Position, text string, err error) observer.Attestation {
	a := observer.Attestation{Verdict: observer.Unreachable, By: "tree_digest"}
	if err != nil {
		a.Said = err.Error()
		return a
	}
	newest := uint64(0)
	for line := range strings.Lines(text) {
		at, digest, _ := strings.Cut(strings.TrimSpace(line), ": ")
		zxid, err := strconv.ParseUint(at, 16, 64)
		if err != nil {
			continue // a line of another form says nothing
		}
		newest = max(newest, zxid)
		have, ok := p.Marks[markName(zxid)]
		switch {
		case !ok || zxid < a.Height:
		case have != digest:
			a.Verdict, a.Height = observer.Fork, zxid
			a.Said = fmt.Sprintf("at 0x%x its tree has digest %.20s, the dump's has %s", zxid, digest, have)
			return a
		default:
			a.Verdict, a.Height = observer.Agrees, zxid
		}
	}
	switch {
	case a.Verdict == observer.Agrees:
	case newest == 0:
		a.Verdict, a.Said = observer.Laggard, "it has no digest yet"
	case newest < p.Index:
		a.Verdict, a.Said = observer.Laggard, fmt.Sprintf("its newest digest is of 0x%x", newest)
	default:
		a.Verdict, a.Said = observer.Pruned, "it keeps no digest of the dump's transactions any more"
	}
	return a
}
