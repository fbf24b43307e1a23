package cometbft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// SignStatus says how far the keys of a home have signed. The zero value is a
// home that has never signed and has no key.
type SignStatus struct {
	Height int64
	Round  int32
	Step   int8
	// Path is the file with the highest state, "" where there is none.
	Path string
	// Key tells whether there is a validator key. Every home has one, also an
	// observer's: only a key that has signed, or has power, makes a validator.
	Key bool
	// Remote is the address at which a remote signer may connect
	// (priv_validator_laddr): such a node is a validator although it has no key.
	Remote string
}

// Zero tells whether nothing was ever signed.
func (s SignStatus) Zero() bool { return s.Height == 0 && s.Round == 0 && s.Step == 0 }

// less compares as CometBFT does before it signs: height, round, step.
func (s SignStatus) less(o SignStatus) bool {
	switch {
	case s.Height != o.Height:
		return s.Height < o.Height
	case s.Round != o.Round:
		return s.Round < o.Round
	default:
		return s.Step < o.Step
	}
}

// floorAt is the sign state that refuses a height in every round.
func floorAt(height int64) SignStatus {
	return SignStatus{Height: height, Round: math.MaxInt32, Step: 3}
}

// SignState reads the sign state of a home: priv_validator_state.json, or the
// last_* fields of the priv_validator.json of old Tendermint and Loom. Where
// there are several the highest counts.
func SignState(home string) (SignStatus, error) {
	home, err := resolveHome(home)
	if err != nil {
		return SignStatus{}, err
	}
	bases, err := readBases(home)
	if err != nil {
		return SignStatus{}, err
	}
	var highest SignStatus
	key, remote := false, ""
	for _, b := range bases {
		if b.remote != "" {
			remote = b.remote
		}
		key = key || exists(b.key)
		for _, file := range []string{b.signState, b.key} {
			s, ok, err := readSignState(file)
			if err != nil {
				return SignStatus{}, err
			}
			if ok && (highest.Path == "" || highest.less(s)) {
				highest = s
			}
		}
	}
	highest.Key, highest.Remote = key, remote
	return highest, nil
}

// maxSignState bounds the file: it holds three numbers, a signature and what was
// signed.
const maxSignState = 1 << 20

func readSignState(file string) (SignStatus, bool, error) {
	if file == "" {
		return SignStatus{}, false, nil
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return SignStatus{}, false, nil
	}
	if err != nil {
		return SignStatus{}, false, hint.Add(fmt.Errorf("read the sign state: %w", err), "run eddy as the node's user"+ownerOf(file))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSignState+1))
	if err == nil && len(b) > maxSignState {
		err = errors.New("it is too large")
	}
	var s SignStatus
	ok := false
	if err == nil {
		s, ok, err = parseSignState(b)
	}
	if err != nil {
		return SignStatus{}, false, hint.Add(fmt.Errorf("read the sign state %s: %w", file, err),
			"a sign state that cannot be read must not be guessed: repair it, or move it aside when this node has never signed")
	}
	s.Path = file
	return s, ok, nil
}

// parseSignState reads either form; numbers may stand in quotes. ok is false for
// a file that holds a key and no state. No error quotes the file: it may hold a
// key.
func parseSignState(b []byte) (s SignStatus, ok bool, err error) {
	var f struct {
		Height     *looseInt `json:"height"`
		Round      *looseInt `json:"round"`
		Step       *looseInt `json:"step"`
		LastHeight *looseInt `json:"last_height"`
		LastRound  *looseInt `json:"last_round"`
		LastStep   *looseInt `json:"last_step"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return s, false, errors.New("it is not the JSON that it should be")
	}
	h, r, p := f.Height, f.Round, f.Step
	if h == nil && r == nil && p == nil {
		h, r, p = f.LastHeight, f.LastRound, f.LastStep
	}
	if h == nil && r == nil && p == nil {
		return s, false, nil
	}
	if h == nil {
		return s, false, errors.New("it has no height")
	}
	s.Height = int64(*h)
	round, step := int64(0), int64(0)
	if r != nil {
		round = int64(*r)
	}
	if p != nil {
		step = int64(*p)
	}
	s.Round, s.Step = int32(round), int8(step)
	if s.Height < 0 || int64(s.Round) != round || int64(s.Step) != step {
		return SignStatus{}, false, errors.New("its numbers are out of range")
	}
	return s, true, nil
}

// looseInt is a number with or without quotes.
type looseInt int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *looseInt) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	if err != nil {
		return errors.New("not a number")
	}
	*n = looseInt(v)
	return nil
}
