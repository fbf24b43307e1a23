package check

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cosmos/gogoproto/proto"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	cmtstore "github.com/cometbft/cometbft/proto/tendermint/store"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"

	"github.com/eddy-backup/eddy/observer/cometbft/engine"
)

// message changes a message that is stored under a key.
func message[M any, P interface {
	*M
	proto.Message
}](d *dump, name, key string, change func(P),
) {
	d.Helper()
	d.set(name, key, func(old []byte) []byte {
		m := P(new(M))
		must(d, proto.Unmarshal(old, m))
		change(m)
		b, err := proto.Marshal(m)
		must(d, err)
		return b
	})
}

func flip(b []byte) []byte { b[len(b)/2] ^= 0x10; return b }

func gone([]byte) []byte { return nil }

// harm is one way in which a dump can be wrong. h is the height of the state.
type harm struct {
	name  string
	do    func(d *dump, h int64)
	stage Stage
	what  What
	o     Options
}

var (
	tables    = []string{"*.ldb", "*.sst"}
	manifests = []string{"MANIFEST-*"}
)

// harms are the kinds of damage and forgery that an offline check can see: what
// each does to a real dump, and what must be said of it.
func harms(t testing.TB, backend dbm.BackendType) []harm {
	own := chains.get(t, "sound", backend)
	other := chains.get(t, "other", backend)
	logs := []string{"*.log"}
	return []harm{
		// Files.
		{"a bit of a table is flipped", func(d *dump, _ int64) { d.rewrite(d.file("blockstore.db", tables...), flip) }, StageDatabases, Damaged, Options{Deep: true}},
		{"a bit of a table that is of no layer is flipped", func(d *dump, _ int64) { d.rewrite(d.file("tx_index.db", tables...), flip) }, StageDatabases, Damaged, Options{Deep: true}},
		{"a bit of a log is flipped", func(d *dump, _ int64) { d.rewrite(d.newest("blockstore.db", logs...), flipWritten) }, StageBlocks, walFault(backend), Options{}},
		{"a log is torn", func(d *dump, _ int64) { d.rewrite(d.newest("state.db", logs...), tearLog) }, StageState, walFault(backend), Options{}},
		{"a bit of a list of tables is flipped", func(d *dump, _ int64) {
			d.rewrite(d.file("application.db", manifests...), func(b []byte) []byte { b[9] ^= 1; return b })
		}, StageDatabases, ManifestDamaged, Options{}},
		{"a list of tables is gone", func(d *dump, _ int64) { must(d, os.Remove(d.file("state.db", manifests...))) }, StageDatabases, ManifestDamaged, Options{}},
		{"a list of tables is cut off at its first record", func(d *dump, _ int64) { must(d, os.Truncate(d.file("state.db", manifests...), 3)) }, StageDatabases, ManifestDamaged, Options{}},
		{"the pointer to the list is garbage", func(d *dump, _ int64) {
			for _, f := range []string{"CURRENT", "marker.manifest.*"} {
				all, _ := filepath.Glob(filepath.Join(d.path("blockstore.db"), f))
				for _, f := range all {
					must(d, os.Remove(f), os.WriteFile(d.path("blockstore.db/CURRENT"), []byte("garbage"), 0o600))
				}
			}
		}, StageDatabases, ManifestDamaged, Options{}},
		{"a table is gone", func(d *dump, _ int64) { must(d, os.Remove(d.file("blockstore.db", tables...))) }, StageDatabases, TableMissing, Options{}},
		{"a table is cut short", func(d *dump, _ int64) { must(d, os.Truncate(d.file("blockstore.db", tables...), 1000)) }, StageDatabases, TableSize, Options{}},
		{"a table is another's of the same size", func(d *dump, _ int64) {
			f := d.file("blockstore.db", tables...)
			d.rewrite(f, func(b []byte) []byte { return bytes.Repeat([]byte{0xA5}, len(b)) })
		}, StageBlocks, Damaged, Options{}},

		// Blocks.
		{"there is no block store", func(d *dump, _ int64) { must(d, os.RemoveAll(d.path("blockstore.db"))) }, StageBlocks, BlocksMissing, Options{}},
		{"the block store does not know its heights", func(d *dump, _ int64) { d.set("blockstore", "blockStore", gone) }, StageBlocks, BlocksMissing, Options{}},
		{"the block store's heights are garbage", func(d *dump, _ int64) {
			d.set("blockstore", "blockStore", func([]byte) []byte { return []byte("\xff\xff garbage") })
		}, StageBlocks, Damaged, Options{}},
		{"its old blocks are gone", func(d *dump, h int64) {
			for i := range h / 2 {
				d.set("blockstore", fmt.Sprintf("H:%d", i+1), gone)
			}
		}, StageBlocks, MetaDamaged, Options{}},
		{"a header is gone", func(d *dump, h int64) { d.set("blockstore", fmt.Sprintf("H:%d", h-7), gone) }, StageBlocks, MetaDamaged, Options{}},
		{"a header cannot be read", func(d *dump, h int64) {
			d.set("blockstore", fmt.Sprintf("H:%d", h), func(b []byte) []byte { return b[:len(b)/2] })
		}, StageBlocks, MetaDamaged, Options{}},
		{"a header is another block's", func(d *dump, h int64) {
			var from []byte
			d.set("blockstore", fmt.Sprintf("H:%d", h-1), func(b []byte) []byte { from = b; return b })
			d.set("blockstore", fmt.Sprintf("H:%d", h), func([]byte) []byte { return from })
		}, StageBlocks, MetaDamaged, Options{}},
		{"a header's field is changed", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("H:%d", h-3), func(m *cmtproto.BlockMeta) { m.Header.Time = m.Header.Time.Add(time.Nanosecond) })
		}, StageBlocks, BlockHash, Options{}},
		{"a header is forged, with its right hash", func(d *dump, h int64) {
			forge(d, h-3, func(x *types.Header) { x.AppHash = bytes.Repeat([]byte{1}, 8) })
		}, StageBlocks, HeaderLink, Options{}},
		{"the newest header is forged, with its right hash", func(d *dump, h int64) { forge(d, h, func(x *types.Header) { x.AppHash = bytes.Repeat([]byte{1}, 8) }) }, StageState, StateBlock, Options{}},
		{"a link to the block below is broken", func(d *dump, h int64) {
			forge(d, h-2, func(x *types.Header) { x.LastBlockID.Hash = bytes.Repeat([]byte{7}, 32) })
		}, StageBlocks, HeaderLink, Options{}},
		{"a header announces other validators", func(d *dump, h int64) {
			forge(d, h-2, func(x *types.Header) { x.NextValidatorsHash = bytes.Repeat([]byte{7}, 32) })
		}, StageBlocks, ValidatorsHash, Options{}},
		{"a header is of another chain", func(d *dump, h int64) { forge(d, h-2, func(x *types.Header) { x.ChainID = "other" }) }, StageBlocks, ChainID, Options{}},
		{"a part of a block is gone", func(d *dump, h int64) { d.set("blockstore", fmt.Sprintf("P:%d:%d", h, 0), gone) }, StageBlocks, PartMissing, Options{}},
		{"the last part of a large block is gone", func(d *dump, h int64) { d.set("blockstore", d.large(h, 1), gone) }, StageBlocks, PartMissing, Options{Deep: true}},
		{"a part of a block is cut short", func(d *dump, h int64) {
			message(d, "blockstore", d.large(h, 1), func(p *cmtproto.Part) { p.Bytes = p.Bytes[:len(p.Bytes)-5] })
		}, StageBlocks, PartProof, Options{Deep: true}},
		{"a bit of a part is flipped", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("P:%d:0", h), func(p *cmtproto.Part) { flip(p.Bytes) })
		}, StageBlocks, PartProof, Options{}},
		{"a part's proof is wrong", func(d *dump, h int64) {
			message(d, "blockstore", d.large(h, 0), func(p *cmtproto.Part) { flip(p.Proof.Aunts[0]) })
		}, StageBlocks, PartProof, Options{Deep: true}},
		{"a part is another block's", func(d *dump, h int64) {
			var from []byte
			d.set("blockstore", fmt.Sprintf("P:%d:0", h-1), func(b []byte) []byte { from = b; return b })
			d.set("blockstore", fmt.Sprintf("P:%d:0", h), func([]byte) []byte { return from })
		}, StageBlocks, PartProof, Options{}},
		{"a block is not found by its hash", func(d *dump, h int64) {
			d.edit("blockstore", func(db dbm.DB) {
				m := d.meta(db, h)
				must(d, db.SetSync(fmt.Appendf(nil, "BH:%x", m.BlockID.Hash), []byte("1")))
			})
		}, StageBlocks, BlockDamaged, Options{}},

		// Signatures.
		{"the signatures for a block are gone", func(d *dump, h int64) { d.set("blockstore", fmt.Sprintf("C:%d", h-4), gone) }, StageBlocks, CommitMissing, Options{}},
		{"a signature is forged", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("C:%d", h-4), func(c *cmtproto.Commit) { flip(c.Signatures[0].Signature) })
		}, StageBlocks, CommitHash, Options{}},
		{"the signatures for the newest block are gone", func(d *dump, h int64) { d.set("blockstore", fmt.Sprintf("SC:%d", h), gone) }, StageBlocks, CommitMissing, Options{}},
		{"the signature for the newest block is forged", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("SC:%d", h), func(c *cmtproto.Commit) { flip(c.Signatures[0].Signature) })
		}, StageBlocks, CommitInvalid, Options{}},
		{"the newest block is signed by a stranger", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("SC:%d", h), func(c *cmtproto.Commit) {
				commit, err := types.CommitFromProto(c)
				must(d, err)
				sig, err := ed25519.GenPrivKey().Sign(commit.VoteSignBytes(d.id, 0))
				must(d, err)
				c.Signatures[0].Signature = sig
			})
		}, StageBlocks, CommitInvalid, Options{}},
		{"nobody has signed the newest block", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("SC:%d", h), func(c *cmtproto.Commit) {
				c.Signatures[0] = cmtproto.CommitSig{BlockIdFlag: cmtproto.BlockIDFlagAbsent}
			})
		}, StageBlocks, CommitInvalid, Options{}},
		{"the signatures are for another block", func(d *dump, h int64) {
			message(d, "blockstore", fmt.Sprintf("SC:%d", h), func(c *cmtproto.Commit) { flip(c.BlockID.Hash) })
		}, StageBlocks, CommitInvalid, Options{}},

		// State.
		{"there is no state store", func(d *dump, _ int64) { must(d, os.RemoveAll(d.path("state.db"))) }, StageState, StateMissing, Options{}},
		{"the state is gone", func(d *dump, _ int64) { d.set("state", "stateKey", gone) }, StageState, StateMissing, Options{}},
		{"the state cannot be read", func(d *dump, _ int64) {
			d.set("state", "stateKey", func(b []byte) []byte { return b[:len(b)/3] })
		}, StageState, StateDamaged, Options{}},
		{"the blocks are two ahead of the state", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.LastBlockHeight -= 2 })
		}, StageState, StoreAhead, Options{}},
		{"the state was captured much earlier", func(d *dump, _ int64) { d.replace("state.db", d.early) }, StageState, StoreAhead, Options{}},
		{"the blocks were captured much earlier", func(d *dump, _ int64) { d.replace("blockstore.db", d.early) }, StageState, StateAhead, Options{}},
		{"the blocks are one behind the state", func(d *dump, h int64) {
			message(d, "blockstore", "blockStore", func(s *cmtstore.BlockStoreState) { s.Height-- })
		}, StageState, StateAhead, Options{}},
		{"the state is another chain's", func(d *dump, _ int64) { d.replace("state.db", other.late) }, StageBlocks, ChainID, Options{}},
		{"the state is of another block", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { flip(s.LastBlockID.Hash) })
		}, StageState, StateBlock, Options{}},
		{"the state's time is another", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.LastBlockTime = s.LastBlockTime.Add(1) })
		}, StageState, StateBlock, Options{}},
		{"the state's consensus parameters are others", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.ConsensusParams.Block.MaxBytes++ })
		}, StageState, StateBlock, Options{}},
		{"the last validators are forged", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.LastValidators.Validators[0].VotingPower++ })
		}, StageState, ValidatorsHash, Options{}},
		{"the validators are forged", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.Validators = stranger(d) })
		}, StageState, ValidatorsHash, Options{}},
		{"the next validators are forged", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.NextValidators = stranger(d) })
		}, StageState, ValidatorsHash, Options{}},
		{"the validators of the next block are gone", func(d *dump, h int64) { d.set("state", fmt.Sprintf("validatorsKey:%d", h+1), gone) }, StageState, ValidatorsStore, Options{}},
		{"the validators that all others point at are gone", func(d *dump, _ int64) { d.set("state", "validatorsKey:1", gone) }, StageState, ValidatorsStore, Options{}},
		{"the stored validators are forged", func(d *dump, h int64) {
			message(d, "state", "validatorsKey:1", func(v *cmtstate.ValidatorsInfo) { v.ValidatorSet = stranger(d) })
		}, StageState, ValidatorsHash, Options{}},
		{"the state's app hash is wrong", func(d *dump, _ int64) {
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.AppHash[0] += 2 })
		}, StageApp, AppHash, Options{}},
		{"the state's app hash is wrong, and a block is ahead", func(d *dump, _ int64) {
			d.rollback()
			message(d, "state", "stateKey", func(s *cmtstate.State) { s.AppHash[0] += 2 })
		}, StageState, AppHash, Options{}},
		{"the state's results are wrong, and a block is ahead", func(d *dump, _ int64) {
			d.rollback()
			message(d, "state", "stateKey", func(s *cmtstate.State) { flip(s.LastResultsHash) })
		}, StageState, StateBlock, Options{}},

		// The application.
		{"the application's state was changed", func(d *dump, _ int64) { d.kvstore(func(s *kvState) { s.Size++ }) }, StageApp, AppHash, Options{}},
		{"the application is behind", func(d *dump, _ int64) { d.kvstore(func(s *kvState) { s.Height -= 2 }) }, StageApp, AppBehind, Options{}},
		{"the application is one behind, with another hash", func(d *dump, _ int64) { d.kvstore(func(s *kvState) { s.Height--; s.Size += 5 }) }, StageApp, AppHash, Options{}},
		{"the application was captured much earlier", func(d *dump, _ int64) { d.replace("application.db", d.early) }, StageApp, AppBehind, Options{}},
		{"the application is ahead", func(d *dump, _ int64) { d.kvstore(func(s *kvState) { s.Height++ }) }, StageApp, AppAhead, Options{}},
		{"the application has forgotten everything", func(d *dump, _ int64) {
			must(d, os.RemoveAll(d.path("application.db")))
			d.edit("application", func(dbm.DB) {})
		}, StageApp, AppMissing, Options{}},
		{"the application is another chain's", func(d *dump, h int64) {
			d.replace("application.db", other.late)
			d.kvstore(func(s *kvState) { s.Height = h; s.Size += 1000 })
		}, StageApp, AppHash, Options{}},

		// What was expected.
		{"it is another chain's, whole", func(*dump, int64) {}, StageChain, ChainID, Options{ChainID: "mainnet-1"}},
		{"it is an older one, whole", func(d *dump, _ int64) {
			for _, n := range []string{"state.db", "blockstore.db", "application.db"} {
				d.replace(n, d.early)
			}
		}, StageChain, Position, Options{Height: own.height + 20}},
		{"it is of another fork", func(*dump, int64) {}, StageChain, Position, Options{AppHash: []byte{1, 2, 3}}},
		{"its history began at another time", func(*dump, int64) {}, StageChain, Beginning, Options{Genesis: &Genesis{ChainID: own.id, Time: time.Unix(1, 0), InitialHeight: 1}}},
	}
}

// walFault is what is said of a log: goleveldb refuses to open, pebble goes on
// without the rest of it.
func walFault(backend dbm.BackendType) What {
	if backend == dbm.PebbleDBBackend {
		return WALTorn
	}
	return Damaged
}

// tearLog cuts a log off within what was written last. Behind that pebble's have
// room, filled with zeros.
func tearLog(b []byte) []byte {
	end := len(bytes.TrimRight(b, "\x00"))
	return b[:max(end-20, 3)]
}

// flipWritten flips a bit of what was written into a log.
func flipWritten(b []byte) []byte {
	b[len(bytes.TrimRight(b, "\x00"))/3] ^= 0x10
	return b
}

func (d *dump) meta(db dbm.DB, height int64) *cmtproto.BlockMeta {
	d.Helper()
	b, err := db.Get(fmt.Appendf(nil, "H:%d", height))
	must(d, err)
	m := new(cmtproto.BlockMeta)
	must(d, proto.Unmarshal(b, m))
	return m
}

// forge changes a header and its id with it.
func forge(d *dump, height int64, change func(*types.Header)) {
	d.Helper()
	message(d, "blockstore", fmt.Sprintf("H:%d", height), func(m *cmtproto.BlockMeta) {
		h, err := types.HeaderFromProto(&m.Header)
		must(d, err)
		change(&h)
		m.Header, m.BlockID.Hash = *h.ToProto(), h.Hash()
	})
}

// large is the key of the first or the last part of a block that has several.
func (d *dump) large(h int64, which int) (key string) {
	d.Helper()
	d.edit("blockstore", func(db dbm.DB) {
		for ; h > 0 && key == ""; h-- {
			if n := d.meta(db, h).BlockID.PartSetHeader.Total; n > 1 {
				key = fmt.Sprintf("P:%d:%d", h, which*(int(n)-1))
			}
		}
	})
	if key == "" {
		d.Fatal("no block has several parts")
	}
	return key
}

// stranger is a set of one validator that nobody knows.
func stranger(t testing.TB) *cmtproto.ValidatorSet {
	set, err := types.NewValidatorSet([]*types.Validator{types.NewValidator(ed25519.GenPrivKey().PubKey(), 10)}).ToProto()
	must(t, err)
	return set
}

// rollback sets the state one block back, by CometBFT's own means.
func (d *dump) rollback() {
	d.Helper()
	d.edit("blockstore", func(blocks dbm.DB) {
		d.edit("state", func(state dbm.DB) {
			_, _, err := sm.Rollback(cmtBlocks(blocks), sm.NewStore(state, sm.StoreOptions{}), false)
			must(d, err)
		})
	})
}

// Every kind of damage is found and named, for each engine; none passes. The
// table that is printed is the answer to what an offline check can see.
func TestDamage(t *testing.T) {
	for backend, kind := range backends() {
		t.Run(string(kind), func(t *testing.T) {
			all := harms(t, backend)
			c := chains.get(t, "sound", backend)
			sound, err := Run(t.Context(), c.late, Options{})
			must(t, err)
			table := make([]string, len(all))
			t.Run("all", func(t *testing.T) {
				for i, x := range all {
					t.Run(x.name, func(t *testing.T) {
						t.Parallel()
						table[i] = x.found(t, c.dump(t, backend), sound.Height)
					})
				}
			})
			t.Logf("%d kinds:\n%s", len(all), strings.Join(table, ""))
		})
	}
}

// found harms a dump, and returns a line of what is said of it.
func (x harm) found(t *testing.T, d *dump, height int64) string {
	x.do(d, height)
	before := count(t, d.home)
	r, err := Run(t.Context(), d.home, x.o)
	must(t, err)
	i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Stage == x.stage && f.What == x.what })
	if i < 0 || r.Grade != Broken || r.Sound() {
		t.Fatalf("not found as %s %s: %s %s %v, layers %+v", x.stage, x.what, r.Opened, r.Grade, r.Findings, r.Layers)
	}
	f := r.Findings[i]
	if f.Detail == "" || f.Hint == "" || strings.Contains(f.Detail, "\n") {
		t.Errorf("%+v", f)
	}
	if count(t, d.home) != before {
		t.Error("being checked has made files")
	}
	depth := "quick"
	if x.o.Deep {
		depth = "deep"
	}
	return fmt.Sprintf("%-55s %-6s %-10s %-18s %s\n", x.name, depth, f.Stage, f.What, f.Detail)
}

func count(t testing.TB, dir string) (n int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		n++
		return err
	}))
	return n
}

// What a node makes good by itself when it starts is no damage.
func TestReplayable(t *testing.T) {
	for backend, kind := range backends() {
		d := chains.get(t, "sound", backend).dump(t, backend)
		d.rollback()
		r, err := Run(t.Context(), d.home, Options{})
		if err != nil || !r.Sound() || r.Grade != Replayable || r.Store != r.Height+1 || r.App != r.Store || len(r.Notes) != 1 {
			t.Errorf("%s, the state is one block behind: %+v, %v", kind, r, err)
		}
		d.kvstore(func(s *kvState) { s.Height--; s.Size = sizeOf(r.AppHash) })
		r, err = Run(t.Context(), d.home, Options{})
		if err != nil || !r.Sound() || r.Grade != Replayable || r.App != r.Height {
			t.Errorf("%s, state and application are one block behind: %+v, %v", kind, r, err)
		}
		d = chains.get(t, "sound", backend).dump(t, backend)
		d.kvstore(func(s *kvState) { s.Height--; s.Size = sizeOf(r.AppHash) })
		r, err = Run(t.Context(), d.home, Options{})
		if err != nil || !r.Sound() || r.Grade != Replayable || r.App != r.Height-1 || r.Store != r.Height {
			t.Errorf("%s, the application is one block behind: %+v, %v", kind, r, err)
		}
	}
}

// What cannot be opened is no damage, and is said.
func TestOpenedInPart(t *testing.T) {
	for backend, kind := range backends() {
		d := chains.get(t, "sound", backend).dump(t, backend)
		must(t, os.RemoveAll(d.path("application.db")))
		r, err := Run(t.Context(), d.home, Options{})
		if err != nil || !r.Sound() || r.Opened != Part || r.Grade != Structure {
			t.Errorf("%s, no application: %+v, %v", kind, r, err)
		}
		must(t, os.MkdirAll(d.path("application.db"), 0o700), os.WriteFile(d.path("application.db/IDENTITY"), []byte("x"), 0o600))
		r, err = Run(t.Context(), d.home, Options{})
		if err != nil || !r.Sound() || r.Opened != Part || r.Layers[2].Engine != string(engine.RocksDB) || r.Layers[2].Said == "" {
			t.Errorf("%s, a rocksdb: %+v, %v", kind, r, err)
		}
		d = chains.get(t, "sound", backend).dump(t, backend)
		d.set("application", "stateKey", gone)
		r, err = Run(t.Context(), d.home, Options{})
		if err != nil || !r.Sound() || r.Opened != Part || !strings.Contains(r.Layers[2].Said, "not know") {
			t.Errorf("%s, an application that nobody knows: %+v, %v", kind, r, err)
		}
	}
}
