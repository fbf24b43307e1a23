package cometbft

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/check"
)

// The marks of a position (observer.Position). Hashes are in hex.
const (
	markChain      = "chain_id"
	markBlock      = "block_hash"      // of the block at Index
	markParts      = "part_set"        // of that block: number of parts ":" hash
	markValidators = "validators_hash" // of the set that signed that block
)

// marksOf are those of a dump whose state was read. A state whose validators cannot
// be read has none: nobody can be asked about it.
func marksOf(r check.Report) map[string]string {
	if r.Parts == "" {
		return nil
	}
	return map[string]string{
		markChain:      r.ChainID,
		markBlock:      hex.EncodeToString(r.BlockHash),
		markParts:      r.Parts,
		markValidators: hex.EncodeToString(r.Validators),
	}
}

// claim is what a dump, or our own node, says of a block.
type claim struct {
	chainID string
	height  int64
	block   types.BlockID
	vals    []byte // hash of the set that signed it
	appHash []byte // after it; nil: not to be asked about
}

// claimOf reads a position's marks. The error says what is missing.
func claimOf(p observer.Position) (claim, error) {
	c := claim{chainID: p.Marks[markChain], height: int64(p.Index), appHash: p.Hash}
	total, parts, ok := strings.Cut(p.Marks[markParts], ":")
	n, err := strconv.ParseUint(total, 10, 32)
	if p.HashKind != "app_hash" || c.chainID == "" || c.height < 1 || !ok || err != nil {
		return claim{}, fmt.Errorf("the dump does not say which block it ends with")
	}
	for _, h := range []struct {
		text string
		into *[]byte
	}{
		{p.Marks[markBlock], (*[]byte)(&c.block.Hash)},
		{parts, (*[]byte)(&c.block.PartSetHeader.Hash)},
		{p.Marks[markValidators], &c.vals},
	} {
		b, err := hex.DecodeString(h.text)
		if err != nil || len(b) == 0 {
			return claim{}, fmt.Errorf("the dump's hashes cannot be read")
		}
		*h.into = b
	}
	c.block.PartSetHeader.Total = uint32(n)
	return c, nil
}
