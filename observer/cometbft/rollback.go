package cometbft

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/engine"
	"github.com/eddy-backup/eddy/snapshot"
)

// patience is how long a chain that may stand still is watched.
const patience = 20 * time.Second

// rollbackPage is what to read before a chain is taken back.
const rollbackPage = "docs/runbooks/chain-rollback.md"

// goesBack is what is known when a node's data are to be replaced by those of an
// earlier height.
type goesBack struct {
	to    int64 // the height of what comes
	data  int64 // of what is there; 0: not known
	sign  SignStatus
	own   seen   // the node itself
	named int    // witnesses in the configuration
	seen  []seen // those that answered, and are on the chain
}

// seen is a node that was watched.
type seen struct {
	url  string
	tip  int64
	grew bool // while it was watched
}

// later is the highest block that this node knows of: it has it, or its key has
// signed for it.
func (g goesBack) later() int64 { return max(g.data, g.sign.Height) }

// committed is the highest of them that was certainly made: a key signs for a block
// before it is.
func (g goesBack) committed() int64 { return max(g.data, g.sign.Height-1) }

// survivor tells whether somebody holds the blocks that the node will miss, or makes
// later ones: then it catches up, and nothing is lost.
func (g goesBack) survivor() bool {
	for _, s := range g.seen {
		if s.tip >= g.committed() || s.grew && s.tip > g.to {
			return true
		}
	}
	return false
}

// isRestore says why this would be no restore: blocks would be lost for good.
func (g goesBack) isRestore() error {
	switch {
	case g.later() <= g.to, g.survivor():
		return nil
	case g.named == 0 && g.sign.Height <= g.to:
		return nil // nobody can be asked, and the key takes no part
	}
	who := fmt.Sprintf("this node has block %d", g.data)
	if g.sign.Height > g.to {
		who = fmt.Sprintf("its key has signed at height %d", g.sign.Height)
	}
	witnesses := "no witness answers"
	switch {
	case g.named == 0:
		witnesses = "no witness is configured"
	case len(g.seen) > 0:
		tip := int64(0)
		for _, s := range g.seen {
			tip = max(tip, s.tip)
		}
		witnesses = fmt.Sprintf("the witnesses stand still at height %d", tip)
	}
	return unfit("start a node that holds the later blocks, let it serve them to the others, and name it under replica.witnesses; where none is left, "+rollbackPage+" has the steps",
		"to go back to height %d is no restore but a rollback of the chain: %s, and %s", g.to, who, witnesses)
}

// isRollback says why the chain must not be taken back although somebody says so:
// it lives, or others would go on with what is given up.
func (g goesBack) isRollback() error {
	if g.own.grew {
		return unfit("a chain that lives is not taken back: restore what is wrong from a backup, without --rollback-chain", "this node makes or follows blocks: it is at height %d", g.own.tip)
	}
	for _, s := range g.seen {
		if s.tip > g.to {
			return unfit("if that is what the chain should go on with, let it serve its blocks and take nothing back; else stop it, and take it back like this one",
				"witness %s answers, and has the blocks up to %d", s.url, s.tip)
		}
	}
	return nil
}

// back finds out what goesBack holds. It watches the chain for as long as it takes
// to see that nothing is lost, and patience at most.
func (r *Replica) back(ctx context.Context, to int64, chainID string, own nodeStatus, rollback bool) (goesBack, error) {
	sign, err := SignState(r.o.Home)
	if err != nil {
		return goesBack{}, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	g := goesBack{to: to, data: r.dataHeight(ctx, own), sign: sign, named: len(r.o.Witnesses)}
	g.own.tip = own.height
	begun := map[string]int64{}
	for until := time.Now().Add(r.patience); ; {
		g.look(ctx, r.o.Witnesses, chainID, begun)
		if own.height > 0 {
			if s, err := askStatus(ctx, r.o.RPC); err == nil {
				g.own.tip, g.own.grew = s.height, s.height > own.height
			}
		}
		done := g.isRestore() == nil
		if rollback { // that nothing grows takes all the time; that something does is soon said
			done = g.isRollback() != nil
		}
		silent := own.height == 0 && len(g.seen) == 0 // nothing that could be seen to grow
		if done || silent || !time.Now().Before(until) {
			return g, nil
		}
		if err := sleep(ctx, min(r.patience/4, time.Second)); err != nil {
			return g, err
		}
	}
}

// look asks the witnesses once more. begun holds what they said at first.
func (g *goesBack) look(ctx context.Context, witnesses []string, chainID string, begun map[string]int64) {
	said := make([]nodeStatus, len(witnesses))
	var wg sync.WaitGroup
	for i, raw := range witnesses {
		wg.Go(func() { said[i], _ = askStatus(ctx, raw) }) // one that does not answer has said nothing
	}
	wg.Wait()
	g.seen = nil
	for i, s := range said {
		if s.chainID != chainID {
			continue
		}
		first, ok := begun[witnesses[i]]
		if !ok {
			first = s.height
			begun[witnesses[i]] = s.height
		}
		g.seen = append(g.seen, seen{url: bare(witnesses[i]), tip: s.height, grew: s.height > first})
	}
}

// dataHeight is the height of the home's data: what the node says, or its state
// database; 0 where that cannot be read, or is of an engine that cannot be opened
// here.
func (r *Replica) dataHeight(ctx context.Context, own nodeStatus) int64 {
	if own.height > 0 {
		return own.height
	}
	db, err := r.layout.stateDB()
	if err != nil {
		return 0
	}
	kind, err := engine.Detect(db.Path)
	if err != nil || !engine.CanOpen(kind) {
		return 0
	}
	tip, err := r.o.Offline.tip(ctx, db.Path)
	if err != nil {
		return 0
	}
	return tip.Height
}

// Later implements job.Replaceable.
func (r *Replica) Later(ctx context.Context) (uint64, error) {
	sign, err := SignState(r.o.Home)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	own, _ := askStatus(ctx, r.o.RPC) // it need not run
	return uint64(max(r.dataHeight(ctx, own), sign.Height)), nil
}

// Replaced implements job.Replaceable: the home's list of rollbacks follows its data,
// and a typed rollback lowers its sign states. It may be called again, after a crash
// anywhere in it.
func (r *Replica) Replaced(_ context.Context, what observer.Replaced) error {
	list, err := readRollbacks(r.layout.Home)
	if err != nil {
		return err
	}
	had := len(list)
	for len(list) > 0 && what.Incarnation == "" && list[len(list)-1].Before == what.From {
		list = list[:len(list)-1] // undone
	}
	if back := what.Rollback; back != nil {
		if err := r.keepSigns(what.Before); err != nil {
			return err
		}
	}
	if what.Incarnation != "" && (had == 0 || list[had-1].Before != what.Before) {
		_, theirs, _ := takenBack(what.Incarnation)
		now := time.Now().UTC()
		if missed := len(theirs) - len(list); missed > 0 {
			for _, at := range theirs[len(list):] {
				list = append(list, rollback{At: at, Time: now, Before: what.Before})
			}
		}
		if back := what.Rollback; back != nil {
			list = append(list, rollback{At: int64(back.At), Lost: int64(back.Lost), Time: now, Before: what.Before})
		}
	}
	if len(list) != had {
		if err := writeRollbacks(r.o.FS, r.layout.Home, list); err != nil {
			return fmt.Errorf("note the rollback: %w", err)
		}
	}
	if what.Rollback == nil {
		return nil
	}
	return r.lowerSigns(int64(what.Rollback.At))
}

// keptSign is the file in which the sign state of a base is kept, below the directory
// with what was there before. An undo finds it by its name.
func keptSign(before string, b base) string {
	name := "priv_validator_state.json"
	if b.rel != "" {
		name = "priv_validator_state." + b.rel + ".json"
	}
	return filepath.Join(before, name)
}

// keepSigns saves the sign states beside what was there, without keys. What is saved
// already stays: the home's may be lowered by now.
func (r *Replica) keepSigns(before string) error {
	dir := filepath.Join(r.layout.Home, snapshot.StageDir, before)
	if err := r.o.FS.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, b := range r.layout.bases {
		s, raw, err := ownSign(b)
		if err != nil || raw == nil {
			if err != nil {
				return err
			}
			continue
		}
		to := keptSign(dir, b)
		if old, ok, err := readSignState(to); err != nil || ok && !old.less(s) {
			if err != nil {
				return err
			}
			continue
		}
		if err := r.writeSign(to, raw, s); err != nil {
			return fmt.Errorf("keep the sign state: %w", err)
		}
	}
	return nil
}

// ownSign is the highest sign state of a base and the file that it was read from,
// nil where there is none.
func ownSign(b base) (highest SignStatus, raw []byte, err error) {
	for _, file := range []string{b.signState, b.key} {
		s, ok, err := readSignState(file)
		if err != nil {
			return s, nil, err
		}
		if !ok || raw != nil && !highest.less(s) {
			continue
		}
		highest = s
		if raw, err = os.ReadFile(file); err != nil {
			return s, nil, err
		}
	}
	return highest, raw, nil
}

// lowerSigns is the one place where a sign state goes down: to the last step of the
// height that the chain goes on from. A key without a sign state gets that one, too.
func (r *Replica) lowerSigns(at int64) error {
	to := floorAt(at)
	for _, b := range r.layout.bases {
		for _, file := range []string{b.signState, b.key} {
			s, ok, err := readSignState(file)
			if err != nil {
				return err
			}
			if ok && to.less(s) || !ok && file == signsAt(b) && exists(b.key) {
				if err := r.writeSign(file, nil, to); err != nil {
					return fmt.Errorf("lower the sign state: %w", err)
				}
			}
		}
	}
	return nil
}

// tookBack tells whether what lies in kept was there before a rollback.
func (r *Replica) tookBack(kept string) (bool, error) {
	list, err := readRollbacks(r.layout.Home)
	if err != nil || kept == "" || len(list) == 0 {
		return false, err
	}
	last := list[len(list)-1]
	return last.Before == kept && last.Lost > 0, nil
}

// isOnHistory compares the backup's history with the home's.
func (r *Replica) isOnHistory(g Genesis, comes observer.Position) error {
	if !g.OfChain(comes.Incarnation) {
		return unfit("restore --into a directory of its own; a home of that chain has that chain's genesis.json", "the backup is of another history than %s of the home's genesis file", g.ChainID)
	}
	list, err := readRollbacks(r.layout.Home)
	if err != nil {
		return fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	_, theirs, _ := takenBack(comes.Incarnation)
	if err := onHistory(heightsOf(list), theirs, int64(comes.Index)); err != nil {
		return unfit("`eddy list` shows the backups of before that height, and of after it", "%s", err)
	}
	return nil
}

// mayGoBack says why the chain must not be taken back here.
func (r *Replica) mayGoBack(ctx context.Context, to int64, chainID string, own nodeStatus) error {
	g, err := r.back(ctx, to, chainID, own, true)
	switch {
	case err != nil:
		return err
	case g.sign.Remote != "":
		return unfit("take the signer's own state back first, by its maker's instructions; then take priv_validator_laddr out for the time of the rollback", "somebody else signs for it (priv_validator_laddr %s), whose state eddy does not know", g.sign.Remote)
	}
	return g.isRollback()
}
