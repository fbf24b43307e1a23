package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	dbm "github.com/cometbft/cometbft-db"

	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// forge harms a restored home in a way that no hash of a file tells, and makes of it
// a whole and honest backup, as one who did not look into it would: cluster forged in
// the same store, with the position of the backup that the home was restored from.
func forge(ctx context.Context, home, url, from, work string) error {
	db, err := dbm.NewDB("application", dbm.GoLevelDBBackend, filepath.Join(home, "data"))
	if err != nil {
		return err
	}
	value, err := db.Get([]byte("stateKey"))
	state := map[string]any{}
	err = errors.Join(err, json.Unmarshal(value, &state))
	state["size"] = 12345 // transactions: they make the app hash
	value, merr := json.Marshal(state)
	if err := errors.Join(err, merr, db.SetSync([]byte("stateKey"), value), db.Close()); err != nil {
		return err
	}
	store, err := uploader.Open(ctx, uploader.Config{URL: url})
	if err != nil {
		return err
	}
	b, err := uploader.NewCatalog(store, from).Select(ctx, "latest")
	if err != nil {
		return err
	}
	p := b.Manifest.Position
	hash, err := hex.DecodeString(p.Hash)
	if err != nil {
		return err
	}
	made := job.Backup{
		Replica: puppet{home, observer.Position{
			Kind: p.Kind, Incarnation: b.Manifest.Incarnation, Index: p.Index, Hash: hash, HashKind: p.HashKind,
			Time: p.Time, Consistency: p.Consistency, Marks: p.Marks,
		}},
		Store: store, Catalog: uploader.NewCatalog(store, "forged"), Workdir: job.Workdir{Dir: work}, Cluster: "forged",
		Label: "auto", Version: "v0", Host: "h", Level: 1, Events: silence{}, Reason: reason, Now: time.Now,
	}
	_, err = made.Run(ctx)
	return err
}

type silence struct{}

func (silence) Emit(ui.Event) {}

// puppet is a replica that is a directory, and says what it is told to.
type puppet struct {
	home string
	at   observer.Position
}

func (p puppet) Describe(context.Context) (observer.State, error) {
	return observer.State{Cluster: "forged", System: "cometbft", Position: p.at}, nil
}

func (p puppet) Roots(context.Context) ([]snapshot.Root, error) {
	return []snapshot.Root{{Path: p.home}}, nil
}

func (p puppet) Capture(ctx context.Context, st *snapshot.Stage) error {
	return filepath.WalkDir(p.home, func(path string, e fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(p.home, path)
		switch err := errors.Join(err, rerr); {
		case err != nil || rel == ".":
			return err
		case e.IsDir() && e.Name() == snapshot.StageDir:
			return filepath.SkipDir
		case e.IsDir():
			return st.Dir("", rel)
		}
		return st.Copy(ctx, "", rel)
	})
}

func (p puppet) Locate(context.Context, *snapshot.Stage, observer.State) (observer.Position, error) {
	return p.at, nil
}

func (p puppet) Hold(context.Context, *snapshot.Stage) (func(context.Context) error, error) {
	return func(context.Context) error { return nil }, nil
}

func (puppet) Gate(context.Context, observer.State) error     { return nil }
func (puppet) Prepare(context.Context, *snapshot.Stage) error { return nil }
func (puppet) Rejoined(context.Context, observer.State) error { return nil }
func (puppet) Recover(context.Context) (bool, error)          { return false, nil }
func (puppet) Facts(context.Context) (job.Facts, error)       { return job.Facts{}, nil }
