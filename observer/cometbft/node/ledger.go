package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/abci/example/kvstore"
	abci "github.com/cometbft/cometbft/abci/types"

	"github.com/eddy-backup/eddy/internal/hint"
)

// The built-in apps.
const (
	KVStore = "kvstore" // CometBFT's example: its app hash is the number of transactions
	Ledger  = "ledger"  // its app hash covers every key and value
)

// newApp makes a built-in app over its database.
func newApp(name string, db dbm.DB) (abci.Application, error) {
	switch name {
	case "", KVStore:
		return kvstore.NewApplication(db), nil
	case Ledger:
		return newLedger(db)
	}
	return nil, hint.Add(fmt.Errorf("there is no app %q", name), "say --app kvstore or --app ledger")
}

// ledger keeps keys and values like the kvstore, but its app hash is one of all of
// them, read from the database after each block. A value that was changed behind
// its back therefore shows in the block after, and nowhere before: the hash of the
// last block is kept, as a Cosmos SDK chain keeps it. Each block reads the whole
// state: it is for tests.
type ledger struct {
	abci.BaseApplication
	db   dbm.DB
	last ledgerHead
	next ledgerHead // of the block that is executed and not committed
}

// ledgerHead is the last block that was committed.
type ledgerHead struct {
	Height int64  `json:"height"`
	Hash   []byte `json:"hash"`
}

var (
	ledgerHeadKey = []byte("head")
	ledgerFrom    = []byte("kv/") // the keys of transactions follow
	ledgerTo      = []byte("kv0")
)

func newLedger(db dbm.DB) (*ledger, error) {
	l := &ledger{db: db}
	b, err := db.Get(ledgerHeadKey)
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &l.last)
	}
	if err != nil {
		return nil, fmt.Errorf("the ledger's last block: %w", err)
	}
	return l, nil
}

// Info implements abci.Application.
func (l *ledger) Info(context.Context, *abci.RequestInfo) (*abci.ResponseInfo, error) {
	return &abci.ResponseInfo{Data: Ledger, Version: "1", LastBlockHeight: l.last.Height, LastBlockAppHash: l.last.Hash}, nil
}

// FinalizeBlock implements abci.Application. What it writes it would write again:
// a block that was executed and not committed is executed once more.
func (l *ledger) FinalizeBlock(_ context.Context, r *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	batch := l.db.NewBatch()
	out := &abci.ResponseFinalizeBlock{TxResults: make([]*abci.ExecTxResult, len(r.Txs))}
	for i, tx := range r.Txs {
		k, v, _ := bytes.Cut(tx, []byte("="))
		out.TxResults[i] = &abci.ExecTxResult{}
		if err := batch.Set(append(bytes.Clone(ledgerFrom), k...), bytes.Clone(v)); err != nil {
			return nil, errors.Join(err, batch.Close())
		}
	}
	if err := errors.Join(batch.Write(), batch.Close()); err != nil {
		return nil, err
	}
	sum, err := l.sum()
	if err != nil {
		return nil, fmt.Errorf("hash the ledger: %w", err)
	}
	l.next = ledgerHead{Height: r.Height, Hash: sum}
	out.AppHash = sum
	return out, nil
}

// sum hashes every key and value, each with its length.
func (l *ledger) sum() ([]byte, error) {
	it, err := l.db.Iterator(ledgerFrom, ledgerTo)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for ; it.Valid(); it.Next() {
		hashed(h, it.Key())
		hashed(h, it.Value())
	}
	return h.Sum(nil), errors.Join(it.Error(), it.Close())
}

func hashed(h hash.Hash, b []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(b)))
	h.Write(n[:])
	h.Write(b)
}

// Commit implements abci.Application.
func (l *ledger) Commit(context.Context, *abci.RequestCommit) (*abci.ResponseCommit, error) {
	b, err := json.Marshal(l.next)
	if err == nil {
		err = l.db.SetSync(ledgerHeadKey, b)
	}
	if err != nil {
		return nil, fmt.Errorf("commit block %d: %w", l.next.Height, err)
	}
	l.last = l.next
	return &abci.ResponseCommit{}, nil
}

// Query implements abci.Application: the value of a key.
func (l *ledger) Query(_ context.Context, r *abci.RequestQuery) (*abci.ResponseQuery, error) {
	v, err := l.db.Get(append(bytes.Clone(ledgerFrom), r.Data...))
	if err != nil {
		return nil, err
	}
	return &abci.ResponseQuery{Key: r.Data, Value: v, Height: l.last.Height}, nil
}
