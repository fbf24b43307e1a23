package cometbft

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	cmtmath "github.com/cometbft/cometbft/libs/math"
	"github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/light/provider"
	lighthttp "github.com/cometbft/cometbft/light/provider/http"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer"
)

// What told the app hash of an attestation (observer.Attestation.By).
const (
	byHeader   = "header"    // of the next block, signed
	byABCIInfo = "abci_info" // of the witness alone
)

// roundEvery is the pause before those who could not say yet are asked again.
const roundEvery = 500 * time.Millisecond

// restAfter is how old the newest block of a chain is that makes blocks only when
// there are transactions (create_empty_blocks = false), and has none. Most chains
// make one every few seconds; where they do, a shorter wait would be no harm.
const restAfter = 10 * time.Second

// atRest tells whether a chain whose newest block has this header may wait for a
// transaction before it makes the next. It does so only where the app's hash after
// that block stands in a header already: else a block is made at once to prove it
// (consensus/state.go, needProofBlock).
func atRest(newest *types.Header, app []byte) bool {
	return bytes.Equal(newest.AppHash, app) && time.Since(newest.Time) > restAfter
}

// roundTimeout bounds what one witness is asked in one round.
const roundTimeout = 15 * time.Second

// Attestor asks other nodes of a chain what they have at a height. It needs no
// home and no running node, and writes nothing to any node: the light client's
// verifier and provider do the work, not its Client, which replaces one source by
// another and sends evidence to them (light/detector.go).
type Attestor struct {
	// Witnesses are RPC addresses of other nodes.
	Witnesses []string
	// Own is the RPC address of the node that was backed up; "": there is none. It
	// names the validators whose hash the dump has, so that a fork in which they
	// changed can be told from a chain of strangers.
	Own string
	// Trusted is what a witness's blocks must lead back to; nil: the validators of
	// the dump, which are as good as the node that wrote it.
	Trusted *Trusted
}

var _ observer.Attester = (*Attestor)(nil)

// Attest implements observer.Attester.
//
// A block counts by its header's hash, the signatures of more than two thirds of
// the validators that are trusted, and the hash of its parts. The app hash after a
// block stands in the header of the next (/status calls the one before that
// latest_app_hash: it is of no use here). Where no next block comes, the witness's
// /abci_info is taken while its app stands at that height; nobody has signed it,
// and By says so. A chain that is at rest is not waited for.
func (a *Attestor) Attest(ctx context.Context, p observer.Position, before observer.Evidence, wait time.Duration) (observer.Evidence, error) {
	e := observer.Evidence{Trust: "the validators that the dump names", Of: make([]observer.Attestation, len(a.Witnesses))}
	c, err := claimOf(p)
	if err == nil && len(a.Witnesses) == 0 {
		err = errors.New("no witnesses are named")
	}
	if err == nil && a.Trusted != nil {
		e.Trust = "the pinned block at height " + fmt.Sprint(a.Trusted.Height)
		e.Refuted, err = a.Trusted.fits(c)
	}
	if e.Refuted != "" {
		e.Of = nil
		return e, nil
	}
	if err != nil {
		e.NotPossible, e.Of = err.Error(), nil
		return e, nil
	}
	for i, raw := range a.Witnesses {
		if i < len(before.Of) && before.Of[i].Witness == bare(raw) {
			e.Of[i] = before.Of[i]
		}
	}
	until := time.Now().Add(wait)
	for {
		last := !time.Now().Add(roundEvery).Before(until)
		var wg sync.WaitGroup
		for i, raw := range a.Witnesses {
			if !e.Of[i].Settled() {
				wg.Go(func() { e.Of[i] = a.ask(ctx, raw, c, last) })
			}
		}
		wg.Wait()
		if ctx.Err() != nil {
			return e, ctx.Err()
		}
		undecided := e.Count(observer.Pending)
		if e.Count(observer.Agrees) == 0 {
			undecided += e.Count(observer.Laggard) + e.Count(observer.Unreachable)
		}
		if last || undecided == 0 || e.Count(observer.Fork) > 0 {
			break
		}
		if err := sleep(ctx, roundEvery); err != nil {
			return e, err
		}
	}
	switch {
	case a.Trusted == nil:
	case e.Count(observer.Agrees) > 0:
		return e, a.Trusted.keep(c)
	case !slices.ContainsFunc(e.Of, func(w observer.Attestation) bool { return !besidePin(w, c) }):
		e.Refuted = fmt.Sprintf("every witness has the dump's block at height %d, and none the pinned one: %s: %s", c.height, e.Of[0].Witness, e.Of[0].Said)
	}
	return e, nil
}

// besidePin tells whether a witness has the dump's block, and another one than the
// trusted at that one's height. A single one may lie about it; all of them do not.
func besidePin(w observer.Attestation, c claim) bool {
	return w.Verdict == observer.OtherChain && w.BlockHash == hex.EncodeToString(c.block.Hash)
}

// ask asks one witness once. last: there is no time to wait for the next block.
func (a *Attestor) ask(ctx context.Context, raw string, c claim, last bool) observer.Attestation {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	at := observer.Attestation{Witness: bare(raw), Height: uint64(c.height), When: time.Now().UTC()}
	err := a.judge(ctx, raw, c, last, &at)
	at.Verdict = observer.Agrees
	if v := new(verdictError); errors.As(err, &v) {
		at.Verdict, at.Said = v.verdict, oneLine(redact(v.err, raw))
	} else if err != nil {
		at.Verdict, at.Said = observer.Unreachable, oneLine(redact(err, raw))
	}
	return at
}

// maxSaid bounds what is taken down of a witness's words, in bytes: they stand in
// the manifest, and some of them are its own.
const maxSaid = 600

func oneLine(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > maxSaid {
		text = strings.ToValidUTF8(text[:maxSaid], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// verdictError is why a witness does not agree.
type verdictError struct {
	verdict string
	err     error
}

func (v *verdictError) Error() string { return v.err.Error() }

func say(verdict, format string, args ...any) error {
	return &verdictError{verdict, fmt.Errorf(format, args...)}
}

// judge returns nil when the witness agrees; an error that is no verdictError means
// that it could not be asked.
func (a *Attestor) judge(ctx context.Context, raw string, c claim, last bool, at *observer.Attestation) error {
	s, err := askStatus(ctx, raw)
	switch {
	case err != nil:
		return err
	case s.chainID != c.chainID:
		return say(observer.OtherChain, "it is on chain %s", s.chainID)
	case s.height < c.height:
		return say(observer.Laggard, "it is at height %d", s.height)
	}
	b, err := lightBlock(ctx, raw, c.chainID, c.height)
	if err != nil {
		return err
	}
	at.BlockHash = hex.EncodeToString(b.Hash())
	if err := a.sameBlock(ctx, raw, c, b); err != nil {
		return err
	}
	if c.appHash == nil {
		return nil
	}
	return a.sameApp(ctx, raw, c, b, last, at)
}

// sameBlock compares the witness's block with ours.
func (a *Attestor) sameBlock(ctx context.Context, raw string, c claim, b *types.LightBlock) error {
	if err := b.ValidatorSet.VerifyCommitLight(c.chainID, b.Commit.BlockID, c.height, b.Commit); err != nil {
		return say(observer.Liar, "its block %X is not signed: %w", b.Hash(), err)
	}
	if a.Trusted != nil {
		if err := a.Trusted.lead(ctx, raw, c.chainID, b); err != nil {
			return err
		}
	}
	if b.Commit.BlockID.Equals(c.block) {
		return nil
	}
	const other = "it has block %X at height %d, the dump has %X; "
	switch {
	case a.Trusted != nil:
		return say(observer.Fork, other+"its block leads back to the pinned one", b.Hash(), c.height, c.block.Hash)
	case bytes.Equal(b.ValidatorSet.Hash(), c.vals):
		return say(observer.Fork, other+"more than two thirds of the validators that the dump names have signed it", b.Hash(), c.height, c.block.Hash)
	case a.alsoSignedBy(ctx, c, b):
		return say(observer.Fork, other+"a third or more of the validators that the dump names have signed it", b.Hash(), c.height, c.block.Hash)
	}
	return say(observer.OtherChain, other+"those who signed it are unknown to the dump: it is of another history of this name, or a liar", b.Hash(), c.height, c.block.Hash)
}

// alsoSignedBy tells whether a third of our validators have signed a block of
// another set. Our own node names them; what it says is proven by the hash that
// the dump has.
func (a *Attestor) alsoSignedBy(ctx context.Context, c claim, b *types.LightBlock) bool {
	if a.Own == "" {
		return false
	}
	own, err := lightBlock(ctx, a.Own, c.chainID, c.height)
	if err != nil || !bytes.Equal(own.ValidatorSet.Hash(), c.vals) {
		return false
	}
	return own.ValidatorSet.VerifyCommitLightTrusting(c.chainID, b.Commit, cmtmath.Fraction{Numerator: 1, Denominator: 3}) == nil
}

// sameApp compares what the app's state is after our block.
func (a *Attestor) sameApp(ctx context.Context, raw string, c claim, b *types.LightBlock, last bool, at *observer.Attestation) error {
	next, err := lightBlock(ctx, raw, c.chainID, c.height+1)
	if v := new(verdictError); errors.As(err, &v) && v.verdict == observer.Laggard {
		if last || atRest(b.Header, c.appHash) {
			if err := a.sameAppNow(ctx, raw, c, at); err == nil || last {
				return err
			}
		}
		return say(observer.Pending, "it has no block after height %d yet", c.height)
	}
	if err != nil {
		return err
	}
	// Period and clock drift are for those who trust a block of long ago: this one is
	// the next.
	err = light.VerifyAdjacent(b.SignedHeader, next.SignedHeader, next.ValidatorSet, 1<<62, next.Time, time.Second)
	if err == nil && !next.LastBlockID.Equals(c.block) {
		err = fmt.Errorf("it stands upon block %X", next.LastBlockID.Hash)
	}
	if err != nil {
		return say(observer.Liar, "its block at height %d does not follow the one before: %w", next.Height, err)
	}
	at.AppHash, at.By = hex.EncodeToString(next.AppHash), byHeader
	if !bytes.Equal(next.AppHash, c.appHash) {
		return say(observer.Fork, "the app hash after height %d is %X, signed by the validators; the dump has %X", c.height, []byte(next.AppHash), c.appHash)
	}
	return nil
}

// sameAppNow asks the witness's app where nothing stands upon our block.
func (a *Attestor) sameAppNow(ctx context.Context, raw string, c claim, at *observer.Attestation) error {
	cl, err := dial(raw)
	if err != nil {
		return err
	}
	info, err := cl.ABCIInfo(ctx)
	if err != nil {
		return err
	}
	if info.Response.LastBlockHeight != c.height {
		return say(observer.Pending, "it has no block after height %d yet, and its app is at %d", c.height, info.Response.LastBlockHeight)
	}
	at.AppHash, at.By = hex.EncodeToString(info.Response.LastBlockAppHash), byABCIInfo
	if !bytes.Equal(info.Response.LastBlockAppHash, c.appHash) {
		return say(observer.Liar, "its app has hash %X at height %d, the dump has %X; nobody has signed either yet", info.Response.LastBlockAppHash, c.height, c.appHash)
	}
	return nil
}

// lightBlock fetches header, signatures and validators of a height. They fit each
// other; no signature is looked at.
func lightBlock(ctx context.Context, raw, chainID string, height int64) (*types.LightBlock, error) {
	cl, err := dial(raw)
	if err != nil {
		return nil, err
	}
	b, err := lighthttp.NewWithClient(chainID, cl).LightBlock(ctx, height)
	bad := new(provider.ErrBadLightBlock)
	switch {
	case errors.Is(err, provider.ErrHeightTooHigh):
		return nil, say(observer.Laggard, "it has not come to height %d", height)
	case errors.Is(err, provider.ErrLightBlockNotFound):
		return nil, say(observer.Pruned, "it has pruned height %d", height)
	case errors.As(err, bad):
		return nil, say(observer.Liar, "what it says of height %d does not fit together: %w", height, bad.Reason)
	}
	return b, err
}
