package cometbft

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"time"

	cmtmath "github.com/cometbft/cometbft/libs/math"
	"github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
)

// Trusted is a block that somebody has looked up by other means. Witnesses must
// lead their blocks back to it.
type Trusted struct {
	Height int64
	Hash   []byte // of the block
	// Period is how long the validators of a block are believed after it: shorter
	// than they are bound by their stake (21 days on most chains).
	Period time.Duration
	// File carries the newest block that was led back to this one, so that the pin
	// need not be renewed every Period; "": nothing is carried.
	File string
	FS   fsx.FS
}

// maxSteps bounds how many blocks between the trusted and ours one witness is
// asked for: bisection needs few unless validators come and go by thirds.
const maxSteps = 100

// fits tells whether a claim can be led back to the pinned block at all; refuted
// says that it contradicts it.
func (t *Trusted) fits(c claim) (refuted string, err error) {
	switch {
	case c.height < t.Height:
		return "", fmt.Errorf("height %d is before the pinned block, at %d", c.height, t.Height)
	case c.height == t.Height && !bytes.Equal(c.block.Hash, t.Hash):
		return fmt.Sprintf("the dump has block %X at height %d, where %X is pinned", c.block.Hash, c.height, t.Hash), nil
	}
	return "", nil
}

// lead proves that a witness's block follows from the trusted one. Signatures of
// its own validators are verified already.
func (t *Trusted) lead(ctx context.Context, raw, chainID string, b *types.LightBlock) error {
	height, hash := t.carried(b.Height)
	if height == b.Height {
		if !bytes.Equal(b.Hash(), hash) {
			return say(observer.Liar, "it has block %X at height %d, where %X is trusted", b.Hash(), height, hash)
		}
		return nil
	}
	from, err := lightBlock(ctx, raw, chainID, height)
	if err != nil {
		return err
	}
	if !bytes.Equal(from.Hash(), hash) {
		return say(observer.OtherChain, "it has block %X at height %d, where %X is trusted", from.Hash(), height, hash)
	}
	now, third := time.Now(), cmtmath.Fraction{Numerator: 1, Denominator: 3}
	ahead := []*types.LightBlock{b}
	for steps := 0; len(ahead) > 0; steps++ {
		to := ahead[len(ahead)-1]
		err := light.Verify(from.SignedHeader, from.ValidatorSet, to.SignedHeader, to.ValidatorSet, t.Period, now, 10*time.Second, third)
		changed := new(light.ErrNewValSetCantBeTrusted)
		expired := new(light.ErrOldHeaderExpired)
		switch {
		case err == nil:
			from, ahead = to, ahead[:len(ahead)-1]
		case errors.As(err, changed) && steps < maxSteps && to.Height > from.Height+1:
			mid, err := lightBlock(ctx, raw, chainID, from.Height+(to.Height-from.Height)/2)
			if err != nil {
				return err
			}
			ahead = append(ahead, mid)
		case errors.As(err, expired):
			return say(observer.Pruned, "the trusted block at height %d is older than attest.trusted.period: %w", from.Height, err)
		default:
			return say(observer.Liar, "its block %X does not lead back to the trusted one at height %d: %w", b.Hash(), height, err)
		}
	}
	return nil
}

// carry is Trusted.File.
type carry struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	Pinned    string    `json:"pinned"` // HEIGHT:HASH of the pin that it leads back to
	Height    int64     `json:"height"`
	Hash      string    `json:"hash"`
	Since     time.Time `json:"since"`
}

func (t *Trusted) pin() string { return fmt.Sprintf("%d:%x", t.Height, t.Hash) }

// carried is the newest block, not above height, that is known to follow from the
// pinned one. A file that cannot be read, or is of another pin, counts for nothing:
// the pin itself stands.
func (t *Trusted) carried(height int64) (int64, []byte) {
	b, err := os.ReadFile(t.File)
	var c carry
	if t.File == "" || err != nil || json.Unmarshal(b, &c) != nil || c.MinReader > 1 || c.Pinned != t.pin() || c.Height <= t.Height || c.Height > height {
		return t.Height, t.Hash
	}
	hash, err := hex.DecodeString(c.Hash)
	if err != nil || len(hash) != len(t.Hash) {
		return t.Height, t.Hash
	}
	return c.Height, hash
}

// keep carries trust on to a block that a witness has led back to the pin.
func (t *Trusted) keep(c claim) error {
	if t.File == "" {
		return nil
	}
	if at, _ := t.carried(math.MaxInt64); at >= c.height { // never back, whatever is asked about
		return nil
	}
	b, err := json.MarshalIndent(carry{1, 1, t.pin(), c.height, hex.EncodeToString(c.block.Hash), time.Now().UTC()}, "", "  ")
	if err == nil {
		err = t.FS.WriteFileAtomic(t.File, append(b, '\n'), 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("carry on what is trusted: %w", err)
	}
	return err
}
