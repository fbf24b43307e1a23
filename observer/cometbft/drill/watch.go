package drill

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// watchEvery is how often the drilled node is asked. It has executed several blocks
// meanwhile; each is looked at.
const watchEvery = 100 * time.Millisecond

// askEvery is how often the chain is asked whether it goes on.
const askEvery = time.Second

// watch compares what a drilled node executes with what the chain has.
type watch struct {
	node    *asker
	child   *child
	home    home
	ref     witnesses
	from    int64 // the height that was restored
	wanted  int
	begun   time.Time
	say     func(phase, text string)
	rep     *observer.DrillReport
	refused map[*asker]bool // witnesses that were found to differ, and said to
	// fetched are the blocks as they were told before the copy was restored; nil:
	// it has peers. comes, where set, says why a block never will.
	fetched *blockDir
	comes   func(ctx context.Context, next int64) error
}

// failed is the reason of a drill that has shown the copy to be bad.
type failed struct{ error }

// errLate is in the chain of a failure that time alone may have made.
var errLate = errors.New("time is over")

func (f failed) Unwrap() error { return f.error }

func isFailed(err error) bool {
	var f failed
	return errors.As(err, &f)
}

func isImpossible(err error) bool {
	var i impossible
	return errors.As(err, &i)
}

// run returns nil when enough blocks were executed with the chain's results, an
// error of kind failed or impossible, or ctx's.
func (w *watch) run(ctx context.Context) error {
	next := w.from + 1
	var last error
	asked := time.Now()
	for {
		at, err := w.look(ctx)
		switch {
		case isFailed(err), isImpossible(err):
			return err
		case w.child.exited():
			return w.ended()
		case err == nil:
			for next <= at.height && len(w.rep.Executed) < w.wanted && err == nil {
				if err = w.compare(ctx, next, at); err == nil {
					next++
				}
			}
			if isFailed(err) {
				return err
			}
			if len(w.rep.Executed) == w.wanted {
				w.rep.BlocksSeconds = time.Since(w.begun).Seconds()
				return nil
			}
		}
		if w.comes != nil && time.Since(asked) > askEvery {
			if err := w.comes(ctx, next); err != nil {
				return err
			}
			asked = time.Now()
		}
		if last = err; err == nil {
			last = fmt.Errorf("the copy is at height %d", at.height)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last seen: %w", ctx.Err(), last)
		case <-w.child.done:
		case <-time.After(watchEvery):
		}
	}
}

// tip is how far the drilled node's app has executed.
type tip struct {
	height int64
	hash   []byte // the app's, after height
}

// look asks the drilled node how far it is, and that it is the one, harmless.
func (w *watch) look(ctx context.Context) (tip, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := w.node.client.Status(ctx)
	if err != nil {
		return tip{}, err
	}
	switch {
	case string(s.NodeInfo.ID()) != w.home.id:
		return tip{}, failed{fmt.Errorf("another node answers at %s: %s, not %s", w.home.rpc, s.NodeInfo.ID(), w.home.id)}
	case s.NodeInfo.Network != w.home.chainID:
		return tip{}, failed{fmt.Errorf("the copy is of chain %.64q, its genesis of %s", s.NodeInfo.Network, w.home.chainID)}
	case s.ValidatorInfo.VotingPower != 0 || s.ValidatorInfo.Address.String() != w.home.address:
		return tip{}, notPossible("the node's command must use the home that it is given, and no other key", "the copy does not sign with the drill's own key, or has voting power %d; it was killed", s.ValidatorInfo.VotingPower)
	}
	info, err := w.node.client.ABCIInfo(ctx)
	if err != nil {
		return tip{}, err
	}
	at := tip{info.Response.LastBlockHeight, info.Response.LastBlockAppHash}
	if w.rep.StartSeconds == 0 {
		w.rep.StartSeconds = time.Since(w.begun).Seconds()
		w.rep.Version = strings.TrimSpace("cometbft " + s.NodeInfo.Version + ", app " + strings.TrimSpace(info.Response.Data+" "+info.Response.Version))
		w.say("answers", fmt.Sprintf("the copy answers after %.1f s, at height %d", w.rep.StartSeconds, at.height))
		if at.height < w.from {
			return tip{}, failed{fmt.Errorf("the copy is at height %d, the manifest says %d", at.height, w.from)}
		}
		if err := w.sameHead(ctx); err != nil {
			return tip{}, err
		}
	}
	if at.height > w.from && w.rep.FirstSeconds == 0 {
		w.rep.FirstSeconds = time.Since(w.begun).Seconds()
	}
	return at, nil
}

// sameHead compares the last block that was restored. Witnesses that have pruned
// it say nothing.
func (w *watch) sameHead(ctx context.Context) error {
	own, err := w.node.block(ctx, w.from)
	if err != nil {
		return nil //nolint:nilerr // a copy that was pruned to its head; the next block's header names it
	}
	all, _ := w.ref.answers(ctx, w.from)
	return w.judge(w.from, "block hash", own.hash, all, func(a answer) []byte { return a.block })
}

// compare looks at one height that the node has executed.
func (w *watch) compare(ctx context.Context, h int64, at tip) error {
	all, why := w.ref.answers(ctx, h)
	if len(all) == 0 && w.fetched != nil { // pruned since, or silent
		all, why = w.fetched.answer(h)
	}
	if len(all) == 0 {
		return why
	}
	own, err := w.node.block(ctx, h)
	if err != nil {
		return fmt.Errorf("ask the copy for block %d: %w", h, err)
	}
	if err := w.judge(h, "block hash", own.hash, all, func(a answer) []byte { return a.block }); err != nil {
		return err
	}
	done := observer.ExecutedBlock{Height: uint64(h), BlockHash: hex.EncodeToString(own.hash), By: "results"}
	hash := w.results(ctx, h)
	switch {
	case len(hash) > 0:
	case h == at.height:
		hash, done.By = at.hash, "info"
	default:
		// It has executed the next block, and executes none whose header has another
		// app hash than its own (state/validation.go): that header is looked at.
		next, err := w.node.block(ctx, h+1)
		if err != nil {
			return fmt.Errorf("ask the copy for block %d: %w", h+1, err)
		}
		hash, done.By = next.before, "next"
	}
	if err := w.judge(h, "app hash", hash, all, func(a answer) []byte { return a.app }); err != nil {
		return err
	}
	done.AppHash = hex.EncodeToString(hash)
	w.rep.Executed = append(w.rep.Executed, done)
	if n := len(w.rep.Executed); n == 1 || n == w.wanted || n%10 == 0 {
		w.say("executed", fmt.Sprintf("block %d executed, app hash as the chain has it (%d of %d)", h, n, w.wanted))
	}
	return nil
}

// results is the app hash that the copy itself has computed for a block, where it
// tells: since CometBFT 0.38.
func (w *watch) results(ctx context.Context, h int64) []byte {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := w.node.client.BlockResults(ctx, &h)
	if err != nil {
		return nil
	}
	return r.AppHash
}

// judge compares a hash of the copy with those of the witnesses. The copy checks
// every block's signatures itself, so one witness that agrees is enough; those that
// differ from it are named. None that agrees fails the copy.
func (w *watch) judge(h int64, what string, own []byte, all []answer, of func(answer) []byte) error {
	agree := 0
	for _, a := range all {
		if bytes.Equal(of(a), own) {
			agree++
		}
	}
	if len(all) > 0 && agree == 0 {
		w.rep.Mismatch = &observer.Mismatch{Height: uint64(h), What: what, Want: hex.EncodeToString(of(all[0])), Got: hex.EncodeToString(own)}
		return failed{fmt.Errorf("block %d: the chain has %s %X, the copy %X", h, what, of(all[0]), own)}
	}
	for _, a := range all {
		if !bytes.Equal(of(a), own) && !w.refused[a.from] {
			w.refused[a.from] = true
			w.rep.Warnings = append(w.rep.Warnings, fmt.Sprintf("%s differs from the others at height %d: it lies, or follows a fork", a.from.url, h))
		}
	}
	return nil
}

// upgrade is what the SDK's upgrade module prints before it ends the node: the
// blocks after the upgrade need another binary.
var upgrade = regexp.MustCompile(`UPGRADE "[^"]{1,64}" NEEDED at height:? [0-9]+`)

// ended says why the drilled node is gone.
func (w *watch) ended() error {
	lines, err := tail(w.child.log)
	if err != nil {
		return err
	}
	if m := upgrade.FindString(strings.Join(lines, "\n")); m != "" {
		return notPossible("drill a backup from after the upgrade", "the chain was upgraded within the blocks to be executed: %s", m)
	}
	return failed{hint.Add(fmt.Errorf("the node ended by itself (%s)", w.child.cmd.ProcessState), "its last lines are in the report; --keep leaves the copy and its log for a look")}
}
