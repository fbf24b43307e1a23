// Package grow makes databases that look to a backup like those of a chain that
// has run for long: the same engines, key shapes, value sizes and share of each
// store, without a single valid block.
//
// It is for timing only. A check of such a database must fail, and the names are
// prefixed so that they can lie beside a living chain's own. Its invariant: it
// refuses a name that exists, unless it is told to write on there.
package grow

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	dbm "github.com/cometbft/cometbft-db"
)

// Options say what to grow. All fields are needed but More and Progress.
type Options struct {
	Dir    string // where the databases go: a node's data directory
	Engine string // "goleveldb" or "pebbledb"
	Prefix string // before each database's name: "grown-" makes grown-blockstore.db
	Size   int64  // bytes on disk at which to stop; with More: bytes to write
	Seed   uint64 // same seed, same keys and values
	// More writes to databases that are there already, over keys that they hold, as
	// a node that has been started again does: tables are compacted away.
	More bool
	// Progress, where set, is called now and then with the bytes on disk.
	Progress func(onDisk int64)
}

// Result is what has been made.
type Result struct {
	OnDisk int64 // bytes of all files
	Files  int
}

// store is one database: its part of all bytes written in percent, and the
// shape of its keys and values.
type store struct {
	name    string
	percent int
	value   int // bytes
	key     func(r *rand.ChaCha8, n uint64) []byte

	db      dbm.DB
	records uint64
	written int64
}

// stores are the four that every chain has, with the shares of a pruned one.
// Blocks come in order; the keys of application and index are hashes, so that
// the engine has to compact as it does on a real chain.
func stores() []*store {
	return []*store{
		{name: "blockstore", percent: 40, value: 65_000, key: func(_ *rand.ChaCha8, n uint64) []byte {
			return fmt.Appendf(nil, "P:%d:%d", n/4, n%4)
		}},
		{name: "application", percent: 35, value: 700, key: func(r *rand.ChaCha8, _ uint64) []byte {
			return append([]byte("s/k:bank/"), hash(r)...)
		}},
		{name: "tx_index", percent: 15, value: 3_000, key: func(r *rand.ChaCha8, _ uint64) []byte {
			return hash(r)
		}},
		{name: "state", percent: 10, value: 9_000, key: func(_ *rand.ChaCha8, n uint64) []byte {
			return fmt.Appendf(nil, "abciResponsesKey:%d", n)
		}},
	}
}

// batchBytes is the size of one write batch, as a node under load commits.
const batchBytes = 1 << 20

// Run grows the databases until they hold o.Size bytes on disk, and closes them
// cleanly. On an error, ctx's included, what was made is removed; what was there
// before stays.
func Run(ctx context.Context, o Options) (res Result, err error) {
	if o.Engine != string(dbm.GoLevelDBBackend) && o.Engine != string(dbm.PebbleDBBackend) {
		return res, fmt.Errorf("engine %q: want goleveldb or pebbledb", o.Engine)
	}
	all := stores()
	for _, s := range all {
		switch _, err := os.Lstat(s.path(o)); {
		case err == nil && !o.More:
			return res, fmt.Errorf("grow %s: %w", s.path(o), fs.ErrExist)
		case err != nil && o.More:
			return res, fmt.Errorf("grow more: %w", err)
		}
	}
	defer func() {
		for _, s := range all {
			if s.db != nil {
				err = errors.Join(err, s.db.Close())
			}
		}
		if err != nil && !o.More {
			for _, s := range all {
				err = errors.Join(err, os.RemoveAll(s.path(o)))
			}
		}
		if err != nil {
			return
		}
		res, err = measure(o, all)
	}()
	for _, s := range all {
		if s.db, err = dbm.NewDB(o.Prefix+s.name, dbm.BackendType(o.Engine), o.Dir); err != nil {
			return res, fmt.Errorf("create %s: %w", s.path(o), err)
		}
	}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.Seed)
	r := rand.NewChaCha8(seed)
	for written := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return res, err
		}
		s := most(all, written)
		n, err := s.writeBatch(r)
		if err != nil {
			return res, fmt.Errorf("write to %s: %w", s.path(o), err)
		}
		written += n
		if o.More && written >= o.Size {
			return res, nil
		}
		if written/(64*batchBytes) == (written-n)/(64*batchBytes) {
			continue
		}
		now, err := measure(o, all)
		if err != nil {
			return res, err
		}
		if o.Progress != nil {
			o.Progress(now.OnDisk)
		}
		if !o.More && now.OnDisk >= o.Size {
			return res, nil
		}
	}
}

// most returns the store that is furthest behind its share.
func most(all []*store, written int64) *store {
	best, behind := all[0], int64(-1)
	for _, s := range all {
		if d := written*int64(s.percent)/100 - s.written; d > behind {
			best, behind = s, d
		}
	}
	return best
}

func (s *store) path(o Options) string { return filepath.Join(o.Dir, o.Prefix+s.name+".db") }

func (s *store) writeBatch(r *rand.ChaCha8) (int64, error) {
	b := s.db.NewBatch()
	defer b.Close()
	var n int64
	for n < batchBytes {
		k, v := s.key(r, s.records), value(r, s.value)
		if err := b.Set(k, v); err != nil {
			return n, err
		}
		s.records++
		n += int64(len(k) + len(v))
	}
	s.written += n
	return n, b.Write()
}

// text is what the compressible half of each value is made of.
const text = `{"@type":"/cosmos.bank.v1beta1.MsgSend","from_address":"cosmos1","to_address":"cosmos1","amount":[{"denom":"uatom"}]}`

// value returns n bytes, half random and half text.
func value(r *rand.ChaCha8, n int) []byte {
	v := make([]byte, n)
	half := n / 2
	// Read is documented never to fail.
	_, _ = r.Read(v[:half])
	for i := half; i < n; {
		i += copy(v[i:], text)
	}
	return v
}

func hash(r *rand.ChaCha8) []byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], r.Uint64())
	h := sha256.Sum256(b[:])
	return h[:]
}

func measure(o Options, all []*store) (Result, error) {
	var res Result
	for _, s := range all {
		err := filepath.WalkDir(s.path(o), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				var info fs.FileInfo
				if info, err = d.Info(); err == nil {
					res.OnDisk += info.Size()
					res.Files++
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // compacted away under the walk
			}
			return err
		})
		if err != nil {
			return res, err
		}
	}
	return res, nil
}
