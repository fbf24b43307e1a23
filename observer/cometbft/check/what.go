package check

// What names a kind of finding. The names are kept: scripts read them.
type What string

// What can be wrong with a dump.
const (
	// The files of a database.
	TableMissing    What = "table-missing"    // its list names a table that is not there
	TableSize       What = "table-size"       // its list says another size
	ManifestDamaged What = "manifest-damaged" // its list of tables cannot be read
	WALTorn         What = "wal-torn"         // its log ends in the middle, or its bits are flipped
	Damaged         What = "database-damaged" // its engine refuses it, or what it holds
	Panicked        What = "engine-panicked"  // its engine gave up over it

	// The block store.
	BlocksMissing   What = "blocks-missing"   // there is no block store, or it says nothing of itself
	MetaDamaged     What = "block-meta"       // a block's header is missing, or cannot be read
	BlockHash       What = "block-hash"       // a header or block has another hash than its block's id
	PartMissing     What = "part-missing"     // a block lacks a part
	PartProof       What = "part-proof"       // a part does not prove that it belongs to its block
	BlockDamaged    What = "block-content"    // what the parts make is not the block
	HeaderLink      What = "header-link"      // a header does not link to the block below
	CommitMissing   What = "commit-missing"   // nobody's signatures for a block
	CommitHash      What = "commit-hash"      // other signatures than the next block has
	CommitInvalid   What = "commit-invalid"   // not signed by two thirds of the validators
	ValidatorsHash  What = "validators-hash"  // a validator set that is not the header's
	ValidatorsStore What = "validators-store" // a validator set that the node will ask for is missing

	// The state store.
	StateMissing What = "state-missing"
	StateDamaged What = "state-damaged"
	StateBlock   What = "state-block" // the state is not of the block at its height
	StoreAhead   What = "store-ahead" // of the state, by more than the one block that a node executes again
	StateAhead   What = "state-ahead" // of the blocks

	// The application.
	AppMissing What = "app-missing" // its database is empty
	AppBehind  What = "app-behind"
	AppAhead   What = "app-ahead"
	AppHash    What = "app-hash"
	AppDamaged What = "app-damaged"
	CommitInfo What = "commit-info" // the SDK's list of stores
	StoreRoot  What = "store-root"  // the root of a store's tree
	TreeNode   What = "tree-node"   // a node of a store's tree
	WasmHash   What = "wasm-hash"   // a contract's program is not the one that it is named by

	// What was expected.
	ChainID   What = "chain-id"
	Beginning What = "genesis"
	Position  What = "position"

	// The process that checks.
	ChildMemory What = "check-out-of-memory"
	ChildEnded  What = "check-ended"
)

// hint is what to do about a finding.
func (w What) hint() string {
	switch w {
	case ChainID, Beginning:
		return "see that the home is the one of the chain that you mean"
	case StoreAhead, StateAhead, AppBehind, AppAhead:
		return "the layers were not captured at one moment, or the node has lost writes: see that it was stopped cleanly, and back up again"
	case ChildMemory:
		return "give the check more memory"
	case ChildEnded:
		return "look at what it said; if the dump is sound, this is an error of eddy's"
	case Position:
		return "something changed the dump after its position was read"
	default:
		return "the node's own data is damaged: look at its log; bring the node back from an older backup or by state sync, and back up again"
	}
}
