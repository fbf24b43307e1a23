package etcd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/eddy-backup/eddy/observer"
)

// attestEvery is how often voters are asked that have not come as far.
const attestEvery = 500 * time.Millisecond

// Attest implements observer.Attester: each voter but the one that was backed up is
// asked for its HashKV at the dump's revision.
func (e *Etcd) Attest(ctx context.Context, p observer.Position, before observer.Evidence, wait time.Duration) (observer.Evidence, error) {
	until := time.Now().Add(wait)
	for {
		ev, err := e.attest(ctx, p, before)
		if err != nil || ev.Count(observer.Laggard) == 0 || ev.Count(observer.Agrees) > 0 || time.Now().After(until) {
			return ev, err
		}
		before = ev
		select {
		case <-ctx.Done():
			return ev, ctx.Err()
		case <-time.After(attestEvery):
		}
	}
}

func (e *Etcd) attest(ctx context.Context, p observer.Position, before observer.Evidence) (ev observer.Evidence, err error) {
	ev.Trust = "the voters of cluster " + p.Incarnation
	c, _ := e.survey(ctx) // whether the member answers that was backed up does not matter any more
	if c.members == nil {
		ev.NotPossible = "no member tells who the voters are"
		return ev, ctx.Err()
	}
	if ctx, err = e.login(ctx); err != nil {
		ev.NotPossible = err.Error()
		return ev, ctx.Err()
	}
	settled := map[string]observer.Attestation{}
	for _, a := range before.Of {
		if a.Settled() {
			settled[a.Witness] = a
		}
	}
	for _, m := range c.members {
		if m.IsLearner || hexID(m.ID) == p.Marks[markMember] {
			continue
		}
		a, ok := settled[witness(m)]
		if !ok {
			a = e.askHash(ctx, m, c.answers[m.ID], p)
		}
		ev.Of = append(ev.Of, a)
	}
	if len(ev.Of) == 0 {
		ev.NotPossible = "the cluster has no other voter"
	}
	// Where others agree with the dump, whoever does not is wrong by itself.
	if ev.Count(observer.Agrees) > 0 {
		for i, a := range ev.Of {
			if a.Verdict == observer.Fork {
				ev.Of[i].Verdict = observer.Liar
			}
		}
	}
	return ev, ctx.Err()
}

func witness(m *pb.Member) string {
	if m.Name != "" {
		return m.Name
	}
	return hexID(m.ID)
}

// askHash asks one voter.
func (e *Etcd) askHash(ctx context.Context, m *pb.Member, at answer, p observer.Position) (a observer.Attestation) {
	a = observer.Attestation{Witness: witness(m), Height: p.Index, By: "hashkv", When: e.now().UTC(), Verdict: observer.Unreachable}
	if at.status == nil {
		a.Said = "it does not answer"
		return a
	}
	if id := hexID(at.status.Header.ClusterId); id != p.Incarnation {
		a.Verdict, a.Said = observer.OtherChain, "it is of cluster "+id
		return a
	}
	var r *pb.HashKVResponse
	err := e.with(ctx, at.url, e.o.Timeout, func(ctx context.Context, c *conn) error {
		got, err := c.c.HashKV(ctx, c.url, int64(p.Index))
		r = (*pb.HashKVResponse)(got)
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		a.Verdict, a.Said = observer.Laggard, "it has not come that far"
	case errors.Is(err, rpctypes.ErrCompacted):
		a.Verdict, a.Said = observer.Pruned, "it has compacted that revision"
	case err != nil:
		a.Said = err.Error()
	case strconv.FormatInt(r.CompactRevision, 10) != p.Marks[markCompact]:
		a.Verdict, a.Said = observer.Pruned, fmt.Sprintf("it has compacted to revision %d since, the dump is compacted to %s: the hashes cannot be compared", r.CompactRevision, p.Marks[markCompact])
	default:
		a.AppHash = fmt.Sprintf("%08x", r.Hash)
		a.Verdict = observer.Agrees
		if own := hex.EncodeToString(p.Hash); a.AppHash != own {
			a.Verdict, a.Said = observer.Fork, fmt.Sprintf("its hashkv is %s, the dump's is %s", a.AppHash, own)
		}
	}
	return a
}
