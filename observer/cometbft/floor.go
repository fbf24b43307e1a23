package cometbft

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cometbft/cometbft/crypto"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// FloorAbove is how far above everything known the floor of a key lies whose sign
// state is not known: the machine that is gone may have voted for the block after
// the newest one that anybody has.
const FloorAbove = 10

// searchCommits is how many of a witness's newest commits are searched for a
// validator's signature, and keyHistory in how many of its validator sets, from its
// oldest block to its newest, the key is looked for.
const (
	searchCommits = 100
	keyHistory    = 16
)

// SignerSeen is what one witness knows of a validator's key.
type SignerSeen struct {
	Witness string // for people
	Error   string // why it could not be asked; "": it was
	Tip     int64  // its newest block
	CatchUp bool   // there are later ones that it does not have
	Grew    bool   // a new block came while it was asked
	Known   bool   // the key is in one of its validator sets that were looked at
	Signed  int64  // the newest of the commits that were looked at with the key's signature; 0: none
	From    int64  // the oldest of these commits
}

// KeyReturn is what is known where a validator's key is to come back to a home, or
// stands there without a sign state. It is decided without asking anybody.
type KeyReturn struct {
	Address   string       // of the key, hex, as CometBFT writes it
	Observer  bool         // the home is of a replica that eddy backs up
	Dump      int64        // height of the data in the home, or to be restored into it; 0: none
	Home      *SignStatus  // the home's sign state, where its key file holds this key; nil: none
	Bundle    *SignStatus  // that came with the key; nil: none
	InBundle  bool         // a bundle holds the key
	Seen      []SignerSeen // by each witness of the configuration
	NoWitness bool         // whoever asks says that no witness can be had
}

// KeyDecision is how a validator's key may come back.
type KeyDecision struct {
	State SignStatus // is to stand beside the key before anything else
	// StartAbove: the node is to be started only when a witness has a block above
	// this height; 0: at once.
	StartAbove int64
	// Typed is what a person must type first, whatever --yes says; "": nothing.
	Typed string
	Why   string // a line for people
}

// Decide says how the key may come back, or why it must not: an error with
// observer.ErrNotFit.
func (k KeyReturn) Decide() (KeyDecision, error) {
	if k.Observer {
		return KeyDecision{}, unfit("restore it into a home of its own, on a machine that signs; a node that eddy stops must never sign", "this home is a replica that is backed up: no validator's key belongs there")
	}
	var asked []SignerSeen
	for _, s := range k.Seen {
		if s.Error == "" && !s.CatchUp {
			asked = append(asked, s)
		}
	}
	grew, known, top := false, k.InBundle, k.Dump
	for _, s := range asked {
		grew, known, top = grew || s.Grew, known || s.Known, max(top, s.Tip)
		if s.Signed > 0 && (k.Home == nil || s.Signed > k.Home.Height) && (s.Grew || !k.NoWitness) {
			return KeyDecision{}, unfit(fmt.Sprintf("find the machine that signs with it and stop it for good; then wait for %d blocks without a signature of it", searchCommits),
				"the key %s signs, or did just now: witness %s has its signature for block %d of %d", k.Address, s.Witness, s.Signed, s.Tip)
		}
	}
	if !grew && !k.NoWitness {
		return KeyDecision{}, unfit("name witnesses that follow the chain under replica.witnesses; where none can be had, and the machine that had the key is destroyed: `--no-witness`, with its consensus address typed", "%s: nobody can say whether another machine signs with the key %s", whyUnseen(k.Seen, asked), k.Address)
	}
	if k.Home != nil {
		d := KeyDecision{State: *k.Home, Why: fmt.Sprintf("the home's own sign state of this key stays, at height %d", k.Home.Height)}
		if k.Bundle != nil && d.State.less(*k.Bundle) {
			d.State, d.Why = *k.Bundle, fmt.Sprintf("the bundle's sign state is higher than the home's: height %d", k.Bundle.Height)
		}
		return k.typed(d, grew), nil
	}
	if !known && grew && k.Bundle == nil {
		return KeyDecision{Why: "no witness has ever seen this key, and no bundle holds it: it begins at zero"}, nil
	}
	if k.Bundle != nil {
		top = max(top, k.Bundle.Height)
	}
	if top > math.MaxInt64-FloorAbove {
		return KeyDecision{}, unfit("leave that witness out", "a witness tells an impossible height: %d", top)
	}
	d := KeyDecision{State: floorAt(top + FloorAbove), StartAbove: top + FloorAbove}
	d.Why = fmt.Sprintf("nobody knows what the key has signed last: it may sign above height %d, %d above the highest that is known", d.StartAbove, FloorAbove)
	return k.typed(d, grew), nil
}

func (k KeyReturn) typed(d KeyDecision, grew bool) KeyDecision {
	if !grew {
		d.Typed = k.Address
	}
	return d
}

func whyUnseen(all, asked []SignerSeen) string {
	switch {
	case len(all) == 0:
		return "no witness is configured"
	case len(asked) > 0:
		return "the chain stands still"
	case all[0].Error != "":
		return "no witness answers (" + all[0].Error + ")"
	default:
		return "the witnesses are catching up"
	}
}

// ConsensusAddress is that of a validator key's file, of either form.
func ConsensusAddress(keyFile []byte) (string, error) {
	k := publicKey(keyFile)
	if k == nil {
		return "", errors.New("it is no validator key that CometBFT knows")
	}
	return k.Address().String(), nil
}

// ParseSignState reads the content of a file with a sign state, or of a key file of
// the old form. ok is false where there is none in it.
func ParseSignState(b []byte) (s SignStatus, ok bool, err error) { return parseSignState(b) }

// SignFile is the content of a sign state's file, or of a key file of the old form,
// with that state; old is what stands there, nil for nothing.
func SignFile(old []byte, s SignStatus) ([]byte, error) { return signFile(old, nil, s) }

// KeySearch asks what a KeyReturn must know, and decides.
type KeySearch struct {
	Key       []byte        // content of the key's file, of either form
	State     []byte        // of the sign state's that came with it; nil: none
	Home      string        // where the key is to go; it may be empty
	Observer  bool          // see KeyReturn
	InBundle  bool          // see KeyReturn
	Dump      int64         // see KeyReturn
	ChainID   string        // what the witnesses must be on
	Witnesses []string      // RPC addresses
	NoWitness bool          // see KeyReturn
	Wait      time.Duration // for a new block at a witness
}

// ValidatorKeyReturn says how the key may come back, or why it must not. It writes
// nothing.
func (k KeySearch) ValidatorKeyReturn(ctx context.Context) (KeyDecision, error) {
	key := publicKey(k.Key)
	if key == nil {
		return KeyDecision{}, errors.New("it is no validator key that CometBFT knows")
	}
	r := KeyReturn{Address: key.Address().String(), Observer: k.Observer, Dump: k.Dump, InBundle: k.InBundle, NoWitness: k.NoWitness}
	for _, b := range [][]byte{k.State, k.Key} { // the old form holds both
		if b == nil {
			continue
		}
		s, ok, err := parseSignState(b)
		if err != nil {
			return KeyDecision{}, fmt.Errorf("the sign state that comes with the key: %w", err)
		}
		if ok && (r.Bundle == nil || r.Bundle.less(s)) {
			r.Bundle = &s
		}
	}
	var err error
	if r.Home, err = signStateOf(k.Home, key); err != nil {
		return KeyDecision{}, err
	}
	if !k.Observer {
		r.Seen = LookForSigner(ctx, key, k.ChainID, k.Witnesses, k.Wait)
	}
	return r.Decide()
}

// signStateOf is the home's sign state, where its key file holds that key; nil where
// it does not, or there is no home yet.
func signStateOf(home string, key crypto.PubKey) (*SignStatus, error) {
	bases, err := readBases(home)
	if err != nil {
		return nil, nil // keys often come before the data
	}
	for _, b := range bases {
		file, err := os.ReadFile(b.key)
		if its := publicKey(file); err != nil || its == nil || !its.Equals(key) {
			continue
		}
		s, raw, err := ownSign(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
		}
		if raw != nil && !ofAnother(key, raw) {
			return &s, nil
		}
	}
	return nil, nil
}

// LookForSigner asks the witnesses of a chain whether somebody signs with a key, and
// watches them until one has a new block, at most wait.
func LookForSigner(ctx context.Context, key crypto.PubKey, chainID string, witnesses []string, wait time.Duration) []SignerSeen {
	out := make([]SignerSeen, len(witnesses))
	var wg sync.WaitGroup
	for i, raw := range witnesses {
		wg.Go(func() {
			out[i] = SignerSeen{Witness: bare(raw)}
			if err := out[i].ask(ctx, raw, key, chainID, wait); err != nil {
				out[i].Error = redact(err, raw).Error()
			}
		})
	}
	wg.Wait()
	return out
}

func (s *SignerSeen) ask(ctx context.Context, raw string, key crypto.PubKey, chainID string, wait time.Duration) error {
	first, err := askStatus(ctx, raw)
	if err != nil {
		return err
	}
	if first.chainID != chainID {
		return fmt.Errorf("it is on chain %s", first.chainID)
	}
	c, err := dial(raw)
	if err != nil {
		return err
	}
	last := first
	for until := time.Now().Add(wait); ; {
		if last, err = askStatus(ctx, raw); err != nil {
			return err
		}
		if s.Grew = last.height > first.height; s.Grew || !time.Now().Before(until) {
			break
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	s.Tip, s.CatchUp = last.height, last.catchingUp
	for h := s.Tip; h > 0 && h > s.Tip-searchCommits && s.Signed == 0; h-- {
		at, cancel := context.WithTimeout(ctx, callTimeout)
		b, err := c.Commit(at, &h)
		cancel()
		if err != nil {
			if strings.Contains(err.Error(), "not available") && s.From > 0 { // pruned, or the first one
				break
			}
			return err
		}
		if b.Commit == nil || b.Commit.Height != h {
			return errors.New("the answer is of another height")
		}
		s.From = h
		for _, sig := range b.Commit.Signatures {
			if len(sig.Signature) > 0 && sig.ValidatorAddress.String() == key.Address().String() {
				s.Signed = h
			}
		}
	}
	s.Known = s.Signed > 0
	for i := int64(0); i < keyHistory && !s.Known; i++ {
		h := max(1, s.Tip-i*s.Tip/(keyHistory-1))
		if s.Known, err = hadKey(ctx, raw, key, h); err != nil && i == 0 {
			return err
		}
	}
	return nil
}

// hadKey tells whether a key is in the validator set of a height. A set that was
// pruned is an error.
func hadKey(ctx context.Context, raw string, key crypto.PubKey, height int64) (bool, error) {
	c, err := dial(raw)
	if err != nil {
		return false, err
	}
	for page, per := 1, 100; ; page++ {
		at, cancel := context.WithTimeout(ctx, callTimeout)
		v, err := c.Validators(at, &height, &page, &per)
		cancel()
		if err != nil {
			return false, err
		}
		for _, val := range v.Validators {
			if val.PubKey != nil && val.PubKey.Equals(key) {
				return true, nil
			}
		}
		if len(v.Validators) == 0 || page*per >= v.Total {
			return false, nil
		}
	}
}

// awaitFloor waits until a witness has passed the floor that a key without a known
// sign state was given: before that the node must not be started. Where the node's
// own data have passed it there is nothing to wait for; a sign state of any other
// form is no floor.
func (r *Replica) awaitFloor(ctx context.Context) error {
	s, err := SignState(r.o.Home)
	if err != nil {
		return err
	}
	if s.Height == 0 || s != (SignStatus{Height: s.Height, Round: math.MaxInt32, Step: 3, Path: s.Path, Key: s.Key, Remote: s.Remote}) || s.Height <= r.dataHeight(ctx, nodeStatus{}) {
		return nil
	}
	top := int64(0)
	for until := time.Now().Add(r.patience); ; {
		for _, raw := range r.o.Witnesses {
			if w, err := askStatus(ctx, raw); err == nil {
				top = max(top, w.height)
			}
		}
		if top > s.Height {
			return nil
		}
		if !time.Now().Before(until) {
			return hint.Add(fmt.Errorf("%w: its key must not sign before the chain has passed height %d, and the witnesses have come to %d", observer.ErrNotFit, s.Height, top),
				"run eddy again when they have passed it: it then starts the node")
		}
		if err := sleep(ctx, min(r.patience/4, time.Second)); err != nil {
			return err
		}
	}
}
