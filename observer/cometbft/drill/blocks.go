package drill

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft"
)

// blocks are those that the copy gets where it has no peer but eddy.
func (d *Driller) blocks(t observer.DrillTask) blockDir {
	from := int64(t.Position.Index)
	return blockDir{dir: filepath.Join(t.Scratch, "blocks"), from: from + 1, to: d.needs(from)}
}

// Prepare implements observer.Driller: it fetches the blocks that the copy is to
// execute. Who prunes may have them no longer when the copy is restored.
func (d *Driller) Prepare(ctx context.Context, t observer.DrillTask) error {
	if !d.Isolated {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	ref, err := d.reference()
	if err != nil {
		return err
	}
	g, err := cometbft.ReadGenesis(d.From)
	if err != nil {
		return err
	}
	from := int64(t.Position.Index)
	for _, a := range ref {
		if a.extended(ctx, from+1) {
			return notPossible("set `drill.isolated: false`: peers hand them out", "the votes of %s carry extensions, which RPC does not tell, and no node takes a block without them", g.ChainID)
		}
	}
	sources := ref
	if d.RPC != "" && len(d.Witnesses) > 0 { // as a last resort: blocks are checked by the copy, wherever they come from
		own, err := newAsker(d.RPC, nil)
		if err != nil {
			return err
		}
		sources = append(slices.Clip(ref), own)
	}
	b, q := d.blocks(t), new(pace)
	say := t.Say
	if say == nil {
		say = func(string, string) {}
	}
	say("fetch", fmt.Sprintf("fetching the blocks %d to %d by RPC", b.from, b.to))
	err = b.fetch(ctx, sources, func(h int64) error { return d.comes(ctx, sources, g.ChainID, from, h, q) }, say)
	if errors.Is(err, context.DeadlineExceeded) {
		return d.notFetched(ctx, sources, g.ChainID, from, err)
	}
	return err
}

// comes says why a block that is waited for will not come; nil where it may. It is
// asked again and again, with the same q.
func (d *Driller) comes(ctx context.Context, ref witnesses, chain string, from, next int64, q *pace) error {
	all, _ := ref.reaches(ctx, chain) // nobody who answers: they may again
	if len(all) == 0 {
		return nil
	}
	tip, err := d.kept(all, next-1)
	if still := q.since(tip); err == nil && tip < d.needs(from) && still > d.Timeout/restPart {
		err = d.notEnough(from, fmt.Sprintf("has been at %d for %s", tip, still.Round(time.Second)))
	}
	return err
}

// restPart is the part of a drill's time for which a chain may make no block: one
// over that. Who makes blocks only for transactions may make none for days.
const restPart = 6

// pace notices for how long a chain has made no block.
type pace struct {
	tip  int64
	when time.Time // it was first seen
}

func (q *pace) since(tip int64) time.Duration {
	if now := time.Now(); tip > q.tip || q.when.IsZero() {
		q.tip, q.when = tip, now
	}
	return time.Since(q.when)
}

// notFetched says why there are no blocks.
func (d *Driller) notFetched(ctx context.Context, ref witnesses, chain string, from int64, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	all, why := ref.reaches(ctx, chain)
	if len(all) == 0 {
		return notPossible("name witnesses that answer for as long as a drill takes", "no node of the chain answers any more: %v", why)
	}
	tip, err := d.kept(all, from)
	switch {
	case err != nil:
		return err
	case tip < d.needs(from):
		return d.notEnough(from, fmt.Sprintf("is at %d after %s", tip, d.Timeout))
	}
	return notPossible("look at the witnesses, or set `drill.timeout: DURATION`", "the blocks could not be fetched: %w", cause)
}

// needs is the last block that a drill takes. The header after the last one that is
// executed has the app hash that it must have. Without other peers it is one more:
// a node that has all but the last two blocks of its peers counts itself as caught
// up, and asks for no more (blocksync/pool.go, IsCaughtUp).
func (d *Driller) needs(from int64) int64 {
	if d.Isolated {
		return from + int64(d.Blocks) + 2
	}
	return from + int64(d.Blocks) + 1
}

// notEnough refuses to wait longer; where says where the chain is, and since when.
func (d *Driller) notEnough(from int64, where string) error {
	return notPossible("a chain that makes blocks only when there are transactions (create_empty_blocks = false) needs some; `drill.blocks: N` asks for fewer, `drill.timeout: DURATION` waits longer",
		"not enough blocks: the chain %s; for %d blocks after %d it must be at %d", where, d.Blocks, from, d.needs(from))
}
