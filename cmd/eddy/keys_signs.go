package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// signerWait is how long witnesses are watched for a new block.
const signerWait = time.Minute

// keySigns decides about the files of a bundle that sign blocks: they come back with a
// sign state below which the key has signed nothing.
type keySigns struct {
	a         *app
	c         *config.Config
	home      string
	noWitness bool
	address   string // typed by whoever asks, "" where he was not asked yet
}

func (k keySigns) decide(ctx context.Context, held []job.SigningFile) ([]job.SigningFile, error) {
	key, state := -1, -1
	address := ""
	for i, h := range held {
		switch h.Class {
		case bundle.ValidatorKey:
			if a, err := cometbft.ConsensusAddress(h.Data); err == nil && key < 0 {
				key, address = i, a
			} else if err == nil && a != address {
				return nil, hint.Add(fmt.Errorf("the bundle holds two validator keys, %s and %s", held[key].Name, h.Name), "name one of them: --only")
			}
		case bundle.SignState:
			state = i
		}
	}
	if key < 0 {
		return nil, errors.New("the bundle holds no validator key that CometBFT knows")
	}
	search := cometbft.KeySearch{
		Key: held[key].Data, Home: k.home, InBundle: true, ChainID: k.c.Replica.ChainID,
		Witnesses: k.c.Replica.Witnesses, NoWitness: k.noWitness, Wait: signerWait,
	}
	if state >= 0 {
		search.State = held[state].Data
	}
	if search.ChainID == "" {
		search.ChainID, _ = cometbft.ChainID(k.home) // a new home has no genesis yet
	}
	if search.ChainID == "" && len(search.Witnesses) > 0 {
		return nil, errorsJoinUsage(hint.Add(errors.New("nothing says which chain the key is of, and what the witnesses must be on"), "set `replica.chain_id: ID`, or EDDY_REPLICA_CHAIN_ID"))
	}
	var err error
	if search.Observer, err = k.backedUp(); err != nil {
		return nil, err
	}
	if r, err := cometbft.New(cometbft.Options{Home: k.home, Offline: offline(k.c.Check.Memory.Bytes())}); err == nil { // a new home has no data yet
		later, err := r.Later(ctx)
		if err != nil {
			return nil, err
		}
		search.Dump = int64(later)
	}
	d, err := search.ValidatorKeyReturn(ctx)
	if err == nil && d.Typed != "" {
		err = k.confirm(d.Typed)
	}
	if err != nil {
		return nil, err
	}
	w := job.Warning{Text: "the validator key " + address + " comes back: " + d.Why, Hint: "stop for good whatever else has this key, before this node is started"}
	if d.StartAbove > 0 {
		w.Hint += fmt.Sprintf("; start it when another node has a block above %d, not before", d.StartAbove)
	}
	k.a.ui.Emit(w)
	return k.files(held, key, state, d.State)
}

// files are those that are to be written: the keys, and the sign state in the form in
// which the node reads it.
func (k keySigns) files(held []job.SigningFile, key, state int, s cometbft.SignStatus) (out []job.SigningFile, err error) {
	for i, h := range held {
		_, both, perr := cometbft.ParseSignState(h.Data)
		if h.Class == bundle.ValidatorKey && perr == nil && both { // of the old form
			if h.Data, err = cometbft.SignFile(h.Data, s); err != nil {
				return nil, err
			}
			key = -1
		}
		if i != state {
			out = append(out, h)
		}
	}
	var f job.SigningFile
	switch {
	case state >= 0:
		f = held[state]
	case key < 0:
		return out, nil
	default:
		f = held[key]
		base, ok := strings.CutSuffix(f.Name, "config/priv_validator_key.json")
		if !ok {
			return nil, hint.Add(fmt.Errorf("the bundle has no sign state, and where the node keeps it is not known: its key is %s", f.Name), "restore with --into DIR, and put a sign state beside it by hand")
		}
		f.Name, f.Class = path.Join(base, "data/priv_validator_state.json"), bundle.SignState
		f.To = filepath.Join(strings.TrimSuffix(f.To, "config/priv_validator_key.json"), "data/priv_validator_state.json")
	}
	f.Data, err = cometbft.SignFile(nil, s)
	return append(out, f), err
}

// backedUp tells whether the home is that of the replica whose data this configuration
// backs up.
func (k keySigns) backedUp() (bool, error) {
	home, err := filepath.Abs(k.c.Replica.Home)
	if err != nil || k.c.Replica.Home == "" || home != k.home || k.c.Workdir == "" {
		return false, err
	}
	last, err := job.Workdir{Dir: k.c.Workdir}.Last()
	return last.LastID != "", err
}

// confirm takes the consensus address for the word that --yes is not.
func (k keySigns) confirm(want string) error {
	typed := k.address
	question := "no witness can say whether another machine signs with the validator key " + want
	if typed == "" && ui.IsTerminal(k.a.in) {
		fmt.Fprintf(k.a.err, "%s\ntype its consensus address to go on: ", question)
		_, _ = fmt.Fscanln(k.a.in, &typed) // nothing is what nobody meant
	}
	if !strings.EqualFold(typed, want) {
		return hint.Add(fmt.Errorf("%s: %w", question, job.ErrNotConfirmed), "where the machine that had it is destroyed say --consensus-address with that address; --yes is not enough")
	}
	return nil
}
