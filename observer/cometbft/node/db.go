package node

import (
	"errors"
	"fmt"
	"sync"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	cfg "github.com/cometbft/cometbft/config"
)

// databases records every database handle of a node, because the node itself
// closes only some of them, and closes those too early: reactor goroutines still
// read when Node.OnStop closes the stores, and a read from a closed goleveldb
// panics (Reactor.queryMaj23Routine in cometbft consensus/reactor.go).
type databases struct {
	mu   sync.Mutex
	open []*guarded
}

// provide is a config.DBProvider.
func (d *databases) provide(ctx *cfg.DBContext) (dbm.DB, error) {
	return d.openDB(ctx.ID, ctx.Config.DBBackend, ctx.Config.DBDir())
}

func (d *databases) openDB(name, engine, dir string) (dbm.DB, error) {
	db, err := dbm.NewDB(name, dbm.BackendType(engine), dir)
	if err != nil {
		return nil, fmt.Errorf("open database %s (%s): %w", name, engine, err)
	}
	g := &guarded{db: db, name: name, iters: map[dbm.Iterator]struct{}{}}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, g)
	return g, nil
}

// close closes every database for real. Whoever uses one afterwards waits for
// ever: the process is about to end.
func (d *databases) close(within time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	deadline := time.Now().Add(within)
	var errs []error
	for _, g := range d.open {
		errs = append(errs, g.shut(deadline))
	}
	d.open = nil
	return errors.Join(errs...)
}

// guarded is a database that may be closed while others still use it. Every
// operation, of an iterator too, holds the lock for reading; closing takes it for
// writing and never gives it back. Iterators that nobody closed (CometBFT forgets
// some, and pebble panics over them) are closed then.
type guarded struct {
	name string
	mu   sync.RWMutex
	db   dbm.DB

	itMu  sync.Mutex
	iters map[dbm.Iterator]struct{}
}

func (g *guarded) shut(deadline time.Time) error {
	for !g.mu.TryLock() {
		if time.Now().After(deadline) {
			return fmt.Errorf("database %s is still in use", g.name)
		}
		time.Sleep(time.Millisecond)
	}
	var errs []error
	for it := range g.iters {
		errs = append(errs, it.Close())
	}
	return errors.Join(append(errs, g.db.Close())...)
}

func (g *guarded) Get(key []byte) ([]byte, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.Get(key)
}

func (g *guarded) Has(key []byte) (bool, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.Has(key)
}

func (g *guarded) Set(key, value []byte) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.Set(key, value)
}

func (g *guarded) SetSync(key, value []byte) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.SetSync(key, value)
}

func (g *guarded) Delete(key []byte) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.Delete(key)
}

func (g *guarded) DeleteSync(key []byte) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.DeleteSync(key)
}

func (g *guarded) Iterator(start, end []byte) (dbm.Iterator, error) {
	return g.iterate(g.db.Iterator, start, end)
}

func (g *guarded) ReverseIterator(start, end []byte) (dbm.Iterator, error) {
	return g.iterate(g.db.ReverseIterator, start, end)
}

func (g *guarded) iterate(open func(start, end []byte) (dbm.Iterator, error), start, end []byte) (dbm.Iterator, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	it, err := open(start, end)
	if err != nil {
		return nil, err
	}
	g.itMu.Lock()
	defer g.itMu.Unlock()
	g.iters[it] = struct{}{}
	return &guardedIterator{it: it, g: g}, nil
}

// Close does nothing: databases.close does, when the node has stopped.
func (g *guarded) Close() error { return nil }

func (g *guarded) NewBatch() dbm.Batch {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return &guardedBatch{Batch: g.db.NewBatch(), g: g}
}

func (g *guarded) Print() error             { return g.db.Print() }
func (g *guarded) Stats() map[string]string { return g.db.Stats() }
func (g *guarded) Compact(start, end []byte) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.db.Compact(start, end)
}

type guardedIterator struct {
	it dbm.Iterator
	g  *guarded
}

func (i *guardedIterator) Domain() (start, end []byte) { return i.it.Domain() }

func (i *guardedIterator) Valid() bool {
	i.g.mu.RLock()
	defer i.g.mu.RUnlock()
	return i.it.Valid()
}

func (i *guardedIterator) Next() {
	i.g.mu.RLock()
	defer i.g.mu.RUnlock()
	i.it.Next()
}

func (i *guardedIterator) Key() []byte {
	i.g.mu.RLock()
	defer i.g.mu.RUnlock()
	return i.it.Key()
}

func (i *guardedIterator) Value() []byte {
	i.g.mu.RLock()
	defer i.g.mu.RUnlock()
	return i.it.Value()
}

func (i *guardedIterator) Error() error {
	i.g.mu.RLock()
	defer i.g.mu.RUnlock()
	return i.it.Error()
}

func (i *guardedIterator) Close() error {
	i.g.mu.RLock()
	defer i.g.mu.RUnlock()
	i.g.itMu.Lock()
	defer i.g.itMu.Unlock()
	delete(i.g.iters, i.it)
	return i.it.Close()
}

type guardedBatch struct {
	dbm.Batch
	g *guarded
}

func (b *guardedBatch) Write() error {
	b.g.mu.RLock()
	defer b.g.mu.RUnlock()
	return b.Batch.Write()
}

func (b *guardedBatch) WriteSync() error {
	b.g.mu.RLock()
	defer b.g.mu.RUnlock()
	return b.Batch.WriteSync()
}
